//! ICMP errors about TCP and UDP packets (RFC 792, RFC 4443), which repeat the beginning of the packet that they are about.

use aya_ebpf::bindings::xdp_md;
use lb_common::{ICMP, ICMPV6, TCP, UDP, address::Address, path_mtu};

use super::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_OFFSET, IPV4, IPV6, MORE_FRAGMENTS, Packet, Tuple,
    access::{load8, load16, load32, store8, store16},
    bounds, ipv4_addresses, ipv6_addresses, network_header,
    rewrite::{
        Rewrite, hop_delta, ipv4_delta, ipv6_delta, rewrite_ipv4_addresses, rewrite_ipv6_addresses,
        rewrite_ports, store_ipv4_addresses, store_ipv6_addresses,
    },
};

const ICMP_HEADER: usize = 8;
/// What an error surely repeats of the packet it is about, beyond its IP header (RFC 792).
const REPEATED: usize = 8;
const INNER_V4: usize = IPV4 + ICMP_HEADER;
const ERROR_V4: usize = INNER_V4 + IPV4 + REPEATED;
const INNER_V6: usize = IPV6 + ICMP_HEADER;
const ERROR_V6: usize = INNER_V6 + IPV6 + REPEATED;

/// An ICMP error about a TCP or UDP packet.
pub(crate) struct IcmpError {
    pub(crate) packet: Packet,
    /// Of the repeated packet, whose sender the error is for.
    pub(crate) tuple: Tuple,
    /// The repeated packet's protocol: TCP or UDP.
    pub(crate) protocol: u8,
    /// The path's MTU that it tells, or [`path_mtu::NONE`].
    pub(crate) path_mtu: u32,
}

impl IcmpError {
    /// Reads an ICMP error; `None` if it is something else.
    #[inline(always)]
    pub(crate) fn parse(context: *mut xdp_md) -> Option<Self> {
        let (start, end) = bounds(context);
        let (network, ethertype) = network_header(start, end).ok()?;
        let length = (end as usize - start as usize) as u32;
        let packet = Packet { context, start, network, transport: network, length, hops: 0, arm: 0 };
        match ethertype {
            ETHERTYPE_IPV4 => Self::ipv4(packet, end),
            ETHERTYPE_IPV6 => Self::ipv6(packet, end),
            _ => None,
        }
    }

    #[inline(always)]
    fn ipv4(packet: Packet, end: *mut u8) -> Option<Self> {
        let at = packet.network;
        if at.wrapping_add(ERROR_V4) > end {
            return None;
        }
        let inner = at.wrapping_add(INNER_V4);
        // SAFETY: 56 bytes were checked.
        let (version, total, fragment, kind, hops, protocol) = unsafe {
            (
                load8::<0>(at),
                load16::<2>(at),
                load16::<6>(at),
                load8::<IPV4>(at),
                load8::<8>(at),
                load8::<9>(at),
            )
        };
        // What lies behind the message's own end is no part of it: not to be translated, nor in its checksum.
        let total = usize::from(u16::from_be(total));
        if total < ERROR_V4 || total > end as usize - at as usize {
            return None;
        }
        // SAFETY: as above.
        let (inner_version, inner_fragment, inner_protocol) =
            unsafe { (load8::<0>(inner), load16::<6>(inner), load8::<9>(inner)) };
        let whole = u16::from_be(fragment) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) == 0
            && u16::from_be(inner_fragment) & FRAGMENT_OFFSET == 0;
        // Destination unreachable, time exceeded, parameter problem.
        let error = protocol == ICMP && matches!(kind, 3 | 11 | 12);
        if version != 0x45
            || inner_version != 0x45
            || (inner_protocol != TCP && inner_protocol != UDP)
            || !whole
            || !error
        {
            return None;
        }
        let (_, destination) = ipv4_addresses(at);
        // SAFETY: as above.
        let (ports, code, mtu) = unsafe {
            let ports = (load16::<{ IPV4 }>(inner), load16::<{ IPV4 + 2 }>(inner));
            (ports, load8::<{ IPV4 + 1 }>(at), load16::<{ IPV4 + 6 }>(at))
        };
        // Destination unreachable, fragmentation needed.
        let path_mtu = if kind == 3 && code == 4 { u32::from(u16::from_be(mtu)) } else { path_mtu::NONE };
        let tuple = repeated(ipv4_addresses(inner), ports);
        (tuple.source == destination).then_some(Self {
            packet: Packet { hops, ..packet },
            tuple,
            protocol: inner_protocol,
            path_mtu,
        })
    }

    #[inline(always)]
    fn ipv6(packet: Packet, end: *mut u8) -> Option<Self> {
        let at = packet.network;
        if at.wrapping_add(ERROR_V6) > end {
            return None;
        }
        let inner = at.wrapping_add(INNER_V6);
        // SAFETY: 96 bytes were checked.
        let (version, payload, protocol, hops, kind) =
            unsafe { (load8::<0>(at), load16::<4>(at), load8::<6>(at), load8::<7>(at), load8::<IPV6>(at)) };
        let total = IPV6 + usize::from(u16::from_be(payload));
        if total < ERROR_V6 || total > end as usize - at as usize {
            return None;
        }
        // SAFETY: as above.
        let (inner_version, inner_protocol) = unsafe { (load8::<0>(inner), load8::<6>(inner)) };
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        let error = protocol == ICMPV6 && matches!(kind, 1..=4);
        if version >> 4 != 6
            || inner_version >> 4 != 6
            || (inner_protocol != TCP && inner_protocol != UDP)
            || !error
        {
            return None;
        }
        let (_, destination) = ipv6_addresses(at);
        // SAFETY: as above.
        let (ports, mtu) = unsafe {
            let ports = (load16::<{ IPV6 }>(inner), load16::<{ IPV6 + 2 }>(inner));
            (ports, load32::<{ IPV6 + 4 }>(at))
        };
        // Packet too big.
        let path_mtu = if kind == 2 { u32::from_be(mtu) } else { path_mtu::NONE };
        let tuple = repeated(ipv6_addresses(inner), ports);
        (tuple.source == destination).then_some(Self {
            packet: Packet { hops, ..packet },
            tuple,
            protocol: inner_protocol,
            path_mtu,
        })
    }

    /// Time to live, or hop limit.
    #[inline(always)]
    pub(crate) fn hops(&self) -> u8 {
        self.packet.hops
    }

    /// Rewrites the repeated packet's tuple and the addresses that it goes from, unless the one who reports it is to be seen,
    /// and to, one hop further.
    #[inline(always)]
    pub(crate) fn rewrite(&self, to: &Rewrite, source: Option<Address>) {
        self.packet.address_frame(&to.hop);
        let (_, end) = bounds(self.packet.context);
        if let Some(at) = self.packet.ipv6_header() {
            if at.wrapping_add(ERROR_V6) <= end {
                self.rewrite_ipv6(at, to, source);
            }
        } else if self.packet.network.wrapping_add(ERROR_V4) <= end {
            self.rewrite_ipv4(to, source);
        }
    }

    #[inline(always)]
    fn rewrite_ipv4(&self, to: &Rewrite, source: Option<Address>) {
        let at = self.packet.network;
        let inner = at.wrapping_add(INNER_V4);
        let (reporter, addressee) = ipv4_addresses(at);
        let hop = hop_delta(at);
        let inner_delta = rewrite_ipv4_addresses(inner, to);
        // SAFETY: the caller has checked 56 bytes.
        unsafe {
            let ports = rewrite_ports(inner.wrapping_add(IPV4), to);
            let inner_sum = load16::<10>(inner);
            let new_inner_sum = inner_delta.apply(inner_sum);
            let icmp =
                inner_delta.and(ports).replace16(inner_sum, new_inner_sum).apply(load16::<{ IPV4 + 2 }>(at));
            store16::<10>(inner, new_inner_sum);
            store16::<{ IPV4 + 2 }>(at, icmp);
        }
        let (source, destination) = (source.unwrap_or(reporter), ipv4_addresses(inner).0);
        let outer = ipv4_delta(reporter, source).and(ipv4_delta(addressee, destination)).and(hop);
        // SAFETY: as above.
        unsafe {
            store16::<10>(at, outer.apply(load16::<10>(at)));
            store8::<8>(at, self.packet.hops.wrapping_sub(1));
            store_ipv4_addresses(at, source, destination);
        }
    }

    #[inline(always)]
    fn rewrite_ipv6(&self, at: *mut u8, to: &Rewrite, source: Option<Address>) {
        let inner = at.wrapping_add(INNER_V6);
        let (reporter, addressee) = ipv6_addresses(at);
        let inner_delta = rewrite_ipv6_addresses(inner, to);
        // SAFETY: the caller has checked 96 bytes.
        let ports = unsafe { rewrite_ports(inner.wrapping_add(IPV6), to) };
        let (source, destination) = (source.unwrap_or(reporter), ipv6_addresses(inner).0);
        // The message's checksum is over its own addresses too (RFC 4443 section 2.3).
        let delta =
            inner_delta.and(ports).and(ipv6_delta(reporter, source)).and(ipv6_delta(addressee, destination));
        // SAFETY: as above.
        unsafe {
            store16::<{ IPV6 + 2 }>(at, delta.apply(load16::<{ IPV6 + 2 }>(at)));
            store8::<7>(at, self.packet.hops.wrapping_sub(1));
            store_ipv6_addresses(at, source, destination);
        }
    }
}

#[inline(always)]
fn repeated((source, destination): (Address, Address), (source_port, destination_port): (u16, u16)) -> Tuple {
    Tuple { source, destination, source_port, destination_port }
}
