//! Stable numbers for services, servers and endpoints.
//!
//! The tables name servers and services by number, so a number belongs to a label as long as any row of a table
//! says it: a label that comes back meanwhile gets its old number, and with it its clients; another label never
//! does.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use lb_common::server::{Server, Servers as _};
use lb_common::service::{MAX_SERVERS, MAX_SERVICES};
use serde::{Deserialize, Serialize};

use super::name::ServerName;
use super::text::unpadded;
use crate::config::Config;
use crate::dataplane::Maps;

/// Which number belongs to what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    services: BTreeMap<String, ServiceId>,
    servers: BTreeMap<ServerName, u16>,
    endpoints: BTreeMap<SocketAddr, u16>,
}

/// A service's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceId {
    /// The number.
    pub id: u16,
    /// When it was given to this label, seconds since 1970.
    pub since: u64,
}

/// The numbers that rows of the tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Services.
    pub services: BTreeSet<u16>,
    /// Servers.
    pub servers: BTreeSet<u16>,
    /// Endpoints.
    pub endpoints: BTreeSet<u16>,
}

/// No number is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no number left for another {what}: all {limit} are configured, or were lately and are still named by \
     flows or sticky records; remove {what}s, or wait until those have ended"
)]
pub struct NoFreeId {
    /// Of what.
    pub what: &'static str,
    /// How many there are.
    pub limit: u32,
}

impl Ids {
    /// The number of a service.
    #[must_use]
    pub fn service(&self, label: &str) -> Option<ServiceId> {
        self.services.get(label).copied()
    }

    /// The number of a server.
    #[must_use]
    pub fn server(&self, name: &ServerName) -> Option<u16> {
        self.servers.get(name).copied()
    }

    /// The number of a server's address and port.
    #[must_use]
    pub fn endpoint(&self, address: SocketAddr) -> Option<u16> {
        self.endpoints.get(&address).copied()
    }

    /// The server with this number.
    #[must_use]
    pub fn server_name(&self, id: u16) -> Option<&ServerName> {
        self.servers.iter().find_map(|(name, number)| (*number == id).then_some(name))
    }

    /// The numbers for `config`: the old ones for what has them, free ones for what is new. What is not configured
    /// keeps its number while `in_use` says it. `endpoints` is how many there can be, `now` is in seconds since 1970.
    ///
    /// # Errors
    /// [`NoFreeId`].
    pub fn assign(
        &self,
        config: &Config,
        in_use: &InUse,
        endpoints: u32,
        now: u64,
    ) -> Result<Self, NoFreeId> {
        let mut servers = Vec::new();
        let mut places = Vec::new();
        for service in config.services.iter().filter(|s| s.protocol.is_balanced()) {
            for server in &service.real_servers {
                servers.push(ServerName::new(service.label.as_str(), server.label.as_str()));
                places.push(SocketAddr::new(server.address, server.port));
            }
        }
        let labels = config.services.iter().map(|s| s.label.as_str().to_owned());
        let known: BTreeMap<String, u16> =
            self.services.iter().map(|(label, number)| (label.clone(), number.id)).collect();
        let services = numbers(&known, labels, &in_use.services, "virtual service", MAX_SERVICES)?
            .into_iter()
            .map(|(label, id)| {
                let since = self.services.get(&label).map_or(now, |before| before.since);
                (label, ServiceId { id, since })
            })
            .collect();
        Ok(Self {
            services,
            servers: numbers(&self.servers, servers, &in_use.servers, "real server", MAX_SERVERS)?,
            endpoints: numbers(&self.endpoints, places, &in_use.endpoints, "endpoint", endpoints)?,
        })
    }

    /// What the maps themselves say: for a daemon that adopts them.
    #[must_use]
    pub fn recover(maps: &Maps) -> Self {
        let mut ids = Self::default();
        let mut labels = BTreeMap::new();
        for id in 0..numbers_below(maps.service_info.len()) {
            if let Some(info) = maps.service_info.read(usize::from(id)).filter(|i| i.label[0] != 0) {
                let label = unpadded(&info.label);
                labels.insert(id, label.clone());
                ids.services.insert(label, ServiceId { id, since: info.since });
            }
        }
        for id in 0..numbers_below(maps.server_info.len()) {
            let info = maps.server_info.read(usize::from(id)).filter(|i| i.label[0] != 0);
            if let Some(info) = info
                && let Some(service) = labels.get(&info.service)
            {
                ids.servers.insert(ServerName::new(service, &unpadded(&info.label)), id);
            }
            if let Some(server) = maps.servers.present(id) {
                ids.endpoints.insert(place(&server), server.endpoint);
            }
        }
        ids
    }

    /// What `live` maps say, and of what was `stored` whatever does not contradict them.
    #[must_use]
    pub fn merge(live: Self, stored: Self) -> Self {
        let taken: BTreeSet<u16> = live.services.values().map(|number| number.id).collect();
        let mut services = live.services;
        for (label, number) in stored.services {
            if !taken.contains(&number.id) {
                services.entry(label).or_insert(number);
            }
        }
        Self {
            services,
            servers: merge(live.servers, stored.servers),
            endpoints: merge(live.endpoints, stored.endpoints),
        }
    }
}

/// The address and port of a server's entry.
#[must_use]
pub fn place(server: &Server) -> SocketAddr {
    SocketAddr::new(IpAddr::from(server.address), u16::from_be(server.port))
}

fn numbers_below(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

fn merge<K: Ord>(mut live: BTreeMap<K, u16>, stored: BTreeMap<K, u16>) -> BTreeMap<K, u16> {
    let taken: BTreeSet<u16> = live.values().copied().collect();
    for (key, id) in stored {
        if !taken.contains(&id) {
            live.entry(key).or_insert(id);
        }
    }
    live
}

fn numbers<K: Ord + Clone>(
    known: &BTreeMap<K, u16>,
    wanted: impl IntoIterator<Item = K>,
    in_use: &BTreeSet<u16>,
    what: &'static str,
    limit: u32,
) -> Result<BTreeMap<K, u16>, NoFreeId> {
    let wanted: BTreeSet<K> = wanted.into_iter().collect();
    let mut numbers: BTreeMap<K, u16> = known
        .iter()
        .filter(|(key, id)| u32::from(**id) < limit && (wanted.contains(key) || in_use.contains(id)))
        .map(|(key, id)| (key.clone(), *id))
        .collect();
    let taken: BTreeSet<u16> = numbers.values().chain(in_use).copied().collect();
    let mut free = (0..u16::MAX).filter(|id| u32::from(*id) < limit && !taken.contains(id));
    for key in wanted {
        if let Entry::Vacant(place) = numbers.entry(key) {
            place.insert(free.next().ok_or(NoFreeId { what, limit })?);
        }
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_label_that_returns_while_rows_name_its_number_gets_it_back() {
        let none = BTreeSet::new();
        let first = numbers(&BTreeMap::new(), named(&["a", "b"]), &none, "thing", 8).unwrap();
        assert_eq!((first["a"], first["b"]), (0, 1));
        // "a" goes, but rows still say 0: another label does not get it, "a" itself does.
        let rows = BTreeSet::from([0]);
        let second = numbers(&first, named(&["b", "c"]), &rows, "thing", 8).unwrap();
        assert_eq!((second["b"], second["c"]), (1, 2));
        let third = numbers(&second, named(&["a", "b", "c"]), &rows, "thing", 8).unwrap();
        assert_eq!(third["a"], 0);
        // Once no row says it, it is free for others.
        let fourth = numbers(&second, named(&["b", "c", "d"]), &none, "thing", 8).unwrap();
        assert_eq!(fourth["d"], 0);
    }

    #[test]
    fn when_all_numbers_are_taken_that_is_said() {
        let rows = BTreeSet::from([0, 1]);
        let error = numbers(&BTreeMap::new(), named(&["a"]), &rows, "thing", 2).unwrap_err();
        assert_eq!(error.limit, 2);
    }

    proptest! {
        #[test]
        fn numbers_are_unique_stable_and_never_one_that_rows_say_of_another(
            known in prop::collection::btree_map(0u8..20, any::<prop::sample::Index>(), 0..10),
            wanted in prop::collection::btree_set(0u8..20, 0..12),
            in_use in prop::collection::btree_set(0u16..30, 0..10),
        ) {
            // Distinct numbers for what is known.
            let mut free: Vec<u16> = (0..30).collect();
            let known: BTreeMap<u8, u16> =
                known.into_iter().map(|(key, at)| (key, free.swap_remove(at.index(free.len())))).collect();
            let given = numbers(&known, wanted.clone(), &in_use, "thing", 64).unwrap();
            let distinct: BTreeSet<u16> = given.values().copied().collect();
            prop_assert_eq!(distinct.len(), given.len());
            for key in &wanted {
                match known.get(key) {
                    Some(id) => prop_assert_eq!(given[key], *id),
                    None => prop_assert!(!in_use.contains(&given[key])),
                }
            }
            for (key, id) in &given {
                prop_assert!(wanted.contains(key) || (known.get(key) == Some(id) && in_use.contains(id)));
            }
        }
    }
}
