//! The largest segment that the sender of a SYN takes, an option of its header (RFC 9293 section 3.7.1), lowered to what
//! fits the way there.
//!
//! A SYN without the option is left as it is: its receiver assumes 536 bytes (IPv4) or 1,220 (IPv6), which fit everywhere.

use core::fmt;

use crate::checksum::Delta;

/// Bytes of a TCP header without options.
pub const HEADER: u64 = 20;
/// Bytes of options, at most; each takes one at least.
const MOST: u32 = 40;
/// Where the checksum stands in a TCP header.
pub const CHECKSUM: u64 = 16;

const END: u64 = 0;
const NO_OPERATION: u64 = 1;
const MSS: u64 = 2;
const MSS_LENGTH: u64 = 4;

/// Whether, and to what, a service has the option lowered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// It is left as it is.
    #[default]
    None,
    /// To what the interfaces on the way take.
    Auto,
    /// To so many bytes, [`MssClamp::LEAST`] at least.
    Bytes(u16),
}

impl MssClamp {
    /// The fewest bytes: what every host takes (RFC 9293 section 3.7.1).
    pub const LEAST: u16 = 536;

    /// The number that is stored.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Auto => 1,
            Self::Bytes(bytes) => bytes,
        }
    }

    /// The setting with this number.
    #[inline(always)]
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Auto,
            bytes => Self::Bytes(bytes),
        }
    }

    /// The most that a SYN may say, or [`NO_LIMIT`]; `mtus` are bytes of a packet there and back, zero where unknown.
    #[inline(always)]
    #[must_use]
    pub const fn limit(self, is_v4: bool, mtus: [u32; 2]) -> u32 {
        match self {
            Self::None => NO_LIMIT,
            Self::Bytes(bytes) => bytes as u32,
            Self::Auto => {
                let (there, back) = (fitting(mtus[0], is_v4), fitting(mtus[1], is_v4));
                if there < back { there } else { back }
            }
        }
    }
}

impl fmt::Display for MssClamp {
    /// As in configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.pad("none"),
            Self::Auto => f.pad("auto"),
            Self::Bytes(bytes) => bytes.fmt(f),
        }
    }
}

/// Bytes of a segment's content in a packet of `mtu` bytes without IP options; [`NO_LIMIT`] if that can't be, as where the
/// MTU is not known.
#[inline(always)]
#[must_use]
const fn fitting(mtu: u32, is_v4: bool) -> u32 {
    let headers = if is_v4 { 40 } else { 60 };
    if mtu <= headers + MssClamp::LEAST as u32 { NO_LIMIT } else { mtu - headers }
}

/// More than any segment's option says.
pub const NO_LIMIT: u32 = 1 << 16;

/// A TCP header.
pub trait Header {
    /// The byte at this offset, below 64; [`ABSENT`] if the packet ends before it.
    fn byte(&self, at: u64) -> u64;

    /// Whether it has so many bytes.
    fn has(&self, bytes: u64) -> bool;

    /// Where its options begin: [`HEADER`], however that is told.
    fn options(&self) -> u64 {
        HEADER
    }
}

/// No byte.
pub const ABSENT: u64 = 256;

/// Where the value of the option stands in a header; zero if it has none, or if its options are malformed.
/// Of several the last counts, as it does for receivers.
#[inline(always)]
#[must_use]
pub fn find<H: Header>(header: &H) -> u64 {
    let (mut at, mut found) = (header.options(), 0);
    let mut option = 0;
    while option < MOST {
        option += 1;
        if !header.has(at + 1) {
            return found;
        }
        let kind = header.byte(at);
        if kind == END {
            return found;
        }
        let mut size = 1;
        if kind != NO_OPERATION {
            size = header.byte(at + 1);
            if size < 2 || !header.has(at + size) || (kind == MSS && size != MSS_LENGTH) {
                return 0;
            }
        }
        if kind == MSS {
            found = (at + 2) & 0x3f;
        }
        at = (at + size) & 0x3f;
    }
    found
}

/// The header's checksum once its option, at this offset, says `new` and not `old`; all as loaded.
#[inline(always)]
#[must_use]
pub const fn checksum(checksum: u16, at: u64, old: u16, new: u16) -> u16 {
    // At an odd offset its bytes belong to the other halves of two words.
    let delta = if at & 1 == 0 {
        Delta::NONE.replace16(old, new)
    } else {
        Delta::NONE.replace16(old.swap_bytes(), new.swap_bytes())
    };
    delta.apply(checksum)
}

#[cfg(test)]
#[cfg(not(loom))]
#[path = "mss_tests.rs"]
mod tests;
