//! The TCP connection as the balancer sees it.
//!
//! ```text
//!            SYN            SYN-ACK               ACK of the SYN-ACK
//!   (none) ------> SynSent ---------> SynReceived --------------> Established
//!                  half-open table                                flow table
//!
//!   Established --FIN from client--> ClientFin --FIN from server--> TimeWait
//!   Established --FIN from server--> ServerFin --FIN from client--> TimeWait
//!   any but TimeWait --RST from client--> ClientReset     --RST from server--> ServerReset
//!   ClientReset --another packet from the client--> Established   (the RST was not its own)
//!   ServerReset --another packet from the server--> Established
//! ```
//!
//! FIN and RST count only near the sequence numbers last seen in their direction, and an RST only closes
//! the flow if its sender stays silent afterwards: endpoints ignore a forged RST (RFC 5961 section 3), and so
//! must we, or a blind attacker would end sessions that the endpoints keep.

/// Which endpoint sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Client to virtual service.
    FromClient,
    /// Real server to client.
    FromServer,
}

/// The flags byte of a TCP header (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 0x10;

    /// Whether all of `bits` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// A SYN without an ACK: the first packet of a connection.
    #[inline(always)]
    #[must_use]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }

    /// A SYN with an ACK.
    #[inline(always)]
    #[must_use]
    pub const fn is_syn_ack(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN | Self::ACK
    }
}

/// Where a flow stands. The numbers are stored in a slot's note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    /// Half-open: the client's SYN went to the server.
    SynSent = 1,
    /// Half-open: the server's SYN-ACK went to the client.
    SynReceived = 2,
    /// Half-open: the flow is being established by another packet right now.
    Promoting = 3,
    /// The client acknowledged the SYN-ACK.
    Established = 4,
    /// The client sent FIN.
    ClientFin = 5,
    /// The server sent FIN.
    ServerFin = 6,
    /// Both sent FIN.
    TimeWait = 7,
    /// The client sent RST and nothing since.
    ClientReset = 8,
    /// The server sent RST and nothing since.
    ServerReset = 9,
}

/// Beside the state in a flow's note: its client has sent a SYN on the ports of the open flow. The server challenges it, or has
/// forgotten the connection and answers with a SYN-ACK; until it is known which, the half-open table has a row of the same key,
/// and whoever finds this bit looks there.
pub const SYN_SEEN: u32 = 1 << 8;

impl TcpState {
    /// Every state.
    pub const ALL: [Self; 9] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Promoting,
        Self::Established,
        Self::ClientFin,
        Self::ServerFin,
        Self::TimeWait,
        Self::ClientReset,
        Self::ServerReset,
    ];

    /// The state stored in a slot's note; a note of no state reads as established, which keeps longest.
    #[inline(always)]
    #[must_use]
    pub const fn from_note(note: u32) -> Self {
        match note & 0xff {
            1 => Self::SynSent,
            2 => Self::SynReceived,
            3 => Self::Promoting,
            5 => Self::ClientFin,
            6 => Self::ServerFin,
            7 => Self::TimeWait,
            8 => Self::ClientReset,
            9 => Self::ServerReset,
            _ => Self::Established,
        }
    }

    /// Whether the connection is over and only late packets are expected: it no longer counts as open, and
    /// the same ports may open another.
    #[inline(always)]
    #[must_use]
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::TimeWait | Self::ClientReset | Self::ServerReset)
    }

    /// The state after a packet of an established flow. `in_window` says whether its sequence number is near
    /// those last seen in its direction ([`in_window`]).
    #[inline(always)]
    #[must_use]
    pub const fn next(self, direction: Direction, flags: TcpFlags, in_window: bool) -> Self {
        // Both have said that they are done: a RST adds nothing, and a late packet after it must not undo it.
        if !in_window || flags.has(TcpFlags::SYN) || matches!(self, Self::TimeWait) {
            return self;
        }
        if flags.has(TcpFlags::RST) {
            return match direction {
                Direction::FromClient => Self::ClientReset,
                Direction::FromServer => Self::ServerReset,
            };
        }
        let fin = flags.has(TcpFlags::FIN);
        match (self, direction) {
            (Self::Established, Direction::FromClient) if fin => Self::ClientFin,
            (Self::Established, Direction::FromServer) if fin => Self::ServerFin,
            (Self::ClientFin, Direction::FromServer) | (Self::ServerFin, Direction::FromClient) if fin => {
                Self::TimeWait
            }
            (Self::ClientReset, Direction::FromClient) | (Self::ServerReset, Direction::FromServer) => {
                Self::Established
            }
            (state, _) => state,
        }
    }
}

/// How far a sequence number may be from the last one recorded and still count.
pub const SEQUENCE_WINDOW: u32 = 1 << 19;
/// How far it must be ahead of the recorded one to be recorded itself: one store per 32 KiB, not per packet.
pub const SEQUENCE_STRIDE: u32 = 1 << 15;

/// Whether `sequence` is near `recorded`, ahead or behind.
#[inline(always)]
#[must_use]
pub const fn in_window(recorded: u32, sequence: u32) -> bool {
    sequence.wrapping_sub(recorded).wrapping_add(SEQUENCE_WINDOW) <= 2 * SEQUENCE_WINDOW
}

/// Whether `sequence` is far enough ahead of `recorded`, and near enough, to take its place.
#[inline(always)]
#[must_use]
pub const fn worth_recording(recorded: u32, sequence: u32) -> bool {
    let ahead = sequence.wrapping_sub(recorded);
    ahead >= SEQUENCE_STRIDE && ahead <= SEQUENCE_WINDOW
}

#[cfg(test)]
#[path = "tcp_tests.rs"]
mod tests;
