//! Packets a second through native XDP: real frames over a cable of two veth devices, beside a program that sends each
//! back as it is.
//!
//! Everything is done by one core: it writes a frame (`replay`, in `tests/xdp/src/bench.rs`) and sends it to the balancer's
//! end, runs the program there, and drops what comes back at its own end.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{
    Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use aya_obj::programs::XdpAttachType;
use lb_common::reason::Reason;
use nix::net::if_::if_nametoindex;

use super::{
    figures::{Report, Rounds, Row, Table, Target},
    frames::From,
    packet::{SNAT, USUAL, growing, way},
    replay::Replay,
    rows::establish,
    world::{INTERFACE, PEER, World, alone},
};

/// How thoroughly.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rounds, in each of which every program is run once.
    pub rounds: usize,
    /// Frames of one program in a round.
    pub frames: u32,
}

const FLOWS: [u32; 3] = [1, 4096, 65_536];
/// What a ring of a device may lose where somebody else had the core for too long.
const LOST_AT_MOST: f64 = 0.01;
const SETTLES_WITHIN: Duration = Duration::from_secs(2);

/// Runs the suite.
///
/// # Errors
/// The kernel refused something, or a packet came to something else than it should.
pub fn veth(options: Options) -> Result<Report> {
    ensure!(options.rounds > 0, "a bench of no rounds");
    let runs = alone(move |pins| measure(pins, options))?;
    Ok(report(&runs))
}

/// One kind of traffic: frames a second through both programs, a figure a round.
struct Run {
    from: From,
    flows: u32,
    plain: Rounds,
    steadfast: Rounds,
}

/// Runs by turns of which the best is a round's figure: whatever else the machine does makes a run slower, never faster.
const TRIES: usize = 3;

fn measure(pins: &Path, options: Options) -> Result<Vec<Run>> {
    let mut cable = Cable::up(pins)?;
    let kinds = FLOWS.into_iter().flat_map(|flows| [From::Client, From::Server].map(|from| (from, flows)));
    let run = |(from, flows)| Run { from, flows, plain: Rounds::default(), steadfast: Rounds::default() };
    let mut runs: Vec<Run> = kinds.map(run).collect();
    for round in 0..=options.rounds {
        for run in &mut runs {
            let [mut plain, mut steadfast] = [0.0_f64; 2];
            for turn in 0..TRIES {
                // Nobody is always the first.
                let order = if (round + turn) % 2 == 0 { [false, true] } else { [true, false] };
                for is_steadfast in order {
                    let rate = cable.rate(is_steadfast, run, options.frames)?;
                    let best = if is_steadfast { &mut steadfast } else { &mut plain };
                    *best = best.max(rate);
                }
            }
            // The first round is to warm up.
            if round > 0 {
                run.plain.0.push(plain);
                run.steadfast.0.push(steadfast);
            }
        }
    }
    Ok(runs)
}

/// The balancer at one end of the cable, the traffic's source and end at the other.
struct Cable {
    world: World,
    replay: Replay,
    steadfast: Xdp,
    sender: u32,
}

impl Cable {
    fn up(pins: &Path) -> Result<Self> {
        let world = World::up(&pins.join("steadfast"), USUAL)?;
        world.receive_on(INTERFACE)?;
        let most = FLOWS.into_iter().max().unwrap_or(1);
        let without = establish(&world, SNAT, most)?;
        ensure!(without == 0, "{without} of {most} flows found no room");
        let mut replay = Replay::load(&world, 1)?;
        let sink = replay.program("sink")?;
        sink.load().context("the kernel refuses sink")?;
        sink.attach(PEER, XdpMode::Driver).context("cannot attach sink")?;
        let steadfast = Xdp::from_pin(world.program(), XdpAttachType::Interface)
            .context("cannot open the pinned program")?;
        let sender = if_nametoindex(PEER).context("there is no other end of the cable")?;
        Ok(Self { world, replay, steadfast, sender })
    }

    /// Frames a second that came back to where they were sent from.
    fn rate(&mut self, is_steadfast: bool, run: &Run, frames: u32) -> Result<f64> {
        let program = if is_steadfast { &mut self.steadfast } else { self.replay.program("empty")? };
        put_into(self.world.link(), program)?;
        let script = growing(SNAT, run.from, run.flows)?;
        let reason = if run.from == From::Client { Reason::Forwarded } else { Reason::Returned };
        let (reasons, received) = (self.world.reasons()?, received_frames(PEER)?);
        let took = self.replay.send(self.sender, &script, frames)?;
        let came = settled(|| received_frames(PEER))? - received;
        let counted = self.world.reasons()?[reason as usize] - reasons[reason as usize];
        ensure!(
            came as f64 >= f64::from(frames) * (1.0 - LOST_AT_MOST),
            "{came} of {frames} frames came back from the other end"
        );
        let expected = if is_steadfast { came } else { 0 };
        ensure!(
            counted == expected,
            "{counted} frames were counted as {}, {came} came back from the balancer's end",
            reason.label()
        );
        Ok(came as f64 / took.as_secs_f64())
    }
}

/// Puts a program into the pinned link in place of the one that is there.
fn put_into(link: &Path, program: &mut Xdp) -> Result<()> {
    let pinned = PinnedLink::from_pin(link).with_context(|| format!("cannot open {}", link.display()))?;
    let link = XdpLink::try_from(FdLink::from(pinned)).context("a link of another kind")?;
    let id = program.attach_to_link(link).context("cannot exchange the program on the cable")?;
    // The pin keeps the link.
    drop(program.take_link(id)?);
    Ok(())
}

/// A count, once it does not grow any more.
fn settled(count: impl Fn() -> Result<u64>) -> Result<u64> {
    let start = Instant::now();
    let mut last = count()?;
    while start.elapsed() < SETTLES_WITHIN {
        thread::sleep(Duration::from_millis(2));
        let now = count()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    bail!("frames still come {SETTLES_WITHIN:?} after the last was sent")
}

/// Frames that an interface of the calling thread's network namespace has received.
fn received_frames(interface: &str) -> Result<u64> {
    let path = "/proc/thread-self/net/dev";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    frames_in(&text, interface).with_context(|| format!("{path} has no line of {interface}"))
}

fn frames_in(text: &str, interface: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, counts) = lines.find(|(name, _)| name.trim() == interface)?;
    counts.split_whitespace().nth(1)?.parse().ok()
}

fn report(runs: &[Run]) -> Report {
    let ratio = |run: &Run| run.steadfast.with(&run.plain, |steadfast, plain| steadfast / plain);
    let row = |run: &Run| {
        let millions = |rounds: &Rounds| Rounds(rounds.0.iter().map(|rate| rate / 1e6).collect());
        let added = run.steadfast.with(&run.plain, |steadfast, plain| 1e9 / steadfast - 1e9 / plain);
        let flows = if run.flows == 1 { "1 flow".to_owned() } else { format!("{} flows", run.flows) };
        Row {
            name: format!("{}, {flows}", way(run.from)),
            cells: vec![millions(&run.steadfast), millions(&run.plain), ratio(run), added],
        }
    };
    let columns = ["Steadfast, million frames/s", "plain XDP_TX", "Steadfast / plain", "ns a frame more"]
        .map(str::to_owned);
    let hot = runs.iter().filter(|run| run.flows == 1).map(ratio);
    let slower = hot.reduce(|one, other| one.with(&other, f64::min)).unwrap_or_default();
    Report {
        tables: vec![Table {
            title: "Frames over a cable of veth devices, snat, established flows".to_owned(),
            columns: columns.to_vec(),
            rows: runs.iter().map(row).collect(),
        }],
        targets: vec![Target::at_least(
            "frames a second of a flow, the slower way / plain XDP_TX on the same cable",
            &slower,
            0.92,
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str = "Inter-|   Receive                            |  Transmit\n face |bytes    packets errs\n    lo: 1 2 0 0\n\
                           bench10: 3 4 0 0\nbench1:500 67 0 0 8 9\n";

    #[test]
    fn an_interface_is_found_by_its_whole_name() {
        assert_eq!(frames_in(DEVICES, "bench1"), Some(67));
        assert_eq!(frames_in(DEVICES, "bench10"), Some(4));
        assert_eq!(frames_in(DEVICES, "bench"), None);
    }

    #[test]
    fn the_slower_way_of_a_single_flow_is_promised() {
        let run = |from, flows, steadfast| Run {
            from,
            flows,
            plain: Rounds(vec![4.0, 4.0]),
            steadfast: Rounds(steadfast),
        };
        let runs = [
            run(From::Client, 1, vec![4.0, 3.0]),
            run(From::Server, 1, vec![3.9, 3.8]),
            run(From::Client, 4096, vec![1.0, 1.0]),
        ];
        let report = report(&runs);
        assert_eq!(report.targets[0].range, (0.75, 0.975));
    }
}
