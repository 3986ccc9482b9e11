//! Virtual services as records.

use std::net::IpAddr;

use lb_common::{forwarding::Forwarding, maps::ServiceInfo, mss::MssClamp};
use serde::{Serialize, Serializer};

use crate::config::port_list;
use crate::redirect::listening::{Listener, os_error};

use super::{
    Census, Snapshot,
    format::{bytes, count, duration},
    names::{ip, text},
    scheduler,
    server::{Health, ServerRecord},
    table::{Align, render},
};

/// A virtual service.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceRecord {
    /// Its label.
    pub service: String,
    /// The address that clients connect to.
    pub address: IpAddr,
    /// The ports that clients connect to.
    pub ports: Vec<u16>,
    /// `tcp` or `http`.
    pub protocol: &'static str,
    /// How a packet reaches the real server; none where the daemon answers itself.
    pub forwarding: Option<&'static str>,
    /// How an unknown client's server is picked; none where the daemon answers itself.
    pub scheduler: Option<&'static str>,
    /// What is done to the largest segment that SYNs announce: `none`, `auto`, or bytes; none where there is none.
    #[serde(serialize_with = "mss_clamp")]
    pub mss_clamp: Option<MssClamp>,
    /// Open flows.
    pub connections: u64,
    /// Flows whose handshake is not complete.
    pub half_open: u64,
    /// Flows ever established.
    pub connections_total: u64,
    /// Connections answered with RST.
    pub resets: u64,
    /// Packets from clients that were sent on.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients, as Ethernet frames.
    pub bytes_in: u64,
    /// Bytes to clients, as Ethernet frames.
    pub bytes_out: u64,
    /// Sticky records.
    pub sticky_clients: u64,
    /// How long a sticky record outlives its client's last flow, in seconds; none: no sticky records are kept.
    pub persistence_timeout: Option<u64>,
    /// What of the service one sticky record is for: `service` or `port`; none: no sticky records are kept.
    pub persistence_scope: Option<&'static str>,
    /// How long an established flow may be silent, in seconds.
    pub idle_timeout: u64,
    /// Real servers.
    pub servers: u64,
    /// Real servers that take new clients.
    pub servers_taking_new: u64,
    /// Real servers that are down.
    pub servers_down: u64,
    /// Real servers that are not checked, and taken for up.
    pub servers_not_checked: u64,
    /// Whether the daemon listens, where it answers itself.
    pub listening: Option<bool>,
    /// Why it does not.
    pub listening_error: Option<String>,
    /// The id in the maps.
    pub id: u16,
}

impl ServiceRecord {
    fn new(
        snapshot: &Snapshot<'_>,
        census: &Census,
        servers: &[ServerRecord],
        id: u16,
        info: &ServiceInfo,
    ) -> anyhow::Result<Self> {
        let traffic = snapshot.maps().kernel.service_traffic(id)?;
        let load = census.service(id);
        let ours = |wanted: &dyn Fn(&ServerRecord) -> bool| {
            servers.iter().filter(|server| server.service_id == id && wanted(server)).count() as u64
        };
        let balanced = info.protocol != HTTP;
        let listener = Listener::from_number(info.listening).filter(|_| !balanced);
        let entry = scheduler::service(snapshot.maps(), id).filter(|_| balanced);
        Ok(Self {
            service: text(&info.label),
            address: ip(info.address),
            ports: snapshot.ports_of(id, info.port),
            protocol: protocol_name(info.protocol),
            forwarding: balanced.then(|| Forwarding::from_number(info.forwarding.wrapping_sub(1)).name()),
            scheduler: entry.map(|entry| entry.scheduler.name()),
            mss_clamp: entry.filter(|entry| !entry.is_udp).map(|entry| entry.mss_clamp),
            connections: load.open,
            half_open: load.half_open,
            connections_total: traffic.flows,
            resets: traffic.resets,
            packets_in: traffic.packets_in,
            packets_out: traffic.packets_out,
            bytes_in: traffic.bytes_in,
            bytes_out: traffic.bytes_out,
            sticky_clients: load.clients,
            persistence_timeout: (balanced && info.persistence_ms != 0).then_some(info.persistence_ms / 1000),
            persistence_scope: entry
                .filter(|entry| entry.persistence.0 != 0)
                .map(|entry| if entry.by_port { "port" } else { "service" }),
            idle_timeout: info.idle_ms / 1000,
            servers: ours(&|_| true),
            servers_taking_new: ours(&|server| server.takes_new),
            servers_down: ours(&|server| server.health == Health::Down),
            servers_not_checked: ours(&|server| server.health == Health::NotChecked),
            listening: listener.map(|listener| listener == Listener::Open),
            listening_error: listener.and_then(|listener| match listener {
                Listener::Open => None,
                Listener::Refused(errno) => Some(os_error(errno)),
            }),
            id,
        })
    }

    /// What whoever is on call should know of it, if anything.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let error = self.listening_error.as_ref()?;
        Some(format!(
            "{}: not listening on {}, clients are not redirected: {error}; trying again (ss -ltnp shows who listens \
             there)",
            self.service,
            place(self.address, &self.ports)
        ))
    }
}

/// What is said of a service whose new clients are refused.
pub const NOBODY_TAKES: &str = "no server takes new clients";

impl ServiceRecord {
    /// Whether its new clients are refused.
    #[must_use]
    pub fn takes_nobody(&self) -> bool {
        self.protocol != "http" && self.servers_taking_new == 0
    }

    /// The line, with its end, that says so: before everything else.
    #[must_use]
    pub fn alarm(&self) -> Option<String> {
        self.takes_nobody().then(|| format!("{}: {NOBODY_TAKES}\n", self.service))
    }
}

fn mss_clamp<S: Serializer>(clamp: &Option<MssClamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match clamp {
        Some(MssClamp::Bytes(bytes)) => serializer.serialize_u16(*bytes),
        Some(word) => serializer.collect_str(word),
        None => serializer.serialize_none(),
    }
}

/// [`ServiceInfo::protocol`] of a service that the daemon answers itself.
pub const HTTP: u8 = 2;

/// The word of a [`ServiceInfo::protocol`].
const fn protocol_name(number: u8) -> &'static str {
    match number {
        HTTP => "http",
        3 => "udp",
        _ => "tcp",
    }
}

/// All services, in the order of their ids. `servers` are all servers.
///
/// # Errors
/// The kernel refused the counters.
pub fn records(
    snapshot: &Snapshot<'_>,
    census: &Census,
    servers: &[ServerRecord],
) -> anyhow::Result<Vec<ServiceRecord>> {
    snapshot
        .names
        .services()
        .map(|(id, info)| ServiceRecord::new(snapshot, census, servers, id, info))
        .collect()
}

/// The overview: one line a service, then what needs attention.
#[must_use]
pub fn overview(services: &[ServiceRecord], servers: &[ServerRecord]) -> String {
    if services.is_empty() {
        return "there are no virtual services\n".to_owned();
    }
    let columns = [
        ("SERVICE", Align::Left),
        ("ADDRESS", Align::Left),
        ("PROTOCOL", Align::Left),
        ("SERVERS", Align::Left),
        ("CONNECTIONS", Align::Right),
        ("HALF-OPEN", Align::Right),
        ("CLIENTS", Align::Right),
        ("IN", Align::Right),
        ("OUT", Align::Right),
    ];
    let mut out: String = services.iter().filter_map(ServiceRecord::alarm).collect();
    out.push_str(&render(&columns, services.iter().map(row)));
    let notes: Vec<String> = services
        .iter()
        .filter_map(ServiceRecord::note)
        .chain(servers.iter().filter_map(ServerRecord::note))
        .collect();
    if !notes.is_empty() {
        out.push('\n');
        for note in notes {
            out.push_str(&note);
            out.push('\n');
        }
    }
    out
}

/// An address with its ports, as people write it.
pub(super) fn place(address: IpAddr, ports: &[u16]) -> String {
    let ports = port_list(ports).join(",");
    match address {
        IpAddr::V4(address) => format!("{address}:{ports}"),
        IpAddr::V6(address) => format!("[{address}]:{ports}"),
    }
}

fn row(service: &ServiceRecord) -> Vec<String> {
    let protocol = match service.forwarding {
        Some(forwarding) => format!("{} {forwarding}", service.protocol),
        None => service.protocol.to_owned(),
    };
    let address = place(service.address, &service.ports);
    if service.protocol == "http" {
        let nothing = || "-".to_owned();
        return vec![
            service.service.clone(),
            address,
            protocol,
            if service.listening == Some(false) { "not listening" } else { "redirect to https" }.to_owned(),
            nothing(),
            nothing(),
            nothing(),
            nothing(),
            nothing(),
        ];
    }
    vec![
        service.service.clone(),
        address,
        protocol,
        format!("{} of {} take new", service.servers_taking_new, service.servers),
        service.connections.to_string(),
        service.half_open.to_string(),
        service.sticky_clients.to_string(),
        bytes(service.bytes_in),
        bytes(service.bytes_out),
    ]
}

/// One service in full, with its servers.
#[must_use]
pub fn detail(service: &ServiceRecord, servers: &[ServerRecord]) -> String {
    let mut out = overview(std::slice::from_ref(service), &[]);
    if service.protocol == "http" {
        return out;
    }
    let persistence = service.persistence_timeout.map_or_else(
        || "none".to_owned(),
        |timeout| {
            let what = if service.persistence_scope == Some("port") { "record of a port" } else { "record" };
            format!("a client's {what} is kept for {} after its last connection", duration(timeout))
        },
    );
    out.push_str(&format!(
        "\nscheduler     {}\npersistence   {persistence}\nidle timeout  {}\n{}connections   {} ever, {} answered with RST\n\
         packets       {} in, {} out\n\n",
        service.scheduler.unwrap_or("unknown"),
        duration(service.idle_timeout),
        service.mss_clamp.map_or_else(String::new, |clamp| format!("mss clamp     {clamp}\n")),
        count(service.connections_total),
        count(service.resets),
        count(service.packets_in),
        count(service.packets_out),
    ));
    out.push_str(&super::server::overview(servers));
    out
}
