//! What a packet costs in the program: nanoseconds of one core, through `BPF_PROG_TEST_RUN`.
//!
//! Every program is run behind one that puts the frame back (`tests/xdp/src/bench.rs`). Its cost is that of the program
//! `empty` behind it, run by the same script just before; what is left is the program's own. The counters say what
//! became of every single packet, and any other reason than the expected one ends the bench.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::{Action, Reason};

use super::{
    figures::{Report, Rounds, Row, Table, Target},
    frames::{CLIENT_PORT, Flags, From, management, script, sequence_at},
    replay::{Program, Replay},
    rows::{clear, establish, remember, snat_ports},
    script::Script,
    world::{Service, Sizes, World, alone},
};

const TRANSMIT: u32 = 3;
/// Runs of which the least is a round's figure, where a run can be repeated.
const TRIES: usize = 4;

/// The tables as they are by default.
pub(super) const USUAL: Sizes = Sizes { flows: 262_144, half_open: 65_536, sticky: 262_144 };
/// Tables that stay in the cache, for what a packet costs beside the memory.
const SMALL: Sizes = Sizes { flows: 2048, half_open: 2048, sticky: 2048 };
/// Tables for a million flows: with half as many slots, one flow in a million would find none in its two buckets.
const LARGE: Sizes = Sizes { flows: 1 << 22, half_open: 65_536, sticky: 1 << 21 };

pub(super) const SNAT: Service = Service { mode: "snat", is_v6: false };
pub(super) const NAT: Service = Service { mode: "nat", is_v6: false };

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rounds, in each of which everything is run once.
    pub rounds: usize,
    /// Packets of one program in a round.
    pub repeat: u32,
}

/// What was measured, by name, a figure a round: nanoseconds beyond those of `empty`.
type Figures = BTreeMap<String, Rounds>;

/// Runs the suite.
///
/// # Errors
/// The kernel refused something, or a packet came to something else than it should.
pub fn packet(options: Options) -> Result<Report> {
    let usual = alone(move |pins| established(pins, options, USUAL, &[1, 4096, 65_536], true))?;
    let large = alone(move |pins| established(pins, options, LARGE, &[1_048_576], false))?;
    let small = alone(move |pins| handshakes(pins, options))?;
    let strangers = alone(move |pins| strangers(pins, options))?;
    let full = alone(move |pins| full(pins, options))?;
    Ok(report(&[&usual, &large, &small, &strangers, &full]))
}

/// A world and the programs that are run in it.
pub(super) struct Bench {
    pub(super) world: World,
    pub(super) replay: Replay,
}

impl Bench {
    pub(super) fn up(pins: &Path, sizes: Sizes, values: u32) -> Result<Self> {
        Self::of(World::up(&pins.join("steadfast"), sizes)?, values)
    }

    /// The programs beside a world.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub(super) fn of(world: World, values: u32) -> Result<Self> {
        let mut replay = Replay::load(&world, values)?;
        replay.know(&script(SNAT, From::Client, Flags::Ack, CLIENT_PORT)?)?;
        Ok(Self { world, replay })
    }

    /// Nanoseconds of a packet in one of the programs beside us, beyond those of `empty`.
    pub(super) fn floor(&mut self, program: Program, script: &Script, repeat: u32) -> Result<f64> {
        self.least(TRIES, script, repeat, |bench| bench.replay.run(program, script, repeat, TRANSMIT))
    }

    /// Nanoseconds of a packet in the balancer, beyond those of `empty`; all must be counted under this reason, also when they
    /// come again.
    pub(super) fn balancer(&mut self, script: &Script, repeat: u32, reason: Reason) -> Result<f64> {
        self.least(TRIES, script, repeat, |bench| bench.timed(script, repeat, reason, u64::from(repeat)))
    }

    /// The least of so many tries, by turns with `empty`, of which the least counts, too: whatever else the machine does adds to a run and
    /// takes nothing away.
    fn least(
        &mut self,
        tries: usize,
        script: &Script,
        repeat: u32,
        run: impl Fn(&mut Self) -> Result<Duration>,
    ) -> Result<f64> {
        let (mut empty, mut time) = (Duration::MAX, Duration::MAX);
        for _ in 0..tries {
            empty = empty.min(self.replay.run(Program::Empty, script, repeat, TRANSMIT)?);
            time = time.min(run(self)?);
        }
        Ok(nanoseconds(time, repeat) - nanoseconds(empty, repeat))
    }

    /// Nanoseconds of a packet in the balancer, beyond those of `empty`, where packets cannot come again; at `least` so many must be
    /// counted under this reason.
    pub(super) fn mostly(&mut self, script: &Script, repeat: u32, reason: Reason, least: u64) -> Result<f64> {
        self.least(1, script, repeat, |bench| bench.timed(script, repeat, reason, least))
    }

    fn timed(&mut self, script: &Script, repeat: u32, reason: Reason, least: u64) -> Result<Duration> {
        let verdict = verdict(reason.action());
        let before = self.world.reasons()?;
        let time = self.replay.run(Program::Steadfast, script, repeat, verdict)?;
        let after = self.world.reasons()?;
        let counted = after[reason as usize] - before[reason as usize];
        if counted < least {
            let others = Reason::ALL.iter().filter_map(|other| {
                let count = after[*other as usize] - before[*other as usize];
                (count > 0).then(|| format!("{count} {}", other.label()))
            });
            let others = others.collect::<Vec<_>>().join(", ");
            ensure!(false, "{repeat} packets should have been {}, and were {others}", reason.label());
        }
        Ok(time)
    }
}

/// The kernel's number of what becomes of a packet (`enum xdp_action`).
pub(super) const fn verdict(action: Action) -> u32 {
    match action {
        Action::Drop => 1,
        Action::Pass => 2,
        Action::Transmit => TRANSMIT,
    }
}

fn nanoseconds(time: Duration, packets: u32) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(packets)
}

/// Has the conversations come up in no order.
pub(super) fn shuffled(script: Script, conversations: u32) -> Script {
    Script { multiplier: 1_664_525, increment: 1_013_904_223, mask: u64::from(conversations) - 1, ..script }
}

/// Has the conversations come up one after the other, from this one on.
pub(super) fn in_turn(script: Script, first: u32, conversations: u64) -> Script {
    Script { cursor: u64::from(first), multiplier: 1, increment: 1, mask: conversations - 1, ..script }
}

/// Segments of open flows, so many of them, and what is not ours.
fn established(
    pins: &Path,
    options: Options,
    sizes: Sizes,
    flows: &[u32],
    everything: bool,
) -> Result<Figures> {
    let mut bench = Bench::up(pins, sizes, 1)?;
    let most = flows.iter().copied().max().unwrap_or(1);
    let without = establish(&bench.world, SNAT, most)?;
    ensure!(without == 0, "{without} of {most} flows found no room");
    for service in Service::ALL.into_iter().filter(|service| *service != SNAT) {
        establish(&bench.world, service, 1)?;
    }
    let hot = script(SNAT, From::Client, Flags::Ack, CLIENT_PORT)?;
    let mut figures = Figures::new();
    for round in 0..=options.rounds {
        let mut note = |name: String, value: f64| {
            // The first is to warm up.
            if round > 0 {
                figures.entry(name).or_default().0.push(value);
            }
        };
        note("parse".into(), bench.floor(Program::Parse, &hot, options.repeat)?);
        note("hash".into(), bench.floor(Program::Hash, &hot, options.repeat)?);
        for count in flows {
            for (from, reason) in [(From::Client, Reason::Forwarded), (From::Server, Reason::Returned)] {
                let script = growing(SNAT, from, *count)?;
                let name = format!("{} {} {count}", SNAT.label(), way(from));
                note(name, bench.balancer(&script, options.repeat.max(*count), reason)?);
            }
        }
        if !everything {
            continue;
        }
        note("not ours".into(), bench.balancer(&management()?, options.repeat, Reason::NotOurs)?);
        for service in Service::ALL.into_iter().filter(|service| *service != SNAT) {
            let script = growing(service, From::Client, 1)?;
            let name = format!("{} {} 1", service.label(), way(From::Client));
            note(name, bench.balancer(&script, options.repeat, Reason::Forwarded)?);
            if service.sees_answers() {
                let script = growing(service, From::Server, 1)?;
                let name = format!("{} {} 1", service.label(), way(From::Server));
                note(name, bench.balancer(&script, options.repeat, Reason::Returned)?);
            }
        }
    }
    Ok(figures)
}

/// Data of so many flows. That of a single one goes on as bulk does, with full segments.
pub(super) fn growing(service: Service, from: From, flows: u32) -> Result<Script> {
    let script = shuffled(script(service, from, Flags::Ack, CLIENT_PORT)?, flows);
    Ok(if flows > 1 {
        script
    } else {
        Script { sequence_at: sequence_at(service), sequence_step: 1448, ..script }
    })
}

pub(super) const fn way(from: From) -> &'static str {
    match from {
        From::Client => "to server",
        From::Server => "to client",
    }
}

/// Conversations in one go: they find room in the small tables.
const BATCH: u32 = 512;
/// Of these, so many go first and are not timed. The program that ran before has left its own code and data in the caches:
/// that is fetched once, in some ten microseconds, and would be a good part of a few hundred packets' time.
const FIRST: u32 = 128;
/// How often in a round.
const BATCHES: usize = 10;

/// Whole connections: SYN, SYN-ACK, the ACK that establishes, FIN both ways, and the SYN of a client that is known now.
fn handshakes(pins: &Path, options: Options) -> Result<Figures> {
    let mut bench = Bench::up(pins, SMALL, BATCH)?;
    let hot = script(SNAT, From::Client, Flags::Ack, CLIENT_PORT)?;
    let mut figures = Figures::new();
    for round in 0..=options.rounds {
        let mut sums = BTreeMap::<String, f64>::new();
        let hash = bench.floor(Program::Hash, &hot, options.repeat)?;
        for _ in 0..BATCHES {
            for service in Service::ALL {
                clear(&bench.world);
                connection(&mut bench, service, &mut sums)?;
            }
        }
        if round > 0 {
            figures.entry("hash".into()).or_default().0.push(hash);
            for (name, sum) in sums {
                figures.entry(name).or_default().0.push(sum / BATCHES as f64);
            }
        }
    }
    Ok(figures)
}

fn connection(bench: &mut Bench, service: Service, sums: &mut BTreeMap<String, f64>) -> Result<()> {
    let answers = service.sees_answers();
    // Records that nobody answered for may fill half of a client's slots only: a few clients have none.
    let least = if answers { BATCH - FIRST } else { (BATCH - FIRST) * 19 / 20 };
    let mut step = |bench: &mut Bench, name: &str, script: Script, reason: Reason| -> Result<()> {
        let conversations = |first| in_turn(script, first, u64::from(BATCH));
        let mut time = || {
            let empty = bench.replay.run(Program::Empty, &conversations(0), BATCH - FIRST, TRANSMIT)?;
            bench.timed(&conversations(0), FIRST, reason, 0)?;
            let time = bench.timed(&conversations(FIRST), BATCH - FIRST, reason, u64::from(least))?;
            Ok::<_, anyhow::Error>(nanoseconds(time, BATCH - FIRST) - nanoseconds(empty, BATCH - FIRST))
        };
        let time = time().with_context(|| format!("{} {name}", service.label()))?;
        *sums.entry(format!("{} {name}", service.label())).or_default() += time;
        Ok(())
    };
    let client = |flags, first_port| script(service, From::Client, flags, first_port);
    step(bench, "SYN", client(Flags::Syn, CLIENT_PORT)?, Reason::NewByScheduler)?;
    let server = |flags| -> Result<Script> {
        let script = script(service, From::Server, flags, CLIENT_PORT)?;
        Ok(Script { listed: u32::from(service.mode == "snat"), ..script })
    };
    if service.mode == "snat" {
        let values = snat_ports(&bench.world, service, BATCH, CLIENT_PORT)?;
        bench.replay.list(&values)?;
    }
    if answers {
        step(bench, "SYN-ACK", server(Flags::SynAck)?, Reason::Returned)?;
    }
    step(bench, "establishing ACK", client(Flags::Ack, CLIENT_PORT)?, Reason::Established)?;
    step(bench, "FIN of the client", client(Flags::Fin, CLIENT_PORT)?, Reason::Forwarded)?;
    if answers {
        step(bench, "FIN of the server", server(Flags::Fin)?, Reason::Returned)?;
    }
    step(bench, "SYN of a known client", client(Flags::Syn, CLIENT_PORT + 1000)?, Reason::NewBySticky)
}

/// Clients that nobody has seen: so many that none comes twice.
pub(super) const STRANGERS: u64 = 1 << 28;

/// SYNs of strangers alone, one after the other without end, in tables that stay in the cache: each takes the place of a half-open
/// flow before it.
fn strangers(pins: &Path, options: Options) -> Result<Figures> {
    let mut bench = Bench::up(pins, SMALL, 1)?;
    let hot = script(SNAT, From::Client, Flags::Ack, CLIENT_PORT)?;
    let mut figures = Figures::new();
    let repeat = options.repeat / 4;
    let mut first = 0;
    for round in 0..=options.rounds {
        let mut note = |name: String, value: f64| {
            if round > 0 {
                figures.entry(name).or_default().0.push(value);
            }
        };
        note("hash".into(), bench.floor(Program::Hash, &hot, options.repeat)?);
        for service in Service::ALL {
            let syn = in_turn(script(service, From::Client, Flags::Syn, 1)?, first, STRANGERS);
            let time = bench.mostly(&syn, repeat, Reason::NewByScheduler, u64::from(repeat) * 99 / 100)?;
            note(format!("{} SYN", service.label()), time);
            first += repeat;
        }
    }
    Ok(figures)
}

/// A SYN where every table is full of rows that are alive.
fn full(pins: &Path, options: Options) -> Result<Figures> {
    let mut bench = Bench::up(pins, USUAL, 1)?;
    let hot = script(SNAT, From::Client, Flags::Ack, CLIENT_PORT)?;
    let stranger = script(SNAT, From::Client, Flags::Syn, 1)?;
    let mut first = fill(&mut bench)?;
    remember(&bench.world, NAT, 65_536)?;
    let mut figures = Figures::new();
    for round in 0..=options.rounds {
        let hash = bench.floor(Program::Hash, &hot, options.repeat)?;
        let script = in_turn(stranger, first, STRANGERS);
        let repeat = options.repeat / 4;
        // Where many connections have their ports in a row, a few strangers find none.
        let syn = bench.mostly(&script, repeat, Reason::NewByScheduler, u64::from(repeat) * 99 / 100)?;
        first += repeat;
        let port = CLIENT_PORT + u16::try_from(round)?;
        let known = shuffled(self::script(NAT, From::Client, Flags::Syn, port)?, 65_536);
        let known = bench.mostly(&known, 65_536, Reason::NewBySticky, 65_536)?;
        if round > 0 {
            figures.entry("hash".into()).or_default().0.push(hash);
            figures.entry("SYN, tables full".into()).or_default().0.push(syn);
            figures.entry("nat4 SYN of one of 65,536 known clients".into()).or_default().0.push(known);
        }
    }
    Ok(figures)
}

/// Fills the flow table of the default size with live rows, and then the half-open table and all ports that are left. Gives
/// the number of the first stranger who has not come.
///
/// # Errors
/// The kernel refused.
pub(super) fn fill(bench: &mut Bench) -> Result<u32> {
    // More than there is room for.
    establish(&bench.world, SNAT, USUAL.flows / 4 * 5)?;
    let strangers = 4 * USUAL.half_open;
    let syn = in_turn(script(SNAT, From::Client, Flags::Syn, 1)?, 0, STRANGERS);
    bench.replay.run(Program::Steadfast, &syn, strangers, TRANSMIT)?;
    Ok(strangers)
}

fn report([usual, large, small, strangers, full]: &[&Figures; 5]) -> Report {
    let ratio = |figures: &Figures, name: &str| {
        let empty = Rounds::default();
        let value = figures.get(name).unwrap_or(&empty);
        value.with(figures.get("hash").unwrap_or(&empty), |value, hash| value / hash)
    };
    let table = |title: &str, figures: &Figures| Table {
        title: title.to_owned(),
        columns: vec!["ns a packet".to_owned(), "x hash floor".to_owned()],
        rows: figures
            .iter()
            .map(|(name, rounds)| Row {
                name: name.clone(),
                cells: vec![rounds.clone(), ratio(figures, name)],
            })
            .collect(),
    };
    let both = |figures: &Figures, flows: &str| {
        let there = ratio(figures, &format!("snat4 to server {flows}"));
        there.with(&ratio(figures, &format!("snat4 to client {flows}")), f64::max)
    };
    Report {
        tables: vec![
            table("Established flows (by their number), tables of the default size", usual),
            table("Established flows, tables for a million", large),
            table("Connections step by step, in the cache", small),
            table("SYNs of strangers alone, in the cache", strangers),
            table("New connections, every table full of live rows", full),
        ],
        targets: vec![
            Target::at_most(
                "established flow, hot, snat, the dearer way / hash floor",
                &both(usual, "1"),
                0.5,
            ),
            Target::at_most("the same with 65,536 flows / hot hash floor", &both(usual, "65536"), 2.5),
            Target::at_most("the same with 1,048,576 flows / hot hash floor", &both(large, "1048576"), 4.5),
            Target::at_most("SYN of a new flow, hot / hash floor", &ratio(strangers, "snat4 SYN"), 5.0),
            Target::at_most(
                "the same, every table full / hash floor",
                &ratio(full, "SYN, tables full"),
                10.0,
            ),
            Target::at_most(
                "not ours, ns over an empty program",
                usual.get("not ours").unwrap_or(&Rounds::default()),
                5.0,
            ),
        ],
    }
}
