//! Health checks: which real servers answer, and since when.
//!
//! ```text
//! TargetSpec -> Checker: one task per target -> probe -> Holding -> State -> HealthNews (a change, a failure)
//!                                                                     \---> HealthTable (every result)
//! ```
//!
//! [`hold`] says which silence counts against a server, and which may be the network's.
//!
//! A server that dies is reported down within `fall x interval + timeout`: probes start at most one
//! interval apart (jitter only shortens it), and the one that decides takes at most its timeout. One
//! target's probes never overlap: when a probe takes longer than the interval, the next one starts
//! as it ends.

pub mod hold;
pub mod plan;
pub mod probe;
pub mod spec;
pub mod state;

mod errno;
mod http;
mod jitter;
mod table;
mod tls;
mod words;

pub use tls::{Verify, client_config};

#[cfg(test)]
mod checker_tests;
#[cfg(test)]
mod probe_ipv6_tests;
#[cfg(test)]
mod probe_tests;
#[cfg(test)]
mod tls_servers_tests;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use jitter::Jitter;
use plan::{Changes, DuplicateTarget};
use probe::ProbeResult;
use spec::{ProbeKind, ProbeSpec, TargetSpec};
use state::{Outcome, Verdict};
use table::{Due, Ledger, Times};
pub use table::{HealthTable, LastProbe, TargetView};

/// Within what time a server of which nothing is known is probed, if its interval is not shorter.
const FIRST: Duration = Duration::from_secs(1);
/// A timeout may always be noticed so much too late: a busy machine's threads wait for a core.
const LATE: Duration = Duration::from_millis(250);

/// A change of one server's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthEvent {
    /// The target's number, from its [`TargetSpec`].
    pub target_id: u32,
    /// Its health from now on.
    pub health: Verdict,
    /// Why, for the engineer on call.
    pub reason: String,
    /// When the deciding probe ended.
    pub at: Timestamp,
    /// When the server's certificate expires, if the deciding probe saw it.
    pub certificate_expires: Option<Timestamp>,
    /// Whether the deciding probe was [lost](Outcome::Lost) on the way, for all that is known.
    pub lost: bool,
}

/// What the checker tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthNews {
    /// A server's health has changed.
    Changed(HealthEvent),
    /// A probe failed and changed nothing: too few have, or the server was down before.
    Missed {
        /// The target's number, from its [`TargetSpec`].
        target_id: u32,
        /// When the probe ended.
        at: Timestamp,
    },
}

/// A probe under way.
pub type Probing = Pin<Box<dyn Future<Output = ProbeResult> + Send>>;

/// What the checker takes from outside itself.
#[derive(Clone)]
pub struct Environment {
    /// Where the irregularity of probing times comes from; differing between machines is enough.
    pub seed: u64,
    /// The time of day. Intervals and timeouts run on tokio's clock.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Sends one probe.
    pub prober: Arc<dyn Fn(ProbeSpec, SocketAddr) -> Probing + Send + Sync>,
}

impl Environment {
    /// The machine's clock, and probes over its network.
    #[must_use]
    pub fn real(seed: u64) -> Self {
        Self {
            seed,
            clock: Arc::new(Timestamp::now),
            prober: Arc::new(|spec, target| Box::pin(async move { probe::probe(&spec, target).await })),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}

/// Watches a set of targets, one task each; dropping it ends them.
#[derive(Debug)]
pub struct Checker {
    environment: Environment,
    ledger: Ledger,
    known: BTreeMap<u32, Verdict>,
    specs: BTreeMap<u32, TargetSpec>,
    tasks: BTreeMap<u32, AbortHandle>,
    generation: u64,
}

impl Checker {
    /// A checker without targets, which will tell changes to `events`.
    ///
    /// `known` is the health from before a restart. A target found in it starts with that health and
    /// without an event, so that a restart makes nobody flap. It is used once.
    #[must_use]
    pub fn new(
        environment: Environment,
        known: BTreeMap<u32, Verdict>,
        events: UnboundedSender<HealthNews>,
    ) -> Self {
        let ledger = Ledger::new(events);
        Self { environment, ledger, known, specs: BTreeMap::new(), tasks: BTreeMap::new(), generation: 0 }
    }

    /// A view of every target's health, which stays current.
    #[must_use]
    pub fn table(&self) -> HealthTable {
        self.ledger.table().clone()
    }

    /// Watches exactly these targets from now on, and says what that changed. Call it within a tokio
    /// runtime.
    ///
    /// - unchanged: goes on undisturbed;
    /// - replaced at the same address: keeps its health, its counts and its place in time (a probe
    ///   that the change cut off is sent again at once);
    /// - replaced at another address: a new server, unknown until probed. There is no event for that;
    ///   [`Changes::replaced`] says it;
    /// - removed: forgotten; no event about it is sent after this returns.
    ///
    /// # Errors
    /// Two targets with one number; nothing is changed then.
    pub fn set_targets(&mut self, targets: Vec<TargetSpec>) -> Result<Changes, DuplicateTarget> {
        let changes = plan::changes(&self.specs, targets)?;
        for id in &changes.removed {
            self.stop(*id);
            self.specs.remove(id);
            self.ledger.remove(*id);
        }
        for spec in changes.replaced.iter().chain(&changes.added) {
            self.stop(spec.id);
            self.start(spec.clone());
        }
        // A number that comes later is a new server's.
        self.known.clear();
        Ok(changes)
    }

    /// Takes in how the network is, on which it depends what a server's silence means.
    pub fn set_network(&self, network: hold::Network) {
        self.ledger.set_network(network);
    }

    fn stop(&mut self, id: u32) {
        if let Some(task) = self.tasks.remove(&id) {
            task.abort();
        }
    }

    fn start(&mut self, spec: TargetSpec) {
        self.generation += 1;
        let mut jitter = Jitter::new(self.environment.seed.wrapping_add(self.generation), spec.id);
        let known = self.known.get(&spec.id).copied();
        // Of one of which nothing is known, something is to be known soon.
        let within = if known.is_some() { spec.rhythm.interval } else { spec.rhythm.interval.min(FIRST) };
        let first = Instant::now() + jitter.spread(within);
        let first = self.ledger.enter(&spec, self.generation, known, first);
        self.specs.insert(spec.id, spec.clone());
        if spec.probe.kind == ProbeKind::None {
            self.ledger.believe(spec.id, (self.environment.clock)());
            return;
        }
        let watch = Watch {
            spec,
            jitter,
            generation: self.generation,
            ledger: self.ledger.clone(),
            environment: self.environment.clone(),
        };
        self.tasks.insert(watch.spec.id, tokio::spawn(watch.run(first)).abort_handle());
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
    }
}

/// One target's task.
struct Watch {
    spec: TargetSpec,
    jitter: Jitter,
    generation: u64,
    ledger: Ledger,
    environment: Environment,
}

impl Watch {
    async fn run(mut self, Due { first, at_once }: Due) {
        let mut due = first;
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                () = at_once.notified() => {}
            }
            let started = Instant::now();
            let mut result = self.probe().await;
            let ended = Instant::now();
            result.outcome = if_in_time(result.outcome, ended - started, self.spec.probe.timeout);
            due = started + self.jitter.shorten(self.spec.rhythm.interval);
            let at = (self.environment.clock)();
            let times = Times { started, ended, at, due };
            if !self.ledger.record(self.spec.id, self.generation, result, times) {
                return;
            }
        }
    }

    /// A probe in a task of its own, so that even a panic in it is one probe without a verdict and not the end of
    /// watching this server.
    async fn probe(&self) -> ProbeResult {
        let mut task = JoinSet::new();
        task.spawn((self.environment.prober)(self.spec.probe.clone(), self.spec.address));
        match task.join_next().await {
            Some(Ok(result)) => result,
            _ => ProbeResult {
                outcome: Outcome::NoVerdict("the probe itself broke: please report this".to_owned()),
                took: Duration::ZERO,
                certificate_expires: None,
                note: None,
            },
        }
    }
}

/// Nothing, if this process was stopped or starved meanwhile: the server had its time, but nobody was there to look. What
/// is good is good however late.
fn if_in_time(outcome: Outcome, took: Duration, timeout: Duration) -> Outcome {
    let late = took.saturating_sub(timeout);
    if outcome == Outcome::Ok || late <= (timeout / 2).max(LATE) {
        return outcome;
    }
    Outcome::NoVerdict(
        "this process was stopped or starved, and looked long after the timeout was due".to_owned(),
    )
}
