//! A packet inside another (RFC 2003, RFC 2473, RFC 4213), and the answer to one that is too large for that.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
};
use lb_common::{
    ICMP, ICMPV6,
    checksum::{Delta, fold},
    reason::Reason,
    server::Servers as _,
};

use crate::{
    maps::ServerTable,
    pipeline::{SAME_ARM, World},
};

use super::{
    ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Hop, IPV4, IPV6,
    access::{ahead, load8, load16, load32, load64, store8, store16, store32, store64},
    bounds,
    header::{Content, write_ipv4, write_ipv6},
    interface, length, network_header, receiver,
    rewrite::hop_delta,
    sender, write_addresses,
};

/// Protocol numbers of a packet inside a packet.
const IPV4_INSIDE: u8 = 4;
const IPV6_INSIDE: u8 = 41;
/// Bytes of an ICMP message's own header, and of the transport header that it repeats.
const ICMP_HEADER: usize = 8;
const REPEATED: usize = 8;

/// The link header and what follows it, 24 bytes, and how many of them are VLAN tags.
struct Link {
    bytes: [u64; 3],
    tags: u64,
}

/// Puts the packet into another, to a server, one hop further. Gives [`Reason::Forwarded`] and above it the arm by which it
/// leaves; or [`Reason::TooBig`] and the MTU for [`answer_too_big`], or why not. `entropy` is the same for all packets of
/// a flow.
///
/// A function of its own, for its stack.
#[inline(never)]
pub(crate) fn encapsulate(context: *mut xdp_md, server: u32, entropy: u32) -> u32 {
    match try_encapsulate(context, server as u16, entropy) {
        Ok(arm) => Reason::Forwarded as u32 | u32::from(arm) << 8,
        Err((reason, mtu)) => reason as u32 | mtu << 8,
    }
}

#[inline(always)]
fn try_encapsulate(context: *mut xdp_md, server: u16, entropy: u32) -> Result<u8, (Reason, u32)> {
    let why = |reason| (reason, 0);
    let (start, end) = bounds(context);
    let (network, ethertype) = network_header(start, end).map_err(why)?;
    let inner = match ethertype {
        ETHERTYPE_IPV4 => inner_v4(network),
        _ => inner_v6(network, end).map_err(why)?,
    };
    let world = World::now();
    let server = ServerTable.present(server).ok_or(why(Reason::NoNeighbour))?;
    let to_v4 = server.address.is_v4();
    let header = if to_v4 { IPV4 } else { IPV6 } as u32;
    let mtu = world.mtu(server.arm);
    if mtu > header && inner.length + header > mtu {
        return Err((Reason::TooBig, mtu - header));
    }
    let sources = u32::from(world.snat().sources_like(server.address));
    if sources == 0 {
        return Err(why(Reason::NoNeighbour));
    }
    let source = world.control.source(((entropy >> 20) % sources) as u8, server.address);
    let hop = world.leave(interface(context), receiver(start), server.hop_word()).map_err(why)?;
    one_hop_less(network, ethertype);
    let link = Link::take(start, network);
    if to_v4 {
        let at = link.put::<IPV4>(context, ETHERTYPE_IPV4, &hop).ok_or(why(Reason::BadHeader))?;
        write_ipv4(at, inner, source, server.address);
    } else {
        let at = link.put::<IPV6>(context, ETHERTYPE_IPV6, &hop).ok_or(why(Reason::BadHeader))?;
        let (_, end) = bounds(context);
        if at.wrapping_add(IPV6) > end {
            return Err(why(Reason::BadHeader));
        }
        write_ipv6(at, inner, source, server.address, entropy);
    }
    Ok(hop.arm)
}

/// Makes a packet that is too large for a tunnel the answer that says so. Zero if that can't be.
///
/// A function of its own, for its stack.
#[inline(never)]
pub(crate) fn answer_too_big(context: *mut xdp_md, mtu: u32) -> u32 {
    let (start, end) = bounds(context);
    let answered = match network_header(start, end) {
        Ok((_, ETHERTYPE_IPV4)) => too_big_v4(context, mtu),
        Ok(_) => too_big_v6(context, mtu),
        Err(_) => None,
    };
    u32::from(answered.is_some())
}

#[inline(always)]
fn inner_v4(at: *mut u8) -> Content {
    // SAFETY: `network_header` checked 20 bytes.
    let (class, total) = unsafe { (load8::<1>(at), load16::<2>(at)) };
    Content { protocol: IPV4_INSIDE, length: u32::from(u16::from_be(total)), class }
}

#[inline(always)]
fn inner_v6(at: *mut u8, end: *mut u8) -> Result<Content, Reason> {
    if at.wrapping_add(IPV6) > end {
        return Err(Reason::Truncated);
    }
    // SAFETY: 40 bytes were checked.
    let (head, payload) = unsafe { (load16::<0>(at), load16::<4>(at)) };
    let class = (u16::from_be(head) >> 4) as u8;
    Ok(Content { protocol: IPV6_INSIDE, length: IPV6 as u32 + u32::from(u16::from_be(payload)), class })
}

/// Whoever puts a packet into a tunnel forwards it (RFC 2003 section 3.1).
#[inline(always)]
fn one_hop_less(at: *mut u8, ethertype: u16) {
    // SAFETY: `network_header` checked 20 bytes.
    unsafe {
        if ethertype == ETHERTYPE_IPV4 {
            store16::<10>(at, Delta::NONE.and(hop_delta(at)).apply(load16::<10>(at)));
            store8::<8>(at, load8::<8>(at).wrapping_sub(1));
        } else {
            store8::<7>(at, load8::<7>(at).wrapping_sub(1));
        }
    }
}

impl Link {
    /// Of a frame with 34 bytes at least, which `network_header` checked.
    #[inline(always)]
    fn take(start: *mut u8, network: *mut u8) -> Self {
        // SAFETY: see above.
        let bytes = unsafe { [load64::<0>(start), load64::<8>(start), load64::<16>(start)] };
        Self { bytes, tags: (network as u64).wrapping_sub(start as u64).wrapping_sub(ETHERNET as u64) }
    }

    /// Makes `MORE` bytes of room in front, and puts the link header there: where the room behind it begins. 20 bytes from
    /// there are within the packet.
    #[inline(always)]
    fn put<const MORE: usize>(&self, context: *mut xdp_md, ethertype: u16, hop: &Hop) -> Option<*mut u8> {
        // SAFETY: the context is the one that the program was called with.
        if unsafe { bpf_xdp_adjust_head(context, -(MORE as i32)) } != 0 {
            return None;
        }
        let (start, end) = bounds(context);
        let behind_tags = ahead(start, self.tags);
        if start.wrapping_add(24) > end || behind_tags.wrapping_add(ETHERNET + IPV4) > end {
            return None;
        }
        // SAFETY: 24 bytes and, behind the tags, 34 were checked.
        unsafe {
            store64::<0>(start, self.bytes[0]);
            store64::<8>(start, self.bytes[1]);
            store64::<16>(start, self.bytes[2]);
            store16::<12>(behind_tags, ethertype);
        }
        write_addresses(start, hop);
        Some(behind_tags.wrapping_add(ETHERNET))
    }
}

/// Cuts the frame behind `keep` bytes of its packet, keeps its link header, and makes room for `MORE` bytes in front.
#[inline(always)]
fn answer<const KEEP: usize, const MORE: usize>(context: *mut xdp_md, ethertype: u16) -> Option<*mut u8> {
    let (start, end) = bounds(context);
    let (network, _) = network_header(start, end).ok()?;
    let before = (network as u64).wrapping_sub(start as u64) as u32;
    let surplus = length(context).wrapping_sub(before).wrapping_sub(KEEP as u32);
    let link = Link::take(start, network);
    let hop = Hop { to: sender(start), from: receiver(start), arm: SAME_ARM };
    // SAFETY: the context is the one that the program was called with.
    if unsafe { bpf_xdp_adjust_tail(context, -(surplus as i32)) } != 0 {
        return None;
    }
    link.put::<MORE>(context, ethertype, &hop)
}

/// Makes the packet a "fragmentation needed" (RFC 1191 section 4) from the service's address to its sender.
#[inline(always)]
fn too_big_v4(context: *mut xdp_md, mtu: u32) -> Option<()> {
    const MORE: usize = IPV4 + ICMP_HEADER;
    const KEEP: usize = IPV4 + REPEATED;
    let at = answer::<KEEP, MORE>(context, ETHERTYPE_IPV4)?;
    let (_, end) = bounds(context);
    if at.wrapping_add(MORE + KEEP) > end {
        return None;
    }
    let repeated = at.wrapping_add(MORE);
    let (source, destination) = super::ipv4_addresses(repeated);
    write_ipv4(
        at,
        Content { protocol: ICMP, length: (ICMP_HEADER + KEEP) as u32, class: 0 },
        destination,
        source,
    );
    const FRAGMENTATION_NEEDED: u16 = u16::from_ne_bytes([3, 4]);
    let mtu = (mtu as u16).to_be();
    let sum = u64::from(FRAGMENTATION_NEEDED) + u64::from(mtu) + sum_of::<0, KEEP>(repeated);
    // SAFETY: 56 bytes were checked.
    unsafe {
        store16::<{ IPV4 }>(at, FRAGMENTATION_NEEDED);
        store16::<{ IPV4 + 2 }>(at, !fold(sum));
        store16::<{ IPV4 + 4 }>(at, 0);
        store16::<{ IPV4 + 6 }>(at, mtu);
    }
    Some(())
}

/// Makes the packet a "packet too big" (RFC 4443 section 3.2) from the service's address to its sender.
#[inline(always)]
fn too_big_v6(context: *mut xdp_md, mtu: u32) -> Option<()> {
    const MORE: usize = IPV6 + ICMP_HEADER;
    const KEEP: usize = IPV6 + REPEATED;
    let at = answer::<KEEP, MORE>(context, ETHERTYPE_IPV6)?;
    let (_, end) = bounds(context);
    if at.wrapping_add(MORE + KEEP) > end {
        return None;
    }
    let repeated = at.wrapping_add(MORE);
    let (source, destination) = super::ipv6_addresses(repeated);
    const LENGTH: usize = ICMP_HEADER + KEEP;
    let inner = Content { protocol: ICMPV6, length: LENGTH as u32, class: 0 };
    write_ipv6(at, inner, destination, source, 0);
    const PACKET_TOO_BIG: u16 = u16::from_ne_bytes([2, 0]);
    let mtu = mtu.to_be();
    // The addresses in the pseudo-header are those of the new header (RFC 8200 section 8.1).
    let sum = u64::from(PACKET_TOO_BIG)
        + u64::from(mtu)
        + u64::from((LENGTH as u16).to_be())
        + u64::from(u16::from_ne_bytes([0, ICMPV6]))
        + sum_of::<8, IPV6>(at)
        + sum_of::<0, KEEP>(repeated);
    // SAFETY: 96 bytes were checked.
    unsafe {
        store16::<{ IPV6 }>(at, PACKET_TOO_BIG);
        store16::<{ IPV6 + 2 }>(at, !fold(sum));
        store32::<{ IPV6 + 4 }>(at, mtu);
    }
    Some(())
}

/// The sum of the 32-bit words from `FROM` to `TO` (multiples of 4, at most 48), which the caller has checked.
#[inline(always)]
fn sum_of<const FROM: usize, const TO: usize>(at: *const u8) -> u64 {
    macro_rules! words {
        ($($offset:literal)+) => {
            // SAFETY: see above.
            0 $(+ if $offset >= FROM && $offset < TO { unsafe { u64::from(load32::<$offset>(at)) } } else { 0 })+
        };
    }
    words!(0 4 8 12 16 20 24 28 32 36 40 44)
}
