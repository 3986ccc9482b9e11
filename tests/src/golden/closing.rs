//! How flows end, and how they must not.

use lb_common::{reason::Reason, tcp::TcpState};

use super::{
    Case, Given, Then, case,
    connection::{Connection, SERVER_ISN, reset_answer, reset_by_acknowledgment},
    frame::{Frame, flag},
    hospital::{FIRST_PORT, OTHER_ROUTER, SRV_1, span},
    rows::{FlowRow, Key, PortOwner, PortRow, Row},
};

const FIN: u8 = flag::FIN | flag::ACK;
/// A distance out of the window of half a mebibyte.
const FAR: u32 = 0x2000_0000;

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [fins(), resets(), forgeries(), reuse(), expiry(), hops()].into_iter().flatten().collect()
}

fn connection() -> Connection {
    Connection::to(SRV_1)
}

fn from_client(case: Case, frame: &Frame) -> Case {
    case.sends(frame, Reason::Forwarded, connection().forwarded(frame))
}

fn from_server(case: Case, frame: &Frame) -> Case {
    case.sends(frame, Reason::Returned, connection().returned(frame))
}

/// The flow in this state, and its record with this many flows.
fn ends(state: TcpState, expires: i64, flows: u32) -> Vec<Then> {
    let c = connection();
    let mut changes = vec![Then::Becomes(Row::Flow(FlowRow { state, expires, ..c.flow() }))];
    if flows == 0 {
        changes.push(Then::Becomes(Row::Sticky(c.sticky(0))));
    }
    changes
}

fn fins() -> Vec<Case> {
    let c = connection();
    let open = |name| case(name).given(c.established());
    let client_fin = c.client_segment(FIN, 1, 1);
    let server_fin = c.server_segment(FIN, 1, 2);
    let aged = FlowRow { state: TcpState::ClientFin, expires: 100, ..c.flow() };
    let half_closed = [Given::Row(Row::Flow(aged))];
    vec![
        from_client(open("a client's FIN half-closes its flow, which keeps its record"), &client_fin)
            .leaves(ends(TcpState::ClientFin, span::HALF_CLOSED, 1)),
        from_server(open("a server's FIN half-closes its flow, which keeps its record"), &server_fin)
            .leaves(ends(TcpState::ServerFin, span::HALF_CLOSED, 1)),
        from_server(
            from_client(
                open("the FINs of both, the client's first, close the flow: the record's timeout begins"),
                &client_fin,
            ),
            &server_fin,
        )
        .leaves(ends(TcpState::TimeWait, span::CLOSED, 0)),
        from_client(
            from_server(
                open("the FINs of both, the server's first, close the flow: the record's timeout begins"),
                &server_fin,
            ),
            &client_fin,
        )
        .leaves(ends(TcpState::TimeWait, span::CLOSED, 0)),
        from_client(from_client(open("a FIN sent again is no second FIN"), &client_fin), &client_fin)
            .leaves(ends(TcpState::ClientFin, span::HALF_CLOSED, 1)),
        from_server(
            open("data flows on through a half-closed flow, and keeps it").given(half_closed),
            &c.response(),
        )
        .leaves(ends(TcpState::ClientFin, span::HALF_CLOSED, 1)),
        from_server(
            from_client(
                case("late segments of a closed flow still arrive, and do not keep it")
                    .given(c.in_state(TcpState::TimeWait, 200)),
                &c.client_segment(flag::ACK, 2, 2),
            ),
            &server_fin,
        ),
    ]
}

fn resets() -> Vec<Case> {
    let c = connection();
    let open = |name| case(name).given(c.established());
    let client = c.client_segment(flag::RST | flag::ACK, 1, 1);
    let server = c.server_segment(flag::RST, 1, 0);
    vec![
        from_client(open("a client's RST closes its flow"), &client).leaves(ends(
            TcpState::ClientReset,
            span::CLOSED,
            0,
        )),
        from_server(open("a server's RST closes its flow"), &server).leaves(ends(
            TcpState::ServerReset,
            span::CLOSED,
            0,
        )),
        from_client(
            from_client(
                open("a client that goes on after an RST in its name has its flow and record back"),
                &client,
            ),
            &c.request(),
        ),
        from_server(
            from_server(
                open("a server that goes on after an RST in its name has its flow and record back"),
                &server,
            ),
            &c.response(),
        ),
        from_server(
            from_client(open("the other end's late segments do not open a reset flow again"), &client),
            &c.response(),
        )
        .leaves(ends(TcpState::ClientReset, span::CLOSED, 0)),
        from_client(
            case("an RST in TIME-WAIT changes nothing").given(c.in_state(TcpState::TimeWait, span::CLOSED)),
            &client,
        ),
    ]
}

fn forgeries() -> Vec<Case> {
    let c = connection();
    let open = |name| case(name).given(c.established());
    vec![
        from_client(
            open("a client's RST out of the window changes nothing"),
            &c.client_segment(flag::RST, FAR, 0),
        ),
        from_server(
            open("a server's RST out of the window changes nothing"),
            &c.server_segment(flag::RST, FAR, 0),
        ),
        from_client(open("a client's FIN out of the window changes nothing"), &c.client_segment(FIN, FAR, 1)),
        from_server(open("a server's FIN out of the window changes nothing"), &c.server_segment(FIN, FAR, 1)),
        from_client(
            from_client(
                open("the window ends half a mebibyte ahead of the last number"),
                &c.client_segment(flag::RST, 1 + (1 << 19) + 1, 0),
            ),
            &c.client_segment(flag::RST, 0u32.wrapping_sub(1 << 19), 0),
        ),
    ]
}

/// The client uses its port again.
fn reuse() -> Vec<Case> {
    let c = connection();
    let anew = c.snat(FIRST_PORT + 1);
    let replaced = |name, given: Vec<Given>, closed_at: i64| {
        case(name)
            .given(given)
            .sends(&c.syn(), Reason::NewBySticky, anew.forwarded(&c.syn()))
            .sends(&anew.syn_ack(), Reason::Returned, anew.returned(&anew.syn_ack()))
            .sends(&anew.ack(), Reason::Established, anew.forwarded(&anew.ack()))
            .sends(&anew.request(), Reason::Forwarded, anew.forwarded(&anew.request()))
            .leaves([
                Then::Becomes(Row::Flow(anew.flow())),
                Then::Appears(anew.port_of_flow()),
                Then::Becomes(Row::Port(PortRow { since: closed_at, ..c.cell(PortOwner::Nobody) })),
            ])
    };
    let old = FlowRow { state: TcpState::TimeWait, made_at: -5_000, expires: 300, ..c.flow() };
    let closed =
        vec![Given::Row(Row::Sticky(c.sticky(0))), Given::Row(Row::Flow(old)), Given::Row(c.port_of_flow())];
    let reset = c.in_state(TcpState::ServerReset, span::CLOSED);
    vec![
        replaced(
            "a SYN on a flow in TIME-WAIT becomes a new flow, whose ACK takes the old one's place; its port has rested since that was closed",
            closed,
            300 - span::CLOSED,
        )
        .leaves([Then::Becomes(Row::Sticky(c.sticky(1)))]),
        replaced("a SYN on a flow that was reset becomes a new flow", reset, 0)
            .leaves([Then::Becomes(Row::Sticky(c.sticky(1)))]),
    ]
}

fn expiry() -> Vec<Case> {
    let c = connection();
    let anew = c.snat(FIRST_PORT + 1);
    let row = FlowRow { expires: -700, made_at: -60_000, ..c.flow() };
    let expired = || {
        vec![Given::Row(Row::Sticky(c.sticky(1))), Given::Row(Row::Flow(row)), Given::Row(c.port_of_flow())]
    };
    let reset = reset_answer(&c.request(), SERVER_ISN.wrapping_add(1), 0, flag::RST);
    vec![
        case("a client's segment of an expired flow is answered with RST")
            .given(expired())
            .sends(&c.request(), Reason::ResetNoFlow, reset),
        case("a server's segment of an expired flow is answered with RST")
            .given(expired())
            .sends(&c.response(), Reason::ResetNoReturnFlow, reset_by_acknowledgment(&c.response())),
        case("an expired flow's row is reused by the same client's next connection, its port rests since the expiry")
            .given(expired())
            .given(anew.after_syn_ack())
            .sends(&anew.ack(), Reason::Established, anew.forwarded(&anew.ack()))
            .leaves([
                Then::Goes(Key::HalfOpen(c.who())),
                Then::Becomes(Row::Flow(anew.flow())),
                Then::Becomes(anew.port_of_flow()),
                Then::Becomes(Row::Port(PortRow { since: -700, ..c.cell(PortOwner::Nobody) })),
            ]),
    ]
}

/// The way back to the client.
fn hops() -> Vec<Case> {
    let c = connection();
    let over = c.over(OTHER_ROUTER);
    let near = over.request();
    let forged = over.client_segment(flag::ACK, FAR, 1);
    vec![
        case("a client whose packets come over another router is answered over that one")
            .given(c.established())
            .sends(&near, Reason::Forwarded, over.forwarded(&near))
            .sends(&over.response(), Reason::Returned, over.returned(&over.response()))
            .leaves([Then::Becomes(Row::Flow(over.flow()))]),
        case("a forged segment out of the window does not turn the way back")
            .given(c.established())
            .sends(&forged, Reason::Forwarded, over.forwarded(&forged))
            .sends(&c.response(), Reason::Returned, c.returned(&c.response())),
        case("the way back turns also in TIME-WAIT")
            .given(c.in_state(TcpState::TimeWait, span::CLOSED))
            .sends(&near, Reason::Forwarded, over.forwarded(&near))
            .leaves([Then::Becomes(Row::Flow(FlowRow {
                state: TcpState::TimeWait,
                expires: span::CLOSED,
                ..over.flow()
            }))]),
    ]
}
