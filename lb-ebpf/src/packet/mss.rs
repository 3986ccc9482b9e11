//! The largest segment that a SYN's sender takes, lowered to what fits.

use core::arch::asm;

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_jiffies64};
use lb_common::{
    forwarding::Forwarding,
    mss::{self, ABSENT, CHECKSUM, HEADER, Header, NO_LIMIT},
    server::Servers as _,
};

use crate::{
    maps::{self, ServerTable},
    pipeline::World,
};

use super::{
    ETHERTYPE_IPV4, IPV4, IPV6, TCP_HEADER,
    access::{ahead, load8_anew, load16, store16},
    bounds, network_header,
};

/// Lowers what a SYN, to a server or from one, says of segments, if its service wants that. `way` is the server's id, and
/// above it the client's arm.
///
/// A global function: the verifier checks it once, by itself. It knows the context by the name of its type.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn clamp_mss(context: *mut xdp_md, way: u32) -> u32 {
    let limit = limit(way as u16, (way >> 16) as u8);
    if limit == NO_LIMIT {
        return 0;
    }
    let (start, end) = bounds(context);
    let Ok((network, ethertype)) = network_header(start, end) else { return 0 };
    // SAFETY: `network_header` checked 20 bytes.
    let first = unsafe { load8_anew::<0>(network) };
    let header = if ethertype == ETHERTYPE_IPV4 { (first & 0xf) << 2 } else { IPV6 as u64 };
    let at = ahead(network, header);
    if at.wrapping_add(TCP_HEADER) > end {
        return 0;
    }
    // SAFETY: 20 bytes were checked.
    let length = (unsafe { load8_anew::<12>(at) } >> 4) << 2;
    lower(&Segment { at, end, length }, limit)
}

/// The most that a SYN may say, between this server and a client behind this arm; or [`NO_LIMIT`].
#[inline(always)]
fn limit(server: u16, arm: u8) -> u32 {
    let world = World::now();
    let Some(server) = ServerTable.present(server) else { return NO_LIMIT };
    let Some(service) = maps::service(server.service) else { return NO_LIMIT };
    let there = world.mtu(server.arm);
    let mtus = if matches!(server.forwarding, Forwarding::Tunnel) {
        let outer = if server.address.is_v4() { IPV4 } else { IPV6 } as u32;
        [there.saturating_sub(outer), 0]
    } else {
        [there, world.mtu(arm)]
    };
    service.mss_clamp.limit(service.address.is_v4(), mtus)
}

/// A TCP header, whose first 20 bytes were checked.
struct Segment {
    at: *mut u8,
    end: *mut u8,
    length: u64,
}

impl Header for Segment {
    #[inline(always)]
    fn byte(&self, at: u64) -> u64 {
        let at = option_at(self.at, at);
        if at.wrapping_add(1) > self.end {
            return ABSENT;
        }
        // SAFETY: one byte was checked.
        unsafe { load8_anew::<0>(at) }
    }

    #[inline(always)]
    fn has(&self, bytes: u64) -> bool {
        let mut value = self.length;
        // Without a comparison, from which the verifier would learn about both: it would check the loop for each length that
        // options can have.
        // SAFETY: arithmetic on a register.
        unsafe {
            asm!(
                "{value} -= {bytes}",
                "{value} >>= 63",
                value = inout(reg) value,
                bytes = in(reg) bytes,
                options(pure, nomem, nostack),
            );
        }
        value == 0
    }

    #[inline(always)]
    fn options(&self) -> u64 {
        // The verifier must not know where they begin, or it would check the loop for each place of each option. What is
        // added is zero for millions of years.
        // SAFETY: the helper has no arguments and no effects.
        let zero = unsafe { bpf_jiffies64() } >> 58;
        (HEADER + zero) & 0x3f
    }
}

#[inline(always)]
fn lower(header: &Segment, limit: u32) -> u32 {
    let place = mss::find(header);
    if place == 0 {
        return 0;
    }
    let at = option_at(header.at, place);
    if at.wrapping_add(2) > header.end {
        return 0;
    }
    // SAFETY: two bytes were checked.
    let old = unsafe { load16::<0>(at) };
    if u32::from(u16::from_be(old)) <= limit {
        return 0;
    }
    let new = (limit as u16).to_be();
    // SAFETY: two bytes, and 20 of the header, were checked.
    unsafe {
        store16::<0>(at, new);
        let sum = load16::<{ CHECKSUM as usize }>(header.at);
        store16::<{ CHECKSUM as usize }>(header.at, mss::checksum(sum, place, old, new));
    }
    1
}

/// The byte at an offset below 64 from a TCP header, of which the verifier knows that much.
#[inline(always)]
fn option_at(header: *mut u8, offset: u64) -> *mut u8 {
    let mut at = header;
    // SAFETY: arithmetic on registers; whoever loads from the result checks its bounds.
    unsafe {
        asm!(
            "{offset} &= 0x3f",
            "{at} += {offset}",
            at = inout(reg) at,
            offset = inout(reg) offset => _,
            options(pure, nomem, nostack),
        );
    }
    at
}
