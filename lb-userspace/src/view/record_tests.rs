//! What the records and tables say of maps filled by hand.

use lb_common::{
    clock::Ticks,
    control::Snat,
    ports::{Owner, PortCell},
    server::{ServerState, Servers as _},
    tcp::TcpState,
};
use serde_json::{Value, json};

use super::{
    Snapshot, flow, map,
    ports::SnatPorts,
    rates,
    server::{self, ServerRecord},
    service, stats, sticky,
    testing::{Builder, DOWN, DRAINING, HOUR, UP, address, wall},
};

/// The example at 3 a.m.: server 3 drains, server 2 is down, clients and flows.
fn night() -> Builder {
    let builder = Builder::example();
    builder.change(3, DRAINING, |info| info.state = 2);
    builder.change(2, DOWN, |info| {
        info.health = 2;
        info.health_since += 3600 - 190;
        info.health_reason[..18].copy_from_slice(b"connection refused");
    });
    builder.sticky(0, address("10.0.0.1"), 1, 1, 56_250);
    builder.sticky(0, address("10.0.0.2"), 3, 0, 28_125);
    builder.sticky(0, address("10.0.0.3"), 3, 2, 56_250);
    builder.sticky(0, address("10.0.0.4"), 3, 0, -1);
    builder.flow(0, "10.0.0.1", 50_001, 1, TcpState::Established);
    builder.flow(0, "10.0.0.3", 50_002, 3, TcpState::Established);
    builder.flow(0, "10.0.0.3", 50_003, 3, TcpState::ClientFin);
    builder.flow(0, "10.0.0.3", 50_004, 3, TcpState::TimeWait);
    builder.flow(0, "10.0.0.9", 50_005, 1, TcpState::SynSent);
    builder
}

fn servers(snapshot: &Snapshot<'_>) -> Vec<ServerRecord> {
    server::records(snapshot, &snapshot.census()).unwrap()
}

fn json_of(value: impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

#[test]
fn a_service_record_has_the_fields_of_the_contract() {
    let builder = night();
    let snapshot = builder.snapshot();
    let services = service::records(&snapshot, &snapshot.census(), &servers(&snapshot)).unwrap();
    assert_eq!(
        json_of(&services[0]),
        json!({
            "service": "Hyperspace", "address": "192.168.85.150", "ports": [443], "protocol": "tcp",
            "forwarding": "snat", "scheduler": "source-hash", "mss_clamp": "none", "connections": 3, "half_open": 1, "connections_total": 5, "resets": 6,
            "packets_in": 1, "packets_out": 3, "bytes_in": 2, "bytes_out": 4, "sticky_clients": 3,
            "persistence_timeout": 3600, "persistence_scope": "service", "idle_timeout": 10800, "servers": 3, "servers_taking_new": 1,
            "servers_down": 1, "servers_not_checked": 0, "listening": null, "listening_error": null, "id": 0,
        })
    );
    assert_eq!(services[1].protocol, "http");
    for field in ["forwarding", "scheduler", "mss_clamp"] {
        assert_eq!(json_of(&services[1])[field], Value::Null);
    }
}

#[test]
fn a_server_record_has_the_fields_of_the_contract() {
    let builder = night();
    assert_eq!(
        json_of(&servers(&builder.snapshot())[2]),
        json!({
            "service": "Hyperspace", "server": "Hyperspace_Srv_3", "address": "192.168.85.202", "port": 443,
            "weight": 100, "slow_start_percent": null, "state": "drain", "health": "up", "health_reason": null,
            "health_note": null, "health_since": "2026-03-01T02:00:00Z", "connections": 2, "half_open": 0, "connections_total": 305,
            "resets": 306, "packets_in": 301, "packets_out": 303, "bytes_in": 302, "bytes_out": 304,
            "sticky_clients": 2, "sticky_clients_idle": 1, "last_record_expires": "2026-03-01T03:30:00Z",
            "last_record_expires_in": 1800, "takes_new": false, "takes_known": true, "resets_flows": false,
            "reachable": true, "mac": "02:00:00:00:00:03", "certificate_expires": null, "no_verdict": null, "id": 3,
        })
    );
}

#[test]
fn ports_towards_a_server_are_in_use_or_rest_or_are_neither() {
    let builder = Builder::example();
    let cells = |stamp: u32, owner| PortCell { owner, stamp: Ticks(stamp) }.word();
    let snat = Snat::from_word(builder.maps.control().snat.load());
    let server = builder.maps.servers.present(2).unwrap();
    builder.maps.control().quarantine.store(1000);
    let now = builder.snapshot().clock.now.0;
    let first = snat.range(server.endpoint, 0).index(0);
    let stored = [
        cells(now, Owner::Flow(1)),
        cells(now, Owner::HalfOpen(2)),
        cells(now - 999, Owner::Free),
        cells(now - 1000, Owner::Free),
    ];
    for (offset, cell) in stored.into_iter().enumerate() {
        builder.maps.port_cells[first as usize + offset].store(cell);
    }
    let all = snat.ports * u32::from(snat.sources);
    let shown = SnatPorts::towards(&builder.snapshot(), 2);
    assert_eq!(shown, Some(SnatPorts { all, in_use: 2, resting: 1 }));
    let mut server = servers(&builder.snapshot())[1].clone();
    server.snat_ports = shown;
    let line = format!("SNAT ports            2 of {all} in use, 1 rest after their connection\n");
    assert!(server::detail(&server).contains(&line), "{}", server::detail(&server));
}

#[test]
fn a_server_that_grows_says_how_much_of_its_weight_it_has() {
    let builder = Builder::example();
    let shown = |weight: u64| {
        builder.maps.server_loads[1][lb_common::schedule::WEIGHT_WORD].store(weight);
        let server = servers(&builder.snapshot())[0].clone();
        (server.slow_start_percent, server.note())
    };
    assert_eq!(shown(100_000), (None, None));
    let note = "Hyperspace/Hyperspace_Srv_1: slow start, 32 % of its weight now";
    assert_eq!(shown(32_500), (Some(32), Some(note.to_owned())));
}

#[test]
fn the_overview_says_what_is_wrong_and_who_is_left() {
    let builder = night();
    let snapshot = builder.snapshot();
    let servers = servers(&snapshot);
    let services = service::records(&snapshot, &snapshot.census(), &servers).unwrap();
    assert_eq!(
        service::overview(&services, &servers),
        "\
SERVICE              ADDRESS             PROTOCOL  SERVERS            CONNECTIONS  HALF-OPEN  CLIENTS       IN      OUT
Hyperspace           192.168.85.150:443  tcp snat  1 of 3 take new              3          1        3      2 B      4 B
Hyperspace_redirect  192.168.85.150:80   http      redirect to https            -          -        -        -        -
MyChart              192.168.85.151:443  tcp snat  2 of 2 take new              0          0        0  2.00 kB  2.00 kB

Hyperspace/Hyperspace_Srv_2: down since 2026-03-01T02:56:50Z (3m 10s): connection refused
Hyperspace/Hyperspace_Srv_3: draining, 2 connections and 2 clients left, the last idle one's record expires at \
2026-03-01T03:30:00Z (in 30m) if nobody reconnects
"
    );
    let table = server::overview(&servers[1..3]);
    assert!(
        table.starts_with(
            "\
SERVER                       ADDRESS             WEIGHT  STATE   HEALTH  SINCE   CONNECTIONS  CLIENTS     IN    OUT
Hyperspace/Hyperspace_Srv_2  192.168.85.201:443     100  online  down    3m 10s            0        0  202 B  204 B
Hyperspace/Hyperspace_Srv_3  192.168.85.202:443     100  drain   up      1h                2        2  302 B  304 B
"
        ),
        "{table}"
    );
    assert!(server::detail(&servers[2]).contains("next hop              02:00:00:00:00:03\n"));
    assert!(service::detail(&services[0], &servers).contains("kept for 1h after its last connection"));
    assert!(service::detail(&services[0], &servers).contains("\nscheduler     source-hash\n"));
    assert!(service::detail(&services[0], &servers).contains("\nmss clamp     none\n"));
}

#[test]
fn a_server_that_is_not_checked_is_said_to_be_so_everywhere() {
    let builder = Builder::example();
    builder.change(2, UP, |info| {
        info.health = 3;
        info.health_reason[..31].copy_from_slice(b"no health check is configured\0\0");
    });
    let snapshot = builder.snapshot();
    let servers = servers(&snapshot);
    assert_eq!(json_of(&servers[1])["health"], "not checked");
    let note = "Hyperspace/Hyperspace_Srv_2: not checked, and counts as up: no health check is configured";
    assert_eq!(servers[1].note().as_deref(), Some(note));
    assert!(server::overview(&servers).contains("  not checked  "), "{}", server::overview(&servers));
    let services = service::records(&snapshot, &snapshot.census(), &servers).unwrap();
    assert_eq!((services[0].servers_not_checked, services[0].servers_down), (1, 0));
    assert!(service::overview(&services, &servers).contains(note));
    let stats = stats::Stats::read(&snapshot).unwrap();
    let rates = rates::Rates::between(&stats, &stats, std::time::Duration::from_secs(1));
    assert_eq!(rates.servers[1].health, Some("not checked"), "as top shows it");
}

#[test]
fn what_is_to_be_known_of_a_server_that_is_up_is_said_beside_its_health() {
    let builder = Builder::example();
    builder.change(2, UP, |info| {
        info.health = 4;
        info.health_reason[..9].copy_from_slice(b"TLS alert");
    });
    let server = &servers(&builder.snapshot())[1];
    let json = json_of(server);
    assert_eq!(
        (&json["health"], &json["health_note"], &json["health_reason"]),
        (&json!("up"), &json!("TLS alert"), &json!(null))
    );
    assert_eq!(server.note().as_deref(), Some("Hyperspace/Hyperspace_Srv_2: TLS alert"));
}

#[test]
fn a_redirect_whose_port_somebody_else_has_says_so_and_why() {
    let builder = Builder::example();
    let shown = |number: u32| {
        let mut info = builder.maps.service_info.read(1).unwrap();
        info.listening = number;
        assert!(builder.maps.service_info.write(1, info));
        let snapshot = builder.snapshot();
        let servers = servers(&snapshot);
        let services = service::records(&snapshot, &snapshot.census(), &servers).unwrap();
        (json_of(&services[1]), service::overview(&services, &[]))
    };
    let (json, text) = shown(1);
    assert_eq!((&json["listening"], &json["listening_error"]), (&json!(true), &json!(null)));
    assert!(text.contains("redirect to https") && !text.contains("not listening"), "{text}");
    let (json, text) = shown(2 | 98 << 16);
    let error = "Address already in use (os error 98)";
    assert_eq!((&json["listening"], &json["listening_error"]), (&json!(false), &json!(error)));
    let note = format!(
        "Hyperspace_redirect: not listening on 192.168.85.150:80, clients are not redirected: {error}; trying again (ss \
         -ltnp shows who listens there)\n"
    );
    assert!(text.ends_with(&note) && !text.contains("redirect to https"), "{text}");
}

#[test]
fn a_drained_server_without_clients_is_said_to_be_empty() {
    let builder = Builder::example();
    builder.change(3, DRAINING, |info| info.state = 2);
    let note = servers(&builder.snapshot())[2].note().unwrap();
    assert_eq!(note, "Hyperspace/Hyperspace_Srv_3: draining, nobody is left");
    builder.sticky(0, address("10.0.0.2"), 3, 0, 28_125);
    let note = servers(&builder.snapshot())[2].note().unwrap();
    assert!(
        note.ends_with(
            "0 connections and 1 client left, empty at 2026-03-01T03:30:00Z (in 30m) if nobody reconnects"
        ),
        "{note}"
    );
}

#[test]
fn nobody_is_waited_for_at_a_server_that_takes_nobody() {
    let builder = Builder::example();
    builder.change(3, ServerState::RESETS | ServerState::REACHABLE, |info| info.state = 3);
    builder.sticky(0, address("10.0.0.2"), 3, 0, 28_125);
    builder.sticky(0, address("10.0.0.3"), 3, 0, 28_125);
    let note = servers(&builder.snapshot())[2].note().unwrap();
    assert_eq!(
        note,
        "Hyperspace/Hyperspace_Srv_3: halted, empty; it takes no connection, also not of the 2 clients that have a \
         record of it"
    );
    builder
        .change(3, ServerState::RESETS | ServerState::REACHABLE, |info| (info.state, info.health) = (2, 2));
    let note = servers(&builder.snapshot())[2].note().unwrap();
    assert!(note.contains("draining, empty; it takes no connection, also not of the 2 clients"), "{note}");
}

/// The documents' table against what is printed and what is serialised, both ways round.
#[test]
fn the_documents_name_the_field_behind_each_heading() {
    let builder = night();
    let snapshot = builder.snapshot();
    let servers = servers(&snapshot);
    let services = service::records(&snapshot, &snapshot.census(), &servers).unwrap();
    let (records, total) = sticky::records(&snapshot, sticky::Filter::default(), None);
    let (flows, found) = flow::records(&snapshot, flow::Filter::default(), None);
    let views = [
        ("vip show", service::overview(&services, &servers), json_of(&services[0])),
        ("server show", server::overview(&servers), json_of(&servers[0])),
        ("sticky show", sticky::table(&records, total), json_of(&records[0])),
        ("flow show", flow::table(&flows, found), json_of(&flows[0])),
    ];
    let document = include_str!("../../../docs/reference/json.md");
    for (command, text, record) in views {
        let mut headings = Vec::new();
        for row in document.lines().filter_map(|line| line.strip_prefix(&format!("| `{command}` | "))) {
            let (heading, fields) = row.split_once(" | ").unwrap();
            headings.push(heading);
            for field in fields.split('`').skip(1).step_by(2) {
                assert!(record.get(field).is_some(), "{command} has no field {field}: {record}");
            }
        }
        // A heading has single spaces, and columns are two apart.
        let printed: Vec<&str> =
            text.lines().next().unwrap().split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(headings, printed, "{command}");
    }
}

#[test]
fn a_sticky_record_has_the_fields_of_the_contract() {
    let builder = night();
    let snapshot = builder.snapshot();
    let (records, total) = sticky::records(&snapshot, sticky::Filter::default(), None);
    assert_eq!(total, 3, "the expired one is no record");
    assert_eq!(
        json_of(&records[1]),
        json!({
            "service": "Hyperspace", "port": null, "client": "10.0.0.2", "server": "Hyperspace_Srv_3", "flows": 0,
            "made_at": "2026-03-01T02:49:59Z", "made_at_within": 5, "last_used": "2026-03-01T02:30:00Z",
            "expires_in": 1800, "verified": true,
        })
    );
    assert_eq!(json_of(&records[2])["expires_in"], Value::Null, "never while a flow is open");
    let drained = sticky::Filter { server: Some(3), ..sticky::Filter::default() };
    let (records, total) = sticky::records(&snapshot, drained, Some(1));
    assert_eq!((records.len(), total), (1, 2));
    assert!(sticky::table(&records, total).ends_with(
        "\na record was made at MADE AT or within the 5s after it\n1 of 2 records; --limit N shows more\n"
    ));
    assert_eq!(sticky::of_client(&snapshot, address("10.0.0.2")).len(), 1);
    assert!(sticky::of_client(&snapshot, address("10.0.0.4")).is_empty());
}

#[test]
fn a_flow_record_has_the_fields_of_the_contract() {
    let builder = night();
    let snapshot = builder.snapshot();
    let of_client = flow::Filter { client: Some(address("10.0.0.1")), ..flow::Filter::default() };
    let (records, total) = flow::records(&snapshot, of_client, None);
    assert_eq!(total, 1);
    assert_eq!(
        json_of(&records[0]),
        json!({
            "service": "Hyperspace", "client": "10.0.0.1", "client_port": 50_001, "service_port": 443,
            "server": "Hyperspace_Srv_1", "snat_address": "192.168.85.10", "snat_port": 1024 + 50_001 % 1024,
            "state": "established", "age": 64, "idle": 6, "expires_in": 10_794, "made_at": "2026-03-01T02:58:56Z",
            "sticky": false, "return_hop": "02:00:00:00:00:09",
        })
    );
    let closing = flow::Filter { state: Some(TcpState::ClientFin), ..flow::Filter::default() };
    assert_eq!(flow::records(&snapshot, closing, None).1, 1);
    assert_eq!(
        flow::records(&snapshot, flow::Filter { server: Some(3), ..flow::Filter::default() }, None).1,
        3
    );
    assert!(
        flow::table(&records, 1)
            .contains("10.0.0.1:50001  Hyperspace_Srv_1  192.168.85.10:1873  established")
    );
}

#[test]
fn flows_are_counted_by_what_they_are() {
    let builder = night();
    let count = flow::count(&builder.snapshot(), flow::Filter::default());
    assert_eq!((count.flows, count.open, count.half_open, count.closed), (5, 3, 1, 1));
    assert_eq!(count.states["client-fin"], 1);
    assert_eq!(flow::state("time-wait"), Ok(TcpState::TimeWait));
    assert!(flow::state("open").unwrap_err().contains("syn-sent, syn-received"));
}

#[test]
fn stats_have_the_fields_of_the_contract() {
    let builder = night();
    let stats = stats::Stats::read(&builder.snapshot()).unwrap();
    let json = json_of(&stats);
    assert_eq!(json["reasons"]["returned"], 3);
    assert_eq!(json["reasons"]["new-by-sticky"], 4);
    assert_eq!(json["reasons"]["no-neighbour"], 0);
    assert_eq!(json["services"].as_array().unwrap().len(), 3);
    assert_eq!(json["servers"][4]["server"], "MyChart_Srv_2");
    assert_eq!(
        json["tables"],
        json!([
            { "table": "flows", "capacity": 4096, "used": 4, "half_open": 0 },
            { "table": "half_open", "capacity": 4096, "used": 1, "half_open": 1 },
            { "table": "sticky", "capacity": 4096, "used": 3, "half_open": 0 },
        ])
    );
    let text = stats::text(&stats, false);
    assert!(text.contains("REASON         PACKETS  DONE\nreturned             3  transmit\n"), "{text}");
    assert!(stats::text(&stats, true).contains("From a real server, of a known flow."));
}

#[test]
fn rates_are_what_changed_a_second_and_a_cleared_counter_starts_anew() {
    let builder = night();
    let before = stats::Stats::read(&builder.snapshot()).unwrap();
    let mut after = before.clone();
    after.services[0].packets_in += 50;
    after.servers[1].packets_in += 50;
    after.servers[0].bytes_out = 7;
    let mut counters: Vec<u64> = before.reasons.iter().map(|(_, packets)| packets).collect();
    counters[6] += 5;
    after.reasons = stats::Reasons::new(counters);
    let mut rates = rates::Rates::between(&before, &after, std::time::Duration::from_secs(2));
    assert!((rates.services[0].packets_in - 25.0).abs() < f64::EPSILON);
    assert!((rates.servers[0].bytes_out - 3.5).abs() < f64::EPSILON, "{:?}", rates.servers[0]);
    assert_eq!(json_of(&rates.reasons), json!({ "returned": 2.5 }));
    rates.busiest_first();
    assert_eq!(rates.servers[0].server.as_deref(), Some("Hyperspace_Srv_2"));
    let text = rates::text(&rates, true, false);
    assert!(text.contains("Hyperspace/Hyperspace_Srv_2  down"), "{text}");
    assert!(!text.contains("REASON"), "{text}");
}

#[test]
fn a_silent_daemon_is_announced_with_when_it_was_last_seen() {
    let builder = Builder::example();
    assert_eq!(builder.snapshot().daemon.warning(), None);
    assert_eq!(builder.snapshot().daemon.pid, Some(4711));
    let control = builder.maps.control();
    control.heartbeat.store(control.heartbeat.load() - 300_000);
    assert_eq!(
        builder.snapshot().daemon.warning().as_deref(),
        Some(
            "daemon is not running (last seen 2026-03-01T02:54:59Z, 5m ago): health is as of then; traffic is still \
             forwarded"
        )
    );
    control.heartbeat.store(0);
    assert!(builder.snapshot().daemon.warning().unwrap().contains("never seen"));
}

#[test]
fn an_unknown_label_is_answered_with_the_known_ones_and_a_guess() {
    let builder = Builder::example();
    let names = builder.snapshot().names;
    let error = |result: anyhow::Result<(u16, u16)>| result.unwrap_err().to_string();
    assert_eq!(
        names.service_id("Hyperspcae").unwrap_err().to_string(),
        "there is no virtual service \"Hyperspcae\"; did you mean \"Hyperspace\"? known: Hyperspace, \
         Hyperspace_redirect, MyChart"
    );
    assert_eq!(
        error(names.server_id(&"MyChart/Srv_9".parse().unwrap())),
        "there is no real server of MyChart \"Srv_9\"; known: MyChart_Srv_1, MyChart_Srv_2"
    );
    assert_eq!(names.server_id(&"MyChart/MyChart_Srv_2".parse().unwrap()).unwrap(), (2, 5));
    assert_eq!(names.server_label(77), "#77");
}

#[test]
fn maps_that_are_not_set_up_or_of_another_layout_are_refused() {
    let builder = Builder::example();
    let refusal = || Snapshot::read(&builder.maps, wall()).err().map(|error| error.to_string());
    builder.maps.control().layout.store(0);
    assert!(refusal().unwrap().contains("not set up yet"));
    builder.maps.control().layout.store(99);
    assert!(refusal().unwrap().contains("layout version 99"));
    builder.maps.control().layout.store(lb_common::control::LAYOUT_VERSION);
    builder.maps.control().hz.store(0);
    assert!(refusal().unwrap().contains("hz is 0"));
}

#[test]
fn every_map_can_be_listed_dumped_and_looked_up() {
    let builder = night();
    builder.maps.port_cells[5].store(PortCell { owner: Owner::Flow(9), stamp: Ticks(100_000) }.word());
    builder.maps.port_cursors[2].store(17);
    let snapshot = builder.snapshot();
    let counts: Vec<(&str, usize)> = map::list(&builder.maps)
        .iter()
        .filter(|record| record.kind != "ringbuf" && record.users != "program")
        .map(|record| {
            let spec = map::named(&record.name.to_lowercase()).unwrap();
            (record.name, map::dump(&snapshot, spec, None).unwrap().len())
        })
        .collect();
    assert_eq!(
        counts,
        [
            ("CONTROL", 1),
            ("SERVICE_INDEX", 2),
            ("SERVICES", 2),
            ("SERVERS", 5),
            ("FLOWS", 4),
            ("HALF_OPEN", 1),
            // By bucket: two of the flows lie in one.
            ("FLOW_TAGS", 3),
            ("HALF_OPEN_TAGS", 1),
            ("STICKY", 4),
            ("PORT_CELLS", 1),
            ("PORT_CURSORS", 1),
            ("SCHEDULE", 2),
            ("SERVER_LOADS", 0),
            ("TURNS", 0),
            ("PICKS", 0),
            ("ARMS", 0),
            ("REASONS", lb_common::reason::REASONS),
            ("SERVICE_COUNTERS", 3),
            ("SERVER_COUNTERS", 5),
            ("SERVICE_INFO", 3),
            ("SERVER_INFO", 5),
        ]
    );
    let flows = &map::list(&builder.maps)[4];
    assert_eq!((flows.entries, flows.rows), (1024, 4));
}

fn look_up(builder: &Builder, name: &str, key: &str) -> anyhow::Result<Value> {
    map::lookup(&builder.snapshot(), map::named(name)?, key)
}

#[test]
fn an_entry_is_found_by_index_or_by_name_and_shows_its_bytes() {
    let builder = night();
    let by_name = look_up(&builder, "SERVERS", "Hyperspace/Hyperspace_Srv_2").unwrap();
    assert_eq!(by_name, look_up(&builder, "servers", "2").unwrap());
    assert_eq!(by_name["bits"], json!(["reachable", "resets"]));
    assert_eq!(by_name["port"], 443);
    let raw = "00000000000000000000ffffc0a855c9".to_owned() + "01bb020000000000" + "0200000000021300";
    assert_eq!(by_name["raw"], raw);
    assert_eq!(look_up(&builder, "REASONS", "returned").unwrap()["packets"], 3);
    assert_eq!(look_up(&builder, "SCHEDULE", "MyChart").unwrap()["size"], 4099);
    assert_eq!(look_up(&builder, "services", "MyChart").unwrap()["persistence_timeout"], 3600);
}

#[test]
fn ipv6_is_shown_as_text_everywhere_and_in_brackets_before_a_port() {
    let builder = Builder::new();
    builder.service(0, "Six", "2001:db8::150", HOUR);
    builder.server(1, 0, "Six_Srv_1", "2001:db8::200", UP);
    builder.schedule(0, &[1]);
    builder.sticky(0, address("2001:db8:1::7"), 1, 1, 10);
    builder.flow(0, "2001:db8:1::7", 50_000, 1, TcpState::Established);
    let snapshot = builder.snapshot();
    for (name, field, shown) in [
        ("SERVICE_INDEX", "address", "2001:db8::150"),
        ("SERVICES", "address", "2001:db8::150"),
        ("SERVICE_INFO", "address", "2001:db8::150"),
        ("SERVERS", "address", "2001:db8::200"),
        ("SERVER_INFO", "address", "2001:db8::200"),
        ("STICKY", "client", "2001:db8:1::7"),
        ("FLOWS", "client", "2001:db8:1::7"),
    ] {
        let entries = map::dump(&snapshot, map::named(name).unwrap(), None).unwrap();
        assert!(entries.iter().any(|entry| entry[field] == shown), "{name}: {entries:?}");
    }
    let (flows, total) = flow::records(&snapshot, flow::Filter::default(), None);
    let shown = flow::table(&flows, total);
    assert!(shown.contains("[2001:db8:1::7]:50000"), "{shown}");
}

#[test]
fn the_secrets_are_not_shown() {
    let builder = night();
    let control = look_up(&builder, "CONTROL", "0").unwrap();
    assert_eq!((&control["hash_key"], &control["maglev_seed"]), (&json!("secret"), &json!("secret")));
    assert!(control.get("raw").is_none());
    assert_eq!(control["snat_addresses"], json!(["192.168.85.10"]));
    assert_eq!(control["daemon"]["pid"], 4711);
}

#[test]
fn a_key_that_is_none_is_refused_with_what_to_do() {
    let builder = night();
    for (name, key, part) in [
        ("FLOW", "1", "did you mean FLOWS?"),
        ("FLOWS", "10.0.0.1", "steadfast flow show --client"),
        ("STICKY", "10.0.0.1", "steadfast sticky lookup"),
        ("SERVERS", "9999999", "has entries 0 to 8191"),
        ("SERVERS", "77", "entry 77 of SERVERS is not in use"),
        ("SERVICES", "Hyper", "known: Hyperspace"),
        ("AYA_LOGS", "0", "is a ring buffer"),
        ("CACHE", "0", "is the program's own"),
        ("CONTROL", "x", "is a number"),
        ("REASONS", "x", "known: not-ip, truncated"),
    ] {
        let error = look_up(&builder, name, key).unwrap_err().to_string();
        assert!(error.contains(part), "{name} {key}: {error}");
    }
}
