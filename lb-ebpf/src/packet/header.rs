//! The IP headers of packets that are made here.

use lb_common::{address::Address, checksum::fold};

use super::{
    IPV4,
    access::{store16, store32},
    rewrite::{store_ipv4_addresses, store_ipv6_addresses},
};

const HOPS: u8 = 64;
const DO_NOT_FRAGMENT: u16 = 0x4000;

/// What a header says of its content.
#[derive(Clone, Copy)]
pub(super) struct Content {
    pub(super) protocol: u8,
    /// Bytes, without the header.
    pub(super) length: u32,
    /// DSCP and ECN (RFC 6040).
    pub(super) class: u8,
}

/// Writes an IPv4 header into 20 bytes that the caller has checked.
#[inline(always)]
pub(super) fn write_ipv4(at: *mut u8, content: Content, source: Address, destination: Address) {
    let words = [
        u16::from_ne_bytes([0x45, content.class]),
        ((content.length + IPV4 as u32) as u16).to_be(),
        DO_NOT_FRAGMENT.to_be(),
        u16::from_ne_bytes([HOPS, content.protocol]),
    ];
    let (from, to) = (u64::from(source.v4_word()), u64::from(destination.v4_word()));
    let sum = words.iter().map(|word| u64::from(*word)).sum::<u64>() + from + to;
    // SAFETY: see above.
    unsafe {
        store16::<0>(at, words[0]);
        store16::<2>(at, words[1]);
        store16::<4>(at, 0);
        store16::<6>(at, words[2]);
        store16::<8>(at, words[3]);
        store16::<10>(at, !fold(sum));
        store_ipv4_addresses(at, source, destination);
    }
}

/// Writes an IPv6 header into 40 bytes that the caller has checked. The flow label tells flows apart (RFC 6438).
#[inline(always)]
pub(super) fn write_ipv6(at: *mut u8, content: Content, source: Address, destination: Address, entropy: u32) {
    let label = entropy & 0xf_ffff;
    // SAFETY: see above.
    unsafe {
        store32::<0>(at, (6 << 28 | u32::from(content.class) << 20 | label).to_be());
        store16::<4>(at, (content.length as u16).to_be());
        store16::<6>(at, u16::from_ne_bytes([content.protocol, HOPS]));
        store_ipv6_addresses(at, source, destination);
    }
}
