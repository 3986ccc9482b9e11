//! What was changed at run time, kept apart from the configuration's text.
//!
//! Administrative states and weights belong to the operation, not to the text: they survive a restart and a new
//! configuration, so that a reload never brings a drained server back. Servers added and removed by command last until
//! the next `config apply`, which says what the whole configuration is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::name::{AdminState, ServerName};
use crate::config::{self, Config, ConfigErrors, InvalidLabel, Server};

/// The changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overlay {
    /// Servers that are not online.
    pub states: BTreeMap<ServerName, AdminState>,
    /// Weights that differ from the text's.
    pub weights: BTreeMap<ServerName, u16>,
    /// Servers that the text does not have.
    pub added: BTreeMap<ServerName, AddedServer>,
    /// Servers of the text that are not wanted.
    pub removed: BTreeSet<ServerName>,
}

/// A server that was added by command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedServer {
    /// Its address.
    pub address: IpAddr,
    /// Its port; with `same_port` the first of the service's.
    pub port: u16,
    /// Clients reach it at the port that they asked for.
    #[serde(default)]
    pub same_port: bool,
    /// Its weight.
    pub weight: u16,
}

/// Why an overlay does not fit its configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverlayError {
    /// A label that is none.
    #[error("the label \"{0}\" {1}")]
    Label(String, InvalidLabel),
    /// A service that is not there.
    #[error("there is no virtual service \"{0}\"")]
    NoService(String),
    /// What came out breaks the configuration's own rules.
    #[error("{0}")]
    Rules(ConfigErrors),
}

impl Overlay {
    /// A server's administrative state.
    #[must_use]
    pub fn state(&self, name: &ServerName) -> AdminState {
        self.states.get(name).copied().unwrap_or_default()
    }

    /// Sets a server's administrative state.
    pub fn set_state(&mut self, name: ServerName, state: AdminState) {
        if state == AdminState::Online {
            self.states.remove(&name);
        } else {
            self.states.insert(name, state);
        }
    }

    /// Forgets everything about a server.
    pub fn forget(&mut self, name: &ServerName) {
        self.states.remove(name);
        self.weights.remove(name);
        self.added.remove(name);
    }

    /// Fits the overlay to another text, after a restart: what does not apply any more goes. Says what went.
    pub fn fit(&mut self, base: &Config) -> Vec<String> {
        let mut gone = Vec::new();
        // One that was put in another's place: both commands end with the text that they were about.
        let replaced = |name: &ServerName| self.added.contains_key(name);
        self.removed.retain(|name| !replaced(name));
        let in_base = |name: &ServerName| has(base, name);
        let service_in_base = |name: &ServerName| base.service(&name.service).is_some();
        self.added.retain(|name, _| {
            let keep = service_in_base(name) && !in_base(name);
            if !keep {
                gone.push(format!("{name} was added by command: the new configuration decides on it"));
            }
            keep
        });
        self.removed.retain(|name| {
            let keep = in_base(name);
            if !keep {
                gone.push(format!(
                    "{name} was removed by command: the new configuration does not have it either"
                ));
            }
            keep
        });
        gone.extend(self.keep_states_of(base));
        gone
    }

    /// Fits the overlay to a text that was applied as the whole configuration. Says what went, and what stays.
    pub fn apply(&mut self, base: &Config) -> Vec<String> {
        let mut notes = Vec::new();
        for name in self.added.keys().filter(|name| !has(base, name)) {
            notes
                .push(format!("{name} was added by command and is not in this configuration: it is removed"));
        }
        for name in self.removed.iter().filter(|name| has(base, name)) {
            notes.push(format!(
                "{name} was removed by command and is in this configuration: it is added again"
            ));
        }
        self.added.clear();
        self.removed.clear();
        notes.extend(self.keep_states_of(base));
        for (name, state) in &self.states {
            notes.push(format!("{name} stays in state {state}, as set by command"));
        }
        for (name, weight) in &self.weights {
            notes.push(format!(
                "{name} keeps weight {weight}, as set by command, whatever this configuration says"
            ));
        }
        notes
    }

    fn keep_states_of(&mut self, base: &Config) -> Vec<String> {
        let mut gone = BTreeSet::new();
        let known: BTreeSet<ServerName> = self.added.keys().cloned().collect();
        let mut keep = |name: &ServerName| {
            let keep = has(base, name) || known.contains(name);
            if !keep {
                gone.insert(name.clone());
            }
            keep
        };
        self.states.retain(|name, _| keep(name));
        self.weights.retain(|name, _| keep(name));
        gone.into_iter()
            .map(|name| {
                format!("the state and weight set for {name} are forgotten: it is not there any more")
            })
            .collect()
    }
}

/// The configuration that is in force: `base` with the overlay's servers and weights, checked again by its own rules.
///
/// # Errors
/// What of the overlay does not fit.
pub fn effective(base: &Config, overlay: &Overlay) -> Result<Config, OverlayError> {
    let mut config = base.clone();
    for service in &mut config.services {
        let service_label = service.label.clone();
        let name = |server: &Server| ServerName::new(service_label.as_str(), server.label.as_str());
        service.real_servers.retain(|server| !overlay.removed.contains(&name(server)));
        for server in &mut service.real_servers {
            if let Some(weight) = overlay.weights.get(&name(server)) {
                server.weight = *weight;
            }
        }
    }
    for (name, added) in &overlay.added {
        let label = name.server.parse().map_err(|error| OverlayError::Label(name.server.clone(), error))?;
        let service = config
            .services
            .iter_mut()
            .find(|service| service.label == name.service.as_str())
            .ok_or_else(|| OverlayError::NoService(name.service.clone()))?;
        service.real_servers.push(Server {
            label,
            address: added.address,
            port: added.port,
            // The service may have come to have one port since.
            same_port: added.same_port && service.ports.len() > 1,
            weight: added.weight,
        });
    }
    config::parse("the running configuration", &config.to_yaml()).map_err(OverlayError::Rules)
}

/// Whether `config` has this server.
#[must_use]
pub fn has(config: &Config, name: &ServerName) -> bool {
    config.service(&name.service).is_some_and(|service| service.server(&name.server).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(servers: &[(&str, u8)]) -> Config {
        crate::core::testing::config(&[("V", 150, servers)])
    }

    fn name(server: &str) -> ServerName {
        ServerName::new("V", server)
    }

    fn added(host: u8) -> AddedServer {
        AddedServer { address: [192, 0, 2, host].into(), port: 443, same_port: false, weight: 7 }
    }

    #[test]
    fn commands_change_what_is_in_force_and_not_the_text() {
        let base = base(&[("a", 1), ("b", 2)]);
        let mut overlay = Overlay::default();
        overlay.added.insert(name("c"), added(3));
        overlay.removed.insert(name("a"));
        overlay.weights.insert(name("b"), 0);
        let config = effective(&base, &overlay).unwrap();
        let servers: Vec<_> =
            config.services[0].real_servers.iter().map(|s| (s.label.as_str(), s.weight)).collect();
        assert_eq!(servers, [("b", 0), ("c", 7)]);
    }

    #[test]
    fn a_server_can_be_put_in_the_place_of_a_removed_one() {
        let base = base(&[("a", 1)]);
        let mut overlay = Overlay::default();
        overlay.removed.insert(name("a"));
        overlay.added.insert(name("a"), added(9));
        let config = effective(&base, &overlay).unwrap();
        assert_eq!(config.services[0].real_servers[0].weight, 7);
        assert!(!overlay.fit(&base).is_empty());
        assert_eq!(overlay, Overlay::default());
    }

    #[test]
    fn what_breaks_the_rules_is_refused_with_their_words() {
        let base = base(&[("a", 1)]);
        for (server, host) in [("a", 9), ("c", 1), ("c", 150)] {
            let mut overlay = Overlay::default();
            overlay.added.insert(name(server), added(host));
            assert!(matches!(effective(&base, &overlay), Err(OverlayError::Rules(_))), "{server} {host}");
        }
        let mut overlay = Overlay::default();
        overlay.added.insert(name("not a label"), added(9));
        assert!(matches!(effective(&base, &overlay), Err(OverlayError::Label(..))));
        let mut overlay = Overlay::default();
        overlay.weights.insert(name("a"), 1001);
        assert!(matches!(effective(&base, &overlay), Err(OverlayError::Rules(_))));
    }

    #[test]
    fn after_a_restart_with_another_text_the_overlay_stays_as_far_as_it_fits() {
        let mut overlay = Overlay::default();
        overlay.added.insert(name("c"), added(3));
        overlay.added.insert(name("d"), added(4));
        overlay.removed.insert(name("a"));
        overlay.removed.insert(name("gone"));
        overlay.set_state(name("b"), AdminState::Drain);
        overlay.set_state(name("d"), AdminState::Halt);
        overlay.set_state(name("gone"), AdminState::Drain);
        overlay.weights.insert(name("gone"), 3);
        let notes = overlay.fit(&base(&[("a", 1), ("b", 2), ("c", 30)]));
        assert_eq!(overlay.added.keys().collect::<Vec<_>>(), [&name("d")]);
        assert_eq!(overlay.removed, BTreeSet::from([name("a")]));
        assert_eq!(overlay.state(&name("b")), AdminState::Drain);
        assert_eq!(overlay.state(&name("d")), AdminState::Halt);
        assert_eq!((overlay.states.len(), overlay.weights.len()), (2, 0));
        assert_eq!(notes.len(), 3);
    }

    #[test]
    fn applying_a_text_never_undrains_a_server_and_ends_what_was_added_and_removed() {
        let mut overlay = Overlay::default();
        overlay.added.insert(name("c"), added(3));
        overlay.removed.insert(name("a"));
        overlay.set_state(name("b"), AdminState::Drain);
        overlay.set_state(name("c"), AdminState::Drain);
        overlay.weights.insert(name("b"), 5);
        let notes = overlay.apply(&base(&[("a", 1), ("b", 2)]));
        assert!(overlay.added.is_empty() && overlay.removed.is_empty());
        assert_eq!(overlay.states.keys().collect::<Vec<_>>(), [&name("b")]);
        assert_eq!(overlay.weights[&name("b")], 5);
        assert!(notes.iter().any(|note| note.contains("V/b stays in state drain")));
        assert!(notes.iter().any(|note| note.contains("V/b keeps weight 5")));
    }

    #[test]
    fn going_online_is_having_no_state() {
        let mut overlay = Overlay::default();
        overlay.set_state(name("a"), AdminState::Halt);
        overlay.set_state(name("a"), AdminState::Online);
        assert_eq!(overlay, Overlay::default());
    }
}
