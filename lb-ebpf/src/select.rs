//! Which server an unknown client, or one with a sticky record, goes to.

use lb_common::{
    address::Address,
    choose::{Choice, choose},
    clock::Ticks,
    flow::FlowServer,
    hash::hash3,
    maglev::{NOBODY, lane},
    picks::{note, noted},
    reason::Reason,
    schedule::{Asked, Load, Scheduler, pick},
    server::{Server, ServerState, Servers as _},
    service::Service,
    sticky::{STICKY_WORDS, Stickies, StickyKey, StickyServer},
    table::find,
    tcp::TcpState,
};

use crate::{
    count,
    handshake::Answer,
    maps::{self, ServerTable, StickyTable},
    pipeline::World,
};

/// Who asks when nothing opens a connection: no turn is taken and nothing noted.
pub(crate) const LOOK: u32 = u32::MAX;

/// The service's id, and the port of it (as on the wire), of a flow key's third word, in one number for the functions here.
#[inline(always)]
pub(crate) const fn asked_for(ports: u64) -> u32 {
    (ports >> 16) as u32
}

/// The service's id in [`asked_for`].
#[inline(always)]
pub(crate) const fn service_of(at: u32) -> u16 {
    (at >> 16) as u16
}

/// What a client's record is found by when it asks so.
#[inline(always)]
pub(crate) const fn key_of(service: &Service, first: u64, second: u64, at: u32) -> StickyKey {
    service.sticky_key(service_of(at), Address([first, second]), at as u16)
}

/// Selects the server for a new connection of a client (its address' two words) to a service, [`asked_for`] in `at`. `asker`
/// is the client's port, or [`LOOK`]. Gives an [`Answer`] with the server and its endpoint.
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn select(first: u64, second: u64, at: u32, asker: u32) -> u64 {
    chosen(&World::now(), first, second, at, asker)
}

/// As [`select`].
#[inline(always)]
pub(crate) fn chosen(world: &World, first: u64, second: u64, at: u32, asker: u32) -> u64 {
    let id = service_of(at);
    let Some(service) = maps::service(id) else { return Answer::word(0, Reason::NotConfigured) };
    let record = if service.persistence.0 == 0 { NONE } else { recorded(world, &service, first, second, at) };
    let before = if takes_notes(&service) { latest(first, second, at) } else { NONE };
    let next = |attempt| {
        let skipped = u32::from(before != NONE);
        let picked =
            if attempt < skipped { before } else { scheduled(first, second, id, asker, attempt - skipped) };
        if picked == NONE { None } else { Some(picked as u16) }
    };
    let record = if record == NONE { None } else { Some(record as u16) };
    let (mut number, mut server, reason) = match choose(&ServerTable, id, record, next) {
        Choice::Sticky(number, server) => (number, server, Reason::NewBySticky),
        Choice::Scheduled(number, server) => (number, server, Reason::NewByScheduler),
        Choice::Nobody => {
            if asker != LOOK {
                count::service_reset(id);
            }
            return Answer::word(0, Reason::ResetNoServer);
        }
    };
    if matches!(reason, Reason::NewByScheduler)
        && takes_notes(&service)
        && asker != LOOK
        && u32::from(number) != before
    {
        let agreed = remember(first, second, at, number, before);
        if agreed != number
            && let Some(other) = takes_new(agreed, id)
        {
            (number, server) = (agreed, other);
        }
    }
    if !server.state.has(ServerState::REACHABLE) {
        return Answer::word(0, Reason::NoNeighbour);
    }
    let to = FlowServer { server: number, endpoint: server.endpoint, snat_port: 0, source: 0 };
    Answer::word(to.word(), reason)
}

/// Whether a client's first connections must be kept together until it has its record.
#[inline(always)]
fn takes_notes(service: &Service) -> bool {
    service.scheduler.is_live() && service.persistence.0 != 0
}

/// A server, if it takes new clients of a service.
#[inline(always)]
fn takes_new(number: u16, service: u16) -> Option<Server> {
    let server = ServerTable.present(number)?;
    if server.service == service && server.state.has(ServerState::TAKES_NEW) { Some(server) } else { None }
}

/// The server of the client's sticky record, or [`NONE`]. No `Option`: its empty half is undefined, and the verifier sees it
/// copied about.
#[inline(always)]
fn recorded(world: &World, service: &Service, first: u64, second: u64, at: u32) -> u32 {
    let key = key_of(service, first, second, at).words();
    let found = find::<STICKY_WORDS, Stickies, _>(&StickyTable, hash3(&world.key(), key), key, world.now);
    let Some(found) = found else {
        return if service.by_port { shared_record(first, second, service_of(at)) } else { NONE };
    };
    let to = StickyServer::from_word(found.slot.words[2].load());
    if found.still() { u32::from(to.server) } else { NONE }
}

/// The server of the record that a client got when one was for all ports of the service, or [`NONE`]. As [`scheduled`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn shared_record(first: u64, second: u64, id: u16) -> u32 {
    let world = World::now();
    let Some(service) = maps::service(id) else { return NONE };
    let key = service.sticky_key(id, Address([first, second]), 0).words();
    let Some(found) =
        find::<STICKY_WORDS, Stickies, _>(&StickyTable, hash3(&world.key(), key), key, world.now)
    else {
        return NONE;
    };
    let to = StickyServer::from_word(found.slot.words[2].load());
    if found.still() { u32::from(to.server) } else { NONE }
}

/// No server that the functions below give.
const NONE: u32 = NOBODY as u32;

/// The scheduler's pick for a client, or [`NONE`]. `asker` as in [`select`].
///
/// A global function with numbers for arguments: the verifier checks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn scheduled(first: u64, second: u64, id: u16, asker: u32, attempt: u32) -> u32 {
    let world = World::now();
    let Some(service) = maps::service(id) else { return NONE };
    let Some(size) = maps::schedule(id, 0) else { return NONE };
    let size = size as u32;
    if size == 0 {
        return NONE;
    }
    let mut asked = Asked {
        seed: world.control.maglev_seed.load(),
        client: service.client(Address([first, second])),
        salt: 0,
        size,
        attempt,
    };
    let mut turn = 0;
    if matches!(service.scheduler, Scheduler::RoundRobin)
        && let Some(turns) = maps::turns(id)
    {
        turn = if asker == LOOK { turns.load() } else { turns.fetch_add(1) };
        asked.attempt = if asker == LOOK { attempt } else { 0 };
    } else if service.scheduler.is_live() && service.persistence.0 == 0 && asker != LOOK {
        asked.salt = u64::from(asker);
    }
    let load = |server| maps::load(server).map_or(Load::default(), Load::read);
    let at = |place| {
        let (value, shift) = lane(place);
        let server = (maps::schedule(id, value)? >> shift) as u16;
        if server == NOBODY { None } else { Some(server) }
    };
    pick(service.scheduler, asked, turn, load, at).map_or(NONE, u32::from)
}

/// What a client's notes are found by.
#[inline(always)]
fn hash_of(world: &World, first: u64, second: u64, at: u32) -> u64 {
    let key = match maps::service(service_of(at)) {
        Some(entry) => key_of(&entry, first, second, at),
        None => StickyKey { client: Address([first, second]), service: service_of(at), port: 0 },
    };
    hash3(&world.key(), key.words())
}

/// The server that was picked for a client a moment ago, or [`NONE`]. As [`scheduled`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn latest(first: u64, second: u64, at: u32) -> u32 {
    let world = World::now();
    let hash = hash_of(&world, first, second, at);
    let Some(cell) = maps::latest_pick(hash) else { return NONE };
    noted(cell.load(), hash, world.now, lifetime(&world)).map_or(NONE, u32::from)
}

/// Notes a pick for a client, in place of one that was of no use. Gives the server that another core noted first, or the
/// same. As [`scheduled`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember(first: u64, second: u64, at: u32, server: u16, useless: u32) -> u16 {
    let world = World::now();
    let hash = hash_of(&world, first, second, at);
    let Some(cell) = maps::latest_pick(hash) else { return server };
    let seen = cell.load();
    let lifetime = lifetime(&world);
    match noted(seen, hash, world.now, lifetime) {
        Some(other) if u32::from(other) != useless => other,
        _ => note(cell, seen, hash, server, world.now, lifetime),
    }
}

/// A pick is remembered for as long as a half-open flow.
#[inline(always)]
fn lifetime(world: &World) -> Ticks {
    world.control.idle(TcpState::SynSent, Ticks(0))
}
