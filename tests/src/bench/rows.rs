//! Rows of the tables as the program would have written them, a million at a time.

use std::{net::IpAddr, ops::Range};

use anyhow::{Result, bail, ensure};
use lb_common::{
    address::Address,
    clock::Ticks,
    control::Snat,
    flow::{Flow, FlowKey, FlowServer, FlowSticky, Flows, Sequences},
    hash::hash3,
    ports::{Owner, PortCell, PortRange},
    sticky::{Stickies, StickyKey, StickyServer},
    table::{Insert, Slot, insert_if_absent},
    tcp::TcpState,
};
use lb_userspace::dataplane::Maps;

use super::{
    frames::{CLIENT_PORT, FIRST_SEQUENCE, NEXT_HOP, VIP_PORT, client, narrow},
    world::{FIRST_PORT, Service, World},
};

/// Where conversations belong: a service of these maps and its servers.
pub(super) struct Place<'a> {
    pub(super) maps: &'a Maps,
    pub(super) now: Ticks,
    pub(super) service: Service,
    pub(super) id: u16,
    /// Each server's number, and that of its endpoint.
    pub(super) servers: Vec<(u16, u16)>,
}

impl<'a> Place<'a> {
    /// The place of a service of the bench.
    ///
    /// # Errors
    /// A service or server is not in the maps.
    pub(super) fn of(world: &'a World, service: Service) -> Result<Self> {
        Self::numbered(world, service, &service.label(), service.servers())
    }

    /// The place of the service with this label, whose servers are s0, s1 and so on; conversations are as those of `service`.
    ///
    /// # Errors
    /// The service or a server is not in the maps.
    pub(super) fn numbered(world: &'a World, service: Service, label: &str, servers: u16) -> Result<Self> {
        let servers = (0..servers).map(|server| world.numbered_server(label, &format!("s{server}")));
        Ok(Self {
            maps: &world.maps,
            now: world.now,
            service,
            id: world.numbered_service(label)?,
            servers: servers.collect::<Result<_>>()?,
        })
    }

    /// The number among the servers that a conversation goes to, and its SNAT port.
    fn server(&self, conversation: u32, ports: u32) -> Result<(usize, u16)> {
        let servers = u32::try_from(self.servers.len())?;
        let port = conversation / servers % ports;
        Ok((usize::try_from(conversation % servers)?, FIRST_PORT + narrow(port)))
    }
}

/// Establishes the conversations from 0 on. Gives how many found no room.
///
/// # Errors
/// A service or server is not in the maps.
pub(super) fn establish(world: &World, service: Service, conversations: u32) -> Result<u32> {
    establish_at(&Place::of(world, service)?, 0..conversations)
}

/// Establishes these conversations. Gives how many found no room.
///
/// # Errors
/// There is no server.
pub(super) fn establish_at(place: &Place<'_>, conversations: Range<u32>) -> Result<u32> {
    ensure!(!place.servers.is_empty(), "a service without servers");
    let mut without = 0;
    let is_snat = place.service.mode == "snat";
    let ports = Snat::from_word(place.maps.control().snat.load()).ports;
    let deadline = place.now.plus(Ticks(1_000_000));
    let hash_key = place.maps.key();
    for conversation in conversations {
        let (address, port) = client(place.service, conversation, CLIENT_PORT);
        let (number, snat_port) = place.server(conversation, ports)?;
        let (server, endpoint) = place.servers[number];
        let key = FlowKey {
            client: Address::from(address),
            client_port: port.to_be(),
            service_port: VIP_PORT.to_be(),
            service: place.id,
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
            may_fragment: false,
            sequences: Sequences { client: FIRST_SEQUENCE + 1, server: FIRST_SEQUENCE + 1 },
            sticky: FlowSticky { made_at: place.now, record: None },
            state: TcpState::Established,
            deadline,
        };
        let hash = hash3(&hash_key, key.words());
        let note = TcpState::Established as u32;
        let inserted = insert_if_absent::<7, Flows, _>(
            &place.maps.flows,
            hash,
            &flow.pack(),
            note,
            deadline,
            place.now,
            |_, _, _| {},
        );
        let Insert::Inserted(index) = inserted else {
            without += 1;
            continue;
        };
        if is_snat {
            let range = PortRange { pair: u32::from(endpoint), count: ports };
            let cell = PortCell { owner: Owner::Flow(index), stamp: place.now };
            let offset = u32::from(snat_port - FIRST_PORT);
            place.maps.port_cells[range.index(offset) as usize].store(cell.word());
        }
    }
    Ok(without)
}

/// Remembers so many clients of a service, each with a server of its own.
///
/// # Errors
/// There is no room.
pub(super) fn remember(world: &World, service: Service, clients: u32) -> Result<()> {
    let client = |conversation| client(service, conversation, CLIENT_PORT).0;
    let without = remember_each(&Place::of(world, service)?, 0..clients, client)?;
    ensure!(without == 0, "{without} of {clients} clients found no room");
    Ok(())
}

/// Remembers the clients with these numbers. Gives how many found no room.
///
/// # Errors
/// There is no server.
pub(super) fn remember_each(
    place: &Place<'_>,
    clients: Range<u32>,
    client: impl Fn(u32) -> IpAddr,
) -> Result<u32> {
    ensure!(!place.servers.is_empty(), "a service without servers");
    let mut without = 0;
    let deadline = place.now.plus(Ticks(1_000_000));
    let hash_key = place.maps.key();
    for number in clients {
        let (server, _) = place.servers[usize::try_from(number)? % place.servers.len()];
        let to = StickyServer { service: place.id, port: 0, server, made_at: place.now, verified: true };
        let client = Address::from(client(number));
        let hash = hash3(&hash_key, StickyKey { client, service: place.id, port: 0 }.words());
        let words = [client.0[0], client.0[1], to.word()];
        let inserted = insert_if_absent::<3, Stickies, _>(
            &place.maps.sticky,
            hash,
            &words,
            0,
            deadline,
            place.now,
            |_, _, _| {},
        );
        without += u32::from(!matches!(inserted, Insert::Inserted(_)));
    }
    Ok(without)
}

/// Gives the SNAT ports back that were handed out in a row, and empties all tables. Nothing else is touched, and the tables
/// last: small ones are in the cache then.
pub(super) fn clear(world: &World) {
    let maps = &world.maps;
    let ports = usize::try_from(Snat::from_word(maps.control().snat.load()).ports).unwrap_or(1);
    for (cursor, cells) in maps.port_cursors.iter().zip(maps.port_cells.chunks(ports)) {
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
