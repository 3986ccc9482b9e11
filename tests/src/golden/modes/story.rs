//! What happens in every world.

use std::collections::BTreeSet;

use lb_common::{forwarding::Forwarding, mss::MssClamp, reason::Reason, server::ServerState};

use super::{
    super::{
        bench::{Bench, USABLE},
        frame::flag::{ACK, FIN, PSH, RST, SYN},
    },
    packet::{Frame, Segment, TCP, icmp, ip},
    world::{MTU, OWN_MAC, ROUTER_MAC, SERVER, SERVER_MAC, SERVICE_PORT, World},
};

const CLIENT_ISN: u32 = 0xffff_ff00;
const SERVER_ISN: u32 = 0x1122_3344;
/// Bytes of a packet that an ICMP error repeats: the IP header and eight more.
const REPEATED: usize = 8;

pub(super) type Told = Result<(), String>;
pub(super) type Play = fn(&mut Story<'_>) -> Told;

/// Every story, by its sentence.
pub(super) const ALL: &[(&str, Play)] = &[
    ("a connection is made, used and closed", connection),
    ("a known client comes back to its server", known_client),
    ("a client uses a port again whose connection is closed", port_again),
    ("two clients' ports do not meet", two_connections),
    ("a wrong acknowledgement establishes nothing", wrong_acknowledgement),
    (
        "a segment of no connection is reset, or left to the server where its answers are not seen",
        no_connection,
    ),
    ("a connection of a server that is gone is reset", server_gone),
    ("without a server a SYN is reset", nobody),
    ("an error about the service's packet reaches the server", error_to_server),
    ("an error about a packet to the server reaches the client", error_to_client),
    ("the largest packet goes through, or its sender is told what fits", largest_packet),
    ("frames in several buffers go both ways, or are answered", jumbo_frames),
    ("the segments that SYNs announce are lowered to what fits", announced_segments),
    ("a packet at its last hop is dropped", last_hop),
    ("fragments and extensions for the service are dropped", fragments_and_extensions),
    ("the server's other traffic passes", other_traffic),
    ("what a server that knows clients sends past the service passes, unless it is malformed", to_strangers),
    ("without a server an RST is not answered", no_answer_to_reset),
];

/// A story under way.
pub(super) struct Story<'a> {
    pub(super) bench: &'a Bench,
    pub(super) world: &'a World,
    pub(super) seen: BTreeSet<Reason>,
}

impl<'a> Story<'a> {
    pub(super) const fn new(bench: &'a Bench, world: &'a World) -> Self {
        Self { bench, world, seen: BTreeSet::new() }
    }

    /// What becomes of a frame: the action and the frame, by the interface that it comes by.
    fn run(&mut self, arm: usize, frame: &Frame, reason: Reason) -> Result<(u32, Vec<u8>), String> {
        self.bench.come_by(arm);
        let told = |error: anyhow::Error| format!("{error:#}");
        let before = self.bench.reasons().map_err(told)?;
        let verdict = self.bench.run(&frame.bytes()).map_err(told)?;
        let after = self.bench.reasons().map_err(told)?;
        let counted: Vec<Reason> = Reason::ALL
            .iter()
            .copied()
            .filter(|reason| after[*reason as usize] != before[*reason as usize])
            .collect();
        self.seen.insert(reason);
        if counted == [reason] {
            Ok((verdict.action, verdict.frame))
        } else {
            Err(format!("{frame:02x?} is counted as {counted:?}, not as {reason:?}"))
        }
    }

    fn sent(
        &mut self,
        arm: usize,
        frame: &Frame,
        reason: Reason,
        leaves_by: usize,
    ) -> Result<Vec<u8>, String> {
        let (action, out) = self.run(arm, frame, reason)?;
        let wanted = if arm == leaves_by { 3 } else { 4 };
        if action == wanted { Ok(out) } else { Err(format!("action {action}, not {wanted}, for {reason:?}")) }
    }

    /// The client's frame is sent to the server as that one.
    pub(super) fn forwards(&mut self, frame: &Frame, reason: Reason, wanted: &Frame) -> Told {
        let out = self.sent(0, frame, reason, self.world.server_arm())?;
        same(reason, &self.world.out_of_tunnel(out)?, wanted)
    }

    /// The frame is sent back, or on, to the client's side as that one.
    pub(super) fn sends_back(&mut self, arm: usize, frame: &Frame, reason: Reason, wanted: &Frame) -> Told {
        let out = self.sent(arm, frame, reason, 0)?;
        same(reason, &out, wanted)
    }

    /// The frame has this fate, untouched.
    pub(super) fn ends(&mut self, arm: usize, frame: &Frame, reason: Reason, action: u32) -> Told {
        let (is, out) = self.run(arm, frame, reason)?;
        if is == action && out == frame.bytes() { Ok(()) } else { Err(format!("action {is}, not {action}")) }
    }

    /// Makes a connection from this port; it has the SNAT port of this number.
    pub(super) fn connect(&mut self, port: u16, snat: u16, how: Reason) -> Told {
        let world = self.world;
        let syn = world.segment(port, SYN, 0, 0);
        self.forwards(&world.client_sends(&syn), how, &world.forwarded(&syn, snat))?;
        if world.forwarding.sees_answers() {
            let answer = world.answer(port, snat, SYN | ACK, 0, 1);
            let wanted = world.returned(&answer, port, SERVICE_PORT);
            self.sends_back(world.server_arm(), &world.server_sends(&answer), Reason::Returned, &wanted)?;
        }
        let ack = world.segment(port, ACK, 1, 1);
        self.forwards(&world.client_sends(&ack), Reason::Established, &world.forwarded(&ack, snat))
    }
}

impl World {
    /// Where the server is.
    pub(super) const fn server_arm(&self) -> usize {
        self.two_arms as usize
    }

    /// A client's segment.
    pub(super) fn segment(&self, port: u16, flags: u8, sequence: u32, acknowledgment: u32) -> Segment {
        Segment {
            source: (self.client(), port),
            destination: (self.service(), SERVICE_PORT),
            flags,
            sequence: CLIENT_ISN.wrapping_add(sequence),
            acknowledgment: if flags & ACK == 0 { 0 } else { SERVER_ISN.wrapping_add(acknowledgment) },
            hops: 63,
            window: 501,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// A server's segment to this client.
    pub(super) fn answer(
        &self,
        port: u16,
        snat: u16,
        flags: u8,
        sequence: u32,
        acknowledgment: u32,
    ) -> Segment {
        Segment {
            source: (self.server(), self.server_port()),
            destination: self.seen_client(port, snat),
            flags,
            sequence: SERVER_ISN.wrapping_add(sequence),
            acknowledgment: CLIENT_ISN.wrapping_add(acknowledgment),
            hops: 64,
            window: 510,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    pub(super) fn client_sends(&self, segment: &Segment) -> Frame {
        self.client_frame(segment.packet())
    }

    pub(super) fn client_frame(&self, packet: Vec<u8>) -> Frame {
        Frame { from: ROUTER_MAC, to: OWN_MAC, tags: self.tags, packet }
    }

    pub(super) fn server_sends(&self, segment: &Segment) -> Frame {
        self.server_frame(segment.packet())
    }

    pub(super) fn server_frame(&self, packet: Vec<u8>) -> Frame {
        Frame { from: SERVER_MAC, to: self.server_side(), tags: self.tags, packet }
    }

    /// The RST that answers a segment.
    pub(super) fn reset(&self, segment: &Segment) -> Frame {
        let acknowledges = segment.flags & ACK != 0;
        let (sequence, acknowledgment, flags) = if acknowledges {
            (segment.acknowledgment, 0, RST)
        } else {
            let length = u32::try_from(segment.payload.len()).unwrap_or(u32::MAX);
            (0, segment.sequence.wrapping_add(length + u32::from(segment.flags & SYN != 0)), RST | ACK)
        };
        let reset = Segment {
            source: segment.destination,
            destination: segment.source,
            flags,
            sequence,
            acknowledgment,
            hops: 64,
            window: 0,
            options: Vec::new(),
            payload: Vec::new(),
        };
        self.frame_to_client(reset.packet())
    }

    /// Bytes of the packet around a packet.
    pub(super) const fn outer(&self) -> usize {
        match (self.forwarding, self.servers_v6) {
            (Forwarding::Tunnel, true) => 40,
            (Forwarding::Tunnel, false) => 20,
            _ => 0,
        }
    }

    /// Type and code of "fragmentation needed", or "packet too big".
    pub(super) const fn too_big(&self) -> (u8, u8) {
        if self.clients_v6 { (2, 0) } else { (3, 4) }
    }

    /// Bytes of a packet of the clients' family that an error repeats.
    pub(super) const fn repeated(&self) -> usize {
        REPEATED + if self.clients_v6 { 40 } else { 20 }
    }
}

fn same(reason: Reason, is: &[u8], wanted: &Frame) -> Told {
    let wanted = wanted.bytes();
    if is == wanted {
        return Ok(());
    }
    let at = is.iter().zip(&wanted).position(|(is, wanted)| is != wanted);
    Err(format!("{reason:?}: byte {at:?} differs: is\n    {is:02x?}\n    not\n    {wanted:02x?}"))
}

fn connection(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.connect(40_000, 0, Reason::NewByScheduler)?;
    let request = Segment { payload: vec![7; 333], ..world.segment(40_000, ACK | PSH, 1, 1) };
    story.forwards(&world.client_sends(&request), Reason::Forwarded, &world.forwarded(&request, 0))?;
    if world.forwarding.sees_answers() {
        let answer = Segment { payload: vec![9; 1201], ..world.answer(40_000, 0, ACK | PSH, 1, 334) };
        let wanted = world.returned(&answer, 40_000, SERVICE_PORT);
        story.sends_back(world.server_arm(), &world.server_sends(&answer), Reason::Returned, &wanted)?;
    }
    let fin = world.segment(40_000, FIN | ACK, 334, 1202);
    story.forwards(&world.client_sends(&fin), Reason::Forwarded, &world.forwarded(&fin, 0))
}

fn known_client(story: &mut Story<'_>) -> Told {
    story.connect(40_000, 0, Reason::NewByScheduler)?;
    // It takes nobody new, and what is known of a client is by its address alone.
    story.bench.put_server(SERVER, &story.world.entry(USABLE & !ServerState::TAKES_NEW));
    story.connect(40_001, 1, Reason::NewBySticky)
}

fn port_again(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.connect(40_000, 0, Reason::NewByScheduler)?;
    let reset = world.segment(40_000, RST, 1, 0);
    story.forwards(&world.client_sends(&reset), Reason::Forwarded, &world.forwarded(&reset, 0))?;
    story.connect(40_000, 1, Reason::NewBySticky)?;
    let request = Segment { payload: vec![7; 10], ..world.segment(40_000, ACK | PSH, 1, 1) };
    story.forwards(&world.client_sends(&request), Reason::Forwarded, &world.forwarded(&request, 1))
}

fn two_connections(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.connect(40_000, 0, Reason::NewByScheduler)?;
    story.connect(40_001, 1, Reason::NewBySticky)?;
    for (port, snat) in [(40_000, 0), (40_001, 1)] {
        let request = Segment { payload: vec![7; 10], ..world.segment(port, ACK | PSH, 1, 1) };
        story.forwards(&world.client_sends(&request), Reason::Forwarded, &world.forwarded(&request, snat))?;
    }
    Ok(())
}

fn wrong_acknowledgement(story: &mut Story<'_>) -> Told {
    let world = story.world;
    let syn = world.segment(40_000, SYN, 0, 0);
    story.forwards(&world.client_sends(&syn), Reason::NewByScheduler, &world.forwarded(&syn, 0))?;
    let forged = world.segment(40_000, ACK, 0x7000_0000, 77);
    story.forwards(&world.client_sends(&forged), Reason::HandshakeForwarded, &world.forwarded(&forged, 0))
}

fn no_connection(story: &mut Story<'_>) -> Told {
    let world = story.world;
    let segment = Segment { payload: vec![1; 5], ..world.segment(40_000, ACK, 500, 900) };
    let frame = world.client_sends(&segment);
    if world.forwarding.sees_answers() {
        story.sends_back(0, &frame, Reason::ResetNoFlow, &world.reset(&segment))
    } else {
        story.forwards(&frame, Reason::ForwardedUnknown, &world.forwarded(&segment, 0))
    }
}

fn server_gone(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.connect(40_000, 0, Reason::NewByScheduler)?;
    story.bench.put_server(SERVER, &world.entry(ServerState::PRESENT | ServerState::RESETS));
    let segment = Segment { payload: vec![1; 50], ..world.segment(40_000, ACK, 1, 1) };
    story.sends_back(0, &world.client_sends(&segment), Reason::ResetServerGone, &world.reset(&segment))
}

fn nobody(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.bench.put_server(SERVER, &world.entry(ServerState::PRESENT | ServerState::REACHABLE));
    let syn = world.segment(40_000, SYN, 0, 0);
    story.sends_back(0, &world.client_sends(&syn), Reason::ResetNoServer, &world.reset(&syn))
}

fn error_to_server(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.connect(40_000, 0, Reason::NewByScheduler)?;
    let large = Segment {
        source: (world.service(), SERVICE_PORT),
        destination: (world.client(), 40_000),
        payload: vec![3; 1300],
        ..world.answer(40_000, 0, ACK, 1, 1)
    };
    let repeated = &large.packet()[..world.repeated()];
    let error = icmp(world.report(), 60, world.too_big(), 1280, repeated);
    let expected = match world.forwarding {
        Forwarding::Dr | Forwarding::Tunnel => icmp(world.report(), 59, world.too_big(), 1280, repeated),
        Forwarding::Snat | Forwarding::Nat => {
            let sent = Segment {
                source: (world.server(), world.server_port()),
                destination: world.seen_client(40_000, 0),
                ..large
            };
            let mut repeated = sent.packet()[..world.repeated()].to_vec();
            // The repeated packet's hop limit is the one that it had.
            let at = if world.clients_v6 { 7 } else { 8 };
            repeated[at] = 64;
            let reporter = if world.forwarding == Forwarding::Snat { world.source() } else { world.router() };
            icmp((reporter, world.server()), 59, world.too_big(), 1280, &repeated)
        }
    };
    story.forwards(&world.client_frame(error), Reason::IcmpToServer, &world.frame_to_server(expected))
}

fn error_to_client(story: &mut Story<'_>) -> Told {
    let world = story.world;
    if !world.forwarding.sees_answers() {
        return Ok(());
    }
    story.connect(40_000, 0, Reason::NewByScheduler)?;
    let large = Segment { payload: vec![3; 1300], ..world.segment(40_000, ACK, 1, 1) };
    let seen = Segment {
        source: world.seen_client(40_000, 0),
        destination: (world.server(), world.server_port()),
        ..large.clone()
    };
    let (source, _) = seen.source;
    let error = icmp((world.router(), source), 60, world.too_big(), 1280, &seen.packet()[..world.repeated()]);
    let reporter = if world.forwarding == Forwarding::Snat { world.service() } else { world.router() };
    let repeated = &large.packet()[..world.repeated()];
    let expected = icmp((reporter, world.client()), 59, world.too_big(), 1280, repeated);
    let wanted = world.frame_to_client(expected);
    story.sends_back(world.server_arm(), &world.server_frame(error), Reason::IcmpToClient, &wanted)
}

fn largest_packet(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.connect(40_000, 0, Reason::NewByScheduler)?;
    let header = if world.clients_v6 { 60 } else { 40 };
    let fits = usize::from(MTU) - world.outer();
    let segment = |length: usize| Segment {
        payload: vec![5; length - header],
        ..world.segment(40_000, ACK | PSH, 1, 1)
    };
    let largest = segment(fits);
    story.forwards(&world.client_sends(&largest), Reason::Forwarded, &world.forwarded(&largest, 0))?;
    if world.forwarding != Forwarding::Tunnel {
        return Ok(());
    }
    let large = segment(fits + 1);
    let value = u32::try_from(fits).unwrap_or(u32::MAX);
    let ends = (world.service(), world.client());
    let answer = icmp(ends, 64, world.too_big(), value, &large.packet()[..world.repeated()]);
    story.sends_back(0, &world.client_sends(&large), Reason::TooBig, &world.frame_to_client(answer))
}

/// Options that announce segments of so many bytes, at even and odd places.
fn announcing(bytes: u16) -> [Vec<u8>; 4] {
    let [high, low] = bytes.to_be_bytes();
    let behind = [vec![1; 34], vec![2, 4, high, low], vec![1, 1]].concat();
    [
        vec![2, 4, high, low],
        vec![2, 4, high, low, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7],
        vec![1, 3, 3, 8, 1, 2, 4, high, low, 0, 0, 0],
        behind,
    ]
}

/// Options without an announcement that is understood.
const NOT_ANNOUNCING: [&[u8]; 6] = [
    &[],
    &[1; 40],
    &[0, 2, 4, 5],
    &[3, 0, 2, 4, 0x23, 0x28, 0, 0],
    &[3, 1, 2, 4, 0x23, 0x28, 0, 0],
    &[2, 4, 0x23, 0x28, 8, 10, 1, 1],
];

fn announced_segments(story: &mut Story<'_>) -> Told {
    let world = story.world;
    let headers = if world.clients_v6 { 60 } else { 40 };
    let fits = MTU - u16::try_from(world.outer()).unwrap_or(0) - headers;
    for (mss_clamp, most) in
        [(MssClamp::None, u16::MAX), (MssClamp::Auto, fits), (MssClamp::Bytes(1300), 1300)]
    {
        story.bench.put_service_of(&World { mss_clamp, ..*world });
        for announced in [536, 1299, 1300, 1301, fits, fits + 1, 9000, u16::MAX] {
            let lowered = announcing(announced.min(most));
            for (options, lowered) in announcing(announced).into_iter().zip(lowered) {
                handshake_with(story, &options, &lowered)?;
            }
        }
        for options in NOT_ANNOUNCING {
            handshake_with(story, options, options)?;
        }
    }
    story.bench.put_service_of(world);
    Ok(())
}

/// SYN, the same SYN again, and what comes back have these options, and get those.
fn handshake_with(story: &mut Story<'_>, options: &[u8], lowered: &[u8]) -> Told {
    let world = story.world;
    story.bench.begin(world);
    let with = |segment: Segment, options: &[u8]| Segment { options: options.to_vec(), ..segment };
    let syn = world.segment(40_000, SYN, 0, 0);
    let sent = world.client_sends(&with(syn.clone(), options));
    let wanted = world.forwarded(&with(syn, lowered), 0);
    story.forwards(&sent, Reason::NewByScheduler, &wanted)?;
    story.forwards(&sent, Reason::SynRepeated, &wanted)?;
    if !world.forwarding.sees_answers() {
        return Ok(());
    }
    let answer = world.answer(40_000, 0, SYN | ACK, 0, 1);
    let wanted = world.returned(&with(answer.clone(), lowered), 40_000, SERVICE_PORT);
    let sent = world.server_sends(&with(answer, options));
    story.sends_back(world.server_arm(), &sent, Reason::Returned, &wanted)
}

/// Bytes of a segment in a network whose frames have 9,000: more than a buffer of a page holds.
const JUMBO: usize = 8_900;

fn jumbo_frames(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.connect(40_000, 0, Reason::NewByScheduler)?;
    let large = Segment { payload: vec![6; JUMBO], ..world.segment(40_000, ACK | PSH, 1, 1) };
    for _ in 0..4 {
        if world.forwarding == Forwarding::Tunnel {
            // Its interface takes less.
            let (action, out) = story.run(0, &world.client_sends(&large), Reason::TooBig)?;
            if action != 3 || out.len() > 200 {
                return Err(format!("action {action}, {} bytes", out.len()));
            }
        } else {
            story.forwards(&world.client_sends(&large), Reason::Forwarded, &world.forwarded(&large, 0))?;
        }
    }
    if world.forwarding.sees_answers() {
        let answer = Segment { payload: vec![9; JUMBO], ..world.answer(40_000, 0, ACK | PSH, 1, 1) };
        let wanted = world.returned(&answer, 40_000, SERVICE_PORT);
        for _ in 0..4 {
            story.sends_back(world.server_arm(), &world.server_sends(&answer), Reason::Returned, &wanted)?;
        }
    }
    story.bench.put_server(SERVER, &world.entry(ServerState::PRESENT | ServerState::RESETS));
    story.sends_back(0, &world.client_sends(&large), Reason::ResetServerGone, &world.reset(&large))
}

fn last_hop(story: &mut Story<'_>) -> Told {
    let segment = Segment { hops: 1, ..story.world.segment(40_000, SYN, 0, 0) };
    story.ends(0, &story.world.client_sends(&segment), Reason::TtlExceeded, 1)
}

fn fragments_and_extensions(story: &mut Story<'_>) -> Told {
    let world = story.world;
    let whole = world.segment(40_000, ACK, 1, 1).packet();
    if !world.clients_v6 {
        let mut first = whole.clone();
        first[6] = 0x20;
        story.ends(0, &world.client_frame(first), Reason::Fragment, 1)?;
        let mut later = whole;
        later[7] = 8;
        return story.ends(0, &world.client_frame(later), Reason::Fragment, 1);
    }
    for (extension, reason) in
        [(44, Reason::Fragment), (0, Reason::IpOptions), (43, Reason::IpOptions), (60, Reason::IpOptions)]
    {
        let content = [&[TCP, 0, 0, 1, 0, 0, 0, 9], &whole[40..]].concat();
        let packet = ip(world.client(), world.service(), extension, 63, &content);
        story.ends(0, &world.client_frame(packet), reason, 1)?;
        let other = ip(world.client(), world.router(), extension, 63, &content);
        story.ends(0, &world.client_frame(other), Reason::NotOurs, 2)?;
    }
    Ok(())
}

fn other_traffic(story: &mut Story<'_>) -> Told {
    let world = story.world;
    let mut answer = world.answer(40_000, 0, SYN | ACK, 0, 1);
    // Of a connection that somebody made past the service.
    answer.destination = if world.servers_v6 == world.clients_v6 {
        (world.client(), 50_000)
    } else {
        (world.source(), 50_000)
    };
    story.ends(world.server_arm(), &world.server_sends(&answer), Reason::NotOurs, 2)
}

/// Only in mode `nat` servers send to others than us.
fn to_strangers(story: &mut Story<'_>) -> Told {
    let world = story.world;
    if world.forwarding != Forwarding::Nat {
        return Ok(());
    }
    let (arm, sound) = (world.server_arm(), world.answer(50_000, 0, ACK, 1, 1));
    story.ends(arm, &world.server_sends(&sound), Reason::NotOurs, 2)?;
    let impossible = Segment { flags: SYN | FIN | ACK, ..sound };
    story.ends(arm, &world.server_sends(&impossible), Reason::BadHeader, 1)
}

fn no_answer_to_reset(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.bench.put_server(SERVER, &world.entry(ServerState::PRESENT | ServerState::REACHABLE));
    for flags in [RST, RST | ACK] {
        let reset = world.client_sends(&world.segment(40_000, flags, 1, 1));
        story.ends(0, &reset, Reason::StrayReset, 1)?;
    }
    Ok(())
}
