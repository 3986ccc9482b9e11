//! Which services and servers a forwarding mode can bring together.

use std::collections::HashMap;
use std::net::IpAddr;

use super::error::{Findings, Position};
use super::model::{Forwarding, Service};
use super::read_service::{Draft, ServerDraft};

/// Checks each server of a service against the service's mode.
pub(super) fn check(draft: &Draft, findings: &mut Findings) {
    let forwarding = forwarding(draft);
    for server in &draft.servers {
        one_family(draft, forwarding, server, findings);
        if let Some(forwarding) = forwarding {
            port_kept(draft, forwarding, server, findings);
        }
    }
}

/// The mode, where the service could be read and has one.
fn forwarding(draft: &Draft) -> Option<Forwarding> {
    match &draft.service {
        Some(Service { protocol, forwarding, .. }) if protocol.is_balanced() => Some(*forwarding),
        _ => None,
    }
}

fn one_family(draft: &Draft, forwarding: Option<Forwarding>, server: &ServerDraft, findings: &mut Findings) {
    let (Some(service), Some(address)) = (draft.address, server.address) else { return };
    if service.value.is_ipv4() == address.value.is_ipv4() || forwarding == Some(Forwarding::Tunnel) {
        return;
    }
    let what = format!("address {} is not of its service's family ({})", address.value, service.value);
    findings.error(
        address.at,
        what,
        "use addresses of one family in a service, or forwarding: tunnel, which puts packets of one family into the other",
    );
}

/// In some modes the server gets packets for the port that the client asked for, in one only if it has a single one.
fn port_kept(draft: &Draft, forwarding: Forwarding, server: &ServerDraft, findings: &mut Findings) {
    let (Some(address), Some(port)) = (server.address, server.port) else { return };
    let several = draft.ports.len() > 1;
    let moved = draft.ports.first().is_some_and(|asked| asked.value != port);
    let (wrong, why) = match forwarding {
        Forwarding::Snat => return,
        Forwarding::Nat => {
            (several && !server.same_port, "an answer would not tell to which of the service's ports")
        }
        Forwarding::Dr | Forwarding::Tunnel => (
            !server.same_port && (several || moved),
            "packets go to the server with the port that the client asked for",
        ),
    };
    if wrong {
        let what = format!("port {port} is not possible with forwarding: {forwarding}: {why}");
        findings.error(address.at, what, "remove the server's port, or use forwarding: snat");
    }
}

/// A server's answer to a client itself tells by its address and port alone to which service it belongs.
pub(super) fn nat_servers_apart(drafts: &[Draft], findings: &mut Findings) {
    let mut taken: HashMap<(IpAddr, u16), (usize, bool, Position)> = HashMap::new();
    for (number, draft) in drafts.iter().enumerate() {
        let Some(forwarding) = forwarding(draft).filter(|forwarding| !forwarding.keeps_destination()) else {
            continue;
        };
        let nat = forwarding == Forwarding::Nat;
        for server in &draft.servers {
            let (Some(address), Some(named)) = (server.address, server.port) else { continue };
            let several = draft.ports.iter().map(|port| port.value).filter(|_| server.same_port);
            for port in several.chain([named]) {
                let (before, other_nat, at) =
                    *taken.entry((address.value, port)).or_insert((number, nat, address.at));
                if before == number || !(nat || other_nat) {
                    continue;
                }
                let what = format!(
                    "{}:{port} answers for the virtual service on line {} too, and one of both has forwarding: nat",
                    address.value, at.line
                );
                findings.error(
                    address.at,
                    what,
                    "give the server a port of its own for each service, or use forwarding: snat",
                );
                break;
            }
        }
    }
}
