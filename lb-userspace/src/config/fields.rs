//! The entries of one mapping, looked up by key; unknown and repeated keys are reported on the way.

use super::error::{Findings, Position};
use super::suggest::suggest;
use super::tree::{Shape, Tree};
use super::values::quoted;

/// The known entries of a mapping.
pub(super) struct Fields<'t> {
    /// Where the mapping starts.
    pub(super) at: Position,
    owner: &'static str,
    entries: Vec<Entry<'t>>,
}

struct Entry<'t> {
    key: &'t str,
    key_at: Position,
    value: &'t Tree,
}

impl<'t> Fields<'t> {
    /// Opens the mapping of `owner` ("a real server"), which takes the keys `known`.
    ///
    /// What is not a mapping is reported and read as an empty one would be: `None`.
    pub(super) fn open(
        tree: &'t Tree,
        owner: &'static str,
        known: &'static [&'static str],
        findings: &mut Findings,
    ) -> Option<Self> {
        let Shape::Map(entries) = &tree.shape else {
            let what = format!("{owner} is a mapping, not {}", tree.shape.name());
            findings.error(tree.at, what, format!("write key: value pairs of {}", known.join(", ")));
            return None;
        };
        let mut fields = Self { at: tree.at, owner, entries: Vec::with_capacity(known.len()) };
        for (key, value) in entries {
            fields.add(key, value, known, findings);
        }
        Some(fields)
    }

    fn add(
        &mut self,
        key: &'t Tree,
        value: &'t Tree,
        known: &'static [&'static str],
        findings: &mut Findings,
    ) {
        let owner = self.owner;
        let all = || format!("{owner} takes {}", known.join(", "));
        let Shape::Text(name) = &key.shape else {
            findings.error(key.at, format!("a key of {owner} is {}", key.shape.name()), all());
            return;
        };
        if !known.contains(&name.as_str()) {
            // Comparing words is what costs time; where nobody reads the answer, it is not done.
            let near = if findings.tells(key.at) { suggest(name, known) } else { None };
            let remedy = near.map_or_else(all, |near| format!("did you mean \"{near}\"?"));
            findings.error(key.at, format!("unknown key {} in {owner}", quoted(name)), remedy);
        } else if let Some(first) = self.entries.iter().find(|entry| entry.key == name) {
            let what = format!("key \"{name}\" is given twice in {owner}");
            findings.error(key.at, what, format!("keep one (the first is on line {})", first.key_at.line));
        } else {
            self.entries.push(Entry { key: name, key_at: key.at, value });
        }
    }

    /// The value of a key that may be left out.
    pub(super) fn get(&self, key: &str) -> Option<&'t Tree> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.value)
    }

    /// Where the key itself stands.
    pub(super) fn key_at(&self, key: &str) -> Option<Position> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| entry.key_at)
    }

    /// The value of a key that must be there; a missing one is reported.
    pub(super) fn required(&self, key: &str, remedy: &str, findings: &mut Findings) -> Option<&'t Tree> {
        let found = self.get(key);
        if found.is_none() {
            findings.error(self.at, format!("{} has no \"{key}\"", self.owner), remedy);
        }
        found
    }

    /// The value that `read` makes of a key, or `default` where the key is missing.
    ///
    /// Also `default` where `read` reported a mistake: the configuration is refused then in any case, and reading
    /// goes on with a value that raises no second complaint.
    pub(super) fn or_default<T>(
        &self,
        key: &str,
        default: T,
        findings: &mut Findings,
        read: impl FnOnce(&'t Tree, &mut Findings) -> Option<T>,
    ) -> T {
        self.get(key).and_then(|tree| read(tree, findings)).unwrap_or(default)
    }
}
