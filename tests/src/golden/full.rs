//! Tables without room: everybody is served, and nobody who is there is put out.

use lb_common::{reason::Reason, tcp::TcpState};

use super::{
    Case, Given, Then, case,
    connection::Connection,
    frame::flag,
    handshake::establishes,
    hospital::{SRV_1, SRV_2, span},
    rows::{FlowRow, Full, Held, Key, PortOwner, Row, StickyRow},
};

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [flows(), closed_flows(), silent_flows(), stickies()].into_iter().flatten().collect()
}

/// The half-open row takes the flow's part; the record it made is not held.
fn overflow(c: &Connection) -> FlowRow {
    FlowRow {
        client_sequence: c.flow().client_sequence,
        state: TcpState::Established,
        held: Held::Record,
        expires: span::IDLE,
        ..c.syn_received()
    }
}

fn flows() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let open = Connection::to(SRV_2);
    let overflow = overflow(&c);
    let aged = FlowRow { expires: 3_000, ..overflow };
    let late_syn = c.client_segment(flag::ACK, 30, 1);
    let own = FlowRow { expires: -900, made_at: -5_000, ..c.snat(c.snat_port + 1).flow() };
    vec![
        case("a flow that finds the flow table full is forwarded, and stays half-open")
            .given([Given::Full(Full::Flows)])
            .given(c.after_syn_ack())
            .sends(&c.ack(), Reason::FlowTableFull, c.forwarded(&c.ack()))
            .leaves([Then::Becomes(Row::HalfOpen(overflow)), Then::Appears(Row::Sticky(c.sticky(0)))]),
        case("the next packets of a flow that found the table full are forwarded in both directions")
            .given([Given::Full(Full::Flows)])
            .given(c.after_syn_ack())
            .sends(&c.ack(), Reason::FlowTableFull, c.forwarded(&c.ack()))
            .sends(&c.request(), Reason::HandshakeForwarded, c.forwarded(&c.request()))
            .sends(&c.response(), Reason::Returned, c.returned(&c.response()))
            .sends(&late_syn, Reason::HandshakeForwarded, c.forwarded(&late_syn))
            .leaves([Then::Becomes(Row::HalfOpen(overflow)), Then::Appears(Row::Sticky(c.sticky(0)))]),
        case("the packets of a flow that found the table full keep it")
            .given([
                Given::Full(Full::Flows),
                Given::Row(Row::Sticky(c.sticky(0))),
                Given::Row(Row::HalfOpen(aged)),
                Given::Row(c.port_of_half_open()),
            ])
            .sends(&c.response(), Reason::Returned, c.returned(&c.response()))
            .leaves([Then::Becomes(Row::HalfOpen(overflow))]),
        case("a full flow table goes on serving the flows in it")
            .given(open.established())
            .given([Given::Full(Full::Flows)])
            .sends(&open.request(), Reason::Forwarded, open.forwarded(&open.request()))
            .sends(&open.response(), Reason::Returned, open.returned(&open.response())),
        case("an expired flow makes room in a full flow table")
            .given([
                Given::Row(Row::Sticky(c.sticky(1))),
                Given::Row(Row::Flow(own)),
                Given::Row(c.snat(c.snat_port + 1).port_of_flow()),
                Given::Full(Full::Flows),
            ])
            .given(c.after_syn_ack())
            .sends(&c.ack(), Reason::Established, c.forwarded(&c.ack()))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Becomes(Row::Flow(c.flow())),
                Then::Becomes(c.port_of_flow()),
                Then::Becomes(Row::Port(super::rows::PortRow {
                    since: -900,
                    ..c.snat(c.snat_port + 1).cell(PortOwner::Nobody)
                })),
            ]),
    ]
}

/// Another connection of the same client, whose flow lies where this one's may.
fn beside(c: &Connection) -> Connection {
    let mut others = (c.port + 1..).map(|port| c.on_port(port).snat(c.snat_port + 1));
    others.find(|other| other.who().first_slot() == c.who().first_slot()).expect("one of 256 buckets")
}

fn closed_flows() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let old = beside(&c);
    let full = |name, state| {
        case(name)
            .given(old.in_state(state, span::CLOSED))
            .given([Given::Full(Full::Flows)])
            .given(c.after_syn_ack())
    };
    vec![
        full("a flow that both sides have closed makes way in a full flow table", TcpState::TimeWait)
            .sends(&c.ack(), Reason::Established, c.forwarded(&c.ack()))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Goes(Key::Flow(old.who())),
                Then::Appears(Row::Flow(c.flow())),
                Then::Becomes(Row::Sticky(c.sticky(1))),
                Then::Becomes(c.port_of_flow()),
                Then::Becomes(Row::Port(old.cell(PortOwner::Nobody))),
            ]),
        full("a flow that an RST closed keeps its place in a full flow table", TcpState::ClientReset)
            .sends(&c.ack(), Reason::FlowTableFull, c.forwarded(&c.ack()))
            .leaves([Then::Becomes(Row::HalfOpen(overflow(&c))), Then::Becomes(Row::Sticky(c.sticky(0)))]),
    ]
}

fn silent_flows() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let old = beside(&c);
    let silent = |for_ticks: i64| {
        let row = FlowRow { expires: span::IDLE - for_ticks, ..old.flow() };
        [
            Given::Row(Row::Sticky(c.sticky(1))),
            Given::Row(Row::Flow(row)),
            Given::Row(old.port_of_flow()),
            Given::Full(Full::Flows),
        ]
    };
    vec![
        case("an open flow that has been silent for very long makes way in a full flow table")
            .given(silent(span::SPARED + 100))
            .given(c.after_syn_ack())
            .sends(&c.ack(), Reason::EstablishedDisplacing, c.forwarded(&c.ack()))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Goes(Key::Flow(old.who())),
                Then::Appears(Row::Flow(c.flow())),
                Then::Becomes(c.port_of_flow()),
                Then::Becomes(Row::Port(old.cell(PortOwner::Nobody))),
            ]),
        case("an open flow that has been silent for less keeps its place in a full flow table")
            .given(silent(span::SPARED - 100))
            .given(c.after_syn_ack())
            .sends(&c.ack(), Reason::FlowTableFull, c.forwarded(&c.ack()))
            .leaves([Then::Becomes(Row::HalfOpen(overflow(&c)))]),
    ]
}

fn stickies() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let known = c.at(SRV_2);
    let unrecorded = FlowRow { held: Held::None, ..c.flow() };
    let fin = [c.client_segment(flag::FIN | flag::ACK, 1, 1), c.server_segment(flag::FIN | flag::ACK, 1, 2)];
    let mine = StickyRow { expires: -1, made_at: -9_000, ..known.sticky(0) };
    vec![
        case("a client that finds the sticky table full is served by hash, and no record gives way")
            .given([Given::Full(Full::Sticky)])
            .given(c.after_syn_ack())
            .sends(&c.ack(), Reason::EstablishedUnrecorded, c.forwarded(&c.ack()))
            .sends(&c.request(), Reason::Forwarded, c.forwarded(&c.request()))
            .sends(&c.response(), Reason::Returned, c.returned(&c.response()))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Appears(Row::Flow(unrecorded)),
                Then::Becomes(c.port_of_flow()),
            ]),
        case("a flow without a record closes like any other")
            .given([Given::Row(Row::Flow(unrecorded)), Given::Row(c.port_of_flow())])
            .sends(&fin[0], Reason::Forwarded, c.forwarded(&fin[0]))
            .sends(&fin[1], Reason::Returned, c.returned(&fin[1]))
            .leaves([Then::Becomes(Row::Flow(FlowRow {
                state: TcpState::TimeWait,
                expires: span::CLOSED,
                ..unrecorded
            }))]),
        case("a known client of a full sticky table still goes to its record's server")
            .given([Given::Row(Row::Sticky(known.sticky(0))), Given::Full(Full::Sticky)])
            .sends(&known.syn(), Reason::NewBySticky, known.forwarded(&known.syn()))
            .leaves([
                Then::Appears(Row::HalfOpen(known.syn_sent())),
                Then::Appears(known.port_of_half_open()),
            ]),
        case("an expired record makes room in a full sticky table")
            .given([Given::Row(Row::Sticky(mine)), Given::Full(Full::Sticky)])
            .given(c.after_syn_ack())
            .sends(&c.ack(), Reason::Established, c.forwarded(&c.ack()))
            .leaves(establishes(&c).into_iter().filter(|then| !matches!(then, Then::Appears(Row::Sticky(_)))))
            .leaves([Then::Becomes(Row::Sticky(c.sticky(1)))]),
    ]
}
