//! Every target's health in one place: written by the probing tasks, read by views.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::hold::{self, Holding, Network, Ruling};
use super::probe::ProbeResult;
use super::spec::{ProbeKind, TargetSpec};
use super::state::{Outcome, State, Thresholds, Transition, Verdict};
use super::{HealthEvent, HealthNews};

/// A handle to every target's health; clones see the same.
#[derive(Debug, Clone, Default)]
pub struct HealthTable {
    inner: Arc<RwLock<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    rows: BTreeMap<u32, Row>,
    holding: Holding,
}

/// The writing side. Views do not have it, so the events end with the checker.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    table: HealthTable,
    events: UnboundedSender<HealthNews>,
    /// What times are counted from.
    begun: Instant,
}

/// When a probe is to begin.
#[derive(Debug, Clone)]
pub(super) struct Due {
    /// The first.
    pub(super) first: Instant,
    /// Any, sooner than it would.
    pub(super) at_once: Arc<Notify>,
}

/// When a probe began and ended, and when the next is due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) started: Instant,
    pub(super) ended: Instant,
    /// The time of day at its end.
    pub(super) at: Timestamp,
    pub(super) due: Instant,
}

/// One target's health, as of a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetView {
    /// The target's number.
    pub id: u32,
    /// Where it is probed.
    pub address: SocketAddr,
    /// Its health and the count towards the next.
    pub state: State,
    /// When its health last changed; `None` while it is unknown or adopted from before a restart.
    pub since: Option<Timestamp>,
    /// The last probe, if there was one.
    pub last: Option<LastProbe>,
    /// When the server's certificate expires, as last seen.
    pub certificate_expires: Option<Timestamp>,
    /// What is to be known of an answer that was good enough, as of the last one.
    pub note: Option<String>,
    /// How many probes have said nothing about the server.
    pub no_verdicts: u64,
    /// Since when they say nothing, and why the last did not.
    pub silent: Option<(Timestamp, String)>,
}

/// One probe's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastProbe {
    /// When it ended.
    pub at: Timestamp,
    /// How long it took to its outcome.
    pub took: Duration,
    /// What it found.
    pub outcome: Outcome,
}

#[derive(Debug)]
struct Row {
    view: TargetView,
    /// Which task may write here; an older one was replaced.
    generation: u64,
    /// When the next probe starts; in the past while one is under way.
    due: Instant,
    at_once: Arc<Notify>,
    thresholds: Thresholds,
}

impl HealthTable {
    /// Every target, by number.
    #[must_use]
    pub fn all(&self) -> Vec<TargetView> {
        self.read().rows.values().map(|row| row.view.clone()).collect()
    }

    /// One target.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<TargetView> {
        self.read().rows.get(&id).map(|row| row.view.clone())
    }

    /// The targets whose probes say nothing: number, since when, and why the last did not.
    #[must_use]
    pub fn silent(&self) -> Vec<(u32, Timestamp, String)> {
        let inner = self.read();
        let silent =
            |row: &Row| row.view.silent.as_ref().map(|(since, why)| (row.view.id, *since, why.clone()));
        inner.rows.values().filter_map(silent).collect()
    }

    /// The targets of which nothing can be known now: the network does not reach them, or is silent as a whole.
    #[must_use]
    pub fn cut_off(&self) -> BTreeSet<u32> {
        let inner = self.read();
        let is_cut_off = |row: &&Row| inner.holding.is_cut_off(row.view.address.ip());
        inner.rows.values().filter(is_cut_off).map(|row| row.view.id).collect()
    }

    /// Each row is whole between writes, so a lock poisoned by a panic elsewhere is still good.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    pub(super) fn new(events: UnboundedSender<HealthNews>) -> Self {
        Self { table: HealthTable::default(), events, begun: Instant::now() }
    }

    pub(super) fn table(&self) -> &HealthTable {
        &self.table
    }

    /// Enters a target, or a new way to watch one, and says when its first probe is due: `first`, or
    /// earlier if the same server's next probe was due before that. A probe cut off by the change is
    /// so repeated at once, and the promised time to notice a dead server holds across changes.
    pub(super) fn enter(
        &self,
        spec: &TargetSpec,
        generation: u64,
        known: Option<Verdict>,
        first: Instant,
    ) -> Due {
        let mut guard = self.table.write();
        let Inner { rows, holding } = &mut *guard;
        if rows.get(&spec.id).is_none_or(|row| row.view.address != spec.address) {
            let view = TargetView {
                id: spec.id,
                address: spec.address,
                state: known.map_or(State::FRESH, State::adopted),
                since: None,
                last: None,
                certificate_expires: None,
                note: None,
                no_verdicts: 0,
                silent: None,
            };
            let thresholds = spec.rhythm.thresholds;
            let row = Row { view, generation, due: first, at_once: Arc::new(Notify::new()), thresholds };
            rows.insert(spec.id, row);
        }
        let Some(row) = rows.get_mut(&spec.id) else { return Due { first, at_once: Arc::default() } };
        row.generation = generation;
        row.due = row.due.min(first);
        row.thresholds = spec.rhythm.thresholds;
        if spec.probe.kind == ProbeKind::None {
            holding.remove(spec.id);
        } else {
            let full_check = spec.rhythm.interval + spec.probe.timeout;
            holding.enter(spec.id, spec.address.ip(), full_check, row.view.state);
        }
        Due { first: row.due, at_once: Arc::clone(&row.at_once) }
    }

    /// Takes in how the network is.
    pub(super) fn set_network(&self, network: Network) {
        let mut guard = self.table.write();
        let Inner { rows, holding } = &mut *guard;
        for id in holding.set_network(network, self.begun.elapsed()) {
            if let Some(row) = rows.get_mut(&id) {
                row.view.state = row.view.state.restarted();
            }
        }
    }

    /// Takes a target that is not probed as up.
    pub(super) fn believe(&self, id: u32, at: Timestamp) {
        let mut inner = self.table.write();
        let Some(row) = inner.rows.get_mut(&id) else { return };
        (row.view.last, row.view.silent) = (None, None);
        row.view.certificate_expires = None;
        row.view.note = None;
        let was = row.view.state.verdict();
        row.view.state = State::adopted(Verdict::Up);
        if was != Some(Verdict::Up) {
            let reason = "no health check is configured: taken as up".to_owned();
            self.tell(row, Transition { to: Verdict::Up, reason, lost: false }, at, None);
        }
    }

    /// Enters a probe's result; false if the task that sent it was replaced meanwhile. State, view
    /// and event change together, so no reader sees one without the others.
    pub(super) fn record(&self, id: u32, generation: u64, result: ProbeResult, times: Times) -> bool {
        let mut guard = self.table.write();
        let Inner { rows, holding } = &mut *guard;
        let Some(row) = rows.get_mut(&id).filter(|row| row.generation == generation) else {
            return false;
        };
        let rulings = holding.take(hold::Result {
            id,
            outcome: &result.outcome,
            started: times.started.saturating_duration_since(self.begun),
            ended: times.ended.saturating_duration_since(self.begun),
            state: row.view.state,
            thresholds: row.thresholds,
        });
        row.due = times.due;
        if result.certificate_expires.is_some() {
            row.view.certificate_expires = result.certificate_expires;
        }
        if result.outcome == Outcome::Ok {
            row.view.note = result.note;
        }
        let mut last = LastProbe { at: times.at, took: result.took, outcome: result.outcome };
        match rulings.ruling {
            Ruling::Judge(outcome) => {
                last.outcome.clone_from(&outcome);
                self.judge(row, holding, &outcome, times.at, true);
            }
            Ruling::Unconfirmed(outcome) => self.judge(row, holding, &outcome, times.at, false),
            Ruling::Wait => {}
        }
        row.view.last = Some(last);
        for (id, outcome) in rulings.released {
            if let Some(row) = rows.get_mut(&id) {
                self.judge(row, holding, &outcome, times.at, true);
            }
        }
        for id in rulings.restart {
            if let Some(row) = rows.get_mut(&id) {
                row.view.state = row.view.state.restarted();
            }
        }
        for row in rulings.ask.iter().filter_map(|id| rows.get(id)) {
            // Whose probe is under way is not to begin another after it.
            row.at_once.notify_waiters();
        }
        true
    }

    fn judge(&self, row: &mut Row, holding: &mut Holding, outcome: &Outcome, at: Timestamp, is_told: bool) {
        if let Outcome::NoVerdict(why) = outcome {
            row.view.no_verdicts += 1;
            let since = row.view.silent.as_ref().map_or(at, |(since, _)| *since);
            row.view.silent = Some((since, why.clone()));
            return;
        }
        row.view.silent = None;
        let (state, transition) = row.view.state.after(outcome, row.thresholds);
        row.view.state = state;
        holding.set_state(row.view.id, state);
        if let Some(transition) = transition {
            let expires = row.view.certificate_expires;
            self.tell(row, transition, at, expires);
        } else if is_told && *outcome != Outcome::Ok {
            self.send(HealthNews::Missed { target_id: row.view.id, at });
        }
    }

    pub(super) fn remove(&self, id: u32) {
        let mut inner = self.table.write();
        inner.rows.remove(&id);
        inner.holding.remove(id);
    }

    fn tell(&self, row: &mut Row, transition: Transition, at: Timestamp, expires: Option<Timestamp>) {
        row.view.since = Some(at);
        let event = HealthEvent {
            target_id: row.view.id,
            health: transition.to,
            reason: transition.reason,
            at,
            certificate_expires: expires,
            lost: transition.lost,
        };
        self.send(HealthNews::Changed(event));
    }

    fn send(&self, news: HealthNews) {
        // Nobody listens any more while the daemon shuts down; the table is still right.
        let _ = self.events.send(news);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::health::spec::{ProbeKind, ProbeSpec, Rhythm};

    #[test]
    fn a_task_that_was_replaced_can_write_nothing_more() {
        let second = Duration::from_secs(1);
        let spec = TargetSpec {
            id: 1,
            address: ([127, 0, 0, 1], 1).into(),
            probe: ProbeSpec::new(ProbeKind::Tcp, second, None).unwrap(),
            rhythm: Rhythm::new(second, 1, 1).unwrap(),
        };
        let (sender, mut events) = unbounded_channel();
        let ledger = Ledger::new(sender);
        let now = Instant::now();
        ledger.enter(&spec, 1, None, now);
        ledger.enter(&spec, 2, None, now);
        let record = |generation| {
            let outcome = Outcome::Failed("late".to_owned());
            let result = ProbeResult { outcome, took: second, certificate_expires: None, note: None };
            let times = Times { started: now, ended: now, at: Timestamp::UNIX_EPOCH, due: now };
            ledger.record(spec.id, generation, result, times)
        };
        assert!(!record(1));
        assert_eq!((ledger.table().get(1).unwrap().last, events.try_recv().ok()), (None, None));
        assert!(record(2));
        assert!(matches!(
            events.try_recv(),
            Ok(HealthNews::Changed(HealthEvent { health: Verdict::Down, .. }))
        ));
        ledger.remove(1);
        assert!(!record(2));
        assert!(events.try_recv().is_err());
    }
}
