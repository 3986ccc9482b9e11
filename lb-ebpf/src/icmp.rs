//! ICMP errors about the balanced connections, translated by the packet that they repeat (RFC 5508 section 4.2).

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    flow::{FlowKey, FlowServer, HOP_WORD, SERVER_WORD, mac_word},
    reason::Reason,
    server::{ServerState, Servers as _},
    service::EntryKind,
};

use crate::{
    from_client::Client,
    from_server::by_port,
    maps::ServerTable,
    packet::{Packet, Parsed, Rewrite, Tuple},
    pipeline::World,
};

/// Decides on an ICMP error. A function of its own, as `from_client::unsettled` is. Gives a [`Reason`]'s number.
#[inline(never)]
pub(crate) fn error(context: *mut xdp_md) -> u32 {
    let Ok((packet, Parsed::IcmpError(tuple, destination, ttl))) = Packet::parse(context) else {
        return Reason::Truncated as u32;
    };
    let Some(world) = World::now() else {
        return Reason::NotConfigured as u32;
    };
    // Whoever sent the packet is told about it.
    if destination != tuple.source {
        return Reason::NotOurs as u32;
    }
    let decided = match world.entry(tuple.source, tuple.source_port) {
        Some(hit) if hit.is(EntryKind::Service) => to_server(&world, &packet, &tuple, hit.id, ttl),
        _ => to_client(&world, &packet, &tuple, ttl),
    };
    match decided {
        Ok(reason) | Err(reason) => reason as u32,
    }
}

/// About a packet from the service to a client: the server that wrote it wants to know.
#[inline(always)]
fn to_server(world: &World, packet: &Packet, tuple: &Tuple, service: u16, ttl: u8) -> Result<Reason, Reason> {
    let key = FlowKey {
        client: tuple.destination,
        client_port: tuple.destination_port,
        service_port: tuple.source_port,
        service,
    };
    let client = Client::with_key(world, key);
    let found = client.find_flow(world).or_else(|| client.find_half_open(world)).ok_or(Reason::NotOurs)?;
    let to = FlowServer::from_word(found.slot.words[SERVER_WORD].load());
    let server = ServerTable
        .present(to.server)
        .filter(|server| server.endpoint == to.endpoint && server.state.has(ServerState::REACHABLE))
        .ok_or(Reason::NotOurs)?;
    if !found.still() {
        return Err(Reason::NotOurs);
    }
    if ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let source = world.control.source(to.source);
    let rewrite = Rewrite {
        next_hop: mac_word(server.mac),
        tuple: Tuple {
            source: server.address,
            destination: source,
            source_port: server.port_for(tuple.source_port),
            destination_port: to.snat_port,
        },
    };
    packet.rewrite_icmp_error(ttl, tuple, &rewrite, source, server.address);
    Ok(Reason::IcmpToServer)
}

/// About a packet from a SNAT port to a server: the client that wrote it wants to know.
#[inline(always)]
fn to_client(world: &World, packet: &Packet, tuple: &Tuple, ttl: u8) -> Result<Reason, Reason> {
    let (endpoint, source) = world
        .endpoint(tuple.destination, tuple.destination_port, tuple.source, tuple.source_port)
        .ok_or(Reason::NotOurs)?;
    let back = by_port(world, endpoint, source, tuple.source_port).ok_or(Reason::NotOurs)?;
    let next_hop = back.found.slot.words[HOP_WORD].load();
    if !back.found.still() {
        return Err(Reason::NotOurs);
    }
    if ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let rewrite = Rewrite {
        next_hop,
        tuple: Tuple {
            source: back.key.client,
            destination: back.service.address,
            source_port: back.key.client_port,
            destination_port: back.key.service_port,
        },
    };
    packet.rewrite_icmp_error(ttl, tuple, &rewrite, back.service.address, back.key.client);
    Ok(Reason::IcmpToClient)
}
