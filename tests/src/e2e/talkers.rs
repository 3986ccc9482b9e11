//! Clients at work: each has one open connection, and something to say on it all the time.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{crowd::Homes, http::Connection};
use crate::lab::{Lab, Ns};

const THREADS: usize = 4;
/// From one round of a thread's connections to the next.
const PERIOD: Duration = Duration::from_millis(100);
/// An answer may have to be sent again several times while a flood fills the queues, or while a busy machine starts a daemon:
/// TCP's next attempt comes as long after an outage as that lasted.
const PATIENCE: Duration = Duration::from_secs(120);

/// Clients at work until they are stopped.
#[derive(Debug)]
pub struct Talkers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vec<Connection>>>,
    /// Who answered each at first.
    pub homes: Homes,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    exchanges: AtomicU64,
    /// Milliseconds that the slowest exchange took.
    slowest: AtomicU64,
    broken: Mutex<Vec<String>>,
}

/// What became of them.
#[derive(Debug)]
pub struct Talked {
    /// Requests that were answered.
    pub exchanges: u64,
    /// The longest that one took.
    pub slowest: Duration,
    /// Connections that broke, or answered with another server's label.
    pub broken: Vec<String>,
    /// The connections that are whole, still open.
    pub connections: Vec<Connection>,
}

impl Talkers {
    /// Opens a connection for each of the clients, by number, and lets them talk.
    ///
    /// # Errors
    /// One of them could not connect, or was not answered.
    pub fn start(lab: &Lab, clients: impl IntoIterator<Item = usize>, to: SocketAddr) -> Result<Self> {
        let clients: Vec<usize> = clients.into_iter().collect();
        let mut homes = Homes::new();
        let mut groups: Vec<Vec<(Connection, String)>> = (0..THREADS).map(|_| Vec::new()).collect();
        let connect = |number: &usize| {
            let mut connection = Connection::open(lab.client_address(*number), to, PATIENCE)?;
            let home = connection.who()?;
            Ok((connection, home))
        };
        let opened: Result<Vec<_>> = lab.in_ns(Ns::Client, || clients.iter().map(connect).collect())?;
        for (number, (connection, home)) in opened?.into_iter().enumerate() {
            homes.insert(connection.client, home.clone());
            groups[number % THREADS].push((connection, home));
        }
        let shared = Arc::new(Shared::default());
        let threads = groups
            .into_iter()
            .map(|group| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || talk(group, &shared))
            })
            .collect();
        Ok(Self { shared, threads, homes })
    }

    /// Requests answered so far.
    pub fn exchanges(&self) -> u64 {
        self.shared.exchanges.load(Ordering::Relaxed)
    }

    /// Has each say one thing more, and ends.
    ///
    /// # Errors
    /// A thread panicked.
    pub fn stop(mut self) -> Result<Talked> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut connections = Vec::new();
        for thread in self.threads.drain(..) {
            let whole = thread.join().ok().context("a thread of talkers panicked")?;
            connections.extend(whole);
        }
        let mut broken = self.shared.broken.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Talked {
            exchanges: self.exchanges(),
            slowest: Duration::from_millis(self.shared.slowest.load(Ordering::Relaxed)),
            broken: std::mem::take(&mut broken),
            connections,
        })
    }
}

impl Drop for Talkers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn talk(mut group: Vec<(Connection, String)>, shared: &Shared) -> Vec<Connection> {
    loop {
        // Read before the round: after the word to stop, each is asked once more.
        let last = shared.stop.load(Ordering::Relaxed);
        let round = Instant::now();
        group.retain_mut(|(connection, home)| speak(connection, home, shared));
        if last {
            return group.into_iter().map(|(connection, _)| connection).collect();
        }
        thread::sleep(PERIOD.saturating_sub(round.elapsed()));
    }
}

fn speak(connection: &mut Connection, home: &str, shared: &Shared) -> bool {
    let start = Instant::now();
    let broken = match connection.who() {
        Ok(answer) if answer == *home => {
            let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            shared.slowest.fetch_max(took, Ordering::Relaxed);
            shared.exchanges.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        Ok(answer) => format!("{} on {home} was answered by {answer}", connection.client),
        Err(error) => format!("{home}: {error:#}"),
    };
    shared.broken.lock().unwrap_or_else(PoisonError::into_inner).push(broken);
    false
}
