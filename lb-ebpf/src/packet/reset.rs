//! The RST that answers a segment (RFC 9293 section 3.10.7.1).

use aya_ebpf::helpers::generated::bpf_xdp_adjust_tail;
use lb_common::{TCP, address::Address, checksum::fold, tcp::TcpFlags};

use crate::pipeline::SAME_ARM;

use super::{
    Hop, IPV4, IPV6, Packet, Segment, TCP_HEADER,
    access::{load8, load16, load32, store16, store32},
    header::{Content, write_ipv4, write_ipv6},
    ipv4_addresses, ipv6_addresses,
};

const RESET: Content = Content { protocol: TCP, length: TCP_HEADER as u32, class: 0 };

impl Packet {
    /// Turns the segment into the RST that answers it, and sends it back.
    #[inline(always)]
    pub(crate) fn answer_with_reset(&self, segment: &Segment) {
        let Some(tcp) = self.tcp_header() else { return };
        self.address_frame(&Hop { to: self.sender(), from: self.receiver(), arm: SAME_ARM });
        let header = if let Some(at) = self.ipv6_header() {
            let (source, destination) = ipv6_addresses(at);
            // SAFETY: `ipv6_header` checked 40 bytes.
            let payload = u32::from(u16::from_be(unsafe { load16::<4>(at) }));
            write_reset(tcp, segment, payload, source, destination);
            write_ipv6(at, RESET, destination, source, 0);
            IPV6
        } else {
            let (source, destination) = ipv4_addresses(self.network);
            // SAFETY: `parse` checked 20 bytes.
            let total = u32::from(u16::from_be(unsafe { load16::<2>(self.network) }));
            write_reset(tcp, segment, total.wrapping_sub(IPV4 as u32), source, destination);
            write_ipv4(self.network, RESET, destination, source);
            IPV4
        };
        let before = (self.network as usize - self.start as usize) as u32;
        let surplus = self.length.wrapping_sub(before + (header + TCP_HEADER) as u32);
        if surplus > 0 {
            // A failure leaves bytes behind the IP packet's end, which receivers ignore as padding.
            // SAFETY: the context is the one the program was called with; no packet pointer is used afterwards.
            unsafe { bpf_xdp_adjust_tail(self.context, -(surplus as i32)) };
        }
    }
}

/// Writes a TCP header into 20 bytes that the caller has checked; `payload` is what lies behind the IP header.
#[inline(always)]
fn write_reset(at: *mut u8, segment: &Segment, payload: u32, source: Address, destination: Address) {
    let (sequence, acknowledgment, flags) = reset_numbers(at, segment, payload);
    let offset_and_flags = u16::from_ne_bytes([0x50, flags]);
    // SAFETY: see above.
    let (source_port, destination_port) = unsafe { (load16::<0>(at), load16::<2>(at)) };
    // Mapped IPv4 addresses have 0xffff in front of them, which adds nothing (RFC 1071).
    let sum = pair_of_words(source.0[0], destination.0[0])
        + pair_of_words(source.0[1], destination.0[1])
        + u64::from(u16::from_ne_bytes([0, TCP]))
        + u64::from((TCP_HEADER as u16).to_be())
        + u64::from(source_port)
        + u64::from(destination_port)
        + u64::from(sequence)
        + u64::from(acknowledgment)
        + u64::from(offset_and_flags);
    // SAFETY: see above.
    unsafe {
        store16::<0>(at, destination_port);
        store16::<2>(at, source_port);
        store32::<4>(at, sequence);
        store32::<8>(at, acknowledgment);
        store16::<12>(at, offset_and_flags);
        store16::<14>(at, 0);
        store16::<16>(at, !fold(sum));
        store16::<18>(at, 0);
    }
}

/// Sequence number, acknowledgement number (both as on the wire) and flags of the RST.
#[inline(always)]
fn reset_numbers(at: *const u8, segment: &Segment, payload: u32) -> (u32, u32, u8) {
    // SAFETY: the caller has checked 20 bytes.
    let (sequence, acknowledgment) = unsafe { (u32::from_be(load32::<4>(at)), load32::<8>(at)) };
    if segment.flags.has(TcpFlags::ACK) {
        return (acknowledgment, 0, TcpFlags::RST);
    }
    // SAFETY: see above.
    let offset = unsafe { load8::<12>(at) };
    let text = payload.wrapping_sub(u32::from(offset >> 4) * 4);
    let ends = u32::from(segment.flags.has(TcpFlags::SYN)) + u32::from(segment.flags.has(TcpFlags::FIN));
    let next = sequence.wrapping_add(text).wrapping_add(ends);
    (0, next.to_be(), TcpFlags::RST | TcpFlags::ACK)
}

/// The sum of two words' halves.
#[inline(always)]
const fn pair_of_words(one: u64, other: u64) -> u64 {
    (one & 0xffff_ffff) + (one >> 32) + (other & 0xffff_ffff) + (other >> 32)
}
