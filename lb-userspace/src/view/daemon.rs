//! Whether the daemon lives, as the maps tell.

use lb_common::control::Control;
use serde::Serialize;

use super::{Clock, Time, format::duration};

/// A daemon that has been silent for longer, in seconds, is not running: it writes its sign of life every second.
pub const SILENT_AFTER: u64 = 5;

/// The daemon's last sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Daemon {
    /// Whether it gave a sign of life within the last [`SILENT_AFTER`] seconds.
    pub running: bool,
    /// Its process id at the time.
    pub pid: Option<u64>,
    /// When it last gave a sign of life.
    pub last_seen: Option<Time>,
    /// How many seconds ago that was.
    pub silent: Option<u64>,
}

impl Daemon {
    /// Reads the sign of life at `jiffies`.
    #[must_use]
    pub fn read(control: &Control, jiffies: u64, clock: &Clock) -> Self {
        let heartbeat = control.heartbeat.load();
        let pid = control.daemon.load();
        if heartbeat == 0 {
            return Self { running: false, pid: None, last_seen: None, silent: None };
        }
        let silent = clock.seconds_of_jiffies(jiffies.saturating_sub(heartbeat));
        Self {
            running: silent <= SILENT_AFTER,
            pid: (pid != 0).then_some(pid),
            last_seen: Some(clock.at(lb_common::clock::Ticks::from_jiffies(heartbeat))),
            silent: Some(silent),
        }
    }

    /// What a reader should be warned of, if the daemon is silent.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        if self.running {
            return None;
        }
        Some(match (self.last_seen, self.silent) {
            (Some(seen), Some(silent)) => format!(
                "daemon is not running (last seen {seen}, {} ago): health is as of then; traffic is still forwarded",
                duration(silent)
            ),
            _ => "daemon is not running (never seen since the maps were made): health is unknown".to_owned(),
        })
    }
}
