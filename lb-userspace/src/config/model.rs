//! The valid configuration: what the rest of Steadfast works with.
//!
//! Only what this version does can be said here. Words of the file's contract that come later (other
//! forwarding modes, other schedulers) are known to the reader, which refuses them with a remedy, and become
//! variants here when they work: the compiler then names every place that has to know.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use lb_common::mss::MssClamp;
use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use super::label::Label;
use crate::health::Verify;

/// A whole configuration.
///
/// Serialises in the file's shape (`version`, `node`, `virtual_services`), with durations in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What belongs to this machine.
    pub node: Node,
    /// The virtual services, in file order; labels and (address, port) are unique.
    pub services: Vec<Service>,
}

impl Config {
    /// The virtual service of this label.
    #[must_use]
    pub fn service(&self, label: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.label == *label)
    }
}

impl Serialize for Config {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Config", 3)?;
        fields.serialize_field("version", &super::read::VERSION)?;
        fields.serialize_field("node", &self.node)?;
        fields.serialize_field("virtual_services", &self.services)?;
        fields.end()
    }
}

/// The machine that balances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Where the XDP program attaches, at most [`Node::MAX_INTERFACES`]. The services' addresses are put on the first; servers
    /// are reached by the one that the routes say.
    pub interfaces: Vec<String>,
    /// How the XDP program attaches.
    pub xdp_mode: XdpMode,
    /// What is done about an address that another machine has.
    pub address_conflict: AddressConflict,
    /// Source addresses towards the real servers, at most [`Node::MAX_SNAT_ADDRESSES`].
    /// Empty: the interface's own primary address.
    pub snat_addresses: Vec<IpAddr>,
    /// Source ports towards the real servers. Must stay outside the host's own ephemeral range.
    pub snat_ports: PortRange,
    /// Sizes of the kernel's tables.
    pub tables: Tables,
}

impl Node {
    /// The most interfaces of a node.
    pub const MAX_INTERFACES: usize = lb_common::control::MAX_ARMS;
    /// The most SNAT addresses of a node.
    pub const MAX_SNAT_ADDRESSES: usize = 8;
}

/// How the XDP program attaches to the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// Native where the driver has it, else generic.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the network stack: works on every interface, and is slower.
    Generic,
}

/// What is done about an address of a service, or a source address, that another machine answers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddressConflict {
    /// It is taken all the same, and said.
    #[default]
    Take,
    /// It is taken when the other has not answered for it any more for some seconds. One that is on the interface stays.
    Wait,
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest port, at least [`PortRange::LOWEST`].
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl PortRange {
    /// Ports below belong to well-known services.
    pub const LOWEST: u16 = 1024;
    /// The fewest ports of a range.
    pub const FEWEST: u32 = 64;

    /// The number of ports.
    #[must_use]
    pub fn count(self) -> u32 {
        u32::from(self.last).saturating_sub(u32::from(self.first)) + 1
    }
}

impl Default for PortRange {
    /// Ends below Linux's default ephemeral range (32768-60999).
    fn default() -> Self {
        Self { first: Self::LOWEST, last: 32767 }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Sizes of the kernel's tables, in slots; each a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tables {
    /// Established flows: 1,024 to 16,777,216.
    pub flows: u32,
    /// Sticky records: 1,024 to 16,777,216.
    pub sticky: u32,
    /// Flows whose handshake is not complete: 1,024 to 4,194,304.
    pub half_open: u32,
    /// Real servers, over all services: 16 to 4,096.
    pub endpoints: u32,
}

impl Tables {
    /// The most flows or sticky records.
    pub const MAX_FLOWS: u32 = 1 << 24;
    /// The most half-open flows.
    pub const MAX_HALF_OPEN: u32 = 1 << 22;
    /// The most real servers.
    pub const MAX_ENDPOINTS: u32 = 1 << 12;
}

impl Default for Tables {
    fn default() -> Self {
        Self { flows: 262_144, sticky: 262_144, half_open: 65_536, endpoints: 256 }
    }
}

/// A virtual service: an address and a port that clients connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its name, unique among services.
    pub label: Label,
    /// The address clients connect to; the daemon adds it to the interface.
    pub address: IpAddr,
    /// The ports clients connect to, 1 to [`Service::MAX_PORTS`], each once, as they were written. A sticky record holds
    /// for all of them.
    pub ports: Vec<u16>,
    /// Balanced in the kernel (`tcp`), or answered by the daemon (`http`).
    pub protocol: Protocol,
    /// How a packet reaches the real server. Without meaning for `http`.
    pub forwarding: Forwarding,
    /// How an unknown client's server is picked. Without meaning for `http`.
    pub scheduler: Scheduler,
    /// Whether a client comes back to the same server. Without meaning for `http`.
    pub persistence: Persistence,
    /// How long an established flow may be silent before it is forgotten: 1 s to 30 d.
    #[serde(serialize_with = "seconds")]
    pub idle_timeout: Duration,
    /// How long a server that takes new clients again grows from a tenth of its weight to all of it: 1 s to
    /// [`Service::LONGEST_SLOW_START`]; zero: it has all of it at once.
    #[serde(serialize_with = "seconds", skip_serializing_if = "Duration::is_zero")]
    pub slow_start: Duration,
    /// What is done to the largest segment that a connection's SYNs announce: with a number, [`MssClamp::LEAST`] bytes to
    /// [`Service::MOST_MSS`]. Without meaning for `http` and `udp`.
    #[serde(serialize_with = "mss_clamp")]
    pub mss_clamp: MssClamp,
    /// What happens to the open flows of a server that goes down.
    pub on_down: OnDown,
    /// How the real servers' health is judged.
    pub health_check: HealthCheck,
    /// Answer every request with a redirect (301) to https: same host, path and query.
    /// True for every `http` service of this version, false for every `tcp` service.
    pub force_https: bool,
    /// The machines behind; empty for `http`.
    pub real_servers: Vec<Server>,
}

impl Service {
    /// Idle timeout of TCP where the file names none: 24 h. Clients sit silent for a shift, and a server or a firewall that
    /// forgets connections earlier says so itself. Where tables are full, flows make way that have been silent for 3 h.
    pub const IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
    /// Idle timeout of UDP where the file names none: 3 min, in which an answered question is long forgotten (RFC 4787
    /// section 4.3 asks for 2 at least).
    pub const UDP_IDLE_TIMEOUT: Duration = Duration::from_secs(180);
    /// The longest slow start: 1 h.
    pub const LONGEST_SLOW_START: Duration = Duration::from_secs(3600);
    /// The largest segment that a service can be limited to: an IPv4 packet has no room for more.
    pub const MOST_MSS: u16 = u16::MAX - 40;
    /// The most ports of a service.
    pub const MAX_PORTS: usize = 64;

    /// What is done to SYNs where the file says nothing: a packet in a tunnel is longer than its sender knows.
    #[must_use]
    pub const fn usual_mss_clamp(protocol: Protocol, forwarding: Forwarding) -> MssClamp {
        match (protocol, forwarding) {
            (Protocol::Tcp, Forwarding::Tunnel) => MssClamp::Auto,
            _ => MssClamp::None,
        }
    }

    /// The real server of this label.
    #[must_use]
    pub fn server(&self, label: &str) -> Option<&Server> {
        self.real_servers.iter().find(|server| server.label == *label)
    }
}

/// What a virtual service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP, forwarded in the kernel.
    #[default]
    Tcp,
    /// HTTP, answered by the daemon: in this version always a redirect to https.
    Http,
    /// UDP, forwarded in the kernel.
    Udp,
}

impl Protocol {
    /// Whether the kernel forwards it to real servers.
    #[must_use]
    pub const fn is_balanced(self) -> bool {
        !matches!(self, Self::Http)
    }

    /// The number of its transport protocol in an IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        if matches!(self, Self::Udp) { lb_common::UDP } else { lb_common::TCP }
    }
}

/// How a packet reaches the real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// Source and destination are rewritten: the servers need no change.
    #[default]
    Snat,
    /// The destination is rewritten: the servers see the client's address, and answer by way of the balancer, which is
    /// their router.
    Nat,
    /// The frame goes to the server's MAC address as it is: the servers have the service's address on their loopback
    /// interface, and answer past the balancer.
    Dr,
    /// As `Dr`, with the packet inside another to the server's address: the servers may be behind routers.
    Tunnel,
}

impl Forwarding {
    /// The mode, as the data path knows it.
    #[must_use]
    pub const fn mode(self) -> lb_common::forwarding::Forwarding {
        use lb_common::forwarding::Forwarding as Mode;
        match self {
            Self::Snat => Mode::Snat,
            Self::Nat => Mode::Nat,
            Self::Dr => Mode::Dr,
            Self::Tunnel => Mode::Tunnel,
        }
    }

    /// Whether packets to the servers have one of the balancer's addresses as their source.
    #[must_use]
    pub const fn needs_source(self) -> bool {
        matches!(self, Self::Snat | Self::Tunnel)
    }

    /// Whether the servers get packets for the very address and port that clients asked for.
    #[must_use]
    pub const fn keeps_destination(self) -> bool {
        matches!(self, Self::Dr | Self::Tunnel)
    }
}

/// How an unknown client's server is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// By a weighted consistent hash of the client's address.
    #[default]
    SourceHash,
    /// The fewest open connections, for its weight, of two servers.
    LeastConn,
    /// In turn, as often as the weight says.
    RoundRobin,
}

impl Scheduler {
    /// The kind, as the data path knows it.
    #[must_use]
    pub const fn kind(self) -> lb_common::schedule::Scheduler {
        use lb_common::schedule::Scheduler as Kind;
        match self {
            Self::SourceHash => Kind::SourceHash,
            Self::LeastConn => Kind::LeastConn,
            Self::RoundRobin => Kind::RoundRobin,
        }
    }
}

/// Whether a client comes back to the same server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "mode", rename_all = "kebab-case")]
pub enum Persistence {
    /// No sticky records: each connection follows the scheduler.
    None,
    /// One sticky record a client address.
    SourceIp {
        /// How long a record outlives its client's last flow: 1 s to 30 d.
        #[serde(serialize_with = "seconds")]
        timeout: Duration,
        /// Leading bits of an IPv6 client's address that make the client: 128, or 64 for networks whose machines change
        /// the rest (RFC 8981).
        ipv6_prefix: u8,
        /// What of the service one record is for.
        scope: Scope,
    },
}

/// What of a service a client's sticky record is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All of its ports: they go to one server.
    #[default]
    Service,
    /// One port: each has a record of its own.
    Port,
}

impl Persistence {
    /// Sticky timeout where the file names none: 60 min.
    pub const TIMEOUT: Duration = Duration::from_secs(3600);
    /// Bits of an IPv6 client's address where the file names none.
    pub const IPV6_PREFIX: u8 = 128;
}

impl Default for Persistence {
    fn default() -> Self {
        Self::SourceIp { timeout: Self::TIMEOUT, ipv6_prefix: Self::IPV6_PREFIX, scope: Scope::Service }
    }
}

/// What happens to the open flows of a server that goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDown {
    /// Reset towards the client at its next packet, so that it reconnects at once.
    #[default]
    Reset,
    /// Left alone, in case the server is only unreachable for the health check.
    Keep,
}

/// How a real server's health is judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    /// What is asked of the server.
    pub kind: HealthKind,
    /// Time from one check to the next: 100 ms to 1 h.
    #[serde(serialize_with = "seconds")]
    pub interval: Duration,
    /// How long an answer may take: 10 ms to the interval.
    #[serde(serialize_with = "seconds")]
    pub timeout: Duration,
    /// Failed checks in a row that make an up server down: 1 to 100.
    pub fall: u32,
    /// Passed checks in a row that make a down server up: 1 to 100.
    pub rise: u32,
    /// The port to check, where it is not the server's own.
    pub port: Option<u16>,
    /// The path to ask for (`http`, `https`).
    pub path: String,
    /// The Host header (`http`, `https`) and the TLS server name (`tls`, `https`).
    pub host: Option<String>,
    /// By what the server's certificate is judged (`tls`, `https`); by nothing where the file does not say.
    #[serde(serialize_with = "as_text")]
    pub verify: Verify,
    /// Status codes that pass (`http`, `https`), at least one range.
    pub expect_status: Vec<StatusRange>,
    /// Text that the body must contain (`http`, `https`).
    pub expect_body: Option<String>,
    /// Whether a server that is added gets unknown clients only once it has answered, unless no other of its service takes
    /// any. So where the file says nothing.
    pub answer_first: bool,
}

impl HealthCheck {
    /// Interval where the file names none: 2 s.
    pub const INTERVAL: Duration = Duration::from_secs(2);
    /// The check where the file names none: a connection; nothing for UDP, which has no such thing.
    #[must_use]
    pub fn usual(protocol: Protocol) -> Self {
        let kind = if protocol == Protocol::Udp { HealthKind::None } else { HealthKind::Tcp };
        Self { kind, ..Self::default() }
    }

    /// Timeout where the file names none: 1 s, or the interval if that is less.
    pub const TIMEOUT: Duration = Duration::from_secs(1);
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: HealthKind::Tcp,
            interval: Self::INTERVAL,
            timeout: Self::TIMEOUT,
            fall: 3,
            rise: 2,
            port: None,
            path: "/".to_owned(),
            host: None,
            verify: Verify::None,
            expect_status: vec![StatusRange { first: 200, last: 399 }],
            expect_body: None,
            answer_first: true,
        }
    }
}

fn as_text<S: Serializer>(value: &Verify, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// What a health check asks of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthKind {
    /// A TCP connection.
    #[default]
    Tcp,
    /// A TLS handshake.
    Tls,
    /// An HTTP request.
    Http,
    /// An HTTP request over TLS.
    Https,
    /// Nothing: the server counts as up.
    None,
}

impl HealthKind {
    /// Whether the check sends an HTTP request.
    #[must_use]
    pub fn asks_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }
}

/// An inclusive range of HTTP status codes, within 100 to 599.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusRange {
    /// The lowest code.
    pub first: u16,
    /// The highest code; the lowest again for a single one.
    pub last: u16,
}

impl StatusRange {
    /// Whether the code is in the range.
    #[must_use]
    pub fn contains(self, status: u16) -> bool {
        (self.first..=self.last).contains(&status)
    }
}

impl fmt::Display for StatusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl Serialize for StatusRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A real server: a machine that answers for a virtual service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    /// Its name, unique within the service.
    pub label: Label,
    /// Its address, of the service's family; of either with `forwarding: tunnel`.
    pub address: IpAddr,
    /// Its port; with `same_port` the first of the service's.
    pub port: u16,
    /// Clients reach it at the port that they asked for: the service has several, and the file names none here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub same_port: bool,
    /// Its share of new clients, 0 to [`Server::MAX_WEIGHT`]; 0: none.
    pub weight: u16,
}

impl Server {
    /// Weight where the file names none.
    pub const WEIGHT: u16 = 100;
    /// The highest weight.
    pub const MAX_WEIGHT: u16 = 1000;
}

/// A number, or the file's word.
fn mss_clamp<S: Serializer>(clamp: &MssClamp, serializer: S) -> Result<S::Ok, S::Error> {
    match clamp {
        MssClamp::Bytes(bytes) => serializer.serialize_u16(*bytes),
        MssClamp::Auto | MssClamp::None => serializer.collect_str(clamp),
    }
}

/// Durations in JSON are seconds, whole where they are whole.
fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    if duration.subsec_nanos() == 0 {
        serializer.serialize_u64(duration.as_secs())
    } else {
        serializer.serialize_f64(duration.as_secs_f64())
    }
}

/// The words of the file for each enumeration, and back: one table for reader and renderer.
macro_rules! words {
    ($($kind:ident { $($word:literal => $variant:ident),+ $(,)? })+) => {$(
        impl $kind {
            /// Every value with its word in the file.
            pub(super) const WORDS: &[(&str, Self)] = &[$(($word, Self::$variant)),+];

            /// The value's word in the file.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    )+};
}

words! {
    XdpMode { "auto" => Auto, "native" => Native, "generic" => Generic }
    AddressConflict { "take" => Take, "wait" => Wait }
    Protocol { "tcp" => Tcp, "http" => Http, "udp" => Udp }
    Forwarding { "snat" => Snat, "nat" => Nat, "dr" => Dr, "tunnel" => Tunnel }
    Scheduler { "source-hash" => SourceHash, "least-conn" => LeastConn, "round-robin" => RoundRobin }
    OnDown { "reset" => Reset, "keep" => Keep }
    HealthKind { "tcp" => Tcp, "tls" => Tls, "http" => Http, "https" => Https, "none" => None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_says_each_word_as_the_file_does() {
        fn same<T: Serialize + Copy>(words: &[(&str, T)]) {
            for (word, value) in words {
                assert_eq!(serde_json::to_value(value).unwrap(), serde_json::json!(word));
            }
        }
        same(XdpMode::WORDS);
        same(AddressConflict::WORDS);
        same(Protocol::WORDS);
        same(Forwarding::WORDS);
        same(Scheduler::WORDS);
        same(OnDown::WORDS);
        same(HealthKind::WORDS);
    }

    #[test]
    fn where_the_file_says_nothing_a_tunnel_of_tcp_alone_has_its_syns_lowered() {
        for (_, forwarding) in Forwarding::WORDS {
            for (_, protocol) in Protocol::WORDS {
                let lowered = (*protocol, *forwarding) == (Protocol::Tcp, Forwarding::Tunnel);
                let wanted = if lowered { MssClamp::Auto } else { MssClamp::None };
                assert_eq!(Service::usual_mss_clamp(*protocol, *forwarding), wanted);
            }
        }
    }

    #[test]
    fn the_default_snat_ports_are_31744() {
        assert_eq!(PortRange::default().count(), 31_744);
    }
}
