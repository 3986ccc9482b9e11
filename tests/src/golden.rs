//! Golden packets: frames through the built program by `BPF_PROG_TEST_RUN`, each with what must become of it.
//!
//! A [`Case`] is one sentence, the tables it begins with, frames in, and for each the kernel's action, the reason counted
//! and the frame out, byte for byte; then what must have changed in the tables. Whatever else changed is a failure, and
//! so is a counter of traffic that is not exactly what the frames say.

pub(crate) mod bench;
mod connection;
pub(crate) mod frame;
pub(crate) mod hospital;
mod rows;

pub mod answers;
pub mod carrying;
pub mod closing;
pub mod full;
pub mod handshake;
pub mod icmp;
pub mod malformed;
pub mod modes;
pub mod open;
pub mod passing;
pub mod race;
pub mod random;
pub mod schedulers;
pub mod sticky;
pub mod tags;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use lb_common::{clock::Ticks, maps::Traffic, reason::Reason};

use self::{
    bench::{Bench, Verdict, since},
    frame::Frame,
    hospital::{Host, SERVERS, SERVICES, Service, schedule, span::SLACK},
    rows::{Full, Key, Row, Rows, being_written},
};

/// One golden case.
pub struct Case {
    name: &'static str,
    given: Vec<Given>,
    script: Vec<Act>,
    leaves: Vec<Then>,
    resets: BTreeMap<u16, u64>,
}

/// Something of the state that a case begins with, or that changes between its frames.
#[derive(Debug)]
enum Given {
    /// A row, over the one with its key if there is one.
    Row(Row),
    /// A server's state, `ServerState` bits.
    Server(&'static Host, u16),
    /// A service's scheduler knows these servers only.
    Scheduled(&'static Service, Vec<&'static Host>),
    /// A service's persistence timeout and idle timeout, in ticks.
    Times(&'static Service, i64, i64),
    /// A table without room.
    Full(Full),
    /// All slots for this flow in the half-open table are being written by other cores.
    HalfOpenBusy(rows::Who),
    /// So many source addresses are in use; before any row.
    Sources(u16),
    /// The next SNAT port that is tried towards an endpoint, by its place in the range.
    Cursor(u16, u64),
    /// The daemon has not set up the maps.
    NotConfigured,
    /// Rows are carried over from older tables, until so many ticks from now.
    Carrying(i32),
}

enum Act {
    Set(Given),
    Frame { frame: Vec<u8>, reason: Reason, out: Out },
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Out {
    /// `XDP_PASS`, and not a byte of it is changed.
    Passed,
    /// `XDP_TX`, as this frame.
    Sent(Vec<u8>),
    /// `XDP_DROP`.
    Dropped,
}

impl Out {
    /// The kernel's number.
    const fn action(&self) -> u32 {
        match self {
            Self::Dropped => 1,
            Self::Passed => 2,
            Self::Sent(_) => 3,
        }
    }
}

/// A change in the tables.
#[derive(Debug)]
enum Then {
    /// A row that was not there.
    Appears(Row),
    /// A row that was there and now is this.
    Becomes(Row),
    /// A row that is there no more.
    Goes(Key),
}

/// A case of this name, with empty tables and all servers usable.
fn case(name: &'static str) -> Case {
    Case { name, given: Vec::new(), script: Vec::new(), leaves: Vec::new(), resets: BTreeMap::new() }
}

impl Case {
    /// Begins with this.
    fn given(mut self, given: impl IntoIterator<Item = Given>) -> Self {
        self.given.extend(given);
        self
    }

    /// Between the frames before and after, this happens.
    fn meanwhile(mut self, given: impl IntoIterator<Item = Given>) -> Self {
        self.script.extend(given.into_iter().map(Act::Set));
        self
    }

    /// This frame passes untouched.
    fn passes(mut self, frame: Vec<u8>, reason: Reason) -> Self {
        self.script.push(Act::Frame { frame, reason, out: Out::Passed });
        self
    }

    /// This frame is dropped.
    fn drops(mut self, frame: Vec<u8>, reason: Reason) -> Self {
        self.script.push(Act::Frame { frame, reason, out: Out::Dropped });
        self
    }

    /// This frame is sent out again as that one.
    fn sends(mut self, frame: &Frame, reason: Reason, out: Vec<u8>) -> Self {
        self.script.push(Act::Frame { frame: frame.build(), reason, out: Out::Sent(out) });
        self
    }

    /// As [`Case::sends`], for a frame that is bytes already.
    fn sends_bytes(mut self, frame: Vec<u8>, reason: Reason, out: Vec<u8>) -> Self {
        self.script.push(Act::Frame { frame, reason, out: Out::Sent(out) });
        self
    }

    /// In the end these are all the changes in the tables.
    fn leaves(mut self, changes: impl IntoIterator<Item = Then>) -> Self {
        self.leaves.extend(changes);
        self
    }

    /// So many resets are counted of a server.
    fn resets_of(mut self, server: &Host, count: u64) -> Self {
        self.resets.insert(server.id, count);
        self
    }

    /// The sentence.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The reasons that its frames must be counted under.
    pub fn reasons(&self) -> impl Iterator<Item = Reason> {
        self.script.iter().filter_map(|act| match act {
            Act::Frame { reason, .. } => Some(*reason),
            Act::Set(_) => None,
        })
    }
}

/// All cases, in the order of the files.
#[must_use]
pub fn all() -> Vec<Case> {
    [
        passing::cases(),
        malformed::cases(),
        open::cases(),
        handshake::cases(),
        sticky::cases(),
        closing::cases(),
        answers::cases(),
        full::cases(),
        icmp::cases(),
        tags::cases(),
        carrying::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs cases, one after the other.
///
/// # Errors
/// What was not as it must be, case by case.
pub fn run(cases: &[Case]) -> Result<(), String> {
    let mut report = String::new();
    for case in cases {
        let mut bench = bench();
        let bench = bench.as_mut().map_err(|error| error.clone())?;
        let problems = Run::new(bench, case).and_then(|run| run.finish(case));
        let problems = problems.unwrap_or_else(|error| vec![format!("{error:#}")]);
        if !problems.is_empty() {
            let _ = writeln!(report, "\n{}\n  - {}", case.name, problems.join("\n  - "));
        }
    }
    if report.is_empty() { Ok(()) } else { Err(report) }
}

type Shared = Option<Result<Bench, String>>;

/// The one bench, taken in turns.
fn bench() -> Turn {
    static BENCH: Mutex<Shared> = Mutex::new(None);
    let mut bench = BENCH.lock().unwrap_or_else(PoisonError::into_inner);
    bench.get_or_insert_with(|| Bench::load().map_err(|error| format!("{error:#}")));
    Turn(bench)
}

struct Turn(MutexGuard<'static, Shared>);

impl Turn {
    fn as_mut(&mut self) -> Result<&mut Bench, String> {
        match self.0.as_mut() {
            Some(Ok(bench)) => Ok(bench),
            Some(Err(error)) => Err(error.clone()),
            None => Err("there is no bench".to_owned()),
        }
    }
}

/// A case under way.
struct Run<'a> {
    bench: &'a mut Bench,
    epoch: Ticks,
    before: Rows,
    traffic: Vec<Traffic>,
    problems: Vec<String>,
}

/// Whose traffic is looked at: the services, then the servers.
fn traffic(bench: &Bench) -> Result<Vec<Traffic>> {
    let services = SERVICES.iter().map(|service| bench.service_traffic(service.id));
    let servers = SERVERS.iter().map(|server| bench.server_traffic(server.id));
    services.chain(servers).collect()
}

impl<'a> Run<'a> {
    fn new(bench: &'a mut Bench, case: &Case) -> Result<Self> {
        bench.reset()?;
        let epoch = bench.now()?;
        for given in &case.given {
            set(bench, given, epoch)?;
        }
        let before = bench.tables.read(epoch).map_err(anyhow::Error::msg)?;
        let traffic = traffic(bench)?;
        Ok(Self { bench, epoch, before, traffic, problems: Vec::new() })
    }

    fn finish(mut self, case: &Case) -> Result<Vec<String>> {
        let frames = case.script.iter().filter(|act| matches!(act, Act::Frame { .. })).count();
        let mut number = 0;
        for act in &case.script {
            match act {
                Act::Set(given) => set(self.bench, given, self.epoch)?,
                Act::Frame { frame, reason, out } => {
                    number += 1;
                    let problems = self.frame(frame, *reason, out)?;
                    let of = |problem| format!("frame {number} of {frames}: {problem}");
                    self.problems.extend(problems.into_iter().map(of));
                }
            }
        }
        self.compare_tables(case);
        self.compare_traffic(case)?;
        Ok(self.problems)
    }

    fn frame(&self, frame: &[u8], reason: Reason, out: &Out) -> Result<Vec<String>> {
        let before = self.bench.reasons()?;
        let verdict = self.bench.run(frame)?;
        let after = self.bench.reasons()?;
        let mut problems = Vec::new();
        let counted = Reason::ALL.iter().filter_map(|reason| {
            let times = after[*reason as usize] - before[*reason as usize];
            (times > 0).then_some((*reason, times))
        });
        let counted: Vec<_> = counted.collect();
        if counted != [(reason, 1)] {
            problems.push(format!("counted as {counted:?}, not as {reason:?}"));
        }
        problems.extend(difference(frame, &verdict, out));
        Ok(problems)
    }

    fn compare_tables(&mut self, case: &Case) {
        let after = match self.bench.tables.read(self.epoch) {
            Ok(after) => after,
            Err(problem) => return self.problems.push(problem),
        };
        let mut expected = self.before.clone();
        for change in &case.leaves {
            let (known, wanted) = match change {
                Then::Appears(row) => (expected.insert(row.key(), *row), false),
                Then::Becomes(row) => (expected.insert(row.key(), *row), true),
                Then::Goes(key) => (expected.remove(key), true),
            };
            if known.is_some() != wanted {
                self.problems.push(format!("the case is wrong: {change:?} of {known:?}"));
            }
        }
        for (key, row) in &after {
            match expected.remove(key) {
                Some(wanted) if wanted.fits(row) => {}
                Some(wanted) => self.problems.push(format!("is     {row:?}\n    not    {wanted:?}")),
                None => self.problems.push(format!("there must be no {row:?}")),
            }
        }
        self.problems.extend(expected.values().map(|row| format!("there is no {row:?}")));
    }

    /// Compares all traffic with what the frames say.
    fn compare_traffic(&mut self, case: &Case) -> Result<()> {
        let expected = expected_traffic(case);
        let names = SERVICES.iter().map(|service| ("service", service.id));
        let names = names.chain(SERVERS.iter().map(|server| ("server", server.id)));
        let now = traffic(self.bench)?;
        for ((name, (before, after)), expected) in names.zip(self.traffic.iter().zip(now)).zip(expected) {
            let counted = since(before, &after);
            if counted != expected {
                self.problems.push(format!("{name:?}: counted {counted:?}, not {expected:?}"));
            }
        }
        Ok(())
    }
}

fn set(bench: &mut Bench, given: &Given, epoch: Ticks) -> Result<()> {
    let key = Bench::key();
    match given {
        Given::Row(row) => bench.tables.put(row, &key, epoch),
        Given::Server(server, state) => bench.set_server(server, *state),
        Given::Scheduled(service, servers) => {
            bench.set_schedule(service, &schedule(servers.iter().copied()))?;
        }
        Given::Times(service, persistence, idle) => bench.set_service(service, *persistence, *idle),
        Given::Full(table) => bench.tables.fill_up(*table, epoch),
        Given::HalfOpenBusy(who) => {
            let table = &bench.tables.half_open;
            who.flow_slots(&key, table).for_each(|slot| being_written(&table[slot]));
        }
        Given::Sources(count) => bench.set_sources(*count),
        Given::Cursor(pair, offset) => bench.tables.cursors[usize::from(*pair)].store(*offset),
        Given::NotConfigured => bench.unconfigure(),
        Given::Carrying(ticks) => bench.carry_until(Ticks(epoch.0.wrapping_add_signed(*ticks))),
    }
    Ok(())
}

/// How a verdict differs from what it must be.
fn difference(frame: &[u8], verdict: &Verdict, out: &Out) -> Option<String> {
    if verdict.action != out.action() {
        return Some(format!("action {}, not {}", verdict.action, out.action()));
    }
    let expected = match out {
        Out::Passed => frame,
        Out::Sent(expected) => expected,
        Out::Dropped => return None,
    };
    if verdict.frame == expected {
        return None;
    }
    let at = verdict.frame.iter().zip(expected).position(|(is, wanted)| is != wanted);
    let at = at.unwrap_or_else(|| expected.len().min(verdict.frame.len()));
    Some(format!("byte {at} differs: is\n    {:02x?}\n    not\n    {expected:02x?}", verdict.frame))
}

/// What the services and the servers must have counted, in the order of [`traffic`].
fn expected_traffic(case: &Case) -> Vec<Traffic> {
    let mut counted = vec![Traffic::default(); SERVICES.len() + SERVERS.len()];
    for act in &case.script {
        let Act::Frame { frame, reason, out } = act else { continue };
        let bytes = u64::try_from(frame.len()).unwrap_or(u64::MAX);
        let (to_server, answer) = match (reason, out) {
            (Reason::IcmpToServer | Reason::IcmpToClient, _) => continue,
            (Reason::ResetNoReturnFlow, _) => continue,
            (Reason::ResetNoFlow | Reason::ResetNoServer | Reason::ResetServerGone, Out::Sent(_)) => {
                if *reason != Reason::ResetServerGone {
                    counted[service_place(destination(frame))].resets += 1;
                }
                continue;
            }
            (Reason::Returned, Out::Sent(out)) => (false, out),
            (_, Out::Sent(out)) => (true, out),
            _ => continue,
        };
        let established = matches!(
            reason,
            Reason::Established | Reason::EstablishedUnrecorded | Reason::EstablishedDisplacing
        );
        let (service, server) = if to_server {
            (destination(frame), destination(answer))
        } else {
            (source(answer), source(frame))
        };
        let server = SERVERS.iter().position(|host| host.address == server).unwrap_or(usize::MAX);
        for place in [service_place(service), SERVICES.len() + server] {
            let traffic = &mut counted[place];
            traffic.flows += u64::from(established);
            if to_server {
                traffic.packets_in += 1;
                traffic.bytes_in += bytes;
            } else {
                traffic.packets_out += 1;
                traffic.bytes_out += bytes;
            }
        }
    }
    for (place, server) in SERVERS.iter().enumerate() {
        let resets = case.resets.get(&server.id).copied().unwrap_or_default();
        counted[SERVICES.len() + place].resets += resets;
        counted[usize::from(server.service != SERVICES[0].id)].resets += resets;
    }
    counted
}

fn service_place(address: Ipv4Addr) -> usize {
    SERVICES.iter().position(|service| service.address == address).unwrap_or(usize::MAX)
}

fn source(frame: &[u8]) -> Ipv4Addr {
    address_at(frame, 12)
}

fn destination(frame: &[u8]) -> Ipv4Addr {
    address_at(frame, 16)
}

/// The address at this offset in the IP header of a frame.
fn address_at(frame: &[u8], offset: usize) -> Ipv4Addr {
    let mut at = 12;
    while matches!(frame[at..at + 2], [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    let at = at + 2 + offset;
    Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3])
}

const _: () = assert!(SLACK < hospital::span::SYN / 2);
