//! Forgetting and moving single clients.

use lb_common::address::Address;
use lb_common::server::{ServerState, Servers as _};
use serde_json::{Value, json};
use tracing::info;

use super::change::Refusal;
use super::request::{ForgetClient, MoveClient, answer};
use super::{Engine, balanced};
use crate::config::Persistence;
use crate::core::Plan;
use crate::core::plan::{Moved, count};
use crate::core::rows::{self, Assigned};
use crate::core::text::unpadded;

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
            let Some(server) = rows::recorded(&self.maps, id, client, now) else { continue };
            if forget.dry_run || rows::forget(&self.maps, id, client, now) {
                forgotten += 1;
                let server = self.label_of(server);
                plan.changes.push(format!("- sticky record of {} with {label}: {server}", forget.client));
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
        let before = rows::recorded(&self.maps, service, client, now);
        let plan = self.plan_of_move(to, before, server);
        if to.dry_run {
            return Ok(json!({ "plan": plan }));
        }
        let done = match rows::assign(&self.maps, service, client, server, now) {
            Assigned::Moved { from } => {
                format!("the next connection of {} goes to {name}, not to {}", to.client, self.label_of(from))
            }
            Assigned::Already => format!("{} belongs to {name} already", to.client),
            Assigned::Created => {
                format!("the next connection of {} goes to {name}; it had no record", to.client)
            }
            Assigned::Full => {
                return Err(Refusal::Conflict(format!(
                    "the sticky table has no room for a record of {}: forget clients, or make node.tables.sticky \
                     larger",
                    to.client
                )));
            }
            Assigned::Contended => {
                return Err(Refusal::Failed(format!(
                    "the record of {} is being changed by its own connections: try again",
                    to.client
                )));
            }
        };
        info!("{done}");
        Ok(answer(&done, &plan))
    }

    fn plan_of_move(&self, to: &MoveClient, before: Option<u16>, server: u16) -> Plan {
        let mut plan = Plan::default();
        if before != Some(server) {
            plan.moved.push(Moved {
                service: to.service.clone(),
                client: to.client.to_canonical(),
                from: before.map(|id| self.label_of(id)),
                to: Some(to.server.clone()),
            });
            plan.warnings.push("connections that are open stay where they are".to_owned());
        }
        plan
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
