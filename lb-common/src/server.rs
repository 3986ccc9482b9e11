//! Real servers, as the data path reads them: 32 bytes each, by id.
//!
//! | word | content (least significant bits first) |
//! |---|---|
//! | 0, 1 | address, bytes as on the wire |
//! | 2 | port:16 (as on the wire), endpoint:16, service:16, [`Forwarding`]:8, arm:8 |
//! | 3 | MAC of the next hop:48 (bytes in memory order), [`ServerState`]:16 |
//!
//! What changes while a server is in use is in the last word alone.

use crate::address::Address;
use crate::flow::hop_word;
use crate::forwarding::Forwarding;
use crate::word::Word;

/// Words of an entry.
pub const SERVER_WORDS: usize = 4;
/// An entry of the server table.
pub type ServerSlot = [Word; SERVER_WORDS];

#[cfg(not(loom))]
const _: () = assert!(size_of::<ServerSlot>() == 32);

/// Index of the word with MAC address and state.
pub const STATE_WORD: usize = 3;

/// What may be sent to a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerState(pub u16);

impl ServerState {
    /// The id is in use.
    pub const PRESENT: u16 = 1;
    /// The next hop's MAC address is known.
    pub const REACHABLE: u16 = 2;
    /// Unknown clients may be sent here: online, up, weight above zero.
    pub const TAKES_NEW: u16 = 4;
    /// Clients with a sticky record may open connections: up, online or draining.
    pub const TAKES_KNOWN: u16 = 8;
    /// Open flows are answered with RST: halted, or down with `on_down: reset`.
    pub const RESETS: u16 = 16;
    /// Clients' segments keep the port that they were sent to: the service has several. [`Server::port`] is the first
    /// of them, which names the endpoint.
    pub const SAME_PORT: u16 = 32;

    /// Whether all of `bits` are set.
    #[inline(always)]
    #[must_use]
    pub const fn has(self, bits: u16) -> bool {
        self.0 & bits == bits
    }
}

/// A server, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its address.
    pub address: Address,
    /// Its port, as on the wire; where [`ServerState::SAME_PORT`] is set, see there.
    pub port: u16,
    /// The id of the address and port.
    pub endpoint: u16,
    /// The virtual service it answers for.
    pub service: u16,
    /// How its packets reach it: as its service says.
    pub forwarding: Forwarding,
    /// The number of the interface that it is reached by, in [`Control::arms`](crate::control::Control).
    pub arm: u8,
    /// MAC of the next hop.
    pub mac: [u8; 6],
    /// What may be sent to it.
    pub state: ServerState,
}

impl Server {
    /// The port that a segment to this port of the service is sent to, both as on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn port_for(&self, service_port: u16) -> u16 {
        if self.state.has(ServerState::SAME_PORT) { service_port } else { self.port }
    }

    /// Where its packets go, as in a flow's word of the return hop.
    #[inline(always)]
    #[must_use]
    pub const fn hop_word(&self) -> u64 {
        hop_word(self.mac, self.arm)
    }

    /// Unpacks an entry.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fields are taken out of packed words")]
    pub const fn from_words(words: [u64; SERVER_WORDS]) -> Self {
        let mac = words[3].to_le_bytes();
        Self {
            address: Address([words[0], words[1]]),
            port: words[2] as u16,
            endpoint: (words[2] >> 16) as u16,
            service: (words[2] >> 32) as u16,
            forwarding: Forwarding::from_number((words[2] >> 48) as u8),
            arm: (words[2] >> 56) as u8,
            mac: [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]],
            state: ServerState((words[3] >> 48) as u16),
        }
    }

    /// The words that are stored.
    #[must_use]
    pub const fn words(&self) -> [u64; SERVER_WORDS] {
        [
            self.address.0[0],
            self.address.0[1],
            self.port as u64
                | (self.endpoint as u64) << 16
                | (self.service as u64) << 32
                | (self.forwarding as u64) << 48
                | (self.arm as u64) << 56,
            state_word(self.mac, self.state),
        ]
    }
}

/// The word with MAC address and state.
#[must_use]
pub const fn state_word(mac: [u8; 6], state: ServerState) -> u64 {
    let state = state.0.to_le_bytes();
    u64::from_le_bytes([mac[0], mac[1], mac[2], mac[3], mac[4], mac[5], state[0], state[1]])
}

/// Where the servers are.
pub trait Servers {
    /// The server with this id.
    fn server(&self, id: u16) -> Option<&ServerSlot>;

    /// The words of the server with this id, if the id is in use.
    #[inline(always)]
    fn present(&self, id: u16) -> Option<Server> {
        let slot = self.server(id)?;
        let server = Server::from_words([slot[0].load(), slot[1].load(), slot[2].load(), slot[3].load()]);
        if server.state.has(ServerState::PRESENT) { Some(server) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_reached_at_its_own_port_or_at_the_one_that_was_asked_for() {
        let at = |bits| Server {
            address: Address::default(),
            port: 443u16.to_be(),
            endpoint: 1,
            service: 1,
            forwarding: Forwarding::Tunnel,
            arm: 3,
            mac: [0; 6],
            state: ServerState(ServerState::PRESENT | bits),
        };
        let asked = 8443u16.to_be();
        assert_eq!(at(0).port_for(asked), 443u16.to_be());
        assert_eq!(at(ServerState::SAME_PORT).port_for(asked), asked);
        let same = at(ServerState::SAME_PORT);
        assert_eq!(Server::from_words(same.words()), same);
    }
}
