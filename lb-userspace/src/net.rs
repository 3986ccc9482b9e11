//! What the daemon needs from the host's network: links, addresses, next hops, neighbours, announcements,
//! raw frames, sysctls and offloads.
//!
//! Everything here acts in the network namespace of the calling thread (netlink and packet sockets keep
//! the namespace in which they were opened). The decisions are pure ([`neighbour_state`], [`frames`]);
//! the rest only carries them to the kernel.

mod address;
mod announce;
mod claims;
mod error;
mod ethtool;
pub mod frames;
mod link;
pub mod namespace;
pub mod neighbour_state;
mod neighbours;
mod outbox;
mod packet_socket;
pub mod return_hops;
mod route;
mod sysctl;
#[cfg(test)]
pub(crate) mod testing;

use rtnetlink::Handle;

pub use self::address::{Added, Address, Family, Removed};
pub use self::announce::{ANNOUNCE_SCHEDULE, announce};
pub use self::claims::Claims;
pub use self::error::NetError;
pub use self::ethtool::{Driver, Offload, driver, offload, set_offload};
pub use self::link::Link;
pub use self::neighbour_state::Timing;
pub use self::neighbours::Neighbours;
pub use self::outbox::{LinkEvent, NeighbourEvent, NetEvent};
pub use self::packet_socket::PacketSocket;
pub use self::route::NextHop;
pub use self::sysctl::{InterfaceSysctl, SysctlTable, ephemeral_range};

/// An Ethernet address, in the order of the wire.
pub type Mac = [u8; 6];

/// A handle on the kernel's network configuration, through one netlink socket. Clones share the socket.
#[derive(Clone, Debug)]
pub struct Net {
    handle: Handle,
}

impl Net {
    /// Opens a netlink socket in the calling thread's network namespace and spawns the task that serves it.
    /// The task ends with the last clone. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`NetError::Open`] when the kernel refuses the socket.
    pub fn open() -> Result<Self, NetError> {
        let (connection, handle, _unsolicited) = rtnetlink::new_connection().map_err(NetError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }
}
