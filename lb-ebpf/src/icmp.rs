//! ICMP errors about the balanced connections, translated by the packet that they repeat (RFC 5508 section 4.2).

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    flow::{FlowKey, FlowServer, HOP_WORD, MAY_FRAGMENT, SERVER_WORD},
    forwarding::Forwarding,
    path_mtu,
    reason::Reason,
    server::{ServerState, Servers as _},
    service::EntryKind,
};

use crate::{
    flow,
    from_client::enter_tunnel,
    from_server::{by_client, by_port},
    handshake::reason_of,
    maps::ServerTable,
    packet::{End, IcmpError, Packet, Rewrite, interface, is_group},
    pipeline::{Outcome, SAME_ARM, World},
};

/// How an ICMP error goes on.
enum Sent {
    Translated(Outcome),
    /// To the server of this id, in a packet that is still to be put around it.
    InTunnel(u16),
}

const IN_TUNNEL: u64 = 1 << 24;

/// Decides on an ICMP error, in a function of its own, for its stack. Gives a number for [`finish`].
#[inline(never)]
pub(crate) fn error(context: *mut xdp_md) -> u64 {
    match decide(context) {
        Ok(Sent::Translated(outcome)) => outcome.reason as u64 | u64::from(outcome.arm) << 16,
        Ok(Sent::InTunnel(server)) => IN_TUNNEL | u64::from(server),
        Err(reason) => reason as u64 | u64::from(SAME_ARM) << 16,
    }
}

/// Does what is left to do of what [`error`] has decided.
#[inline(always)]
pub(crate) fn finish(packet: &Packet, decided: u64) -> Result<Outcome, Reason> {
    if decided & IN_TUNNEL == 0 {
        return Ok(Outcome { reason: reason_of(decided as u32 & 0xffff), arm: (decided >> 16) as u8 });
    }
    let sent = enter_tunnel(packet, 0, decided as u16)?;
    let reason = if matches!(sent.reason, Reason::TooBig) { sent.reason } else { Reason::IcmpToServer };
    Ok(Outcome { reason, ..sent })
}

#[inline(always)]
fn decide(context: *mut xdp_md) -> Result<Sent, Reason> {
    let mut error = IcmpError::parse(context).ok_or(Reason::NotOurs)?;
    let world = World::now();
    error.packet.arm = world.arm(interface(context))?;
    match world.entry(error.tuple.source, error.tuple.source_port, error.protocol) {
        Some(hit) if hit.is(EntryKind::Service) => to_server(&world, &error, hit.id),
        _ => to_client(&world, &error),
    }
}

/// Why an error of ours can't go on.
#[inline(always)]
fn check(error: &IcmpError) -> Result<(), Reason> {
    if error.hops() <= 1 {
        return Err(Reason::TtlExceeded);
    }
    if is_group(error.packet.sender()) { Err(Reason::BadHeader) } else { Ok(()) }
}

/// About a packet from the service to a client: the server that wrote it wants to know.
#[inline(always)]
fn to_server(world: &World, error: &IcmpError, service: u16) -> Result<Sent, Reason> {
    let tuple = &error.tuple;
    let key = FlowKey {
        client: tuple.destination,
        client_port: tuple.destination_port,
        service_port: tuple.source_port,
        service,
    };
    let (found, _) = flow::latest(key).ok_or(Reason::NotOurs)?;
    let to = FlowServer::from_word(found.slot.words[SERVER_WORD].load());
    let server = ServerTable
        .present(to.server)
        .filter(|server| server.endpoint == to.endpoint && server.state.has(ServerState::REACHABLE))
        .ok_or(Reason::NotOurs)?;
    if !found.still() {
        return Err(Reason::NotOurs);
    }
    check(error)?;
    if matches!(server.forwarding, Forwarding::Snat) && path_mtu::is_too_small(error.path_mtu) {
        if tuple.source.is_v4() {
            let hop = &found.slot.words[HOP_WORD];
            let word = hop.load();
            let _has_come_over_another_hop = hop.compare_exchange(word, word | MAY_FRAGMENT);
        }
        return Err(Reason::SmallPathMtu);
    }
    let hop = world.hop(&error.packet, server.hop_word());
    let sent = Sent::Translated(Outcome { reason: Reason::IcmpToServer, arm: hop.arm });
    let (reporter, client) = match server.forwarding {
        Forwarding::Snat => {
            let ours = world.control.source(to.source, server.address);
            (Some(ours), Some(End { address: ours, port: to.snat_port }))
        }
        Forwarding::Nat => (None, None),
        Forwarding::Dr => {
            error.packet.send_on(&hop);
            return Ok(sent);
        }
        Forwarding::Tunnel => {
            return Ok(Sent::InTunnel(to.server));
        }
    };
    let own = End { address: server.address, port: server.port_for(tuple.source_port) };
    error.rewrite(&Rewrite { hop, source: Some(own), destination: client, may_fragment: false }, reporter);
    Ok(sent)
}

/// About a packet from a SNAT port, or a client itself, to a server: the client that wrote it wants to know.
#[inline(always)]
fn to_client(world: &World, error: &IcmpError) -> Result<Sent, Reason> {
    let tuple = &error.tuple;
    let server =
        world.entry(tuple.destination, tuple.destination_port, error.protocol).ok_or(Reason::NotOurs)?;
    let (back, source) = if server.is(EntryKind::NatEndpoint) {
        let key = FlowKey {
            client: tuple.source,
            client_port: tuple.source_port,
            service_port: server.service_port,
            service: server.id,
        };
        (by_client(key), None)
    } else {
        let (endpoint, source) =
            world.endpoint(&server, tuple.source, tuple.source_port).ok_or(Reason::NotOurs)?;
        let back = by_port(world, endpoint, source, tuple.source_port);
        let service = back.as_ref().map(|back| back.service.address);
        (back, service)
    };
    let back = back.ok_or(Reason::NotOurs)?;
    let next_hop = back.found.slot.words[HOP_WORD].load();
    if !back.found.still() || back.service.protocol() != error.protocol {
        return Err(Reason::NotOurs);
    }
    check(error)?;
    let hop = world.hop(&error.packet, next_hop);
    let service = End { address: back.service.address, port: back.key.service_port };
    let client = End { address: back.key.client, port: back.key.client_port };
    let own = if back.to.has_port() { Some(client) } else { None };
    error.rewrite(&Rewrite { hop, source: own, destination: Some(service), may_fragment: false }, source);
    Ok(Sent::Translated(Outcome { reason: Reason::IcmpToClient, arm: hop.arm }))
}
