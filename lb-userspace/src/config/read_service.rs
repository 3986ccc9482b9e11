//! One entry of `virtual_services`, with its real servers.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use lb_common::mss::MssClamp;

use super::error::{Findings, Position};
use super::fields::Fields;
use super::label::Label;
use super::model::{
    Forwarding, HealthCheck, OnDown, Persistence, Protocol, Scheduler, Scope, Server, Service,
};
use super::read::located;
use super::read_health::health_check;
use super::tree::{Shape, Tree};
use super::values::{At, address, boolean, duration, label, list, port, quoted, range_of, whole, word};

const KEYS: &[&str] = &[
    "label",
    "address",
    "ports",
    "protocol",
    "forwarding",
    "scheduler",
    "persistence",
    "idle_timeout",
    "slow_start",
    "mss_clamp",
    "on_down",
    "health_check",
    "force_https",
    "real_servers",
];
const SERVER_KEYS: &[&str] = &["label", "address", "port", "weight"];
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// A service as far as it could be read: what the rules between services need, also of one with mistakes.
pub(super) struct Draft {
    pub(super) at: Position,
    /// The number of the transport protocol.
    pub(super) transport: u8,
    pub(super) label: Option<At<Label>>,
    pub(super) address: Option<At<IpAddr>>,
    pub(super) ports: Vec<At<u16>>,
    pub(super) servers: Vec<ServerDraft>,
    /// `None` only where a mistake was reported.
    pub(super) service: Option<Service>,
}

/// A real server as far as it could be read.
pub(super) struct ServerDraft {
    pub(super) label: Option<At<Label>>,
    pub(super) address: Option<At<IpAddr>>,
    pub(super) port: Option<u16>,
    pub(super) same_port: bool,
    server: Option<Server>,
}

/// Reads one service.
pub(super) fn service(tree: &Tree, findings: &mut Findings) -> Draft {
    let Some(fields) = Fields::open(tree, "a virtual service", KEYS, findings) else {
        return Draft {
            at: tree.at,
            transport: Protocol::default().number(),
            label: None,
            address: None,
            ports: Vec::new(),
            servers: Vec::new(),
            service: None,
        };
    };
    let label = fields
        .required("label", "add \"label: NAME\"", findings)
        .and_then(|tree| located(tree, label(tree, findings)));
    let address = fields
        .required("address", "add \"address: IP\", which clients connect to", findings)
        .and_then(|tree| located(tree, address(tree, "address", findings)));
    let ports = ports(&fields, findings);
    let servers = real_servers(&fields, &ports, findings);
    let service = rest(&fields, label.as_ref(), address, &ports, &servers, findings);
    let protocol = service.as_ref().map_or_else(Protocol::default, |service| service.protocol);
    Draft { at: fields.at, transport: protocol.number(), label, address, ports, servers, service }
}

fn rest(
    fields: &Fields<'_>,
    label: Option<&At<Label>>,
    address: Option<At<IpAddr>>,
    ports: &[At<u16>],
    servers: &[ServerDraft],
    findings: &mut Findings,
) -> Option<Service> {
    let protocol = fields.or_default("protocol", Protocol::default(), findings, |tree, findings| {
        word(tree, "protocol", Protocol::WORDS, &["https"], findings)
    });
    let forwarding = fields.or_default("forwarding", Forwarding::default(), findings, |tree, findings| {
        word(tree, "forwarding", Forwarding::WORDS, &[], findings)
    });
    let scheduler = fields.or_default("scheduler", Scheduler::default(), findings, |tree, findings| {
        word(tree, "scheduler", Scheduler::WORDS, &[], findings)
    });
    let persistence = fields.or_default("persistence", Persistence::default(), findings, persistence);
    let silent = if protocol == Protocol::Udp { Service::UDP_IDLE_TIMEOUT } else { Service::IDLE_TIMEOUT };
    let idle_timeout = fields.or_default("idle_timeout", silent, findings, |tree, findings| {
        duration(tree, "idle_timeout", Duration::from_secs(1), SHORTEST..=LONGEST, findings)
    });
    let slow_start = fields.or_default("slow_start", Duration::ZERO, findings, |tree, findings| {
        let range = SHORTEST..=Service::LONGEST_SLOW_START;
        duration(tree, "slow_start", Duration::from_secs(1), range, findings)
    });
    let mss_clamp = mss_clamp(fields, protocol, forwarding, findings);
    let on_down = fields.or_default("on_down", OnDown::default(), findings, |tree, findings| {
        word(tree, "on_down", OnDown::WORDS, &[], findings)
    });
    let health_check =
        fields.or_default("health_check", HealthCheck::usual(protocol), findings, health_check);
    let force_https = force_https(fields, protocol, findings);
    refuse_servers_of_http(fields, protocol, findings);
    let real_servers: Option<Vec<Server>> = servers.iter().map(|draft| draft.server.clone()).collect();
    Some(Service {
        label: label?.value.clone(),
        address: address?.value,
        ports: ports.iter().map(|port| port.value).collect(),
        protocol,
        forwarding,
        scheduler,
        persistence,
        idle_timeout,
        slow_start,
        mss_clamp,
        on_down,
        health_check,
        force_https,
        real_servers: real_servers?,
    })
}

fn ports(fields: &Fields<'_>, findings: &mut Findings) -> Vec<At<u16>> {
    let remedy = "write ports and ranges, as in [443] or [443, 9000-9010]";
    let Some(tree) = fields.required("ports", "add \"ports: [443]\"", findings) else {
        return Vec::new();
    };
    let Some(items) = list(tree, "ports", remedy, findings) else {
        return Vec::new();
    };
    if items.is_empty() {
        findings.error(tree.at, "ports is empty", remedy);
    }
    let mut ports: Vec<At<u16>> = Vec::new();
    for item in items {
        for value in port_or_range(item, findings).into_iter().flatten() {
            if ports.iter().any(|earlier| earlier.value == value) {
                findings.error(item.at, format!("port {value} is in ports twice"), "keep one");
                break;
            }
            if ports.len() == Service::MAX_PORTS {
                let what = format!("a virtual service has more than {} ports", Service::MAX_PORTS);
                findings.error(item.at, what, "spread them over several virtual services");
                return ports;
            }
            ports.push(At { at: item.at, value });
        }
    }
    ports
}

fn port_or_range(tree: &Tree, findings: &mut Findings) -> Option<RangeInclusive<u16>> {
    match &tree.shape {
        Shape::Text(text) if text.contains('-') && !text.starts_with('-') => match range_of(text) {
            Some((first, last)) if first > 0 => Some(first..=last),
            _ => {
                let what = format!("{} is not a range of ports", quoted(text));
                findings.error(tree.at, what, "write FIRST-LAST within 1-65535, as in 9000-9010");
                None
            }
        },
        _ => port(tree, findings).map(|port| port..=port),
    }
}

fn persistence(tree: &Tree, findings: &mut Findings) -> Option<Persistence> {
    let fields = Fields::open(tree, "persistence", &["mode", "timeout", "ipv6_prefix", "scope"], findings)?;
    let sticky = fields.or_default("mode", true, findings, |tree, findings| {
        word(tree, "persistence mode", &[("source-ip", true), ("none", false)], &[], findings)
    });
    let timeout = fields.or_default("timeout", Persistence::TIMEOUT, findings, |tree, findings| {
        duration(tree, "timeout", Duration::from_secs(60), SHORTEST..=LONGEST, findings)
    });
    let ipv6_prefix = fields.or_default("ipv6_prefix", Persistence::IPV6_PREFIX, findings, ipv6_prefix);
    let scope = fields.or_default("scope", Scope::default(), findings, |tree, findings| {
        let words = [("service", Scope::Service), ("port", Scope::Port)];
        word(tree, "persistence scope", &words, &[], findings)
    });
    if sticky {
        return Some(Persistence::SourceIp { timeout, ipv6_prefix, scope });
    }
    for key in ["timeout", "ipv6_prefix", "scope"] {
        if let Some(at) = fields.key_at(key) {
            let what = format!("{key} has no meaning for persistence mode none");
            findings.error(at, what, "remove it, or use mode source-ip");
        }
    }
    Some(Persistence::None)
}

fn mss_clamp(
    fields: &Fields<'_>,
    protocol: Protocol,
    forwarding: Forwarding,
    findings: &mut Findings,
) -> MssClamp {
    let usual = Service::usual_mss_clamp(protocol, forwarding);
    let clamp = fields.or_default("mss_clamp", usual, findings, |tree, findings| {
        let range = MssClamp::LEAST..=Service::MOST_MSS;
        match &tree.shape {
            Shape::Text(text) if text == "auto" => Some(MssClamp::Auto),
            Shape::Text(text) if text == "none" => Some(MssClamp::None),
            Shape::Text(text) if !text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                let remedy = format!("write auto, none, or bytes from {} to {}", range.start(), range.end());
                findings.error(tree.at, format!("{} is not a known mss_clamp", quoted(text)), remedy);
                None
            }
            _ => whole(tree, "mss_clamp", range, findings).map(MssClamp::Bytes),
        }
    });
    if protocol == Protocol::Udp
        && let Some(at) = fields.key_at("mss_clamp")
    {
        findings.error(at, "mss_clamp has no meaning for protocol udp", "remove it, or use protocol tcp");
    }
    clamp
}

fn ipv6_prefix(tree: &Tree, findings: &mut Findings) -> Option<u8> {
    let bits = whole(tree, "ipv6_prefix", 1..=128, findings)?;
    if !matches!(bits, 64 | 128) {
        findings.error(tree.at, format!("ipv6_prefix {bits} is not possible"), "write 64 or 128");
        return None;
    }
    Some(bits)
}

/// In this version an `http` service is a redirect and nothing else.
fn force_https(fields: &Fields<'_>, protocol: Protocol, findings: &mut Findings) -> bool {
    let tree = fields.get("force_https");
    let given = tree.and_then(|tree| boolean(tree, "force_https", findings));
    if tree.is_some() && given.is_none() {
        return false;
    }
    let force = given == Some(true);
    let at = tree.or(fields.get("protocol")).map_or(fields.at, |tree| tree.at);
    match protocol {
        Protocol::Tcp | Protocol::Udp if force => {
            findings.error(
                at,
                format!("force_https has no meaning for protocol {protocol}"),
                "remove it, or use protocol http",
            );
        }
        Protocol::Http if !force => findings.error(
            at,
            "protocol http without force_https: true is not supported in this version yet",
            "set force_https: true, or use protocol tcp",
        ),
        Protocol::Tcp | Protocol::Http | Protocol::Udp => {}
    }
    force
}

fn refuse_servers_of_http(fields: &Fields<'_>, protocol: Protocol, findings: &mut Findings) {
    let Some(Tree { at, shape: Shape::List(servers) }) = fields.get("real_servers") else {
        return;
    };
    if protocol == Protocol::Http && !servers.is_empty() {
        findings.error(
            fields.key_at("real_servers").unwrap_or(*at),
            "real servers behind protocol http are not supported in this version yet",
            "remove real_servers, or use protocol tcp",
        );
    }
}

fn real_servers(fields: &Fields<'_>, service_ports: &[At<u16>], findings: &mut Findings) -> Vec<ServerDraft> {
    let remedy = "write a list, [] for none";
    let Some(tree) = fields.get("real_servers") else {
        return Vec::new();
    };
    let items = list(tree, "real_servers", remedy, findings).unwrap_or_default();
    items.iter().map(|item| server(item, service_ports, findings)).collect()
}

fn server(tree: &Tree, service_ports: &[At<u16>], findings: &mut Findings) -> ServerDraft {
    let Some(fields) = Fields::open(tree, "a real server", SERVER_KEYS, findings) else {
        return ServerDraft { label: None, address: None, port: None, same_port: false, server: None };
    };
    let label = fields
        .required("label", "add \"label: NAME\"", findings)
        .and_then(|tree| located(tree, label(tree, findings)));
    let address = fields
        .required("address", "add \"address: IP\"", findings)
        .and_then(|tree| located(tree, address(tree, "address", findings)));
    let same_port = fields.get("port").is_none() && service_ports.len() > 1;
    let service_port = service_ports.first().map(|port| port.value);
    let port = fields.or_default("port", service_port, findings, |tree, findings| Some(port(tree, findings)));
    let weight = fields.or_default("weight", Server::WEIGHT, findings, |tree, findings| {
        whole(tree, "weight", 0..=Server::MAX_WEIGHT, findings)
    });
    let server = match (&label, &address, port) {
        (Some(label), Some(address), Some(port)) => {
            Some(Server { label: label.value.clone(), address: address.value, port, same_port, weight })
        }
        _ => None,
    };
    ServerDraft { label, address, port, same_port, server }
}
