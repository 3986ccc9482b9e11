//! Properties over many configurations: what is written is read back as the same; nothing panics.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lb_common::mss::MssClamp;
use proptest::collection::{hash_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::{
    AddressConflict, Config, Forwarding, HealthCheck, HealthKind, Label, Node, OnDown, Persistence,
    PortRange, Protocol, Scheduler, Scope, Server, Service, StatusRange, Tables, XdpMode, check, diff, parse,
};
use crate::health::{Verify, spec};

const EXAMPLE: &str = include_str!("../../../docs/examples/steadfast.yaml");

/// The example of the design, word for word.
const DESIGN: &str = "\
version: 1
node:
  interfaces: [eth0]            # where the XDP program attaches
  xdp_mode: auto                # auto | native | generic
  snat_addresses: []            # default: the interface's own primary address of the family
virtual_services:
  - label: Hyperspace
    address: 192.168.85.150     # the daemon adds it to the interface
    ports: [443]
    protocol: tcp               # tcp | http
    forwarding: snat            # snat | nat | dr | tunnel
    scheduler: source-hash
    persistence: { mode: source-ip, timeout: 60m }   # mode none is allowed; a bare number is minutes
    health_check: { kind: tcp, interval: 2s, timeout: 1s, fall: 3, rise: 2, answer_first: true }
    real_servers:
      - { label: Hyperspace_Srv_1, address: 192.168.85.200, weight: 100 }   # port: the service's own
      - { label: Hyperspace_Srv_2, address: 192.168.85.201 }
  - label: Hyperspace_redirect
    address: 192.168.85.150
    ports: [80]
    protocol: http
    force_https: true           # 301, same host, path and query
";

/// [`DESIGN`] with every value in force.
const DESIGN_IN_FORCE: &str = "\
version: 1
node:
  interfaces: [eth0]
  xdp_mode: auto
  snat_addresses: []
  snat_ports: 1024-32767
  tables: { flows: 262144, sticky: 262144, half_open: 65536, endpoints: 256 }
virtual_services:
  - label: Hyperspace
    address: 192.168.85.150
    ports: [443]
    protocol: tcp
    force_https: false
    forwarding: snat
    scheduler: source-hash
    persistence: { mode: source-ip, timeout: 1h }
    idle_timeout: 1d
    mss_clamp: none
    on_down: reset
    health_check: { kind: tcp, interval: 2s, timeout: 1s, fall: 3, rise: 2, answer_first: true }
    real_servers:
      - { label: Hyperspace_Srv_1, address: 192.168.85.200, port: 443, weight: 100 }
      - { label: Hyperspace_Srv_2, address: 192.168.85.201, port: 443, weight: 100 }
  - label: Hyperspace_redirect
    address: 192.168.85.150
    ports: [80]
    protocol: http
    force_https: true
";

#[test]
fn the_design_s_example_is_read_with_its_defaults() {
    let config = parse("design", DESIGN).unwrap();
    let service = config.service("Hyperspace").unwrap();
    assert_eq!(service.persistence, Persistence::default());
    assert_eq!(service.idle_timeout, Duration::from_secs(24 * 3600));
    let server = service.server("Hyperspace_Srv_2").unwrap();
    assert_eq!((server.port, server.weight), (443, 100));
    assert!(config.service("Hyperspace_redirect").unwrap().force_https);
    assert_eq!(config.to_yaml(), DESIGN_IN_FORCE);
}

#[test]
fn the_shipped_example_is_the_guide_s_four_services_without_a_warning() {
    let checked = check("example", EXAMPLE).unwrap();
    assert_eq!(checked.warnings, []);
    let of = |service: &Service| {
        let servers: Vec<String> =
            service.real_servers.iter().map(|server| server.address.to_string()).collect();
        format!("{} {}:{} {}", service.label, service.address, service.ports[0], servers.join(" "))
    };
    assert_eq!(
        checked.config.services.iter().map(of).collect::<Vec<_>>(),
        [
            "Hyperspace 192.168.85.150:443 192.168.85.200 192.168.85.201 192.168.85.202",
            "Hyperspace_redirect 192.168.85.150:80 ",
            "MyChart 192.168.85.151:443 192.168.85.210 192.168.85.211",
            "MyChart_redirect 192.168.85.151:80 ",
        ]
    );
}

#[test]
fn a_bare_number_is_minutes_for_persistence_and_seconds_elsewhere() {
    let text = DESIGN.replace("60m }", "90 }\n    idle_timeout: 90").replace("interval: 2s", "interval: 5");
    let service = &parse("f", &text).unwrap().services[0];
    assert_eq!(
        service.persistence,
        Persistence::SourceIp {
            timeout: Duration::from_secs(90 * 60),
            ipv6_prefix: 128,
            scope: Scope::Service
        }
    );
    assert_eq!(service.idle_timeout, Duration::from_secs(90));
    assert_eq!(service.health_check.interval, Duration::from_secs(5));
}

#[test]
fn labels_that_yaml_takes_for_something_else_keep_their_spelling() {
    for label in ["no", "1", "0x10", "1_000", "1e3", "TRUE", "-1", "2024-01-01"] {
        let config = parse("f", &DESIGN.replace("Hyperspace_redirect", label)).unwrap();
        assert_eq!(config.services[1].label, label);
        assert_eq!(parse("f", &config.to_yaml()).unwrap(), config);
    }
}

#[test]
fn shared_sections_can_be_written_once_with_anchors_and_merges() {
    let text = DESIGN.replace("persistence: {", "persistence: &sticky {").replace(
        "    force_https: true",
        "    force_https: true\n    persistence: { <<: *sticky, timeout: 2h }",
    );
    let config = parse("f", &text).unwrap();
    assert_eq!(
        config.services[1].persistence,
        Persistence::SourceIp { timeout: Duration::from_secs(7200), ipv6_prefix: 128, scope: Scope::Service }
    );
}

#[test]
fn json_has_the_file_s_shape_with_durations_in_seconds() {
    let json = serde_json::to_value(parse("f", DESIGN).unwrap()).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["node"]["snat_ports"], "1024-32767");
    let service = &json["virtual_services"][0];
    assert_eq!(
        service["persistence"],
        serde_json::json!({ "mode": "source-ip", "timeout": 3600, "ipv6_prefix": 128, "scope": "service" })
    );
    assert_eq!(service["health_check"]["interval"], 2);
    assert_eq!(service["real_servers"][1]["weight"], 100);
}

fn millis(range: std::ops::RangeInclusive<u64>) -> impl Strategy<Value = Duration> {
    prop_oneof![
        range.clone().prop_map(Duration::from_millis),
        Just(Duration::from_millis(*range.start())),
        Just(Duration::from_millis(*range.end())),
    ]
}

const DAYS_30: u64 = 30 * 86_400_000;

fn label() -> impl Strategy<Value = Label> {
    const WORDS: &[&str] = &["no", "Yes", "null", "true", "1", "0x1F", "1e3", "-", "---", "...", ".inf", "y"];
    prop_oneof![4 => "[A-Za-z0-9_.-]{1,63}", 1 => select(WORDS).prop_map(str::to_owned)]
        .prop_map(|text| text.parse().unwrap())
}

fn node() -> impl Strategy<Value = Node> {
    let conflict = AddressConflict::WORDS.iter().map(|(_, conflict)| *conflict).collect::<Vec<_>>();
    let mode = XdpMode::WORDS.iter().map(|(_, mode)| *mode).collect::<Vec<_>>();
    let name =
        "[A-Za-z0-9_@.,#*'\"-]{1,15}".prop_filter("not a directory", |name| name != "." && name != "..");
    let ports = (1024u16..=65472, 63u16..).prop_map(|(first, more)| (first, first.saturating_add(more)));
    let tables = (10u32..=24, 10u32..=24, 10u32..=22, 6u32..=12);
    (name, (select(mode), select(conflict)), 0u8..=8, ports, tables).prop_map(
        |(name, (xdp_mode, address_conflict), sources, (first, last), tables)| Node {
            interfaces: vec![name],
            xdp_mode,
            address_conflict,
            snat_addresses: (0..sources).map(|host| IpAddr::from([10, 0, 0, host])).collect(),
            snat_ports: PortRange { first, last },
            tables: Tables {
                flows: 1 << tables.0,
                sticky: 1 << tables.1,
                half_open: 1 << tables.2,
                endpoints: 1 << tables.3,
            },
        },
    )
}

fn persistence() -> impl Strategy<Value = Persistence> {
    let scope = select(vec![Scope::Service, Scope::Port]);
    (option::of(millis(1_000..=DAYS_30)), scope).prop_map(|(timeout, scope)| {
        timeout.map_or(Persistence::None, |timeout| Persistence::SourceIp { timeout, ipv6_prefix: 64, scope })
    })
}

fn health_check() -> impl Strategy<Value = HealthCheck> {
    let kinds = HealthKind::WORDS.iter().map(|(_, kind)| *kind).collect::<Vec<_>>();
    let status = (100u16..=599, 0u16..=499)
        .prop_map(|(first, more)| StatusRange { first, last: (first + more).min(599) });
    let times = millis(100..=3_600_000).prop_flat_map(|interval| {
        let most = u64::try_from(interval.as_millis()).unwrap();
        (Just(interval), millis(10..=most))
    });
    let counts = (1u32..=100, 1u32..=100, option::of(1u16..));
    let path = "/[!-\"$-~]{0,40}".prop_filter("a path", |path| spec::parse_path(path).is_ok());
    let http = (path, vec(status, 1..4), option::of(".{1,40}"));
    let name = "[A-Za-z0-9_]{1,9}([._-][A-Za-z0-9]{1,9}){0,4}[.]?";
    let name = name.prop_filter("a host name", |name| spec::TlsName::new(name).is_ok());
    let host = prop_oneof![name, r"\[2001:db8::[1-9a-f]{1,4}\]"];
    let verify = prop_oneof![
        Just(Verify::None),
        Just(Verify::System),
        "/[ -~]{1,20}".prop_map(|path| Verify::File(path.into())),
    ];
    (select(kinds), times, counts, (option::of(host), verify), (http, any::<bool>())).prop_map(
        |(
            kind,
            (interval, timeout),
            (fall, rise, port),
            (host, verify),
            ((path, expect_status, expect_body), first),
        )| {
            let answer_first = first || kind == HealthKind::None;
            let times = HealthCheck { interval, timeout, fall, rise, ..HealthCheck::default() };
            let common = HealthCheck { kind, port, answer_first, ..times };
            match kind {
                HealthKind::Tcp | HealthKind::None => common,
                HealthKind::Tls => HealthCheck { host, verify, ..common },
                HealthKind::Http => HealthCheck { host, path, expect_status, expect_body, ..common },
                HealthKind::Https => HealthCheck { host, verify, path, expect_status, expect_body, ..common },
            }
        },
    )
}

/// Labels and addresses are made unique by [`config`].
fn service() -> impl Strategy<Value = Service> {
    let server = (label(), 1u16.., 0..=Server::MAX_WEIGHT).prop_map(|(label, port, weight)| Server {
        label,
        address: Ipv4Addr::UNSPECIFIED.into(),
        port,
        same_port: false,
        weight,
    });
    let on_down = select(vec![OnDown::Reset, OnDown::Keep]);
    let rest = (persistence(), millis(1_000..=DAYS_30), on_down, health_check(), vec(server, 0..6));
    let ports = hash_set(prop_oneof![1u16.., 440u16..450], 1..6).prop_map(Vec::from_iter);
    (label(), ports, any::<bool>(), any::<bool>(), rest).prop_map(
        |(
            label,
            ports,
            http,
            plain,
            (persistence, idle_timeout, on_down, health_check, mut real_servers),
        )| {
            // A server of an even port number is reached at each of the service's.
            for server in real_servers.iter_mut().filter(|server| ports.len() > 1 && server.port % 2 == 0) {
                (server.port, server.same_port) = (ports[0], true);
            }
            let (protocol, real_servers) =
                if http { (Protocol::Http, Vec::new()) } else { (Protocol::Tcp, real_servers) };
            let port_count = ports.len();
            let service = Service {
                label,
                address: Ipv4Addr::UNSPECIFIED.into(),
                ports,
                protocol,
                forwarding: Forwarding::Snat,
                scheduler: Scheduler::WORDS[port_count % Scheduler::WORDS.len()].1,
                persistence: Persistence::default(),
                idle_timeout: Service::IDLE_TIMEOUT,
                slow_start: Duration::from_secs(port_count.saturating_sub(2) as u64 * 59),
                mss_clamp: [MssClamp::None, MssClamp::Auto, MssClamp::Bytes(1360)][port_count % 3],
                on_down: OnDown::default(),
                health_check: HealthCheck::default(),
                force_https: http,
                real_servers,
            };
            if plain {
                service
            } else {
                Service { persistence, idle_timeout, on_down, health_check, ..service }
            }
        },
    )
}

fn config() -> impl Strategy<Value = Config> {
    (node(), vec(service(), 0..6)).prop_map(|(node, mut services)| {
        unique(services.iter_mut().map(|service| &mut service.label).collect());
        for (index, service) in (1..).zip(&mut services) {
            let v6 = index % 2 == 0;
            service.address = if v6 {
                [0x2001, 0xdb8, 0, 0, u16::from(index) << 8, 0, 0, 0].into()
            } else {
                IpAddr::from([192, 0, 2, index])
            };
            unique(service.real_servers.iter_mut().map(|server| &mut server.label).collect());
            for (host, server) in (1..).zip(&mut service.real_servers) {
                server.address = if v6 {
                    [0x2001, 0xdb8, 1, 0, u16::from(index), 0, 0, u16::from(host)].into()
                } else {
                    IpAddr::from([198, 51, index, host])
                };
            }
        }
        Config { node, services }
    })
}

fn unique(labels: Vec<&mut Label>) {
    let mut seen = std::collections::HashSet::new();
    for (index, label) in labels.into_iter().enumerate() {
        if !seen.insert(label.clone()) {
            *label = format!("unique.{index}").parse().unwrap();
            seen.insert(label.clone());
        }
    }
}

proptest! {
    #[test]
    fn whatever_check_is_taken_the_checker_can_make(
        kind in select(vec!["http", "https"]), host in "[a-zA-Z0-9._-]{1,20}|[!-~]{1,12}", path in "/[ -~]{0,12}",
    ) {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let text = DESIGN.replace("kind: tcp", &format!("kind: {kind}, host: {}, path: {}", quoted(&host), quoted(&path)));
        if let Ok(config) = parse("f", &text) {
            prop_assert!(spec::from_config(&config.services[0].health_check, None).is_ok());
        }
    }

    #[test]
    fn what_is_written_is_read_back_as_the_same(config in config()) {
        let yaml = config.to_yaml();
        match parse("written", &yaml) {
            Ok(read) => prop_assert_eq!(read, config),
            Err(errors) => prop_assert!(false, "{errors}\n{yaml}"),
        }
    }

    #[test]
    fn two_configurations_without_a_difference_are_the_same(a in config(), b in config()) {
        prop_assert_eq!(diff(&a, &a.clone()), []);
        prop_assert_eq!(diff(&a, &b).is_empty(), a == b);
    }

    #[test]
    fn no_change_of_one_configuration_into_another_goes_unseen(old in config(), pick in any::<Index>(), to in service()) {
        if old.services.is_empty() {
            return Ok(());
        }
        let mut new = old.clone();
        let service = pick.get(&old.services);
        let changed = new.services.iter_mut().find(|other| other.label == service.label).unwrap();
        *changed = Service { label: service.label.clone(), ..to };
        prop_assert_eq!(diff(&old, &new).is_empty(), old == new);
    }

    #[test]
    fn arbitrary_text_is_answered_not_panicked_at(text in "\\PC{0,300}") {
        prop_assert!(parse("f", &text).is_err());
    }

    #[test]
    fn arbitrary_bytes_of_yaml_s_own_alphabet_are_answered(text in "[-a-c0-2:,&*!|>%@?#'\"{}\\[\\]~ \n\t\\\\]{0,200}") {
        prop_assert!(parse("f", &text).is_err());
    }

    #[test]
    fn a_mutilated_configuration_is_answered_within_its_lines(
        edits in vec((any::<Index>(), 0usize..12, "[-a-z0-9:,&*!|>{}\\[\\]~ \n\t\"']{0,6}"), 1..6)
    ) {
        let mut text = DESIGN.to_owned();
        for (place, remove, insert) in edits {
            let start = place.index(text.len());
            let end = (start + remove).min(text.len());
            text.replace_range(start..end, &insert);
        }
        if let Err(errors) = parse("f", &text) {
            let lines = u64::try_from(text.lines().count()).unwrap() + 1;
            prop_assert!(!errors.problems().is_empty());
            for problem in errors.problems() {
                prop_assert!((1..=lines).contains(&problem.line) && problem.column >= 1, "{problem}");
            }
        }
    }
}
