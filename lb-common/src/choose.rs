//! Which server a client's new connection goes to. The program, `explain` and `plan` ask this one function.

use crate::server::{Server, ServerState, Servers};

/// The choice for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The server of the client's sticky record.
    Sticky(u16, Server),
    /// The scheduler's pick.
    Scheduled(u16, Server),
    /// There is no usable server.
    Nobody,
}

/// How many places of the scheduler's table are tried before there is nobody: the table follows a server's state within
/// moments, the server's own state is exact. So many that in such a moment hardly a client has none that is usable: with one
/// of two servers just drained, one in 2^32.
pub const ATTEMPTS: u32 = 32;

/// Chooses for a client of `service` with the server of its sticky record, if it has one. `pick` is the scheduler's
/// answer for an attempt.
#[inline(always)]
pub fn choose<S: Servers + ?Sized>(
    servers: &S,
    service: u16,
    record: Option<u16>,
    pick: impl Fn(u32) -> Option<u16>,
) -> Choice {
    if let Some(id) = record
        && let Some(server) = servers.present(id)
        && server.service == service
        && server.state.has(ServerState::TAKES_KNOWN)
    {
        return Choice::Sticky(id, server);
    }
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let Some(id) = pick(attempt) else {
            return Choice::Nobody;
        };
        if let Some(server) = servers.present(id)
            && server.service == service
            && server.state.has(ServerState::TAKES_NEW)
        {
            return Choice::Scheduled(id, server);
        }
        attempt += 1;
    }
    Choice::Nobody
}

#[cfg(test)]
#[cfg(not(loom))]
#[path = "choose_tests.rs"]
mod tests;
