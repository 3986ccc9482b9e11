//! Sticky records: whom they send where, when they move, and when they end.

use lb_common::reason::Reason;

use super::{
    Case, Given, Then,
    answers::{DOWN, DRAINING, HALTED, UNREACHABLE},
    case,
    connection::Connection,
    hospital::{HYPERSPACE, MYCHART, SRV_1, SRV_2, SRV_3, span},
    rows::{Key, Row, StickyRow, Who},
};

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [known(), moved(), expired()].into_iter().flatten().collect()
}

fn half_open(connection: &Connection) -> [Then; 2] {
    [Then::Appears(Row::HalfOpen(connection.syn_sent())), Then::Appears(connection.port_of_half_open())]
}

fn record(connection: &Connection, flows: u32) -> Given {
    Given::Row(Row::Sticky(connection.sticky(flows)))
}

fn opens(case: Case, connection: &Connection, reason: Reason) -> Case {
    let syn = connection.syn();
    case.sends(&syn, reason, connection.forwarded(&syn)).leaves(half_open(connection))
}

/// Clients that Maglev sends to the first server, with records of the second.
fn known() -> Vec<Case> {
    let c = Connection::to(SRV_1).at(SRV_2);
    let second = c.on_port(40_001);
    let first = Connection::to(SRV_1);
    let unknown = first.of_client(1);
    let other_service = Who { service: MYCHART.id, ..c.who().sticky() };
    vec![
        opens(
            case("a known client goes to its record's server, although Maglev says another")
                .given([record(&c, 0)]),
            &c,
            Reason::NewBySticky,
        ),
        opens(
            case("a known client's next connection joins those that it has")
                .given(c.snat(c.snat_port + 1).established()),
            &second,
            Reason::NewBySticky,
        ),
        opens(
            case("a draining server keeps its known clients")
                .given([record(&c, 0), Given::Server(SRV_2, DRAINING)]),
            &c,
            Reason::NewBySticky,
        ),
        case("a draining server, or one of weight zero, gets no unknown client")
            .given([
                Given::Server(SRV_1, DRAINING),
                Given::Scheduled(&HYPERSPACE, vec![SRV_2]),
                record(&first, 0),
            ])
            .sends(&unknown.syn(), Reason::NewByScheduler, unknown.at(SRV_2).forwarded(&unknown.syn()))
            .sends(&first.syn(), Reason::NewBySticky, first.forwarded(&first.syn()))
            .leaves(half_open(&unknown.at(SRV_2)))
            .leaves(half_open(&first)),
        case("a known client's SYN is dropped while its server's MAC address is not known")
            .given([record(&c, 0), Given::Server(SRV_2, UNREACHABLE)])
            .drops(c.syn().build(), Reason::NoNeighbour),
        opens(
            case("a record of one service says nothing about another").given([Given::Row(Row::Sticky(
                StickyRow { who: other_service, server: 15, ..c.sticky(0) },
            ))]),
            &first,
            Reason::NewByScheduler,
        ),
        opens(
            case("a service without persistence ignores a record that it once made")
                .given([record(&c, 0), Given::Times(&HYPERSPACE, 0, span::IDLE)]),
            &first,
            Reason::NewByScheduler,
        ),
        opens(
            case("a record of another service's server is not followed")
                .given([Given::Row(Row::Sticky(StickyRow { server: 14, ..c.sticky(0) }))]),
            &first,
            Reason::NewByScheduler,
        ),
    ]
}

fn moved() -> Vec<Case> {
    let home = Connection::to(SRV_1);
    let away = home.at(SRV_2);
    let completes = |case: Case, old: StickyRow| {
        case.given([Given::Row(Row::Sticky(old))])
            .given(home.after_syn_ack())
            .sends(&home.ack(), Reason::Established, home.forwarded(&home.ack()))
            .leaves([
                Then::Goes(Key::HalfOpen(home.who())),
                Then::Appears(Row::Flow(home.flow())),
                Then::Becomes(home.port_of_flow()),
            ])
    };
    let old = StickyRow { made_at: -30_000, expires: 900, ..away.sticky(0) };
    vec![
        opens(
            case("a client whose server is down is picked another by Maglev; its record stays until it is there")
                .given([record(&away, 0), Given::Server(SRV_2, DOWN)]),
            &home,
            Reason::NewByScheduler,
        ),
        opens(
            case("a client whose server is halted is picked another by Maglev")
                .given([record(&away, 0), Given::Server(SRV_2, HALTED)]),
            &home,
            Reason::NewByScheduler,
        ),
        opens(
            case("a client whose server was removed is picked another by Maglev")
                .given([record(&away, 0), Given::Server(SRV_2, 0)]),
            &home,
            Reason::NewByScheduler,
        ),
        completes(
            case("a record whose server is down moves to where its client is established, and keeps its age")
                .given([Given::Server(SRV_2, DOWN)]),
            old,
        )
        .leaves([Then::Becomes(Row::Sticky(StickyRow {
            server: SRV_1.id,
            flows: 1,
            expires: span::PERSISTENCE,
            ..old
        }))]),
        completes(
            case("a record whose server is usable again by then stays there, and the flow is counted in it"),
            old,
        )
        .leaves([Then::Becomes(Row::Sticky(StickyRow { flows: 1, expires: span::PERSISTENCE, ..old }))]),
        opens(
            case("a server that comes back does not pull its clients away from where they are")
                .given([record(&away, 0), Given::Server(SRV_1, DOWN)])
                .meanwhile([Given::Server(SRV_1, super::bench::USABLE)]),
            &away,
            Reason::NewBySticky,
        ),
    ]
}

fn expired() -> Vec<Case> {
    let home = Connection::to(SRV_1);
    let away = home.at(SRV_3);
    let row = |flows, expires| StickyRow { expires, made_at: -60_000, ..away.sticky(flows) };
    let fresh = [
        Then::Goes(Key::HalfOpen(home.who())),
        Then::Appears(Row::Flow(home.flow())),
        Then::Becomes(home.port_of_flow()),
        Then::Becomes(Row::Sticky(home.sticky(1))),
    ];
    vec![
        opens(
            case("an expired record sends its client nowhere: Maglev decides again")
                .given([Given::Row(Row::Sticky(row(0, -1)))]),
            &home,
            Reason::NewByScheduler,
        ),
        case("an expired record is made anew when its client is established")
            .given([Given::Row(Row::Sticky(row(0, -1)))])
            .given(home.after_syn_ack())
            .sends(&home.ack(), Reason::Established, home.forwarded(&home.ack()))
            .leaves(fresh),
        opens(
            case("a record with an open flow never expires, however long ago its deadline was")
                .given([Given::Row(Row::Sticky(row(1, -50_000)))]),
            &away,
            Reason::NewBySticky,
        ),
        case("a record is renewed by a further connection")
            .given([Given::Row(Row::Sticky(StickyRow { expires: 50, ..home.sticky(0) }))])
            .given(home.after_syn_ack())
            .sends(&home.ack(), Reason::Established, home.forwarded(&home.ack()))
            .leaves([
                Then::Goes(Key::HalfOpen(home.who())),
                Then::Appears(Row::Flow(home.flow())),
                Then::Becomes(home.port_of_flow()),
                Then::Becomes(Row::Sticky(home.sticky(1))),
            ]),
    ]
}
