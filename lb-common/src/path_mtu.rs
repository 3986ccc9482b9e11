//! Path MTUs as ICMP errors tell them (RFC 1191, RFC 8201).
//!
//! In mode `snat` a server has one route to the balancer for all clients: what it is told of one client's path it believes of
//! everybody's (Linux: for ten minutes). So it is not told of less than [`LEAST`]; the packets of that client's flow may be fragmented
//! on their way instead, where the family allows it.

/// The fewest bytes of a packet that a server in mode `snat` is told to send: every IPv6 link carries them (RFC 8200 section 5), and
/// so does every tunnel that IPv6 may go through.
pub const LEAST: u32 = 1280;

/// No path MTU: an ICMP error of another kind.
pub const NONE: u32 = u32::MAX;

/// Whether an ICMP error tells of a path that is too narrow for all clients of a server. Zero is among that: routers from before
/// RFC 1191 say it.
#[inline(always)]
#[must_use]
pub const fn is_too_small(mtu: u32) -> bool {
    mtu < LEAST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_link_must_carry_is_not_too_small_and_no_mtu_is_none() {
        assert!([0, 68, 552, 576, LEAST - 1].into_iter().all(is_too_small));
        assert!(![LEAST, 1400, 1500, 9000, NONE].into_iter().any(is_too_small));
    }
}
