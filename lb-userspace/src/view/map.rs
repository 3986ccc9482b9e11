//! The maps themselves: what there is, and what is in it.

use anyhow::{Context as _, bail, ensure};
use lb_common::maps::{self, MapKind, MapSpec, Users};
use serde::Serialize;
use serde_json::Value;

use super::{
    Snapshot,
    map_decode::decode,
    names::{ServerName, nearest},
    table::{Align, render},
};
use crate::dataplane::Maps;

/// A map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapRecord {
    /// Its name, in the program and where it is pinned.
    pub name: &'static str,
    /// Its kind, as bpftool calls it.
    pub kind: &'static str,
    /// Entries; of a ring buffer, bytes.
    pub entries: u64,
    /// Bytes of an entry.
    pub value_size: u32,
    /// Rows in a value: `map dump` and `map lookup` count rows.
    pub rows: u32,
    /// Whether the program uses it, or user space alone.
    pub users: &'static str,
    /// What it holds.
    pub description: &'static str,
}

static ALL: [MapSpec; maps::ALL.len()] = maps::ALL;

/// The map of this name, in capitals or not.
///
/// # Errors
/// There is none; lists those that exist.
pub fn named(name: &str) -> anyhow::Result<&'static MapSpec> {
    let wanted = name.to_uppercase().replace('-', "_");
    let found = ALL.iter().position(|spec| spec.name == wanted);
    let known: Vec<&str> = ALL.iter().map(|spec| spec.name).collect();
    let Some(index) = found else {
        let guess =
            nearest(&wanted, &known).map_or_else(String::new, |guess| format!(" did you mean {guess}?"));
        bail!("there is no map {name:?};{guess} known: {}", known.join(", "));
    };
    Ok(&ALL[index])
}

/// All maps with the sizes that they have here.
#[must_use]
pub fn list(maps: &Maps) -> Vec<MapRecord> {
    let record = |spec: &MapSpec| MapRecord {
        name: spec.name,
        kind: match spec.kind {
            MapKind::Array => "array",
            MapKind::PerCpuArray => "percpu_array",
            MapKind::ArrayOfMaps => "array_of_maps",
            MapKind::DevMap => "devmap",
            MapKind::RingBuf => "ringbuf",
        },
        entries: entries(maps, spec) as u64 / u64::from(spec.rows),
        value_size: spec.value_size,
        rows: spec.rows,
        users: match spec.users {
            Users::Both => "program and user space",
            Users::UserSpace => "user space",
            Users::Program => "program",
        },
        description: spec.description,
    };
    ALL.iter().map(record).collect()
}

/// How many rows a map has.
pub(super) fn entries(maps: &Maps, spec: &MapSpec) -> usize {
    match spec.name {
        "SERVICE_INDEX" => maps.service_index.len(),
        "SERVICES" => maps.services.len(),
        "SERVERS" => maps.servers.len(),
        "FLOWS" => maps.flows.len(),
        "HALF_OPEN" => maps.half_open.len(),
        "FLOW_TAGS" => maps.flows.all_tags().len(),
        "HALF_OPEN_TAGS" => maps.half_open.all_tags().len(),
        "STICKY" => maps.sticky.len(),
        "PORT_CELLS" => maps.port_cells.len(),
        "PORT_CURSORS" => maps.port_cursors.len(),
        "SERVER_LOADS" => maps.server_loads.len(),
        "TURNS" => maps.turns.len(),
        "PICKS" => maps.picks.len(),
        "SERVICE_INFO" => maps.service_info.len(),
        "SERVER_INFO" => maps.server_info.len(),
        _ => spec.max_entries as usize,
    }
}

/// # Errors
/// The map has no entries to show.
fn has_entries(spec: &MapSpec) -> anyhow::Result<()> {
    ensure!(
        spec.kind != MapKind::RingBuf,
        "{} is a ring buffer that the daemon empties into its log: there are no entries to show",
        spec.name
    );
    ensure!(
        spec.is_pinned(),
        "{} is the program's own and pinned nowhere: see `steadfast prog show` for the program, and `bpftool map dump` with \
         the id of its map",
        spec.name
    );
    Ok(())
}

/// The entries of a map that are in use, `limit` of them at most.
///
/// # Errors
/// The map has no entries to show, or the kernel refused.
pub fn dump(snapshot: &Snapshot<'_>, spec: &MapSpec, limit: Option<usize>) -> anyhow::Result<Vec<Value>> {
    has_entries(spec)?;
    let limit = limit.unwrap_or(usize::MAX);
    let mut records = Vec::new();
    for index in 0..entries(snapshot.maps(), spec) {
        if records.len() >= limit {
            break;
        }
        if !is_interesting(snapshot, spec, index) {
            continue;
        }
        records.extend(decode(snapshot, spec, index)?);
    }
    Ok(records)
}

/// Whether an entry is worth a system call: counters of ids that nobody has are not.
fn is_interesting(snapshot: &Snapshot<'_>, spec: &MapSpec, index: usize) -> bool {
    let Ok(id) = u16::try_from(index) else {
        return true;
    };
    match spec.name {
        "SERVICE_COUNTERS" | "SCHEDULE" => snapshot.names.service_info(id).is_some(),
        "SERVER_COUNTERS" => snapshot.names.server_info(id).is_some(),
        _ => true,
    }
}

/// The entry of a key: an index, a service's label, `VIP/SERVER`, or a reason.
///
/// # Errors
/// The map has no such key, or the entry is not in use.
pub fn lookup(snapshot: &Snapshot<'_>, spec: &MapSpec, key: &str) -> anyhow::Result<Value> {
    has_entries(spec)?;
    let index = index_of(snapshot, spec, key)?;
    let size = entries(snapshot.maps(), spec);
    if index >= size {
        bail!("{} has entries 0 to {}, not {index}", spec.name, size.saturating_sub(1));
    }
    decode(snapshot, spec, index)?.with_context(|| format!("entry {index} of {} is not in use", spec.name))
}

fn index_of(snapshot: &Snapshot<'_>, spec: &MapSpec, key: &str) -> anyhow::Result<usize> {
    if let Ok(index) = key.parse() {
        return Ok(index);
    }
    match spec.name {
        "SERVICES" | "SERVICE_INFO" | "SERVICE_COUNTERS" | "SCHEDULE" => {
            snapshot.names.service_id(key).map(usize::from)
        }
        "SERVERS" | "SERVER_INFO" | "SERVER_COUNTERS" => {
            let name: ServerName = key.parse().context("the key is an index or VIP/SERVER")?;
            Ok(usize::from(snapshot.names.server_id(&name)?.1))
        }
        "REASONS" => {
            let labels: Vec<&str> =
                lb_common::reason::Reason::ALL.iter().map(|reason| reason.label()).collect();
            let found = labels.iter().position(|label| *label == key);
            found.with_context(|| format!("there is no reason {key:?}; known: {}", labels.join(", ")))
        }
        "STICKY" => bail!("{key:?} is not an index; a client's records: steadfast sticky lookup CLIENT"),
        "FLOWS" | "HALF_OPEN" => {
            bail!("{key:?} is not an index; a client's flows: steadfast flow show --client CLIENT")
        }
        name => bail!("{key:?} is not an index; the key of {name} is a number"),
    }
}

/// The maps for a person.
#[must_use]
pub fn list_text(records: &[MapRecord]) -> String {
    let columns = [
        ("MAP", Align::Left),
        ("KIND", Align::Left),
        ("ENTRIES", Align::Right),
        ("BYTES EACH", Align::Right),
        ("WHAT", Align::Left),
    ];
    render(
        &columns,
        records.iter().map(|map| {
            vec![
                map.name.to_owned(),
                map.kind.to_owned(),
                map.entries.to_string(),
                map.value_size.to_string(),
                map.description.to_owned(),
            ]
        }),
    )
}

/// Entries for a person: a line each, `index: field value, ..`, without the raw bytes.
#[must_use]
pub fn entries_text(records: &[Value]) -> String {
    let mut out = String::new();
    for record in records.iter().filter_map(Value::as_object) {
        let index = record.get("index").map_or_else(String::new, ToString::to_string);
        let fields: Vec<String> = record
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "index" | "raw"))
            .map(|(name, value)| match value {
                Value::String(text) => format!("{name}={text}"),
                other => format!("{name}={other}"),
            })
            .collect();
        out.push_str(&format!("{index}: {}\n", fields.join(" ")));
    }
    if out.is_empty() {
        out.push_str("no entry is in use\n");
    }
    out
}

/// One entry for a person, with its raw bytes.
#[must_use]
pub fn entry_text(record: &Value) -> String {
    let mut out = String::new();
    for (name, value) in record.as_object().into_iter().flatten() {
        let value = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        out.push_str(&format!("{name:<22}{value}\n"));
    }
    out
}
