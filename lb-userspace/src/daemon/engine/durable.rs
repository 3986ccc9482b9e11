//! Keeping the state. A disk that takes nothing stops nobody from serving, draining or halting: it is said that what was
//! changed is not durable, and tried again until it is.

use serde_json::{Value, json};

use super::{Engine, State};

/// The longest pause between two attempts, in ticks (seconds).
const LONGEST_PAUSE: u64 = 30;

/// What is not on disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Unsaved {
    /// What is lost, and when; empty if nothing is.
    loses: Option<String>,
    pause: u64,
    again_at: u64,
}

impl Unsaved {
    fn failed(&mut self, loses: String, now: u64) {
        self.loses = Some(loses);
        self.pause = (self.pause * 2).clamp(1, LONGEST_PAUSE);
        self.again_at = now + self.pause;
    }
}

impl Engine {
    /// Keeps the state: on disk, else until the machine restarts, else in memory alone.
    pub(super) fn keep(&mut self, state: &State) {
        let path = self.store.path().display().to_string();
        let Err(error) = self.store.save(state) else {
            self.unsaved = Unsaved::default();
            self.problems.clear(
                "state",
                &path,
                &format!("{path} is written again: what was changed is durable"),
            );
            return;
        };
        let until = match self.store.save_until_reboot(state) {
            Ok(()) => "a restart of this machine".to_owned(),
            Err(also) => format!("a restart of the daemon ({also:#})"),
        };
        let loses =
            format!("not durable: {error:#}; it is tried again, and until it is written {until} forgets it");
        self.unsaved.failed(loses, self.ticks);
        let text = format!(
            "what is drained, halted or changed by command is not durable: {error:#}; it is tried again, and until it is \
             written {until} forgets what was changed. Clients are served"
        );
        let now = (self.clock)();
        self.problems.raise("state", &path, text, now);
    }

    /// Tries again when it is time.
    pub(super) fn keep_again(&mut self) {
        if self.unsaved.loses.is_some() && self.ticks >= self.unsaved.again_at {
            self.keep(&self.state.clone());
        }
    }

    /// An answer that says whether what was done outlives a restart.
    pub(super) fn mark_durable(&self, mut answer: Value) -> Value {
        answer["durable"] = json!(self.unsaved.loses.is_none());
        if let (Some(loses), Some(done)) = (&self.unsaved.loses, answer["done"].as_str()) {
            answer["done"] = json!(format!("{done}; {loses}"));
        }
        answer
    }
}
