//! A configuration back to text: every field with the value in force, in the file's own shape.
//!
//! `Rendered` is the one list of what the model's parts consist of; the YAML and the difference of two
//! configurations are both made of it.

use std::fmt::Write as _;
use std::net::IpAddr;

use lb_common::mss::MssClamp;

use super::duration::display_duration;
use super::model::{
    AddressConflict, Config, Forwarding, HealthCheck, HealthKind, Node, OnDown, Persistence, Protocol,
    Scheduler, Scope, Server, Service,
};
use super::read::VERSION;

/// A field's value as YAML on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rendered {
    One(String),
    Map(Vec<(&'static str, String)>),
}

pub(super) type RenderedFields = Vec<(&'static str, Rendered)>;

impl Config {
    /// The effective configuration as YAML: defaults are written out, and [`parse`](super::parse) reads it back
    /// as the same configuration.
    ///
    /// Of an `http` service, what has no meaning for it is left out unless the file set it.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mut yaml = format!("version: {VERSION}\nnode:\n");
        for (key, value) in node_fields(&self.node) {
            line(&mut yaml, "  ", key, &value);
        }
        if self.services.is_empty() {
            yaml.push_str("virtual_services: []\n");
        } else {
            yaml.push_str("virtual_services:\n");
        }
        for service in &self.services {
            write_service(&mut yaml, service);
        }
        yaml
    }
}

fn write_service(yaml: &mut String, service: &Service) {
    let defaults = if service.protocol == Protocol::Http { ignored_by_http() } else { Vec::new() };
    let mut indent = "  - ";
    for field in service_fields(service) {
        if !defaults.contains(&field) {
            line(yaml, indent, field.0, &field.1);
            indent = "    ";
        }
    }
    match service.real_servers.as_slice() {
        [] if service.protocol == Protocol::Http => {}
        [] => yaml.push_str("    real_servers: []\n"),
        servers => {
            yaml.push_str("    real_servers:\n");
            for server in servers {
                let fields = Rendered::Map(server_fields(server));
                yaml.push_str("      - ");
                yaml.push_str(&fields.to_yaml());
                yaml.push('\n');
            }
        }
    }
}

fn line(yaml: &mut String, indent: &str, key: &str, value: &Rendered) {
    for part in [indent, key, ": ", &value.to_yaml(), "\n"] {
        yaml.push_str(part);
    }
}

impl Rendered {
    fn to_yaml(&self) -> String {
        match self {
            Self::One(text) => text.clone(),
            Self::Map(entries) => {
                let entries: Vec<String> =
                    entries.iter().map(|(key, value)| format!("{key}: {value}")).collect();
                format!("{{ {} }}", entries.join(", "))
            }
        }
    }
}

pub(super) fn node_fields(node: &Node) -> RenderedFields {
    let tables = &node.tables;
    let mut fields = vec![
        ("interfaces", one(&flow_list(node.interfaces.iter().map(|name| scalar(name))))),
        ("xdp_mode", one(&node.xdp_mode)),
    ];
    if node.address_conflict != AddressConflict::default() {
        fields.push(("address_conflict", one(&node.address_conflict)));
    }
    fields.extend([
        ("snat_addresses", one(&flow_list(node.snat_addresses.iter().map(address)))),
        ("snat_ports", one(&node.snat_ports)),
        (
            "tables",
            Rendered::Map(vec![
                ("flows", tables.flows.to_string()),
                ("sticky", tables.sticky.to_string()),
                ("half_open", tables.half_open.to_string()),
                ("endpoints", tables.endpoints.to_string()),
            ]),
        ),
    ]);
    fields
}

/// All fields of a service but its real servers.
pub(super) fn service_fields(service: &Service) -> RenderedFields {
    let mut fields = vec![
        ("label", one(&scalar(service.label.as_str()))),
        ("address", one(&address(&service.address))),
        ("ports", one(&flow_list(port_list(&service.ports).into_iter()))),
        ("protocol", one(&service.protocol)),
        ("force_https", one(&service.force_https)),
        ("forwarding", one(&service.forwarding)),
        ("scheduler", one(&service.scheduler)),
    ];
    fields.extend([
        ("persistence", persistence(service.persistence)),
        ("idle_timeout", one(&display_duration(service.idle_timeout))),
    ]);
    if !service.slow_start.is_zero() {
        fields.push(("slow_start", one(&display_duration(service.slow_start))));
    }
    if service.protocol != Protocol::Udp {
        fields.push(("mss_clamp", one(&service.mss_clamp)));
    }
    fields.extend([
        ("on_down", one(&service.on_down)),
        ("health_check", Rendered::Map(health_fields(&service.health_check))),
    ]);
    fields
}

/// The fields that a redirect does not use, at their defaults.
fn ignored_by_http() -> RenderedFields {
    vec![
        ("forwarding", one(&Forwarding::default())),
        ("scheduler", one(&Scheduler::default())),
        ("persistence", persistence(Persistence::default())),
        ("idle_timeout", one(&display_duration(Service::IDLE_TIMEOUT))),
        ("mss_clamp", one(&MssClamp::None)),
        ("on_down", one(&OnDown::default())),
        ("health_check", Rendered::Map(health_fields(&HealthCheck::default()))),
    ]
}

pub(super) fn server_fields(server: &Server) -> Vec<(&'static str, String)> {
    let mut fields = vec![("label", scalar(server.label.as_str())), ("address", address(&server.address))];
    if !server.same_port {
        fields.push(("port", server.port.to_string()));
    }
    fields.push(("weight", server.weight.to_string()));
    fields
}

/// Ports as in a file: neighbours that are three or more as a range.
pub(crate) fn port_list(ports: &[u16]) -> Vec<String> {
    let follows = |pair: &[u16]| pair.first().and_then(|port| port.checked_add(1)).as_ref() == pair.get(1);
    ports
        .chunk_by(|first, second| follows(&[*first, *second]))
        .flat_map(|run| match run {
            [first, _, .., last] => vec![format!("{first}-{last}")],
            few => few.iter().map(u16::to_string).collect(),
        })
        .collect()
}

fn persistence(persistence: Persistence) -> Rendered {
    Rendered::Map(match persistence {
        Persistence::None => vec![("mode", "none".to_owned())],
        Persistence::SourceIp { timeout, ipv6_prefix, scope } => {
            let mut fields = vec![("mode", "source-ip".to_owned()), ("timeout", display_duration(timeout))];
            if ipv6_prefix != Persistence::IPV6_PREFIX {
                fields.push(("ipv6_prefix", ipv6_prefix.to_string()));
            }
            if scope == Scope::Port {
                fields.push(("scope", "port".to_owned()));
            }
            fields
        }
    })
}

fn health_fields(check: &HealthCheck) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("kind", check.kind.to_string()),
        ("interval", display_duration(check.interval)),
        ("timeout", display_duration(check.timeout)),
        ("fall", check.fall.to_string()),
        ("rise", check.rise.to_string()),
    ];
    fields.extend(check.port.map(|port| ("port", port.to_string())));
    if check.kind.asks_http() {
        fields.push(("path", scalar(&check.path)));
    }
    if check.kind.asks_http() || check.kind == HealthKind::Tls {
        fields.extend(check.host.as_deref().map(|host| ("host", scalar(host))));
    }
    if matches!(check.kind, HealthKind::Tls | HealthKind::Https) {
        fields.push(("verify", scalar(&check.verify.to_string())));
    }
    if check.kind.asks_http() {
        fields.push(("expect_status", flow_list(check.expect_status.iter().map(ToString::to_string))));
        fields.extend(check.expect_body.as_deref().map(|body| ("expect_body", scalar(body))));
    }
    if check.kind != HealthKind::None {
        fields.push(("answer_first", check.answer_first.to_string()));
    }
    fields
}

fn one(value: &impl ToString) -> Rendered {
    Rendered::One(value.to_string())
}

fn flow_list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn address(address: &IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        // Colons mean something in YAML.
        IpAddr::V6(v6) => format!("\"{v6}\""),
    }
}

/// Text as a YAML scalar that every YAML reader takes for text, in any place.
fn scalar(text: &str) -> String {
    let plain_character = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/');
    let starts_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    if starts_plain && text.chars().all(plain_character) && !is_word_of_yaml(text) {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            // Writing to a String cannot fail.
            _ => drop(write!(quoted, "\\U{:08x}", u32::from(c))),
        }
    }
    quoted.push('"');
    quoted
}

/// Words that some version of YAML reads as a boolean or as nothing.
fn is_word_of_yaml(text: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::{port_list, scalar};

    #[test]
    fn ports_are_written_as_ranges_where_that_is_shorter() {
        for (ports, written) in [
            (&[443][..], "443"),
            (&[443, 444], "443, 444"),
            (&[443, 8443, 9000, 9001, 9002, 80], "443, 8443, 9000-9002, 80"),
            (&[65533, 65534, 65535], "65533-65535"),
        ] {
            assert_eq!(port_list(ports).join(", "), written);
        }
    }

    #[test]
    fn text_that_yaml_would_take_for_something_else_is_quoted() {
        for text in
            ["no", "Yes", "1", "1.5", "-", "---", "null", "~", "a b", "a: b", "", ".inf", "2024-01-01", "[x]"]
        {
            assert_eq!(scalar(text), format!("\"{text}\""));
        }
        for text in ["Hyperspace_Srv_1", "eth0", "/health/ready", "nobody"] {
            assert_eq!(scalar(text), text);
        }
        assert_eq!(scalar("say \"ü\\\n"), r#""say \"\U000000fc\\\U0000000a""#);
    }
}
