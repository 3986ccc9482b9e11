//! How a packet reaches the real server.

/// A forwarding mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Forwarding {
    /// The server sees one of the balancer's addresses, and answers it.
    #[default]
    Snat = 0,
    /// The server sees the client's address, and answers it by way of the balancer, its router.
    Nat = 1,
    /// The frame goes to the server's MAC address as it is; the server has the service's address and answers the client
    /// past the balancer.
    Dr = 2,
    /// As `Dr`, with the packet inside another (RFC 2003, RFC 2473) to the server's address.
    Tunnel = 3,
}

impl Forwarding {
    /// Every mode, by number.
    pub const ALL: [Self; 4] = [Self::Snat, Self::Nat, Self::Dr, Self::Tunnel];

    /// The mode with this number; `Snat` for a number that no mode has.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number & 3 {
            1 => Self::Nat,
            2 => Self::Dr,
            3 => Self::Tunnel,
            _ => Self::Snat,
        }
    }

    /// The name in configuration and views.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Snat => "snat",
            Self::Nat => "nat",
            Self::Dr => "dr",
            Self::Tunnel => "tunnel",
        }
    }

    /// Whether the servers' answers pass the balancer.
    #[inline(always)]
    #[must_use]
    pub const fn sees_answers(self) -> bool {
        matches!(self, Self::Snat | Self::Nat)
    }

    /// Whether a flow needs a SNAT port.
    #[inline(always)]
    #[must_use]
    pub const fn takes_port(self) -> bool {
        matches!(self, Self::Snat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_modes_are_the_same() {
        for mode in Forwarding::ALL {
            assert_eq!(Forwarding::from_number(mode as u8), mode);
        }
    }
}
