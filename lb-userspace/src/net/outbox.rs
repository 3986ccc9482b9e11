//! What the daemon is told of its network, and how it is kept until the daemon takes it: of each subject only the
//! newest news, so that a flood of kernel events (a routing daemon's restart) neither piles up nor blocks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Link, Mac};

/// A change of the host's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// A watched neighbour has another usable MAC address, or none.
    Neighbour(NeighbourEvent),
    /// The interface changed.
    Link(LinkEvent),
    /// Some route changed: resolve the next hops again.
    RouteChanged,
    /// Some address of the interface changed: compare them with those wanted.
    AddressChanged,
}

/// The usable MAC address of a watched neighbour changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourEvent {
    /// The watched address.
    pub address: IpAddr,
    /// Where to send its frames; `None` when it does not answer.
    pub mac: Option<Mac>,
}

/// What happened to the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// It went up or down, or has another name, MAC address or MTU: this is how it is now.
    Changed(Link),
    /// It is gone; one of the same name is another one.
    Removed,
}

/// News not yet taken, at most one of each subject.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    link: Option<LinkEvent>,
    routes: bool,
    addresses: bool,
    neighbours: BTreeMap<IpAddr, Option<Mac>>,
}

impl Outbox {
    /// Puts in news; what was there of the same subject gives way.
    pub(super) fn push(&mut self, event: NetEvent) {
        match event {
            NetEvent::Link(event) => self.link = Some(event),
            NetEvent::RouteChanged => self.routes = true,
            NetEvent::AddressChanged => self.addresses = true,
            NetEvent::Neighbour(NeighbourEvent { address, mac }) => {
                self.neighbours.insert(address, mac);
            }
        }
    }

    /// Takes out news: the link's first, as the others follow from it.
    pub(super) fn pop(&mut self) -> Option<NetEvent> {
        if let Some(event) = self.link.take() {
            return Some(NetEvent::Link(event));
        }
        if std::mem::take(&mut self.addresses) {
            return Some(NetEvent::AddressChanged);
        }
        if std::mem::take(&mut self.routes) {
            return Some(NetEvent::RouteChanged);
        }
        let (address, mac) = self.neighbours.pop_first()?;
        Some(NetEvent::Neighbour(NeighbourEvent { address, mac }))
    }

    /// Whether there is nothing to take.
    pub(super) fn is_empty(&self) -> bool {
        self.link.is_none() && !self.routes && !self.addresses && self.neighbours.is_empty()
    }

    /// Drops news of the neighbours that are not `watched` any more.
    pub(super) fn retain_neighbours(&mut self, watched: impl Fn(&IpAddr) -> bool) {
        self.neighbours.retain(|address, _| watched(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::ip;

    fn neighbour(address: &str, mac: Option<Mac>) -> NetEvent {
        NetEvent::Neighbour(NeighbourEvent { address: ip(address), mac })
    }

    #[test]
    fn only_the_newest_news_of_each_subject_is_kept() {
        let mut outbox = Outbox::default();
        outbox.push(neighbour("192.0.2.1", Some([1; 6])));
        outbox.push(neighbour("192.0.2.2", Some([2; 6])));
        for _ in 0..1000 {
            outbox.push(NetEvent::RouteChanged);
        }
        outbox.push(neighbour("192.0.2.1", None));
        outbox.push(NetEvent::AddressChanged);
        outbox.push(NetEvent::Link(LinkEvent::Removed));
        let taken: Vec<NetEvent> = std::iter::from_fn(|| outbox.pop()).collect();
        assert_eq!(
            taken,
            [
                NetEvent::Link(LinkEvent::Removed),
                NetEvent::AddressChanged,
                NetEvent::RouteChanged,
                neighbour("192.0.2.1", None),
                neighbour("192.0.2.2", Some([2; 6])),
            ]
        );
        assert!(outbox.is_empty());
    }

    #[test]
    fn news_of_a_neighbour_no_longer_watched_is_dropped() {
        let mut outbox = Outbox::default();
        outbox.push(neighbour("192.0.2.1", None));
        outbox.push(neighbour("192.0.2.2", None));
        outbox.retain_neighbours(|address| *address == ip("192.0.2.2"));
        assert_eq!(outbox.pop(), Some(neighbour("192.0.2.2", None)));
        assert!(outbox.is_empty());
    }
}
