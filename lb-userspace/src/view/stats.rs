//! Counters: packets by reason, traffic by service and server, and how full the tables are.

use std::fmt;

use lb_common::reason::{Action, Reason};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{
    Census, Snapshot, Time,
    format::{bytes, count},
    server::{self, ServerRecord},
    service::{self, ServiceRecord},
    table::{Align, render},
};

/// Packets by reason, in the order of `Reason::ALL`. In JSON an object, every reason in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Reasons(Vec<u64>);

impl Reasons {
    /// From the counters, in the order of `Reason::ALL`.
    #[must_use]
    pub const fn new(counters: Vec<u64>) -> Self {
        Self(counters)
    }

    /// Every reason with its packets.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().copied().zip(self.0.iter().copied())
    }

    /// Packets with this reason.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }
}

impl fmt::Debug for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for Reasons {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (reason, packets) in self.iter() {
            map.serialize_entry(reason.label(), &packets)?;
        }
        map.end()
    }
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableUse {
    /// `flows`, `half_open` or `sticky`.
    pub table: &'static str,
    /// Slots.
    pub capacity: u64,
    /// Slots in use.
    pub used: u64,
    /// Of them, those of flows whose handshake is not complete.
    pub half_open: u64,
}

/// All counters at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// The moment.
    pub at: Time,
    /// Packets by reason.
    pub reasons: Reasons,
    /// The services.
    pub services: Vec<ServiceRecord>,
    /// The servers.
    pub servers: Vec<ServerRecord>,
    /// The tables.
    pub tables: Vec<TableUse>,
}

impl Stats {
    /// Reads the counters.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn read(snapshot: &Snapshot<'_>) -> anyhow::Result<Self> {
        let census = snapshot.census();
        let servers = server::records(snapshot, &census)?;
        Ok(Self {
            at: snapshot.clock.time(),
            reasons: Reasons::new(snapshot.maps().kernel.reasons()?),
            services: service::records(snapshot, &census, &servers)?,
            servers,
            tables: tables(snapshot, &census),
        })
    }
}

fn tables(snapshot: &Snapshot<'_>, census: &Census) -> Vec<TableUse> {
    let maps = snapshot.maps();
    vec![
        TableUse { table: "flows", capacity: maps.flows.len() as u64, used: census.flows, half_open: 0 },
        TableUse {
            table: "half_open",
            capacity: maps.half_open.len() as u64,
            used: census.half_open,
            half_open: census.half_open - census.overflow,
        },
        TableUse { table: "sticky", capacity: maps.sticky.len() as u64, used: census.sticky, half_open: 0 },
    ]
}

/// The counters as text; with `reasons`, each reason in a sentence.
#[must_use]
pub fn text(stats: &Stats, reasons: bool) -> String {
    if reasons {
        return reasons_text(&stats.reasons);
    }
    let mut out = counted(stats);
    out.push('\n');
    out.push_str(&tables_text(&stats.tables));
    out.push('\n');
    out.push_str(&seen_reasons(&stats.reasons));
    out
}

fn counted(stats: &Stats) -> String {
    let columns = [
        ("SERVICE / SERVER", Align::Left),
        ("CONNECTIONS", Align::Right),
        ("EVER", Align::Right),
        ("RESETS", Align::Right),
        ("PACKETS IN", Align::Right),
        ("PACKETS OUT", Align::Right),
        ("IN", Align::Right),
        ("OUT", Align::Right),
    ];
    let mut rows = Vec::new();
    for service in stats.services.iter().filter(|service| service.protocol == "tcp") {
        rows.push(vec![
            service.service.clone(),
            service.connections.to_string(),
            count(service.connections_total),
            count(service.resets),
            count(service.packets_in),
            count(service.packets_out),
            bytes(service.bytes_in),
            bytes(service.bytes_out),
        ]);
        let ours = |server: &&ServerRecord| server.service_id == service.id;
        rows.extend(stats.servers.iter().filter(ours).map(|server| {
            vec![
                format!("  {}", server.server),
                server.connections.to_string(),
                count(server.connections_total),
                count(server.resets),
                count(server.packets_in),
                count(server.packets_out),
                bytes(server.bytes_in),
                bytes(server.bytes_out),
            ]
        }));
    }
    render(&columns, rows)
}

/// How full the tables are, as text.
#[must_use]
pub fn tables_text(tables: &[TableUse]) -> String {
    let columns =
        [("TABLE", Align::Left), ("USED", Align::Right), ("CAPACITY", Align::Right), ("FULL", Align::Right)];
    render(
        &columns,
        tables.iter().map(|table| {
            vec![
                table.table.to_owned(),
                table.used.to_string(),
                table.capacity.to_string(),
                percent(table.used, table.capacity),
            ]
        }),
    )
}

/// A share with one decimal; `-` of nothing.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{}%", tenths / 10, tenths % 10)
}

fn seen_reasons(reasons: &Reasons) -> String {
    let seen: Vec<_> = reasons.iter().filter(|(_, packets)| *packets > 0).collect();
    if seen.is_empty() {
        return "no packet has been counted\n".to_owned();
    }
    let columns = [("REASON", Align::Left), ("PACKETS", Align::Right), ("DONE", Align::Left)];
    render(
        &columns,
        seen.into_iter().map(|(reason, packets)| {
            vec![reason.label().to_owned(), packets.to_string(), done(reason).to_owned()]
        }),
    )
}

fn reasons_text(reasons: &Reasons) -> String {
    let columns =
        [("REASON", Align::Left), ("PACKETS", Align::Right), ("DONE", Align::Left), ("MEANING", Align::Left)];
    render(
        &columns,
        reasons.iter().map(|(reason, packets)| {
            vec![
                reason.label().to_owned(),
                packets.to_string(),
                done(reason).to_owned(),
                reason.description().to_owned(),
            ]
        }),
    )
}

/// What is done with a packet of this reason, in a word.
#[must_use]
pub const fn done(reason: Reason) -> &'static str {
    match reason.action() {
        Action::Pass => "pass",
        Action::Transmit => "transmit",
        Action::Drop => "drop",
    }
}
