//! Every rule with the exact error it gives: a valid file, one change, the lines that must come out.

use super::{check, parse};

const VALID: &str = "\
version: 1
node:
  interfaces: [eth0]
virtual_services:
  - label: Web
    address: 192.0.2.10
    ports: [443]
    real_servers:
      - { label: a, address: 192.0.2.21 }
      - { label: b, address: 192.0.2.22 }
";

/// A second service to put after the first.
const REDIRECT: &str =
    "  - { label: Redirect, address: 192.0.2.10, ports: [80], protocol: http, force_https: true }\n";

fn changed(from: &str, to: &str) -> String {
    assert_eq!(VALID.matches(from).count(), 1, "{from:?} is to be found once");
    VALID.replace(from, to)
}

fn services() -> &'static str {
    &VALID[VALID.find("virtual_services").unwrap()..]
}

fn refuse(from: &str, to: &str, expected: &str) {
    let text = changed(from, to);
    match parse("f", &text) {
        Ok(config) => panic!("accepted as {config:?}:\n{text}"),
        Err(errors) => assert_eq!(errors.to_string(), expected, "for:\n{text}"),
    }
}

/// Each case: the text to replace, what with, and the errors that must come out, one a line.
macro_rules! refused {
    ($($from:expr => $to:literal: $errors:literal,)+) => { $(refuse($from, $to, $errors);)+ };
}

/// Each case: a health check for the service, the column in line 8 that is blamed, and the error.
macro_rules! health_check_refused {
    ($($check:literal @ $column:literal: $error:literal,)+) => {$(
        refuse(
            "    real_servers:",
            concat!("    health_check: ", $check, "\n    real_servers:"),
            concat!("f:8:", $column, ": ", $error),
        );
    )+};
}

fn accepted(text: &str) {
    if let Err(errors) = parse("f", text) {
        panic!("refused:\n{errors}\nfor:\n{text}");
    }
}

fn warnings(text: &str) -> Vec<String> {
    check("f", text).unwrap().warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn the_file_that_the_cases_change_is_valid_and_without_warnings() {
    assert_eq!(warnings(VALID), Vec::<String>::new());
    assert_eq!(warnings(&format!("{VALID}{REDIRECT}")), Vec::<String>::new());
}

#[test]
fn the_document_has_a_version_a_node_and_services() {
    refused! {
        VALID => "[1]":
            "f:1:1: the configuration is a mapping, not a list; write key: value pairs of version, node, virtual_services",
        VALID => "hello":
            "f:1:1: the configuration is a mapping, not a single value; write key: value pairs of version, node, virtual_services",
        "version: 1\n" => "":
            "f:1:1: the configuration has no \"version\"; write \"version: 1\"",
        "version: 1\n" => "version: 2\n":
            "f:1:10: version \"2\" is not known to this Steadfast; write \"version: 1\"",
        "version: 1\n" => "version:\n":
            "f:1:8: version is nothing; write \"version: 1\"",
        "node:\n  interfaces: [eth0]\n" => "":
            "f:1:1: the configuration has no \"node\"; add \"node: { interfaces: [eth0] }\" with the interface's name",
        services() => "":
            "f:1:1: the configuration has no \"virtual_services\"; list the virtual services, or write \"virtual_services: []\" for none",
        services() => "virtual_services:\n":
            "f:4:17: virtual_services has no value; list the virtual services, or write \"virtual_services: []\" for none",
        services() => "virtual_services: {}\n":
            "f:4:19: virtual_services is a mapping, not a list; list the virtual services, or write \"virtual_services: []\" for none",
    }
}

#[test]
fn unknown_and_repeated_keys_are_named_with_a_remedy() {
    refused! {
        "virtual_services:" => "virtual_servces:":
            "f:1:1: the configuration has no \"virtual_services\"; list the virtual services, or write \"virtual_services: []\" for none\n\
             f:4:1: unknown key \"virtual_servces\" in the configuration; did you mean \"virtual_services\"?",
        "    ports:" => "    wombat: 1\n    ports:":
            "f:7:5: unknown key \"wombat\" in a virtual service; a virtual service takes label, address, ports, protocol, forwarding, scheduler, persistence, idle_timeout, slow_start, mss_clamp, on_down, health_check, force_https, real_servers",
        "    ports:" => "    helth_check: {}\n    ports:":
            "f:7:5: unknown key \"helth_check\" in a virtual service; did you mean \"health_check\"?",
        "192.0.2.21 }" => "192.0.2.21, wieght: 1 }":
            "f:9:42: unknown key \"wieght\" in a real server; did you mean \"weight\"?",
        "    ports:" => "    label: Other\n    ports:":
            "f:7:5: key \"label\" is given twice in a virtual service; keep one (the first is on line 5)",
        "    ports:" => "    [x]: 1\n    ports:":
            "f:7:5: a key of a virtual service is a list; a virtual service takes label, address, ports, protocol, forwarding, scheduler, persistence, idle_timeout, slow_start, mss_clamp, on_down, health_check, force_https, real_servers",
        "  interfaces:" => "  tables: { flow: 1024 }\n  interfaces:":
            "f:3:13: unknown key \"flow\" in tables; did you mean \"flows\"?",
    }
}

#[test]
fn the_node_has_one_interface_with_a_possible_name() {
    refused! {
        "  interfaces: [eth0]" => "  xdp_mode: auto":
            "f:3:3: node has no \"interfaces\"; add \"interfaces: [eth0]\" with the interface's name",
        "[eth0]" => "[]":
            "f:3:15: interfaces is empty; name an interface, as in [eth0], or those of clients and servers, as in [eth0, eth1]",
        "[eth0]" => "[eth0, eth1, eth0]":
            "f:3:28: interface \"eth0\" is named twice; keep one",
        "[eth0]" => "[a, b, c, d, e]":
            "f:3:28: 5 interfaces are too many; keep 4 or fewer",
        "[eth0]" => "eth0":
            "f:3:15: interfaces is a single value, not a list; name an interface, as in [eth0], or those of clients and servers, as in [eth0, eth1]",
        "[eth0]" => "[a/b]":
            "f:3:16: \"a/b\" cannot be an interface's name; write the name that \"ip link\" shows",
        "[eth0]" => "[enp0s31f6longname]":
            "f:3:16: \"enp0s31f6longname\" cannot be an interface's name; write the name that \"ip link\" shows",
        "[eth0]" => "[[eth0]]":
            "f:3:16: interface is a list, not a single value; write the name that \"ip link\" shows",
        "[eth0]" => "[eth0]\n  xdp_mode: fast":
            "f:4:13: \"fast\" is not a known xdp_mode; use auto, native or generic",
        "[eth0]" => "[eth0]\n  xdp_mode: natvie":
            "f:4:13: \"natvie\" is not a known xdp_mode; did you mean \"native\"?",
        "[eth0]" => "[eth0]\n  address_conflict: fight":
            "f:4:21: \"fight\" is not a known address_conflict; use take or wait",
    }
}

#[test]
fn snat_addresses_are_a_few_different_addresses_of_this_machine() {
    refused! {
        "[eth0]" => "[eth0]\n  snat_addresses: 192.0.2.5":
            "f:4:19: snat_addresses is a single value, not a list; write a list, [] for the interface's own address",
        "[eth0]" => "[eth0]\n  snat_addresses: [192.0.2.5, 192.0.2.5]":
            "f:4:31: SNAT address 192.0.2.5 is given twice; keep one",
        "[eth0]" => "[eth0]\n  snat_addresses: [10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 10.0.0.5, 10.0.0.6, 10.0.0.7, 10.0.0.8, 10.0.0.9]":
            "f:4:100: 9 SNAT addresses are too many; keep 8 or fewer",
        "[eth0]" => "[eth0]\n  snat_addresses: [192.0.2.21]":
            "f:10:30: address 192.0.2.21 is the SNAT address on line 4; write the real server's own address",
    }
}

const TWO_ON_ONE_SERVER: &str = "version: 1
node: { interfaces: [eth0] }
virtual_services:
  - { label: A, address: 192.0.2.10, ports: [443, 8443], real_servers: [{ label: a, address: 192.0.2.21 }] }
  - { label: B, address: 192.0.2.11, ports: [8443], real_servers: [{ label: b, address: 192.0.2.21 }] }
";

#[test]
fn what_a_server_answers_from_a_port_belongs_to_one_way_of_reaching_it() {
    let said = parse("f", TWO_ON_ONE_SERVER).unwrap_err().to_string();
    assert_eq!(
        said.trim_end(),
        "f:5:89: 192.0.2.21:8443 answers for the ports from 8443 on here, and on line 4 for those from 443 on; \
         put all these ports into one virtual service, or begin both lists with the same port"
    );
    for accepted in [
        TWO_ON_ONE_SERVER.replace("[8443]", "[443]"),
        TWO_ON_ONE_SERVER.replace("[8443]", "[443, 8443]"),
        TWO_ON_ONE_SERVER.replace("[8443]", "[9443]"),
        TWO_ON_ONE_SERVER
            .replace("192.0.2.21 }] }\n  - { label: B", "192.0.2.21, port: 443 }] }\n  - { label: B"),
    ] {
        parse("f", &accepted).unwrap();
    }
}

#[test]
fn services_and_servers_fit_into_the_index() {
    let servers: Vec<String> =
        (1..=250).map(|host| format!("{{ label: s{host}, address: 198.51.100.{host} }}")).collect();
    let service = |n: u8| {
        format!(
            "  - {{ label: V{n}, address: 192.0.2.{n}, ports: [{n}000-{n}062], real_servers: [{}] }}\n",
            servers.join(", ")
        )
    };
    let head = "version: 1\nnode: { interfaces: [eth0], tables: { endpoints: 2048 } }\nvirtual_services:\n";
    parse("f", &format!("{head}{}", service(1))).unwrap();
    let said = parse("f", &format!("{head}{}{}", service(1), service(2))).unwrap_err().to_string();
    assert_eq!(
        said.trim_end(),
        "f:5:5: up to here services and their servers have 31628 ports, of 16384 that are possible; name fewer ports"
    );
}

#[test]
fn snat_ports_are_a_range_of_enough_unprivileged_ports() {
    let remedy = "write FIRST-LAST within 1024-65535 and at least 64 ports, as in 1024-32767";
    for (given, what) in [
        ("1024", "snat_ports \"1024\" is not a range of ports"),
        ("32767-1024", "snat_ports \"32767-1024\" is not a range of ports"),
        ("1024-65536", "snat_ports \"1024-65536\" is not a range of ports"),
        ("1000-2000", "snat_ports 1000-2000 reaches below 1024"),
        ("1024-1086", "snat_ports 1024-1086 is only 63 ports"),
    ] {
        refuse("[eth0]", &format!("[eth0]\n  snat_ports: {given}"), &format!("f:4:15: {what}; {remedy}"));
    }
    accepted(&changed("[eth0]", "[eth0]\n  snat_ports: 1024-1087"));
}

#[test]
fn table_sizes_are_powers_of_two_within_their_bounds() {
    refused! {
        "[eth0]" => "[eth0]\n  tables: { flows: 1000 }":
            "f:4:20: flows 1000 is out of range; write a whole number from 1024 to 16777216",
        "[eth0]" => "[eth0]\n  tables: { flows: 33554432 }":
            "f:4:20: flows 33554432 is out of range; write a whole number from 1024 to 16777216",
        "[eth0]" => "[eth0]\n  tables: { sticky: 100000 }":
            "f:4:21: sticky 100000 is not a power of two; write 65536 or 131072",
        "[eth0]" => "[eth0]\n  tables: { half_open: 8388608 }":
            "f:4:24: half_open 8388608 is out of range; write a whole number from 1024 to 4194304",
        "[eth0]" => "[eth0]\n  tables: { endpoints: 8 }":
            "f:4:24: endpoints 8 is out of range; write a whole number from 16 to 4096",
        "[eth0]" => "[eth0]\n  tables: { flows: 64k }":
            "f:4:20: flows \"64k\" is not a whole number; write a whole number from 1024 to 16777216",
        "[eth0]" => "[eth0]\n  tables: big":
            "f:4:11: tables is a mapping, not a single value; write key: value pairs of flows, sticky, half_open, endpoints",
    }
}

#[test]
fn there_is_an_endpoint_for_every_real_server() {
    let mut text = changed("[eth0]", "[eth0]\n  tables: { endpoints: 16 }");
    for host in 0..15 {
        text.push_str(&format!("      - {{ label: s{host}, address: 192.0.2.{} }}\n", 100 + host));
    }
    assert_eq!(
        parse("f", &text).unwrap_err().to_string(),
        "f:26:32: 17 real servers are more than the endpoints table has room for (16); set node.tables.endpoints to 32"
    );
    accepted(&text.replace("endpoints: 16", "endpoints: 32"));
}

#[test]
fn a_service_has_a_label_an_address_and_ports() {
    refused! {
        "  - label: Web\n    address" => "  - address":
            "f:5:5: a virtual service has no \"label\"; add \"label: NAME\"",
        "label: Web" => "label: Web Server":
            "f:5:12: label \"Web Server\" contains ' '; use 1 to 63 letters, digits, \"_\", \".\" or \"-\"",
        "label: Web" => "label: ''":
            "f:5:12: label \"\" is empty; use 1 to 63 letters, digits, \"_\", \".\" or \"-\"",
        "label: Web" => "label:":
            "f:5:10: label has no value; use 1 to 63 letters, digits, \"_\", \".\" or \"-\"",
        "label: Web" => "label: [Web]":
            "f:5:12: label is a list, not a single value; use 1 to 63 letters, digits, \"_\", \".\" or \"-\"",
        "    address: 192.0.2.10\n" => "":
            "f:5:5: a virtual service has no \"address\"; add \"address: IP\", which clients connect to",
        "192.0.2.10" => "web.example":
            "f:6:14: address \"web.example\" is not an IP address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "192.0.2.10/24":
            "f:6:14: address \"192.0.2.10/24\" is not an IP address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "300.0.2.10":
            "f:6:14: address \"300.0.2.10\" is not an IP address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "0.0.0.0":
            "f:6:14: address 0.0.0.0 is the unspecified address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "127.0.0.1":
            "f:6:14: address 127.0.0.1 is a loopback address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "224.0.0.18":
            "f:6:14: address 224.0.0.18 is a multicast address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "255.255.255.255":
            "f:6:14: address 255.255.255.255 is the broadcast address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "::1":
            "f:6:14: address ::1 is a loopback address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "ff02::1":
            "f:6:14: address ff02::1 is a multicast address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "fe80::10":
            "f:6:14: address fe80::10 is a link-local address, which nobody reaches from beyond the link; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "fe80::10%eth0":
            "f:6:14: address fe80::10 is a link-local address, which nobody reaches from beyond the link; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "2001:db8::10%eth0":
            "f:6:14: address \"2001:db8::10%eth0\" names an interface; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "::ffff:192.0.2.10":
            "f:6:14: address ::ffff:192.0.2.10 is an IPv4 address; write 192.0.2.10",
        "192.0.2.10" => "2001:db8::10/64":
            "f:6:14: address \"2001:db8::10/64\" is not an IP address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.10" => "[2001:db8::10]":
            "f:6:14: address is a list, not a single value; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "    ports: [443]\n" => "":
            "f:5:5: a virtual service has no \"ports\"; add \"ports: [443]\"",
        "[443]" => "[]":
            "f:7:12: ports is empty; write ports and ranges, as in [443] or [443, 9000-9010]",
        "[443]" => "443":
            "f:7:12: ports is a single value, not a list; write ports and ranges, as in [443] or [443, 9000-9010]",
        "[443]" => "[443, 8443, 443]":
            "f:7:24: port 443 is in ports twice; keep one",
        "[443]" => "[9000-9010, 8999-9001]":
            "f:7:24: port 9000 is in ports twice; keep one",
        "[443]" => "[9010-9000]":
            "f:7:13: \"9010-9000\" is not a range of ports; write FIRST-LAST within 1-65535, as in 9000-9010",
        "[443]" => "[0-5]":
            "f:7:13: \"0-5\" is not a range of ports; write FIRST-LAST within 1-65535, as in 9000-9010",
        "[443]" => "[443, 9000-9063]":
            "f:7:18: a virtual service has more than 64 ports; spread them over several virtual services",
        "[443]" => "[0]":
            "f:7:13: port 0 is out of range; write a whole number from 1 to 65535",
        "[443]" => "[65536]":
            "f:7:13: port 65536 is out of range; write a whole number from 1 to 65535",
        "[443]" => "[https]":
            "f:7:13: port \"https\" is not a whole number; write a whole number from 1 to 65535",
        "[443]" => "[0443]":
            "f:7:13: port \"0443\" is not a whole number; write a whole number from 1 to 65535",
        "[443]" => "[8000-]":
            "f:7:13: \"8000-\" is not a range of ports; write FIRST-LAST within 1-65535, as in 9000-9010",
    }
}

#[test]
fn a_redirect_may_have_an_ipv6_address_in_any_spelling() {
    for address in ["2001:db8::10", "\"2001:0DB8:0:0::10\"", "fd00::10"] {
        let text = format!("{VALID}{}", REDIRECT.replace("192.0.2.10,", &format!("{address},")));
        let config = parse("f", &text).unwrap();
        let redirect = config.services.last().unwrap();
        let meant = address.trim_matches('"').parse::<std::net::Ipv6Addr>().unwrap();
        assert_eq!(redirect.address, std::net::IpAddr::V6(meant));
        assert_eq!(parse("f", &config.to_yaml()).unwrap(), config);
    }
    let twice = VALID.to_owned()
        + &REDIRECT.replace("192.0.2.10,", "2001:db8::10,")
        + &REDIRECT.replace("192.0.2.10,", "2001:db8::10,").replace("Redirect,", "Again,");
    let error = parse("f", &twice).unwrap_err().to_string();
    assert!(error.contains("[2001:db8::10]:80 belongs to the virtual service on line 11"), "{error}");
}

#[test]
fn the_host_of_a_check_may_be_an_address() {
    for (host, kept) in [
        ("192.0.2.21", "192.0.2.21"),
        ("2001:db8::21", "[2001:db8::21]"),
        ("\"[2001:DB8::21]\"", "[2001:db8::21]"),
    ] {
        let check = format!("    health_check: {{ kind: https, host: {host} }}\n    real_servers:");
        let config = parse("f", &changed("    real_servers:", &check)).unwrap();
        assert_eq!(config.services[0].health_check.host.as_deref(), Some(kept));
        assert_eq!(parse("f", &config.to_yaml()).unwrap(), config);
    }
}

#[test]
fn what_comes_in_a_later_version_is_refused_by_name() {
    refused! {
        "    real_servers:" => "    protocol: http\n    real_servers:":
            "f:8:15: protocol http without force_https: true is not supported in this version yet; set force_https: true, or use protocol tcp\n\
             f:9:5: real servers behind protocol http are not supported in this version yet; remove real_servers, or use protocol tcp",
    }
}

#[test]
fn a_mode_refuses_servers_that_it_cannot_reach_as_they_are() {
    refused! {
        "192.0.2.10" => "2001:db8::10":
            "f:9:30: address 192.0.2.21 is not of its service's family (2001:db8::10); use addresses of one family in a service, or forwarding: tunnel, which puts packets of one family into the other\n\
             f:10:30: address 192.0.2.22 is not of its service's family (2001:db8::10); use addresses of one family in a service, or forwarding: tunnel, which puts packets of one family into the other",
        "    real_servers:" => "    forwarding: nat\n    persistence: { ipv6_prefix: 56 }\n    real_servers:":
            "f:9:33: ipv6_prefix 56 is not possible; write 64 or 128",
    }
    let with = |mode: &str, server: &str| {
        changed("    real_servers:", &format!("    forwarding: {mode}\n    real_servers:"))
            .replace("192.0.2.21", server)
    };
    for mode in ["dr", "tunnel"] {
        let errors = parse("f", &with(mode, "192.0.2.21, port: 8443")).unwrap_err().to_string();
        assert_eq!(
            errors,
            format!(
                "f:10:30: port 8443 is not possible with forwarding: {mode}: packets go to the server with the port that \
                 the client asked for; remove the server's port, or use forwarding: snat"
            )
        );
    }
    accepted(&with("nat", "192.0.2.21, port: 8443"));
    accepted(&with("dr", "192.0.2.21"));
    accepted(&with("tunnel", "\"2001:db8::21\""));
    let shared = with("nat", "192.0.2.21")
        + "  - { label: B, address: 192.0.2.11, ports: [443], real_servers: [{ label: s, address: 192.0.2.21 }] }\n";
    assert!(parse("f", &shared).unwrap_err().to_string().contains(
        "192.0.2.21:443 answers for the virtual service on line 10 too, and one of both has forwarding: nat"
    ));
}

#[test]
fn words_outside_the_contract_are_refused_with_those_inside() {
    refused! {
        "    real_servers:" => "    forwarding: dsr\n    real_servers:":
            "f:8:17: \"dsr\" is not a known forwarding; did you mean \"dr\"?",
        "    real_servers:" => "    scheduler: sourcehash\n    real_servers:":
            "f:8:16: \"sourcehash\" is not a known scheduler; did you mean \"source-hash\"?",
        "    real_servers:" => "    scheduler: random\n    real_servers:":
            "f:8:16: \"random\" is not a known scheduler; use source-hash, least-conn or round-robin",
        "    real_servers:" => "    protocol: tpc\n    real_servers:":
            "f:8:15: \"tpc\" is not a known protocol; did you mean \"tcp\"?",
        "    real_servers:" => "    on_down: drop\n    real_servers:":
            "f:8:14: \"drop\" is not a known on_down; use reset or keep",
    }
}

#[test]
fn force_https_belongs_to_protocol_http() {
    refused! {
        "    real_servers:" => "    force_https: true\n    real_servers:":
            "f:8:18: force_https has no meaning for protocol tcp; remove it, or use protocol http",
        "    real_servers:" => "    force_https: yes\n    real_servers:":
            "f:8:18: force_https \"yes\" is neither true nor false; write true or false",
    }
    let redirect = format!("{VALID}{}", REDIRECT.replace("force_https: true", "force_https: false"));
    assert_eq!(
        parse("f", &redirect).unwrap_err().to_string(),
        "f:11:87: protocol http without force_https: true is not supported in this version yet; \
         set force_https: true, or use protocol tcp"
    );
    accepted(&changed("    real_servers:", "    force_https: false\n    real_servers:"));
}

#[test]
fn persistence_has_a_mode_and_a_duration() {
    refused! {
        "    real_servers:" => "    persistence: none\n    real_servers:":
            "f:8:18: persistence is a mapping, not a single value; write key: value pairs of mode, timeout, ipv6_prefix, scope",
        "    real_servers:" => "    persistence: { mode: cookie }\n    real_servers:":
            "f:8:26: \"cookie\" is not a known persistence mode; use source-ip or none",
        "    real_servers:" => "    persistence: { timeout: soon }\n    real_servers:":
            "f:8:29: timeout \"soon\" is not a duration; write numbers with units, as in 500ms, 2s, 60m, 1h30m or 2d",
        "    real_servers:" => "    persistence: { timeout: 0 }\n    real_servers:":
            "f:8:29: timeout 0s is out of range; write a duration from 1s to 30d",
        "    real_servers:" => "    persistence: { timeout: 31d }\n    real_servers:":
            "f:8:29: timeout 31d is out of range; write a duration from 1s to 30d",
        "    real_servers:" => "    persistence: { mode: none, timeout: 1h }\n    real_servers:":
            "f:8:32: timeout has no meaning for persistence mode none; remove it, or use mode source-ip",
        "    real_servers:" => "    idle_timeout: 1.5h\n    real_servers:":
            "f:8:19: idle_timeout \"1.5h\" is not a duration; write numbers with units, as in 500ms, 2s, 60m, 1h30m or 2d",
        "    real_servers:" => "    idle_timeout: 999ms\n    real_servers:":
            "f:8:19: idle_timeout 999ms is out of range; write a duration from 1s to 30d",
        "    real_servers:" => "    slow_start: 61m\n    real_servers:":
            "f:8:17: slow_start 1h1m is out of range; write a duration from 1s to 1h",
        "    real_servers:" => "    mss_clamp: off\n    real_servers:":
            "f:8:16: \"off\" is not a known mss_clamp; write auto, none, or bytes from 536 to 65495",
        "    real_servers:" => "    mss_clamp: 535\n    real_servers:":
            "f:8:16: mss_clamp 535 is out of range; write a whole number from 536 to 65495",
        "    real_servers:" => "    mss_clamp: [1360]\n    real_servers:":
            "f:8:16: mss_clamp is a list, not a single value; write a whole number from 536 to 65495",
        "    real_servers:" => "    protocol: udp\n    mss_clamp: auto\n    real_servers:":
            "f:9:5: mss_clamp has no meaning for protocol udp; remove it, or use protocol tcp",
    }
}

#[test]
fn a_health_check_has_sensible_times_and_counts() {
    health_check_refused! {
        "tcp" @ 19:
            "health_check is a mapping, not a single value; write key: value pairs of kind, interval, timeout, fall, rise, port, path, host, verify, expect_status, expect_body, answer_first",
        "{ kind: ping }" @ 27:
            "\"ping\" is not a known health check kind; use tcp, tls, http, https or none",
        "{ interval: 50ms }" @ 31:
            "interval 50ms is out of range; write a duration from 100ms to 1h",
        "{ interval: 61m }" @ 31:
            "interval 1h1m is out of range; write a duration from 100ms to 1h",
        "{ interval: 2s, timeout: 3s }" @ 44:
            "timeout 3s is longer than the interval 2s; write 2s or less, or check less often",
        "{ timeout: 9ms }" @ 30:
            "timeout 9ms is out of range; write a duration from 10ms to 1h",
        "{ fall: 0 }" @ 27:
            "fall 0 is out of range; write a whole number from 1 to 100",
        "{ rise: 101 }" @ 27:
            "rise 101 is out of range; write a whole number from 1 to 100",
        "{ port: 70000 }" @ 27:
            "port 70000 is out of range; write a whole number from 1 to 65535",
    }
}

#[test]
fn a_health_check_asks_only_what_its_kind_can() {
    health_check_refused! {
        "{ path: /health }" @ 21:
            "path has no meaning for a health check of kind tcp; remove it, or use kind http or https",
        "{ kind: tcp, host: a.example }" @ 32:
            "host has no meaning for a health check of kind tcp; remove it, or use kind tls, http or https",
        "{ kind: tls, expect_status: [200] }" @ 32:
            "expect_status has no meaning for a health check of kind tls; remove it, or use kind http or https",
        "{ kind: none, expect_body: ok }" @ 33:
            "expect_body has no meaning for a health check of kind none; remove it, or use kind http or https",
        "{ kind: none, answer_first: true }" @ 33:
            "answer_first has no meaning for a health check of kind none; remove it, or use kind tcp, tls, http or https",
        "{ answer_first: 2 }" @ 35:
            "answer_first \"2\" is neither true nor false; write true or false",
        "{ kind: http, path: health }" @ 39:
            "path \"health\" cannot be requested; write a path as in /health, percent-encoded where needed",
        "{ kind: http, path: \"/a\\r\\nX: y\" }" @ 39:
            "path \"/a\\r\\nX: y\" cannot be requested; write a path as in /health, percent-encoded where needed",
        "{ kind: http, host: \"http://a\" }" @ 39:
            "host \"http://a\" is not a host name; write a host name, without scheme and port",
        "{ kind: http, host: \"[2001:db8::21]:80\" }" @ 39:
            "host \"[2001:db8::21]:80\" is not a host name; write a host name, without scheme and port",
        "{ kind: http, host: -epic.example }" @ 39:
            "host \"-epic.example\" is not a host name; write labels of letters, digits, - and _ with dots between them, none empty, longer than 63, or with - at an end",
        "{ kind: tls, host: epic..example }" @ 38:
            "host \"epic..example\" is not a host name; write labels of letters, digits, - and _ with dots between them, none empty, longer than 63, or with - at an end",
        "{ kind: https, host: epic.example- }" @ 40:
            "host \"epic.example-\" is not a host name; write labels of letters, digits, - and _ with dots between them, none empty, longer than 63, or with - at an end",
        "{ kind: http, path: \"/a`b\" }" @ 39:
            "path \"/a`b\" cannot be requested; write a path as in /health, percent-encoded where needed",
        "{ kind: http, path: \"/a?q=<b>\" }" @ 39:
            "path \"/a?q=<b>\" cannot be requested; write a path as in /health, percent-encoded where needed",
        "{ kind: http, verify: system }" @ 33:
            "verify has no meaning for a health check of kind http; remove it, or use kind tls or https",
        "{ kind: https, verify: yes }" @ 42:
            "verify \"yes\" is neither of its words nor a whole path; write none, system, or the whole path of a PEM file with the certificate authorities",
        "{ kind: tls, verify: ca.pem }" @ 40:
            "verify \"ca.pem\" is neither of its words nor a whole path; write none, system, or the whole path of a PEM file with the certificate authorities",
        "{ kind: http, expect_status: 200 }" @ 48:
            "expect_status is a single value, not a list; write a list of status codes and ranges, as in [200-399]",
        "{ kind: http, expect_status: [] }" @ 48:
            "expect_status is empty, so that no answer would pass; write a list of status codes and ranges, as in [200-399]",
        "{ kind: http, expect_status: [200, 99] }" @ 54:
            "\"99\" is not a status code or range within 100-599; write a list of status codes and ranges, as in [200-399]",
        "{ kind: http, expect_status: [399-200] }" @ 49:
            "\"399-200\" is not a status code or range within 100-599; write a list of status codes and ranges, as in [200-399]",
        "{ kind: http, expect_body: \"\" }" @ 46:
            "expect_body is 0 bytes long; write 1 to 1024 bytes of text that a good answer contains",
    }
    accepted(&changed(
        "    real_servers:",
        "    health_check: { kind: https, path: \"/h?a=b\", host: a.example, expect_status: [200, 301-303], expect_body: ok }\n    real_servers:",
    ));
}

#[test]
fn the_default_timeout_of_a_health_check_gives_way_to_a_shorter_interval() {
    let text = changed("    real_servers:", "    health_check: { interval: 500ms }\n    real_servers:");
    assert_eq!(parse("f", &text).unwrap().services[0].health_check.timeout.as_millis(), 500);
}

#[test]
fn a_real_server_has_a_label_an_address_and_a_weight() {
    refused! {
        "{ label: a, address: 192.0.2.21 }" => "{ address: 192.0.2.21 }":
            "f:9:9: a real server has no \"label\"; add \"label: NAME\"",
        "{ label: a, address: 192.0.2.21 }" => "{ label: a }":
            "f:9:9: a real server has no \"address\"; add \"address: IP\"",
        "{ label: a, address: 192.0.2.21 }" => "192.0.2.21":
            "f:9:9: a real server is a mapping, not a single value; write key: value pairs of label, address, port, weight",
        "192.0.2.21 }" => "192.0.2.21, weight: -1 }":
            "f:9:50: weight -1 is out of range; write a whole number from 0 to 1000",
        "192.0.2.21 }" => "192.0.2.21, weight: 1001 }":
            "f:9:50: weight 1001 is out of range; write a whole number from 0 to 1000",
        "192.0.2.21 }" => "192.0.2.21, weight: 99999999999999999999999 }":
            "f:9:50: weight \"99999999999999999999999\" is not a whole number; write a whole number from 0 to 1000",
        "192.0.2.21 }" => "192.0.2.21, weight: 0.5 }":
            "f:9:50: weight \"0.5\" is not a whole number; write a whole number from 0 to 1000",
        "192.0.2.21 }" => "192.0.2.21, port: 0 }":
            "f:9:48: port 0 is out of range; write a whole number from 1 to 65535",
        "192.0.2.21" => "127.0.0.2":
            "f:9:30: address 127.0.0.2 is a loopback address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
        "192.0.2.21" => "\"2001:db8::21\"":
            "f:9:30: address 2001:db8::21 is not of its service's family (192.0.2.10); use addresses of one family in a service, or forwarding: tunnel, which puts packets of one family into the other",
    }
    let text = format!("{}    real_servers: a\n", &VALID[..VALID.find("    real_servers").unwrap()]);
    assert_eq!(
        parse("f", &text).unwrap_err().to_string(),
        "f:8:19: real_servers is a single value, not a list; write a list, [] for none"
    );
}

#[test]
fn labels_and_places_are_not_used_twice() {
    refused! {
        "label: b" => "label: a":
            "f:10:18: label \"a\" is the real server on line 9 already; give each real server of a service its own label",
        "192.0.2.22" => "192.0.2.21":
            "f:10:30: 192.0.2.21:443 is the real server on line 9 already; remove one of them",
        "192.0.2.22" => "192.0.2.10":
            "f:10:30: address 192.0.2.10 is the address of the virtual service on line 6; write the real server's own address",
    }
    accepted(&changed("192.0.2.22 }", "192.0.2.21, port: 8443 }"));
    for (redirect, error) in [
        (
            REDIRECT.replace("Redirect", "Web"),
            "f:11:14: label \"Web\" is the virtual service on line 5 already; give each virtual service its own label",
        ),
        (
            REDIRECT.replace("80", "443"),
            "f:11:33: 192.0.2.10:443 belongs to the virtual service on line 6 already; give one of them another address or port",
        ),
        (
            REDIRECT.replace("192.0.2.10", "192.0.2.21"),
            "f:9:30: address 192.0.2.21 is the address of the virtual service on line 11; write the real server's own address",
        ),
    ] {
        assert_eq!(parse("f", &format!("{VALID}{redirect}")).unwrap_err().to_string(), error);
    }
}

#[test]
fn a_section_used_twice_by_a_yaml_alias_is_still_a_duplicate() {
    let text = "version: 1\nnode: { interfaces: [eth0] }\nvirtual_services:\n  \
                - &web { label: Web, address: 192.0.2.10, ports: [443] }\n  - *web\n";
    assert_eq!(
        parse("f", text).unwrap_err().to_string(),
        "f:4:19: label \"Web\" is the virtual service on line 4 already; give each virtual service its own label\n\
         f:4:33: 192.0.2.10:443 belongs to the virtual service on line 4 already; give one of them another address or port"
    );
}

#[test]
fn a_mistake_in_a_shared_section_is_said_once() {
    let text = changed("    real_servers:", "    health_check: &check { interval: soon }\n    real_servers:")
        + "  - { label: B, address: 192.0.2.11, ports: [443], health_check: *check }\n";
    assert_eq!(
        parse("f", &text).unwrap_err().to_string(),
        "f:8:38: interval \"soon\" is not a duration; write numbers with units, as in 500ms, 2s, 60m, 1h30m or 2d"
    );
}

#[test]
fn ten_mistakes_are_ten_errors_in_line_order() {
    let text = "\
version: 3
node:
  interfaces: [eth0, eth0]
  snat_ports: 80-443
virtual_services:
  - label: Hyper space
    address: 192.168.85.300
    ports: [443]
    forwarding: dnat
    persistance: { mode: source-ip }
    health_check: { interval: soon }
    real_servers:
      - { label: a, address: 192.168.85.200, weight: -1 }
      - { label: a, address: 192.168.85.201 }
";
    assert_eq!(
        parse("/etc/steadfast.yaml", text).unwrap_err().to_string(),
        "\
/etc/steadfast.yaml:1:10: version \"3\" is not known to this Steadfast; write \"version: 1\"
/etc/steadfast.yaml:3:22: interface \"eth0\" is named twice; keep one
/etc/steadfast.yaml:4:15: snat_ports 80-443 reaches below 1024; write FIRST-LAST within 1024-65535 and at least 64 ports, as in 1024-32767
/etc/steadfast.yaml:6:12: label \"Hyper space\" contains ' '; use 1 to 63 letters, digits, \"_\", \".\" or \"-\"
/etc/steadfast.yaml:7:14: address \"192.168.85.300\" is not an IP address; write one IP address, as in 192.168.85.150 or 2001:db8::150
/etc/steadfast.yaml:9:17: \"dnat\" is not a known forwarding; did you mean \"snat\"?
/etc/steadfast.yaml:10:5: unknown key \"persistance\" in a virtual service; did you mean \"persistence\"?
/etc/steadfast.yaml:11:31: interval \"soon\" is not a duration; write numbers with units, as in 500ms, 2s, 60m, 1h30m or 2d
/etc/steadfast.yaml:13:54: weight -1 is out of range; write a whole number from 0 to 1000
/etc/steadfast.yaml:14:18: label \"a\" is the real server on line 13 already; give each real server of a service its own label"
    );
}

#[test]
fn what_is_allowed_but_probably_not_meant_is_a_warning() {
    let without_servers = &VALID[..VALID.find("    real_servers").unwrap()];
    assert_eq!(
        warnings(without_servers),
        ["5:5: virtual service \"Web\" has no real server: it serves nobody; add real_servers"]
    );
    let weightless = VALID.replace(" }\n", ", weight: 0 }\n");
    assert_eq!(
        warnings(&weightless),
        ["5:5: every real server of \"Web\" has weight 0: it takes no new client; give one of them a weight"]
    );
    assert_eq!(
        warnings("version: 1\nnode: { interfaces: [eth0], snat_ports: 1024-32768 }\nvirtual_services: []\n"),
        [
            "2:41: snat_ports 1024-32768 overlaps Linux's own ephemeral ports (32768-60999); end it at 32767, or move net.ipv4.ip_local_port_range",
            "3:19: there is no virtual service; add one to balance anything",
        ]
    );
}

#[test]
fn text_of_the_file_is_shown_shortened_and_escaped() {
    let long = "x".repeat(5000);
    let error = parse("f", &changed("192.0.2.10", &long)).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "f:6:14: address \"{}…\" is not an IP address; write one IP address, as in 192.168.85.150 or 2001:db8::150",
            "x".repeat(60)
        )
    );
    let error = parse("f", &changed("192.0.2.10", "\"\\e[31m\"")).unwrap_err().to_string();
    assert!(error.contains(r#""\u{1b}[31m""#), "{error}");
}
