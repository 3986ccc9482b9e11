//! What `replay` does before each run: one value, which the bench writes and the program reads.

/// Bytes of every frame of the bench.
pub(crate) const FRAME: usize = 96;

/// The frame, and what changes in it from run to run.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Script {
    /// The frame; every run begins with it.
    pub(crate) frame: [u64; FRAME / 8],
    /// Which conversation the next run is of. It goes on to `cursor * multiplier + increment`, as far as `mask` allows.
    pub(crate) cursor: u64,
    /// With an increment that is odd, and one more than a multiple of 4 here, all conversations come up, in no order
    /// that a prefetcher knows.
    pub(crate) multiplier: u64,
    /// See there.
    pub(crate) increment: u64,
    /// Conversations, a power of two, less one.
    pub(crate) mask: u64,
    /// Runs so far.
    pub(crate) runs: u64,
    /// What the conversation's number changes in the frame.
    pub(crate) fields: [Field; 2],
    /// Where the TCP sequence number stands; zero: it stays.
    pub(crate) sequence_at: u32,
    /// How much it grows from run to run.
    pub(crate) sequence_step: u32,
    /// Whether the fields come from the map `VALUES`, by conversation, instead of from the number.
    pub(crate) listed: u32,
    /// Whether a run changes the length of the frame at its end, instead of at its beginning.
    pub(crate) cut: u32,
}

/// 16 bits of the frame, as on the wire: `base + (conversation >> shift & mask)`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Field {
    /// Where, an even number; zero: nowhere.
    pub(crate) at: u32,
    /// See above.
    pub(crate) shift: u32,
    /// See above.
    pub(crate) mask: u32,
    /// See above, host byte order.
    pub(crate) base: u32,
}
