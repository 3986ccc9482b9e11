//! The schedulers that count, through the built program: who gets a client, what is counted, and what keeps a client's
//! first connections together.

use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    clock::Ticks,
    forwarding::Forwarding,
    maglev::Candidate,
    mss::MssClamp,
    reason::Reason,
    schedule::{self, Load, OPEN_WORD, Scheduler, WEIGHT_WORD},
    server::ServerState,
    service::Service as ServiceEntry,
};
use lb_userspace::dataplane::{Maps, sweep::sweep};

use super::{
    bench::{Bench, USABLE},
    connection::Connection,
    frame::{Frame, flag},
    hospital::{HYPERSPACE, Host, SEED, SRV_1, SRV_2, SRV_3, address, servers_of, span},
};

const TRANSMIT: u32 = 3;
/// Where a frame without tags has its source port.
const SOURCE_PORT: usize = 34;

type Play = fn(&mut Hall<'_>) -> Result<()>;

const STORIES: &[(&str, Play)] = &[
    ("least-conn sends new clients to the server with fewer open flows", fewest),
    ("least-conn compares by weight", by_weight),
    ("a flow is counted from its handshake to its end", counted),
    ("a reset flow is counted no more, and again when its sender goes on", reset_and_taken_back),
    ("a flow that is swept away is counted no more", swept),
    ("round-robin takes the servers in turn and passes over one that is gone", in_turn),
    ("a client's first connections go to one server, and later ones after its record", together),
    ("a pick whose server drains is replaced", replaced),
    ("without persistence each connection is picked for alone", each_alone),
    ("a segment of no connection takes no turn", no_turn),
];

/// Plays all stories.
///
/// # Errors
/// What was not as it must be.
pub fn run() -> Result<(), String> {
    let mut bench = Bench::load().map_err(|error| format!("{error:#}"))?;
    let maps = bench.maps().map_err(|error| format!("{error:#}"))?;
    let mut report = String::new();
    for (name, play) in STORIES {
        let told = bench.reset().and_then(|()| play(&mut Hall { bench: &mut bench, maps: &maps }));
        if let Err(problem) = told {
            report.push_str(&format!("\n{name}\n  - {problem:#}"));
        }
    }
    if report.is_empty() { Ok(()) } else { Err(report) }
}

struct Hall<'a> {
    bench: &'a mut Bench,
    maps: &'a Maps,
}

impl Hall<'_> {
    /// Hyperspace with a scheduler and its three servers at these weights; nothing counted.
    fn schedule(&mut self, scheduler: Scheduler, persistence: i64, weights: [u32; 3]) -> Result<()> {
        self.maps.picks.iter().chain(self.maps.turns.iter()).for_each(|word| word.store(0));
        let servers = servers_of(&HYPERSPACE).zip(weights);
        let candidates: Vec<Candidate> = servers
            .map(|(server, weight)| {
                let load = &self.maps.server_loads[usize::from(server.id)];
                load[OPEN_WORD].store(0);
                load[WEIGHT_WORD].store(weight.into());
                Candidate { id: server.id, address: address(server.address), port: 443_u16.to_be(), weight }
            })
            .collect();
        self.service(scheduler, persistence, Forwarding::Snat);
        let table = schedule::build(scheduler, SEED, &candidates, candidates.len());
        self.bench.set_schedule(&HYPERSPACE, &table)
    }

    fn service(&self, scheduler: Scheduler, persistence: i64, forwarding: Forwarding) {
        let ticks = |span: i64| Ticks(u32::try_from(span).unwrap_or(u32::MAX));
        self.bench.put_service(
            HYPERSPACE.id,
            &ServiceEntry {
                address: address(HYPERSPACE.address),
                persistence: ticks(persistence),
                idle: ticks(span::IDLE),
                forwarding,
                by_prefix: false,
                by_port: false,
                is_udp: false,
                scheduler,
                mss_clamp: MssClamp::None,
            },
        );
    }

    fn set_open(&self, server: &Host, open: u64) {
        self.maps.server_loads[usize::from(server.id)][OPEN_WORD].store(open);
    }

    fn open(&self, server: &Host) -> u32 {
        Load::read(&self.maps.server_loads[usize::from(server.id)]).open
    }

    /// Runs a frame, which must be sent on for this reason.
    fn send(&self, frame: &Frame, reason: Reason) -> Result<Vec<u8>> {
        let before = self.bench.count_of(reason)?;
        let verdict = self.bench.run(&frame.build())?;
        let counted = self.bench.count_of(reason)? - before;
        ensure!(verdict.action == TRANSMIT, "action {}, {reason:?} was due", verdict.action);
        ensure!(counted == 1, "sent on, but not for {reason:?}");
        Ok(verdict.frame)
    }

    /// A client's first SYN from a port: the connection as the program made it.
    fn syn(&self, number: u8, port: u16, reason: Reason) -> Result<Connection> {
        let client = Ipv4Addr::new(10, 85, 0, number);
        let asked = Connection::of(client, &HYPERSPACE).on_port(port);
        let out = self.send(&asked.syn(), reason)?;
        let server = servers_of(&HYPERSPACE).find(|server| out[..6] == server.mac);
        let snat = u16::from_be_bytes([out[SOURCE_PORT], out[SOURCE_PORT + 1]]);
        Ok(asked.at(server.context("sent to no server")?).snat(snat))
    }

    /// The server that a client's SYN is sent to; the half-open flow is forgotten.
    fn picked(&self, number: u8) -> Result<u16> {
        let picked = self.syn(number, 40_000, Reason::NewByScheduler)?.server.id;
        self.bench.tables.clear();
        Ok(picked)
    }

    /// How many of the clients from 1 on each server gets.
    fn spread(&self, clients: u8) -> Result<BTreeMap<u16, u32>> {
        let mut counts = BTreeMap::new();
        for number in 1..=clients {
            *counts.entry(self.picked(number)?).or_default() += 1;
        }
        Ok(counts)
    }

    fn connect(&self, number: u8, port: u16, reason: Reason) -> Result<Connection> {
        let c = self.syn(number, port, reason)?;
        self.send(&c.syn_ack(), Reason::Returned)?;
        self.send(&c.ack(), Reason::Established)?;
        Ok(c)
    }

    fn is_open(&self, server: &Host, open: u32, when: &str) -> Result<()> {
        ensure!(self.open(server) == open, "{} open {when}, not {open}", self.open(server));
        Ok(())
    }
}

fn fewest(hall: &mut Hall<'_>) -> Result<()> {
    hall.schedule(Scheduler::LeastConn, span::PERSISTENCE, [100, 100, 100])?;
    for (server, open) in [(SRV_1, 100), (SRV_2, 0), (SRV_3, 50)] {
        hall.set_open(server, open);
    }
    let counts = hall.spread(60)?;
    let of = |server: &Host| counts.get(&server.id).copied().unwrap_or(0);
    // Two of three are compared: the emptiest is among them for two clients in three, the fullest never wins.
    ensure!(of(SRV_1) <= 1 && of(SRV_2) >= 30 && of(SRV_3) >= 8, "{counts:?}");
    Ok(())
}

fn by_weight(hall: &mut Hall<'_>) -> Result<()> {
    hall.schedule(Scheduler::LeastConn, span::PERSISTENCE, [100, 200, 100])?;
    for (server, open) in [(SRV_1, 100), (SRV_2, 150), (SRV_3, 90)] {
        hall.set_open(server, open);
    }
    let counts = hall.spread(60)?;
    let of = |server: &Host| counts.get(&server.id).copied().unwrap_or(0);
    ensure!(of(SRV_2) >= 30 && of(SRV_1) <= 1, "{counts:?}");
    Ok(())
}

fn counted(hall: &mut Hall<'_>) -> Result<()> {
    hall.schedule(Scheduler::LeastConn, span::PERSISTENCE, [100, 100, 100])?;
    let c = hall.syn(1, 40_000, Reason::NewByScheduler)?;
    hall.send(&c.syn_ack(), Reason::Returned)?;
    hall.is_open(c.server, 0, "before the handshake is complete")?;
    hall.send(&c.ack(), Reason::Established)?;
    hall.is_open(c.server, 1, "after the handshake")?;
    let other = hall.connect(1, 40_001, Reason::NewBySticky)?;
    hall.is_open(other.server, 2, "with a second connection")?;
    hall.send(&c.client_segment(flag::ACK | flag::FIN, 1, 1), Reason::Forwarded)?;
    hall.is_open(c.server, 2, "after one end's FIN")?;
    hall.send(&c.server_segment(flag::ACK | flag::FIN, 1, 2), Reason::Returned)?;
    hall.is_open(c.server, 1, "after both ends' FIN")?;
    hall.bench.set_server(c.server, ServerState::PRESENT | ServerState::RESETS);
    let answered = hall.bench.run(&other.request().build())?;
    ensure!(answered.action == TRANSMIT, "the client is not told that its server is gone");
    hall.is_open(c.server, 0, "after the other was reset")
}

fn reset_and_taken_back(hall: &mut Hall<'_>) -> Result<()> {
    hall.schedule(Scheduler::LeastConn, span::PERSISTENCE, [100, 100, 100])?;
    let c = hall.connect(1, 40_000, Reason::NewByScheduler)?;
    hall.send(&c.client_segment(flag::RST, 1, 0), Reason::Forwarded)?;
    hall.is_open(c.server, 0, "after an RST")?;
    hall.send(&c.request(), Reason::Forwarded)?;
    hall.is_open(c.server, 1, "after its sender's next packet")
}

fn swept(hall: &mut Hall<'_>) -> Result<()> {
    hall.schedule(Scheduler::LeastConn, span::PERSISTENCE, [100, 100, 100])?;
    let c = hall.connect(1, 40_000, Reason::NewByScheduler)?;
    let closed = hall.connect(2, 40_000, Reason::NewByScheduler)?;
    hall.send(&closed.client_segment(flag::RST, 1, 0), Reason::Forwarded)?;
    let idle = Ticks(u32::try_from(span::IDLE + span::SLACK)?);
    let swept = sweep(hall.maps, hall.bench.now()?.plus(idle));
    ensure!(swept.flows == 2, "{swept:?}");
    hall.is_open(c.server, 0, "after the sweep")?;
    let words = [c.server, closed.server]
        .map(|server| hall.maps.server_loads[usize::from(server.id)][OPEN_WORD].load());
    ensure!(words == [0, 0], "counted twice: {words:?}");
    Ok(())
}

fn in_turn(hall: &mut Hall<'_>) -> Result<()> {
    hall.schedule(Scheduler::RoundRobin, span::PERSISTENCE, [100, 100, 100])?;
    let turns: Vec<u16> = (1..=6).map(|number| hall.picked(number)).collect::<Result<_>>()?;
    ensure!(turns == [11, 12, 13, 11, 12, 13], "{turns:?}");
    hall.bench.set_server(SRV_1, USABLE & !ServerState::TAKES_NEW);
    let turns: Vec<u16> = (7..=10).map(|number| hall.picked(number)).collect::<Result<_>>()?;
    ensure!(turns == [12, 13, 12, 13], "{turns:?}");
    hall.schedule(Scheduler::RoundRobin, span::PERSISTENCE, [0, 100, 300])?;
    let counts = hall.spread(200)?;
    ensure!(counts == BTreeMap::from([(12, 50), (13, 150)]), "{counts:?}");
    Ok(())
}

fn together(hall: &mut Hall<'_>) -> Result<()> {
    for scheduler in [Scheduler::RoundRobin, Scheduler::LeastConn] {
        hall.schedule(scheduler, span::PERSISTENCE, [100, 100, 100])?;
        let first = hall.syn(1, 40_000, Reason::NewByScheduler)?;
        hall.set_open(first.server, 1_000);
        for port in 40_001..40_020 {
            let other = hall.syn(1, port, Reason::NewByScheduler)?;
            ensure!(other.server == first.server, "{scheduler:?}: port {port} is elsewhere");
        }
        hall.send(&first.syn_ack(), Reason::Returned)?;
        hall.send(&first.ack(), Reason::Established)?;
        hall.maps.picks.iter().for_each(|word| word.store(0));
        let later = hall.connect(1, 41_000, Reason::NewBySticky)?;
        ensure!(later.server == first.server, "{scheduler:?}: the record is not followed");
        let next = hall.syn(2, 40_000, Reason::NewByScheduler)?;
        ensure!(
            next.server != first.server || scheduler == Scheduler::LeastConn,
            "the same server twice in turn"
        );
        hall.bench.tables.clear();
    }
    Ok(())
}

fn replaced(hall: &mut Hall<'_>) -> Result<()> {
    hall.schedule(Scheduler::RoundRobin, span::PERSISTENCE, [100, 100, 100])?;
    let first = hall.syn(1, 40_000, Reason::NewByScheduler)?;
    hall.bench.set_server(first.server, USABLE & !ServerState::TAKES_NEW);
    let second = hall.syn(1, 40_001, Reason::NewByScheduler)?;
    ensure!(second.server != first.server, "a draining server gets a new client");
    hall.bench.set_server(first.server, USABLE);
    let third = hall.syn(1, 40_002, Reason::NewByScheduler)?;
    ensure!(third.server == second.server, "the new pick is not kept");
    Ok(())
}

fn each_alone(hall: &mut Hall<'_>) -> Result<()> {
    hall.schedule(Scheduler::RoundRobin, 0, [100, 100, 100])?;
    let turns: Vec<u16> = (40_000..40_006)
        .map(|port| Ok(hall.syn(1, port, Reason::NewByScheduler)?.server.id))
        .collect::<Result<_>>()?;
    ensure!(turns == [11, 12, 13, 11, 12, 13], "{turns:?}");
    hall.bench.tables.clear();
    hall.schedule(Scheduler::LeastConn, 0, [100, 100, 100])?;
    let servers: std::collections::BTreeSet<u16> = (41_000..41_040)
        .map(|port| Ok(hall.syn(1, port, Reason::NewByScheduler)?.server.id))
        .collect::<Result<_>>()?;
    ensure!(servers.len() == 3, "one client's connections reach {servers:?} only");
    Ok(())
}

fn no_turn(hall: &mut Hall<'_>) -> Result<()> {
    hall.schedule(Scheduler::RoundRobin, span::PERSISTENCE, [100, 100, 100])?;
    hall.service(Scheduler::RoundRobin, span::PERSISTENCE, Forwarding::Dr);
    let stray = Connection::of(Ipv4Addr::new(10, 85, 0, 9), &HYPERSPACE).request();
    for _ in 0..3 {
        hall.send(&stray, Reason::ForwardedUnknown)?;
    }
    let taken = hall.maps.turns[usize::from(HYPERSPACE.id)].load();
    ensure!(taken == 0, "{taken} turns were taken");
    ensure!(hall.maps.picks.iter().all(|word| word.load() == 0), "a pick was noted");
    Ok(())
}
