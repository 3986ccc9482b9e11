//! The `node` section.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::error::Findings;
use super::fields::Fields;
use super::model::{AddressConflict, Node, PortRange, Tables, XdpMode};
use super::read::located;
use super::tree::Tree;
use super::values::{At, address, list, quoted, range_of, text, whole, word};

const KEYS: &[&str] =
    &["interfaces", "xdp_mode", "address_conflict", "snat_addresses", "snat_ports", "tables"];
const TABLE_KEYS: &[&str] = &["flows", "sticky", "half_open", "endpoints"];
/// Linux's limit: IFNAMSIZ without the final zero.
const MAX_INTERFACE_NAME: usize = 15;
/// Linux's default `net.ipv4.ip_local_port_range`.
const EPHEMERAL_PORTS: RangeInclusive<u16> = 32768..=60999;

/// The node, and where the addresses stand that other sections are compared with.
pub(super) struct NodeDraft {
    pub(super) node: Node,
    pub(super) snat_addresses: Vec<At<IpAddr>>,
}

/// Reads the section; `None` where it is not a mapping.
pub(super) fn node(tree: &Tree, findings: &mut Findings) -> Option<NodeDraft> {
    let fields = Fields::open(tree, "node", KEYS, findings)?;
    let interfaces = interfaces(&fields, findings);
    let snat_addresses = fields.or_default("snat_addresses", Vec::new(), findings, snat_addresses);
    let node = Node {
        interfaces,
        xdp_mode: fields.or_default("xdp_mode", XdpMode::default(), findings, |tree, findings| {
            word(tree, "xdp_mode", XdpMode::WORDS, &[], findings)
        }),
        address_conflict: fields.or_default(
            "address_conflict",
            AddressConflict::default(),
            findings,
            |tree, findings| word(tree, "address_conflict", AddressConflict::WORDS, &[], findings),
        ),
        snat_addresses: snat_addresses.iter().map(|located| located.value).collect(),
        snat_ports: fields.or_default("snat_ports", PortRange::default(), findings, snat_ports),
        tables: fields.or_default("tables", Tables::default(), findings, tables),
    };
    Some(NodeDraft { node, snat_addresses })
}

fn interfaces(fields: &Fields<'_>, findings: &mut Findings) -> Vec<String> {
    let remedy = "name an interface, as in [eth0], or those of clients and servers, as in [eth0, eth1]";
    let Some(tree) =
        fields.required("interfaces", "add \"interfaces: [eth0]\" with the interface's name", findings)
    else {
        return Vec::new();
    };
    let Some(items) = list(tree, "interfaces", remedy, findings) else {
        return Vec::new();
    };
    if items.is_empty() {
        findings.error(tree.at, "interfaces is empty", remedy);
    }
    if let Some(first_too_many) = items.get(Node::MAX_INTERFACES) {
        let what = format!("{} interfaces are too many", items.len());
        findings.error(first_too_many.at, what, format!("keep {} or fewer", Node::MAX_INTERFACES));
    }
    let mut names: Vec<String> = Vec::new();
    for item in items.iter().take(Node::MAX_INTERFACES) {
        match interface(item, findings) {
            Some(name) if names.contains(&name) => {
                findings.error(item.at, format!("interface {} is named twice", quoted(&name)), "keep one");
            }
            Some(name) => names.push(name),
            None => {}
        }
    }
    names
}

/// A name that Linux would accept (`dev_valid_name`).
fn interface(tree: &Tree, findings: &mut Findings) -> Option<String> {
    let remedy = "write the name that \"ip link\" shows";
    let name = text(tree, "interface", remedy, findings)?;
    let bad_character = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':');
    let bad = name.is_empty()
        || name.len() > MAX_INTERFACE_NAME
        || matches!(name, "." | "..")
        || name.contains(bad_character);
    if bad {
        findings.error(tree.at, format!("{} cannot be an interface's name", quoted(name)), remedy);
        return None;
    }
    Some(name.to_owned())
}

fn snat_addresses(tree: &Tree, findings: &mut Findings) -> Option<Vec<At<IpAddr>>> {
    let items = list(tree, "snat_addresses", "write a list, [] for the interface's own address", findings)?;
    if let Some(first_too_many) = items.get(Node::MAX_SNAT_ADDRESSES) {
        let what = format!("{} SNAT addresses are too many", items.len());
        findings.error(first_too_many.at, what, format!("keep {} or fewer", Node::MAX_SNAT_ADDRESSES));
    }
    let mut addresses: Vec<At<IpAddr>> = Vec::new();
    for item in items.iter().take(Node::MAX_SNAT_ADDRESSES) {
        let Some(found) = located(item, address(item, "SNAT address", findings)) else {
            continue;
        };
        if addresses.iter().any(|earlier| earlier.value == found.value) {
            findings.error(found.at, format!("SNAT address {} is given twice", found.value), "keep one");
        } else {
            addresses.push(found);
        }
    }
    Some(addresses)
}

fn snat_ports(tree: &Tree, findings: &mut Findings) -> Option<PortRange> {
    let remedy = format!(
        "write FIRST-LAST within {}-65535 and at least {} ports, as in {}",
        PortRange::LOWEST,
        PortRange::FEWEST,
        PortRange::default()
    );
    let given = text(tree, "snat_ports", &remedy, findings)?;
    let Some((first, last)) = range_of(given) else {
        findings.error(tree.at, format!("snat_ports {} is not a range of ports", quoted(given)), remedy);
        return None;
    };
    let range = PortRange { first, last };
    if first < PortRange::LOWEST {
        findings.error(tree.at, format!("snat_ports {range} reaches below {}", PortRange::LOWEST), remedy);
        return None;
    }
    if range.count() < PortRange::FEWEST {
        findings.error(tree.at, format!("snat_ports {range} is only {} ports", range.count()), remedy);
        return None;
    }
    if first <= *EPHEMERAL_PORTS.end() && last >= *EPHEMERAL_PORTS.start() {
        findings.warn(
            tree.at,
            format!("snat_ports {range} overlaps Linux's own ephemeral ports (32768-60999)"),
            "end it at 32767, or move net.ipv4.ip_local_port_range",
        );
    }
    Some(range)
}

fn tables(tree: &Tree, findings: &mut Findings) -> Option<Tables> {
    let fields = Fields::open(tree, "tables", TABLE_KEYS, findings)?;
    let default = Tables::default();
    let mut size = |key: &str, default: u32, range: RangeInclusive<u32>| {
        fields.or_default(key, default, findings, |tree, findings| table_size(tree, key, range, findings))
    };
    Some(Tables {
        flows: size("flows", default.flows, 1024..=Tables::MAX_FLOWS),
        sticky: size("sticky", default.sticky, 1024..=Tables::MAX_FLOWS),
        half_open: size("half_open", default.half_open, 1024..=Tables::MAX_HALF_OPEN),
        endpoints: size("endpoints", default.endpoints, 16..=Tables::MAX_ENDPOINTS),
    })
}

fn table_size(tree: &Tree, key: &str, range: RangeInclusive<u32>, findings: &mut Findings) -> Option<u32> {
    let high = *range.end();
    let size = whole(tree, key, range, findings)?;
    if size.is_power_of_two() {
        return Some(size);
    }
    let above = size.next_power_of_two().min(high);
    let remedy = format!("write {} or {above}", above / 2);
    findings.error(tree.at, format!("{key} {size} is not a power of two"), remedy);
    None
}
