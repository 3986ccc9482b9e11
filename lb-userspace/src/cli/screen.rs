//! What a command says: tables for people, JSON for programs.

use std::io::Write;

use serde::Serialize;

use super::args::Cli;
use crate::daemon::problems::Problem;
use crate::view::{Snapshot, table::paint};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// For people.
    Text,
    /// JSON on one line.
    Json,
    /// JSON, indented.
    Pretty,
}

impl Format {
    pub(super) const fn of(cli: &Cli) -> Self {
        if cli.pretty {
            Self::Pretty
        } else if cli.json {
            Self::Json
        } else {
            Self::Text
        }
    }
}

/// Where results and remarks go.
pub(super) struct Screen<'a> {
    pub(super) format: Format,
    /// Whether words may be coloured and the screen cleared.
    pub(super) escapes: bool,
    pub(super) out: &'a mut dyn Write,
    pub(super) err: &'a mut dyn Write,
}

impl Screen<'_> {
    /// Writes a result: a record or a list of them, or the text that people get instead.
    pub(super) fn show<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Text => {
                let text = text();
                let text = if self.escapes { paint(&text) } else { text };
                self.out.write_all(text.as_bytes())?;
            }
            Format::Json => {
                serde_json::to_writer(&mut self.out, value)?;
                self.out.write_all(b"\n")?;
            }
            Format::Pretty => {
                serde_json::to_writer_pretty(&mut self.out, value)?;
                self.out.write_all(b"\n")?;
            }
        }
        Ok(())
    }

    /// Says something beside the result.
    pub(super) fn remark(&mut self, remark: &str) -> anyhow::Result<()> {
        Ok(writeln!(self.err, "{remark}")?)
    }

    /// Says so if the daemon is silent.
    pub(super) fn warn_of_silence(&mut self, snapshot: &Snapshot<'_>) -> anyhow::Result<()> {
        match snapshot.daemon.warning() {
            Some(warning) => self.remark(&warning),
            None => Ok(()),
        }
    }

    /// Says what is wrong: to people below the table, to programs beside the result.
    pub(super) fn tell_problems(&mut self, problems: &[Problem]) -> anyhow::Result<()> {
        for (number, problem) in problems.iter().enumerate() {
            match self.format {
                Format::Text if number == 0 => writeln!(self.out, "\n{}", problem.text)?,
                Format::Text => writeln!(self.out, "{}", problem.text)?,
                Format::Json | Format::Pretty => self.remark(&problem.text)?,
            }
        }
        Ok(())
    }

    /// Begins a new picture: where escape sequences are understood in the place of the last one.
    pub(super) fn redraw(&mut self, first: bool) -> anyhow::Result<()> {
        if self.format == Format::Text {
            if self.escapes {
                self.out.write_all(b"\x1b[H\x1b[2J")?;
            } else if !first {
                self.out.write_all(b"\n")?;
            }
        }
        Ok(())
    }
}
