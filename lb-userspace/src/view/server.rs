//! Real servers as records.

use std::net::IpAddr;

use lb_common::{
    maps::ServerInfo,
    schedule::Load,
    server::{ServerState, Servers as _},
};
use serde::Serialize;

use crate::core::desired::{NOT_CHECKED, UP_WITH_NOTE};
use crate::core::slow_start::WHOLE;

use super::{
    Census, Snapshot, Time,
    format::{bytes, duration, plural},
    names::{ip, text},
    ports::SnatPorts,
    service::place,
    table::{Align, render},
};

/// What an administrator decided about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    /// In service.
    Online,
    /// Known clients only.
    Drain,
    /// Nobody.
    Halt,
}

impl AdminState {
    /// The state in [`ServerInfo::state`]; an unknown number reads as online.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number {
            2 => Self::Drain,
            3 => Self::Halt,
            _ => Self::Online,
        }
    }

    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Drain => "drain",
            Self::Halt => "halt",
        }
    }
}

/// What the health checks found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answers.
    Up,
    /// It does not.
    Down,
    /// Not checked yet.
    Unknown,
    /// Not checked at all, and taken for up.
    #[serde(rename = "not checked")]
    NotChecked,
}

impl Health {
    /// The state in [`ServerInfo::health`].
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        match number & !ServerInfo::NO_VERDICT {
            1 | UP_WITH_NOTE => Self::Up,
            2 => Self::Down,
            NOT_CHECKED => Self::NotChecked,
            _ => Self::Unknown,
        }
    }

    /// Its word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unknown => "unknown",
            Self::NotChecked => "not checked",
        }
    }
}

/// A real server.
#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a bit of the map, under its own name in JSON")]
pub struct ServerRecord {
    /// The virtual service's label.
    pub service: String,
    /// Its label.
    pub server: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Where clients reach it at the port that they asked for: all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Its share of new clients.
    pub weight: u16,
    /// How much of its weight it has, in percent, while it grows (`slow_start`).
    pub slow_start_percent: Option<u32>,
    /// What an administrator decided.
    pub state: AdminState,
    /// What the health checks found.
    pub health: Health,
    /// Why the health is what it is.
    pub health_reason: Option<String>,
    /// What is to be known of a server that is up, such as an answer to the check that says little.
    pub health_note: Option<String>,
    /// Why the checks say nothing now, if so; the health is as it was before.
    pub no_verdict: Option<String>,
    /// Since when.
    pub health_since: Option<Time>,
    /// Open flows.
    pub connections: u64,
    /// Flows whose handshake is not complete.
    pub half_open: u64,
    /// Flows ever established.
    pub connections_total: u64,
    /// Flows reset because it was gone.
    pub resets: u64,
    /// Packets from clients that were sent to it.
    pub packets_in: u64,
    /// Packets from it to clients.
    pub packets_out: u64,
    /// Bytes to it, as Ethernet frames.
    pub bytes_in: u64,
    /// Bytes from it, as Ethernet frames.
    pub bytes_out: u64,
    /// Sticky records that name it.
    pub sticky_clients: u64,
    /// Of them, those without an open flow.
    pub sticky_clients_idle: u64,
    /// When the last of the idle ones expires; a client that comes back starts its timeout anew.
    pub last_record_expires: Option<Time>,
    /// The same in seconds from now.
    pub last_record_expires_in: Option<u64>,
    /// Whether unknown clients are sent to it.
    pub takes_new: bool,
    /// Whether clients with a sticky record may open connections.
    pub takes_known: bool,
    /// Whether its open flows are answered with RST.
    pub resets_flows: bool,
    /// Whether the next hop's MAC address is known.
    pub reachable: bool,
    /// The next hop's MAC address.
    pub mac: Option<String>,
    /// Expiry of the certificate that a TLS check saw.
    pub certificate_expires: Option<Time>,
    /// The SNAT ports towards it; counted only where one server is shown in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snat_ports: Option<SnatPorts>,
    /// The id in the maps.
    pub id: u16,
    /// The service's id.
    #[serde(skip)]
    pub service_id: u16,
    /// Seconds since the health changed.
    #[serde(skip)]
    health_age: Option<u64>,
}

impl ServerRecord {
    fn new(snapshot: &Snapshot<'_>, census: &Census, id: u16, info: &ServerInfo) -> anyhow::Result<Self> {
        let traffic = snapshot.maps().kernel.server_traffic(id)?;
        let load = census.server(id);
        let live = snapshot.maps().servers.present(id);
        let has = |bits| live.is_some_and(|server| server.state.has(bits));
        let reason = text(&info.health_reason);
        let is_silent = info.health & ServerInfo::NO_VERDICT != 0;
        let is_note = info.health == UP_WITH_NOTE;
        let since = Time::from_unix(info.health_since);
        Ok(Self {
            service: snapshot.names.service_label(info.service),
            server: text(&info.label),
            address: ip(info.address),
            port: info.port,
            ports: if has(ServerState::SAME_PORT) {
                snapshot.ports_of(info.service, info.port)
            } else {
                Vec::new()
            },
            weight: info.weight,
            slow_start_percent: growing(snapshot, id, info.weight).filter(|_| has(ServerState::TAKES_NEW)),
            state: AdminState::from_number(info.state),
            health: Health::from_number(info.health),
            health_reason: (!reason.is_empty() && !is_note && !is_silent).then(|| reason.clone()),
            health_note: is_note.then(|| reason.clone()),
            no_verdict: is_silent.then_some(reason),
            health_since: since,
            connections: load.open,
            half_open: load.half_open,
            connections_total: traffic.flows,
            resets: traffic.resets,
            packets_in: traffic.packets_in,
            packets_out: traffic.packets_out,
            bytes_in: traffic.bytes_in,
            bytes_out: traffic.bytes_out,
            sticky_clients: load.clients,
            sticky_clients_idle: load.idle_clients,
            last_record_expires: load.last_expiry.map(|tick| snapshot.clock.at(tick)),
            last_record_expires_in: load.last_expiry.map(|tick| snapshot.clock.seconds_until(tick)),
            takes_new: has(ServerState::TAKES_NEW),
            takes_known: has(ServerState::TAKES_KNOWN),
            resets_flows: has(ServerState::RESETS),
            reachable: has(ServerState::REACHABLE),
            mac: live.filter(|server| server.state.has(ServerState::REACHABLE)).map(|server| mac(server.mac)),
            certificate_expires: Time::from_unix(info.certificate_expires),
            snat_ports: None,
            id,
            service_id: info.service,
            health_age: since.map(|since| since.seconds_until(snapshot.clock.time())),
        })
    }

    /// `VIP/SERVER`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.service, self.server)
    }

    /// What whoever is on call should know of it, if anything.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let mut notes = Vec::new();
        if let Some(why) = &self.no_verdict {
            notes.push(format!("its checks say nothing, it stays {}: {why}", self.health.as_str()));
        } else if self.health == Health::NotChecked {
            let why = self.health_reason.as_deref().unwrap_or("it counts as up");
            notes.push(format!("not checked, and counts as up: {why}"));
        } else if self.health == Health::Unknown {
            // After a cold start, unknown servers take clients: that is no complaint.
            if !self.takes_new && self.state == AdminState::Online && self.weight > 0 {
                notes.push("not checked yet, takes new clients once it has answered".to_owned());
            }
        } else if self.health == Health::Down {
            let since = self.since().map_or_else(String::new, |since| format!(" since {since}"));
            let why = self.health_reason.as_ref().map_or_else(String::new, |why| format!(": {why}"));
            notes.push(format!("{}{since}{why}", self.health.as_str()));
        }
        notes.extend(self.health_note.clone());
        match self.state {
            AdminState::Online => {}
            AdminState::Drain => notes.push(format!("draining, {}", self.left())),
            AdminState::Halt => notes.push(format!("halted, {}", self.left())),
        }
        if !self.reachable && self.state != AdminState::Halt {
            notes.push("its next hop's MAC address is not known, packets to it are dropped".to_owned());
        }
        if let Some(percent) = self.slow_start_percent {
            notes.push(format!("slow start, {percent} % of its weight now"));
        }
        if self.state == AdminState::Online && self.weight == 0 {
            notes.push("weight 0, no new clients".to_owned());
        }
        (!notes.is_empty()).then(|| format!("{}: {}", self.name(), notes.join("; ")))
    }

    /// Who is still there.
    fn left(&self) -> String {
        if self.connections == 0 && self.sticky_clients == 0 {
            return "nobody is left".to_owned();
        }
        // Halted, or drained and down: whoever has a record cannot come back, and need not be waited for.
        if !self.takes_known {
            let clients = match self.sticky_clients {
                0 => String::new(),
                1 => ", also not of the 1 client that has a record of it".to_owned(),
                many => format!(", also not of the {many} clients that have a record of it"),
            };
            let open = match self.connections {
                0 => "empty".to_owned(),
                open => format!("{} left", plural(open, "connection", "connections")),
            };
            return format!("{open}; it takes no connection{clients}");
        }
        let mut left = format!(
            "{} and {} left",
            plural(self.connections, "connection", "connections"),
            plural(self.sticky_clients, "client", "clients")
        );
        if let (Some(at), Some(seconds)) = (self.last_record_expires, self.last_record_expires_in) {
            let if_quiet = if self.sticky_clients == self.sticky_clients_idle {
                "empty"
            } else {
                "the last idle one's record expires"
            };
            left.push_str(&format!(", {if_quiet} at {at} (in {}) if nobody reconnects", duration(seconds)));
        } else if self.sticky_clients > 0 {
            left.push_str(", all of them connected");
        }
        left
    }

    fn since(&self) -> Option<String> {
        let (since, age) = (self.health_since?, self.health_age?);
        Some(format!("{since} ({})", duration(age)))
    }
}

/// How much of its weight a server has in the scheduler's loads, in percent, if that is not all.
fn growing(snapshot: &Snapshot<'_>, id: u16, weight: u16) -> Option<u32> {
    let load = Load::read(snapshot.maps().server_loads.get(usize::from(id))?);
    let whole = u32::from(weight) * WHOLE;
    (load.weight > 0 && load.weight < whole).then(|| load.weight.saturating_mul(100) / whole)
}

/// A MAC address as text.
#[must_use]
pub fn mac(bytes: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = bytes;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// All servers, by service and then by id.
///
/// # Errors
/// The kernel refused the counters.
pub fn records(snapshot: &Snapshot<'_>, census: &Census) -> anyhow::Result<Vec<ServerRecord>> {
    snapshot
        .names
        .servers()
        .into_iter()
        .map(|(id, info)| ServerRecord::new(snapshot, census, id, info))
        .collect()
}

/// One line a server, then what needs attention.
#[must_use]
pub fn overview(servers: &[ServerRecord]) -> String {
    if servers.is_empty() {
        return "there are no real servers\n".to_owned();
    }
    let columns = [
        ("SERVER", Align::Left),
        ("ADDRESS", Align::Left),
        ("WEIGHT", Align::Right),
        ("STATE", Align::Left),
        ("HEALTH", Align::Left),
        ("SINCE", Align::Left),
        ("CONNECTIONS", Align::Right),
        ("CLIENTS", Align::Right),
        ("IN", Align::Right),
        ("OUT", Align::Right),
    ];
    let mut out = render(&columns, servers.iter().map(row));
    let notes: Vec<String> = servers.iter().filter_map(ServerRecord::note).collect();
    if !notes.is_empty() {
        out.push('\n');
        for note in notes {
            out.push_str(&note);
            out.push('\n');
        }
    }
    out
}

fn row(server: &ServerRecord) -> Vec<String> {
    let only = [server.port];
    vec![
        server.name(),
        place(server.address, if server.ports.is_empty() { &only[..] } else { &server.ports }),
        server.weight.to_string(),
        server.state.as_str().to_owned(),
        server.health.as_str().to_owned(),
        server.health_age.map_or_else(|| "-".to_owned(), duration),
        server.connections.to_string(),
        server.sticky_clients.to_string(),
        bytes(server.bytes_in),
        bytes(server.bytes_out),
    ]
}

/// One server in full.
#[must_use]
pub fn detail(server: &ServerRecord) -> String {
    let mut out = overview(std::slice::from_ref(server));
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    let mut line = |name: &str, value: String| out.push_str(&format!("{name:<22}{value}\n"));
    line("\nnew clients", yes(server.takes_new).to_owned());
    line("known clients", yes(server.takes_known).to_owned());
    line("open flows are reset", yes(server.resets_flows).to_owned());
    line("next hop", server.mac.clone().unwrap_or_else(|| "not known".to_owned()));
    line(
        "connections",
        format!(
            "{} open, {} half-open, {} ever, {} reset because it was gone",
            server.connections, server.half_open, server.connections_total, server.resets
        ),
    );
    line(
        "sticky clients",
        format!("{}, {} of them without a connection", server.sticky_clients, server.sticky_clients_idle),
    );
    if let Some(SnatPorts { all, in_use, resting }) = server.snat_ports {
        line("SNAT ports", format!("{in_use} of {all} in use, {resting} rest after their connection"));
    }
    if let Some(why) = &server.no_verdict {
        line("health check", format!("says nothing: {why}"));
    } else if let Some(reason) = &server.health_reason {
        line("health check", reason.clone());
    }
    if let Some(note) = &server.health_note {
        line("health check", note.clone());
    }
    if let Some(expires) = server.certificate_expires {
        line("certificate expires", expires.to_string());
    }
    out
}
