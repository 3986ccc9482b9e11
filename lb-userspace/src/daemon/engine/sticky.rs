//! Forgetting and moving single clients.

use lb_common::address::Address;
use lb_common::clock::Ticks;
use lb_common::server::{ServerState, Servers as _};
use serde_json::{Value, json};
use tracing::info;

use super::change::Refusal;
use super::request::{ForgetClient, MoveClient, answer};
use super::{Engine, balanced};
use crate::config::Persistence;
use crate::core::plan::{Moved, count};
use crate::core::rows::{self, Assigned};
use crate::core::text::{unpadded, with_port};
use crate::core::{Before, Plan};

impl Engine {
    pub(super) fn forget(&mut self, forget: &ForgetClient) -> Result<Value, Refusal> {
        let services: Vec<(String, u16)> = match &forget.service {
            Some(label) => vec![self.numbered(self.find_service(label)?.label.as_str())?],
            None => balanced(&self.running)
                .map(|service| self.numbered(service.label.as_str()))
                .collect::<Result<_, _>>()?,
        };
        let now = self.maps.now()?;
        let client = Address::from(forget.client.to_canonical());
        let mut forgotten = 0;
        let mut plan = Plan::default();
        for (label, id) in services {
            for port in rows::ports_of(&self.maps, id, client, now) {
                let Some(server) = rows::recorded(&self.maps, id, client, port, now) else { continue };
                if forget.dry_run || rows::forget(&self.maps, id, client, port, now) {
                    forgotten += 1;
                    let (with, server) = (with_port(&label, named(port)), self.label_of(server));
                    plan.changes.push(format!("- sticky record of {} with {with}: {server}", forget.client));
                }
            }
        }
        if forget.dry_run {
            return Ok(json!({ "forgotten": 0, "plan": plan }));
        }
        let done = match forgotten {
            0 => format!("there was no sticky record of {}", forget.client),
            some => format!(
                "{} of {} forgotten: its next connection is an unknown client's",
                count(some, "sticky record"),
                forget.client
            ),
        };
        info!("{done}");
        let mut answer = answer(&done, &plan);
        answer["forgotten"] = forgotten.into();
        Ok(answer)
    }

    pub(super) fn move_client(&mut self, to: &MoveClient) -> Result<Value, Refusal> {
        let (name, server) = self.find_server(&to.service, &to.server)?;
        let service = self.find_service(&to.service)?;
        if service.persistence == Persistence::None {
            return Err(Refusal::Conflict(format!(
                "{} has no persistence: its clients have no records that could be moved",
                to.service
            )));
        }
        if service.address.is_ipv4() != to.client.to_canonical().is_ipv4() {
            return Err(Refusal::Bad(format!(
                "{} cannot be a client of {}, whose address is {}",
                to.client, to.service, service.address
            )));
        }
        let (_, service) = self.numbered(&to.service)?;
        let usable = self
            .maps
            .servers
            .present(server)
            .is_some_and(|server| server.state.has(ServerState::TAKES_KNOWN));
        if !usable {
            return Err(Refusal::Conflict(format!(
                "{name} takes nobody, because it is down or halted: choose a server that is up"
            )));
        }
        let now = self.maps.now()?;
        let client = Address::from(to.client.to_canonical());
        let ports = rows::ports_of(&self.maps, service, client, now);
        if ports.is_empty() {
            return Err(Refusal::Conflict(format!(
                "{} has no record with {}, which keeps one for each port: it gets one with its first connection to that port",
                to.client, to.service
            )));
        }
        let plan = self.plan_of_move(to, service, client, &ports, server, now)?;
        if to.dry_run {
            return Ok(json!({ "plan": plan }));
        }
        let mut done = Vec::new();
        for port in ports {
            let from = match named(port) {
                None => to.client.to_string(),
                Some(port) => format!("{} to port {port}", to.client),
            };
            done.push(match rows::assign(&self.maps, service, client, port, server, now) {
                Assigned::Moved { from: before } => {
                    format!("the next connection of {from} goes to {name}, not to {}", self.label_of(before))
                }
                Assigned::Already => format!("{from} belongs to {name} already"),
                Assigned::Created => {
                    format!("the next connection of {from} goes to {name}; it had no record")
                }
                Assigned::Full => {
                    return Err(Refusal::Conflict(format!(
                        "the sticky table has no room for a record of {from}: forget clients, or make \
                         node.tables.sticky larger"
                    )));
                }
                Assigned::Contended => {
                    return Err(Refusal::Failed(format!(
                        "the record of {from} is being changed by its own connections: try again"
                    )));
                }
            });
        }
        let done = done.join("; ");
        info!("{done}");
        Ok(answer(&done, &plan))
    }

    fn plan_of_move(
        &self,
        to: &MoveClient,
        service: u16,
        client: Address,
        ports: &[u16],
        server: u16,
        now: Ticks,
    ) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        let live = Before::whole(&self.maps)?;
        for port in ports {
            let recorded = rows::recorded(&self.maps, service, client, *port, now);
            if recorded == Some(server) {
                continue;
            }
            let with = with_port(&to.service, named(*port));
            plan.changes.push(match recorded {
                None => format!("+ sticky record of {} with {with}: {}", to.client, to.server),
                Some(before) => {
                    format!(
                        "~ sticky record of {} with {with}: {} -> {}",
                        to.client,
                        self.label_of(before),
                        to.server
                    )
                }
            });
            // Where it would go now, which is not the record's server if there is none, or that takes nobody.
            let next = live.next(&self.maps, service, client, recorded);
            if next != Some(server) {
                let from = next.map(|id| self.label_of(id));
                let client = to.client.to_canonical();
                plan.moved.push(Moved { service: with, client, from, to: Some(to.server.clone()) });
            }
        }
        plan.clients_moved = plan.moved.len() as u64;
        if !plan.changes.is_empty() {
            plan.warnings.push("connections that are open stay where they are".to_owned());
        }
        Ok(plan)
    }

    fn numbered(&self, label: &str) -> Result<(String, u16), Refusal> {
        match self.state.ids.service(label) {
            Some(number) => Ok((label.to_owned(), number.id)),
            None => Err(Refusal::Failed(format!(
                "{label} has no number (a defect of Steadfast: please report it)"
            ))),
        }
    }

    fn label_of(&self, server: u16) -> String {
        self.maps
            .server_info
            .read(usize::from(server))
            .filter(|info| info.label[0] != 0)
            .map_or_else(|| format!("a removed server (#{server})"), |info| unpadded(&info.label))
    }
}

/// The port of a record, if it is for one.
fn named(port: u16) -> Option<u16> {
    (port != 0).then(|| u16::from_be(port))
}
