//! Every target's health in one place: written by the probing tasks, read by views.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::probe::ProbeResult;
use super::spec::TargetSpec;
use super::state::{Outcome, State, Transition, Verdict};
use super::{HealthEvent, HealthNews};

/// A handle to every target's health; clones see the same.
#[derive(Debug, Clone, Default)]
pub struct HealthTable {
    rows: Arc<RwLock<BTreeMap<u32, Row>>>,
}

/// The writing side. Views do not have it, so the events end with the checker.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    table: HealthTable,
    events: UnboundedSender<HealthNews>,
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
}

impl HealthTable {
    /// Every target, by number.
    #[must_use]
    pub fn all(&self) -> Vec<TargetView> {
        self.read().values().map(|row| row.view.clone()).collect()
    }

    /// One target.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<TargetView> {
        self.read().get(&id).map(|row| row.view.clone())
    }

    /// Each row is whole between writes, so a lock poisoned by a panic elsewhere is still good.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<u32, Row>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<u32, Row>> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    pub(super) fn new(events: UnboundedSender<HealthNews>) -> Self {
        Self { table: HealthTable::default(), events }
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
    ) -> Instant {
        let mut rows = self.table.write();
        if let Some(row) = rows.get_mut(&spec.id).filter(|row| row.view.address == spec.address) {
            row.generation = generation;
            row.due = row.due.min(first);
            return row.due;
        }
        let view = TargetView {
            id: spec.id,
            address: spec.address,
            state: known.map_or(State::FRESH, State::adopted),
            since: None,
            last: None,
            certificate_expires: None,
            note: None,
        };
        rows.insert(spec.id, Row { view, generation, due: first });
        first
    }

    /// Takes a target that is not probed as up.
    pub(super) fn believe(&self, id: u32, at: Timestamp) {
        let mut rows = self.table.write();
        let Some(row) = rows.get_mut(&id) else { return };
        row.view.last = None;
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
    pub(super) fn record(
        &self,
        spec: &TargetSpec,
        generation: u64,
        result: ProbeResult,
        at: Timestamp,
        due: Instant,
    ) -> bool {
        let mut rows = self.table.write();
        let Some(row) = rows.get_mut(&spec.id).filter(|row| row.generation == generation) else {
            return false;
        };
        let (state, transition) = row.view.state.after(&result.outcome, spec.rhythm.thresholds);
        row.view.state = state;
        row.due = due;
        if result.certificate_expires.is_some() {
            row.view.certificate_expires = result.certificate_expires;
        }
        if result.outcome == Outcome::Ok {
            row.view.note = result.note;
        }
        let missed = matches!(result.outcome, Outcome::Failed(_) | Outcome::Lost(_));
        row.view.last = Some(LastProbe { at, took: result.took, outcome: result.outcome });
        if let Some(transition) = transition {
            self.tell(row, transition, at, result.certificate_expires);
        } else if missed {
            self.send(HealthNews::Missed { target_id: spec.id, at });
        }
        true
    }

    pub(super) fn remove(&self, id: u32) {
        self.table.write().remove(&id);
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
            ledger.record(&spec, generation, result, Timestamp::UNIX_EPOCH, now)
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
