//! Frames as they go out.

use super::{
    checksum::{carried, right},
    mac_at,
    parse::{Ends, be32, flag, network, total},
};
use crate::golden::frame::Mac;

const TTL: usize = 8;
const IP_SUM: usize = 10;

/// A segment, or an ICMP error with the packet that it repeats, one hop further, between these ends. Of an error these are
/// the ends of the repeated packet, which the error itself goes back along.
pub(super) fn rewritten(frame: &[u8], hop: Mac, ends: &Ends) -> Vec<u8> {
    let mut out = frame.to_vec();
    addressed(&mut out, hop);
    let start = network(frame).map_or(0, |(start, _)| start);
    let before = &frame[start..];
    let after = &mut out[start..];
    after[TTL] -= 1;
    if before[9] == 1 {
        error(before, after, ends);
    } else {
        segment(before, after, ends);
    }
    out
}

fn segment(before: &[u8], after: &mut [u8], ends: &Ends) {
    put_ends(after, ends);
    header_sum(before, after);
    let end = total(before);
    let length = u16::try_from(end - 20).unwrap_or_default().to_be_bytes();
    let sum = |packet: &[u8]| {
        let pseudo = [0, 6, length[0], length[1]];
        right(&[&packet[12..20], &pseudo, &packet[20..end]], (2, 16))
    };
    put_sum(before, after, 36, sum);
}

fn error(before: &[u8], after: &mut [u8], ends: &Ends) {
    put_ends(&mut after[28..], ends);
    header_sum(&before[28..], &mut after[28..]);
    // To whoever sent the repeated packet, in the name of whom it was sent to.
    after[12..16].copy_from_slice(&ends.destination.octets());
    after[16..20].copy_from_slice(&ends.source.octets());
    header_sum(before, after);
    let end = total(before);
    put_sum(before, after, 22, |packet| right(&[&packet[20..end]], (0, 2)));
}

/// The RST that answers a segment (RFC 9293 section 3.10.7.1), back to where it came from.
pub(super) fn reset(frame: &[u8]) -> Vec<u8> {
    let start = network(frame).map_or(0, |(start, _)| start);
    let asked = &frame[start..];
    let mut out = frame[..start].to_vec();
    addressed(&mut out, mac_at(frame, 6));
    let has = |flag: u8| asked[33] & flag != 0;
    let (sequence, acknowledgment, flags) = if has(flag::ACK) {
        (be32(asked, 28), 0, flag::RST)
    } else {
        let text = total(asked) - 20 - usize::from(asked[32] >> 4) * 4;
        let length = text + usize::from(has(flag::SYN)) + usize::from(has(flag::FIN));
        let next = be32(asked, 24).wrapping_add(u32::try_from(length).unwrap_or_default());
        (0, next, flag::RST | flag::ACK)
    };
    let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    packet.extend(&asked[16..20]);
    packet.extend(&asked[12..16]);
    packet.extend(&asked[22..24]);
    packet.extend(&asked[20..22]);
    packet.extend(sequence.to_be_bytes());
    packet.extend(acknowledgment.to_be_bytes());
    packet.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    let sum = right(&[&packet[..20]], (0, IP_SUM));
    packet[IP_SUM..IP_SUM + 2].copy_from_slice(&sum.to_be_bytes());
    let sum = right(&[&packet[12..20], &[0, 6, 0, 20], &packet[20..]], (2, 16));
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    out.extend(packet);
    out
}

/// From the address that the frame came to, to the next one.
fn addressed(frame: &mut [u8], to: Mac) {
    let ours = mac_at(frame, 0);
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&ours);
}

fn put_ends(packet: &mut [u8], ends: &Ends) {
    packet[12..16].copy_from_slice(&ends.source.octets());
    packet[16..20].copy_from_slice(&ends.destination.octets());
    packet[20..22].copy_from_slice(&ends.source_port.to_be_bytes());
    packet[22..24].copy_from_slice(&ends.destination_port.to_be_bytes());
}

fn header_sum(before: &[u8], after: &mut [u8]) {
    put_sum(before, after, IP_SUM, |packet| right(&[&packet[..20]], (0, IP_SUM)));
}

fn put_sum(before: &[u8], after: &mut [u8], at: usize, right: impl Fn(&[u8]) -> u16) {
    let old = u16::from_be_bytes([before[at], before[at + 1]]);
    let new = carried(old, right(before), right(after));
    after[at..at + 2].copy_from_slice(&new.to_be_bytes());
}
