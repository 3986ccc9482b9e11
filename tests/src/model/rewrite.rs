//! Frames as they go out.

use std::net::IpAddr;

use lb_common::{ICMP, ICMPV6, TCP, UDP};

use super::{
    checksum::{carried, right},
    mac_at,
    parse::{Ends, IPV4, IPV6, be16, be32, flag, is_v4, network, total},
};
use crate::golden::frame::Mac;

const IP_SUM: usize = 10;
const HOPS: u8 = 64;

/// A segment, or an ICMP error with the packet that it repeats, one hop further, between these ends. Of an error these are
/// the ends of the repeated packet, which the error itself goes back along, and `reporter` is who seems to send it; nobody: who
/// does.
pub(super) fn rewritten(frame: &[u8], hop: Mac, ends: &Ends, reporter: Option<IpAddr>) -> Vec<u8> {
    let mut out = addressed(frame, hop);
    let start = start(frame);
    let before = &frame[start..];
    let after = &mut out[start..];
    one_hop_less(after);
    if matches!(protocol(before), ICMP | ICMPV6) {
        error(before, after, ends, reporter);
    } else {
        segment(before, after, ends);
    }
    out
}

/// The same frame, without the sender's wish that the packet is not fragmented (RFC 791); in IPv6 there is no other.
pub(super) fn fragmentable(frame: &[u8]) -> Vec<u8> {
    let mut out = frame.to_vec();
    let start = start(frame);
    if is_v4(&frame[start..]) {
        out[start + 6] &= !0x40;
        header_sum(&frame[start..], &mut out[start..]);
    }
    out
}

/// The same packet, one hop further, to another host.
pub(super) fn sent_on(frame: &[u8], to: Mac) -> Vec<u8> {
    let mut out = addressed(frame, to);
    let start = start(frame);
    one_hop_less(&mut out[start..]);
    header_sum(&frame[start..], &mut out[start..]);
    out
}

/// The same frame to another host.
fn addressed(frame: &[u8], to: Mac) -> Vec<u8> {
    let mut out = frame.to_vec();
    out[..6].copy_from_slice(&to);
    out[6..12].copy_from_slice(&mac_at(frame, 0));
    out
}

/// The frame's packet, one hop further, inside another between these addresses (RFC 2003, RFC 2473, RFC 4213), whose IPv6 header
/// has this flow label.
pub(super) fn tunnelled(frame: &[u8], hop: Mac, source: IpAddr, server: IpAddr, label: u32) -> Vec<u8> {
    let start = start(frame);
    let mut inner = frame[start..].to_vec();
    one_hop_less(&mut inner);
    header_sum(&frame[start..], &mut inner);
    let class = if is_v4(&inner) { inner[1] } else { inner[0] << 4 | inner[1] >> 4 };
    let inside = if is_v4(&inner) { 4 } else { 41 };
    let content = Content { protocol: inside, length: total(&inner), class, label };
    let mut out = link(&addressed(frame, hop), source);
    out.extend(header(&content, source, server));
    out.extend(inner);
    out
}

/// The answer to a packet that is too large for a tunnel: fragmentation needed (RFC 1191) or packet too big (RFC 4443), with its IP
/// header and 64 bits.
pub(super) fn too_big(frame: &[u8], mtu: u16) -> Vec<u8> {
    let packet = &frame[start(frame)..];
    let v4 = is_v4(packet);
    let (from, to) = (end(packet, 1), end(packet, 0));
    let mut message = if v4 { vec![3, 4, 0, 0, 0, 0] } else { vec![2, 0, 0, 0, 0, 0] };
    message.extend(mtu.to_be_bytes());
    message.extend(&packet[..header_length(packet) + 8]);
    let protocol = if v4 { ICMP } else { ICMPV6 };
    let mut made = header(&Content { protocol, length: message.len(), class: 0, label: 0 }, from, to);
    made.extend(message);
    let field = header_length(&made) + 2;
    let sum = message_sum(&made);
    made[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    let mut out = link(&addressed(frame, mac_at(frame, 6)), from);
    out.extend(made);
    out
}

/// The RST that answers a segment (RFC 9293 section 3.10.7.1), back to where it came from.
pub(super) fn reset(frame: &[u8]) -> Vec<u8> {
    let packet = &frame[start(frame)..];
    let asked = &packet[header_length(packet)..];
    let has = |flag: u8| asked[13] & flag != 0;
    let (sequence, acknowledgment, flags) = if has(flag::ACK) {
        (be32(asked, 8), 0, flag::RST)
    } else {
        let text = total(packet) - header_length(packet) - usize::from(asked[12] >> 4) * 4;
        let length = text + usize::from(has(flag::SYN)) + usize::from(has(flag::FIN));
        let next = be32(asked, 4).wrapping_add(u32::try_from(length).unwrap_or_default());
        (0, next, flag::RST | flag::ACK)
    };
    let (from, to) = (end(packet, 1), end(packet, 0));
    let mut made = header(&Content { protocol: TCP, length: 20, class: 0, label: 0 }, from, to);
    made.extend(&asked[2..4]);
    made.extend(&asked[..2]);
    made.extend(u32::to_be_bytes(sequence));
    made.extend(u32::to_be_bytes(acknowledgment));
    made.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    let field = header_length(&made) + 16;
    let sum = transport_sum(&made);
    made[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    let mut out = link(&addressed(frame, mac_at(frame, 6)), from);
    out.extend(made);
    out
}

fn segment(before: &[u8], after: &mut [u8], ends: &Ends) {
    put_ends(after, ends);
    header_sum(before, after);
    let at = transport_field(before);
    // A UDP datagram without a checksum stays without, and one whose checksum is zero says so otherwise (RFC 768).
    let is_udp = protocol(before) == UDP;
    if is_udp && be16(before, at) == Some(0) {
        return;
    }
    put_sum(before, after, at, transport_sum);
    if is_udp && be16(after, at) == Some(0) {
        after[at..at + 2].fill(0xff);
    }
}

fn error(before: &[u8], after: &mut [u8], ends: &Ends, reporter: Option<IpAddr>) {
    let repeated = header_length(before) + 8;
    put_ends(&mut after[repeated..], ends);
    header_sum(&before[repeated..], &mut after[repeated..]);
    put_address(after, 0, reporter.unwrap_or_else(|| end(before, 0)));
    // To whoever sent the repeated packet.
    put_address(after, 1, ends.source);
    header_sum(before, after);
    put_sum(before, after, header_length(before) + 2, message_sum);
}

/// What a header that is made here says of its content.
struct Content {
    protocol: u8,
    length: usize,
    class: u8,
    label: u32,
}

/// An IP header, its checksum right.
fn header(content: &Content, source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let &Content { protocol, length, class, label } = content;
    let length = |more| u16::try_from(length + more).unwrap_or_default().to_be_bytes();
    let mut made = if source.is_ipv4() {
        let [high, low] = length(20);
        vec![0x45, class, high, low, 0, 0, 0x40, 0, HOPS, protocol, 0, 0]
    } else {
        let first = 6 << 28 | u32::from(class) << 20 | label;
        let mut made = first.to_be_bytes().to_vec();
        made.extend(length(0));
        made.extend([protocol, HOPS]);
        made
    };
    for address in [source, destination] {
        made.extend(octets(address));
    }
    if source.is_ipv4() {
        let sum = right(&[&made], (0, IP_SUM));
        made[IP_SUM..IP_SUM + 2].copy_from_slice(&sum.to_be_bytes());
    }
    made
}

/// A frame's link header, before a packet of this address's family.
fn link(frame: &[u8], family: IpAddr) -> Vec<u8> {
    let kind = if family.is_ipv4() { IPV4 } else { IPV6 };
    let mut link = frame[..start(frame) - 2].to_vec();
    link.extend(kind.to_be_bytes());
    link
}

fn start(frame: &[u8]) -> usize {
    network(frame).map_or(0, |(start, _)| start)
}

const fn header_length(packet: &[u8]) -> usize {
    if is_v4(packet) { 20 } else { 40 }
}

fn protocol(packet: &[u8]) -> u8 {
    packet[if is_v4(packet) { 9 } else { 6 }]
}

fn one_hop_less(packet: &mut [u8]) {
    packet[if is_v4(packet) { 8 } else { 7 }] -= 1;
}

/// Where an address is: the source's for 0, the destination's for 1.
fn address_place(packet: &[u8], which: usize) -> std::ops::Range<usize> {
    let (first, bytes) = if is_v4(packet) { (12, 4) } else { (8, 16) };
    first + which * bytes..first + (which + 1) * bytes
}

fn end(packet: &[u8], which: usize) -> IpAddr {
    let bytes = &packet[address_place(packet, which)];
    match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()),
    }
}

fn put_address(packet: &mut [u8], which: usize, address: IpAddr) {
    let place = address_place(packet, which);
    packet[place].copy_from_slice(&octets(address));
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn put_ends(packet: &mut [u8], ends: &Ends) {
    put_address(packet, 0, ends.source);
    put_address(packet, 1, ends.destination);
    let at = header_length(packet);
    packet[at..at + 2].copy_from_slice(&ends.source_port.to_be_bytes());
    packet[at + 2..at + 4].copy_from_slice(&ends.destination_port.to_be_bytes());
}

/// IPv6 headers have no checksum.
fn header_sum(before: &[u8], after: &mut [u8]) {
    if is_v4(before) {
        put_sum(before, after, IP_SUM, |packet| right(&[&packet[..20]], (0, IP_SUM)));
    }
}

fn transport_field(packet: &[u8]) -> usize {
    header_length(packet) + if protocol(packet) == UDP { 6 } else { 16 }
}

/// The checksum of TCP, UDP and ICMPv6, which is over the addresses, the protocol and the length as well.
fn sum_with_ends(packet: &[u8], field: usize) -> u16 {
    let (header, end) = (header_length(packet), total(packet));
    let addresses = &packet[address_place(packet, 0).start..address_place(packet, 1).end];
    let [high, low] = u16::try_from(end - header).unwrap_or_default().to_be_bytes();
    right(&[addresses, &[0, protocol(packet), high, low], &packet[header..end]], (2, field - header))
}

fn transport_sum(packet: &[u8]) -> u16 {
    sum_with_ends(packet, transport_field(packet))
}

/// The checksum of an ICMP message.
fn message_sum(packet: &[u8]) -> u16 {
    if is_v4(packet) { right(&[&packet[20..total(packet)]], (0, 2)) } else { sum_with_ends(packet, 42) }
}

fn put_sum(before: &[u8], after: &mut [u8], at: usize, right: impl Fn(&[u8]) -> u16) {
    let old = u16::from_be_bytes([before[at], before[at + 1]]);
    let new = carried(old, right(before), right(after));
    after[at..at + 2].copy_from_slice(&new.to_be_bytes());
}
