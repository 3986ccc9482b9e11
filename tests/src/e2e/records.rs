//! What the command line says, by the field names of its contract: a field that is missing or of another kind is an
//! error here.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::lab::Lab;

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Vip {
    /// Its label.
    pub service: String,
    /// Its address.
    pub address: IpAddr,
    /// Its ports.
    pub ports: Vec<u16>,
    /// `tcp` or `http`.
    pub protocol: String,
    /// How packets reach the servers; none for `http`.
    pub forwarding: Option<String>,
    /// Open connections.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Server {
    /// Its service's label.
    pub service: String,
    /// Its label.
    pub server: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its weight.
    pub weight: u16,
    /// `online`, `drain` or `halt`.
    pub state: String,
    /// `up`, `down` or `unknown`.
    pub health: String,
    /// Open connections.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Whether the next hop's MAC address is known.
    pub reachable: bool,
}

/// A sticky record.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Sticky {
    /// Its service's label.
    pub service: String,
    /// The client.
    pub client: IpAddr,
    /// Its server's label.
    pub server: String,
    /// The client's open flows.
    pub flows: u64,
    /// When it was made.
    pub made_at: String,
    /// When it was last used.
    pub last_used: String,
    /// Seconds; none while a flow is open.
    pub expires_in: Option<u64>,
    /// Whether the server's own answer was acknowledged.
    pub verified: bool,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Flow {
    /// Its service's label.
    pub service: String,
    /// The client.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// Its server's label.
    pub server: String,
    /// The source address that the server sees; none where it sees the client's own.
    pub snat_address: Option<IpAddr>,
    /// The source port that the server sees; none where it sees the client's own.
    pub snat_port: Option<u16>,
    /// Such as `established`.
    pub state: String,
    /// Seconds since it was established.
    pub age: u64,
    /// Seconds since its last packet.
    pub idle: u64,
}

/// A table of the data path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Table {
    /// Its name.
    pub table: String,
    /// Slots.
    pub capacity: u64,
    /// Slots in use.
    pub used: u64,
    /// Half-open flows in it.
    pub half_open: u64,
}

/// All counters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Stats {
    /// Packets by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Virtual services.
    pub services: Vec<Vip>,
    /// Real servers.
    pub servers: Vec<Server>,
    /// Tables.
    pub tables: Vec<Table>,
}

impl Stats {
    /// Packets with a reason.
    ///
    /// # Errors
    /// There is no such reason.
    pub fn reason(&self, label: &str) -> Result<u64> {
        let count = self.reasons.get(label).copied();
        count.with_context(|| format!("stats have no reason {label}"))
    }

    /// A table by its name.
    ///
    /// # Errors
    /// There is no such table.
    pub fn table(&self, name: &str) -> Result<&Table> {
        let table = self.tables.iter().find(|table| table.table == name);
        table.with_context(|| format!("stats have no table {name}"))
    }

    /// Counters that are lower in `later`: name, before, after.
    pub fn that_fell(&self, later: &Self) -> Vec<(String, u64, u64)> {
        let before = self.counters();
        let after: BTreeMap<String, u64> = later.counters().into_iter().collect();
        before
            .into_iter()
            .filter_map(|(name, was)| {
                let is = after.get(&name).copied().unwrap_or(0);
                (is < was).then_some((name, was, is))
            })
            .collect()
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let reasons = self.reasons.iter().map(|(name, count)| (format!("reason {name}"), *count));
        let services = self.services.iter().flat_map(|service| {
            let name = &service.service;
            [
                (format!("{name} packets_in"), service.packets_in),
                (format!("{name} packets_out"), service.packets_out),
                (format!("{name} bytes_in"), service.bytes_in),
                (format!("{name} bytes_out"), service.bytes_out),
            ]
        });
        let servers = self.servers.iter().flat_map(|server| {
            let name = format!("{}/{}", server.service, server.server);
            [
                (format!("{name} packets_in"), server.packets_in),
                (format!("{name} packets_out"), server.packets_out),
                (format!("{name} bytes_in"), server.bytes_in),
                (format!("{name} bytes_out"), server.bytes_out),
            ]
        });
        reasons.chain(services).chain(servers).collect()
    }
}

/// What a change does, as far as a test asks.
#[derive(Clone, Debug, Deserialize)]
pub struct Plan {
    /// Clients with a record that move.
    pub moved: Vec<Value>,
    /// How the picks for unknown clients change.
    pub unknown_changed: Vec<UnknownChanged>,
}

/// How the picks of a service change.
#[derive(Clone, Debug, Deserialize)]
pub struct UnknownChanged {
    /// The service's label.
    pub service: String,
    /// The share of unknown clients that are sent elsewhere, in percent.
    pub percent: f64,
}

impl Plan {
    /// The plan in an answer: all of it, or its `plan`.
    ///
    /// # Errors
    /// There is none.
    pub fn of(answer: &Value) -> Result<Self> {
        let plan = answer.get("plan").unwrap_or(answer);
        Self::deserialize(plan).with_context(|| format!("the answer holds no plan: {answer}"))
    }

    /// The share of a service's unknown clients that are sent elsewhere, in percent.
    pub fn percent(&self, service: &str) -> f64 {
        let changed = self.unknown_changed.iter().find(|one| one.service == service);
        changed.map_or(0.0, |changed| changed.percent)
    }
}

/// What `steadfast ARGS -j` prints.
///
/// # Errors
/// It failed, or printed something else.
pub fn ask<T: DeserializeOwned>(lab: &Lab, args: &[&str]) -> Result<T> {
    let args: Vec<&str> = args.iter().copied().chain(["-j"]).collect();
    let value = lab.cli_json(&args)?;
    serde_json::from_value(value.clone())
        .with_context(|| format!("`steadfast {}` printed {value}", args.join(" ")))
}

/// `stats`.
///
/// # Errors
/// Those of [`ask`].
pub fn stats(lab: &Lab) -> Result<Stats> {
    ask(lab, &["stats"])
}

/// `server show` of one server, `VIP/SERVER`.
///
/// # Errors
/// Those of [`ask`].
pub fn server(lab: &Lab, name: &str) -> Result<Server> {
    ask(lab, &["server", "show", name])
}

/// The connections of a service that neither end has closed, as far as the balancer can know, by server. Where it sees the
/// servers' answers that is what it counts. In `dr` and `tunnel` it does not see a server's FIN, and goes on counting a
/// connection whose client has sent one; but for those it counts the same.
///
/// # Errors
/// Those of [`ask`].
pub fn open_connections(lab: &Lab, service: &str) -> Result<BTreeMap<String, u64>> {
    let servers: Vec<Server> = ask(lab, &["server", "show", service])?;
    let mut open: BTreeMap<String, u64> =
        servers.into_iter().map(|server| (server.server, server.connections)).collect();
    if lab.topology().mode.answers_directly() {
        let flows: Vec<Flow> = ask(lab, &["flow", "show"])?;
        for flow in flows.iter().filter(|flow| flow.service == service && flow.state == "client-fin") {
            let connections = open.get_mut(&flow.server).context("a flow's server is not shown")?;
            *connections = connections.checked_sub(1).context("more flows are shown than connections")?;
        }
    }
    Ok(open)
}

/// The sticky records of a service, by client.
///
/// # Errors
/// Those of [`ask`].
pub fn sticky(lab: &Lab, service: &str) -> Result<BTreeMap<IpAddr, Sticky>> {
    let records: Vec<Sticky> = ask(lab, &["sticky", "show", "--vip", service])?;
    Ok(records.into_iter().map(|record| (record.client, record)).collect())
}

/// The server that `explain` predicts for a client.
///
/// # Errors
/// Those of [`ask`], or it predicts that nobody answers.
pub fn predicted(lab: &Lab, client: IpAddr, service: &str) -> Result<String> {
    let answer: Value = ask(lab, &["explain", &client.to_string(), "--vip", service])?;
    let server = answer.get("server").and_then(Value::as_str);
    Ok(server.with_context(|| format!("explain names no server: {answer}"))?.to_owned())
}
