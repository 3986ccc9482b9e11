//! Why a client is on its server, and where a new connection would land now.
//!
//! The answer comes from the functions that the program itself calls, over the memory that it reads: the sticky record
//! by [`find`](lb_common::table::find) with the real hash key, the server by [`choose`], its place by the live
//! scheduler table.

use std::{fmt::Write as _, net::IpAddr};

use lb_common::{
    address::Address,
    choose::{ATTEMPTS, Choice, choose},
    maps::ServiceInfo,
    schedule::Scheduler as Kind,
    server::{Server, ServerState, Servers as _},
    sticky::Sticky,
    tcp::TcpState,
};
use serde::Serialize;

use crate::core::{rows, text::with_port};

use super::{
    Snapshot, flow,
    format::{duration, plural},
    names::{self, ip},
    scheduler::{self, Scheduler},
    server::{AdminState, Health},
    service::HTTP,
    sticky::{self, StickyRecord},
};

/// How the server of a new connection is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// By the client's sticky record.
    Sticky,
    /// By the scheduler.
    Scheduled,
    /// Not at all: the connection is answered with RST.
    Nobody,
}

/// Where a new connection goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Landing {
    /// How it is found.
    pub verdict: Verdict,
    /// The real server's label.
    pub server: Option<String>,
}

/// What would become of a client's new connection to one service, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The virtual service's label.
    pub service: String,
    /// The service's port, where a client has a record for each.
    pub port: Option<u16>,
    /// The client.
    pub client: IpAddr,
    /// Its sticky record.
    pub record: Option<StickyRecord>,
    /// Its open flows.
    pub flows: u64,
    /// How the server of a new connection would be found.
    pub verdict: Verdict,
    /// That server's label.
    pub server: Option<String>,
    /// Whether packets can be sent there: the next hop's MAC address is known.
    pub reachable: bool,
    /// Why, in words.
    pub why: String,
    /// Where it would land if it had no sticky record.
    pub without_record: Landing,
}

/// Explains a client to one service, or (`None`) to all of its address family that are balanced here.
///
/// # Errors
/// The named service is answered by the daemon itself; the client is of another address family than everything that
/// was asked for; or the kernel refused the scheduler's table.
pub fn explain(
    snapshot: &Snapshot<'_>,
    client: Address,
    service: Option<u16>,
) -> anyhow::Result<Vec<Explanation>> {
    let is_http = |id: u16| snapshot.names.service_info(id).is_some_and(|info| info.protocol == HTTP);
    if let Some(id) = service.filter(|id| is_http(*id)) {
        anyhow::bail!(
            "{} is answered by the daemon itself (a redirect to https): no server is picked",
            snapshot.names.service_label(id)
        );
    }
    let balanced = || {
        let services = snapshot.names.services();
        services.filter(|(id, _)| service.is_none_or(|wanted| wanted == *id) && !is_http(*id))
    };
    let reaches = |info: &ServiceInfo| Address(info.address).is_v4() == client.is_v4();
    if balanced().next().is_some() && !balanced().any(|(_, info)| reaches(info)) {
        let place = |info: &ServiceInfo| format!("{} is at {}", names::text(&info.label), ip(info.address));
        let others: Vec<String> = balanced().map(|(_, info)| place(info)).collect();
        anyhow::bail!(
            "{} is of another address family than what is balanced: {}",
            IpAddr::from(client),
            others.join(", ")
        );
    }
    let mut explanations = Vec::new();
    for (id, info) in balanced().filter(|(_, info)| reaches(info)) {
        let mut ports = rows::ports_of(snapshot.maps(), id, client, snapshot.clock.now);
        if scheduler::service(snapshot.maps(), id).is_some_and(|service| service.by_port) {
            ports.retain(|port| *port != 0);
            if ports.is_empty() {
                ports.push(info.port.to_be());
            }
        }
        for port in ports {
            explanations.push(one(snapshot, client, id, port)?);
        }
    }
    Ok(explanations)
}

/// `port` is zero where a record is for all ports.
fn one(snapshot: &Snapshot<'_>, client: Address, service: u16, port: u16) -> anyhow::Result<Explanation> {
    let case = Case {
        snapshot,
        client,
        service,
        port: (port != 0).then_some(port),
        scheduler: Scheduler::read(snapshot.maps(), service, port)?,
        record: recorded(snapshot, client, service, port),
        persistent: scheduler::service(snapshot.maps(), service)
            .is_some_and(|service| service.persistence.0 != 0),
    };
    let choice = case.choose(case.record.as_ref().map(|record| record.to.server));
    let landing = case.landing(choice);
    Ok(Explanation {
        service: snapshot.names.service_label(service),
        port: case.port.map(u16::from_be),
        client: client.into(),
        record: case.record.as_ref().map(|record| StickyRecord::new(snapshot, record)),
        flows: case.open_flows(),
        verdict: landing.verdict,
        server: landing.server,
        reachable: server_of(choice).is_some_and(|(_, server)| server.state.has(ServerState::REACHABLE)),
        why: case.why(choice),
        without_record: case.landing(case.choose(None)),
    })
}

/// The record that the program would use: none where the service keeps none.
fn recorded(snapshot: &Snapshot<'_>, client: Address, service: u16, port: u16) -> Option<Sticky> {
    let entry = scheduler::service(snapshot.maps(), service)?;
    if entry.persistence.0 == 0 {
        return None;
    }
    sticky::lookup(snapshot, service, client, port)
}

const fn server_of(choice: Choice) -> Option<(u16, Server)> {
    match choice {
        Choice::Sticky(id, server) | Choice::Scheduled(id, server) => Some((id, server)),
        Choice::Nobody => None,
    }
}

struct Case<'a> {
    snapshot: &'a Snapshot<'a>,
    client: Address,
    service: u16,
    /// The one port that is asked about, as on the wire, where each has a record of its own.
    port: Option<u16>,
    scheduler: Scheduler<'a>,
    record: Option<Sticky>,
    persistent: bool,
}

impl Case<'_> {
    fn choose(&self, record: Option<u16>) -> Choice {
        choose(&self.snapshot.maps().servers, self.service, record, |attempt| {
            self.scheduler.pick(self.client, attempt)
        })
    }

    fn label(&self, id: u16) -> String {
        self.snapshot.names.server_label(id)
    }

    fn landing(&self, choice: Choice) -> Landing {
        let (verdict, id) = match choice {
            Choice::Sticky(id, _) => (Verdict::Sticky, Some(id)),
            Choice::Scheduled(id, _) => (Verdict::Scheduled, Some(id)),
            Choice::Nobody => (Verdict::Nobody, None),
        };
        Landing { verdict, server: id.map(|id| self.label(id)) }
    }

    fn open_flows(&self) -> u64 {
        let filter = flow::Filter {
            service: Some(self.service),
            client: Some(self.client),
            ..flow::Filter::default()
        };
        flow::wanted(self.snapshot, filter)
            .filter(|flow| !flow.state.is_closed())
            .filter(|flow| self.port.is_none_or(|port| port == flow.key.service_port))
            .filter(|flow| !matches!(flow.state, TcpState::SynSent | TcpState::SynReceived))
            .count() as u64
    }

    fn why(&self, choice: Choice) -> String {
        let mut why = self.why_not_sticky(choice);
        match choice {
            Choice::Sticky(id, _) => {
                why = format!("its sticky record names {}, {}", self.label(id), self.condition(id));
            }
            Choice::Scheduled(id, _) => {
                let _ = write!(why, "; {}", self.why_scheduled(id));
            }
            Choice::Nobody if self.scheduler.pick(self.client, 0).is_none() => {
                why.push_str("; the scheduler has no server to give to unknown clients");
            }
            Choice::Nobody => {
                let first = self.scheduler.pick(self.client, 0).unwrap_or_default();
                let _ = write!(
                    why,
                    "; the scheduler's table still names {}, {}, and {ATTEMPTS} places gave no server that takes new \
                     clients",
                    self.label(first),
                    self.condition(first)
                );
            }
        }
        match server_of(choice) {
            None => why.push_str("; the connection is answered with RST"),
            Some((_, server)) if !server.state.has(ServerState::REACHABLE) => why.push_str(
                "; but its next hop's MAC address is not known, so the SYN is dropped (no-neighbour)",
            ),
            Some(_) => {}
        }
        why
    }

    fn why_not_sticky(&self, choice: Choice) -> String {
        match &self.record {
            _ if !self.persistent => "the service keeps no sticky records".to_owned(),
            None => "it has no sticky record".to_owned(),
            Some(record) => {
                let id = record.to.server;
                let follows = if matches!(choice, Choice::Nobody) {
                    ""
                } else {
                    " (the record follows once it is connected)"
                };
                format!(
                    "its sticky record names {}, {}, which takes no connections{follows}",
                    self.label(id),
                    self.condition(id)
                )
            }
        }
    }

    fn why_scheduled(&self, id: u16) -> String {
        let attempt = (0..ATTEMPTS).find(|attempt| {
            let pick = self.scheduler.pick(self.client, *attempt);
            pick == Some(id)
        });
        let attempt = attempt.unwrap_or(0);
        if self.scheduler.kind().is_live() {
            return self.why_counted(id);
        }
        let place = self.scheduler.place(self.client, attempt).unwrap_or(0);
        let mut why =
            format!("the scheduler gives it {} (place {place} of {})", self.label(id), self.scheduler.size());
        if attempt > 0 {
            let first = self.scheduler.pick(self.client, 0).unwrap_or_default();
            let _ = write!(
                why,
                " at attempt {}: its first place belongs to {}, {}",
                attempt + 1,
                self.label(first),
                self.condition(first)
            );
        }
        why
    }

    /// Why a scheduler that counts gives a server at this moment.
    fn why_counted(&self, id: u16) -> String {
        let label = self.label(id);
        if self.scheduler.noted(self.client) == Some(id) {
            return format!("{label} was picked for it a moment ago");
        }
        if self.scheduler.kind() == Kind::RoundRobin {
            return format!("it is the turn of {label}, until another client comes");
        }
        let open = plural(u64::from(self.scheduler.load(id).open), "open connection", "open connections");
        format!("least-conn gives it {label}, which has {open} now")
    }

    /// How a server is, in words.
    fn condition(&self, id: u16) -> String {
        let Some(server) = self.snapshot.maps().servers.present(id) else {
            return "which was removed".to_owned();
        };
        if server.service != self.service {
            return "which is now another service's".to_owned();
        }
        let Some(info) = self.snapshot.names.server_info(id) else {
            return "whose name is not known".to_owned();
        };
        let state = match AdminState::from_number(info.state) {
            AdminState::Online if info.weight == 0 => "which is online with weight 0",
            AdminState::Online => "which is online",
            AdminState::Drain => "which is draining",
            AdminState::Halt => "which is halted",
        };
        let health = Health::from_number(info.health);
        let reason = names::text(&info.health_reason);
        if health == Health::Up || reason.is_empty() {
            format!("{state} and {}", health.as_str())
        } else {
            format!("{state} and {} ({reason})", health.as_str())
        }
    }
}

/// The explanation for a person.
#[must_use]
pub fn text(explanations: &[Explanation]) -> String {
    let mut out = String::new();
    if explanations.is_empty() {
        out.push_str("there are no virtual services that balance\n");
    }
    for (index, explanation) in explanations.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        out.push_str(&paragraph(explanation));
    }
    out
}

fn paragraph(explanation: &Explanation) -> String {
    let Explanation { client, .. } = explanation;
    let service = with_port(&explanation.service, explanation.port);
    let mut out = match &explanation.server {
        Some(server) => format!("{service}: a new connection of {client} goes to {server}\n"),
        None => format!("{service}: a new connection of {client} goes to nobody\n"),
    };
    let mut line = |name: &str, value: &str| out.push_str(&format!("  {name:<16}{value}\n"));
    line("because", &explanation.why);
    match &explanation.record {
        Some(record) => {
            let expires = record.expires_in.map_or_else(
                || "does not expire while a connection is open".to_owned(),
                |seconds| format!("expires in {} unless it connects again", duration(seconds)),
            );
            line(
                "sticky record",
                &format!(
                    "{} since {} (or up to {} later), last used {}, {expires}",
                    record.server,
                    record.made_at,
                    duration(record.made_at_within),
                    record.last_used
                ),
            );
        }
        None => line("sticky record", "none"),
    }
    line("open now", &plural(explanation.flows, "connection", "connections"));
    if explanation.record.is_some() {
        line("without record", explanation.without_record.server.as_deref().unwrap_or("nobody"));
    }
    out
}
