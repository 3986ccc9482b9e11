//! Changing what is in force: everything is computed first, then made durable, then written to the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use lb_common::clock::Ticks;
use lb_common::maps::ServerInfo;
use lb_common::server::{Server, ServerState};
use tracing::{error, info, warn};

use super::{ConfigFile, Engine, Unchecked, balanced, seconds};
use crate::config::{self, Change, Config};
use crate::core::apply::apply_states;
use crate::core::desired::{Desired, Leaving};
use crate::core::overlay::{OverlayError, effective};
use crate::core::rows::Usage;
use crate::core::{Applied, Before, Plan, ServerName, plan};
use crate::daemon::sources::without_source;
use crate::daemon::store::{AppliedText, State};
use crate::view::flow::sources;

/// Why a request was not carried out: a sentence, and whose fault it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request does not say something that can be done.
    Bad(String),
    /// It speaks of something that is not there.
    Unknown(String),
    /// It cannot be done as things are.
    Conflict(String),
    /// It could be done, but something broke.
    Failed(String),
}

impl Refusal {
    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Bad(_) => 400,
            Self::Unknown(_) => 404,
            Self::Conflict(_) => 409,
            Self::Failed(_) => 500,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bad(why) | Self::Unknown(why) | Self::Conflict(why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

/// What would be in force.
pub(super) struct Candidate {
    pub(super) base: Config,
    pub(super) state: State,
    /// Servers that go at once.
    pub(super) reset: BTreeSet<u16>,
    /// What should be said beside the plan.
    pub(super) notes: Vec<String>,
}

/// A candidate, thought through.
pub(super) struct Prepared {
    next: Next,
    thought: Thought,
    /// The servers that go, if what is wanted can be put into the maps as it is: nothing but states and weights changes, and
    /// nobody is reset.
    gently: Option<BTreeMap<u16, Leaving>>,
}

/// What the engine is to hold.
struct Next {
    base: Config,
    running: Config,
    state: State,
    reset: BTreeSet<u16>,
}

/// What can be said about a change, also afterwards.
struct Thought {
    /// What changes, a line each.
    changes: Vec<String>,
    notes: Vec<String>,
    /// What the maps held when this was thought of, and when.
    before: Before,
    now: Ticks,
    desired: Desired,
    /// The same once the servers that are not checked yet have answered, where there are such: what a plan is asked for.
    answered: Option<Desired>,
}

impl Engine {
    /// A candidate that changes nothing yet.
    pub(super) fn candidate(&self) -> Candidate {
        Candidate {
            base: self.base.clone(),
            state: self.state.clone(),
            reset: self.reset.clone(),
            notes: Vec::new(),
        }
    }

    /// A whole configuration as candidate.
    pub(super) fn whole(&self, source: &str, text: &str) -> Result<Candidate, Refusal> {
        let checked = config::check(source, text).map_err(|errors| Refusal::Bad(errors.to_string()))?;
        let mut candidate = self.candidate();
        candidate.notes = candidate.state.overlay.apply(&checked.config);
        candidate.notes.extend(checked.warnings.iter().map(|warning| format!("{source}:{warning}")));
        candidate.base = checked.config;
        candidate.state.applied = Some(AppliedText { text: text.to_owned(), source: source.to_owned() });
        Ok(candidate)
    }

    /// What a candidate means and does.
    pub(super) fn prepare(&self, candidate: Candidate) -> Result<Prepared, Refusal> {
        let Candidate { base, mut state, reset, notes } = candidate;
        let running = effective(&base, &state.overlay).map_err(|error| match error {
            OverlayError::NoService(_) => Refusal::Unknown(error.to_string()),
            error => Refusal::Bad(error.to_string()),
        })?;
        let changes = config::diff(&self.running, &running);
        refuse_node_changes(&changes)?;
        self.refuse_other_families(&running)?;
        self.refuse_what_is_in_the_way(&running)?;
        let now = self.maps.now()?;
        if !changes.is_empty() {
            let usage = Usage::of(&self.maps, now);
            state.ids = state
                .ids
                .assign(&running, &usage.in_use, self.endpoints(), self.unix())
                .map_err(|error| Refusal::Conflict(error.to_string()))?;
        }
        let (desired, leaving) = self.future(&running, &state, &reset, now, Unchecked::Wait)?;
        let (answered, _) = self.future(&running, &state, &reset, now, Unchecked::HaveAnswered)?;
        let waits = answered.weights != desired.weights;
        let mut before = Before::of(&self.maps);
        let resets = |(id, (server, _)): (&u16, &(Server, ServerInfo))| {
            server.state.has(ServerState::RESETS) && !before.resets(*id)
        };
        let is_gentle =
            reset == self.reset && changes.iter().all(is_weight) && !desired.servers.iter().any(resets);
        if !is_gentle {
            before.read_tables(&self.maps)?;
        }
        let mut lines: Vec<String> = changes.iter().map(ToString::to_string).collect();
        lines.extend(self.state_changes(&running, &state));
        let mut notes = notes;
        if waits {
            notes.push(
                "servers that are not checked yet take unknown clients once they have answered: the plan is of then"
                    .to_owned(),
            );
        }
        Ok(Prepared {
            next: Next { base, running, state, reset },
            thought: Thought {
                changes: lines,
                notes,
                before,
                now,
                desired,
                answered: waits.then_some(answered),
            },
            gently: is_gentle.then_some(leaving),
        })
    }

    /// What a candidate does to clients.
    pub(super) fn plan(&self, mut prepared: Prepared) -> Result<Plan, Refusal> {
        prepared.thought.before.read_tables(&self.maps)?;
        Ok(self.told(&prepared.thought))
    }

    fn told(&self, thought: &Thought) -> Plan {
        let desired = thought.answered.as_ref().unwrap_or(&thought.desired);
        let mut plan = plan(&self.maps, &thought.before, desired, thought.now, (self.clock)());
        plan.changes.clone_from(&thought.changes);
        plan.warnings.extend(thought.notes.iter().cloned());
        plan
    }

    /// The ports of the source addresses that the data path was started with are there, and no others.
    fn refuse_other_families(&self, running: &Config) -> Result<(), Refusal> {
        let sources: Vec<IpAddr> = sources(self.maps.control()).collect();
        match without_source(running, &sources) {
            None => Ok(()),
            Some(family) => Err(Refusal::Conflict(format!(
                "the running data path has no {} source address, because nothing of that family was balanced when it was \
                 started: write the change into the configuration file and start the daemon again, which ends no \
                 connection",
                family.name()
            ))),
        }
    }

    /// What is in the way already does not keep anybody from draining a server.
    fn refuse_what_is_in_the_way(&self, running: &Config) -> Result<(), Refusal> {
        let mut found = (self.in_the_way)(running);
        if !found.is_empty() {
            let before = (self.in_the_way)(&self.running);
            found.retain(|refusal| !before.contains(refusal));
        }
        if found.is_empty() { Ok(()) } else { Err(Refusal::Conflict(found.join("; "))) }
    }

    fn future(
        &self,
        running: &Config,
        state: &State,
        reset: &BTreeSet<u16>,
        now: Ticks,
        unchecked: Unchecked,
    ) -> Result<(Desired, BTreeMap<u16, Leaving>), Refusal> {
        let (mut desired, leaving) = self.desired_if(running, state, now, unchecked)?;
        for id in reset {
            if let Some((server, _)) = desired.servers.get_mut(id)
                && state.ids.server_name(*id).is_none_or(|name| !crate::core::overlay::has(running, name))
            {
                server.state.0 |= ServerState::RESETS;
            }
        }
        Ok((desired, leaving))
    }

    /// Administrative states that change, a line each as the configuration's changes have it.
    fn state_changes(&self, running: &Config, state: &State) -> Vec<String> {
        balanced(running)
            .flat_map(|service| service.real_servers.iter().map(move |server| (service, server)))
            .filter_map(|(service, server)| {
                let name = ServerName::new(service.label.as_str(), server.label.as_str());
                let (old, new) = (self.state.overlay.state(&name), state.overlay.state(&name));
                (old != new).then(|| format!("~ real server {name}: state {old} -> {new}"))
            })
            .collect()
    }

    /// Puts a candidate in force, and says what that does: durable first if the disk takes it, so that a crash in the middle
    /// ends in the new; back to the old when the maps cannot be written. Of what resets nobody, new clients must not wait for what is said about it.
    pub(super) fn commit(&mut self, prepared: Prepared) -> Result<Plan, Refusal> {
        let Prepared { next, mut thought, gently } = prepared;
        let plan = if gently.is_some() { None } else { Some(self.told(&thought)) };
        self.keep(&next.state);
        self.put_in_force(next, gently.map(|leaving| (&mut thought, leaving)))?;
        Ok(plan.unwrap_or_else(|| self.told(&thought)))
    }

    fn put_in_force(
        &mut self,
        next: Next,
        as_thought: Option<(&mut Thought, BTreeMap<u16, Leaving>)>,
    ) -> Result<(), Refusal> {
        let before = (
            std::mem::replace(&mut self.base, next.base),
            std::mem::replace(&mut self.running, next.running),
            std::mem::replace(&mut self.state, next.state),
            std::mem::replace(&mut self.reset, next.reset),
            self.health.clone(),
        );
        self.forget_health_of_moved(&before.1);
        self.trust_new_services(&before.1);
        // States and weights ask nothing else of the network.
        self.moved |= as_thought.is_none();
        let written = match as_thought {
            Some((thought, leaving)) => self.put_gently(thought, leaving),
            None => self.resync(),
        };
        let Err(error) = written else { return Ok(()) };
        (self.base, self.running, self.state, self.reset, self.health) = before;
        self.keep(&self.state.clone());
        Err(Refusal::Failed(match self.resync() {
            Ok(_) => format!("{error:#}; everything is as it was before"),
            Err(also) => {
                error!("after a failed change the maps are not as before, and will be tried again: {also:#}");
                format!("{error:#}; and going back failed too: {also:#}")
            }
        }))
    }

    /// Puts states and weights into the maps: what new clients wait for first, what is to be said about it last.
    fn put_gently(
        &mut self,
        thought: &mut Thought,
        leaving: BTreeMap<u16, Leaving>,
    ) -> anyhow::Result<Applied> {
        apply_states(&self.maps, &thought.desired, thought.now)?;
        thought.before.read_tables(&self.maps)?;
        self.put(&thought.desired, leaving, thought.now)
    }

    /// Of a server at another address, or of the same one checked elsewhere, nothing is known.
    fn forget_health_of_moved(&mut self, before: &Config) {
        for service in balanced(&self.running) {
            for server in &service.real_servers {
                let label = service.label.as_str();
                let old = before.service(label).and_then(|old| old.server(server.label.as_str()));
                let moved = old.is_some_and(|old| (old.address, old.port) != (server.address, server.port));
                if moved
                    && let Some(id) = self.state.ids.server(&ServerName::new(label, server.label.as_str()))
                {
                    self.health.remove(&id);
                    self.trusted.remove(&id);
                }
            }
        }
    }

    /// Of a service that is new, nobody has been checked, and the first one that answers is not to get everybody.
    fn trust_new_services(&mut self, before: &Config) {
        let new = balanced(&self.running).filter(|service| before.service(service.label.as_str()).is_none());
        let names = new.flat_map(|service| {
            let label = service.label.as_str();
            service.real_servers.iter().map(move |server| ServerName::new(label, server.label.as_str()))
        });
        let ids: Vec<u16> = names.filter_map(|name| self.state.ids.server(&name)).collect();
        self.trusted.extend(ids);
    }

    /// Takes the configuration file again.
    ///
    /// # Errors
    /// Why it was not taken; what was in force still is.
    pub fn reload(&mut self, file: &ConfigFile) -> Result<Plan, Refusal> {
        let mut candidate = self.whole(&file.source, &file.text)?;
        candidate.state.applied = None;
        file.text.clone_into(&mut candidate.state.file_text);
        let prepared = self.prepare(candidate)?;
        let plan = self.commit(prepared)?;
        info!("configuration {} taken again: {}", file.source, plan.summary());
        for warning in &plan.warnings {
            warn!("{warning}");
        }
        Ok(plan)
    }

    /// Where the configuration in force is from.
    pub(super) fn source(&self) -> &str {
        self.state.applied.as_ref().map_or(&self.about.file, |applied| &applied.source)
    }

    /// When the daemon was started, seconds since 1970.
    #[must_use]
    pub fn started(&self) -> u64 {
        seconds(self.about.started_at)
    }
}

/// Whether a change is of a server's weight alone.
fn is_weight(change: &Change) -> bool {
    matches!(change, Change::ServerChanged { fields, .. } if fields.iter().all(|field| field.field == "weight"))
}

/// What the tables were made for stays as long as they do.
fn refuse_node_changes(changes: &[Change]) -> Result<(), Refusal> {
    for change in changes {
        if let Change::NodeChanged { fields } = change {
            let what: Vec<String> = fields
                .iter()
                .map(|field| {
                    format!(
                        "node.{}: {} -> {}",
                        field.field,
                        field.old.as_deref().unwrap_or("-"),
                        field.new.as_deref().unwrap_or("-")
                    )
                })
                .collect();
            let is_carried = |field: &str| {
                field.starts_with("tables.") || matches!(field, "snat_ports" | "address_conflict")
            };
            let carried = fields.iter().all(|field| is_carried(&field.field));
            let remedy = if carried {
                "restart the daemon: everything in the tables is carried over, and no connection ends"
            } else {
                "`steadfastd detach` and start again, which ends all connections; or leave it as it is"
            };
            return Err(Refusal::Conflict(format!(
                "the section node cannot change while the daemon runs ({}): write it into the configuration file, then \
                 {remedy}",
                what.join(", ")
            )));
        }
    }
    Ok(())
}
