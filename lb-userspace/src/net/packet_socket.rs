//! A raw socket that sends whole Ethernet frames from one interface.

use std::io;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use super::NetError;

/// An AF_PACKET socket bound to an interface. It only sends: it asks the kernel for no frames.
#[derive(Debug)]
pub struct PacketSocket {
    socket: Socket,
    index: u32,
}

impl PacketSocket {
    /// Opens a socket on the interface of that index.
    ///
    /// # Errors
    /// [`NetError::Packet`]: no such interface, or no CAP_NET_RAW.
    pub fn open(index: u32) -> Result<Self, NetError> {
        let socket = open_bound(index, 0).map_err(|source| NetError::Packet {
            doing: "opening a packet socket",
            index,
            source,
        })?;
        Ok(Self { socket, index })
    }

    /// Queues one frame, from destination MAC to the last payload byte, without waiting.
    ///
    /// # Errors
    /// [`NetError::Packet`]: the interface is down or gone, the queue is full, or the frame is longer than its
    /// MTU or shorter than an Ethernet header.
    pub fn send(&self, frame: &[u8]) -> Result<(), NetError> {
        match self.socket.send(frame) {
            Ok(_) => Ok(()),
            Err(source) => Err(NetError::Packet { doing: "sending a frame", index: self.index, source }),
        }
    }
}

/// Opens a non-blocking raw packet socket on an interface. `ethertype` is what it receives: 0 for nothing,
/// `ETH_P_ALL` for everything.
pub(super) fn open_bound(index: u32, ethertype: u16) -> io::Result<Socket> {
    // Protocol 0 until bind(2): otherwise frames of every interface would queue up in between (packet(7)).
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    bind(&socket, index, ethertype)?;
    Ok(socket)
}

/// Has a packet socket receive this from now on.
pub(super) fn bind(socket: &Socket, index: u32, ethertype: u16) -> io::Result<()> {
    socket.bind(&link_address(index, ethertype)?)
}

fn link_address(index: u32, ethertype: u16) -> io::Result<SockAddr> {
    let too_large = |_| io::Error::from_raw_os_error(libc::ENODEV);
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the platform's socket addresses and any bytes are a valid one.
    let address: &mut libc::sockaddr_ll = unsafe { storage.view_as() };
    address.sll_family = u16::try_from(libc::AF_PACKET).map_err(too_large)?;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = i32::try_from(index).map_err(too_large)?;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(too_large)?;
    // SAFETY: the storage was filled in as a sockaddr_ll just above, family and length are its own.
    Ok(unsafe { SockAddr::new(storage, length) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;
    use crate::net::frames::tcp_syn_probe;
    use crate::net::testing::{Lab, ip};

    #[test]
    fn a_frame_arrives_at_the_peer_as_it_was_sent() {
        let lab = Lab::new();
        let ear = lab.server_ear();
        let index = lab.balancer_index();
        let frame: Vec<u8> = [&Lab::SERVER_MAC[..], &Lab::BALANCER_MAC, &[0x88, 0xb5], b"steadfast"].concat();
        lab.balancer.run(async || PacketSocket::open(index).unwrap().send(&frame).unwrap());
        assert!(ear.hears(Duration::from_secs(2), |heard| heard == frame).is_some());
    }

    #[test]
    fn a_socket_on_a_missing_interface_and_a_frame_without_a_header_are_refused_in_words() {
        let lab = Lab::new();
        let index = lab.balancer_index();
        lab.balancer.run(async || {
            let error = PacketSocket::open(9999).unwrap_err();
            assert!(error.to_string().contains("opening a packet socket on interface index 9999"), "{error}");
            let error = PacketSocket::open(index).unwrap().send(&[0; 5]).unwrap_err();
            assert!(error.to_string().contains("sending a frame"), "{error}");
        });
    }

    /// The server end of a connection forgets nothing and answers a SYN in mid-connection with its own numbers.
    #[test]
    fn a_syn_probe_elicits_a_challenge_ack_and_leaves_the_connection_open() {
        let lab = Lab::new();
        for (client_ip, server_ip) in [(Lab::BALANCER, Lab::SERVER), (Lab::BALANCER_V6, Lab::SERVER_V6)] {
            let listener =
                lab.server.run(async || TcpListener::bind(SocketAddr::new(ip(server_ip), 0)).unwrap());
            let server = listener.local_addr().unwrap();
            let mut stream = lab.balancer.run(async || TcpStream::connect(server).unwrap());
            let client = stream.local_addr().unwrap();
            assert_eq!(client.ip(), ip(client_ip));
            let mut accepted = listener.accept().unwrap().0;
            stream.write_all(b"before").unwrap();
            accepted.read_exact(&mut [0; 6]).unwrap();

            // Forge the server's SYN towards the client, and listen on the server's side for the answer.
            let ear = lab.server_ear();
            let probe =
                tcp_syn_probe(Lab::SERVER_MAC, Lab::BALANCER_MAC, server, client, 0x1234_5678).unwrap();
            let index = lab.server_index();
            lab.server.run(async || PacketSocket::open(index).unwrap().send(&probe).unwrap());
            let answer = ear.hears(Duration::from_secs(2), |heard| is_bare_ack(heard, client, server));
            assert!(answer.is_some(), "no challenge ACK from {client}");

            stream.write_all(b"after").unwrap();
            let mut text = [0; 5];
            accepted.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"after");
        }
    }

    fn is_bare_ack(frame: &[u8], from: SocketAddr, to: SocketAddr) -> bool {
        let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
            return false;
        };
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            return false;
        };
        let is_ack = tcp.ack() && !tcp.syn() && !tcp.rst() && !tcp.fin() && tcp.payload().is_empty();
        is_ack && (tcp.source_port(), tcp.destination_port()) == (from.port(), to.port())
    }
}
