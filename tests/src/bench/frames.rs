//! The bench's frames, and what of them a conversation's number decides.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader};

use super::{
    script::{FRAME, Field, Script},
    world::{FIRST_PORT, SNAT_PORTS, SNAT_SERVERS, Service},
};

pub(super) const BALANCER: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
pub(super) const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];
/// The services' port.
pub(super) const VIP_PORT: u16 = 443;
/// The first port of the clients.
pub(super) const CLIENT_PORT: u16 = 40_000;
/// The sequence numbers that everybody begins with.
pub(super) const FIRST_SEQUENCE: u32 = 1;

/// Where addresses, their low halves, and the destination port stand in an untagged IPv4 frame.
pub(super) const SOURCE: u32 = 26;
pub(super) const SOURCE_LOW: u32 = 28;
pub(super) const DESTINATION: u32 = 30;
pub(super) const DESTINATION_LOW: u32 = 32;
pub(super) const DESTINATION_PORT: u32 = 36;

/// TCP flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flags {
    Syn,
    SynAck,
    Ack,
    Fin,
}

/// Which way a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Client,
    Server,
}

/// The client of a conversation: 65,536 addresses, then the next port.
pub(super) fn client(service: Service, conversation: u32, first_port: u16) -> (IpAddr, u16) {
    let low = narrow(conversation);
    let port = first_port + narrow(conversation >> 16);
    let [high_byte, low_byte] = low.to_be_bytes();
    let address = if service.is_v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, low).into()
    } else {
        Ipv4Addr::new(10, 1, high_byte, low_byte).into()
    };
    (address, port)
}

/// The low 16 bits.
pub(super) const fn narrow(number: u32) -> u16 {
    let [low, next, ..] = number.to_le_bytes();
    u16::from_le_bytes([low, next])
}

/// The server of a conversation that is written into the tables, and its SNAT port.
pub(super) fn server(service: Service, conversation: u32) -> (u16, u16) {
    let servers = u32::from(service.servers());
    let port = conversation / servers % u32::from(SNAT_PORTS);
    (narrow(conversation % servers), FIRST_PORT + narrow(port))
}

/// The script of a segment: the frame of conversation 0, and what changes for others.
///
/// # Errors
/// The frame can't be built.
pub(super) fn script(service: Service, from: From, flags: Flags, first_port: u16) -> Result<Script> {
    let (client_address, client_port) = client(service, 0, first_port);
    let (server_number, snat_port) = server(service, 0);
    let vip = service.address();
    let real = service.server(server_number);
    let is_snat = service.mode == "snat";
    let (source, destination) = match from {
        From::Client => ((client_address, client_port), (vip, VIP_PORT)),
        From::Server if is_snat => ((real, VIP_PORT), (service.source(), snat_port)),
        From::Server => ((real, VIP_PORT), (client_address, client_port)),
    };
    let mut tcp = TcpHeader::new(source.1, destination.1, FIRST_SEQUENCE, 64_240);
    tcp.acknowledgment_number = FIRST_SEQUENCE;
    tcp.syn = matches!(flags, Flags::Syn | Flags::SynAck);
    tcp.ack = flags != Flags::Syn;
    tcp.fin = flags == Flags::Fin;
    match flags {
        Flags::SynAck => tcp.acknowledgment_number = FIRST_SEQUENCE + 1,
        Flags::Syn => {}
        Flags::Ack | Flags::Fin => {
            tcp.sequence_number = FIRST_SEQUENCE + 1;
            tcp.acknowledgment_number = FIRST_SEQUENCE + 1;
        }
    }
    let frame = build(source.0, destination.0, tcp)?;
    let transport = if service.is_v6 { 54 } else { 34 };
    // The low 16 bits of source or destination address.
    let source_low = if service.is_v6 { 36 } else { SOURCE_LOW };
    let destination_low = if service.is_v6 { 52 } else { DESTINATION_LOW };
    let whole = |at: u32, shift: u32, mask: u32, base: u16| Field { at, shift, mask, base: u32::from(base) };
    let fields = match from {
        From::Client => [whole(source_low, 0, 0xffff, 0), whole(transport, 16, 0xffff, first_port)],
        From::Server if is_snat => [
            whole(source_low, 0, u32::from(SNAT_SERVERS) - 1, 0x0101),
            whole(transport + 2, SNAT_SERVERS.trailing_zeros(), u32::from(SNAT_PORTS) - 1, FIRST_PORT),
        ],
        From::Server => [whole(destination_low, 0, 0xffff, 0), whole(transport + 2, 16, 0xffff, first_port)],
    };
    Ok(Script {
        frame: words(&frame)?,
        cursor: 0,
        multiplier: 1,
        increment: 0,
        mask: 0,
        runs: 0,
        fields,
        sequence_at: 0,
        sequence_step: 0,
        listed: 0,
        cut: u32::from(service.mode != "tunnel"),
    })
}

/// The script's frame.
pub(super) fn bytes(script: &Script) -> Vec<u8> {
    script.frame.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The script with other bytes from there on.
///
/// # Errors
/// The frame ends before.
pub(super) fn patched(script: Script, at: u32, with: &[u8]) -> Result<Script> {
    let mut frame = bytes(&script);
    let at = usize::try_from(at)?;
    let place = frame.get_mut(at..at + with.len()).context("the frame ends before")?;
    place.copy_from_slice(with);
    Ok(Script { frame: words(&frame)?, ..script })
}

/// Where the sequence number of such a segment stands.
pub(super) const fn sequence_at(service: Service) -> u32 {
    if service.is_v6 { 58 } else { 38 }
}

/// SSH to the balancer itself: what must never wait for us.
///
/// # Errors
/// The frame can't be built.
pub(super) fn management() -> Result<Script> {
    let tcp = TcpHeader { ack: true, ..TcpHeader::new(50_000, 22, 7, 64_240) };
    let source = IpAddr::from([192, 168, 85, 7]);
    let frame = build(source, Service::ALL[0].source(), tcp)?;
    let still = script(Service::ALL[0], From::Client, Flags::Ack, CLIENT_PORT)?;
    Ok(Script { frame: words(&frame)?, fields: [Field::default(); 2], ..still })
}

fn build(source: IpAddr, destination: IpAddr, tcp: TcpHeader) -> Result<Vec<u8>> {
    let ethernet = PacketBuilder::ethernet2(NEXT_HOP, BALANCER);
    let ip: PacketBuilderStep<_> = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), 63)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), 63)
        }
        _ => anyhow::bail!("mixed families"),
    };
    let builder = ip.tcp_header(tcp);
    let payload = vec![0xa5; FRAME - builder.size(0)];
    let mut frame = Vec::with_capacity(FRAME);
    builder.write(&mut frame, &payload).context("a frame that can't be")?;
    Ok(frame)
}

fn words(frame: &[u8]) -> Result<[u64; FRAME / 8]> {
    ensure!(frame.len() == FRAME, "a frame of {} bytes", frame.len());
    let mut words = [0; FRAME / 8];
    for (word, bytes) in words.iter_mut().zip(frame.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    Ok(words)
}
