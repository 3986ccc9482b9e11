//! The one owner of the running configuration and of the maps' content. It knows no sockets: whoever runs it tells it
//! what happened, and carries out what it wants of the network.

mod change;
mod doubt;
mod durable;
mod growth;
mod request;
mod silence;
mod sticky;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use lb_common::clock::Ticks;
use lb_common::maps::ServerInfo;
use lb_common::server::{ServerState, Servers as _};
use tracing::{info, warn};

use super::problems::Problems;
use super::store::{Loaded, OwnAddress, State, Store};
use crate::config::{self, Config, HealthKind, Protocol};
use crate::core::apply::{apply, wait_for_packets};
use crate::core::desired::{
    At, Desired, Inputs, Leaving, ServerHealth, UP_WITH_NOTE, desired, health_verdict, ip, leaving,
};
use crate::core::overlay::effective;
use crate::core::rows::Usage;
use crate::core::slow_start::Growth;
use crate::core::text::unpadded;
use crate::core::{AdminState, Applied, Before, Ids, Overlay, ServerName};
use crate::dataplane::Maps;
use crate::firewall;
use crate::health::state::Verdict;
use crate::health::{HealthEvent, HealthNews, HealthTable};
use crate::net::{Link, Mac};
use crate::redirect::listening::{Listener, Listening};

use doubt::Doubts;
use durable::Unsaved;
use silence::Silence;

pub use change::Refusal;
pub use request::{
    AddServer, ApplyConfig, Confirm, ForgetClient, MoveClient, PlanConfig, RemoveServer, Request,
    ServerStateOf, SetServer,
};

/// Ticks (seconds) between two comparisons of everything.
const RESYNC: u64 = 30;

/// The time of day.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What the daemon says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Since when it runs.
    pub started_at: Timestamp,
    /// The configuration file.
    pub file: String,
    /// The interface.
    pub interface: String,
    /// How the program runs there.
    pub xdp_mode: String,
}

/// The next hop to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Its address.
    pub neighbour: IpAddr,
    /// The number of the interface that it is reached by.
    pub arm: u8,
}

/// See the module.
pub struct Engine {
    maps: Arc<Maps>,
    store: Store,
    clock: Clock,
    about: About,
    state: State,
    /// The text in force, understood; without the overlay.
    base: Config,
    /// With the overlay.
    running: Config,
    health: BTreeMap<u16, ServerHealth>,
    health_table: HealthTable,
    /// The next hop of each server's address.
    hops: BTreeMap<IpAddr, Hop>,
    /// What is known of the next hops; those not yet heard of are not in it.
    neighbours: BTreeMap<IpAddr, Option<Mac>>,
    /// Servers that go without their flows being waited for.
    reset: BTreeSet<u16>,
    leaving: BTreeMap<u16, Leaving>,
    ticks: u64,
    doubts: Doubts,
    silence: Silence,
    /// Servers that took clients before anything was known of them: those of the start, and of services that came later.
    trusted: BTreeSet<u16>,
    /// Servers whose checks cannot say anything because of the network.
    cut_off: BTreeSet<u16>,
    /// Services of which it was said that no server takes new clients.
    refusing: BTreeSet<u16>,
    growth: Growth,
    /// Whether everything has its number; before, nothing can be written.
    begun: bool,
    /// Whether what is wanted of the network may have changed.
    moved: bool,
    /// Servers whose open flows were told to end.
    resetting: Vec<u16>,
    /// Whether sticky records got other names, and flows other records to hold.
    renamed: bool,
    /// Which redirects listen, and which did when the maps were last written.
    listening: Listening,
    listened: BTreeMap<SocketAddr, Listener>,
    /// How the host's firewall table stood when it was last compared.
    firewall: Result<firewall::Report, String>,
    in_the_way: InTheWay,
    unsaved: Unsaved,
    problems: Problems,
}

/// What is thought of servers that are not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unchecked {
    /// They get no unknown clients: so it is.
    Wait,
    /// They have answered: so it is to be.
    HaveAnswered,
}

/// What a configuration asks of the network that it can't have.
pub type InTheWay = fn(&Config) -> Vec<String>;

/// The configuration file, read.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// Where it is.
    pub source: String,
    /// What it says.
    pub text: String,
    /// What that means.
    pub config: Config,
}

/// What is known before the data path is there: the state of the last time, and the text in force.
pub struct Memory {
    /// Where it is kept.
    pub store: Store,
    /// What is remembered.
    pub state: State,
    /// The text in force, understood.
    pub base: Config,
    /// With the overlay.
    pub running: Config,
    /// Why nothing could be read, if something was there.
    pub lost: Option<String>,
    /// Whether the state is one that was read.
    pub is_recalled: bool,
}

impl Memory {
    /// Reads the state file, and decides which text is in force: the file's, unless it has not changed since another
    /// was applied.
    #[must_use]
    pub fn recall(mut store: Store, file: &ConfigFile) -> Self {
        let (mut state, is_recalled, lost) = match store.load() {
            Loaded::State(state) => (*state, true, None),
            Loaded::Nothing => (State::new(&file.text), false, None),
            Loaded::Broken(why) => (State::new(&file.text), false, Some(why)),
        };
        let mut base = file.config.clone();
        if state.file_text == file.text {
            if let Some(applied) = &state.applied {
                match config::parse(&applied.source, &applied.text) {
                    Ok(config) => {
                        info!(
                            "in force is the configuration applied from {}, not the file's: the file has not changed \
                             since",
                            applied.source
                        );
                        base = config;
                    }
                    Err(error) => {
                        warn!("the configuration applied from {} is dropped: {error}", applied.source);
                        state.applied = None;
                    }
                }
            }
        } else {
            if let Some(applied) = state.applied.take() {
                warn!(
                    "the configuration file has changed: it replaces the configuration applied from {}",
                    applied.source
                );
            }
            file.text.clone_into(&mut state.file_text);
            for note in state.overlay.fit(&base) {
                warn!("{note}");
            }
        }
        let running = match effective(&base, &state.overlay) {
            Ok(running) => running,
            Err(error) => {
                warn!(
                    "servers added or removed and weights set by command are dropped, they no longer fit: {error}"
                );
                state.overlay = Overlay { states: state.overlay.states, ..Overlay::default() };
                base.clone()
            }
        };
        Self { store, state, base, running, lost, is_recalled }
    }
}

impl Engine {
    /// Takes over maps whose control is set up. Of `adopted` ones, numbers and health are as they say.
    #[must_use]
    pub fn new(maps: Arc<Maps>, memory: Memory, about: About, clock: Clock, adopted: bool) -> Self {
        let Memory { store, mut state, base, running, lost, is_recalled } = memory;
        let mut health = BTreeMap::new();
        if adopted {
            state.ids = Ids::merge(Ids::recover(&maps), state.ids);
            health = health_of(&maps);
            if !is_recalled {
                recover_states(&maps, &running, &mut state.overlay);
            }
        }
        let mut problems = Problems::default();
        if let Some(why) = lost {
            problems.raise("state", "lost", why, clock());
        }
        Self {
            maps,
            store,
            clock,
            about,
            state,
            base,
            running,
            health,
            health_table: HealthTable::default(),
            hops: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            reset: BTreeSet::new(),
            leaving: BTreeMap::new(),
            ticks: 0,
            doubts: Doubts::default(),
            silence: Silence::default(),
            trusted: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            refusing: BTreeSet::new(),
            growth: Growth::default(),
            begun: false,
            moved: true,
            resetting: Vec::new(),
            renamed: false,
            listening: Listening::default(),
            listened: BTreeMap::new(),
            firewall: Err("not made yet".to_owned()),
            in_the_way: |_| Vec::new(),
            unsaved: Unsaved::default(),
            problems,
        }
    }

    /// Brings the maps to what they should hold, and makes the state durable if that is possible.
    ///
    /// # Errors
    /// Too many services or servers; the kernel's.
    pub fn begin(&mut self) -> anyhow::Result<Applied> {
        let now = self.maps.now()?;
        let usage = Usage::of(&self.maps, now);
        self.state.ids =
            self.state.ids.assign(&self.running, &usage.in_use, self.endpoints(), self.unix())?;
        self.keep(&self.state.clone());
        self.begun = true;
        // A cold start serves at once.
        self.trusted = self.checked_servers().map(|(id, _, _)| id).collect();
        let applied = self.resync()?;
        // Flows of servers that reset already: whoever was at it may not have finished.
        self.resetting.extend((0..u16::MAX).take(self.maps.servers.len()).filter(|id| {
            self.maps.servers.present(*id).is_some_and(|server| server.state.has(ServerState::RESETS))
        }));
        self.resetting.sort_unstable();
        self.resetting.dedup();
        Ok(applied)
    }

    /// The configuration in force.
    #[must_use]
    pub const fn running(&self) -> &Config {
        &self.running
    }

    /// The maps.
    #[must_use]
    pub const fn maps(&self) -> &Arc<Maps> {
        &self.maps
    }

    /// Takes the health checks' results from here on.
    pub fn set_health_table(&mut self, table: HealthTable) {
        self.health_table = table;
    }

    /// Takes from here on which redirects listen.
    pub fn set_listening(&mut self, listening: Listening) {
        self.listening = listening;
    }

    /// The servers that cannot be checked, with why: all of them, each time.
    pub fn set_uncheckable(&mut self, mut uncheckable: BTreeMap<u16, String>) {
        for (id, health) in &mut self.health {
            health.uncheckable = uncheckable.remove(id);
        }
        for (id, why) in uncheckable {
            self.health.insert(id, ServerHealth { uncheckable: Some(why), ..ServerHealth::default() });
        }
    }

    /// The health of every server as known now: what a new checker begins with.
    #[must_use]
    pub fn known_health(&self) -> BTreeMap<u32, Verdict> {
        self.health.iter().filter_map(|(id, health)| Some((u32::from(*id), health.verdict?))).collect()
    }

    /// Has what is wanted of the network compared with what is there again.
    pub const fn set_moved(&mut self) {
        self.moved = true;
    }

    /// Whether what is wanted of the network may have changed since this was last asked.
    pub const fn take_moved(&mut self) -> bool {
        std::mem::replace(&mut self.moved, false)
    }

    /// Whether sticky records got other names since this was last asked.
    pub const fn take_renamed(&mut self) -> bool {
        std::mem::replace(&mut self.renamed, false)
    }

    /// Servers whose open flows are to be told to end, since this was last asked.
    pub fn take_resetting(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.resetting)
    }

    /// A server's name.
    #[must_use]
    pub fn name_of(&self, id: u16) -> Option<&ServerName> {
        self.state.ids.server_name(id)
    }

    /// Has candidates refused for what the network does not give them: a sentence each ([`super::routers::in_the_way`]).
    pub fn refuse_by(&mut self, in_the_way: InTheWay) {
        self.in_the_way = in_the_way;
    }

    /// The addresses of every server that packets are sent to.
    #[must_use]
    pub fn server_addresses(&self) -> BTreeSet<IpAddr> {
        let configured = balanced(&self.running).flat_map(|service| &service.real_servers);
        let leaving = self.leaving.values().map(|leaving| IpAddr::from(leaving.server.address));
        configured.map(|server| server.address).chain(leaving).collect()
    }

    /// The servers to check: number, service, server.
    pub fn checked_servers(&self) -> impl Iterator<Item = (u16, &config::Service, &config::Server)> {
        balanced(&self.running).flat_map(move |service| {
            service.real_servers.iter().filter_map(move |server| {
                let name = ServerName::new(service.label.as_str(), server.label.as_str());
                Some((self.state.ids.server(&name)?, service, server))
            })
        })
    }

    /// Where the daemon itself answers.
    #[must_use]
    pub fn redirects(&self) -> BTreeSet<SocketAddr> {
        self.running
            .services
            .iter()
            .filter(|service| service.protocol == Protocol::Http)
            .flat_map(|service| service.ports.iter().map(|port| SocketAddr::new(service.address, *port)))
            .collect()
    }

    /// The addresses that the interface should have.
    #[must_use]
    pub fn wanted_addresses(&self) -> BTreeSet<IpAddr> {
        let services = self.running.services.iter().map(|service| service.address);
        services.chain(self.running.node.snat_addresses.iter().copied()).collect()
    }

    /// The addresses that the daemon has put on an interface.
    #[must_use]
    pub const fn own_addresses(&self) -> &BTreeSet<OwnAddress> {
        &self.state.addresses
    }

    /// Remembers which addresses the daemon has put on an interface.
    pub fn remember_addresses(&mut self, addresses: BTreeSet<OwnAddress>) {
        if self.state.addresses != addresses {
            self.state.addresses = addresses;
            self.keep(&self.state.clone());
        }
    }

    /// What is wrong now.
    pub const fn problems(&mut self) -> &mut Problems {
        &mut self.problems
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Remembers how the host's firewall table stands.
    pub fn set_firewall(&mut self, report: Result<firewall::Report, String>) {
        self.firewall = report;
    }

    /// Tells the data path which frames are for us.
    ///
    /// # Errors
    /// The kernel does not take the interface for packets that leave by it.
    pub fn set_arm(&self, number: u8, link: &Link) -> anyhow::Result<()> {
        let arms = &self.maps.control().arms;
        let arm = arms.get(usize::from(number)).context("more interfaces than there can be")?;
        self.maps.kernel.set_arm(number, link.index)?;
        arm.mac.store(lb_common::flow::mac_word(link.mac));
        arm.interface.store(u64::from(link.index) | u64::from(link.mtu.min(0xffff)) << 32);
        self.maps.control().changed();
        Ok(())
    }

    /// The next hop of each server's address, anew.
    pub fn set_hops(&mut self, hops: BTreeMap<IpAddr, Hop>) {
        if hops == self.hops {
            return;
        }
        self.hops = hops;
        let watched: BTreeSet<IpAddr> = self.hops.values().map(|hop| hop.neighbour).collect();
        self.neighbours.retain(|address, _| watched.contains(address));
        self.resync_or_warn("the routes to the servers");
    }

    /// Next hops have other MAC addresses, or none. However many there are, everything is compared once: that takes tens of
    /// milliseconds at a large site, and a switch that goes takes all of its neighbours with it.
    pub fn neighbours(&mut self, news: impl IntoIterator<Item = (IpAddr, Option<Mac>)>) {
        let mut concerned = false;
        for (address, mac) in news {
            concerned |= self.note_neighbour(address, mac);
        }
        if concerned {
            self.resync_or_warn("a neighbour");
        }
    }

    /// Whether servers are behind it.
    fn note_neighbour(&mut self, address: IpAddr, mac: Option<Mac>) -> bool {
        self.neighbours.insert(address, mac);
        let behind: Vec<String> = self
            .hops
            .iter()
            .filter(|(_, hop)| hop.neighbour == address)
            .map(|(server, _)| server.to_string())
            .collect();
        if behind.is_empty() {
            return false;
        }
        match mac {
            Some(mac) => info!("{address} is at {}: the way to {}", mac_text(mac), behind.join(", ")),
            None => warn!(
                "{address} has not answered ({}) for a minute: packets to {} are dropped until it does or they are down",
                if address.is_ipv4() { "ARP" } else { "neighbour discovery" },
                behind.join(", ")
            ),
        }
        true
    }

    /// Says which next hops have not answered yet.
    pub fn warn_of_unknown_neighbours(&self) {
        let mut unknown: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for (server, hop) in &self.hops {
            if !matches!(self.neighbours.get(&hop.neighbour), Some(Some(_))) {
                unknown.entry(hop.neighbour).or_default().push(server.to_string());
            }
        }
        for (neighbour, servers) in unknown {
            warn!(
                "{neighbour} has not answered yet: packets to {} are dropped until it does",
                servers.join(", ")
            );
        }
    }

    /// Whether the MAC address of every next hop is known.
    #[must_use]
    pub fn all_reachable(&self) -> bool {
        self.hops.values().all(|hop| matches!(self.neighbours.get(&hop.neighbour), Some(Some(_))))
    }

    /// Health checks have told something. Whatever comes at once, as for many servers after a start, has the maps brought up
    /// to date once.
    pub fn health_news(&mut self, news: impl IntoIterator<Item = HealthNews>) {
        let mut changes = Vec::new();
        for news in news {
            let change = self.believe(news).and_then(|event| Some((self.note_health(&event)?, event)));
            changes.extend(change);
        }
        if changes.is_empty() {
            return;
        }
        let effect = self.planned_effect();
        let together = changes.len() > 1;
        for ((name, before), event) in &changes {
            let effect = if together { String::new() } else { format!("; {effect}") };
            match (event.health, before) {
                (Verdict::Up, Some(Verdict::Down)) => info!("{name} is up again: {}{effect}", event.reason),
                (Verdict::Up, _) => info!("{name} is up: {}{effect}", event.reason),
                (Verdict::Down, _) => warn!("{name} is down: {}{effect}", event.reason),
            }
        }
        if together {
            info!("the health of {} servers changed at once: {effect}", changes.len());
        }
        self.resync_or_warn("a server's health");
    }

    /// What a check told, if it is to be believed.
    fn believe(&mut self, news: HealthNews) -> Option<HealthEvent> {
        let target = match &news {
            HealthNews::Changed(event) => event.target_id,
            HealthNews::Missed { target_id, .. } => *target_id,
        };
        let id = u16::try_from(target).ok()?;
        // Unknown traffic is no sign of life.
        let returned = self.maps.kernel.server_traffic(id).map_or(0, |traffic| traffic.packets_out);
        match news {
            HealthNews::Changed(event) => {
                let now = self.uptime();
                let believed = self.doubts.changed(id, event, returned, now);
                if believed.is_none()
                    && let Some(name) = self.name_of(id)
                {
                    warn!(
                        "{name} does not answer its checks, but its connections: it stays as it is until they fall \
                         silent, for {}s at most",
                        doubt::LONGEST.as_secs()
                    );
                }
                believed
            }
            HealthNews::Missed { .. } => self.doubts.missed(id, self.uptime(), returned),
        }
    }

    /// Notes a server's health. Gives its name, and what was thought of it before.
    fn note_health(&mut self, event: &HealthEvent) -> Option<(String, Option<Verdict>)> {
        let id = u16::try_from(event.target_id).ok()?;
        let name = self.state.ids.server_name(id).map(ToString::to_string)?;
        let health = ServerHealth {
            verdict: Some(event.health),
            since: seconds(event.at),
            reason: event.reason.clone(),
            certificate_expires: event
                .certificate_expires
                .map(seconds)
                .or_else(|| self.health.get(&id).map(|before| before.certificate_expires))
                .unwrap_or_default(),
            note: self.health_table.get(event.target_id).and_then(|view| view.note),
            uncheckable: None,
            no_verdict: None,
        };
        self.trusted.remove(&id);
        let before = self.health.insert(id, health);
        Some((name, before.and_then(|before| before.verdict)))
    }

    /// Once a second.
    ///
    /// # Errors
    /// The clock of the data path.
    pub fn tick(&mut self) -> anyhow::Result<()> {
        self.ticks += 1;
        let jiffies = self.maps.kernel.jiffies()?;
        let control = self.maps.control();
        control.daemon.store(u64::from(std::process::id()));
        control.heartbeat.store(jiffies);
        if !self.leaving.is_empty() {
            self.finish_leaving(Ticks::from_jiffies(jiffies));
        }
        self.grow();
        self.look_for_silence();
        self.keep_again();
        self.look_at_listeners();
        if self.ticks.is_multiple_of(RESYNC) {
            self.take_notes();
            self.moved = true;
            let applied = self.resync()?;
            if applied.changed() {
                warn!("the maps did not hold what they should, and do again: {applied:?}");
            }
        }
        Ok(())
    }

    /// Shows it soon when a redirect's port is taken by somebody else, or free again.
    fn look_at_listeners(&mut self) {
        let listening = self.listening.all();
        if listening != self.listened {
            self.listened = listening;
            self.resync_or_warn("which redirects listen");
        }
    }

    fn finish_leaving(&mut self, now: Ticks) {
        let usage = Usage::of(&self.maps, now);
        let finished: Vec<String> = self
            .leaving
            .iter()
            .filter(|(id, _)| usage.server(**id).flows == 0)
            .map(|(_, leaving)| unpadded(&leaving.info.label))
            .collect();
        if !finished.is_empty() {
            info!("no connection is left on {}: removed", finished.join(", "));
            self.resync_or_warn("removed servers");
            self.moved = true;
        }
    }

    /// What checks have seen of servers whose health did not change.
    fn take_notes(&mut self) {
        for view in self.health_table.all() {
            let Ok(id) = u16::try_from(view.id) else { continue };
            let health = self.health.entry(id).or_default();
            if let Some(expires) = view.certificate_expires {
                health.certificate_expires = seconds(expires);
            }
            if let Some(note) = view.note.as_ref().filter(|note| health.note.as_ref() != Some(*note)) {
                let name =
                    self.state.ids.server_name(id).map_or_else(|| format!("#{id}"), ToString::to_string);
                info!("{name} answers its checks: {note}");
            }
            health.note = view.note;
        }
    }

    /// What bringing the maps up to date would do to clients, for the log.
    fn planned_effect(&mut self) -> String {
        let mut plan = || -> anyhow::Result<_> {
            let now = self.maps.now()?;
            let (desired, _) = self.desired(&self.running, &self.state, now)?;
            self.say_who_refuses(&desired);
            let before = Before::whole(&self.maps)?;
            Ok(crate::core::plan(&self.maps, &before, &desired, now, (self.clock)()))
        };
        plan().map_or_else(|error| format!("its effect is not known: {error:#}"), |plan| plan.summary())
    }

    fn resync_or_warn(&mut self, about: &str) {
        if !self.begun {
            return;
        }
        if let Err(error) = self.resync() {
            warn!("{about}: the maps were not brought up to date, and will be tried again: {error:#}");
        }
    }

    /// Compares everything and writes what differs.
    fn resync(&mut self) -> anyhow::Result<Applied> {
        let now = self.maps.now()?;
        let (desired, leaving) = self.desired(&self.running, &self.state, now)?;
        self.put(&desired, leaving, now)
    }

    fn put(
        &mut self,
        desired: &Desired,
        leaving: BTreeMap<u16, Leaving>,
        now: Ticks,
    ) -> anyhow::Result<Applied> {
        let maps = Arc::clone(&self.maps);
        let applied = apply(&maps, desired, now, &mut || wait_for_packets(&maps))
            .context("the maps were not brought up to date")?;
        self.say_who_refuses(desired);
        self.resetting.extend(&applied.resetting);
        self.renamed |= applied.renamed > 0;
        self.reset.retain(|id| leaving.contains_key(id));
        // What is not checked any more is not known any more, should its number return.
        self.health.retain(|id, _| desired.servers.contains_key(id));
        self.doubts.retain(|id| desired.servers.contains_key(&id));
        self.trusted.retain(|id| desired.servers.contains_key(id));
        self.leaving = leaving;
        self.observe_growth(desired);
        Ok(applied)
    }

    fn desired(
        &self,
        running: &Config,
        state: &State,
        now: Ticks,
    ) -> anyhow::Result<(Desired, BTreeMap<u16, Leaving>)> {
        self.desired_if(running, state, now, Unchecked::Wait)
    }

    fn desired_if(
        &self,
        running: &Config,
        state: &State,
        now: Ticks,
        unchecked: Unchecked,
    ) -> anyhow::Result<(Desired, BTreeMap<u16, Leaving>)> {
        // Counting is for those that go, which are few and rare.
        let usage = std::cell::OnceCell::new();
        let has_flows = |id| usage.get_or_init(|| Usage::of(&self.maps, now)).server(id).flows > 0;
        let leaving = leaving(&self.maps, running, &state.ids, has_flows, |id| self.reset.contains(&id));
        let control = self.maps.control();
        let macs = self.macs(running, &state.ids, &leaving);
        let inputs = Inputs {
            config: running,
            overlay: &state.overlay,
            health: &self.health,
            macs: &macs,
            leaving: &leaving,
            ids: &state.ids,
            hz: control.hz.load(),
            seed: control.maglev_seed.load(),
            growth: &self.growth,
            uptime: self.uptime(),
            listening: &self.listened,
            unsure: &match unchecked {
                Unchecked::Wait => self.unsure(running, state, &macs),
                Unchecked::HaveAnswered => self.cut_off.clone(),
            },
        };
        Ok((desired(&inputs)?, leaving))
    }

    /// The servers of which nothing is known now: those that have not been checked yet, or whose MAC address is not known, and
    /// those that the network does not reach.
    fn unsure(&self, running: &Config, state: &State, macs: &BTreeMap<u16, At>) -> BTreeSet<u16> {
        let is_checked = |id: &u16| {
            let known = |health: &ServerHealth| health.verdict.is_some() || health.uncheckable.is_some();
            self.health.get(id).is_some_and(known)
        };
        let mut unsure = self.cut_off.clone();
        for service in balanced(running) {
            let check = &service.health_check;
            // See `trust_new_services`.
            let is_new = self.running.service(service.label.as_str()).is_none();
            let waits = check.kind != HealthKind::None && check.answer_first;
            let ids = service.real_servers.iter().filter_map(|server| {
                state.ids.server(&ServerName::new(service.label.as_str(), server.label.as_str()))
            });
            unsure.extend(ids.filter(|id| {
                let is_trusted = is_new || self.trusted.contains(id);
                !is_trusted && (waits && !is_checked(id) || !macs.contains_key(id))
            }));
        }
        unsure
    }

    /// The MAC address towards each server. One whose next hop was not heard of yet keeps the one it has: after a start
    /// that adopts, or a change of routes, traffic goes on until something better is known.
    fn macs(&self, running: &Config, ids: &Ids, leaving: &BTreeMap<u16, Leaving>) -> BTreeMap<u16, At> {
        let configured = balanced(running).flat_map(|service| {
            service.real_servers.iter().filter_map(|server| {
                let name = ServerName::new(service.label.as_str(), server.label.as_str());
                Some((ids.server(&name)?, server.address))
            })
        });
        let leaving = leaving.iter().map(|(id, leaving)| (*id, IpAddr::from(leaving.server.address)));
        configured
            .chain(leaving)
            .filter_map(|(id, address)| {
                let heard = self
                    .hops
                    .get(&address)
                    .and_then(|hop| Some((hop.arm, self.neighbours.get(&hop.neighbour)?)));
                let at = match heard {
                    Some((arm, mac)) => mac.map(|mac| At { arm, mac }),
                    None => self
                        .maps
                        .servers
                        .present(id)
                        .filter(|live| {
                            live.state.has(ServerState::REACHABLE) && IpAddr::from(live.address) == address
                        })
                        .map(|live| At { arm: live.arm, mac: live.mac }),
                };
                Some((id, at?))
            })
            .collect()
    }

    /// How many endpoints the maps have room for.
    fn endpoints(&self) -> u32 {
        let snat = lb_common::control::Snat::from_word(self.maps.control().snat.load());
        let pairs = u32::try_from(self.maps.port_cursors.len()).unwrap_or(u32::MAX);
        pairs / u32::from(snat.rows().max(1))
    }

    fn unix(&self) -> u64 {
        seconds((self.clock)())
    }
}

/// The services that are balanced.
fn balanced(config: &Config) -> impl Iterator<Item = &config::Service> {
    config.services.iter().filter(|service| service.protocol.is_balanced())
}

/// Who is drained or halted, as the maps show it.
fn recover_states(maps: &Maps, running: &Config, overlay: &mut Overlay) {
    let infos = (0..maps.server_info.len()).filter_map(|id| maps.server_info.read(id));
    for info in infos.filter(|info| info.label[0] != 0) {
        let service =
            maps.service_info.read(usize::from(info.service)).map(|service| unpadded(&service.label));
        let name = ServerName::new(&service.unwrap_or_default(), &unpadded(&info.label));
        let state = AdminState::from_number(info.state);
        if state != AdminState::Online && crate::core::overlay::has(running, &name) {
            warn!("{name} is {state}, as the running data path has it: the state file does not say");
            overlay.set_state(name, state);
        }
    }
}

/// The health that the maps show.
fn health_of(maps: &Maps) -> BTreeMap<u16, ServerHealth> {
    (0..u16::MAX)
        .take(maps.server_info.len())
        .filter_map(|id| {
            let info = maps.server_info.read(usize::from(id)).filter(|info| info.label[0] != 0)?;
            // Of another address, nothing is known.
            maps.servers.present(id).filter(|server| ip(info.address) == IpAddr::from(server.address))?;
            let is_silent = info.health & ServerInfo::NO_VERDICT != 0;
            let number = info.health & !ServerInfo::NO_VERDICT;
            let note = (number == UP_WITH_NOTE && !is_silent).then(|| unpadded(&info.health_reason));
            let health = ServerHealth {
                verdict: health_verdict(number),
                since: info.health_since,
                reason: unpadded(&info.health_reason),
                certificate_expires: info.certificate_expires,
                note,
                uncheckable: None,
                no_verdict: None,
            };
            Some((id, health))
        })
        .collect()
}

/// Seconds since 1970.
fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or_default()
}

/// A MAC address as people write it.
#[must_use]
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
