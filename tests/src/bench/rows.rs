//! Rows of the tables as the program would have written them, a million at a time.

use anyhow::{Result, bail};
use lb_common::{
    address::Address,
    clock::Ticks,
    flow::{Flow, FlowKey, FlowServer, FlowSlot, FlowSticky, Flows, Sequences},
    hash::hash3,
    ports::{Owner, PortCell, PortRange},
    sticky::{Stickies, StickyKey, StickyServer},
    table::{Insert, Slot, insert_if_absent},
    tcp::TcpState,
};
use lb_userspace::dataplane::Region;

use super::{
    frames::{CLIENT_PORT, FIRST_SEQUENCE, NEXT_HOP, VIP_PORT, client, narrow, server},
    world::{FIRST_PORT, SNAT_PORTS, Service, World},
};

/// Establishes the conversations from 0 on. Gives how many found no room.
///
/// # Errors
/// A service or server is not in the maps.
pub(super) fn establish(world: &World, service: Service, conversations: u32) -> Result<u32> {
    let mut without = 0;
    let id = world.service_id(service)?;
    let servers: Vec<_> =
        (0..service.servers()).map(|server| world.server_ids(service, server)).collect::<Result<_>>()?;
    let is_snat = service.mode == "snat";
    let deadline = world.now.plus(Ticks(1_000_000));
    for conversation in 0..conversations {
        let (address, port) = client(service, conversation, CLIENT_PORT);
        let (number, snat_port) = server(service, conversation);
        let (server, endpoint) = servers[usize::from(number)];
        let key = FlowKey {
            client: Address::from(address),
            client_port: port.to_be(),
            service_port: VIP_PORT.to_be(),
            service: id,
        };
        let flow = Flow {
            key,
            to: FlowServer {
                server,
                endpoint,
                snat_port: if is_snat { snat_port.to_be() } else { 0 },
                source: 0,
            },
            return_hop: NEXT_HOP,
            arm: 0,
            sequences: Sequences { client: FIRST_SEQUENCE + 1, server: FIRST_SEQUENCE + 1 },
            sticky: FlowSticky { made_at: world.now, record: None },
            state: TcpState::Established,
            deadline,
        };
        let table: &Region<FlowSlot> = &world.maps.flows;
        let hash = hash3(&world.maps.key(), key.words());
        let note = TcpState::Established as u32;
        let inserted = insert_if_absent::<7, Flows, _>(
            table,
            hash,
            &flow.pack(),
            note,
            deadline,
            world.now,
            |_, _, _| {},
        );
        let Insert::Inserted(index) = inserted else {
            without += 1;
            continue;
        };
        if is_snat {
            let range = PortRange { pair: u32::from(endpoint), count: u32::from(SNAT_PORTS) };
            let cell = PortCell { owner: Owner::Flow(index), stamp: world.now };
            let offset = u32::from(snat_port - FIRST_PORT);
            world.maps.port_cells[range.index(offset) as usize].store(cell.word());
        }
    }
    Ok(without)
}

/// Remembers so many clients of a service, each with a server of its own.
///
/// # Errors
/// There is no room.
pub(super) fn remember(world: &World, service: Service, clients: u32) -> Result<()> {
    let id = world.service_id(service)?;
    let deadline = world.now.plus(Ticks(1_000_000));
    for conversation in 0..clients {
        let (address, _) = client(service, conversation, CLIENT_PORT);
        let (server, _) = world.server_ids(service, narrow(conversation % u32::from(service.servers())))?;
        let to = StickyServer { service: id, port: 0, server, made_at: world.now, verified: true };
        let client = Address::from(address);
        let hash = hash3(&world.maps.key(), StickyKey { client, service: id, port: 0 }.words());
        let words = [client.0[0], client.0[1], to.word()];
        let inserted = insert_if_absent::<3, Stickies, _>(
            &world.maps.sticky,
            hash,
            &words,
            0,
            deadline,
            world.now,
            |_, _, _| {},
        );
        if !matches!(inserted, Insert::Inserted(_)) {
            bail!("client {conversation} found no room: {inserted:?}");
        }
    }
    Ok(())
}

/// Gives the SNAT ports back that were handed out in a row, and empties all tables. Nothing else is touched, and the tables
/// last: small ones are in the cache then.
pub(super) fn clear(world: &World) {
    let maps = &world.maps;
    for (cursor, cells) in maps.port_cursors.iter().zip(maps.port_cells.chunks(usize::from(SNAT_PORTS))) {
        let next = usize::try_from(cursor.load()).unwrap_or(usize::MAX);
        cells.iter().take(next).for_each(|cell| cell.store(0));
        cursor.store(0);
    }
    maps.flows.iter().chain(maps.half_open.iter()).for_each(empty);
    maps.sticky.iter().for_each(empty);
}

fn empty<const N: usize>(slot: &Slot<N>) {
    if slot.life.load() != 0 {
        slot.life.store(0);
    }
}

/// The SNAT ports of half-open conversations, in their order, as the script's values: server's address, then port.
///
/// # Errors
/// A conversation is not half-open.
pub(super) fn snat_ports(
    world: &World,
    service: Service,
    conversations: u32,
    first_port: u16,
) -> Result<Vec<u64>> {
    let id = world.service_id(service)?;
    let mut low = std::collections::HashMap::new();
    for server in 0..service.servers() {
        low.insert(world.server_ids(service, server)?.0, 0x0101 + u64::from(server));
    }
    let mut values = vec![None; conversations as usize];
    for slot in world.maps.half_open.iter() {
        let flow = Flow::unpack(&slot.read(), slot.life());
        if flow.key.service != id || slot.life.load() == 0 {
            continue;
        }
        let bytes = flow.key.client.0[1].to_ne_bytes();
        let [.., high, low_byte] = bytes;
        let port = u16::from_be(flow.key.client_port).wrapping_sub(first_port);
        let conversation = usize::from(u16::from_be_bytes([high, low_byte])) | usize::from(port) << 16;
        if let (Some(value), Some(low)) = (values.get_mut(conversation), low.get(&flow.to.server)) {
            *value = Some(low | u64::from(u16::from_be(flow.to.snat_port)) << 16);
        }
    }
    let all: Option<Vec<u64>> = values.into_iter().collect();
    let Some(all) = all else { bail!("not every conversation is half-open") };
    Ok(all)
}
