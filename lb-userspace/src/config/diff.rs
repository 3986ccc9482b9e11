//! What two configurations differ in.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::label::Label;
use super::model::{Config, Server, Service};
use super::render::{Rendered, RenderedFields, node_fields, port_list, server_fields, service_fields};

/// One difference between two configurations.
///
/// Services and real servers are the same when they have the same label: a renamed one is removed and added.
/// Displays as one line: `+` added, `-` removed, `~` changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    /// The node section.
    NodeChanged {
        /// At least one.
        fields: Vec<FieldChange>,
    },
    /// A virtual service that was not there, with its real servers.
    ServiceAdded {
        /// The new service.
        service: Box<Service>,
    },
    /// A virtual service that is no more, with its real servers.
    ServiceRemoved {
        /// Its label.
        service: Label,
    },
    /// A virtual service itself, apart from its real servers.
    ServiceChanged {
        /// Its label.
        service: Label,
        /// At least one.
        fields: Vec<FieldChange>,
    },
    /// A real server that was not in the service.
    ServerAdded {
        /// The service's label.
        service: Label,
        /// The new server.
        server: Server,
    },
    /// A real server that is no more in the service.
    ServerRemoved {
        /// The service's label.
        service: Label,
        /// The server's label.
        server: Label,
    },
    /// A real server of the same label with other values.
    ServerChanged {
        /// The service's label.
        service: Label,
        /// The server's label.
        server: Label,
        /// At least one.
        fields: Vec<FieldChange>,
    },
}

/// A field's value before and after, as the file writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// The key, with a dot within a section: `persistence.timeout`.
    pub field: String,
    /// `None`: had no value.
    pub old: Option<String>,
    /// `None`: has no value any more.
    pub new: Option<String>,
}

/// What turns `old` into `new`: the node first, then removed services, then the others in the order of `new`.
///
/// Empty for two configurations that differ in order only.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    let fields = changed_fields(&node_fields(&old.node), &node_fields(&new.node));
    if !fields.is_empty() {
        changes.push(Change::NodeChanged { fields });
    }
    let removed = old.services.iter().filter(|service| new.service(service.label.as_str()).is_none());
    changes.extend(removed.map(|service| Change::ServiceRemoved { service: service.label.clone() }));
    for service in &new.services {
        match old.service(service.label.as_str()) {
            None => changes.push(Change::ServiceAdded { service: Box::new(service.clone()) }),
            Some(before) => diff_service(before, service, &mut changes),
        }
    }
    changes
}

fn diff_service(old: &Service, new: &Service, changes: &mut Vec<Change>) {
    let service = &new.label;
    let fields = changed_fields(&service_fields(old), &service_fields(new));
    if !fields.is_empty() {
        changes.push(Change::ServiceChanged { service: service.clone(), fields });
    }
    let removed = old.real_servers.iter().filter(|server| new.server(server.label.as_str()).is_none());
    changes.extend(
        removed
            .map(|server| Change::ServerRemoved { service: service.clone(), server: server.label.clone() }),
    );
    for server in &new.real_servers {
        let Some(before) = old.server(server.label.as_str()) else {
            changes.push(Change::ServerAdded { service: service.clone(), server: server.clone() });
            continue;
        };
        let fields = changed_entries(&own(server_fields(before)), &own(server_fields(server)));
        if !fields.is_empty() {
            changes.push(Change::ServerChanged {
                service: service.clone(),
                server: server.label.clone(),
                fields,
            });
        }
    }
}

type Entries = Vec<(String, String)>;

fn changed_fields(old: &RenderedFields, new: &RenderedFields) -> Vec<FieldChange> {
    changed_entries(&flat(old), &flat(new))
}

fn changed_entries(old: &Entries, new: &Entries) -> Vec<FieldChange> {
    let value = |entries: &Entries, key: &str| entries.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let only_old = old.iter().filter(|(key, _)| value(new, key).is_none());
    new.iter()
        .chain(only_old)
        .map(|(key, _)| FieldChange { field: key.clone(), old: value(old, key), new: value(new, key) })
        .filter(|change| change.old != change.new)
        .collect()
}

fn flat(fields: &RenderedFields) -> Entries {
    let mut entries = Vec::new();
    for (key, value) in fields {
        match value {
            Rendered::One(text) => entries.push(((*key).to_owned(), text.clone())),
            Rendered::Map(inner) => {
                entries.extend(inner.iter().map(|(inner, text)| (format!("{key}.{inner}"), text.clone())));
            }
        }
    }
    entries
}

fn own(fields: Vec<(&'static str, String)>) -> Entries {
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// An address as it stands before a port (RFC 3986 section 3.2.2).
fn host(address: &IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeChanged { fields } => write!(f, "~ node: {}", list(fields)),
            Self::ServiceAdded { service } => {
                let Service { label, address, ports, protocol, real_servers, .. } = &**service;
                let (address, servers) = (host(address), real_servers.len());
                let ports = port_list(ports).join(",");
                let plural = if servers == 1 { "" } else { "s" };
                write!(
                    f,
                    "+ virtual service {label} ({address}:{ports}, {protocol}, {servers} real server{plural})"
                )
            }
            Self::ServiceRemoved { service } => write!(f, "- virtual service {service}"),
            Self::ServiceChanged { service, fields } => {
                write!(f, "~ virtual service {service}: {}", list(fields))
            }
            Self::ServerAdded { service, server } => {
                let Server { label, address, port, same_port, weight } = server;
                let place =
                    if *same_port { address.to_string() } else { format!("{}:{port}", host(address)) };
                write!(f, "+ real server {service}/{label} ({place}, weight {weight})")
            }
            Self::ServerRemoved { service, server } => write!(f, "- real server {service}/{server}"),
            Self::ServerChanged { service, server, fields } => {
                write!(f, "~ real server {service}/{server}: {}", list(fields))
            }
        }
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
        write!(f, "{} {} -> {}", self.field, shown(&self.old), shown(&self.new))
    }
}

fn list(fields: &[FieldChange]) -> String {
    fields.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{HealthKind, Persistence, Scope, parse};

    const EXAMPLE: &str = include_str!("../../../docs/examples/steadfast.yaml");

    fn example() -> Config {
        parse("example", EXAMPLE).unwrap()
    }

    fn lines(old: &Config, new: &Config) -> Vec<String> {
        diff(old, new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_configuration_does_not_differ_from_itself_in_another_order() {
        let mut reversed = example();
        reversed.services.reverse();
        for service in &mut reversed.services {
            service.real_servers.reverse();
        }
        assert_eq!(lines(&example(), &reversed), Vec::<String>::new());
    }

    #[test]
    fn each_changed_field_is_named_with_its_old_and_new_value() {
        let mut new = example();
        new.node.tables.flows *= 2;
        let service = &mut new.services[0];
        service.persistence = Persistence::SourceIp {
            timeout: Duration::from_secs(7200),
            ipv6_prefix: 128,
            scope: Scope::Service,
        };
        service.health_check.kind = HealthKind::Https;
        service.health_check.host = Some("hyperspace.example".to_owned());
        service.real_servers[0].weight = 50;
        assert_eq!(
            lines(&example(), &new),
            [
                "~ node: tables.flows 262144 -> 524288",
                "~ virtual service Hyperspace: persistence.timeout 1h -> 2h, health_check.kind tcp -> https, \
                 health_check.path (none) -> /, health_check.host (none) -> hyperspace.example, \
                 health_check.verify (none) -> none, \
                 health_check.expect_status (none) -> [200-399]",
                "~ real server Hyperspace/Hyperspace_Srv_1: weight 100 -> 50",
            ]
        );
    }

    #[test]
    fn added_and_removed_services_and_servers_are_told_apart_from_changed_ones() {
        let mut new = example();
        let removed = new.services.remove(3);
        let mut added = removed.clone();
        added.label = "Intranet".parse().unwrap();
        new.services.push(added);
        let mut server = new.services[0].real_servers.remove(0);
        server.label = "Spare".parse().unwrap();
        new.services[0].real_servers.push(server);
        assert_eq!(
            lines(&example(), &new),
            [
                "- virtual service MyChart_redirect",
                "- real server Hyperspace/Hyperspace_Srv_1",
                "+ real server Hyperspace/Spare (192.168.85.200:443, weight 100)",
                "+ virtual service Intranet (192.168.85.151:80, http, 0 real servers)",
            ]
        );
    }

    #[test]
    fn an_ipv6_address_is_in_brackets_before_a_port() {
        let mut new = example();
        let mut added = new.services[0].clone();
        added.label = "Six".parse().unwrap();
        added.address = "2001:db8::150".parse().unwrap();
        added.real_servers.truncate(0);
        new.services.push(added);
        let mut server = new.services[0].real_servers[0].clone();
        server.label = "Spare".parse().unwrap();
        server.address = "2001:db8::203".parse().unwrap();
        new.services[0].real_servers.push(server);
        assert_eq!(
            lines(&example(), &new),
            [
                "+ real server Hyperspace/Spare ([2001:db8::203]:443, weight 100)",
                "+ virtual service Six ([2001:db8::150]:443, tcp, 0 real servers)",
            ]
        );
    }

    #[test]
    fn a_change_serialises_with_its_kind() {
        let mut new = example();
        new.services[0].real_servers[1].weight = 0;
        assert_eq!(
            serde_json::to_value(diff(&example(), &new)).unwrap(),
            serde_json::json!([{
                "change": "server-changed", "service": "Hyperspace", "server": "Hyperspace_Srv_2",
                "fields": [{ "field": "weight", "old": "100", "new": "0" }],
            }])
        );
    }
}
