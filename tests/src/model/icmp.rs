//! ICMP errors about packets of a flow: whoever sent the packet is told (RFC 5508 section 4.2).

use lb_common::{forwarding::Forwarding, reason::Reason, server::ServerState};

use super::{Answers, Ends, Key, Model, Verdict, between, parse::IcmpError, server_number};
use crate::golden::hospital::SERVERS;

impl Model {
    pub(super) fn icmp_error(&self, error: &IcmpError) -> Verdict {
        let about = &error.about;
        if error.to != about.source {
            return Verdict::Left(Reason::NotOurs);
        }
        let service = self.settings.site.service_at(about.source, about.source_port, error.protocol);
        let translated = match service {
            Some(service) => self.error_to_server(error, service),
            None => self.error_to_client(about, error.protocol),
        };
        match translated {
            None => Verdict::Left(Reason::NotOurs),
            Some(_) if error.ttl <= 1 => Verdict::Left(Reason::TtlExceeded),
            Some(verdict) => verdict,
        }
    }

    /// About a packet from the service to a client.
    fn error_to_server(&self, error: &IcmpError, service: u16) -> Option<Verdict> {
        let about = &error.about;
        let client = (about.destination, about.destination_port);
        let flow = self.by_client(client.0, client.1, service, about.source_port)?.flow;
        let number = server_number(flow.server)?;
        self.present(number).filter(|state| state.has(ServerState::REACHABLE))?;
        let (site, hop) = (&self.settings.site, SERVERS[number].mac);
        let kind = site.kind(service);
        let server = (site.server(number), kind.port_for(about.source_port));
        let told = Reason::IcmpToServer;
        Some(match kind.forwarding {
            // The server knows us alone.
            Forwarding::Snat => {
                let ours = site.source(service, flow.source);
                Verdict::Sent(told, hop, between(server, (ours, flow.port)), Some(ours))
            }
            Forwarding::Nat => Verdict::Sent(told, hop, between(server, client), None),
            Forwarding::Dr => Verdict::Addressed(told, hop),
            Forwarding::Tunnel => match self.too_small_a_tunnel(kind, error.length) {
                Some(mtu) => Verdict::TooBig(mtu),
                None => Verdict::Tunnelled(told, number),
            },
        })
    }

    /// About a packet from a SNAT port, or from a client itself, to a server.
    fn error_to_client(&self, about: &Ends, protocol: u8) -> Option<Verdict> {
        let site = &self.settings.site;
        let (found, hides_server) =
            match site.answers_from(about.destination, about.destination_port, protocol)? {
                Answers::Ours(endpoint) => {
                    let source = self.own(about.source, about.source_port)?;
                    (self.by_port(endpoint, source, about.source_port)?, true)
                }
                Answers::Clients(service, asked) => {
                    (self.by_client(about.source, about.source_port, service, asked)?, false)
                }
            };
        let Key { service, client, port, service_port } = found.flow.key;
        if site.kind(service).protocol() != protocol {
            return None;
        }
        let vip = site.vip(service);
        let ends = between((client, port), (vip, service_port));
        Some(Verdict::Sent(Reason::IcmpToClient, found.flow.hop, ends, hides_server.then_some(vip)))
    }
}
