//! Keeps the answers to clients on living hops: what [`crate::net::return_hops`] decides, carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use super::engine::mac_text;
use crate::dataplane::Maps;
use crate::dataplane::return_hops::{Connection, clients, connections, turn, used};
use crate::net::frames::tcp_keep_alive;
use crate::net::return_hops::{Ask, Decision, Doubt, Neighbour, ReturnHop, ReturnHops, Timing};
use crate::net::{Link, Net, PacketSocket};

/// Rounds are a second apart; the flow tables are read in each of so many, or when something new is doubted.
const READ_EVERY: u64 = 5;
/// Clients of a doubted hop whose routes are asked for in one round.
const CLIENTS_AT_ONCE: usize = 4096;
/// Clients that are asked in one round.
const ASKED_AT_ONCE: usize = 256;
/// So far behind the server's last number a keep-alive is: behind what its client has not acknowledged yet, and within the window
/// that a firewall on the way may remember.
const BEHIND: u32 = 1 << 16;

/// Follows neighbours and routes for the flows' sake, until it is dropped.
pub struct Follower {
    links: watch::Sender<Vec<Link>>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Begins to.
    #[must_use]
    pub fn start(net: Net, maps: Arc<Maps>, links: Vec<Link>) -> Self {
        let (sender, links) = watch::channel(links);
        let round = Round {
            net,
            maps,
            links,
            hops: ReturnHops::new(Timing::default()),
            used: BTreeSet::new(),
            doubted: BTreeSet::new(),
            next: BTreeSet::new(),
            place: 0,
        };
        Self { links: sender, task: tokio::spawn(round.run()) }
    }

    /// The interfaces as they are now, by number.
    pub fn set_links(&self, links: Vec<Link>) {
        self.links.send_if_modified(|known| {
            let changed = *known != links;
            *known = links;
            changed
        });
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Round {
    net: Net,
    maps: Arc<Maps>,
    links: watch::Receiver<Vec<Link>>,
    hops: ReturnHops,
    /// The MAC addresses that answers went to when the tables were last read.
    used: BTreeSet<ReturnHop>,
    /// Those that were doubted then.
    doubted: BTreeSet<ReturnHop>,
    /// The next hops of the doubted ones' clients.
    next: BTreeSet<Neighbour>,
    /// Where in the flow table to go on asking clients.
    place: usize,
}

/// What is done with the flows of doubted hops.
#[derive(Default)]
struct Done {
    turns: BTreeMap<(ReturnHop, IpAddr), ReturnHop>,
    asked: BTreeMap<(ReturnHop, IpAddr), ReturnHop>,
}

impl Round {
    async fn run(mut self) {
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for round in 0_u64.. {
            second.tick().await;
            let links = self.links.borrow_and_update().clone();
            self.observe(&links).await;
            if round.is_multiple_of(READ_EVERY) {
                self.used = self.read(used).await.unwrap_or_default();
            }
            let doubts = self.hops.doubts(&self.used);
            let doubted: BTreeSet<ReturnHop> = doubts.keys().copied().collect();
            if round.is_multiple_of(READ_EVERY) || !doubted.is_subset(&self.doubted) {
                self.resolve_doubts(&links, &doubts).await;
            }
            self.doubted = doubted;
            self.ask_neighbours(&links).await;
        }
    }

    /// Reads the flow tables on a thread where that may take its time.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Maps, lb_common::clock::Ticks) -> T + Send + 'static,
    ) -> Option<T> {
        let maps = Arc::clone(&self.maps);
        spawn_blocking(move || Some(read(&maps, maps.now().ok()?))).await.ok().flatten()
    }

    async fn observe(&mut self, links: &[Link]) {
        for (number, link) in (0..).zip(links) {
            match self.net.neighbours(link.index).await {
                Ok(table) => self.hops.observe(number, &table, Instant::now()),
                Err(error) => debug!(interface = %link.name, %error, "the neighbours were not read"),
            }
        }
    }

    async fn ask_neighbours(&mut self, links: &[Link]) {
        for ask in self.hops.ask(&self.used, &self.next, Instant::now()) {
            let (Ask::Confirm((number, address)) | Ask::Resolve((number, address))) = ask;
            let Some(link) = links.get(usize::from(number)) else { continue };
            let done = match ask {
                Ask::Confirm(_) => self.net.confirm_neighbour(link.index, address).await,
                Ask::Resolve(_) => self.net.resolve_neighbour(link.index, address).await,
            };
            if let Err(error) = done {
                debug!(interface = %link.name, %error, "a neighbour was not asked for; trying again");
            }
        }
    }

    async fn resolve_doubts(&mut self, links: &[Link], doubts: &BTreeMap<ReturnHop, Doubt>) {
        self.next.clear();
        if doubts.is_empty() {
            return;
        }
        let doubted: BTreeSet<ReturnHop> = doubts.keys().copied().collect();
        let read = move |maps: &Maps, now| clients(maps, now, &doubted, CLIENTS_AT_ONCE);
        let clients = self.read(read).await.unwrap_or_default();
        let mut ways = BTreeMap::new();
        for client in clients.values().flatten() {
            if !ways.contains_key(client) {
                ways.insert(*client, self.next_hops(links, *client).await);
            }
        }
        self.next.extend(ways.values().flatten());
        let done = self.decide(doubts, &clients, &ways);
        self.turn(links, doubts, done.turns).await;
        self.ask_clients(links, done.asked).await;
    }

    /// The next hops towards a client that are reached by our interfaces.
    async fn next_hops(&self, links: &[Link], client: IpAddr) -> Vec<Neighbour> {
        let index = links.first().map_or(0, |link| link.index);
        match self.net.next_hops(index, client).await {
            Ok(hops) => hops
                .iter()
                .filter_map(|hop| {
                    let number = links.iter().position(|link| link.index == hop.interface)?;
                    Some((u8::try_from(number).ok()?, hop.neighbour))
                })
                .collect(),
            Err(error) => {
                debug!(%error, "the way to a client is not known");
                Vec::new()
            }
        }
    }

    fn decide(
        &self,
        doubts: &BTreeMap<ReturnHop, Doubt>,
        clients: &BTreeMap<ReturnHop, BTreeSet<IpAddr>>,
        ways: &BTreeMap<IpAddr, Vec<Neighbour>>,
    ) -> Done {
        let mut done = Done::default();
        for (hop, clients) in clients {
            let Some(doubt) = doubts.get(hop) else { continue };
            for client in clients {
                let next = ways.get(client).map_or(&[][..], Vec::as_slice);
                match self.hops.decide(*hop, doubt, next) {
                    Decision::Stay => {}
                    Decision::Move(to) => {
                        done.turns.insert((*hop, *client), to);
                    }
                    Decision::AskClient(by) => {
                        done.asked.insert((*hop, *client), by);
                    }
                }
            }
        }
        done
    }

    async fn turn(
        &self,
        links: &[Link],
        doubts: &BTreeMap<ReturnHop, Doubt>,
        turns: BTreeMap<(ReturnHop, IpAddr), ReturnHop>,
    ) {
        if turns.is_empty() {
            return;
        }
        let pairs: BTreeSet<(ReturnHop, ReturnHop)> =
            turns.iter().map(|((from, _), to)| (*from, *to)).collect();
        let turned = self.read(move |maps, now| turn(maps, now, &turns)).await.unwrap_or(0);
        if turned == 0 {
            return;
        }
        for (from, to) in pairs {
            let why = match doubts.get(&from) {
                Some(Doubt::Replaced(_)) => "it is not their next hop's any more",
                _ => "it does not answer any more",
            };
            info!(
                "answers that went to {} on {} go to {} on {} now: {why}",
                mac_text(from.mac),
                name(links, from),
                mac_text(to.mac),
                name(links, to)
            );
        }
        info!("{turned} connections were turned to another next hop");
    }

    /// Has clients tell by an acknowledgement where their packets come from.
    async fn ask_clients(&mut self, links: &[Link], asked: BTreeMap<(ReturnHop, IpAddr), ReturnHop>) {
        if asked.is_empty() {
            return;
        }
        let (of, from) = (asked.keys().copied().collect(), self.place);
        let read = move |maps: &Maps, now| connections(maps, now, &of, from, ASKED_AT_ONCE);
        let Some((found, place)) = self.read(read).await else { return };
        self.place = place;
        for (hop, connection) in found {
            if let Some(by) = asked.get(&(hop, connection.client.ip()))
                && let Some(link) = links.get(usize::from(by.arm))
            {
                ask_client(link, *by, &connection);
            }
        }
    }
}

fn ask_client(link: &Link, by: ReturnHop, connection: &Connection) {
    let Connection { service, client, sequences } = connection;
    let numbers = [sequences.server.wrapping_sub(BEHIND), sequences.client];
    let sent = tcp_keep_alive(link.mac, by.mac, *service, *client, numbers)
        .and_then(|frame| PacketSocket::open(link.index)?.send(&frame));
    if let Err(error) = sent {
        debug!(interface = %link.name, %error, "a client was not asked; trying again");
    }
}

fn name(links: &[Link], hop: ReturnHop) -> &str {
    links.get(usize::from(hop.arm)).map_or("an interface that is gone", |link| link.name.as_str())
}
