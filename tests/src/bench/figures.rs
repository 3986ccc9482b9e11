//! Figures: what rounds gave, and what must come of them.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// One figure a round.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Rounds(pub Vec<f64>);

impl Rounds {
    /// The value in the middle; of none, not a number.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// The least.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    /// The most.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// Round by round, something of both.
    #[must_use]
    pub fn with(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(one, two)| of(*one, *two)).collect())
    }
}

/// Which way a target is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Must {
    /// The value must not be above.
    AtMost,
    /// The value must not be below.
    AtLeast,
}

/// A promise.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// What is measured.
    pub name: String,
    /// The median.
    pub value: f64,
    /// The least and the most of all rounds.
    pub range: (f64, f64),
    /// Which way.
    pub direction: Must,
    /// The bound.
    pub must: f64,
    /// Whether the median keeps it.
    pub met: bool,
}

impl Target {
    /// A value that must not be above `must`.
    #[must_use]
    pub fn at_most(name: impl Into<String>, rounds: &Rounds, must: f64) -> Self {
        Self::new(name.into(), rounds, Must::AtMost, must)
    }

    /// A value that must not be below `must`.
    #[must_use]
    pub fn at_least(name: impl Into<String>, rounds: &Rounds, must: f64) -> Self {
        Self::new(name.into(), rounds, Must::AtLeast, must)
    }

    fn new(name: String, rounds: &Rounds, direction: Must, must: f64) -> Self {
        let value = rounds.median();
        let met = match direction {
            Must::AtMost => value <= must,
            Must::AtLeast => value >= must,
        };
        Self { name, value, range: (rounds.min(), rounds.max()), direction, must, met }
    }
}

/// A line of a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// A cell for each column: its rounds.
    pub cells: Vec<Rounds>,
}

/// A table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    /// What it is about.
    pub title: String,
    /// The columns, with their units.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Table {
    fn extend(&mut self, later: Self) {
        for row in later.rows {
            match self.rows.iter_mut().find(|own| own.name == row.name) {
                Some(own) => {
                    for (cell, rounds) in own.cells.iter_mut().zip(row.cells) {
                        cell.0.extend(rounds.0);
                    }
                }
                None => self.rows.push(row),
            }
        }
    }
}

/// What a suite found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// What it measured.
    pub tables: Vec<Table>,
    /// What it promised.
    pub targets: Vec<Target>,
}

impl Report {
    /// Adds the rounds of a later report of the same suite.
    pub fn extend(&mut self, later: Self) {
        for table in later.tables {
            match self.tables.iter_mut().find(|own| own.title == table.title) {
                Some(own) => own.extend(table),
                None => self.tables.push(table),
            }
        }
    }

    /// What `other` measured over what this did, round by round, where both have it.
    #[must_use]
    pub fn beside(&self, other: &Self) -> Self {
        let table = |own: &Table| {
            let there = other.tables.iter().find(|table| table.title == own.title)?;
            let rows = own.rows.iter().filter_map(|row| {
                let other = there.rows.iter().find(|other| other.name == row.name)?;
                let (ours, others) = (row.cells.first()?, other.cells.first()?);
                let ratio = ours.with(others, |ours, others| ours / others);
                Some(Row { name: row.name.clone(), cells: vec![ours.clone(), others.clone(), ratio] })
            });
            let columns = ["this build", "the other", "this / other"].map(str::to_owned).to_vec();
            Some(Table { title: own.title.clone(), columns, rows: rows.collect() })
        };
        Self { tables: self.tables.iter().filter_map(table).collect(), targets: Vec::new() }
    }

    /// As text for a terminal, or for a page in Markdown.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            let _infallible = writeln!(text, "\n### {}\n", table.title);
            let head: Vec<String> =
                std::iter::once(String::new()).chain(table.columns.iter().cloned()).collect();
            let rows = table.rows.iter().map(|row| {
                std::iter::once(row.name.clone()).chain(row.cells.iter().map(cell)).collect::<Vec<_>>()
            });
            text.push_str(&lines(&head, &rows.collect::<Vec<_>>()));
        }
        if self.targets.is_empty() {
            return text;
        }
        text.push_str("\n### Targets\n\n");
        let head = ["", "median", "min .. max", "must be", ""].map(str::to_owned);
        let rows: Vec<Vec<String>> = self.targets.iter().map(target).collect();
        text.push_str(&lines(&head, &rows));
        text
    }
}

fn target(target: &Target) -> Vec<String> {
    let sign = match target.direction {
        Must::AtMost => "<=",
        Must::AtLeast => ">=",
    };
    vec![
        target.name.clone(),
        number(target.value),
        format!("{} .. {}", number(target.range.0), number(target.range.1)),
        format!("{sign} {}", number(target.must)),
        if target.met { "met".to_owned() } else { "NOT MET".to_owned() },
    ]
}

fn cell(rounds: &Rounds) -> String {
    match rounds.0.len() {
        0 => String::new(),
        1 => number(rounds.median()),
        _ => format!("{} ({} .. {})", number(rounds.median()), number(rounds.min()), number(rounds.max())),
    }
}

/// With about three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A table whose columns line up.
fn lines(head: &[String], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count()));
        cells.chain([head[column].chars().count(), 3]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("| {} |\n", padded.collect::<Vec<_>>().join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    std::iter::once(line(head)).chain([line(&rule)]).chain(rows.iter().map(|row| line(row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_judged_by_the_median() {
        let rounds = Rounds(vec![9.0, 1.0, 2.0]);
        assert!(Target::at_most("x", &rounds, 2.0).met);
        assert!(!Target::at_most("x", &rounds, 1.9).met);
        assert!(Target::at_least("x", &rounds, 2.0).met);
        assert!(!Target::at_least("x", &Rounds::default(), 0.0).met, "nothing measured is nothing met");
        assert_eq!(Target::at_most("x", &rounds, 2.0).range, (1.0, 9.0));
    }
}
