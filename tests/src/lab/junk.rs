//! A flood of packets that no client sends: fragments, and headers that cannot be. Bounded in time.

use std::{
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use anyhow::Result;
use etherparse::PacketBuilder;
use lb_common::hash::mix;

use super::{
    flood::{BATCH, FloodReport, IP, TCP, frame_of, mend, send_batch},
    frame::RawSocket,
    layout::INTERFACE,
};

/// 14 of Ethernet, 20 of IPv4, 20 of TCP, and 6 more.
const LENGTH: usize = 60;

/// What to send, from ever other addresses of 100.0.0.0/8.
#[derive(Clone, Debug)]
pub struct Junk {
    /// Fragments, first ones and later ones by turns; else headers of four kinds that cannot be. Bridges drop an IPv4 header
    /// that cannot be: those are sound.
    pub fragments: bool,
    /// Where to.
    pub to: SocketAddrV4,
    /// It ends after this time.
    pub longest: Duration,
}

/// Sends it from `eth0` of the calling thread's namespace.
pub(super) fn send(junk: &Junk, from: [u8; 6], to: [u8; 6]) -> Result<FloodReport> {
    let socket = RawSocket::open(INTERFACE)?;
    socket.bypass_queueing()?;
    let template = template(junk, from, to)?;
    let mut frames = vec![template; BATCH];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < junk.longest {
        for (number, frame) in (sent..).zip(&mut frames) {
            *frame = template;
            vary(frame, junk.fragments, number);
        }
        sent += send_batch(&socket, &mut frames)?;
    }
    Ok(FloodReport { frames: sent, elapsed: start.elapsed() })
}

fn template(junk: &Junk, from: [u8; 6], to: [u8; 6]) -> Result<[u8; LENGTH]> {
    let builder = PacketBuilder::ethernet2(from, to)
        .ipv4([100, 0, 0, 0], junk.to.ip().octets(), 64)
        .tcp(1, junk.to.port(), 0, 64_240)
        .ack(0);
    frame_of(builder, &[0xa5; 6])
}

fn vary(frame: &mut [u8; LENGTH], fragments: bool, number: u64) {
    let [a, b, c, d, e, ..] = mix(number).to_be_bytes();
    frame[IP + 13..IP + 16].copy_from_slice(&[a, b, c]);
    frame[TCP..TCP + 2].copy_from_slice(&[d | 4, e]);
    let flags_and_offset = IP + 6..IP + 8;
    match (fragments, number % 4) {
        // More fragments follow; at offset 8 x 2.
        (true, 0 | 2) => frame[flags_and_offset].copy_from_slice(&[0x20, 0]),
        (true, _) => frame[flags_and_offset].copy_from_slice(&[0, 2]),
        // A TCP header of 60 bytes in a packet of 46.
        (false, 0) => frame[TCP + 12] = 0xf0,
        // A TCP header of 16 bytes.
        (false, 1) => frame[TCP + 12] = 0x40,
        // A TCP header that ends in the middle.
        (false, 2) => frame[IP + 2..IP + 4].copy_from_slice(&30_u16.to_be_bytes()),
        // A protocol that is none.
        (false, _) => frame[IP + 9] = 255,
    }
    mend(frame);
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket};

    use super::*;

    fn frames(fragments: bool) -> impl Iterator<Item = [u8; LENGTH]> {
        let to = "192.168.85.150:443".parse().unwrap();
        let template = template(&Junk { fragments, to, longest: Duration::ZERO }, [2; 6], [4; 6]).unwrap();
        (0..8).map(move |number| {
            let mut frame = template;
            vary(&mut frame, fragments, number);
            frame
        })
    }

    #[test]
    fn fragments_are_fragments() {
        for frame in frames(true) {
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("not IPv4") };
            assert!(ip.header().is_fragmenting_payload());
        }
    }

    #[test]
    fn junk_cannot_be_read_as_tcp() {
        for frame in frames(false) {
            let packet = SlicedPacket::from_ethernet(&frame);
            assert!(packet.is_err() || packet.unwrap().transport.is_none(), "{frame:?}");
        }
    }
}
