//! What became of a packet: one enum for the program's verdict, the counter's index and the label.

/// What the kernel is told to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To the host's own stack, untouched.
    Pass,
    /// Out again, on the interface it came from or another.
    Transmit,
    /// Dropped.
    Drop,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal => $action:ident,)+) => {
        /// Why a packet was passed, transmitted or dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The reason with this number.
            #[inline(always)]
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                $(if number == Self::$name as u32 { return Some(Self::$name); })+
                None
            }

            /// The label in the command line and in metrics.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What is done with such a packet.
            #[inline(always)]
            #[must_use]
            pub const fn action(self) -> Action {
                match self { $(Self::$name => Action::$action,)+ }
            }

            /// Whether somebody must look at it: a table or a range is too small.
            #[inline(always)]
            #[must_use]
            pub const fn is_alarm(self) -> bool {
                matches!(
                    self,
                    Self::EstablishedUnrecorded
                        | Self::FlowTableFull
                        | Self::PortsExhausted
                        | Self::HalfOpenBusy
                        | Self::EstablishedDisplacing
                )
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// Neither IPv4 nor IPv6: ARP, anything else.
    NotIp = "not-ip" => Pass,
    /// Too short for the headers it claims to have, and not known to be for a service.
    Truncated = "truncated" => Pass,
    /// Neither for a virtual service nor an answer from a real server.
    NotOurs = "not-ours" => Pass,
    /// For a virtual service that the daemon itself answers (protocol http).
    LocalService = "local-service" => Pass,
    /// From a real server that is down or halted, or by another port than its flow's; the host's firewall table drops it.
    NoReturnFlow = "no-return-flow" => Pass,

    /// From a client, of an established flow.
    Forwarded = "forwarded" => Transmit,
    /// From a real server, of a known flow.
    Returned = "returned" => Transmit,
    /// A client's SYN, sent to the server that its sticky record names.
    NewBySticky = "new-by-sticky" => Transmit,
    /// An unknown client's SYN, sent to the server that the scheduler picked.
    NewByScheduler = "new-by-scheduler" => Transmit,
    /// A SYN sent again before the handshake was over.
    SynRepeated = "syn-repeated" => Transmit,
    /// The acknowledgement that established a flow; the sticky record is written or renewed.
    Established = "established" => Transmit,
    /// As established, but the sticky table has no room for the client: it is served by hash.
    EstablishedUnrecorded = "established-unrecorded" => Transmit,
    /// As established, but the flow table has no room: the flow stays half-open and may be overwritten.
    FlowTableFull = "flow-table-full" => Transmit,
    /// From a client, of a half-open flow that it did not establish (a wrong acknowledgement number, a race).
    HandshakeForwarded = "handshake-forwarded" => Transmit,
    /// An ICMP error about a packet to the client, translated for the real server.
    IcmpToServer = "icmp-to-server" => Transmit,
    /// An ICMP error about a packet to the real server, translated for the client.
    IcmpToClient = "icmp-to-client" => Transmit,

    /// From a client of a flow whose server is down or halted: answered with RST.
    ResetServerGone = "reset-server-gone" => Transmit,
    /// From a client to a service, of no known flow: answered with RST.
    ResetNoFlow = "reset-no-flow" => Transmit,
    /// A SYN to a service without a usable server: answered with RST.
    ResetNoServer = "reset-no-server" => Transmit,

    /// To a service or from a real server, with a TCP header that is truncated or impossible, or from a broadcast or multicast
    /// MAC address.
    BadHeader = "bad-header" => Drop,
    /// A fragment of a TCP or UDP packet to a service's address or from a real server; TCP avoids them by path MTU discovery.
    Fragment = "fragment" => Drop,
    /// TCP to a service or from a real server with IPv4 options (RFC 7126 recommends to drop) or IPv6 extension headers.
    IpOptions = "ip-options" => Drop,
    /// Its time to live would reach zero here.
    TtlExceeded = "ttl-exceeded" => Drop,
    /// An RST of no known flow.
    StrayReset = "stray-reset" => Drop,
    /// The real server's MAC address is not known yet.
    NoNeighbour = "no-neighbour" => Drop,
    /// No SNAT port towards the server is free.
    PortsExhausted = "ports-exhausted" => Drop,
    /// Every half-open slot for this client is being written at this moment.
    HalfOpenBusy = "half-open-busy" => Drop,
    /// The daemon has not set up the maps yet.
    NotConfigured = "not-configured" => Pass,
    /// From a client, of no known flow, in a mode whose answers do not pass here: sent to the server of its sticky record, or
    /// else to the scheduler's pick, which knows whether the connection is its own.
    ForwardedUnknown = "forwarded-unknown" => Transmit,
    /// Too large for the tunnel: the client is told the path's MTU (RFC 1191, RFC 8201).
    TooBig = "too-big" => Transmit,
    /// A datagram to a service without a usable server: UDP has nothing like an RST.
    NoServer = "no-server" => Drop,
    /// Of no known flow, or a new one, in the moment in which rows are carried over from older tables; it is sent again.
    Carrying = "carrying" => Drop,
    /// From a real server to a SNAT port that no flow has: answered with RST, so that the server need not wait either.
    ResetNoReturnFlow = "reset-no-return-flow" => Transmit,
    /// As established; an open flow that had been silent for more than three hours made way, because the flow table has no room.
    EstablishedDisplacing = "established-displacing" => Transmit,
    /// An ICMP error that tells a server in mode `snat` of a path of less than 1,280 bytes to one client: it would take it for the
    /// path to all of them. Over IPv4 that client's packets may be fragmented from then on.
    SmallPathMtu = "small-path-mtu" => Drop,
}

/// How many reasons there are.
pub const REASONS: usize = Reason::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_the_place_in_the_list() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn labels_are_unique_and_kebab_case() {
        let mut labels: std::vec::Vec<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), REASONS);
        assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        assert!(Reason::ALL.iter().all(|reason| reason.description().ends_with('.')));
    }
}
