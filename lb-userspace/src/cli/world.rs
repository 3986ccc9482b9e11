//! What the commands need of the world outside; tests give them another.

use std::{
    io::{self, Read},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use super::client::Daemon;
use crate::{
    dataplane::{
        Maps,
        pinned::{self, Access},
        program::{self, Mode, ProgramStatus},
    },
    firewall::{self, InForce},
    net::namespace::{self, Inside},
    paths::Paths,
    view::{
        Snapshot, Time,
        program::{Attachment, ProgramRecord},
    },
};

type Open = dyn Fn(&Path) -> anyhow::Result<Maps>;
type Programs = dyn Fn(&Path) -> anyhow::Result<Vec<ProgramRecord>>;
type Firewall = dyn Fn() -> anyhow::Result<Option<InForce>>;
type Enter = dyn Fn(u64) -> anyhow::Result<Option<Inside>>;
type Ask = dyn Fn(&Paths, Request<'_>) -> anyhow::Result<Value>;

/// A request to the daemon.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// GET of a path.
    Get(&'a str),
    /// GET of a path, that is not waited for for long: what is shown beside it does not need the daemon.
    Glance(&'a str),
    /// POST of a body to a path.
    Post(&'a str, &'a Value),
}

/// The world outside.
pub struct World {
    /// Opens the maps pinned under a directory, for reading.
    pub maps: Box<Open>,
    /// The programs pinned under a directory.
    pub programs: Box<Programs>,
    /// The host's firewall table of ours.
    pub firewall: Box<Firewall>,
    /// Takes this thread into a process's network namespace, if it is another.
    pub enter: Box<Enter>,
    /// Asks the daemon.
    pub ask: Box<Ask>,
    /// Standard input.
    pub input: Box<dyn Fn() -> Box<dyn Read>>,
    /// The time of day.
    pub now: Box<dyn Fn() -> Timestamp>,
    /// Waits.
    pub sleep: Box<dyn Fn(Duration)>,
}

impl World {
    /// The real one.
    #[must_use]
    pub fn real() -> Self {
        Self {
            maps: Box::new(|pin_dir| pinned::open(pin_dir, Access::ReadOnly)),
            programs: Box::new(|pin_dir| {
                let programs = program::status(pin_dir)?;
                Ok(programs.into_iter().map(ProgramRecord::from).collect())
            }),
            firewall: Box::new(firewall::look),
            enter: Box::new(|process| Ok(namespace::enter(process)?)),
            ask: Box::new(|paths, request| {
                let daemon = Daemon::at(paths.socket());
                match request {
                    Request::Get(path) => daemon.get(path),
                    Request::Glance(path) => daemon.glance(path),
                    Request::Post(path, body) => daemon.post(path, body),
                }
            }),
            input: Box::new(|| Box::new(io::stdin())),
            now: Box::new(Timestamp::now),
            sleep: Box::new(std::thread::sleep),
        }
    }
}

impl World {
    /// The daemon's process, if it lives.
    pub(super) fn daemon_process(&self, maps: &Maps) -> Option<u64> {
        let daemon = Snapshot::read(maps, (self.now)()).ok()?.daemon;
        daemon.pid.filter(|_| daemon.running)
    }
}

impl From<ProgramStatus> for ProgramRecord {
    fn from(program: ProgramStatus) -> Self {
        let attached = program.attached.into_iter().map(|place| Attachment {
            interface: place.interface,
            mode: place.mode.map(|mode| match mode {
                Mode::Native => "native",
                Mode::Generic => "generic",
            }),
            link: place.link,
        });
        Self {
            name: program.name,
            id: program.id,
            tag: program.tag,
            loaded_at: program.loaded_at.map(Time::new),
            attached: attached.collect(),
            verified_instructions: program.verified_instructions,
            machine_code: program.machine_code,
            run_count: program.runs.map(|(count, _)| count),
            run_time: program.runs.map(|(_, time)| time.as_secs_f64()),
        }
    }
}
