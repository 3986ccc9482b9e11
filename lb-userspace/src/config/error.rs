//! What is wrong with a configuration, where, and what to do about it.

use std::fmt;

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
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

/// Everything that is wrong with a configuration: at least one problem, in line order.
///
/// Displays as one line a problem, `file:line:column: what was wrong; what to do`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    source_name: String,
    problems: Vec<Problem>,
}

impl ConfigErrors {
    pub(super) fn new(source_name: &str, problems: Vec<Problem>) -> Self {
        debug_assert!(!problems.is_empty(), "an error says what is wrong");
        Self { source_name: source_name.to_owned(), problems }
    }

    pub(super) fn about_file(source_name: &str, problem: Problem) -> Self {
        Self::new(source_name, vec![problem])
    }

    /// The name that was given for the text, usually a path.
    #[must_use]
    pub fn source_name(&self) -> &str {
        &self.source_name
    }

    /// The problems in line order, never empty.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
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
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The collector: a reader reports here and goes on.
#[derive(Debug, Default)]
pub(super) struct Findings {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Findings {
    pub(super) fn error(&mut self, at: Position, what: impl Into<String>, remedy: impl Into<String>) {
        self.errors.push(Problem::new(at, what, remedy));
    }

    pub(super) fn warn(&mut self, at: Position, what: impl Into<String>, remedy: impl Into<String>) {
        self.warnings.push(Problem::new(at, what, remedy));
    }

    /// The warnings of a configuration without errors, or the errors.
    ///
    /// What is said twice of one place (a YAML alias is read where it is defined and at each use) is kept once.
    pub(super) fn into_result(self) -> Result<Vec<Problem>, Vec<Problem>> {
        let Self { mut errors, mut warnings } = self;
        if errors.is_empty() {
            warnings.sort();
            warnings.dedup();
            Ok(warnings)
        } else {
            errors.sort();
            errors.dedup();
            Err(errors)
        }
    }
}
