//! What is wrong with a configuration, where, and what to do about it.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde::Serialize;

/// Line and column of a character, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) line: u64,
    pub(super) column: u64,
}

impl Position {
    pub(super) const START: Self = Self { line: 1, column: 1 };
}

/// One mistake (or, among warnings, one oddity) of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Problem {
    /// Line in the file, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// What was wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Problem {
    pub(super) fn new(at: Position, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { line: at.line, column: at.column, what: what.into(), remedy: remedy.into() }
    }

    /// A problem of the file as a whole.
    pub(super) fn at_start(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Position::START, what, remedy)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}; {}", self.line, self.column, self.what, self.remedy)
    }
}

/// As many mistakes as are told one by one. Who has more has the wrong file, or one mistake that was copied.
pub const MOST_TOLD: usize = 100;

/// What is wrong with a configuration: at least one problem, the first [`MOST_TOLD`] in line order, and how many more.
///
/// Displays as one line a problem, `file:line:column: what was wrong; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    source_name: String,
    problems: Vec<Problem>,
    more: usize,
}

impl ConfigErrors {
    pub(super) fn new(source_name: &str, problems: Vec<Problem>, more: usize) -> Self {
        debug_assert!(!problems.is_empty(), "an error says what is wrong");
        Self { source_name: source_name.to_owned(), problems, more }
    }

    pub(super) fn about_file(source_name: &str, problem: Problem) -> Self {
        Self::new(source_name, vec![problem], 0)
    }

    /// The name that was given for the text, usually a path.
    #[must_use]
    pub fn source_name(&self) -> &str {
        &self.source_name
    }

    /// The first problems in line order, never empty.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many more there are.
    #[must_use]
    pub const fn more(&self) -> usize {
        self.more
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{problem}", self.source_name)?;
        }
        match self.more {
            0 => Ok(()),
            1 => write!(f, "\n{}: and 1 more mistake", self.source_name),
            more => write!(f, "\n{}: and {more} more mistakes", self.source_name),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// The collector: a reader reports here and goes on.
///
/// What is said twice of one place (a YAML alias is read where it is defined and at each use) counts once.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The first mistakes of all.
    errors: BTreeSet<Problem>,
    /// All of them, as hashes: a word each, however many there are.
    seen: HashSet<u64>,
    warnings: Vec<Problem>,
}

/// What a text that is no configuration has of mistakes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mistakes {
    /// The first, in line order; never empty.
    pub(super) first: Vec<Problem>,
    /// How many more there are.
    pub(super) more: usize,
}

impl Findings {
    pub(super) fn error(&mut self, at: Position, what: impl Into<String>, remedy: impl Into<String>) {
        let problem = Problem::new(at, what, remedy);
        let mut hasher = DefaultHasher::new();
        problem.hash(&mut hasher);
        self.seen.insert(hasher.finish());
        if self.tells(at) {
            self.errors.insert(problem);
            if self.errors.len() > MOST_TOLD {
                self.errors.pop_last();
            }
        }
    }

    /// Whether a mistake at this place would be told one by one, as far as is known: where it would not, its words need
    /// not be good ones.
    pub(super) fn tells(&self, at: Position) -> bool {
        let last = self.errors.last().filter(|_| self.errors.len() >= MOST_TOLD);
        last.is_none_or(|last| (at.line, at.column) <= (last.line, last.column))
    }

    /// How many mistakes there are.
    pub(super) fn mistakes(&self) -> usize {
        self.seen.len()
    }

    pub(super) fn warn(&mut self, at: Position, what: impl Into<String>, remedy: impl Into<String>) {
        self.warnings.push(Problem::new(at, what, remedy));
    }

    /// The warnings of a configuration without errors, or the errors.
    pub(super) fn into_result(self) -> Result<Vec<Problem>, Mistakes> {
        let Self { errors, seen, mut warnings } = self;
        if errors.is_empty() {
            warnings.sort();
            warnings.dedup();
            Ok(warnings)
        } else {
            let first: Vec<Problem> = errors.into_iter().collect();
            let more = seen.len().saturating_sub(first.len());
            Err(Mistakes { first, more })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mistakes_in_line_order_are_told_whatever_order_they_are_found_in() {
        let mut findings = Findings::default();
        for line in (1..=250).rev() {
            for _ in 0..2 {
                findings.error(Position { line, column: 1 }, "x", "y");
            }
        }
        assert_eq!(findings.mistakes(), 250, "said twice, counted once");
        let mistakes = findings.into_result().unwrap_err();
        assert_eq!((mistakes.first.len(), mistakes.first[0].line, mistakes.first[99].line), (100, 1, 100));
        assert_eq!(mistakes.more, 150);
        let text = ConfigErrors::new("f", mistakes.first, mistakes.more).to_string();
        assert!(text.ends_with("\nf:100:1: x; y\nf: and 150 more mistakes"), "{text}");
    }
}
