//! What the daemon wants of the host's network: addresses on the interface, neighbours watched, servers checked,
//! redirects listening.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel, unbounded_channel};
use tokio::time::sleep;
use tracing::{info, warn};

use super::conflicts::{Change, Conflicts};
use super::descriptors;
use super::engine::{Engine, Hop, mac_text};
use super::redirects::Redirects;
use super::routers::refusals;
use super::sources::of_family;
use super::store::OwnAddress;
use crate::config::{self, AddressConflict};
use crate::firewall::{Follower, Guarded};
use crate::health::hold::{Network, Port, Way};
use crate::health::spec::{self, SpecError, TargetSpec};
use crate::health::{Checker, Environment, HealthNews};
use crate::net::frames::address_probe;
use crate::net::{
    ANNOUNCE_SCHEDULE, Added, Claims, Family, Link, LinkEvent, Mac, Neighbours, Net, NetError, NetEvent,
    PacketSocket, Removed, Timing, announce,
};

/// How often a refused question to the kernel is asked again, and after which pause.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(20);

/// Asks the kernel again when it refuses: a listing that is under way makes it call the next one busy.
///
/// A macro, because a future that holds an async closure is not known to be `Send`.
macro_rules! patiently {
    ($ask:expr) => {{
        let mut attempt = 0;
        loop {
            match $ask {
                Err(_) if attempt < ATTEMPTS => attempt += 1,
                answer => break answer,
            }
            sleep(PAUSE).await;
        }
    }};
}

/// See the module.
pub struct Outside {
    net: Net,
    /// The interfaces; the services' addresses are on the first.
    arms: Vec<Arm>,
    checker: Checker,
    redirects: Redirects,
    /// The addresses that packets to the servers and health checks come from.
    sources: Vec<IpAddr>,
    /// Those of them that the interface has not.
    missing: Vec<IpAddr>,
    firewall: Follower,
    announced: BTreeSet<IpAddr>,
    told: Sender<ArmEvent>,
    /// How many servers are checked.
    checked: usize,
    /// How each server is reached.
    ways: BTreeMap<IpAddr, Way>,
    conflicts: Conflicts,
    /// Addresses that wait for others to go.
    held: BTreeSet<IpAddr>,
    claims: Option<Listening>,
}

/// Who claims which address on the interface of that number.
struct Listening {
    index: u32,
    heard: Receiver<(IpAddr, Mac)>,
    _claims: Claims,
}

/// An interface that the program is attached to.
struct Arm {
    link: Link,
    /// None while it is not there.
    neighbours: Option<Neighbours>,
}

/// What comes from outside.
pub struct News {
    /// Health checks' results.
    pub health: UnboundedReceiver<HealthNews>,
    /// The kernel's.
    pub network: Receiver<ArmEvent>,
}

/// What the kernel tells about the interface with this place in the configuration and this number of the kernel's.
pub struct ArmEvent(usize, u32, NetEvent);

impl Outside {
    /// Begins to watch; nothing is changed yet.
    ///
    /// # Errors
    /// No netlink socket.
    pub fn start(
        net: Net,
        links: Vec<Link>,
        sources: Vec<IpAddr>,
        engine: &mut Engine,
        seed: u64,
    ) -> anyhow::Result<(Self, News)> {
        let (sender, health) = unbounded_channel();
        let checker = Checker::new(Environment::real(seed), engine.known_health(), sender);
        engine.set_health_table(checker.table());
        let redirects = Redirects::default();
        engine.set_listening(redirects.listening());
        let (told, network) = channel(1);
        let arms = links.into_iter().map(|link| Arm { link, neighbours: None }).collect();
        let mut outside = Self {
            net,
            arms,
            checker,
            redirects,
            sources,
            missing: Vec::new(),
            firewall: Follower::default(),
            announced: BTreeSet::new(),
            told,
            checked: 0,
            ways: BTreeMap::new(),
            conflicts: Conflicts::default(),
            held: BTreeSet::new(),
            claims: None,
        };
        for number in 0..outside.arms.len() {
            let link = outside.arms[number].link.clone();
            if link.is_there() {
                outside.follow_arm(number, link, engine)?;
            } else {
                raise_missing(&link.name, engine);
            }
        }
        Ok((outside, News { health, network }))
    }

    /// Follows an interface from now on.
    fn follow_arm(&mut self, number: usize, link: Link, engine: &mut Engine) -> anyhow::Result<()> {
        engine.set_arm(u8::try_from(number)?, &link)?;
        let index = link.index;
        let (neighbours, mut events) =
            Neighbours::start(&self.net, link.clone(), Timing::default(), BTreeSet::new())
                .with_context(|| format!("the neighbours on {} cannot be followed", link.name))?;
        let told = self.told.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if told.send(ArmEvent(number, index, event)).await.is_err() {
                    break;
                }
            }
        });
        self.arms[number] = Arm { link, neighbours: Some(neighbours) };
        Ok(())
    }

    /// Looks for interfaces that were not there, and follows those that are.
    pub async fn look_for_interfaces(&mut self, engine: &mut Engine) {
        for number in 0..self.arms.len() {
            let arm = &self.arms[number];
            if arm.link.is_there() {
                continue;
            }
            let name = arm.link.name.clone();
            let Ok(link) = self.net.link(&name).await else { continue };
            match self.follow_arm(number, link, engine) {
                Ok(()) => {
                    engine.problems().clear(
                        INTERFACE,
                        &name,
                        &format!("{name} is there, and is served again"),
                    );
                    self.announced.clear();
                    engine.set_moved();
                }
                Err(error) => warn!("{name} is there, and is tried again: {error:#}"),
            }
        }
    }

    /// The addresses that wait for somebody else to go, or for the answer to whether anybody has them.
    async fn addresses_of_others(&self, wanted: &BTreeSet<IpAddr>, engine: &Engine) -> BTreeSet<IpAddr> {
        if engine.running().node.address_conflict == AddressConflict::Take {
            return BTreeSet::new();
        }
        let present = self.net.addresses(self.link().index).await.unwrap_or_default();
        let is_here = |address: &IpAddr| present.iter().any(|here| here.address == *address);
        let now = Instant::now();
        wanted
            .iter()
            .copied()
            .filter(|address| !is_here(address) && !self.conflicts.is_free(*address, now))
            .collect()
    }

    /// Asks whether another machine has one of our addresses, and says so where one has.
    pub fn look_for_conflicts(&mut self, engine: &mut Engine) {
        let now = Instant::now();
        let link = self.link().clone();
        self.listen(&link);
        let ours: Vec<Mac> = self.arms.iter().map(|arm| arm.link.mac).collect();
        let mut changes = self.conflicts.watch(&engine.wanted_addresses(), now);
        if let Some(Listening { heard, .. }) = &mut self.claims {
            while let Ok((address, mac)) = heard.try_recv() {
                changes.extend(self.conflicts.claim(address, mac, &ours, now));
            }
        }
        changes.extend(self.conflicts.gone(now));
        if link.up {
            ask(&link, &self.conflicts.due(now));
        }
        for change in changes {
            tell(change, &link.name, engine);
        }
        if self.held.iter().any(|address| self.conflicts.is_free(*address, now)) {
            engine.set_moved();
        }
    }

    /// Whether answers may still come to the first questions.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.link().up && self.claims.is_some() && self.conflicts.is_asking(Instant::now())
    }

    fn listen(&mut self, link: &Link) {
        if self.claims.as_ref().is_some_and(|listening| listening.index == link.index) {
            return;
        }
        self.claims = None;
        if link.is_there() {
            match Claims::listen(link.index) {
                Ok((claims, heard)) => {
                    self.claims = Some(Listening { index: link.index, heard, _claims: claims });
                }
                Err(error) => warn!("whether others have our addresses is not known: {error}"),
            }
        }
    }

    /// The interfaces, by number.
    #[must_use]
    pub fn links(&self) -> Vec<Link> {
        self.arms.iter().map(|arm| arm.link.clone()).collect()
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.arms.iter().map(|arm| arm.link.name.as_str()).collect();
        names.join(", ")
    }

    /// The one that clients' addresses are on.
    fn link(&self) -> &Link {
        &self.arms[0].link
    }

    /// The number of the interface with this index.
    fn arm_of(&self, index: u32) -> Option<usize> {
        self.arms.iter().position(|arm| arm.link.index == index)
    }

    /// Makes the network be as the engine wants it.
    pub async fn follow(&mut self, engine: &mut Engine) {
        self.follow_hops(engine).await;
        // Before the addresses: there is no moment in which the host answers for a service.
        self.follow_firewall(engine).await;
        self.follow_addresses(engine).await;
        self.follow_checks(engine);
        self.redirects.follow(&engine.redirects());
    }

    /// Guards what the program takes from the host's own stack.
    async fn follow_firewall(&mut self, engine: &mut Engine) {
        let guarded = Guarded::of(engine.maps());
        let mut firewall = std::mem::take(&mut self.firewall);
        let followed = tokio::task::spawn_blocking(move || {
            let report = firewall.follow(&guarded);
            (firewall, report)
        });
        if let Ok((firewall, report)) = followed.await {
            self.firewall = firewall;
            engine.set_firewall(report);
        }
    }

    /// Finds the next hop of each server, and watches it.
    pub async fn follow_hops(&mut self, engine: &mut Engine) {
        if !self.link().is_there() {
            return;
        }
        let mut hops = BTreeMap::new();
        let mut routers = BTreeMap::new();
        let mut ways = BTreeMap::new();
        let mut watched = vec![BTreeSet::new(); self.arms.len()];
        for server in engine.server_addresses() {
            let hop = match patiently!(self.net.next_hop(self.link().index, server).await) {
                Ok(hop) => hop,
                Err(error) => {
                    if matches!(error, NetError::NoRoute { .. } | NetError::UnusableRoute { .. }) {
                        ways.insert(server, Way::None);
                    }
                    warn!("packets to {server} are dropped: {error}");
                    continue;
                }
            };
            ways.insert(server, Way::Through(hop.interface));
            match self.arm_of(hop.interface) {
                Some(number) => {
                    watched[number].insert(hop.neighbour);
                    hops.insert(
                        server,
                        Hop { neighbour: hop.neighbour, arm: u8::try_from(number).unwrap_or(0) },
                    );
                }
                None => warn!(
                    "{server} is not reached through {}: packets to it are dropped; correct the routes, or the \
                     server's address",
                    self.names()
                ),
            }
            routers.extend(hop.gateway.map(|router| (server, router)));
        }
        for refusal in refusals(engine.running(), |server| routers.get(&server).copied()) {
            warn!("{refusal}");
        }
        for (arm, watched) in self.arms.iter().zip(watched) {
            if let Some(neighbours) = &arm.neighbours {
                neighbours.watch(watched);
            }
        }
        self.ways = ways;
        self.tell_checker();
        engine.set_hops(hops);
    }

    /// What a server's silence means depends on how the network is.
    fn tell_checker(&self) {
        let ports = self
            .arms
            .iter()
            .map(|arm| (arm.link.index, Port { name: arm.link.name.clone(), up: arm.link.up }));
        self.checker.set_network(Network { ways: self.ways.clone(), ports: ports.collect() });
    }

    /// Puts the wanted addresses on the interface, announces new ones, and takes away ours that are not wanted.
    pub async fn follow_addresses(&mut self, engine: &mut Engine) {
        if !self.link().is_there() {
            return;
        }
        let mut wanted = engine.wanted_addresses();
        let taken = self.addresses_of_others(&wanted, engine).await;
        wanted.retain(|address| !taken.contains(address));
        self.held = taken;
        let mut own = engine.own_addresses().clone();
        let interface = self.link().name.clone();
        for address in &wanted {
            match patiently!(self.net.add_address(self.link().index, *address).await) {
                Ok(Added::ByUs) => {
                    info!("{address} added to {interface}");
                    own.insert(OwnAddress { interface: interface.clone(), address: *address });
                    self.announced.remove(address);
                }
                Ok(Added::AlreadyThere) => {}
                Err(error) => warn!("{error}"),
            }
        }
        let unwanted: Vec<OwnAddress> = own
            .iter()
            .filter(|own| own.interface == interface && !wanted.contains(&own.address))
            .cloned()
            .collect();
        for address in unwanted {
            match patiently!(self.net.remove_address(self.link().index, address.address).await) {
                Ok(removed) => {
                    if removed == Removed::ByUs {
                        info!("{} removed from {interface}", address.address);
                    }
                    own.remove(&address);
                }
                Err(error) => warn!("{error}"),
            }
        }
        engine.remember_addresses(own);
        let fresh: BTreeSet<IpAddr> = wanted.difference(&self.announced).copied().collect();
        self.announced = wanted;
        self.announce(fresh);
        self.look_for_sources().await;
    }

    /// An address of the interface's own is not the daemon's to put back: an IPv6 one goes whenever the interface is set
    /// down (`net.ipv6.conf.NAME.keep_addr_on_down`).
    async fn look_for_sources(&mut self) {
        let mut present = Vec::new();
        for arm in self.arms.iter().filter(|arm| arm.link.is_there()) {
            match patiently!(self.net.addresses(arm.link.index).await) {
                Ok(addresses) => present.extend(addresses),
                Err(error) => return warn!("{error}"),
            }
        }
        let is_usable =
            |source: &IpAddr| present.iter().any(|address| address.address == *source && !address.duplicate);
        let missing: Vec<IpAddr> = self.sources.iter().copied().filter(|source| !is_usable(source)).collect();
        let interface = self.names();
        for source in missing.iter().filter(|source| !self.missing.contains(source)) {
            warn!(
                "{source}, to which the servers answer, is not on {interface} any more, or is another machine's too: \
                 put it back (ip addr add {source}/PREFIX dev {interface})"
            );
        }
        for source in self.missing.iter().filter(|source| !missing.contains(source)) {
            info!("{interface} has {source} again");
        }
        self.missing = missing;
    }

    /// The next time the interface is up, everything is announced again.
    fn announce(&self, addresses: BTreeSet<IpAddr>) {
        if addresses.is_empty() || !self.link().up {
            return;
        }
        let link = self.link().clone();
        tokio::spawn(async move {
            let mut waited = Duration::ZERO;
            for at in ANNOUNCE_SCHEDULE {
                sleep(at.saturating_sub(waited)).await;
                waited = at;
                for address in &addresses {
                    if let Err(error) = announce(&link, *address) {
                        warn!("{address} was not announced: {error}");
                    }
                }
            }
        });
    }

    fn follow_checks(&mut self, engine: &mut Engine) {
        let mut targets = Vec::new();
        let mut uncheckable = BTreeMap::new();
        for (id, service, server) in engine.checked_servers() {
            let source = of_family(&self.sources, Family::of(server.address));
            match target(id, service, server, source) {
                Ok(target) => targets.push(target),
                Err(error) => {
                    warn!("{}/{} is not checked, and counts as up: {error}", service.label, server.label);
                    uncheckable.insert(id, format!("its check cannot be made: {error}"));
                }
            }
        }
        if self.checked != targets.len() {
            self.checked = targets.len();
            descriptors::warn_of_shortage(self.checked);
        }
        if let Err(error) = self.checker.set_targets(targets) {
            warn!("{error}");
        }
        engine.set_uncheckable(uncheckable);
    }

    /// Takes in what the kernel told, all of it together: a change of many addresses is told of one by one.
    ///
    /// # Errors
    /// The kernel does not take the interface for packets that leave by it.
    pub async fn events(
        &mut self,
        events: impl IntoIterator<Item = ArmEvent>,
        engine: &mut Engine,
    ) -> anyhow::Result<()> {
        let (mut neighbours, mut routes, mut addresses) = (Vec::new(), false, false);
        for ArmEvent(number, index, event) in events {
            // Of one that is gone, more may have been told than was taken in.
            if self.arms[number].link.index != index {
                continue;
            }
            match event {
                NetEvent::Neighbour(event) => neighbours.push((event.address, event.mac)),
                NetEvent::RouteChanged => routes = true,
                NetEvent::AddressChanged => addresses = true,
                NetEvent::Link(event) => {
                    let renewed = self.link_event(number, event, engine)?;
                    (routes, addresses) = (routes || renewed, addresses || renewed);
                }
            }
        }
        engine.neighbours(neighbours);
        if addresses {
            self.follow_addresses(engine).await;
        }
        if routes {
            self.follow_hops(engine).await;
        }
        Ok(())
    }

    /// Whether addresses and routes are to be looked at again.
    fn link_event(&mut self, number: usize, event: LinkEvent, engine: &mut Engine) -> anyhow::Result<bool> {
        let LinkEvent::Changed(link) = event else {
            let name = self.arms[number].link.name.clone();
            raise_missing(&name, engine);
            self.arms[number] = Arm { link: Link::missing(&name), neighbours: None };
            return Ok(true);
        };
        let before = std::mem::replace(&mut self.arms[number].link, link.clone());
        if before.name != link.name {
            warn!(
                "{} is called {} now: it is served as before; a start looks for {}",
                before.name, link.name, before.name
            );
        }
        match (before.up, link.up) {
            (true, false) => warn!("{} has no link: nobody is reached through it", link.name),
            (false, true) => info!("{} has a link again", link.name),
            _ => {}
        }
        self.tell_checker();
        engine.set_arm(u8::try_from(number)?, &link)?;
        let renewed = link.up && !before.up || link.mac != before.mac;
        if renewed {
            self.announced.clear();
        }
        Ok(renewed)
    }
}

/// The kind of problem that an interface is.
const INTERFACE: &str = "interface";

fn raise_missing(name: &str, engine: &mut Engine) {
    let text = format!(
        "the interface {name} is not there: nobody is reached through it, the others are served, and no session is given \
         up for it; it is used again as soon as there is one of that name"
    );
    let now = engine.now();
    engine.problems().raise(INTERFACE, name, text, now);
}

/// Asks whether anybody has these addresses.
fn ask(link: &Link, addresses: &[IpAddr]) {
    if addresses.is_empty() {
        return;
    }
    let Ok(socket) = PacketSocket::open(link.index) else { return };
    for address in addresses {
        // What is lost is asked again.
        let _lost = socket.send(&address_probe(link.mac, *address));
    }
}

fn tell(change: Change, interface: &str, engine: &mut Engine) {
    const KIND: &str = "conflict";
    let now = engine.now();
    match change {
        Change::Found(address, mac) => {
            let waits = match engine.running().node.address_conflict {
                AddressConflict::Take => "",
                AddressConflict::Wait => {
                    "; unless it was here before, it is not taken until then (address_conflict: wait)"
                }
            };
            let text = format!(
                "{address} is also at {}, another machine on {interface}: clients reach the one or the other by chance. \
                 Switch it off, or take the address from it (a server of mode dr must not answer ARP or neighbour \
                 discovery for it){waits}",
                mac_text(mac)
            );
            engine.problems().raise(KIND, &address.to_string(), text, now);
        }
        Change::Gone(address, mac) => {
            let said = format!("{} does not answer for {address} any more: it is ours alone", mac_text(mac));
            engine.problems().clear(KIND, &address.to_string(), &said);
        }
    }
}

/// How a server is checked.
fn target(
    id: u16,
    service: &config::Service,
    server: &config::Server,
    source: Option<IpAddr>,
) -> Result<TargetSpec, SpecError> {
    let check = &service.health_check;
    let (probe, rhythm) = spec::from_config(check, source)?;
    Ok(TargetSpec {
        id: u32::from(id),
        address: SocketAddr::new(server.address, check.port.unwrap_or(server.port)),
        probe,
        rhythm,
    })
}
