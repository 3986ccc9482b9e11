//! The eBPF object that the binaries carry inside: the build sets `STEADFAST_BPF_OBJECT` to its path.

/// The object file, aligned as its parser wants it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("STEADFAST_BPF_OBJECT"));

/// The program that is attached.
pub const PROGRAM: &str = "steadfast";
/// The program that tells the time.
pub const CLOCK_PROGRAM: &str = "steadfast_clock";
