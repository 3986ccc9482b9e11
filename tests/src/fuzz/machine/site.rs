//! A site in the program's maps.

use anyhow::Result;
use lb_common::{
    TCP,
    address::Address,
    clock::Ticks,
    mss::MssClamp,
    schedule::Scheduler,
    server::{Server, ServerState},
    service::{EntryKind, IndexEntry, Service},
};

use super::Machine;
use crate::{
    golden::hospital::{LOCAL_SERVICE, SERVERS, SERVICES},
    model::{Answers, Kind, Model, Site, twin},
};

/// The bit of a server without a port of its own.
pub(super) fn same_port(kind: &Kind) -> u16 {
    if kind.server_port.is_none() { ServerState::SAME_PORT } else { 0 }
}

impl Machine {
    /// Brings the model's settings, services and servers into the program's maps.
    pub(super) fn set_up(&mut self, model: &Model) -> Result<()> {
        let settings = &model.settings;
        let site = settings.site;
        if self.site != Some(site) {
            self.bench.fill_index(&index(&site))?;
            self.site = Some(site);
        }
        let sources = [false, true].map(|v6| crate::golden::hospital::SOURCES.map(|source| twin(source, v6)));
        self.bench.set_snat_of_both(settings.sources, settings.ports, &sources);
        self.bench.set_mtu(site.mtu);
        for (number, service) in SERVICES.iter().enumerate() {
            let kind = site.kind(service.id);
            let ticks = |span: i64| Ticks(u32::try_from(span).unwrap_or(u32::MAX));
            let entry = Service {
                address: Address::from(site.vip(service.id)),
                persistence: ticks(settings.persistence[number]),
                idle: ticks(settings.idle[number]),
                forwarding: kind.forwarding,
                by_prefix: kind.by_prefix,
                by_port: kind.by_port,
                is_udp: kind.is_udp,
                scheduler: Scheduler::SourceHash,
                mss_clamp: MssClamp::None,
            };
            self.bench.put_service(service.id, &entry);
        }
        for (number, (host, state)) in SERVERS.iter().zip(model.servers).enumerate() {
            let kind = site.kind(host.service);
            let entry = Server {
                address: Address::from(site.server(number)),
                port: kind.port_for(kind.ports[0]).to_be(),
                endpoint: host.endpoint,
                service: host.service,
                forwarding: kind.forwarding,
                arm: 0,
                mac: host.mac,
                state: ServerState(state.0 | same_port(kind)),
            };
            self.bench.put_server(host.id, &entry);
        }
        Ok(())
    }
}

fn index(site: &Site) -> Vec<IndexEntry> {
    let entry = |address, port: u16, protocol, kind, id, asked: u16| IndexEntry {
        address: Address::from(address),
        port: port.to_be(),
        protocol,
        kind,
        id,
        service_port: asked.to_be(),
    };
    let mut entries = vec![entry(site.vip(SERVICES[0].id), 80, TCP, EntryKind::Local, LOCAL_SERVICE, 0)];
    for service in SERVICES {
        let (vip, kind) = (site.vip(service.id), site.kind(service.id));
        entries.push(entry(vip, 0, kind.protocol(), EntryKind::Address, service.id, 0));
        let ports = kind.ports.iter();
        entries.extend(ports.map(|p| entry(vip, *p, kind.protocol(), EntryKind::Service, service.id, 0)));
    }
    entries.extend(site.answering().into_iter().map(|(address, port, protocol, answers)| match answers {
        Answers::Ours(endpoint) => entry(address, port, protocol, EntryKind::Endpoint, endpoint, 0),
        Answers::Clients(service, asked) => {
            entry(address, port, protocol, EntryKind::NatEndpoint, service, asked)
        }
    }));
    entries
}
