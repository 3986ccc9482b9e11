//! Two packets at the same instant on two cores.

use std::{
    collections::BTreeMap,
    hint,
    net::Ipv4Addr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, ScopedJoinHandle},
    time::Instant,
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use super::{
    Bench, bench,
    bench::USABLE,
    connection::Connection,
    hospital::{HYPERSPACE, Host, SERVERS, servers_of},
    rows::{Held, Row, Rows},
};
use lb_common::{schedule::Scheduler, server::ServerState};

const TRANSMIT: u32 = 3;
/// Where a frame without tags has its destination address and source port.
const DESTINATION: usize = 30;
const SOURCE_PORT: usize = 34;
/// How long a core waits before it lets others have a turn: longer than a packet takes.
const SPINS: u32 = 50_000;

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Raced {
    /// Pairs of connections.
    pub rounds: u32,
    /// Pairs whose last packets were under way at the same time.
    pub overlapped: u32,
    /// How often a server got the client.
    pub servers: BTreeMap<u16, u32>,
}

/// A packet that was run, and when.
struct Ran {
    out: Vec<u8>,
    from: Instant,
    to: Instant,
}

/// Two threads meet here again and again.
#[derive(Default)]
struct Gate(AtomicUsize);

impl Gate {
    /// Waits for the other; `passed` counts the caller's own passages.
    fn pass(&self, passed: &mut usize) {
        *passed += 1;
        self.0.fetch_add(1, Ordering::SeqCst);
        let mut spins = 0;
        while self.0.load(Ordering::SeqCst) < 2 * *passed {
            spins += 1;
            if spins % SPINS == 0 {
                thread::yield_now();
            }
            hint::spin_loop();
        }
    }
}

/// The other core, and what it is to do.
struct Pair<'a> {
    bench: &'a Bench,
    gate: Gate,
    job: Mutex<Option<Vec<u8>>>,
    done: Mutex<Option<Result<Ran, String>>>,
}

impl Pair<'_> {
    /// Runs a frame here and one on the other core, at once.
    fn both(&self, passed: &mut usize, [here, there]: [Vec<u8>; 2]) -> Result<[Ran; 2], String> {
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(there);
        self.gate.pass(passed);
        self.gate.pass(passed);
        let ran = self.run(&here);
        self.gate.pass(passed);
        let other = self.done.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok([ran?, other.ok_or("the other core did nothing")??])
    }

    /// The other core, until there is no more to do.
    fn help(&self) {
        let mut passed = 0;
        loop {
            self.gate.pass(&mut passed);
            let Some(frame) = self.job.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
            self.gate.pass(&mut passed);
            let ran = self.run(&frame);
            *self.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(ran);
            self.gate.pass(&mut passed);
        }
    }

    fn run(&self, frame: &[u8]) -> Result<Ran, String> {
        let from = Instant::now();
        let verdict = self.bench.run(frame).map_err(|error| format!("{error:#}"))?;
        let ran = Ran { out: verdict.frame, from, to: Instant::now() };
        if verdict.action == TRANSMIT { Ok(ran) } else { Err(format!("action {}", verdict.action)) }
    }
}

/// Two first connections of a client, from SYN to acknowledgement, each step on two cores at once, so many times with another
/// client each.
///
/// # Errors
/// There are no two CPUs, or two connections went to different servers, or a table does not show two flows, each with a
/// port of its own, that hold one record.
pub fn first_connections(rounds: u32) -> Result<Raced, String> {
    on_two_cores(rounds, connect)
}

/// As [`first_connections`], with `round-robin`, to which every SYN is a turn.
///
/// # Errors
/// As there.
pub fn first_connections_in_turn(rounds: u32) -> Result<Raced, String> {
    on_two_cores(rounds, |pair, passed, clients| {
        pair.bench.set_scheduler(&HYPERSPACE, Scheduler::RoundRobin);
        connect(pair, passed, clients)
    })
}

/// Two connections whose SYNs come at once.
fn connect(
    pair: &Pair<'_>,
    passed: &mut usize,
    clients: [Connection; 2],
) -> Result<Option<(bool, u16)>, String> {
    let syns = pair.both(passed, clients.map(|client| client.syn().build()))?;
    let [one, other] = sent_to(clients, &syns.map(|ran| ran.out))?;
    if one.server != other.server {
        return Err(format!("{} went to two servers", one.client));
    }
    acknowledged(pair, passed, [one, other]).map(Some)
}

/// As [`first_connections`], but the SYNs went to different servers, because the first was drained for a moment in between:
/// the acknowledgements, at once, make one record.
///
/// # Errors
/// As there, or a further connection does not follow the record.
pub fn acknowledgements(rounds: u32) -> Result<Raced, String> {
    on_two_cores(rounds, |pair, passed, [one, other]| {
        let [one] = sent_to([one], &[pair.run(&one.syn().build())?.out])?;
        pair.bench.set_server(one.server, USABLE & !ServerState::TAKES_NEW);
        let second = pair.bench.run(&other.syn().build());
        pair.bench.set_server(one.server, USABLE);
        let Ok([other]) = sent_to([other], &[second.map_err(|error| format!("{error:#}"))?.frame]) else {
            // All places that the scheduler looks at are the drained server's.
            return Ok(None);
        };
        if one.server == other.server {
            return Err(format!("{} took a new client, although drained", one.server.id));
        }
        let (overlapped, server) = acknowledged(pair, passed, [one, other])?;
        let third = one.on_port(40_003);
        let [third] = sent_to([third], &[pair.run(&third.syn().build())?.out])?;
        if third.server.id != server {
            return Err(format!("{} is recorded at {server} and went to {}", one.client, third.server.id));
        }
        Ok(Some((overlapped, server)))
    })
}

/// The rest of two handshakes. Says whether the last packets overlapped, and the server of the one record.
fn acknowledged(
    pair: &Pair<'_>,
    passed: &mut usize,
    clients: [Connection; 2],
) -> Result<(bool, u16), String> {
    pair.both(passed, clients.map(|client| client.syn_ack().build()))?;
    let [one, other] = pair.both(passed, clients.map(|client| client.ack().build()))?;
    for (client, ran) in clients.iter().zip([&one, &other]) {
        let [after] = sent_to([*client], std::slice::from_ref(&ran.out))?;
        if (after.server, after.snat_port) != (client.server, client.snat_port) {
            return Err(format!("{client:?} was sent on to {after:?}"));
        }
    }
    let epoch = pair.bench.now().map_err(|error| format!("{error:#}"))?;
    let server = one_record(&pair.bench.tables.read(epoch)?, clients)?;
    Ok((one.from.max(other.from) < one.to.min(other.to), server))
}

/// The server of the only record, if two flows hold it and nothing else is there.
fn one_record(rows: &Rows, clients: [Connection; 2]) -> Result<u16, String> {
    let mut flows = 0;
    let mut record = None;
    for row in rows.values() {
        match row {
            Row::Flow(flow) if flow.held == Held::Record => {
                flows += u32::from(clients.iter().any(|of| {
                    (flow.who.port, flow.server, flow.snat_port) == (of.port, of.server.id, of.snat_port)
                }));
            }
            Row::Sticky(sticky) if record.is_none() => record = Some((sticky.flows, sticky.server)),
            Row::Port(_) => {}
            other => return Err(format!("{other:?} was left")),
        }
    }
    match record {
        Some((2, server)) if flows == 2 && clients.iter().any(|of| of.server.id == server) => Ok(server),
        _ => Err(format!("not two flows and one record that counts them: {rows:?}")),
    }
}

/// The connections as they were sent on: server and SNAT port.
fn sent_to<const N: usize>(clients: [Connection; N], out: &[Vec<u8>]) -> Result<[Connection; N], String> {
    let mut sent = clients;
    for (client, out) in sent.iter_mut().zip(out) {
        let Some(&[a, b, c, d, high, low]) = out.get(DESTINATION..SOURCE_PORT + 2) else {
            return Err(format!("{} bytes came out", out.len()));
        };
        let address = Ipv4Addr::new(a, b, c, d);
        let server: Option<&'static Host> = SERVERS.iter().find(|server| server.address == address);
        *client = client
            .at(server.ok_or_else(|| format!("it was sent to {address}"))?)
            .snat(u16::from_be_bytes([high, low]));
    }
    Ok(sent)
}

/// Plays rounds on two cores, each with a client that is not known, and tables that are empty.
fn on_two_cores(
    rounds: u32,
    play: impl Fn(&Pair<'_>, &mut usize, [Connection; 2]) -> Result<Option<(bool, u16)>, String> + Sync,
) -> Result<Raced, String> {
    let cpus = two_cpus()?;
    let mut turn = bench();
    let bench = turn.as_mut()?;
    bench.reset().map_err(|error| format!("{error:#}"))?;
    let pair = Pair { bench, gate: Gate::default(), job: Mutex::default(), done: Mutex::default() };
    let mut raced = Raced::default();
    let mut passed = 0;
    thread::scope(|scope| {
        let there = scope.spawn(|| {
            let pinned = pin(cpus[1]);
            pair.help();
            pinned
        });
        let here = scope.spawn(|| {
            let played = pin(cpus[0]).and_then(|()| {
                let mut numbers = 0..;
                while raced.rounds < rounds {
                    let number = numbers.next().unwrap_or_default();
                    let round = play(&pair, &mut passed, clients(number));
                    pair.bench.tables.clear();
                    let Some((overlapped, server)) = round.map_err(|why| format!("round {number}: {why}"))?
                    else {
                        continue;
                    };
                    raced.rounds += 1;
                    raced.overlapped += u32::from(overlapped);
                    *raced.servers.entry(server).or_default() += 1;
                }
                Ok(())
            });
            // There is no more to do.
            pair.gate.pass(&mut passed);
            played
        });
        let [played, pinned] = [here, there].map(ScopedJoinHandle::join);
        let panicked = || "a thread panicked".to_owned();
        played.map_err(|_| panicked())?.and(pinned.map_err(|_| panicked())?)
    })?;
    Ok(raced)
}

/// Two connections of a client of its own.
fn clients(round: u32) -> [Connection; 2] {
    let [_, high, middle, low] = round.to_be_bytes();
    let client = Connection {
        client: Ipv4Addr::new(10, high, middle, low),
        ..Connection::to(servers_of(&HYPERSPACE).next().unwrap_or(&SERVERS[0]))
    };
    [client.on_port(40_001), client.on_port(40_002)]
}

fn two_cpus() -> Result<[usize; 2], String> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).map_err(|error| error.to_string())?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    match (cpus.next(), cpus.next()) {
        (Some(one), Some(other)) => Ok([one, other]),
        _ => Err("this takes two CPUs".to_owned()),
    }
}

/// Keeps the calling thread on a CPU, and other threads off it: a packet's run is not interrupted by them either.
fn pin(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|error| error.to_string())?;
    let first_of_all = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter lives across the call, which changes nothing but this thread's scheduling.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first_of_all) } != 0 {
        return Err(std::io::Error::last_os_error().to_string());
    }
    Ok(())
}
