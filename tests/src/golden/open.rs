//! SYNs: where they go, what they leave behind, and what they must not touch.

use std::net::Ipv4Addr;

use lb_common::{
    maglev::{self, SIZES},
    reason::Reason,
    tcp::TcpState,
};
use lb_userspace::dataplane::FlowTable;

use super::{
    Case, Given, Then,
    bench::{Bench, HALF_OPEN},
    case,
    connection::{CLIENT_ISN, Connection, SERVER_ISN, reset_answer, reset_by_acknowledgment},
    frame::{Frame, flag},
    hospital::{
        FIRST_PORT, HYPERSPACE, Host, MYCHART, OTHER_ROUTER, PORTS, SCHEDULES, SEED, SERVERS, SRV_1, SRV_2,
        SRV_3, address, span,
    },
    rows::{FlowRow, Key, PortOwner, PortRow, Row, Who},
};

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [
        first(),
        again(),
        nobody(),
        ports(),
        ports_of_closed_flows(),
        many_ports(),
        half_open_table(),
        open_flows(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What an accepted SYN leaves behind.
pub(super) fn half_open(connection: &Connection) -> [Then; 2] {
    [Then::Appears(Row::HalfOpen(connection.syn_sent())), Then::Appears(connection.port_of_half_open())]
}

fn new(case: Case, connection: &Connection) -> Case {
    case.sends(&connection.syn(), Reason::NewByScheduler, connection.forwarded(&connection.syn()))
        .leaves(half_open(connection))
}

fn first() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let same = Connection::to(SRV_1).on_port(40_001).snat(FIRST_PORT + 1);
    let both = Ipv4Addr::new(10, 85, 0, 200);
    let mut congestion = c.syn();
    (congestion.tcp.ece, congestion.tcp.cwr) = (true, true);
    let fast_open = c.syn().payload(b"hello, early");
    let strange = Connection::of(Ipv4Addr::new(255, 255, 255, 254), &HYPERSPACE);
    let elsewhere = elsewhere(SRV_1);
    vec![
        new(
            case("a SYN of an unknown client goes to Maglev's server: a half-open row, no record, no flow"),
            &c,
        ),
        [SRV_1, SRV_2, SRV_3]
            .iter()
            .fold(case("each client goes to the server that Maglev picks for it"), |case, server| {
                new(case, &Connection::to(server).of_client(3))
            }),
        new(
            new(case("a client's second connection goes to the same server, from the next SNAT port"), &c),
            &same,
        ),
        new(
            new(
                case("one client of two services is picked for in each of them"),
                &Connection::of(both, &HYPERSPACE),
            ),
            &Connection::of(both, &MYCHART),
        ),
        case("a SYN that offers congestion notification is a SYN")
            .sends(&congestion, Reason::NewByScheduler, c.forwarded(&congestion))
            .leaves(half_open(&c)),
        case("a SYN with data arrives with its data")
            .sends(&fast_open, Reason::NewByScheduler, c.forwarded(&fast_open))
            .leaves(half_open(&c)),
        new(case("an address with most bits set is a client as any other"), &strange),
        new(
            case("a server that has just gone is left out although the scheduler's table still names it")
                .given([Given::Server(SRV_1, super::answers::DOWN)]),
            &elsewhere,
        ),
        new(
            case("a scheduler's table without a server sends its clients elsewhere")
                .given([Given::Scheduled(&HYPERSPACE, vec![SRV_3])]),
            &Connection::to(SRV_1).at(SRV_3),
        ),
    ]
}

/// The first client's connection that Maglev sends to `server`, as it goes when that server takes nobody.
pub(super) fn elsewhere(server: &'static Host) -> Connection {
    let c = Connection::to(server);
    let places = SCHEDULES[0].places();
    let picked = (0..8).find_map(|attempt| {
        let place = maglev::place(SEED, address(c.client), SIZES[0], attempt);
        let id = places[place as usize];
        (id != server.id).then_some(id)
    });
    let other = SERVERS.iter().find(|host| Some(host.id) == picked);
    c.at(other.expect("eight attempts find another of three"))
}

fn again() -> Vec<Case> {
    let c = Connection::to(SRV_2);
    let over = c.over(OTHER_ROUTER);
    let renumbered = c.client_segment(flag::SYN, 77_777, 0).syn_options();
    let anew = FlowRow { client_sequence: CLIENT_ISN.wrapping_add(77_777), ..c.syn_sent() };
    let moved = elsewhere(SRV_2);
    let stolen = c.snat(FIRST_PORT + 1);
    vec![
        case("the same SYN again goes to the same server from the same port")
            .given(c.after_syn())
            .sends(&c.syn(), Reason::SynRepeated, c.forwarded(&c.syn()))
            .sends(&c.syn(), Reason::SynRepeated, c.forwarded(&c.syn())),
        case("the same SYN again does not undo the SYN-ACK").given(c.after_syn_ack()).sends(
            &c.syn(),
            Reason::SynRepeated,
            c.forwarded(&c.syn()),
        ),
        case("a SYN with another number begins the handshake anew, at the same server")
            .given(c.after_syn_ack())
            .sends(&renumbered, Reason::SynRepeated, c.forwarded(&renumbered))
            .leaves([Then::Becomes(Row::HalfOpen(anew))]),
        case("a SYN again while another core establishes the flow goes the same way, and leaves it alone")
            .given([
                Given::Row(Row::HalfOpen(FlowRow { state: TcpState::Promoting, ..c.syn_received() })),
                Given::Row(c.port_of_half_open()),
            ])
            .sends(&renumbered, Reason::SynRepeated, c.forwarded(&renumbered)),
        case("a SYN again over another router is answered over that one")
            .given(c.after_syn())
            .sends(&over.syn(), Reason::SynRepeated, over.forwarded(&over.syn()))
            .sends(&over.syn_ack(), Reason::Returned, over.returned(&over.syn_ack()))
            .leaves([Then::Becomes(Row::HalfOpen(over.syn_received()))]),
        case("a SYN again whose server has gone down goes to another")
            .given(c.after_syn())
            .given([Given::Server(SRV_2, super::answers::DOWN)])
            .sends(&c.syn(), Reason::NewByScheduler, moved.forwarded(&c.syn()))
            .leaves([
                Then::Becomes(Row::HalfOpen(moved.syn_sent())),
                Then::Appears(moved.port_of_half_open()),
                // The next SYN that finds no free port may take the one it had.
                Then::Becomes(Row::Port(c.cell(PortOwner::HalfOpen(Some(c.who()))))),
            ]),
        case("a SYN again whose port another took gets another port")
            .given([Given::Row(Row::HalfOpen(c.syn_sent()))])
            .given([Given::Row(Row::Port(c.cell(PortOwner::Flow(None))))])
            .sends(&c.syn(), Reason::NewByScheduler, stolen.forwarded(&c.syn()))
            .leaves([
                Then::Becomes(Row::HalfOpen(stolen.syn_sent())),
                Then::Appears(stolen.port_of_half_open()),
            ]),
    ]
}

fn nobody() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let all_down = || [SRV_1, SRV_2, SRV_3].map(|server| Given::Server(server, super::answers::DOWN));
    let refusal =
        |frame: &Frame, next| reset_answer(frame, 0, CLIENT_ISN.wrapping_add(next), flag::RST | flag::ACK);
    let data = c.syn().payload(b"thirty bytes of early data.....");
    vec![
        case("a SYN to a service without a usable server is refused, number by number as RFC 9293 says")
            .given(all_down())
            .sends(&c.syn(), Reason::ResetNoServer, refusal(&c.syn(), 1)),
        case("a SYN to a service without any server is refused")
            .given([Given::Scheduled(&HYPERSPACE, Vec::new())])
            .sends(&c.syn(), Reason::ResetNoServer, refusal(&c.syn(), 1)),
        case("a refused SYN with data has its data acknowledged, over the end of the numbers")
            .given(all_down())
            .sends(&data, Reason::ResetNoServer, refusal(&data, 32)),
        case("a SYN is dropped while its server's MAC address is not known")
            .given([Given::Server(SRV_1, super::answers::UNREACHABLE)])
            .drops(c.syn().build(), Reason::NoNeighbour),
    ]
}

fn cell(server: &Host, place: u16, owner: PortOwner, since: i64) -> Given {
    Given::Row(Row::Port(PortRow {
        endpoint: server.endpoint,
        source: 0,
        port: FIRST_PORT + place,
        owner,
        since,
    }))
}

/// All ports towards a server but those at some places belong to flows.
fn taken_but(server: &'static Host, places: &'static [u16]) -> impl Iterator<Item = Given> {
    let others = (0..PORTS).filter(|place| !places.contains(place));
    others.map(|place| cell(server, place, PortOwner::Flow(None), -9))
}

fn ports() -> Vec<Case> {
    let c = Connection::to(SRV_3);
    let at = |place: u16| c.snat(FIRST_PORT + place);
    let resting = -(span::QUARANTINE / 2);
    let rested = -(span::QUARANTINE + 100);
    let victim = c.of_client(5);
    let expired = Connection { port: 50_000, snat_port: FIRST_PORT + 5, ..victim };
    let old_flow = FlowRow { expires: rested, made_at: rested - 1_000, ..expired.flow() };
    vec![
        case("a SYN is dropped when flows have all ports")
            .given(taken_but(SRV_3, &[]))
            .drops(c.syn().build(), Reason::PortsExhausted),
        case("a port that rests is not handed out: the next one is")
            .given([cell(SRV_3, 0, PortOwner::Nobody, resting), cell(SRV_3, 1, PortOwner::Nobody, -1)])
            .sends(&c.syn(), Reason::NewByScheduler, at(2).forwarded(&c.syn()))
            .leaves(half_open(&at(2))),
        case("a port that rests is handed out where no other is left")
            .given(taken_but(SRV_3, &[7]))
            .given([cell(SRV_3, 7, PortOwner::Nobody, resting)])
            .sends(&c.syn(), Reason::NewByScheduler, at(7).forwarded(&c.syn()))
            .leaves([
                Then::Appears(Row::HalfOpen(at(7).syn_sent())),
                Then::Becomes(at(7).port_of_half_open()),
            ]),
        case("a SYN is dropped rather than given a port that has hardly rested")
            .given(taken_but(SRV_3, &[7]))
            .given([cell(SRV_3, 7, PortOwner::Nobody, -span::LEAST_REST / 2)])
            .drops(c.syn().build(), Reason::PortsExhausted),
        case("a port that has rested is handed out again")
            .given(taken_but(SRV_3, &[7]))
            .given([cell(SRV_3, 7, PortOwner::Nobody, rested)])
            .sends(&c.syn(), Reason::NewByScheduler, at(7).forwarded(&c.syn()))
            .leaves([
                Then::Appears(Row::HalfOpen(at(7).syn_sent())),
                Then::Becomes(at(7).port_of_half_open()),
            ]),
        case("ports are handed out in turn, over the end of the range")
            .given([Given::Cursor(SRV_3.endpoint, u64::from(PORTS) - 1)])
            .sends(&c.syn(), Reason::NewByScheduler, at(PORTS - 1).forwarded(&c.syn()))
            .sends(
                &c.on_port(40_001).syn(),
                Reason::NewByScheduler,
                c.on_port(40_001).forwarded(&c.on_port(40_001).syn()),
            )
            .leaves(half_open(&at(PORTS - 1)))
            .leaves(half_open(&c.on_port(40_001))),
        case("the ports towards one server are not those towards another")
            .given(taken_but(SRV_3, &[]))
            .sends(
                &Connection::to(SRV_1).syn(),
                Reason::NewByScheduler,
                Connection::to(SRV_1).forwarded(&Connection::to(SRV_1).syn()),
            )
            .leaves(half_open(&Connection::to(SRV_1))),
        case("the last port of a half-open flow goes to the next SYN, and that flow's ACK is answered with RST")
            .given(victim.after_syn_ack())
            .given(taken_but(SRV_3, &[0]))
            .sends(&c.syn(), Reason::NewByScheduler, c.forwarded(&c.syn()))
            .sends(
                &victim.ack(),
                Reason::ResetNoFlow,
                reset_answer(&victim.ack(), SERVER_ISN.wrapping_add(1), 0, flag::RST),
            )
            .sends(&c.syn_ack(), Reason::Returned, c.returned(&c.syn_ack()))
            .leaves([
                Then::Appears(Row::HalfOpen(c.syn_received())),
                Then::Becomes(c.port_of_half_open()),
            ]),
        case("the port of a flow that expired long ago is taken back when a SYN wants one")
            .given([
                Given::Row(Row::Sticky(expired.sticky(1))),
                Given::Row(Row::Flow(old_flow)),
                Given::Row(expired.port_of_flow()),
            ])
            .given(taken_but(SRV_3, &[5]))
            .sends(&c.syn(), Reason::NewByScheduler, at(5).forwarded(&c.syn()))
            .leaves([
                Then::Goes(Key::Flow(expired.who())),
                Then::Becomes(Row::Sticky(expired.sticky(0))),
                Then::Appears(Row::HalfOpen(at(5).syn_sent())),
                Then::Becomes(at(5).port_of_half_open()),
            ]),
    ]
}

/// Of flows that are closed and still in the table.
fn ports_of_closed_flows() -> Vec<Case> {
    let c = Connection::to(SRV_3);
    let closed = Connection { port: 50_000, snat_port: FIRST_PORT + 5, ..c.of_client(5) };
    let alone = |name, state, ago: i64| {
        case(name).given(closed.in_state(state, span::CLOSED - ago)).given(taken_but(SRV_3, &[5]))
    };
    let long_ago = 2 * span::LEAST_REST;
    let silent = FlowRow { expires: span::IDLE - span::SPARED - 100, ..closed.flow() };
    vec![
        alone(
            "the port of a flow that both sides have closed is handed out where no other is left",
            TcpState::TimeWait,
            long_ago,
        )
        .sends(&c.syn(), Reason::NewByScheduler, c.snat(closed.snat_port).forwarded(&c.syn()))
        .leaves([
            Then::Goes(Key::Flow(closed.who())),
            Then::Appears(Row::HalfOpen(c.snat(closed.snat_port).syn_sent())),
            Then::Becomes(c.snat(closed.snat_port).port_of_half_open()),
        ]),
        alone(
            "a SYN is dropped rather than given the port of a flow that was closed just now",
            TcpState::TimeWait,
            1,
        )
        .drops(c.syn().build(), Reason::PortsExhausted),
        alone(
            "a SYN is dropped rather than given the port of a flow that an RST closed",
            TcpState::ClientReset,
            long_ago,
        )
        .drops(c.syn().build(), Reason::PortsExhausted),
        case("where no port is left an open flow that has been silent for very long makes way, for the SYN that is sent again")
            .given([Given::Row(Row::Sticky(closed.sticky(1))), Given::Row(Row::Flow(silent))])
            .given([Given::Row(closed.port_of_flow())])
            .given(taken_but(SRV_3, &[5]))
            .drops(c.syn().build(), Reason::PortsExhausted)
            .leaves([
                Then::Goes(Key::Flow(closed.who())),
                Then::Becomes(Row::Sticky(closed.sticky(0))),
                Then::Becomes(Row::Port(closed.cell(PortOwner::Nobody))),
            ]),
        case("a rested port of the other source address is handed out rather than one that rests")
            .given([Given::Sources(2)])
            .given([0, 1].into_iter().flat_map(|source| {
                (0..PORTS).filter(move |place| (source, *place) != (1, 9)).map(move |place| {
                    let port = FIRST_PORT + place;
                    let (owner, since) = (PortOwner::Nobody, -span::QUARANTINE / 2);
                    Given::Row(Row::Port(PortRow { endpoint: SRV_3.endpoint, source, port, owner, since }))
                })
            }))
            .sends(&c.syn(), Reason::NewByScheduler, c.source(1).snat(FIRST_PORT + 9).forwarded(&c.syn()))
            .leaves([
                Then::Appears(Row::HalfOpen(c.source(1).snat(FIRST_PORT + 9).syn_sent())),
                Then::Appears(c.source(1).snat(FIRST_PORT + 9).port_of_half_open()),
            ]),
    ]
}

/// More ports than are looked at in a row, and more than one source address.
fn many_ports() -> Vec<Case> {
    let c = Connection::to(SRV_3);
    let taken = |source: u8, places: std::ops::Range<u16>| {
        places.map(move |place| {
            let port = FIRST_PORT + place;
            let owner = PortOwner::Flow(None);
            Given::Row(Row::Port(PortRow { endpoint: SRV_3.endpoint, source, port, owner, since: -9 }))
        })
    };
    let from = |source: u8| c.source(source);
    let at = |place: u16| c.snat(FIRST_PORT + place);
    let all_of = |source: u8, name| {
        let other = from(1 - source);
        let stray = other.source(source).response();
        case(name)
            .given([Given::Sources(2)])
            .given(taken(source, 0..PORTS))
            .sends(&c.syn(), Reason::NewByScheduler, other.forwarded(&c.syn()))
            .sends(&other.syn_ack(), Reason::Returned, other.returned(&other.syn_ack()))
            .sends(&other.ack(), Reason::Established, other.forwarded(&other.ack()))
            .sends(&other.response(), Reason::Returned, other.returned(&other.response()))
            .sends(&stray, Reason::ResetNoReturnFlow, reset_by_acknowledgment(&stray))
            .leaves([
                Then::Appears(Row::Flow(other.flow())),
                Then::Appears(Row::Sticky(other.sticky(1))),
                Then::Appears(other.port_of_flow()),
            ])
    };
    vec![
        all_of(0, "when flows have all ports of the first source address, the second is used"),
        all_of(1, "when flows have all ports of the second source address, the first is used"),
        case("a SYN gets a port although flows have the next forty in a row")
            .given(taken(0, 0..40))
            .sends(&c.syn(), Reason::NewByScheduler, at(40).forwarded(&c.syn()))
            .leaves([
                Then::Appears(Row::HalfOpen(at(40).syn_sent())),
                Then::Appears(at(40).port_of_half_open()),
            ]),
        case("a SYN gets the one port that is left, wherever it is")
            .given([Given::Cursor(SRV_3.endpoint, 7)])
            .given(taken(0, 0..5))
            .given(taken(0, 6..PORTS))
            .sends(&c.syn(), Reason::NewByScheduler, at(5).forwarded(&c.syn()))
            .leaves([
                Then::Appears(Row::HalfOpen(at(5).syn_sent())),
                Then::Appears(at(5).port_of_half_open()),
            ]),
        case("a SYN is dropped when flows have all ports of both source addresses")
            .given([Given::Sources(2)])
            .given(taken(0, 0..PORTS))
            .given(taken(1, 0..PORTS))
            .drops(c.syn().build(), Reason::PortsExhausted),
    ]
}

/// Clients' ports whose half-open flows lie in the same slots as this one's.
fn neighbours(who: Who) -> impl Iterator<Item = Who> {
    let table = FlowTable::heap(HALF_OPEN as usize);
    let slots = move |who: Who| {
        let mut slots: Vec<_> = who.flow_slots(&Bench::key(), &table).collect();
        slots.sort_unstable();
        slots
    };
    let own = slots(who);
    (1..u16::MAX)
        .map(move |port| Who { port, ..who })
        .filter(move |other| *other != who && slots(*other) == own)
}

fn half_open_table() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let crowd: Vec<_> = neighbours(c.who())
        .take(8)
        .enumerate()
        .map(|(place, who)| {
            let expires = if place == 5 { 30 } else { span::SYN };
            let port = Connection { port: who.port, ..c }.snat(FIRST_PORT + 1);
            FlowRow { expires, ..port.syn_sent() }
        })
        .collect();
    let oldest = crowd[5].who;
    let over = crowd.iter().copied().map(Row::HalfOpen).map(Given::Row);
    vec![
        case("a SYN is dropped while all its half-open slots are being written")
            .given([Given::HalfOpenBusy(c.who())])
            .drops(c.syn().build(), Reason::HalfOpenBusy),
        new(
            case("a SYN whose half-open slots are all in use overwrites the one that expires first")
                .given(over)
                .leaves([Then::Goes(Key::HalfOpen(oldest))]),
            &c,
        ),
    ]
}

fn open_flows() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let elsewhere = c.over(OTHER_ROUTER).client_segment(flag::SYN, 0x4000_0000, 0).syn_options();
    let noted =
        FlowRow { client_sequence: CLIENT_ISN.wrapping_add(0x4000_0000), hop: OTHER_ROUTER, ..c.syn_sent() };
    let (begun, answered) = (0x4000_0000, 0x2000_0000);
    let over_there = c.over(OTHER_ROUTER);
    let guess = over_there.client_segment(flag::ACK, begun + 1, answered + 1);
    let answer = c.server_segment(flag::SYN | flag::ACK, answered, begun + 1).syn_options();
    let ack = over_there.client_segment(flag::ACK, begun + 1, answered + 1);
    let fin = over_there.client_segment(flag::FIN | flag::ACK, begun + 1, answered + 1);
    let last = over_there.server_segment(flag::FIN | flag::ACK, answered + 1, begun + 2);
    let over = FlowRow {
        client_sequence: CLIENT_ISN.wrapping_add(begun + 1),
        server_sequence: SERVER_ISN.wrapping_add(answered),
        state: TcpState::TimeWait,
        expires: span::CLOSED,
        ..over_there.flow()
    };
    let expired = FlowRow { expires: -1, ..c.flow() };
    let reused = c.snat(FIRST_PORT + 1);
    vec![
        case("a SYN on an open flow goes to that flow's server, which challenges it")
            .given(c.established())
            .sends(&c.syn(), Reason::Forwarded, c.forwarded(&c.syn()))
            .sends(&c.syn(), Reason::Forwarded, c.forwarded(&c.syn()))
            .leaves([Then::Appears(Row::HalfOpen(c.syn_sent()))]),
        case("a forged SYN on an open flow changes nothing that lasts, and its data goes on in both directions")
            .given(c.established())
            .sends(&elsewhere, Reason::Forwarded, c.forwarded(&elsewhere))
            .sends(&c.request(), Reason::Forwarded, c.forwarded(&c.request()))
            .sends(&c.response(), Reason::Returned, c.returned(&c.response()))
            .leaves([Then::Appears(Row::HalfOpen(noted))]),
        case("a forged SYN on an open flow, and a forged acknowledgement of an answer that the server has not given, change nothing")
            .given(c.established())
            .sends(&elsewhere, Reason::Forwarded, c.forwarded(&elsewhere))
            .sends(&guess, Reason::Forwarded, c.forwarded(&guess))
            .leaves([Then::Appears(Row::HalfOpen(noted))]),
        case("an open flow whose server has forgotten it is the new connection's, from the acknowledgement on, and ends with it")
            .given(c.established())
            .sends(&elsewhere, Reason::Forwarded, c.forwarded(&elsewhere))
            .sends(&answer, Reason::Returned, c.returned(&answer))
            .sends(&ack, Reason::Established, c.forwarded(&ack))
            .sends(&fin, Reason::Forwarded, c.forwarded(&fin))
            .sends(&last, Reason::Returned, over_there.returned(&last))
            .leaves([Then::Becomes(Row::Flow(over)), Then::Becomes(Row::Sticky(c.sticky(0)))]),
        case("a server's answer to a SYN that no client has sent leaves an open flow as it is")
            .given(c.established())
            .sends(&answer, Reason::Returned, c.returned(&answer))
            .sends(&ack, Reason::Forwarded, c.forwarded(&ack)),
        case("a SYN on an expired flow opens another, and leaves the old row for the ACK to replace")
            .given([
                Given::Row(Row::Sticky(c.sticky(1))),
                Given::Row(Row::Flow(expired)),
                Given::Row(c.port_of_flow()),
            ])
            .sends(&c.syn(), Reason::NewBySticky, reused.forwarded(&c.syn()))
            .leaves(half_open(&reused)),
        case("a SYN on a flow in TIME-WAIT opens another beside it")
            .given(c.in_state(TcpState::TimeWait, span::CLOSED))
            .sends(&c.syn(), Reason::NewBySticky, reused.forwarded(&c.syn()))
            .leaves(half_open(&reused)),
    ]
}
