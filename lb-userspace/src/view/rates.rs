//! What happened between two looks at the counters, per second.

use std::{collections::BTreeMap, time::Duration};

use lb_common::reason::Reason;
use serde::Serialize;

use super::{
    Time,
    format::{bytes, count},
    service::NOBODY_TAKES,
    stats::{Stats, TableUse, done, tables_text},
    table::{Align, render},
};

/// Rates over an interval, per second.
#[derive(Clone, Debug, Serialize)]
pub struct Rates {
    /// The end of the interval.
    pub at: Time,
    /// Its length in seconds.
    pub seconds: f64,
    /// Services of which no server takes new clients.
    pub nobody_takes: Vec<String>,
    /// Packets by reason, those that came.
    pub reasons: BTreeMap<&'static str, f64>,
    /// The services.
    pub services: Vec<Rate>,
    /// The servers.
    pub servers: Vec<Rate>,
    /// How full the tables are at the end.
    pub tables: Vec<TableUse>,
}

/// Rates of a service or a server, per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// The service's label.
    pub service: String,
    /// The server's label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// What the health checks found, of a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<&'static str>,
    /// Open flows at the end.
    pub connections: u64,
    /// Flows established.
    pub new_connections: f64,
    /// Connections answered with RST.
    pub resets: f64,
    /// Packets from clients.
    pub packets_in: f64,
    /// Packets to clients.
    pub packets_out: f64,
    /// Bytes from clients.
    pub bytes_in: f64,
    /// Bytes to clients.
    pub bytes_out: f64,
}

impl Rate {
    fn packets(&self) -> f64 {
        self.packets_in + self.packets_out
    }
}

/// Counters at one end of the interval.
struct Counters([u64; 6]);

impl Counters {
    /// The change since `earlier`, per second; a counter that was cleared starts from zero.
    fn since(&self, earlier: Option<&Self>, per_second: &impl Fn(u64) -> f64) -> [f64; 6] {
        std::array::from_fn(|index| {
            let (now, before) = (self.0[index], earlier.map_or(0, |earlier| earlier.0[index]));
            per_second(if now < before { now } else { now - before })
        })
    }
}

macro_rules! counters {
    ($record:expr) => {
        Counters([
            $record.connections_total,
            $record.resets,
            $record.packets_in,
            $record.packets_out,
            $record.bytes_in,
            $record.bytes_out,
        ])
    };
}

impl Rates {
    /// The rates between two looks, `interval` (not zero) apart.
    #[must_use]
    pub fn between(before: &Stats, after: &Stats, interval: Duration) -> Self {
        let seconds = interval.as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for the eye: 53 bits are plenty")]
        let per_second = |number: u64| (number as f64 / seconds * 10.0).round() / 10.0;
        let reasons = Reason::ALL.iter().filter_map(|reason| {
            let (now, then) = (after.reasons.of(*reason), before.reasons.of(*reason));
            let packets = now.saturating_sub(then);
            (packets > 0).then(|| (reason.label(), per_second(packets)))
        });
        let services = after.services.iter().filter(|service| service.protocol != "http").map(|service| {
            let earlier = before.services.iter().find(|other| other.service == service.service);
            let earlier = earlier.map(|earlier| counters!(earlier));
            let change = counters!(service).since(earlier.as_ref(), &per_second);
            rate(service.service.clone(), None, service.connections, change)
        });
        let servers = after.servers.iter().map(|server| {
            let same = |other: &&super::server::ServerRecord| {
                other.service == server.service && other.server == server.server
            };
            let earlier = before.servers.iter().find(same).map(|earlier| counters!(earlier));
            let change = counters!(server).since(earlier.as_ref(), &per_second);
            let who = Some((server.server.clone(), server.health.as_str()));
            rate(server.service.clone(), who, server.connections, change)
        });
        let nobody = after.services.iter().filter(|service| service.takes_nobody());
        Self {
            at: after.at,
            nobody_takes: nobody.map(|service| service.service.clone()).collect(),
            seconds: (seconds * 1000.0).round() / 1000.0,
            reasons: reasons.collect(),
            services: services.collect(),
            servers: servers.collect(),
            tables: after.tables.clone(),
        }
    }

    /// Puts the busiest servers first.
    pub fn busiest_first(&mut self) {
        self.servers.sort_by(|a, b| {
            b.packets()
                .total_cmp(&a.packets())
                .then_with(|| (&a.service, &a.server).cmp(&(&b.service, &b.server)))
        });
    }
}

fn rate(service: String, server: Option<(String, &'static str)>, connections: u64, change: [f64; 6]) -> Rate {
    let [new_connections, resets, packets_in, packets_out, bytes_in, bytes_out] = change;
    let (server, health) = server.unzip();
    Rate {
        service,
        server,
        health,
        connections,
        new_connections,
        resets,
        packets_in,
        packets_out,
        bytes_in,
        bytes_out,
    }
}

/// The rates as text. `only_servers`: what `top` shows.
#[must_use]
pub fn text(rates: &Rates, only_servers: bool, with_reasons: bool) -> String {
    let columns = [
        ("PER SECOND", Align::Left),
        ("HEALTH", Align::Left),
        ("OPEN", Align::Right),
        ("NEW", Align::Right),
        ("RESETS", Align::Right),
        ("PACKETS IN", Align::Right),
        ("PACKETS OUT", Align::Right),
        ("IN", Align::Right),
        ("OUT", Align::Right),
    ];
    let services = rates.services.iter().filter(|_| !only_servers);
    let mut out: String =
        rates.nobody_takes.iter().map(|service| format!("{service}: {NOBODY_TAKES}\n")).collect();
    out.push_str(&format!("{}\n\n", rates.at));
    out.push_str(&render(&columns, services.chain(&rates.servers).map(row)));
    if !only_servers {
        out.push('\n');
        out.push_str(&tables_text(&rates.tables));
    }
    if with_reasons || !only_servers {
        out.push('\n');
        out.push_str(&reasons(rates));
    }
    out
}

fn reasons(rates: &Rates) -> String {
    let columns = [("REASON", Align::Left), ("PACKETS/S", Align::Right), ("DONE", Align::Left)];
    let rows = Reason::ALL.iter().filter_map(|reason| {
        let packets = rates.reasons.get(reason.label())?;
        Some(vec![reason.label().to_owned(), number(*packets), done(*reason).to_owned()])
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return "no packets\n".to_owned();
    }
    render(&columns, rows)
}

fn row(rate: &Rate) -> Vec<String> {
    vec![
        match &rate.server {
            Some(server) => format!("{}/{server}", rate.service),
            None => rate.service.clone(),
        },
        rate.health.unwrap_or("").to_owned(),
        rate.connections.to_string(),
        number(rate.new_connections),
        number(rate.resets),
        number(rate.packets_in),
        number(rate.packets_out),
        format!("{}/s", bytes(whole(rate.bytes_in))),
        format!("{}/s", bytes(whole(rate.bytes_out))),
    ]
}

/// Small rates with a decimal: 0.3 connections a second are not none.
fn number(rate: f64) -> String {
    if rate < 100.0 && rate.fract() != 0.0 { format!("{rate:.1}") } else { count(whole(rate)) }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are not negative, and a float saturates"
)]
fn whole(rate: f64) -> u64 {
    rate.round() as u64
}
