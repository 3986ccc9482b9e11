//! Flows as records.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_common::{
    address::Address,
    clock::Ticks,
    control::{Control, MAX_SOURCES, Snat},
    flow::{Flow, FlowServer},
    server::Servers as _,
    tcp::TcpState,
};
use serde::Serialize;

use crate::dataplane::Maps;

use super::{
    Snapshot, Time, census,
    format::{duration, plural},
    scheduler,
    server::mac,
    table::{Align, render},
};

/// One TCP connection through the balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowRecord {
    /// The virtual service's label.
    pub service: String,
    /// The client.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The port that it connected to.
    pub service_port: u16,
    /// The real server's label.
    pub server: String,
    /// The source address towards the server; none where it sees the client's own.
    pub snat_address: Option<IpAddr>,
    /// The source port towards the server; none where it sees the client's own.
    pub snat_port: Option<u16>,
    /// Where the connection stands.
    pub state: &'static str,
    /// Seconds since its SYN.
    pub age: u64,
    /// Seconds since its last packet, to about one; since the end for a closed one.
    pub idle: u64,
    /// Seconds until it is forgotten if no packet comes.
    pub expires_in: u64,
    /// When its SYN came.
    pub made_at: Time,
    /// Whether it is counted in a sticky record.
    pub sticky: bool,
    /// The MAC address that packets to the client go to.
    pub return_hop: String,
}

/// The word of a state.
#[must_use]
pub const fn word(state: TcpState) -> &'static str {
    match state {
        TcpState::SynSent => "syn-sent",
        TcpState::SynReceived => "syn-received",
        TcpState::Promoting => "promoting",
        TcpState::Established => "established",
        TcpState::ClientFin => "client-fin",
        TcpState::ServerFin => "server-fin",
        TcpState::TimeWait => "time-wait",
        TcpState::ClientReset => "client-reset",
        TcpState::ServerReset => "server-reset",
    }
}

/// The state of a word.
///
/// # Errors
/// No state has this word; lists those that do.
pub fn state(text: &str) -> Result<TcpState, String> {
    let found = TcpState::ALL.into_iter().find(|state| word(*state) == text);
    found.ok_or_else(|| {
        let known: Vec<&str> = TcpState::ALL.into_iter().map(word).collect();
        format!("known states: {}", known.join(", "))
    })
}

impl FlowRecord {
    fn new(snapshot: &Snapshot<'_>, flow: &Flow) -> Self {
        let clock = &snapshot.clock;
        let snat = snat(snapshot.maps(), &flow.to);
        Self {
            service: snapshot.names.service_label(flow.key.service),
            client: flow.key.client.into(),
            client_port: u16::from_be(flow.key.client_port),
            service_port: u16::from_be(flow.key.service_port),
            server: snapshot.names.server_label(flow.to.server),
            snat_address: snat.map(|snat| snat.ip()),
            snat_port: snat.map(|snat| snat.port()),
            state: word(flow.state),
            age: clock.seconds_since(flow.sticky.made_at),
            idle: clock.seconds_since(last_packet(snapshot, flow)),
            expires_in: clock.seconds_until(flow.deadline),
            made_at: clock.at(flow.sticky.made_at),
            sticky: flow.sticky.record.is_some(),
            return_hop: mac(flow.return_hop),
        }
    }
}

/// A deadline is the last packet's time and the state's idle time after it.
fn last_packet(snapshot: &Snapshot<'_>, flow: &Flow) -> Ticks {
    let maps = snapshot.maps();
    let established = scheduler::service(maps, flow.key.service).map_or(Ticks(0), |service| service.idle);
    let idle = maps.control().idle(flow.state, established);
    Ticks(flow.deadline.0.wrapping_sub(idle.0))
}

/// The source address with this number, of the family of `like`, if there is one.
#[must_use]
pub fn source(control: &Control, number: u8, like: Address) -> Option<IpAddr> {
    let address = control.source(number, like);
    (usize::from(number) < MAX_SOURCES && address != Address::default()).then(|| address.into())
}

/// The source addresses of both families.
pub fn sources(control: &Control) -> impl Iterator<Item = IpAddr> {
    let snat = Snat::from_word(control.snat.load());
    let families = [
        (Address::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), snat.sources),
        (Address::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), snat.sources_v6),
    ];
    families
        .into_iter()
        .flat_map(move |(like, count)| (0..count).filter_map(move |number| source(control, number, like)))
}

/// The source address and port that a flow's server sees, if they are the balancer's.
#[must_use]
pub fn snat(maps: &Maps, to: &FlowServer) -> Option<SocketAddr> {
    if !to.has_port() {
        return None;
    }
    let server = maps.servers.present(to.server)?;
    let address = source(maps.control(), to.source, server.address)?;
    Some(SocketAddr::new(address, u16::from_be(to.snat_port)))
}

/// Which flows are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Of the service with this id.
    pub service: Option<u16>,
    /// Of the server with this id.
    pub server: Option<u16>,
    /// Of this client.
    pub client: Option<Address>,
    /// In this state.
    pub state: Option<TcpState>,
}

impl Filter {
    fn wants(&self, flow: &Flow) -> bool {
        self.service.is_none_or(|id| id == flow.key.service)
            && self.server.is_none_or(|id| id == flow.to.server)
            && self.client.is_none_or(|client| client == flow.key.client)
            && self.state.is_none_or(|state| state == flow.state)
    }
}

/// The flows in force, established and half-open.
pub fn wanted<'s>(snapshot: &'s Snapshot<'_>, filter: Filter) -> impl Iterator<Item = Flow> + 's {
    let (maps, now) = (snapshot.maps(), snapshot.clock.now);
    census::flows(&maps.flows, now)
        .chain(census::flows(&maps.half_open, now))
        .filter(move |flow| filter.wants(flow))
}

/// The flows in force, by service, client and port; `limit` of them at most, and how many there are.
#[must_use]
pub fn records(snapshot: &Snapshot<'_>, filter: Filter, limit: Option<usize>) -> (Vec<FlowRecord>, usize) {
    let mut found: Vec<Flow> = wanted(snapshot, filter).collect();
    let total = found.len();
    found.sort_by_key(|flow| {
        let port = u16::from_be(flow.key.client_port);
        (flow.key.service, IpAddr::from(flow.key.client), port)
    });
    found.truncate(limit.unwrap_or(usize::MAX));
    let records = found.iter().map(|flow| FlowRecord::new(snapshot, flow)).collect();
    (records, total)
}

/// One line a flow; `total` is how many there are.
#[must_use]
pub fn table(records: &[FlowRecord], total: usize) -> String {
    if records.is_empty() {
        return if total == 0 {
            "there are no such flows\n".to_owned()
        } else {
            format!("{}\n", plural(total as u64, "flow", "flows"))
        };
    }
    let columns = [
        ("SERVICE", Align::Left),
        ("CLIENT", Align::Left),
        ("SERVER", Align::Left),
        ("SNAT", Align::Left),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("IDLE", Align::Right),
    ];
    let rows = records.iter().map(|flow| {
        vec![
            flow.service.clone(),
            SocketAddr::new(flow.client, flow.client_port).to_string(),
            flow.server.clone(),
            match (flow.snat_address, flow.snat_port) {
                (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
                _ => "-".to_owned(),
            },
            flow.state.to_owned(),
            duration(flow.age),
            duration(flow.idle),
        ]
    });
    let mut out = render(&columns, rows);
    if records.len() < total {
        out.push_str(&format!("\n{} of {total} flows; --limit N shows more\n", records.len()));
    }
    out
}

/// How many flows there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowCount {
    /// All in force, half-open and closed ones among them.
    pub flows: u64,
    /// Established and not over.
    pub open: u64,
    /// Flows whose handshake is not complete.
    pub half_open: u64,
    /// Over, and only remembered for late packets.
    pub closed: u64,
    /// By state.
    pub states: BTreeMap<&'static str, u64>,
}

/// Counts the flows in force.
#[must_use]
pub fn count(snapshot: &Snapshot<'_>, filter: Filter) -> FlowCount {
    let mut states: BTreeMap<&'static str, u64> =
        TcpState::ALL.into_iter().map(|state| (word(state), 0)).collect();
    let (mut flows, mut half_open, mut closed) = (0, 0, 0);
    for flow in wanted(snapshot, filter) {
        flows += 1;
        *states.entry(word(flow.state)).or_default() += 1;
        match flow.state {
            TcpState::SynSent | TcpState::SynReceived | TcpState::Promoting => half_open += 1,
            state if state.is_closed() => closed += 1,
            _ => {}
        }
    }
    FlowCount { flows, open: flows - half_open - closed, half_open, closed, states }
}

/// The count in words.
#[must_use]
pub fn count_text(count: &FlowCount) -> String {
    let mut out = format!("{} open, {} half-open, {} closed\n", count.open, count.half_open, count.closed);
    for (state, number) in count.states.iter().filter(|(_, number)| **number > 0) {
        out.push_str(&format!("  {state:<14}{number}\n"));
    }
    out
}
