//! Sticky records.

use std::net::IpAddr;

use lb_common::{
    address::Address,
    clock::Ticks,
    hash::hash3,
    sticky::{MADE_AT_TICKS, STICKY_WORDS, Stickies, Sticky},
    table::find,
};
use serde::Serialize;

use crate::core::{rows, text::with_port};

use super::{
    Snapshot, Time, census,
    format::{duration, plural},
    table::{Align, render},
};

/// A client's sticky record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StickyRecord {
    /// The virtual service's label.
    pub service: String,
    /// The service's port that it is for; none: all of them.
    pub port: Option<u16>,
    /// The client.
    pub client: IpAddr,
    /// The real server's label.
    pub server: String,
    /// The client's open flows.
    pub flows: u64,
    /// When the record was made at the earliest: the record keeps no more of it.
    pub made_at: Time,
    /// Seconds after `made_at` in which the record was made.
    pub made_at_within: u64,
    /// When its deadline was last moved: a flow was established or closed.
    pub last_used: Time,
    /// Seconds until it expires; none while a flow is open.
    pub expires_in: Option<u64>,
    /// Whether the client acknowledged the server's own SYN-ACK.
    pub verified: bool,
}

impl StickyRecord {
    /// The record as it reads at the snapshot's time.
    #[must_use]
    pub fn new(snapshot: &Snapshot<'_>, record: &Sticky) -> Self {
        let clock = &snapshot.clock;
        let persistence = super::scheduler::service(snapshot.maps(), record.to.service)
            .map_or(Ticks(0), |service| service.persistence);
        let last_used = Ticks(record.deadline.0.wrapping_sub(persistence.0));
        Self {
            service: snapshot.names.service_label(record.to.service),
            port: (record.to.port != 0).then(|| u16::from_be(record.to.port)),
            client: record.client.into(),
            server: snapshot.names.server_label(record.to.server),
            flows: u64::from(record.flows),
            made_at: clock.at(record.to.made_before(clock.now)),
            made_at_within: clock.seconds_at_most(Ticks(MADE_AT_TICKS)),
            last_used: clock.at(last_used),
            expires_in: (record.flows == 0).then(|| clock.seconds_until(record.deadline)),
            verified: record.to.verified,
        }
    }
}

/// Which records are wanted, by id.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Of this service.
    pub service: Option<u16>,
    /// That name this server.
    pub server: Option<u16>,
}

/// The records in force, by service and client; `limit` of them at most, and how many there are.
#[must_use]
pub fn records(snapshot: &Snapshot<'_>, filter: Filter, limit: Option<usize>) -> (Vec<StickyRecord>, usize) {
    let mut found: Vec<Sticky> = census::stickies(&snapshot.maps().sticky, snapshot.clock.now)
        .filter(|record| filter.service.is_none_or(|id| id == record.to.service))
        .filter(|record| filter.server.is_none_or(|id| id == record.to.server))
        .collect();
    let total = found.len();
    found
        .sort_by_key(|record| (record.to.service, IpAddr::from(record.client), u16::from_be(record.to.port)));
    found.truncate(limit.unwrap_or(usize::MAX));
    let records = found.iter().map(|record| StickyRecord::new(snapshot, record)).collect();
    (records, total)
}

/// A client's record with this port of a service (as on the wire), found as the data path finds it.
#[must_use]
pub fn lookup(snapshot: &Snapshot<'_>, service: u16, client: Address, port: u16) -> Option<Sticky> {
    let key = snapshot.maps().sticky_key(client, service, port);
    let (port, key) = (key.port, key.words());
    let hash = hash3(&snapshot.key(), key);
    let table = &snapshot.maps().sticky;
    let Some(found) = find::<STICKY_WORDS, Stickies, _>(table, hash, key, snapshot.clock.now) else {
        // It may have been made when one record was for all ports.
        return if port == 0 { None } else { lookup(snapshot, service, client, 0) };
    };
    let record = Sticky::unpack(&found.slot.read(), found.life);
    found.still().then_some(record)
}

/// A client's records with all services.
#[must_use]
pub fn of_client(snapshot: &Snapshot<'_>, client: Address) -> Vec<StickyRecord> {
    snapshot
        .names
        .services()
        .flat_map(|(id, _)| {
            let ports = rows::ports_of(snapshot.maps(), id, client, snapshot.clock.now);
            ports.into_iter().filter_map(move |port| lookup(snapshot, id, client, port))
        })
        .map(|record| StickyRecord::new(snapshot, &record))
        .collect()
}

/// One line a record; `total` is how many there are.
#[must_use]
pub fn table(records: &[StickyRecord], total: usize) -> String {
    if records.is_empty() {
        return if total == 0 {
            "there are no such sticky records\n".to_owned()
        } else {
            format!("{}\n", plural(total as u64, "sticky record", "sticky records"))
        };
    }
    let columns = [
        ("SERVICE", Align::Left),
        ("CLIENT", Align::Left),
        ("SERVER", Align::Left),
        ("FLOWS", Align::Right),
        ("MADE AT", Align::Left),
        ("LAST USED", Align::Left),
        ("EXPIRES IN", Align::Right),
        ("VERIFIED", Align::Left),
    ];
    let rows = records.iter().map(|record| {
        vec![
            with_port(&record.service, record.port),
            record.client.to_string(),
            record.server.clone(),
            record.flows.to_string(),
            record.made_at.to_string(),
            record.last_used.to_string(),
            record.expires_in.map_or_else(|| "in use".to_owned(), duration),
            if record.verified { "yes" } else { "no" }.to_owned(),
        ]
    });
    let mut out = render(&columns, rows);
    let within = duration(records[0].made_at_within);
    out.push_str(&format!("\na record was made at MADE AT or within the {within} after it\n"));
    if records.len() < total {
        out.push_str(&format!("{} of {total} records; --limit N shows more\n", records.len()));
    }
    out
}
