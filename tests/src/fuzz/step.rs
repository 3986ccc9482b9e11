//! What happens in a sequence, one after the other; written as text, a line each.

use std::fmt::{self, Write as _};

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A frame comes.
    Frame(Vec<u8>),
    /// The server of this place in `SERVERS` gets these `ServerState` bits.
    Server(usize, u16),
    /// So many ticks go by.
    Ticks(u32),
    /// The daemon has set up the maps, or not.
    Configured(bool),
    /// The schedulers' tables become those of this number.
    Schedule(usize),
    /// Others are writing the half-open slots of these bits, and have thrown away those that they were writing.
    Busy(u16),
    /// The daemon frees what has expired.
    Sweep,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(bytes) => write!(f, "frame {}", hex(bytes)),
            Self::Server(number, state) => write!(f, "server {number} {state:#x}"),
            Self::Ticks(ticks) => write!(f, "ticks {ticks}"),
            Self::Configured(done) => write!(f, "configured {done}"),
            Self::Schedule(number) => write!(f, "schedule {number}"),
            Self::Sweep => write!(f, "sweep"),
            Self::Busy(slots) => write!(f, "busy {slots:#x}"),
        }
    }
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A sequence: the number of the state that it begins with, and what happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    pub(crate) setup: u64,
    pub(crate) steps: Vec<Step>,
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "setup {}", self.setup)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl Sequence {
    /// Reads what [`Display`](fmt::Display) writes; `#` begins a comment.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut sequence = Self { setup: 0, steps: Vec::new() };
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let words: Vec<_> = line.split_whitespace().collect();
            let step = step(&words, &mut sequence.setup);
            sequence.steps.extend(step.ok_or_else(|| format!("line {number}: `{line}` is no step"))?);
        }
        Ok(sequence)
    }
}

fn step(words: &[&str], setup: &mut u64) -> Option<Option<Step>> {
    Some(Some(match *words {
        ["setup", number] => {
            *setup = number.parse().ok()?;
            return Some(None);
        }
        ["frame", bytes] => Step::Frame(unhex(bytes)?),
        ["server", number, state] => Step::Server(number.parse().ok()?, bits(state)?),
        ["sweep"] => Step::Sweep,
        ["busy", slots] => Step::Busy(bits(slots)?),
        ["ticks", ticks] => Step::Ticks(ticks.parse().ok()?),
        ["configured", done] => Step::Configured(done.parse().ok()?),
        ["schedule", number] => Step::Schedule(number.parse().ok()?),
        _ => return None,
    }))
}

fn bits(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_read_as_it_was_written() {
        let steps = vec![
            Step::Frame(vec![0, 0x7f, 0xff]),
            Step::Server(3, 0x1f),
            Step::Ticks(401),
            Step::Configured(false),
            Step::Schedule(2),
            Step::Busy(0x8001),
            Step::Sweep,
        ];
        let sequence = Sequence { setup: u64::MAX, steps };
        assert_eq!(Sequence::parse(&format!("# why\n{sequence}")), Ok(sequence));
        assert_eq!(Sequence::parse("frame 0g"), Err("line 1: `frame 0g` is no step".to_owned()));
    }
}
