//! One connection of a client through the balancer: its segments on both sides, and its rows.

use std::net::Ipv4Addr;

use etherparse::Ipv4Header;
use lb_common::tcp::TcpState;

use super::{
    Given,
    frame::{Frame, IcmpError, Link, Mac, flag},
    hospital::{
        BALANCER, FIRST_PORT, HYPERSPACE, Host, MYCHART, ROUTER, SOURCES, Service, clients_of, picked, span,
    },
    rows::{FlowRow, Held, PortOwner, PortRow, Row, StickyRow, Who},
};

/// The client's initial sequence number.
pub(super) const CLIENT_ISN: u32 = 0xffff_fff0;
/// The server's.
pub(super) const SERVER_ISN: u32 = 0x7000_0000;

/// A connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) service: &'static Service,
    pub(super) client: Ipv4Addr,
    pub(super) port: u16,
    /// Where it goes.
    pub(super) server: &'static Host,
    pub(super) snat_port: u16,
    /// The number of the source address.
    pub(super) source: u8,
    /// From where the client's frames come.
    pub(super) hop: Mac,
}

impl Connection {
    /// Of the first client that the scheduler sends to this server, with the first SNAT port.
    pub(super) fn to(server: &'static Host) -> Self {
        let service = if server.service == MYCHART.id { &MYCHART } else { &HYPERSPACE };
        let client = clients_of(server).next().expect("the scheduler leaves no server out");
        Self { service, client, port: 40_000, server, snat_port: FIRST_PORT, source: 0, hop: ROUTER }
    }

    /// Of this client, wherever the scheduler sends it.
    pub(super) fn of(client: Ipv4Addr, service: &'static Service) -> Self {
        let server = picked(service, client);
        Self { service, client, port: 40_000, server, snat_port: FIRST_PORT, source: 0, hop: ROUTER }
    }

    /// The same client's, from another port.
    pub(super) const fn on_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// Of another client of the same server.
    pub(super) fn of_client(self, number: usize) -> Self {
        let client = clients_of(self.server).nth(number).expect("255 clients are enough");
        Self { client, ..self }
    }

    /// With another SNAT port.
    pub(super) const fn snat(self, snat_port: u16) -> Self {
        Self { snat_port, ..self }
    }

    /// From another source address.
    pub(super) const fn source(self, source: u8) -> Self {
        Self { source, ..self }
    }

    fn source_address(&self) -> Ipv4Addr {
        SOURCES[usize::from(self.source)]
    }

    /// To this server, whatever the scheduler says.
    pub(super) const fn at(self, server: &'static Host) -> Self {
        Self { server, ..self }
    }

    /// Over this router.
    pub(super) const fn over(self, hop: Mac) -> Self {
        Self { hop, ..self }
    }

    /// A segment from the client, numbered from its own and the server's initial sequence number.
    pub(super) fn client_segment(&self, flags: u8, sequence: u32, acknowledgment: u32) -> Frame {
        let ends = ((self.client, self.port), (self.service.address, 443));
        let answered = if flags & flag::ACK == 0 { 0 } else { SERVER_ISN.wrapping_add(acknowledgment) };
        let mut frame = Frame::new(Link::new(self.hop, BALANCER), ends.0, ends.1)
            .flags(flags)
            .numbers(CLIENT_ISN.wrapping_add(sequence), answered);
        frame.tcp.window_size = 501;
        frame
    }

    /// A segment from the server, as the server sends it.
    pub(super) fn server_segment(&self, flags: u8, sequence: u32, acknowledgment: u32) -> Frame {
        let ends = ((self.server.address, 443), (self.source_address(), self.snat_port));
        let answered = if flags & flag::ACK == 0 { 0 } else { CLIENT_ISN.wrapping_add(acknowledgment) };
        Frame::new(Link::new(self.server.mac, BALANCER), ends.0, ends.1)
            .flags(flags)
            .numbers(SERVER_ISN.wrapping_add(sequence), answered)
            .ttl(64)
    }

    pub(super) fn syn(&self) -> Frame {
        self.client_segment(flag::SYN, 0, 0).syn_options()
    }

    pub(super) fn syn_ack(&self) -> Frame {
        self.server_segment(flag::SYN | flag::ACK, 0, 1).syn_options()
    }

    /// The acknowledgement of the SYN-ACK.
    pub(super) fn ack(&self) -> Frame {
        self.client_segment(flag::ACK, 1, 1).timestamps()
    }

    /// The first data from the client.
    pub(super) fn request(&self) -> Frame {
        self.client_segment(flag::ACK | flag::PSH, 1, 1)
            .timestamps()
            .payload(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n!")
    }

    /// The first data from the server.
    pub(super) fn response(&self) -> Frame {
        self.server_segment(flag::ACK | flag::PSH, 1, 30).timestamps().payload(&[0x5a; 1200])
    }

    /// A client's frame as the server must get it.
    pub(super) fn forwarded(&self, frame: &Frame) -> Vec<u8> {
        let mut out = frame.clone().link(BALANCER, self.server.mac).ttl(frame.ip.time_to_live - 1);
        (out.ip.source, out.ip.destination) = (self.source_address().octets(), self.server.address.octets());
        (out.tcp.source_port, out.tcp.destination_port) = (self.snat_port, 443);
        out.build()
    }

    /// A server's frame as the client must get it.
    pub(super) fn returned(&self, frame: &Frame) -> Vec<u8> {
        let mut out = frame.clone().link(BALANCER, self.hop).ttl(frame.ip.time_to_live - 1);
        (out.ip.source, out.ip.destination) = (self.service.address.octets(), self.client.octets());
        (out.tcp.source_port, out.tcp.destination_port) = (443, self.port);
        out.build()
    }

    /// An ICMP error about `about`, which came from the service, from somewhere on the way to the client.
    pub(super) fn error_to_service(
        &self,
        kind: (u8, u8, [u8; 4]),
        about: &Frame,
        repeats: usize,
    ) -> IcmpError {
        let mut about = about.clone();
        (about.ip.source, about.ip.destination) = (self.service.address.octets(), self.client.octets());
        (about.tcp.source_port, about.tcp.destination_port) = (443, self.port);
        IcmpError {
            link: Link::new(self.hop, BALANCER),
            source: Ipv4Addr::new(10, 1, 1, 1),
            destination: self.service.address,
            ttl: 250,
            kind,
            about,
            repeats,
        }
    }

    /// That error as the server must get it.
    pub(super) fn error_at_server(&self, error: &IcmpError) -> Vec<u8> {
        let mut about = error.about.clone();
        (about.ip.source, about.ip.destination) =
            (self.server.address.octets(), self.source_address().octets());
        (about.tcp.source_port, about.tcp.destination_port) = (443, self.snat_port);
        IcmpError {
            link: Link { from: BALANCER, to: self.server.mac, ..error.link.clone() },
            source: self.source_address(),
            destination: self.server.address,
            ttl: error.ttl - 1,
            about,
            ..error.clone()
        }
        .build()
    }

    /// An ICMP error about `about`, which went from the SNAT port to the server, from somewhere on the way there.
    pub(super) fn error_to_source(
        &self,
        kind: (u8, u8, [u8; 4]),
        about: &Frame,
        repeats: usize,
    ) -> IcmpError {
        let mut about = about.clone();
        (about.ip.source, about.ip.destination) =
            (self.source_address().octets(), self.server.address.octets());
        (about.tcp.source_port, about.tcp.destination_port) = (self.snat_port, 443);
        IcmpError {
            link: Link::new(self.server.mac, BALANCER),
            source: Ipv4Addr::new(192, 168, 85, 1),
            destination: self.source_address(),
            ttl: 64,
            kind,
            about,
            repeats,
        }
    }

    /// That error as the client must get it.
    pub(super) fn error_at_client(&self, error: &IcmpError) -> Vec<u8> {
        let mut about = error.about.clone();
        (about.ip.source, about.ip.destination) = (self.client.octets(), self.service.address.octets());
        (about.tcp.source_port, about.tcp.destination_port) = (self.port, 443);
        IcmpError {
            link: Link { from: BALANCER, to: self.hop, ..error.link.clone() },
            source: self.service.address,
            destination: self.client,
            ttl: error.ttl - 1,
            about,
            ..error.clone()
        }
        .build()
    }

    pub(super) const fn who(&self) -> Who {
        Who { service: self.service.id, client: self.client, port: self.port }
    }

    /// The row after the SYN.
    pub(super) const fn syn_sent(&self) -> FlowRow {
        FlowRow {
            who: self.who(),
            server: self.server.id,
            endpoint: self.server.endpoint,
            source: self.source,
            snat_port: self.snat_port,
            hop: self.hop,
            may_fragment: false,
            client_sequence: CLIENT_ISN,
            server_sequence: 0,
            state: TcpState::SynSent,
            held: Held::None,
            made_at: 0,
            expires: span::SYN,
        }
    }

    /// The row after the SYN-ACK.
    pub(super) const fn syn_received(&self) -> FlowRow {
        FlowRow {
            server_sequence: SERVER_ISN,
            state: TcpState::SynReceived,
            expires: span::HANDSHAKE,
            ..self.syn_sent()
        }
    }

    /// The row after the handshake.
    pub(super) const fn flow(&self) -> FlowRow {
        FlowRow {
            client_sequence: CLIENT_ISN.wrapping_add(1),
            state: TcpState::Established,
            held: Held::Record,
            expires: span::IDLE,
            ..self.syn_received()
        }
    }

    /// The client's record with this many open flows.
    pub(super) const fn sticky(&self, flows: u32) -> StickyRow {
        StickyRow {
            who: Who { service: self.service.id, client: self.client, port: 0 },
            server: self.server.id,
            verified: true,
            flows,
            made_at: 0,
            expires: span::PERSISTENCE,
        }
    }

    /// The SNAT port's cell.
    pub(super) const fn cell(&self, owner: PortOwner) -> PortRow {
        PortRow { endpoint: self.server.endpoint, source: self.source, port: self.snat_port, owner, since: 0 }
    }

    /// The SNAT port's cell while the flow is half-open.
    pub(super) const fn port_of_half_open(&self) -> Row {
        Row::Port(self.cell(PortOwner::HalfOpen(Some(self.who()))))
    }

    /// The SNAT port's cell once it is established.
    pub(super) const fn port_of_flow(&self) -> Row {
        Row::Port(self.cell(PortOwner::Flow(Some(self.who()))))
    }

    /// The tables after the SYN.
    pub(super) fn after_syn(&self) -> Vec<Given> {
        [Row::HalfOpen(self.syn_sent()), self.port_of_half_open()].map(Given::Row).into()
    }

    /// The tables after the SYN-ACK.
    pub(super) fn after_syn_ack(&self) -> Vec<Given> {
        [Row::HalfOpen(self.syn_received()), self.port_of_half_open()].map(Given::Row).into()
    }

    /// The tables after the handshake.
    pub(super) fn established(&self) -> Vec<Given> {
        [Row::Sticky(self.sticky(1)), Row::Flow(self.flow()), self.port_of_flow()].map(Given::Row).into()
    }

    /// The tables with the flow in another state than established, and what that makes of the record.
    pub(super) fn in_state(&self, state: TcpState, expires: i64) -> Vec<Given> {
        let flow = FlowRow { state, expires, ..self.flow() };
        let sticky = self.sticky(u32::from(!state.is_closed()));
        [Row::Sticky(sticky), Row::Flow(flow), self.port_of_flow()].map(Given::Row).into()
    }
}

/// The RST that answers a frame with an acknowledgement.
pub(super) fn reset_by_acknowledgment(frame: &Frame) -> Vec<u8> {
    reset_answer(frame, frame.tcp.acknowledgment_number, 0, flag::RST)
}

/// The RST that answers a frame, with these numbers and flags.
pub(super) fn reset_answer(frame: &Frame, sequence: u32, acknowledgment: u32, flags: u8) -> Vec<u8> {
    let link = Link { from: frame.link.to, to: frame.link.from, trailer: Vec::new(), ..frame.link.clone() };
    let source = (Ipv4Addr::from(frame.ip.destination), frame.tcp.destination_port);
    let destination = (Ipv4Addr::from(frame.ip.source), frame.tcp.source_port);
    let mut reset = Frame::new(link, source, destination).flags(flags).numbers(sequence, acknowledgment);
    reset.ip = Ipv4Header { identification: 0, dont_fragment: true, time_to_live: 64, ..reset.ip };
    reset.tcp.window_size = 0;
    reset.build()
}
