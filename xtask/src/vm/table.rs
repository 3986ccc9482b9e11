//! The table of kernels: on the screen, and in docs/reference/kernels.md.

use std::{fmt, fs, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    debian::write,
    kernels::{self, Kernel, Unpacked, Wanted},
    plan::{CONTROLS, GOLDEN, PROBE, Plan},
    report::{self, Facts},
};
use crate::workspace::Workspace;

const DOCUMENT: &str = "docs/reference/kernels.md";
const BEGIN: &str = "<!-- begin kernels -->\n";
const END: &str = "<!-- end kernels -->";

/// What became of a kernel.
pub(crate) struct Row {
    name: &'static str,
    debian: &'static str,
    release: String,
    wanted: Wanted,
    problems: Vec<String>,
    /// Passed, of how many.
    golden: Option<(u32, u32)>,
    /// The other tests: name, passed, of how many.
    others: Vec<(String, u32, u32)>,
    /// Golden tests of the control that failed.
    control: Option<u32>,
    facts: Facts,
    took: Duration,
}

impl Row {
    pub(crate) fn new(
        kernel: &Kernel,
        unpacked: &Unpacked,
        plan: &Plan,
        outcome: Result<String>,
        took: Duration,
    ) -> Self {
        let steps = outcome.and_then(|report| report::steps(&report));
        let (steps, mut problems) = match steps {
            Ok(steps) => (steps, Vec::new()),
            Err(error) => (Vec::new(), vec![format!("{error:#}")]),
        };
        if problems.is_empty() {
            problems = plan.problems(kernel.wanted, &steps);
        }
        let tests = |name: &str| report::tests(&steps, name);
        let others = plan.chosen().filter(|name| *name != GOLDEN);
        let others = others.filter_map(|name| {
            let (passed, failed) = tests(name)?;
            Some((name.to_owned(), passed, passed + failed))
        });
        Self {
            name: kernel.name,
            debian: kernel.release,
            release: unpacked.release.clone(),
            wanted: kernel.wanted,
            golden: tests(GOLDEN).map(|(passed, failed)| (passed, passed + failed)),
            others: others.collect(),
            control: tests(CONTROLS[1]).map(|(_, failed)| failed),
            facts: report::facts(&steps, PROBE),
            problems,
            took,
        }
    }

    /// Whether all was as it must be.
    pub(crate) fn holds(&self) -> bool {
        self.problems.is_empty()
    }

    fn verdict(&self) -> &'static str {
        match (self.holds(), self.wanted) {
            (false, _) => "FAILED",
            (true, Wanted::Works) => "works",
            (true, Wanted::Refused) => "refused by name",
        }
    }

    /// The cells of the table; times change from run to run.
    fn cells(&self, with_time: bool) -> Vec<String> {
        let some = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        let verified = |(name, count): &(String, u64)| format!("{name} {count}");
        let verified: Vec<String> = self.facts.verified.iter().map(verified).collect();
        let of = |passed: u32, all: u32| format!("{passed} of {all}");
        let others = self.others.iter().map(|(name, passed, all)| format!("{name} {}", of(*passed, *all)));
        let mut cells = vec![
            self.name.to_owned(),
            format!("{} ({})", self.release, self.debian),
            self.verdict().to_owned(),
            some(self.golden.map(|(passed, all)| of(passed, all)).unwrap_or_default()),
            some(others.collect::<Vec<_>>().join(", ")),
            some(self.control.map(|failed| format!("{failed} fail")).unwrap_or_default()),
            some(self.facts.native.join(", ")),
            some(verified.join(", ")),
        ];
        if with_time {
            cells.push(format!("{:.0} s", self.took.as_secs_f64()));
        }
        cells
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "  FAILED   {problem}")?;
        }
        write!(f, "  {}, {:.0} s", self.verdict(), self.took.as_secs_f64())
    }
}

/// The rows as a table of Markdown.
pub(crate) fn markdown(rows: &[Row], with_time: bool) -> String {
    table(rows.iter().map(|row| row.cells(with_time)), with_time)
}

/// A table of Markdown, its columns aligned.
fn table(rows: impl Iterator<Item = Vec<String>>, with_time: bool) -> String {
    let head = [
        "kernel",
        "release (Debian)",
        "verdict",
        "golden passed",
        "others passed",
        "golden of the control",
        "native on",
        "instructions verified",
    ];
    let time = with_time.then_some("time");
    let head: Vec<String> = head.into_iter().chain(time).map(str::to_owned).collect();
    let mut lines = vec![head];
    lines.extend(rows);
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|column| lines.iter().map(|line| line[column].len()).max().unwrap_or_default())
        .collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    lines.insert(1, rule);
    let line = |cells: &Vec<String>| {
        let cells: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    lines.iter().map(line).collect()
}

/// Puts the rows into the document's table, between its markers: a kernel's row in place of that which it has.
pub(crate) fn record(workspace: &Workspace, rows: &[Row]) -> Result<()> {
    let path = workspace.root().join(DOCUMENT);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| {
        let (table, after) = rest.split_once(END)?;
        Some((before, table, after))
    });
    let (before, old, after) =
        parts.with_context(|| format!("{DOCUMENT} has no lines `{}` and `{END}`", BEGIN.trim_end()))?;
    let new = merged(old, rows.iter().map(|row| row.cells(false)).collect());
    write(&path, format!("{before}{BEGIN}{}{END}{after}", table(new.into_iter(), false)))?;
    println!("  kept     {DOCUMENT}");
    Ok(())
}

/// The rows of a table of Markdown with these in place of those that begin alike, in the order of the kernels.
fn merged(old: &str, new: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let rows: Vec<Vec<String>> = new.into_iter().chain(old.lines().skip(2).map(cells)).collect();
    let row = |kernel: &Kernel| rows.iter().find(|row| row[0] == kernel.name).cloned();
    kernels::ALL.iter().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_row_replaces_that_which_it_has_and_no_other() {
        let row = |kernel: &str, release: &str| {
            [kernel, release, "", "", "", "", "", ""].map(str::to_owned).to_vec()
        };
        let old = table([row("5.10", "a"), row("6.12", "b")].into_iter(), false);
        let new = merged(&old, vec![row("6.12", "c"), row("6.1", "d")]);
        assert_eq!(new, [row("5.10", "a"), row("6.1", "d"), row("6.12", "c")]);
    }
}
