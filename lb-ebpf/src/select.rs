//! Which server an unknown client, or one with a sticky record, goes to.

use lb_common::{
    address::Address,
    choose::{Choice, choose},
    flow::FlowServer,
    hash::hash3,
    maglev::{NOBODY, lane, place},
    reason::Reason,
    server::ServerState,
    sticky::{STICKY_WORDS, Stickies, StickyKey, StickyServer},
    table::find,
};

use crate::{
    handshake::Answer,
    maps::{self, ServerTable, StickyTable},
    pipeline::World,
};

/// Selects the server for a new connection of a client (its address' two words) to a service. Gives an [`Answer`] with the
/// server and its endpoint.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn select(first: u64, second: u64, id: u16) -> u64 {
    let Some(world) = World::now() else { return Answer::word(0, Reason::NotConfigured) };
    let Some(service) = maps::service(id) else { return Answer::word(0, Reason::NotConfigured) };
    let client = service.client(Address([first, second]));
    let record = if service.persistence.0 == 0 { None } else { recorded(&world, client, id) };
    let pick = |attempt| scheduled(&world, id, client, attempt);
    let (number, server, reason) = match choose(&ServerTable, id, record, pick) {
        Choice::Sticky(number, server) => (number, server, Reason::NewBySticky),
        Choice::Scheduled(number, server) => (number, server, Reason::NewByScheduler),
        Choice::Nobody => return Answer::word(0, Reason::ResetNoServer),
    };
    if !server.state.has(ServerState::REACHABLE) {
        return Answer::word(0, Reason::NoNeighbour);
    }
    let to = FlowServer { server: number, endpoint: server.endpoint, snat_port: 0, source: 0 };
    Answer::word(to.word(), reason)
}

/// The server of the client's sticky record.
#[inline(always)]
fn recorded(world: &World, client: Address, service: u16) -> Option<u16> {
    let key = StickyKey { client, service }.words();
    let found = find::<STICKY_WORDS, Stickies, _>(&StickyTable, hash3(&world.key(), key), key, world.now)?;
    let to = StickyServer::from_word(found.slot.words[2].load());
    if found.still() { Some(to.server) } else { None }
}

/// The scheduler's pick.
#[inline(always)]
fn scheduled(world: &World, service: u16, client: Address, attempt: u32) -> Option<u16> {
    let size = maps::schedule(service, 0)? as u32;
    if size == 0 {
        return None;
    }
    let (value, shift) = lane(place(world.control.maglev_seed.load(), client, size, attempt));
    let id = (maps::schedule(service, value)? >> shift) as u16;
    if id == NOBODY { None } else { Some(id) }
}
