//! The same for UDP, which has neither handshake nor RST.

use std::net::IpAddr;

use lb_common::{
    forwarding::Forwarding,
    life::{Life, SlotState},
    reason::Reason,
    server::ServerState,
    table::Slot,
};

use super::{
    super::bench::USABLE,
    packet::{Frame, UDP, icmp, one_hop_less, udp},
    story::{Play, Story, Told},
    world::{MTU, SERVER, SERVICE_PORT, World},
};

/// Every story, by its sentence.
pub(super) const ALL: &[(&str, Play)] = &[
    ("a client's second datagram after an answer establishes its flow", conversation),
    ("an answer is not needed where it is not seen, a second datagram is", no_flow_without_an_answer),
    ("a client with a record keeps its server", known_client),
    ("a datagram without a checksum stays so", without_checksum),
    ("without a server a datagram is dropped", nobody),
    ("a flow whose server is gone goes on with another", server_gone),
    ("an error about an answer reaches the server", error_to_server),
    ("the largest datagram goes through, or its sender is told what fits", largest_datagram),
    ("fragments and malformed datagrams are dropped", malformed),
    ("a flow that ended with its server is not kept by what that sends later", late_answer),
    ("TCP to the same port passes", other_protocol),
];

/// A datagram.
#[derive(Clone)]
struct Datagram {
    source: (IpAddr, u16),
    destination: (IpAddr, u16),
    hops: u8,
    payload: Vec<u8>,
    summed: bool,
}

impl Datagram {
    fn packet(&self) -> Vec<u8> {
        udp(self.source, self.destination, self.hops, &self.payload, self.summed)
    }
}

fn asks(world: &World, port: u16, length: usize) -> Datagram {
    Datagram {
        source: (world.client(), port),
        destination: (world.service(), SERVICE_PORT),
        hops: 63,
        payload: vec![0x51; length],
        summed: true,
    }
}

fn answers(world: &World, port: u16, snat: u16) -> Datagram {
    Datagram {
        source: (world.server(), world.server_port()),
        destination: world.seen_client(port, snat),
        hops: 64,
        payload: vec![0xa5; 201],
        summed: true,
    }
}

/// A client's datagram on its way to the server.
fn forwarded(world: &World, datagram: &Datagram, snat: u16) -> Frame {
    let packet = match world.forwarding {
        Forwarding::Snat | Forwarding::Nat => Datagram {
            source: world.seen_client(datagram.source.1, snat),
            destination: (world.server(), world.server_port()),
            hops: datagram.hops - 1,
            ..datagram.clone()
        }
        .packet(),
        Forwarding::Dr | Forwarding::Tunnel => one_hop_less(&datagram.packet()),
    };
    world.frame_to_server(packet)
}

fn sends(story: &mut Story<'_>, port: u16, snat: u16, reason: Reason) -> Told {
    let world = story.world;
    let datagram = asks(world, port, 33);
    story.forwards(&world.client_frame(datagram.packet()), reason, &forwarded(world, &datagram, snat))
}

fn hears(story: &mut Story<'_>, port: u16, snat: u16) -> Told {
    let world = story.world;
    if !world.forwarding.sees_answers() {
        return Ok(());
    }
    let answer = answers(world, port, snat);
    let wanted = Datagram {
        source: (world.service(), SERVICE_PORT),
        destination: (world.client(), port),
        hops: answer.hops - 1,
        ..answer.clone()
    };
    let frame = world.server_frame(answer.packet());
    story.sends_back(world.server_arm(), &frame, Reason::Returned, &world.frame_to_client(wanted.packet()))
}

fn conversation(story: &mut Story<'_>) -> Told {
    sends(story, 40_000, 0, Reason::NewByScheduler)?;
    hears(story, 40_000, 0)?;
    sends(story, 40_000, 0, Reason::Established)?;
    hears(story, 40_000, 0)?;
    sends(story, 40_000, 0, Reason::Forwarded)
}

fn no_flow_without_an_answer(story: &mut Story<'_>) -> Told {
    sends(story, 40_000, 0, Reason::NewByScheduler)?;
    let second =
        if story.world.forwarding.sees_answers() { Reason::SynRepeated } else { Reason::Established };
    sends(story, 40_000, 0, second)
}

fn known_client(story: &mut Story<'_>) -> Told {
    conversation(story)?;
    story.bench.put_server(SERVER, &story.world.entry(USABLE & !ServerState::TAKES_NEW));
    sends(story, 40_001, 1, Reason::NewBySticky)
}

fn without_checksum(story: &mut Story<'_>) -> Told {
    let world = story.world;
    // IPv6 wants one (RFC 8200 section 8.1).
    if world.clients_v6 {
        return Ok(());
    }
    let datagram = Datagram { summed: false, ..asks(world, 40_000, 8) };
    let wanted = forwarded(world, &datagram, 0);
    story.forwards(&world.client_frame(datagram.packet()), Reason::NewByScheduler, &wanted)
}

fn nobody(story: &mut Story<'_>) -> Told {
    let world = story.world;
    story.bench.put_server(SERVER, &world.entry(ServerState::PRESENT | ServerState::REACHABLE));
    story.ends(0, &world.client_frame(asks(world, 40_000, 9).packet()), Reason::NoServer, 1)
}

fn server_gone(story: &mut Story<'_>) -> Told {
    let world = story.world;
    conversation(story)?;
    story.bench.put_server(SERVER, &world.entry(ServerState::PRESENT | ServerState::RESETS));
    story.ends(0, &world.client_frame(asks(world, 40_000, 9).packet()), Reason::NoServer, 1)?;
    story.bench.put_server(SERVER, &world.entry(USABLE));
    sends(story, 40_000, 1, Reason::NewBySticky)?;
    hears(story, 40_000, 1)?;
    sends(story, 40_000, 1, Reason::Established)
}

fn error_to_server(story: &mut Story<'_>) -> Told {
    let world = story.world;
    if world.forwarding != Forwarding::Nat || world.clients_v6 {
        return Ok(());
    }
    conversation(story)?;
    // Port unreachable.
    let heard = Datagram {
        source: (world.service(), SERVICE_PORT),
        destination: (world.client(), 40_000),
        ..answers(world, 40_000, 0)
    };
    let error = icmp((world.client(), world.service()), 60, (3, 3), 0, &heard.packet()[..28]);
    let mut sent = answers(world, 40_000, 0).packet()[..28].to_vec();
    // What is repeated of UDP has the checksum that the client saw.
    sent[26..28].copy_from_slice(&heard.packet()[26..28]);
    let wanted = icmp((world.client(), world.server()), 59, (3, 3), 0, &sent);
    story.forwards(&world.client_frame(error), Reason::IcmpToServer, &world.frame_to_server(wanted))
}

fn largest_datagram(story: &mut Story<'_>) -> Told {
    let world = story.world;
    let header = if world.clients_v6 { 48 } else { 28 };
    let fits = usize::from(MTU) - world.outer();
    let largest = asks(world, 40_000, fits - header);
    let wanted = forwarded(world, &largest, 0);
    story.forwards(&world.client_frame(largest.packet()), Reason::NewByScheduler, &wanted)?;
    if world.forwarding != Forwarding::Tunnel {
        return Ok(());
    }
    let large = asks(world, 40_000, fits - header + 1);
    let value = u32::try_from(fits).unwrap_or(u32::MAX);
    let ends = (world.service(), world.client());
    let answer = icmp(ends, 64, world.too_big(), value, &large.packet()[..world.repeated()]);
    story.sends_back(0, &world.client_frame(large.packet()), Reason::TooBig, &world.frame_to_client(answer))
}

fn malformed(story: &mut Story<'_>) -> Told {
    let world = story.world;
    let whole = asks(world, 40_000, 40).packet();
    let header = if world.clients_v6 { 40 } else { 20 };
    for length in [7_u16, 49] {
        let mut packet = whole.clone();
        packet[header + 4..header + 6].copy_from_slice(&length.to_be_bytes());
        story.ends(0, &world.client_frame(packet), Reason::BadHeader, 1)?;
    }
    if world.clients_v6 {
        return Ok(());
    }
    let mut later = whole.clone();
    later[7] = 8;
    story.ends(0, &world.client_frame(later), Reason::Fragment, 1)?;
    // An IP packet that ends within its own header, or the datagram's.
    for total in [0_u16, 19, 20, 27] {
        let mut packet = whole.clone();
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        story.ends(0, &world.client_frame(packet), Reason::BadHeader, 1)?;
    }
    Ok(())
}

fn late_answer(story: &mut Story<'_>) -> Told {
    conversation(story)?;
    if !story.world.forwarding.sees_answers() {
        return Ok(());
    }
    let (bench, world) = (story.bench, story.world);
    bench.put_server(SERVER, &world.entry(ServerState::PRESENT | ServerState::RESETS));
    story.ends(0, &world.client_frame(asks(world, 40_000, 9).packet()), Reason::NoServer, 1)?;
    bench.put_server(SERVER, &world.entry(USABLE));
    let deadlines = || {
        let live = bench.tables.flows.iter().map(Slot::life).filter(|life| life.state() == SlotState::Live);
        live.map(Life::deadline).collect::<Vec<_>>()
    };
    let before = deadlines();
    hears(story, 40_000, 0)?;
    if before.len() == 1 && deadlines() == before {
        Ok(())
    } else {
        Err(format!("the closed flow lasts until {:?}, and until {before:?} before", deadlines()))
    }
}

fn other_protocol(story: &mut Story<'_>) -> Told {
    let world = story.world;
    let mut packet = asks(world, 40_000, 40).packet();
    let at = if world.clients_v6 { 6 } else { 9 };
    assert_eq!(packet[at], UDP);
    packet[at] = 6;
    story.ends(0, &world.client_frame(packet), Reason::NotOurs, 2)
}
