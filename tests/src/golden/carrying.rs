//! While rows are carried over from older tables: what has its row goes on, what finds none is dropped and sent again.

use lb_common::reason::Reason;

use super::{
    Case, Given, case, connection::Connection, handshake::establishes, hospital::SRV_1, open::half_open,
};

/// The cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let c = Connection::to(SRV_1);
    vec![
        case("a SYN, a client's and a server's segment are dropped that find no row while rows are carried over")
            .given([Given::Carrying(10)])
            .drops(c.syn().build(), Reason::Carrying)
            .drops(c.request().build(), Reason::Carrying)
            .drops(c.response().build(), Reason::Carrying),
        case("a flow that is here goes on while others are carried over")
            .given(c.established())
            .given([Given::Carrying(10)])
            .sends(&c.request(), Reason::Forwarded, c.forwarded(&c.request()))
            .sends(&c.response(), Reason::Returned, c.returned(&c.response())),
        case("a handshake that is here is completed while others are carried over")
            .given(c.after_syn())
            .given([Given::Carrying(10)])
            .sends(&c.syn_ack(), Reason::Returned, c.returned(&c.syn_ack()))
            .sends(&c.ack(), Reason::Established, c.forwarded(&c.ack()))
            .leaves(establishes(&c)),
        case("a daemon that died while it carried rows over stops nobody for long")
            .given([Given::Carrying(-1)])
            .sends(&c.syn(), Reason::NewByScheduler, c.forwarded(&c.syn()))
            .leaves(half_open(&c)),
    ]
}
