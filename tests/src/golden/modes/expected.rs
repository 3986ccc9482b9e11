//! What must come out, from the modes' definitions.

use std::net::IpAddr;

use lb_common::forwarding::Forwarding;

use super::{
    packet::{Frame, Segment, ip, one_hop_less},
    world::{OWN_MAC, ROUTER_MAC, SERVER_MAC, World},
};

impl World {
    /// A segment of a client, as it is on its way to the server. `snat` is the number of its SNAT port.
    pub(super) fn forwarded(&self, segment: &Segment, snat: u16) -> Frame {
        let packet = match self.forwarding {
            Forwarding::Snat | Forwarding::Nat => Segment {
                source: self.seen_client(segment.source.1, snat),
                destination: (self.server(), self.server_port()),
                hops: segment.hops - 1,
                ..segment.clone()
            }
            .packet(),
            Forwarding::Dr | Forwarding::Tunnel => one_hop_less(&segment.packet()),
        };
        self.frame_to_server(packet)
    }

    /// A packet on its way to the server; in the tunnel without the packet around it.
    pub(super) fn frame_to_server(&self, packet: Vec<u8>) -> Frame {
        Frame { from: self.server_side(), to: SERVER_MAC, tags: self.tags, packet }
    }

    /// A segment of the server, as it is on its way to the client.
    pub(super) fn returned(&self, segment: &Segment, client_port: u16, asked: u16) -> Frame {
        let packet = Segment {
            source: (self.service(), asked),
            destination: (self.client(), client_port),
            hops: segment.hops - 1,
            ..segment.clone()
        }
        .packet();
        self.frame_to_client(packet)
    }

    /// A packet on its way to the client.
    pub(super) fn frame_to_client(&self, packet: Vec<u8>) -> Frame {
        Frame { from: OWN_MAC, to: ROUTER_MAC, tags: self.tags, packet }
    }

    /// Takes the packet out of its tunnel, where there is one.
    ///
    /// # Errors
    /// What of the outer packet is not as it must be.
    pub(super) fn out_of_tunnel(&self, mut frame: Vec<u8>) -> Result<Vec<u8>, String> {
        if self.forwarding != Forwarding::Tunnel {
            return Ok(frame);
        }
        let link = 14 + 4 * self.tags.len();
        let packet = frame.get(link..).ok_or("no packet")?;
        let header = if self.servers_v6 { 40 } else { 20 };
        let inner = packet.get(header..).ok_or("nothing in the tunnel")?.to_vec();
        let protocol = if self.clients_v6 { 41 } else { 4 };
        let mut wanted = ip(self.source(), self.server(), protocol, 64, &inner);
        if self.servers_v6 {
            // The flow label is free, and the version before it is not.
            wanted[1..4].copy_from_slice(&packet[1..4]);
            wanted[1] &= 0x0f;
        }
        if packet != wanted {
            return Err(format!(
                "the outer packet is {:02x?}, not {:02x?}",
                &packet[..header],
                &wanted[..header]
            ));
        }
        let ethertype: u16 = if self.clients_v6 { 0x86dd } else { 0x0800 };
        frame.truncate(link - 2);
        frame.extend(ethertype.to_be_bytes());
        frame.extend(inner);
        Ok(frame)
    }

    /// The addresses of an ICMP error that a router on the client's side sends about what the service sent.
    pub(super) fn report(&self) -> (IpAddr, IpAddr) {
        (self.router(), self.service())
    }
}
