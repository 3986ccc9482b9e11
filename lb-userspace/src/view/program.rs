//! The pinned programs as records.

use serde::Serialize;

use super::{
    Time,
    format::{count, duration},
    table::{Align, render},
};

/// A pinned program.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProgramRecord {
    /// Its name.
    pub name: String,
    /// The kernel's number of it.
    pub id: u32,
    /// The kernel's digest of its instructions.
    pub tag: String,
    /// When it was loaded.
    pub loaded_at: Option<Time>,
    /// Where it is attached.
    pub attached: Vec<Attachment>,
    /// Instructions that the verifier walked through.
    pub verified_instructions: Option<u32>,
    /// Bytes of machine code.
    pub machine_code: u32,
    /// How often it ran, while the kernel counts that (sysctl `kernel.bpf_stats_enabled`).
    pub run_count: Option<u64>,
    /// How long in all, in seconds.
    pub run_time: Option<f64>,
}

/// A place where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// `native` or `generic`; none if the interface is gone or in another network namespace.
    pub mode: Option<&'static str>,
    /// The kernel's number of the link.
    pub link: u32,
}

/// One line a program.
#[must_use]
pub fn table(programs: &[ProgramRecord], now: Time) -> String {
    let columns = [
        ("PROGRAM", Align::Left),
        ("ID", Align::Right),
        ("TAG", Align::Left),
        ("ATTACHED", Align::Left),
        ("LOADED", Align::Left),
        ("VERIFIED", Align::Right),
        ("CODE", Align::Right),
        ("RUNS", Align::Right),
        ("NS/RUN", Align::Right),
    ];
    let unknown = || "-".to_owned();
    render(
        &columns,
        programs.iter().map(|program| {
            vec![
                program.name.clone(),
                program.id.to_string(),
                program.tag.clone(),
                attached(&program.attached),
                program
                    .loaded_at
                    .map_or_else(unknown, |at| format!("{} ago", duration(at.seconds_until(now)))),
                program.verified_instructions.map_or_else(unknown, |n| n.to_string()),
                format!("{} B", program.machine_code),
                program.run_count.map_or_else(unknown, count),
                mean(program).map_or_else(unknown, |nanoseconds| format!("{nanoseconds:.0}")),
            ]
        }),
    )
}

fn attached(places: &[Attachment]) -> String {
    if places.is_empty() {
        return "-".to_owned();
    }
    let place = |place: &Attachment| match place.mode {
        Some(mode) => format!("{} ({mode})", place.interface),
        None => format!("{} (not in this network namespace)", place.interface),
    };
    places.iter().map(place).collect::<Vec<_>>().join(", ")
}

/// Nanoseconds of one run on average.
#[expect(clippy::cast_precision_loss, reason = "an average for the eye")]
fn mean(program: &ProgramRecord) -> Option<f64> {
    let runs = program.run_count.filter(|runs| *runs > 0)?;
    Some(program.run_time? * 1e9 / runs as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_shows_where_and_how_it_runs() {
        let program = ProgramRecord {
            name: "steadfast".to_owned(),
            id: 7,
            tag: "00ff".to_owned(),
            loaded_at: Time::from_unix(1_000_000),
            attached: vec![Attachment { interface: "eth0".to_owned(), mode: Some("native"), link: 3 }],
            verified_instructions: Some(5_000),
            machine_code: 4_096,
            run_count: Some(1_000_000),
            run_time: Some(0.05),
        };
        let text = table(&[program], Time::from_unix(1_000_090).unwrap());
        assert_eq!(
            text,
            "\
PROGRAM    ID  TAG   ATTACHED       LOADED      VERIFIED    CODE   RUNS  NS/RUN
steadfast   7  00ff  eth0 (native)  1m 30s ago      5000  4096 B  1.00M      50
"
        );
    }
}
