//! Packets that need the least: TCP data right behind an untagged IP header without options, whole and sound.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    TCP,
    address::Address,
    cache::New,
    checksum::{Delta, apply_folded},
};

use super::{
    ETHERNET, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT_OFFSET, Hop, IPV4, IPV6, MORE_FRAGMENTS, TCP_HEADER,
    access::{load8, load16, load32, load64, store8, store16, store32, store64},
    bounds, receiver,
    rewrite::{ipv4_delta, ipv6_delta},
    sender,
};

/// An untagged packet that is long enough for IPv4 and TCP, by what stands behind its Ethernet header.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    V4(Span),
    V6(Span),
    Other,
}

/// Where a packet begins and ends.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    start: *mut u8,
    end: *mut u8,
}

/// The family of a packet.
#[inline(always)]
pub(crate) fn family(context: *mut xdp_md) -> Family {
    let (start, end) = bounds(context);
    if start.wrapping_add(ETHERNET + IPV4 + TCP_HEADER) > end {
        return Family::Other;
    }
    // SAFETY: 54 bytes were checked.
    match unsafe { load16::<12>(start) } {
        ETHERTYPE_IPV4 => Family::V4(Span { start, end }),
        ETHERTYPE_IPV6 => Family::V6(Span { start, end }),
        _ => Family::Other,
    }
}

/// Such a packet.
#[derive(Clone, Copy)]
pub(crate) struct Plain<const V6: bool> {
    start: *mut u8,
    pub(crate) length: u32,
}

/// Accesses a field of the packet at its distance from the packet's beginning: all accesses go out from one register.
macro_rules! ip {
    ($access:ident, $packet:expr, $at:expr $(, $value:expr)?) => {
        $access::<{ ETHERNET + $at }>($packet.start $(, $value)?)
    };
}
macro_rules! tcp {
    ($access:ident, $packet:expr, $at:expr $(, $value:expr)?) => {
        if V6 {
            $access::<{ ETHERNET + IPV6 + $at }>($packet.start $(, $value)?)
        } else {
            $access::<{ ETHERNET + IPV4 + $at }>($packet.start $(, $value)?)
        }
    };
}

/// The first byte, and the protocol, of an IPv4 header as it must be here; the rest of the second word is flags, a
/// fragment's offset and the time to live.
const VERSION_AND_LENGTH: u8 = 0x45;
const WHOLE_TCP: u32 = u32::from_le_bytes([0, 0, 0, TCP]);
const FRAGMENT_AND_PROTOCOL: u32 = {
    let [high, low] = (MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be_bytes();
    u32::from_le_bytes([high, low, 0, u8::MAX])
};

impl<const V6: bool> Plain<V6> {
    const HEADER: usize = if V6 { IPV6 } else { IPV4 };

    /// The packet, if it is that plain.
    #[inline(always)]
    pub(crate) fn read(Span { start, end }: Span) -> Option<Self> {
        if V6 && start.wrapping_add(ETHERNET + IPV6 + TCP_HEADER) > end {
            return None;
        }
        let length = (end as usize - start as usize) as u32;
        let packet = Self { start, length };
        // SAFETY: all headers were checked.
        let (protocol_is_tcp, content) = unsafe {
            if V6 {
                let content = u32::from(u16::from_be(ip!(load16, packet, 4))) + IPV6 as u32;
                (ip!(load8, packet, 0) & 0xf0 == 0x60 && ip!(load8, packet, 6) == TCP, content)
            } else {
                let whole = ip!(load32, packet, 6) & FRAGMENT_AND_PROTOCOL == WHOLE_TCP;
                let content = u32::from(u16::from_be(ip!(load16, packet, 2)));
                (ip!(load8, packet, 0) == VERSION_AND_LENGTH && whole, content)
            }
        };
        // SAFETY: as above.
        let offset = unsafe { tcp!(load8, packet, 12) };
        let headers = Self::HEADER as u32 + u32::from(offset >> 4) * 4;
        let sound = offset >= 0x50 && content >= headers && content <= length - ETHERNET as u32;
        if protocol_is_tcp && sound { Some(packet) } else { None }
    }

    /// Whether it carries an acknowledgement and nothing that changes a connection's state, and may go on by another hop.
    #[inline(always)]
    pub(crate) fn goes_on(&self) -> bool {
        // SAFETY: `read` checked all headers.
        let (flags, hops) = unsafe {
            let hops = if V6 { ip!(load8, self, 7) } else { ip!(load8, self, 8) };
            (tcp!(load8, self, 13), hops)
        };
        // ACK of FIN, SYN, RST and ACK.
        flags & 0x17 == 0x10 && hops > 1
    }

    #[inline(always)]
    pub(crate) fn receiver(&self) -> u64 {
        receiver(self.start)
    }

    #[inline(always)]
    pub(crate) fn sender(&self) -> u64 {
        sender(self.start)
    }

    #[inline(always)]
    pub(crate) fn source(&self) -> Address {
        // SAFETY: `read` checked all headers.
        unsafe {
            if V6 {
                Address([ip!(load64, self, 8), ip!(load64, self, 16)])
            } else {
                Address::from_v4_word(ip!(load32, self, 12))
            }
        }
    }

    #[inline(always)]
    pub(crate) fn destination(&self) -> Address {
        // SAFETY: `read` checked all headers.
        unsafe {
            if V6 {
                Address([ip!(load64, self, 24), ip!(load64, self, 32)])
            } else {
                Address::from_v4_word(ip!(load32, self, 16))
            }
        }
    }

    /// Source and destination port, in this order, as on the wire.
    #[inline(always)]
    pub(crate) fn ports(&self) -> u32 {
        // SAFETY: `read` checked all headers.
        unsafe { tcp!(load32, self, 0) }
    }

    /// Host byte order.
    #[inline(always)]
    pub(crate) fn sequence(&self) -> u32 {
        // SAFETY: `read` checked all headers.
        u32::from_be(unsafe { tcp!(load32, self, 4) })
    }

    /// Source and destination address, as they lie in the packet: of IPv4 in the first word.
    #[inline(always)]
    pub(crate) fn addresses(&self) -> [u64; 4] {
        // SAFETY: `read` checked all headers.
        unsafe {
            if V6 {
                [ip!(load64, self, 8), ip!(load64, self, 16), ip!(load64, self, 24), ip!(load64, self, 32)]
            } else {
                [ip!(load64, self, 12), 0, 0, 0]
            }
        }
    }

    /// The frame's first eight bytes, and its next four: both MAC addresses.
    #[inline(always)]
    pub(crate) fn frame(&self) -> (u64, u32) {
        // SAFETY: `read` checked all headers.
        unsafe { (load64::<0>(self.start), load32::<8>(self.start)) }
    }

    /// What it becomes when it is sent from and to others, one hop further.
    #[inline(always)]
    pub(crate) fn outgoing(&self, hop: &Hop, source: Address, destination: Address, ports: u32) -> New {
        let (old_source, old_destination) = (self.source(), self.destination());
        let (network_delta, transport_delta, addresses) = if V6 {
            let delta = ipv6_delta(old_source, source).and(ipv6_delta(old_destination, destination));
            let [[first, second], [third, fourth]] = [source.0, destination.0];
            (Delta::NONE, delta, [first, second, third, fourth])
        } else {
            let delta = ipv4_delta(old_source, source).and(ipv4_delta(old_destination, destination));
            let both = u64::from(source.v4_word()) | u64::from(destination.v4_word()) << 32;
            (delta.and(HOP), delta, [both, 0, 0, 0])
        };
        let (to, from) = (hop.to & MAC, hop.from & MAC);
        New {
            frame: to | from << 48,
            frame_end: (from >> 16) as u32,
            ports,
            network_delta: network_delta.folded(),
            transport_delta: transport_delta.replace32(self.ports(), ports).folded(),
            addresses,
        }
    }

    /// Sends it on as it is, one hop further, in a frame with the new MAC addresses.
    #[inline(always)]
    pub(crate) fn send_on(&self, new: &New) {
        self.readdress(new);
        // SAFETY: `read` checked all headers.
        unsafe {
            if V6 {
                ip!(store8, self, 7, ip!(load8, self, 7).wrapping_sub(1));
            } else {
                ip!(store8, self, 8, ip!(load8, self, 8).wrapping_sub(1));
                ip!(store16, self, 10, apply_folded(const { HOP.folded() }, ip!(load16, self, 10)));
            }
        }
    }

    #[inline(always)]
    fn readdress(&self, new: &New) {
        // SAFETY: `read` checked all headers.
        unsafe {
            store64::<0>(self.start, new.frame);
            store32::<8>(self.start, new.frame_end);
        }
    }

    /// Makes it that.
    #[inline(always)]
    pub(crate) fn write(&self, new: &New) {
        self.readdress(new);
        // SAFETY: `read` checked all headers.
        unsafe {
            if V6 {
                ip!(store8, self, 7, ip!(load8, self, 7).wrapping_sub(1));
                ip!(store64, self, 8, new.addresses[0]);
                ip!(store64, self, 16, new.addresses[1]);
                ip!(store64, self, 24, new.addresses[2]);
                ip!(store64, self, 32, new.addresses[3]);
            } else {
                ip!(store8, self, 8, ip!(load8, self, 8).wrapping_sub(1));
                ip!(store16, self, 10, apply_folded(new.network_delta, ip!(load16, self, 10)));
                ip!(store64, self, 12, new.addresses[0]);
            }
            tcp!(store32, self, 0, new.ports);
            tcp!(store16, self, 16, apply_folded(new.transport_delta, tcp!(load16, self, 16)));
        }
    }
}

/// One less in the time to live, which is the first byte of its 16-bit word.
const HOP: Delta = Delta::NONE.replace16(1, 0);

/// The bits of a MAC address.
const MAC: u64 = (1 << 48) - 1;
