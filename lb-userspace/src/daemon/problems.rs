//! What is wrong at the moment and a person should know of: said in the log as it begins and as it ends, and by
//! `vip show`, `doctor` and `/v1/status` for as long as it lasts.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What it is about, in a word: `state`, `interface`, `conflict`, ...
    pub kind: String,
    /// Which of them: a file, an interface, an address.
    pub subject: String,
    /// What is wrong, what it means, and what to do: a sentence without a full stop.
    pub text: String,
    /// Since when, RFC 3339 in UTC.
    pub since: String,
}

impl Problem {
    /// The list in a status, as far as it is understood.
    #[must_use]
    pub fn list(value: &serde_json::Value) -> Vec<Self> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|problem| Self::deserialize(problem).ok()).collect()
    }
}

/// Everything that is wrong now.
#[derive(Clone, Debug, Default)]
pub struct Problems(BTreeMap<(&'static str, String), Problem>);

impl Problems {
    /// Something is wrong; said in the log unless it was said in the same words before.
    pub fn raise(&mut self, kind: &'static str, subject: &str, text: String, now: Timestamp) {
        let key = (kind, subject.to_owned());
        let before = self.0.get(&key);
        if before.is_some_and(|before| before.text == text) {
            return;
        }
        warn!("{text}");
        let since = before.map_or_else(|| now.to_string(), |before| before.since.clone());
        let problem = Problem { kind: kind.to_owned(), subject: subject.to_owned(), text, since };
        self.0.insert(key, problem);
    }

    /// It is not wrong any more; `said` goes into the log if it was.
    pub fn clear(&mut self, kind: &'static str, subject: &str, said: &str) {
        if self.0.remove(&(kind, subject.to_owned())).is_some() {
            info!("{said}");
        }
    }

    /// Whether this is wrong now.
    #[must_use]
    pub fn has(&self, kind: &'static str, subject: &str) -> bool {
        self.0.contains_key(&(kind, subject.to_owned()))
    }

    /// All of them, by kind and subject.
    pub fn all(&self) -> impl Iterator<Item = &Problem> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_lasts_from_its_first_sign_until_it_is_cleared() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut problems = Problems::default();
        problems.raise("state", "file", "the disk is full".to_owned(), at(1));
        problems.raise("state", "file", "the disk is read-only".to_owned(), at(2));
        problems.raise("state", "other", "gone".to_owned(), at(3));
        let told: Vec<(&str, &str)> = problems.all().map(|p| (p.text.as_str(), p.since.as_str())).collect();
        assert_eq!(
            told,
            [("the disk is read-only", "1970-01-01T00:00:01Z"), ("gone", "1970-01-01T00:00:03Z")]
        );
        problems.clear("state", "file", "written");
        problems.clear("state", "never", "nothing");
        assert!(!problems.has("state", "file") && problems.has("state", "other"));
    }
}
