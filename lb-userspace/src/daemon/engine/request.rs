//! What can be asked of the daemon.

use std::net::{IpAddr, SocketAddr};

use lb_common::clock::Ticks;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::change::{Candidate, Refusal};
use super::{Engine, balanced};
use crate::config::{self, HealthKind};
use crate::core::overlay::AddedServer;
use crate::core::plan::count;
use crate::core::rows::Usage;
use crate::core::{AdminState, Plan, ServerName};
use crate::daemon::descriptors;
use crate::dataplane::confirm::{self, Confirmed};
use crate::dataplane::{Clock, Maps};
use crate::health::TargetView;
use crate::health::state::Verdict;
use crate::redirect::listening::{Listener, os_error};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `GET /v1/status`.
    Status,
    /// `GET /v1/config`.
    Config,
    /// `POST /v1/config/plan`.
    PlanConfig(PlanConfig),
    /// `POST /v1/config/apply`.
    ApplyConfig(ApplyConfig),
    /// `POST /v1/servers/add`.
    Add(AddServer),
    /// `POST /v1/servers/remove`.
    Remove(RemoveServer),
    /// `POST /v1/servers/set`.
    Set(SetServer),
    /// `POST /v1/servers/state`.
    State(ServerStateOf),
    /// `POST /v1/confirm`.
    Confirm(Confirm),
    /// `POST /v1/sticky/forget`.
    Forget(ForgetClient),
    /// `POST /v1/sticky/move`.
    Move(MoveClient),
}

/// A configuration to think through.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanConfig {
    /// Its text.
    pub yaml: String,
    /// Where it is from, for the errors.
    #[serde(default)]
    pub source: Option<String>,
}

/// A configuration to put in force.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyConfig {
    /// Its text.
    pub yaml: String,
    /// Where it is from.
    pub source: String,
    /// Only say what it would do.
    #[serde(default)]
    pub dry_run: bool,
}

/// A server to add.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddServer {
    /// The virtual service's label.
    pub service: String,
    /// The server's label.
    pub label: String,
    /// Its address.
    pub address: IpAddr,
    /// Its port; the service's if it is not given.
    #[serde(default)]
    pub port: Option<u16>,
    /// Its weight; 100 if it is not given.
    #[serde(default)]
    pub weight: Option<u16>,
    /// Only say what it would do.
    #[serde(default)]
    pub dry_run: bool,
}

/// A server to remove.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveServer {
    /// The virtual service's label.
    pub service: String,
    /// The server's label.
    pub label: String,
    /// Also with open connections, which are reset.
    #[serde(default)]
    pub now: bool,
    /// Only say what it would do.
    #[serde(default)]
    pub dry_run: bool,
}

/// A server's new weight.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetServer {
    /// The virtual service's label.
    pub service: String,
    /// The server's label.
    pub label: String,
    /// The weight.
    pub weight: u16,
    /// Only say what it would do.
    #[serde(default)]
    pub dry_run: bool,
}

/// A server's new administrative state.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerStateOf {
    /// The virtual service's label.
    pub service: String,
    /// The server's label.
    pub label: String,
    /// The state.
    pub state: AdminState,
    /// Only say what it would do.
    #[serde(default)]
    pub dry_run: bool,
}

/// An attachment on trial is to stay.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirm {}

/// A client whose records are to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForgetClient {
    /// Its address.
    pub client: IpAddr,
    /// The virtual service's label; all if it is not given.
    #[serde(default)]
    pub service: Option<String>,
    /// Only say what it would do.
    #[serde(default)]
    pub dry_run: bool,
}

/// A client that is to go to another server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveClient {
    /// Its address.
    pub client: IpAddr,
    /// The virtual service's label.
    pub service: String,
    /// The server's label.
    pub server: String,
    /// Only say what it would do.
    #[serde(default)]
    pub dry_run: bool,
}

impl Engine {
    /// Carries out a request. Where it changes something, that is in the maps and durable when this returns.
    ///
    /// # Errors
    /// Why not; nothing was changed then.
    pub fn request(&mut self, request: Request) -> Result<Value, Refusal> {
        match request {
            Request::Status => Ok(self.status()),
            Request::Config => Ok(json!({
                "yaml": self.running.to_yaml(),
                // What a configuration that is applied does not change.
                "weights_set_by_command": self.state.overlay.weights,
            })),
            Request::PlanConfig(PlanConfig { yaml, source }) => {
                let candidate = self.whole(source.as_deref().unwrap_or("candidate"), &yaml)?;
                let prepared = self.prepare(candidate)?;
                Ok(json!(self.plan(prepared)?))
            }
            Request::ApplyConfig(ApplyConfig { yaml, source, dry_run }) => {
                let candidate = self.whole(&source, &yaml)?;
                let done = format!("the configuration {source} is in force");
                let mut answer = self.change(candidate, &done, dry_run)?;
                answer["applied"] = (!dry_run).into();
                Ok(answer)
            }
            Request::Add(add) => self.add(&add),
            Request::Remove(remove) => self.remove(&remove),
            Request::Set(set) => self.set(&set),
            Request::State(state) => self.set_state(&state),
            Request::Confirm(Confirm {}) => self.confirm(),
            Request::Forget(forget) => self.forget(&forget),
            Request::Move(to) => self.move_client(&to),
        }
    }

    fn change(&mut self, candidate: Candidate, done: &str, dry_run: bool) -> Result<Value, Refusal> {
        let prepared = self.prepare(candidate)?;
        if dry_run {
            return Ok(json!({ "plan": self.plan(prepared)? }));
        }
        let plan = self.commit(prepared)?;
        info!("{done}: {}", plan.summary());
        Ok(self.mark_durable(answer(done, &plan)))
    }

    fn add(&mut self, add: &AddServer) -> Result<Value, Refusal> {
        let service = self.find_service(&add.service)?;
        let name = ServerName::new(&add.service, &add.label);
        if service.server(&add.label).is_some() {
            return Err(Refusal::Conflict(format!(
                "{name} exists already: give the new server another label, or remove that one first"
            )));
        }
        let server = AddedServer {
            address: add.address,
            port: add.port.or_else(|| service.ports.first().copied()).unwrap_or_default(),
            same_port: add.port.is_none() && service.ports.len() > 1,
            weight: add.weight.unwrap_or(config::Server::WEIGHT),
        };
        let mut candidate = self.candidate();
        candidate.state.overlay.added.insert(name.clone(), server);
        let place = SocketAddr::new(server.address, server.port);
        let done = format!("{name} is added at {place} with weight {}", server.weight);
        self.change(candidate, &done, add.dry_run)
    }

    fn remove(&mut self, remove: &RemoveServer) -> Result<Value, Refusal> {
        let (name, id) = self.find_server(&remove.service, &remove.label)?;
        let flows = Usage::of(&self.maps, self.maps.now()?).server(id).flows;
        let mut candidate = self.candidate();
        candidate.state.overlay.forget(&name);
        if crate::core::overlay::has(&self.base, &name) {
            candidate.state.overlay.removed.insert(name.clone());
        }
        if remove.now {
            candidate.reset.insert(id);
        }
        let done = match (flows, remove.now) {
            (0, _) => format!("{name} is removed"),
            (flows, true) => format!("{name} is removed, and {} reset", count(flows, "open connection")),
            (1, false) => {
                format!("{name} is removed as soon as its open connection has ended; it gets no other")
            }
            (flows, false) => {
                format!(
                    "{name} is removed as soon as its {flows} open connections have ended; it gets no others"
                )
            }
        };
        self.change(candidate, &done, remove.dry_run)
    }

    fn confirm(&self) -> Result<Value, Refusal> {
        let done = match confirm::confirm(self.maps.control()) {
            Confirmed::Now => "confirmed: the program stays on its interface until `steadfastd detach`",
            Confirmed::Before => "there is nothing to confirm: the program stays on its interface already",
            Confirmed::TooLate => {
                return Err(Refusal::Conflict(
                    "it is too late: the time for confirming is over, and the program is being taken off"
                        .to_owned(),
                ));
            }
        };
        info!("{done}");
        Ok(json!({ "done": done }))
    }

    fn set(&mut self, set: &SetServer) -> Result<Value, Refusal> {
        let (name, _) = self.find_server(&set.service, &set.label)?;
        let mut candidate = self.candidate();
        let overlay = &mut candidate.state.overlay;
        let in_text =
            self.base.service(&set.service).and_then(|s| s.server(&set.label)).map(|server| server.weight);
        if let Some(added) = overlay.added.get_mut(&name) {
            added.weight = set.weight;
        } else if in_text == Some(set.weight) {
            overlay.weights.remove(&name);
        } else {
            overlay.weights.insert(name.clone(), set.weight);
        }
        self.change(candidate, &format!("{name} has weight {}", set.weight), set.dry_run)
    }

    fn set_state(&mut self, to: &ServerStateOf) -> Result<Value, Refusal> {
        let (name, _) = self.find_server(&to.service, &to.label)?;
        let mut candidate = self.candidate();
        candidate.state.overlay.set_state(name.clone(), to.state);
        let done = match to.state {
            AdminState::Online => format!("{name} is online"),
            AdminState::Drain => format!("{name} drains: it takes no new clients, and keeps those it has"),
            AdminState::Halt => format!("{name} is halted: it takes nobody, and its connections are reset"),
        };
        self.change(candidate, &done, to.dry_run)
    }

    pub(super) fn find_service(&self, label: &str) -> Result<&config::Service, Refusal> {
        balanced(&self.running).find(|service| service.label == *label).ok_or_else(|| {
            let known: Vec<&str> = balanced(&self.running).map(|service| service.label.as_str()).collect();
            Refusal::Unknown(match known.as_slice() {
                [] => format!("there is no balanced virtual service \"{label}\", nor any other"),
                known => format!(
                    "there is no balanced virtual service \"{label}\"; there are: {}",
                    known.join(", ")
                ),
            })
        })
    }

    pub(super) fn find_server(&self, service: &str, label: &str) -> Result<(ServerName, u16), Refusal> {
        let found = self.find_service(service)?;
        let name = ServerName::new(service, label);
        let id = found.server(label).and_then(|_| self.state.ids.server(&name));
        let id = id.ok_or_else(|| {
            let known: Vec<&str> = found.real_servers.iter().map(|server| server.label.as_str()).collect();
            Refusal::Unknown(match known.as_slice() {
                [] => format!("{service} has no real server \"{label}\", nor any other"),
                known => format!("{service} has no real server \"{label}\"; it has: {}", known.join(", ")),
            })
        })?;
        Ok((name, id))
    }

    fn status(&self) -> Value {
        let checks: Vec<Value> =
            self.checked_servers()
                .map(|(id, service, server)| {
                    let health = self.health.get(&id).cloned().unwrap_or_default();
                    let mut check = json!({
                        "service": service.label,
                        "server": server.label,
                        "kind": service.health_check.kind,
                        "health": match health.verdict {
                            _ if health.uncheckable.is_some() => "not checked",
                            _ if service.health_check.kind == HealthKind::None => "not checked",
                            None => "unknown",
                            Some(Verdict::Up) => "up",
                            Some(Verdict::Down) => "down",
                        },
                        "since": time(health.since),
                        "reason": health.uncheckable.unwrap_or(health.reason),
                        "note": health.note,
                        "certificate_expires": time(health.certificate_expires),
                    });
                    if let Some(view) = self.health_table.get(u32::from(id)) {
                        check["no_verdicts"] = json!(view.no_verdicts);
                        check["no_verdict"] =
                            json!(view.silent.as_ref().map(|(since, why)| {
                                json!({ "since": since.to_string(), "reason": why })
                            }));
                        if let Some(last) = last_probe(&view) {
                            check["last"] = last;
                        }
                    }
                    check
                })
                .collect();
        let leaving: Vec<String> = self
            .leaving
            .keys()
            .map(|id| self.state.ids.server_name(*id).map_or_else(|| format!("#{id}"), ToString::to_string))
            .collect();
        let redirects: Vec<Value> = self
            .listening
            .all()
            .into_iter()
            .map(|(address, listener)| {
                let error = match listener {
                    Listener::Open => None,
                    Listener::Refused(errno) => Some(os_error(errno)),
                };
                json!({ "address": address, "listening": error.is_none(), "error": error })
            })
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "started_at": self.about.started_at.to_string(),
            "config_file": self.about.file,
            "config_source": self.source(),
            "interfaces": [{ "name": self.about.interface, "xdp_mode": self.about.xdp_mode }],
            "addresses": self.wanted_addresses(),
            "health_checks": checks,
            "finishing": leaving,
            "redirects": redirects,
            "descriptors": {
                "limit": descriptors::limit(),
                "open": descriptors::open(),
                "shortage": descriptors::shortage(descriptors::limit(), checks.len()),
            },
            "firewall": match &self.firewall {
                Ok(report) => json!(report),
                Err(why) => json!({ "in_force": false, "reason": why }),
            },
            "confirm_by": confirm_by(&self.maps),
            "problems": self.problems.all().collect::<Vec<_>>(),
        })
    }
}

/// When an attachment on trial is undone.
fn confirm_by(maps: &Maps) -> Option<String> {
    let at = confirm::undone_at(maps.control())?;
    let clock = Clock::read(maps).ok()?;
    Some(clock.instant_of(Ticks::from_jiffies(at)).to_string())
}

fn last_probe(view: &TargetView) -> Option<Value> {
    let last = view.last.as_ref()?;
    Some(json!({
        "at": last.at.to_string(),
        "seconds": last.took.as_secs_f64(),
        "error": last.outcome.why(),
    }))
}

/// A time of day in RFC 3339; nothing for zero, which means unknown.
fn time(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok().filter(|seconds| *seconds != 0)?;
    jiff::Timestamp::from_second(seconds).ok().map(|at| at.to_string())
}

/// The answer to a change that was made.
pub(super) fn answer(done: &str, plan: &Plan) -> Value {
    json!({ "done": done, "plan": plan })
}
