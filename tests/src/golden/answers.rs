//! RSTs in the service's name: when, with which numbers, and how long the frame is.

use lb_common::{reason::Reason, server::ServerState, tcp::TcpState};

use super::{
    Case, Given, Then, case,
    connection::{Connection, reset_answer},
    frame::{BARE, Frame, flag},
    hospital::{FIRST_PORT, OTHER_ROUTER, SRV_1, SRV_2, span},
    rows::{FlowRow, PortOwner, Row, StickyRow},
};

/// A server that is down, with `on_down: reset`.
pub(super) const DOWN: u16 = ServerState::PRESENT | ServerState::REACHABLE | ServerState::RESETS;
/// A server that is halted.
pub(super) const HALTED: u16 = DOWN;
/// A server that is down, with `on_down: keep`.
pub(super) const DOWN_KEEPING: u16 = ServerState::PRESENT | ServerState::REACHABLE;
/// A server that is draining, or of weight zero.
pub(super) const DRAINING: u16 = DOWN_KEEPING | ServerState::TAKES_KNOWN;
/// A server whose MAC address is not known.
pub(super) const UNREACHABLE: u16 = ServerState::PRESENT | ServerState::TAKES_NEW | ServerState::TAKES_KNOWN;

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [no_flow(), server_gone(), server_elsewhere(), afterwards()].into_iter().flatten().collect()
}

/// The RST with the number that the segment acknowledged.
fn by_acknowledgment(frame: &Frame) -> Vec<u8> {
    reset_answer(frame, frame.tcp.acknowledgment_number, 0, flag::RST)
}

fn no_flow() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let over = c.over(OTHER_ROUTER);
    let refused = |name, frames: &[Frame]| {
        frames.iter().fold(case(name), |case, frame| {
            let answer = by_acknowledgment(frame);
            assert_eq!(answer.len(), BARE + 4 * frame.link.tags.len());
            case.sends(frame, Reason::ResetNoFlow, answer)
        })
    };
    let one = [(0x8100, 0x6055)];
    let two = [(0x88a8, 9), (0x8100, 85)];
    vec![
        refused(
            "a segment of no flow is answered with an RST of the number it acknowledged, cut to 54 bytes",
            &[c.ack(), c.request(), c.client_segment(flag::FIN | flag::ACK, 9, 9)],
        ),
        refused(
            "a SYN-ACK to a service is answered with RST",
            &[c.client_segment(flag::SYN | flag::ACK, 0, 7)],
        ),
        refused("an RST goes back to where the segment came from", &[over.request()]),
        refused(
            "an RST keeps the VLAN tags: 58 bytes with one",
            &[c.ack().tagged(&one), c.request().tagged(&one)],
        ),
        refused(
            "an RST keeps the VLAN tags: 62 bytes with two",
            &[c.ack().tagged(&two), c.request().tagged(&two)],
        ),
        refused(
            "an RST has no padding, whatever the segment had",
            &[
                c.client_segment(flag::ACK, 1, 1).trailer(&[0; 6]),
                c.client_segment(flag::ACK, 1, 1).trailer(&[7; 700]),
            ],
        ),
        refused("an RST to a segment of 54 bytes needs no cut", &[c.client_segment(flag::ACK, 1, 1)]),
        case("an RST of no flow is dropped: nobody answers an RST")
            .drops(c.client_segment(flag::RST, 1, 0).build(), Reason::StrayReset)
            .drops(c.client_segment(flag::RST | flag::ACK, 1, 1).build(), Reason::StrayReset),
    ]
}

fn server_gone() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let gone = |name| case_of(&c, name).given([Given::Server(SRV_1, DOWN)]);
    let request = c.request();
    let tagged = request.clone().tagged(&[(0x8100, 85)]);
    vec![
        gone("a segment to a server that is down is answered with RST, the flow is over, the record's timeout begins")
            .sends(&request, Reason::ResetServerGone, by_acknowledgment(&request))
            .leaves(closed(&c))
            .resets_of(SRV_1, 1),
        gone("every further segment is answered too, and counted once")
            .sends(&request, Reason::ResetServerGone, by_acknowledgment(&request))
            .sends(&c.ack(), Reason::ResetServerGone, by_acknowledgment(&c.ack()))
            .sends(&tagged, Reason::ResetServerGone, by_acknowledgment(&tagged))
            .leaves(closed(&c))
            .resets_of(SRV_1, 1),
        gone("a client's RST to a server that is down ends the flow, and is not answered")
            .drops(c.client_segment(flag::RST, 1, 0).build(), Reason::StrayReset)
            .leaves(closed(&c))
            .resets_of(SRV_1, 1),
        gone("what a server sends that is down passes to the stack")
            .passes(c.response().build(), Reason::NoReturnFlow),
    ]
}

/// What the end of the server makes of the flow.
fn closed(c: &Connection) -> [Then; 2] {
    let flow = FlowRow { state: TcpState::ServerReset, expires: span::CLOSED, ..c.flow() };
    [Then::Becomes(Row::Flow(flow)), Then::Becomes(Row::Sticky(c.sticky(0)))]
}

fn case_of(c: &Connection, name: &'static str) -> Case {
    case(name).given(c.established())
}

fn server_elsewhere() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let request = c.request();
    let foreign = FlowRow { endpoint: 7, ..c.flow() };
    let cell = Row::Port(super::rows::PortRow { endpoint: 7, ..c.cell(PortOwner::Flow(Some(c.who()))) });
    vec![
        case_of(&c, "a segment to a server that was removed is answered with RST")
            .given([Given::Server(SRV_1, 0)])
            .sends(&request, Reason::ResetServerGone, by_acknowledgment(&request))
            .leaves(closed(&c))
            .resets_of(SRV_1, 1),
        case("a segment to a server whose id was given to another is answered with RST")
            .given([Given::Row(Row::Sticky(c.sticky(1))), Given::Row(Row::Flow(foreign)), Given::Row(cell)])
            .sends(&request, Reason::ResetServerGone, by_acknowledgment(&request))
            .leaves([
                Then::Becomes(Row::Flow(FlowRow {
                    state: TcpState::ServerReset,
                    expires: span::CLOSED,
                    ..foreign
                })),
                Then::Becomes(Row::Sticky(c.sticky(0))),
            ])
            .resets_of(SRV_1, 1),
        case_of(&c, "a server that is down but keeps its flows is still forwarded to")
            .given([Given::Server(SRV_1, DOWN_KEEPING)])
            .sends(&request, Reason::Forwarded, c.forwarded(&request))
            .sends(&c.response(), Reason::Returned, c.returned(&c.response())),
        case_of(&c, "a draining server's open flows go on")
            .given([Given::Server(SRV_1, DRAINING)])
            .sends(&request, Reason::Forwarded, c.forwarded(&request))
            .sends(&c.response(), Reason::Returned, c.returned(&c.response())),
        case_of(
            &c,
            "a segment to a server whose MAC address is not known is dropped; what comes from it is returned",
        )
        .given([Given::Server(SRV_1, UNREACHABLE)])
        .drops(request.build(), Reason::NoNeighbour)
        .sends(&c.response(), Reason::Returned, c.returned(&c.response())),
    ]
}

/// The client connects again after its server went down.
fn afterwards() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    let other = Connection { port: c.port, ..super::open::elsewhere(SRV_1) };
    let moved = StickyRow { server: other.server.id, ..c.sticky(1) };
    let next = c.on_port(40_001).snat(FIRST_PORT + 1);
    let survivor = Connection::to(SRV_2);
    vec![
        case_of(
            &c,
            "the same port connects elsewhere when its server is down: the old flow ends, the record moves",
        )
        .given([Given::Server(SRV_1, DOWN)])
        .sends(&c.syn(), Reason::NewByScheduler, other.forwarded(&c.syn()))
        .sends(&other.syn_ack(), Reason::Returned, other.returned(&other.syn_ack()))
        .sends(&other.ack(), Reason::Established, other.forwarded(&other.ack()))
        .leaves([
            Then::Becomes(Row::Flow(other.flow())),
            Then::Appears(other.port_of_flow()),
            Then::Becomes(Row::Port(c.cell(PortOwner::Nobody))),
            Then::Becomes(Row::Sticky(moved)),
        ]),
        case_of(&c, "one client's two flows to a server that went down are reset one by one")
            .given([Given::Row(Row::Sticky(c.sticky(2)))])
            .given([Given::Row(Row::Flow(next.flow())), Given::Row(next.port_of_flow())])
            .given([Given::Server(SRV_1, DOWN)])
            .sends(&next.request(), Reason::ResetServerGone, by_acknowledgment(&next.request()))
            .leaves([
                Then::Becomes(Row::Flow(FlowRow {
                    state: TcpState::ServerReset,
                    expires: span::CLOSED,
                    ..next.flow()
                })),
                Then::Becomes(Row::Sticky(c.sticky(1))),
            ])
            .resets_of(SRV_1, 1),
        case_of(&c, "other servers' flows do not notice")
            .given(survivor.established())
            .given([Given::Server(SRV_1, DOWN)])
            .sends(&survivor.request(), Reason::Forwarded, survivor.forwarded(&survivor.request()))
            .sends(&survivor.response(), Reason::Returned, survivor.returned(&survivor.response())),
        case("an ACK before its SYN is refused, and right after it is forwarded")
            .sends(&c.ack(), Reason::ResetNoFlow, by_acknowledgment(&c.ack()))
            .sends(&c.syn(), Reason::NewByScheduler, c.forwarded(&c.syn()))
            .sends(&c.ack(), Reason::HandshakeForwarded, c.forwarded(&c.ack()))
            .leaves([Then::Appears(Row::HalfOpen(c.syn_sent())), Then::Appears(c.port_of_half_open())]),
    ]
}
