//! What `translate` makes of the packets of one client with one server: the constants of one direction.

/// One direction. Addresses and checksums as on the wire.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Turn {
    /// Source and destination of the packets that are meant.
    pub(crate) from: [u32; 2],
    /// What they become.
    pub(crate) to: [u32; 2],
    /// To whom they go then, and from whom.
    pub(crate) macs: [u16; 6],
    /// The one's complement sum of the new addresses, less that of the old ones (RFC 1624).
    pub(crate) difference: u32,
}
