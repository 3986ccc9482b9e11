//! What comes again, and is decided by the exact-match cache where that is used, in every world of TCP: it must not be decided
//! otherwise than the first time, nor by what is no longer so.

use lb_common::{
    reason::Reason,
    server::{Server, ServerState},
    service::IndexEntry,
};

use super::{
    super::{
        bench::USABLE,
        frame::{
            Mac,
            flag::{ACK, FIN, PSH, SYN},
        },
    },
    packet::{Frame, Segment},
    story::{Play, Story, Told},
    world::{ROUTER_MAC, SERVER, SERVER_MAC, SERVICE_PORT},
};

/// Every story, by its sentence.
pub(super) const ALL: &[(&str, Play)] = &[
    ("what comes again goes the same way, with its own length, number and hop limit", same_way),
    ("a server at another MAC address is sent to there", server_moves),
    ("a server that is gone is sent nothing more, however often it was before", server_gone),
    ("a client that comes over another router is answered over that one", router_moves),
    ("a client over two routers is answered over the one that it came over last", two_routers),
    ("what is closed is followed as closed", closes),
    ("what came by another interface, or to another MAC address, is not what came before", elsewhere),
    ("a packet at its last hop is dropped, and a fragment, however many went before", last_hop),
    ("a service that is not there any more forwards nothing", service_gone),
    ("of two conversations in turns, each goes its own way", in_turns),
    ("what is not ours passes, however often, until it is ours", not_ours),
    ("before the daemon has set things up, and while it has not, everything passes", not_configured),
];

/// As often as it takes for the cache to be asked, and once more.
const OFTEN: u32 = 4;
const PORT: u16 = 40_000;
/// `XDP_DROP` and `XDP_PASS`.
const DROP: u32 = 1;
const PASS: u32 = 2;
const OTHER_ROUTER: Mac = [2, 0, 0, 0, 0, 0xfd];
const OTHER_SERVER: Mac = [2, 0, 0, 0, 0, 0x21];

/// The client's segment of this number, in words of its own.
fn request(story: &Story<'_>, port: u16, number: u32) -> Segment {
    let length = usize::try_from(number * 7 % 1200).unwrap_or_default();
    let segment = story.world.segment(port, ACK | PSH, 1 + number * 40_000, 1);
    Segment { payload: vec![0x77; length], hops: if number.is_multiple_of(2) { 63 } else { 17 }, ..segment }
}

/// The server's.
fn answer(story: &Story<'_>, port: u16, snat: u16, number: u32) -> Segment {
    let length = usize::try_from(number * 11 % 1200).unwrap_or_default();
    let segment = story.world.answer(port, snat, ACK, 1 + number * 40_000, 1);
    Segment { payload: vec![0x99; length], ..segment }
}

/// Both ends' segments of this number go their way.
fn exchange(story: &mut Story<'_>, port: u16, snat: u16, number: u32) -> Told {
    let (world, asked) = (story.world, request(story, port, number));
    story.forwards(&world.client_sends(&asked), Reason::Forwarded, &world.forwarded(&asked, snat))?;
    if !world.forwarding.sees_answers() {
        return Ok(());
    }
    let answered = answer(story, port, snat, number);
    let wanted = world.returned(&answered, port, SERVICE_PORT);
    story.sends_back(world.server_arm(), &world.server_sends(&answered), Reason::Returned, &wanted)
}

/// A connection, of which each way was used often.
fn used(story: &mut Story<'_>) -> Told {
    story.connect(PORT, 0, Reason::NewByScheduler)?;
    (0..OFTEN).try_for_each(|number| exchange(story, PORT, 0, number))
}

fn same_way(story: &mut Story<'_>) -> Told {
    used(story)?;
    (OFTEN..3 * OFTEN).try_for_each(|number| exchange(story, PORT, 0, number))
}

fn server_moves(story: &mut Story<'_>) -> Told {
    used(story)?;
    let world = story.world;
    for (number, mac) in [(5, OTHER_SERVER), (6, SERVER_MAC), (7, OTHER_SERVER)] {
        story.bench.put_server(SERVER, &Server { mac, ..world.entry(USABLE) });
        let asked = request(story, PORT, number);
        let wanted = Frame { to: mac, ..world.forwarded(&asked, 0) };
        for _ in 0..OFTEN {
            story.forwards(&world.client_sends(&asked), Reason::Forwarded, &wanted)?;
        }
    }
    Ok(())
}

fn server_gone(story: &mut Story<'_>) -> Told {
    used(story)?;
    let world = story.world;
    story.bench.put_server(SERVER, &world.entry(ServerState::PRESENT | ServerState::RESETS));
    let asked = request(story, PORT, 1);
    for _ in 0..OFTEN {
        story.sends_back(0, &world.client_sends(&asked), Reason::ResetServerGone, &world.reset(&asked))?;
    }
    story.bench.put_server(SERVER, &world.entry(USABLE));
    exchange(story, PORT, 0, 2)
}

/// A client's segment over a router, and the answer over it.
fn over(story: &mut Story<'_>, router: Mac, number: u32) -> Told {
    let (world, asked) = (story.world, request(story, PORT, number));
    let frame = Frame { from: router, ..world.client_sends(&asked) };
    story.forwards(&frame, Reason::Forwarded, &world.forwarded(&asked, 0))?;
    if !world.forwarding.sees_answers() {
        return Ok(());
    }
    let answered = answer(story, PORT, 0, number);
    let wanted = Frame { to: router, ..world.returned(&answered, PORT, SERVICE_PORT) };
    story.sends_back(world.server_arm(), &world.server_sends(&answered), Reason::Returned, &wanted)
}

fn router_moves(story: &mut Story<'_>) -> Told {
    used(story)?;
    (OFTEN..2 * OFTEN).try_for_each(|number| over(story, OTHER_ROUTER, number))?;
    (2 * OFTEN..3 * OFTEN).try_for_each(|number| over(story, ROUTER_MAC, number))
}

fn two_routers(story: &mut Story<'_>) -> Told {
    used(story)?;
    (OFTEN..4 * OFTEN).try_for_each(|number| {
        let router = if number.is_multiple_of(2) { OTHER_ROUTER } else { ROUTER_MAC };
        over(story, router, number)
    })
}

fn closes(story: &mut Story<'_>) -> Told {
    used(story)?;
    let world = story.world;
    let end = 1 + (OFTEN - 1) * 40_000;
    let fin = world.segment(PORT, FIN | ACK, end, 1);
    story.forwards(&world.client_sends(&fin), Reason::Forwarded, &world.forwarded(&fin, 0))?;
    if !world.forwarding.sees_answers() {
        return Ok(());
    }
    for _ in 0..OFTEN {
        let answered = answer(story, PORT, 0, OFTEN);
        let wanted = world.returned(&answered, PORT, SERVICE_PORT);
        story.sends_back(world.server_arm(), &world.server_sends(&answered), Reason::Returned, &wanted)?;
    }
    let fin = world.answer(PORT, 0, FIN | ACK, end, end + 1);
    let wanted = world.returned(&fin, PORT, SERVICE_PORT);
    story.sends_back(world.server_arm(), &world.server_sends(&fin), Reason::Returned, &wanted)?;
    // The port's next connection is one of its own.
    story.connect(PORT, 1, Reason::NewBySticky)?;
    (0..OFTEN).try_for_each(|number| exchange(story, PORT, 1, number))
}

fn elsewhere(story: &mut Story<'_>) -> Told {
    used(story)?;
    let world = story.world;
    let frame = world.client_sends(&request(story, PORT, 1));
    let strange = Frame { to: [2, 0, 0, 0, 0, 0x77], ..frame };
    for _ in 0..OFTEN {
        story.ends(0, &strange, Reason::NotOurs, PASS)?;
    }
    exchange(story, PORT, 0, 2)
}

fn last_hop(story: &mut Story<'_>) -> Told {
    used(story)?;
    let world = story.world;
    let last = Segment { hops: 1, ..request(story, PORT, 1) };
    for _ in 0..OFTEN {
        story.ends(0, &world.client_sends(&last), Reason::TtlExceeded, DROP)?;
    }
    exchange(story, PORT, 0, 2)
}

/// Puts an index in force.
fn index(story: &Story<'_>, entries: &[IndexEntry]) -> Told {
    story.bench.fill_index(entries).map_err(|error| format!("{error:#}"))
}

fn service_gone(story: &mut Story<'_>) -> Told {
    used(story)?;
    let world = story.world;
    index(story, &[])?;
    let frame = world.client_sends(&request(story, PORT, 1));
    let ended = (0..OFTEN).try_for_each(|_| story.ends(0, &frame, Reason::NotOurs, PASS));
    index(story, &world.index())?;
    ended?;
    exchange(story, PORT, 0, 2)
}

fn in_turns(story: &mut Story<'_>) -> Told {
    story.connect(PORT, 0, Reason::NewByScheduler)?;
    story.connect(PORT + 1, 1, Reason::NewBySticky)?;
    for number in 0..2 * OFTEN {
        exchange(story, PORT, 0, number)?;
        exchange(story, PORT + 1, 1, number)?;
    }
    Ok(())
}

fn not_ours(story: &mut Story<'_>) -> Told {
    let world = story.world;
    index(story, &[])?;
    let syn = world.client_sends(&world.segment(PORT, SYN, 0, 0));
    let ended = (0..OFTEN).try_for_each(|_| story.ends(0, &syn, Reason::NotOurs, PASS));
    index(story, &world.index())?;
    ended?;
    story.connect(PORT, 0, Reason::NewByScheduler)
}

fn not_configured(story: &mut Story<'_>) -> Told {
    used(story)?;
    let frame = story.world.client_sends(&request(story, PORT, 1));
    story.bench.unconfigure();
    let ended = (0..OFTEN).try_for_each(|_| story.ends(0, &frame, Reason::NotConfigured, PASS));
    story.bench.configure();
    ended?;
    exchange(story, PORT, 0, 2)
}
