//! ICMP errors about packets of a flow: whoever sent the packet is told (RFC 5508 section 4.2).

use std::net::Ipv4Addr;

use lb_common::{reason::Reason, server::ServerState};

use super::{Ends, Flow, Key, Model, Verdict, server_number, service_at, service_number};
use crate::golden::hospital::{SERVERS, SERVICES, SOURCES};

impl Model {
    /// `about` are the ends of the packet that it repeats, `to` is whom the error was sent to.
    pub(super) fn icmp_error(&self, about: &Ends, to: Ipv4Addr, ttl: u8) -> Verdict {
        if to != about.source {
            return Verdict::Left(Reason::NotOurs);
        }
        let translated = match service_at(about.source, about.source_port) {
            Some(service) => self.error_to_server(about, service),
            None => self.error_to_client(about),
        };
        match translated {
            None => Verdict::Left(Reason::NotOurs),
            Some(_) if ttl <= 1 => Verdict::Left(Reason::TtlExceeded),
            Some(verdict) => verdict,
        }
    }

    /// About a packet from the service to a client.
    fn error_to_server(&self, about: &Ends, service: u16) -> Option<Verdict> {
        let key = Key {
            service,
            client: about.destination,
            port: about.destination_port,
            service_port: about.source_port,
        };
        let flow = match self.flow_of(key) {
            Some(slot) => self.flows[slot].as_ref()?,
            None => self.half_open[self.half_open_of(key)?].as_ref()?,
        };
        let number = server_number(flow.server)?;
        self.present(number).filter(|state| state.has(ServerState::REACHABLE))?;
        let host = &SERVERS[number];
        let ends = Ends {
            source: host.address,
            source_port: 443,
            destination: SOURCES[usize::from(flow.source)],
            destination_port: flow.port,
        };
        Some(Verdict::Sent(Reason::IcmpToServer, host.mac, ends))
    }

    /// About a packet from a SNAT port to a server.
    fn error_to_client(&self, about: &Ends) -> Option<Verdict> {
        let server = (about.destination, about.destination_port);
        let (endpoint, source) = self.conversation(server, (about.source, about.source_port))?;
        let (_, _, Flow { key, hop, .. }) = self.by_port(endpoint, source, about.source_port)?;
        let ends = Ends {
            source: key.client,
            source_port: key.port,
            destination: SERVICES[service_number(key.service)].address,
            destination_port: key.service_port,
        };
        Some(Verdict::Sent(Reason::IcmpToClient, hop, ends))
    }
}
