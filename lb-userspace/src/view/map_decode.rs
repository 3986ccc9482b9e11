//! One entry of a map as a JSON record: its index, its fields, and its raw bytes.

use std::{collections::BTreeMap, net::IpAddr};

use lb_common::{
    address::Address,
    control::{Arm, Control, LAYOUT_VERSION, Snat},
    flow::{Flow, FlowSlot, mac_bytes},
    life::SlotState,
    maglev::{NOBODY, Table},
    maps::{MapSpec, ServerInfo, Traffic},
    ports::{Owner, PortCell},
    reason::Reason,
    schedule::{Load, LoadSlot},
    server::{Server, ServerState, Servers as _},
    service::{INDEX_CAPACITY, Service},
    sticky::{Sticky, StickySlot},
    table::BUCKET,
    tags::tags_of,
    word::Word,
};
use serde_json::{Value, json};

use super::{
    Snapshot, Time, flow,
    names::{ip, text},
    server::{AdminState, Health, mac},
    stats::done,
};

/// Decodes the entry at `index`; nothing if it is not in use.
pub(super) fn decode(snapshot: &Snapshot<'_>, spec: &MapSpec, index: usize) -> anyhow::Result<Option<Value>> {
    let maps = snapshot.maps();
    let id = u16::try_from(index).ok();
    Ok(match spec.name {
        "CONTROL" => (index == 0).then(|| control(snapshot, maps.control())),
        "SERVICE_INDEX" => maps.service_index.get(index).and_then(|slot| index_entry(snapshot, index, slot)),
        "SERVICES" => maps.services.get(index).and_then(|slot| service(snapshot, index, slot)),
        "SERVERS" => maps.servers.get(index).and_then(|slot| server(snapshot, index, slot)),
        "ARMS" => maps.control().arms.get(index).and_then(arm),
        "FLOWS" => maps.flows.get(index).and_then(|slot| flow_slot(snapshot, index, slot)),
        "HALF_OPEN" => maps.half_open.get(index).and_then(|slot| flow_slot(snapshot, index, slot)),
        "FLOW_TAGS" => maps.flows.all_tags().get(index).and_then(|word| tags(index, word)),
        "HALF_OPEN_TAGS" => maps.half_open.all_tags().get(index).and_then(|word| tags(index, word)),
        "STICKY" => maps.sticky.get(index).and_then(|slot| sticky(snapshot, index, slot)),
        "PORT_CELLS" => maps.port_cells.get(index).and_then(|word| port_cell(snapshot, index, word)),
        "PORT_CURSORS" => maps.port_cursors.get(index).and_then(|word| port_cursor(snapshot, index, word)),
        "SCHEDULE" => {
            match id.map(|id| Ok::<_, anyhow::Error>((id, maps.kernel.schedule(id)?))).transpose()? {
                Some((id, Some(values))) => Some(schedule(snapshot, id, &values)),
                _ => None,
            }
        }
        "SERVER_LOADS" => maps.server_loads.get(index).and_then(|slot| server_load(snapshot, index, slot)),
        "TURNS" => maps.turns.get(index).and_then(|word| turns(snapshot, index, word)),
        "PICKS" => maps.picks.get(index).and_then(|word| latest_pick(snapshot, index, word)),
        "REASONS" => reason(index, &maps.kernel.reasons()?),
        "SERVICE_COUNTERS" => match id {
            Some(id) => {
                let name = snapshot.names.service_label(id);
                Some(traffic(index, "service", &name, &maps.kernel.service_traffic(id)?))
            }
            None => None,
        },
        "SERVER_COUNTERS" => match id {
            Some(id) => {
                let name = snapshot.names.server_label(id);
                Some(traffic(index, "server", &name, &maps.kernel.server_traffic(id)?))
            }
            None => None,
        },
        "SERVICE_INFO" => service_info(snapshot, index),
        "SERVER_INFO" => server_info(snapshot, index),
        _ => None,
    })
}

/// Words as bytes in the order of memory, in hexadecimal.
pub(super) fn hex_of(words: &[u64]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn arm(arm: &Arm) -> Option<Value> {
    let interface = arm.interface.load();
    (interface != 0).then(|| {
        json!({
            "interface": interface & 0xffff_ffff,
            "mtu": interface >> 32 & 0xffff,
            "mac": mac(mac_bytes(arm.mac.load())),
        })
    })
}

/// The settings; the secrets stay secret, here and in the raw bytes.
fn control(snapshot: &Snapshot<'_>, control: &Control) -> Value {
    let snat = Snat::from_word(control.snat.load());
    let clock = &snapshot.clock;
    #[expect(clippy::cast_possible_truncation, reason = "the words hold 32 bits of ticks")]
    let seconds = |word: &Word| clock.seconds(lb_common::clock::Ticks(word.load() as u32));
    let sources: Vec<IpAddr> = flow::sources(control).collect();
    let arms: Vec<Value> = control.arms.iter().filter_map(arm).collect();
    json!({
        "index": 0,
        "layout": control.layout.load(),
        "layout_of_this_program": LAYOUT_VERSION,
        "generation": control.generation.load() & 1,
        "hz": control.hz.load(),
        "snat_first_port": snat.first_port,
        "snat_ports": snat.ports,
        "snat_addresses": sources,
        "arms": arms,
        "hash_key": "secret",
        "maglev_seed": "secret",
        "quarantine": seconds(&control.quarantine),
        "idle_syn": seconds(&control.idle_syn),
        "idle_handshake": seconds(&control.idle_handshake),
        "idle_half_closed": seconds(&control.idle_half_closed),
        "idle_closed": seconds(&control.idle_closed),
        "daemon": snapshot.daemon,
    })
}

fn index_entry(snapshot: &Snapshot<'_>, index: usize, slot: &[Word; 4]) -> Option<Value> {
    let words = load(slot);
    if words[2] == 0 {
        return None;
    }
    let [port_low, port_high, protocol, kind, id_low, id_high, _, _] = words[2].to_le_bytes();
    let id = u16::from_le_bytes([id_low, id_high]);
    let generation = u64::from(index >= INDEX_CAPACITY as usize);
    let (kind, label) = match kind {
        1 => ("service", Some(snapshot.names.service_label(id))),
        2 => ("local", Some(snapshot.names.service_label(id))),
        3 => ("endpoint", None),
        4 => ("address", None),
        5 => ("nat-endpoint", Some(snapshot.names.service_label(id))),
        _ => ("unknown", None),
    };
    Some(json!({
        "index": index,
        "generation": generation,
        "in_force": generation == snapshot.maps().control().generation.load() & 1,
        "address": ip([words[0], words[1]]),
        "port": u16::from_be(u16::from_le_bytes([port_low, port_high])),
        "protocol": protocol,
        "kind": kind,
        "id": id,
        "label": label,
        "raw": hex_of(&words),
    }))
}

fn service(snapshot: &Snapshot<'_>, index: usize, slot: &[Word; 4]) -> Option<Value> {
    let service = Service::load(slot)?;
    Some(json!({
        "index": index,
        "service": snapshot.names.service_label(u16::try_from(index).ok()?),
        "address": IpAddr::from(service.address),
        "persistence_timeout": snapshot.clock.seconds(service.persistence),
        "idle_timeout": snapshot.clock.seconds(service.idle),
        "forwarding": service.forwarding.name(),
        "udp": service.is_udp,
        "by_prefix": service.by_prefix,
        "scheduler": service.scheduler.name(),
        "mss_clamp": service.mss_clamp.to_string(),
        "raw": hex_of(&load(slot)),
    }))
}

fn server(snapshot: &Snapshot<'_>, index: usize, slot: &[Word; 4]) -> Option<Value> {
    let words = load(slot);
    let server = Server::from_words(words);
    if !server.state.has(ServerState::PRESENT) {
        return None;
    }
    let bits: Vec<&str> = [
        (ServerState::REACHABLE, "reachable"),
        (ServerState::TAKES_NEW, "takes-new"),
        (ServerState::TAKES_KNOWN, "takes-known"),
        (ServerState::RESETS, "resets"),
        (ServerState::SAME_PORT, "same-port"),
    ]
    .into_iter()
    .filter_map(|(bit, name)| server.state.has(bit).then_some(name))
    .collect();
    Some(json!({
        "index": index,
        "service": snapshot.names.service_label(server.service),
        "server": snapshot.names.server_label(u16::try_from(index).ok()?),
        "address": IpAddr::from(server.address),
        "port": u16::from_be(server.port),
        "endpoint": server.endpoint,
        "forwarding": server.forwarding.name(),
        "arm": server.arm,
        "mac": mac(server.mac),
        "bits": bits,
        "raw": hex_of(&words),
    }))
}

const fn slot_state(state: SlotState) -> &'static str {
    match state {
        SlotState::Free => "free",
        SlotState::Claimed => "claimed",
        SlotState::Pending => "pending",
        SlotState::Live => "live",
    }
}

fn flow_slot(snapshot: &Snapshot<'_>, index: usize, slot: &FlowSlot) -> Option<Value> {
    let (life, words) = (slot.life(), slot.read());
    if life.state() == SlotState::Free {
        return None;
    }
    let flow = Flow::unpack(&words, life);
    let snat = flow::snat(snapshot.maps(), &flow.to);
    let raw: Vec<u64> = [life.word()].into_iter().chain(words).collect();
    Some(json!({
        "index": index,
        "slot": slot_state(life.state()),
        "version": life.version(),
        "service": snapshot.names.service_label(flow.key.service),
        "client": IpAddr::from(flow.key.client),
        "client_port": u16::from_be(flow.key.client_port),
        "service_port": u16::from_be(flow.key.service_port),
        "server": snapshot.names.server_label(flow.to.server),
        "endpoint": flow.to.endpoint,
        "snat_address": snat.map(|snat| snat.ip()),
        "snat_port": snat.map(|snat| snat.port()),
        "state": flow::word(flow.state),
        "client_sequence": flow.sequences.client,
        "server_sequence": flow.sequences.server,
        "return_hop": mac(flow.return_hop),
        "arm": flow.arm,
        "made_at": snapshot.clock.at(flow.sticky.made_at),
        "sticky_slot": flow.sticky.record.map(|record| record.slot),
        "deadline": snapshot.clock.at(flow.deadline),
        "expired": flow.deadline.is_past(snapshot.clock.now),
        "raw": hex_of(&raw),
    }))
}

fn sticky(snapshot: &Snapshot<'_>, index: usize, slot: &StickySlot) -> Option<Value> {
    let (life, words) = (slot.life(), slot.read());
    if life.state() == SlotState::Free {
        return None;
    }
    let record = Sticky::unpack(&words, life);
    let raw: Vec<u64> = [life.word()].into_iter().chain(words).collect();
    Some(json!({
        "index": index,
        "slot": slot_state(life.state()),
        "version": life.version(),
        "service": snapshot.names.service_label(record.to.service),
        "client": IpAddr::from(record.client),
        "server": snapshot.names.server_label(record.to.server),
        "flows": record.flows,
        "made_at": snapshot.clock.at(record.to.made_before(snapshot.clock.now)),
        "deadline": snapshot.clock.at(record.deadline),
        "expired": record.flows == 0 && record.deadline.is_past(snapshot.clock.now),
        "verified": record.to.verified,
        "raw": hex_of(&raw),
    }))
}

/// The (source address, endpoint) pair of a cell or cursor.
fn pair(snapshot: &Snapshot<'_>, pair: usize) -> (usize, Option<IpAddr>) {
    let control = snapshot.maps().control();
    let rows = usize::from(Snat::from_word(control.snat.load()).rows()).max(1);
    let (endpoint, source) = (pair / rows, u8::try_from(pair % rows).unwrap_or(0));
    let servers = snapshot.names.servers();
    let like = servers
        .into_iter()
        .filter_map(|(id, _)| snapshot.maps().servers.present(id))
        .find(|server| usize::from(server.endpoint) == endpoint);
    (endpoint, like.and_then(|server| flow::source(control, source, server.address)))
}

fn port_cell(snapshot: &Snapshot<'_>, index: usize, word: &Word) -> Option<Value> {
    let value = word.load();
    if value == 0 {
        return None;
    }
    let snat = Snat::from_word(snapshot.maps().control().snat.load());
    let ports = (snat.ports as usize).max(1);
    let (endpoint, source) = pair(snapshot, index / ports);
    let cell = PortCell::from_word(value);
    let (owner, slot) = match cell.owner {
        Owner::Free => ("free", None),
        Owner::HalfOpen(slot) => ("half-open", Some(slot)),
        Owner::Flow(slot) => ("flow", Some(slot)),
    };
    Some(json!({
        "index": index,
        "endpoint": endpoint,
        "snat_address": source,
        "snat_port": usize::from(snat.first_port) + index % ports,
        "owner": owner,
        "slot": slot,
        "since": snapshot.clock.at(cell.stamp),
        "raw": hex_of(&[value]),
    }))
}

fn port_cursor(snapshot: &Snapshot<'_>, index: usize, word: &Word) -> Option<Value> {
    let value = word.load();
    if value == 0 {
        return None;
    }
    let (endpoint, source) = pair(snapshot, index);
    Some(json!({
        "index": index,
        "endpoint": endpoint,
        "snat_address": source,
        "next": value,
        "raw": hex_of(&[value]),
    }))
}

fn server_load(snapshot: &Snapshot<'_>, index: usize, slot: &LoadSlot) -> Option<Value> {
    let words = [0, 1].map(|word: usize| slot[word].load());
    let Load { open, weight } = Load::read(slot);
    (words != [0, 0]).then(|| {
        json!({
            "index": index,
            "server": snapshot.names.server_label(u16::try_from(index).unwrap_or(u16::MAX)),
            "open": open,
            "weight": weight,
            "raw": hex_of(&words),
        })
    })
}

fn tags(index: usize, word: &Word) -> Option<Value> {
    let value = word.load();
    (value != 0).then(|| {
        json!({
            "index": index,
            "first_slot": index * BUCKET as usize,
            "tags": tags_of(value).map(|tag| format!("{tag:04x}")),
            "raw": hex_of(&[value]),
        })
    })
}

fn turns(snapshot: &Snapshot<'_>, index: usize, word: &Word) -> Option<Value> {
    let value = word.load();
    (value != 0).then(|| {
        json!({
            "index": index,
            "service": snapshot.names.service_label(u16::try_from(index).unwrap_or(u16::MAX)),
            "turns": value,
            "raw": hex_of(&[value]),
        })
    })
}

fn latest_pick(snapshot: &Snapshot<'_>, index: usize, word: &Word) -> Option<Value> {
    let value = word.load();
    #[expect(clippy::cast_possible_truncation, reason = "the server is the low 16 bits")]
    let server = value as u16;
    (value != 0).then(|| {
        json!({
            "index": index,
            "server": snapshot.names.server_label(server),
            "raw": hex_of(&[value]),
        })
    })
}

fn schedule(snapshot: &Snapshot<'_>, id: u16, values: &[u64]) -> Value {
    let table = Table::from_values(values);
    let mut places: BTreeMap<String, u64> = BTreeMap::new();
    for place in table.iter().flat_map(Table::places) {
        let name = if *place == NOBODY { "(nobody)".to_owned() } else { snapshot.names.server_label(*place) };
        *places.entry(name).or_default() += 1;
    }
    json!({
        "index": id,
        "service": snapshot.names.service_label(id),
        "size": table.map(|table| table.size()),
        "places": places,
        "raw": hex_of(values),
    })
}

fn reason(index: usize, counters: &[u64]) -> Option<Value> {
    let reason = Reason::ALL.get(index)?;
    let packets = counters.get(index)?;
    Some(json!({
        "index": index,
        "reason": reason.label(),
        "packets": packets,
        "done": done(*reason),
        "description": reason.description(),
    }))
}

fn traffic(index: usize, what: &str, name: &str, traffic: &Traffic) -> Value {
    json!({
        "index": index,
        what: name,
        "packets_in": traffic.packets_in,
        "bytes_in": traffic.bytes_in,
        "packets_out": traffic.packets_out,
        "bytes_out": traffic.bytes_out,
        "flows": traffic.flows,
        "resets": traffic.resets,
    })
}

fn service_info(snapshot: &Snapshot<'_>, index: usize) -> Option<Value> {
    let info = snapshot.names.service_info(u16::try_from(index).ok()?)?;
    Some(json!({
        "index": index,
        "label": text(&info.label),
        "address": ip(info.address),
        "port": info.port,
        "protocol": info.protocol,
        "forwarding": info.forwarding,
        "persistence_ms": info.persistence_ms,
        "idle_ms": info.idle_ms,
        "since": Time::from_unix(info.since),
    }))
}

fn server_info(snapshot: &Snapshot<'_>, index: usize) -> Option<Value> {
    let info = snapshot.names.server_info(u16::try_from(index).ok()?)?;
    Some(json!({
        "index": index,
        "label": text(&info.label),
        "service": snapshot.names.service_label(info.service),
        "address": IpAddr::from(Address(info.address)),
        "port": info.port,
        "weight": info.weight,
        "state": AdminState::from_number(info.state),
        "health": Health::from_number(info.health),
        "no_verdict": info.health & ServerInfo::NO_VERDICT != 0,
        "health_reason": text(&info.health_reason),
        "health_since": Time::from_unix(info.health_since),
        "certificate_expires": Time::from_unix(info.certificate_expires),
    }))
}

fn load(slot: &[Word; 4]) -> [u64; 4] {
    [slot[0].load(), slot[1].load(), slot[2].load(), slot[3].load()]
}
