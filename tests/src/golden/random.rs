//! Frames by the thousand: random ones, mutations of good ones, and a flood. The seeds are fixed.

use std::net::Ipv4Addr;

use lb_common::hash::mix;

use super::{
    Bench, bench,
    connection::Connection,
    frame::{BARE, ETHERNET, Frame, HOST_UNREACHABLE, checksums_are_right, flag, mend},
    hospital::{BALANCER, HYPERSPACE, MYCHART, PORTS, SOURCE, SRV_1, SRV_2, SRV_3},
    set,
};

const PASS: u32 = 2;
const TRANSMIT: u32 = 3;

/// Random numbers, the same at every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        usize::try_from(self.next() % limit).unwrap_or_default()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    pub(crate) fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}

fn problem(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

/// Tables with an open flow, a half-open one and one with a port of the last.
fn prepare(bench: &mut Bench) -> Result<[Connection; 2], String> {
    bench.reset().map_err(|error| problem(&error))?;
    let epoch = bench.now().map_err(|error| problem(&error))?;
    let open = Connection::to(SRV_1);
    let answered = Connection::to(SRV_2);
    for given in open.established().into_iter().chain(answered.after_syn_ack()) {
        set(bench, &given, epoch).map_err(|error| problem(&error))?;
    }
    Ok([open, answered])
}

/// Runs random frames, addressed to nobody in particular, and says what became of one that was touched.
///
/// # Errors
/// A frame that was not passed as it came, or that wrote something.
pub fn random_frames_pass(count: usize) -> Result<(), String> {
    let mut turn = bench();
    let bench = turn.as_mut()?;
    prepare(bench)?;
    let before = bench.tables.everything();
    let mut random = Random(1);
    for number in 0..count {
        let frame = random_frame(&mut random);
        if is_ours(&frame) {
            continue;
        }
        let verdict = bench.run(&frame).map_err(|error| problem(&error))?;
        if verdict.action != PASS || verdict.frame != frame {
            return Err(format!("frame {number}: action {}: {frame:02x?}", verdict.action));
        }
    }
    if bench.tables.everything() == before { Ok(()) } else { Err("a random frame wrote something".into()) }
}

/// Anything of 14 to 200 bytes; often with what leads deeper into the parser.
fn random_frame(random: &mut Random) -> Vec<u8> {
    let length = ETHERNET + random.below(200 - ETHERNET + 1);
    let mut frame: Vec<u8> = (0..length).map(|_| random.byte()).collect();
    let mut network = ETHERNET;
    let mut put = |at: usize, bytes: &[u8]| {
        for (byte, value) in frame.iter_mut().skip(at).zip(bytes) {
            *byte = *value;
        }
    };
    for _ in 0..random.below(4) {
        put(network - 2, if random.one_in(2) { &[0x81, 0x00] } else { &[0x88, 0xa8] });
        network += 4;
    }
    if !random.one_in(4) {
        put(network - 2, &[0x08, 0x00]);
        put(0, &BALANCER);
    }
    if !random.one_in(3) {
        put(network, &[0x45]);
        put(network + 6, &[0, 0]);
    }
    if !random.one_in(3) {
        put(network + 9, &[if random.one_in(4) { 1 } else { 6 }]);
    }
    if random.one_in(3) {
        // An ICMP error that repeats TCP.
        put(network + 9, &[1]);
        put(network + 20, &[[3, 11, 12][random.below(3)]]);
        put(network + 28, &[0x45]);
        put(network + 37, &[6]);
    }
    frame
}

/// Whether one of our addresses is anywhere in the frame.
fn is_ours(frame: &[u8]) -> bool {
    let ours = [HYPERSPACE.address, MYCHART.address, SOURCE].map(|address| address.octets());
    frame.windows(4).any(|bytes| ours.iter().any(|address| address == bytes))
}

/// Runs mutations of good frames: what goes out has right checksums if what came in had, and wrong ones otherwise.
///
/// # Errors
/// A frame that went out corrupted.
pub fn mutations_are_not_corrupted(count: usize) -> Result<(), String> {
    let mut turn = bench();
    let bench = turn.as_mut()?;
    let mut random = Random(2);
    let mut sent = 0;
    for number in 0..count {
        // Mutations reset and close flows: begin again now and then.
        let flows =
            if number % 16 == 0 { prepare(bench)? } else { [Connection::to(SRV_1), Connection::to(SRV_2)] };
        let frame = mutation(&mut random, &flows);
        let right = checksums_are_right(packet(&frame));
        let verdict = bench.run(&frame).map_err(|error| problem(&error))?;
        let out = &verdict.frame;
        let explain = |what| format!("frame {number}: {what}: {frame:02x?} became {out:02x?}");
        match verdict.action {
            TRANSMIT => {
                sent += 1;
                // An RST is made here, and so is its checksum.
                let answered = out.len() == BARE + (network(out) - ETHERNET) && is_answer(&frame, out);
                let right_after = checksums_are_right(packet(out));
                if !answered && right_after != right || answered && !right_after {
                    return Err(explain(if right { "corrupted" } else { "whitewashed" }));
                }
                if !answered && out.len() != frame.len() {
                    return Err(explain("of another length"));
                }
            }
            PASS if *out != frame => return Err(explain("passed, but touched")),
            _ => {}
        }
    }
    if sent * 10 > count { Ok(()) } else { Err(format!("only {sent} of {count} frames went out")) }
}

/// Whether the frame goes back to where it came from.
fn is_answer(frame: &[u8], out: &[u8]) -> bool {
    let (at, before) = (&packet(out)[16..20], &packet(frame)[12..16]);
    at == before && out[..6] == frame[6..12]
}

/// Where the IP header begins.
fn network(frame: &[u8]) -> usize {
    let mut at = ETHERNET;
    while at + 4 <= frame.len() && matches!(frame[at - 2..at], [0x81, 0x00] | [0x88, 0xa8]) {
        at += 4;
    }
    at
}

fn packet(frame: &[u8]) -> &[u8] {
    &frame[network(frame)..]
}

/// A good frame of some kind, with some bytes changed behind the link layer, and often with its checksums made right.
fn mutation(random: &mut Random, [open, answered]: &[Connection; 2]) -> Vec<u8> {
    let new = Connection::to(SRV_3);
    let mut data: Vec<u8> = (0..random.below(90)).map(|_| random.byte()).collect();
    let mut frame = match random.below(9) {
        0 => new.syn().build(),
        1 => answered.syn_ack().build(),
        2 => answered.ack().build(),
        3 => open.response().payload(&data).build(),
        4 => open.error_to_service(HOST_UNREACHABLE, &open.response(), 28 + data.len()).build(),
        5 => open.error_to_source(HOST_UNREACHABLE, &open.request().payload(&data), 28).build(),
        6 => new.request().payload(&data).build(),
        7 => open.request().tagged(&[(0x8100, 85)]).payload(&data).build(),
        _ => open.request().payload(&data).build(),
    };
    data.truncate(random.below(9));
    if random.one_in(4) {
        frame.extend(&data);
    }
    let start = network(&frame);
    for _ in 0..random.below(4) {
        let at = start + random.below(frame.len() - start);
        // Addresses and ports stay, most of the time: what is not ours is another test.
        if !(12..24).contains(&(at - start)) || random.one_in(8) {
            frame[at] = random.byte();
        }
    }
    if !random.one_in(4) {
        mend(&mut frame[start..]);
    }
    frame
}

/// What a flood left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flood {
    /// SYNs that went on to a server.
    pub sent: usize,
    /// SYNs that were dropped.
    pub dropped: usize,
}

/// Sends so many SYNs from random addresses to both services.
///
/// # Errors
/// A sticky record or a flow was written, or an open flow no longer forwards both ways.
pub fn flood(count: usize) -> Result<Flood, String> {
    let mut turn = bench();
    let bench = turn.as_mut()?;
    let [open, _] = prepare(bench)?;
    let before = bench.tables.lasting();
    let mut random = Random(3);
    let mut flood = Flood::default();
    let mut syn = [open.syn().build(), Connection { service: &MYCHART, ..open }.syn().build()];
    for number in 0..count {
        let syn = &mut syn[number % 2];
        // Addresses, port and number of a spoofed sender.
        let spoofed = random.next().to_le_bytes();
        syn[ETHERNET + 12..ETHERNET + 16].copy_from_slice(&spoofed[..4]);
        syn[ETHERNET + 20..ETHERNET + 22].copy_from_slice(&spoofed[4..6]);
        syn[ETHERNET + 24..ETHERNET + 26].copy_from_slice(&spoofed[6..8]);
        mend(&mut syn[ETHERNET..]);
        match bench.run(syn).map_err(|error| problem(&error))?.action {
            TRANSMIT => flood.sent += 1,
            _ => flood.dropped += 1,
        }
    }
    if bench.tables.lasting() != before {
        return Err("the flood wrote into the flow table or the sticky table".into());
    }
    expect(bench, &open.request(), &open.forwarded(&open.request()))?;
    expect(bench, &open.response(), &open.returned(&open.response()))?;
    Ok(flood)
}

fn expect(bench: &Bench, frame: &Frame, out: &[u8]) -> Result<(), String> {
    let verdict = bench.run(&frame.build()).map_err(|error| problem(&error))?;
    if verdict.action == TRANSMIT && verdict.frame == out {
        Ok(())
    } else {
        Err(format!("after the flood: action {}, {:02x?}", verdict.action, verdict.frame))
    }
}

/// A client whose handshake goes on in the middle of a flood that is larger than the half-open table.
///
/// # Errors
/// The client was not established although its packets came at once.
pub fn handshake_amid_flood(rounds: u32) -> Result<(), String> {
    let mut turn = bench();
    let bench = turn.as_mut()?;
    prepare(bench)?;
    let mut random = Random(4);
    for round in 0..rounds {
        let [_, _, high, low] = round.to_be_bytes();
        let mut frame = Connection::to(SRV_3).syn();
        frame.ip.source = Ipv4Addr::new(11, 0, high, low).octets();
        bench.run(&frame.build()).map_err(|error| problem(&error))?;
        if random.one_in(3) {
            let mut stray = frame.clone().flags(flag::ACK);
            stray.ip.source = Ipv4Addr::new(12, 0, high, low).octets();
            bench.run(&stray.build()).map_err(|error| problem(&error))?;
        }
    }
    let late = Connection::to(SRV_3).of_client(9);
    let cursor = bench.tables.cursors[usize::from(SRV_3.endpoint)].load();
    let place = u16::try_from(cursor % u64::from(PORTS)).unwrap_or_default();
    let late = late.snat(late.snat_port + place);
    for (frame, out) in [
        (late.syn(), late.forwarded(&late.syn())),
        (late.syn_ack(), late.returned(&late.syn_ack())),
        (late.ack(), late.forwarded(&late.ack())),
        (late.request(), late.forwarded(&late.request())),
        (late.response(), late.returned(&late.response())),
    ] {
        expect(bench, &frame, &out)?;
    }
    Ok(())
}
