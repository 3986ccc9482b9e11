//! ICMP errors about packets of a flow: whoever sent the packet is told (RFC 5508 section 4.2).

use lb_common::{forwarding::Forwarding, reason::Reason, server::ServerState};

use super::{
    Answers, Ends, Flow, Key, Model, Verdict, between, parse::IcmpError, server::Found, server_number,
};
use crate::golden::hospital::SERVERS;

impl Model {
    pub(super) fn icmp_error(&mut self, error: &IcmpError, from_group: bool) -> Verdict {
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
            Some(_) if from_group => Verdict::Left(Reason::BadHeader),
            Some(_) if service.is_some_and(|service| self.learns_small_mtu(error, service)) => {
                Verdict::Left(Reason::SmallPathMtu)
            }
            Some(verdict) => verdict,
        }
    }

    /// Whether an error tells of a path to a client that is too narrow to be told to a server which has one path to all of them;
    /// over IPv4 its flow's packets may be fragmented then.
    fn learns_small_mtu(&mut self, error: &IcmpError, service: u16) -> bool {
        let one_path = self.settings.site.kind(service).forwarding == Forwarding::Snat;
        if !one_path || error.mtu.is_none_or(|mtu| mtu >= 1280) {
            return false;
        }
        let about = &error.about;
        let found = self.by_client(about.destination, about.destination_port, service, about.source_port);
        if let Some(Found { slot, half_open, flow }) = found.filter(|_| about.source.is_ipv4()) {
            let flow = Some(Flow { may_fragment: true, ..flow });
            if half_open { self.set_half_open(slot, flow) } else { self.set_flow(slot, flow) }
        }
        true
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
            Forwarding::Dr => Verdict::SentOn(told, hop),
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
