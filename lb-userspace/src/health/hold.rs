//! Whether a check that got no answer is to be believed: pure; outcomes, the network's state and times in, rulings out.
//!
//! Silence has two causes: the server is gone, or the way to it is. Only the first may end sessions. So silence counts
//! against a server only where the network has shown that it works:
//!
//! - The interface has no carrier, or there is no route to the server: its checks say nothing, nor for one full check
//!   (interval and timeout) after that.
//! - The check that would call a server down is believed when something on the same interface has answered since that check
//!   began, of whatever server. Where nothing has, others are asked at once ([`Rulings::ask`]): an answer settles it.
//! - When all machines of an interface are silent since the last answer there, or most of them and the others say nothing when
//!   they are asked, verdicts are held until something answers. Then every count begins anew.
//! - A machine that is the only one up on its interface has nobody to vouch for the network. It is held too, but for
//!   [`ALONE`] at most.
//!
//! A machine is an address: several checks of it are one voice. A refusal, an alert, a wrong status is an answer. A server
//! that was never up is judged without any of this: nobody is on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::state::{Outcome, State, Thresholds, Verdict};

/// How long a machine that is alone on its interface is held at most.
pub const ALONE: Duration = Duration::from_secs(60);
/// How many others are asked at once whether the network works.
const ASKED: usize = 16;

/// How a machine is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Through the interface of this number (the kernel's).
    Through(u32),
    /// There is no route.
    None,
}

/// An interface, as far as checks depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Whether it is there, set up, and has carrier.
    pub up: bool,
}

/// The network's state as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// How each machine is reached. One that is not in it is reached somehow.
    pub ways: BTreeMap<IpAddr, Way>,
    /// The interfaces by number. One that is not in it is up.
    pub ports: BTreeMap<u32, Port>,
}

/// A probe's result.
#[derive(Debug, Clone, Copy)]
pub struct Result<'a> {
    /// The target's number.
    pub id: u32,
    /// What was found.
    pub outcome: &'a Outcome,
    /// When the probe began.
    pub started: Duration,
    /// When it ended.
    pub ended: Duration,
    /// The target's state before it.
    pub state: State,
    /// How many probes change it.
    pub thresholds: Thresholds,
}

/// What becomes of an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// It counts.
    Judge(Outcome),
    /// It counts, but whether the network works is not known.
    Unconfirmed(Outcome),
    /// It counts if something answers.
    Wait,
}

/// What a result leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rulings {
    /// What becomes of it.
    pub ruling: Ruling,
    /// Outcomes of other targets that waited, and count now.
    pub released: Vec<(u32, Outcome)>,
    /// Targets whose counts of failures begin anew.
    pub restart: Vec<u32>,
    /// Targets to be probed at once.
    pub ask: Vec<u32>,
}

#[derive(Debug)]
struct Target {
    host: IpAddr,
    /// Interval and timeout.
    full_check: Duration,
    /// Whether it is up.
    up: bool,
    /// A silence that counts if something answers: the outcome, and when its probe began.
    waiting: Option<(Outcome, Duration)>,
    /// Since when it is held for being alone.
    alone: Option<Duration>,
}

#[derive(Debug, Default)]
struct Host {
    /// When it was last heard.
    answered: Option<Duration>,
    /// When the last probe began that it did not answer.
    silent: Option<Duration>,
    /// When there was a route to it again.
    back: Option<Duration>,
}

#[derive(Debug, Default)]
struct Interface {
    /// When something there was last heard.
    answered: Option<Duration>,
    /// Since when verdicts are held: the first silence.
    hold: Option<Duration>,
    /// When it was last back.
    back: Option<Duration>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Holding {
    network: Network,
    targets: BTreeMap<u32, Target>,
    hosts: BTreeMap<IpAddr, Host>,
    interfaces: BTreeMap<u32, Interface>,
}

impl Holding {
    /// A target, or a new way to watch one. `full_check` is its interval and timeout.
    pub fn enter(&mut self, id: u32, host: IpAddr, full_check: Duration, state: State) {
        let up = state.verdict() == Some(Verdict::Up);
        self.targets.insert(id, Target { host, full_check, up, waiting: None, alone: None });
        self.hosts.entry(host).or_default();
    }

    /// A target that is not watched any more.
    pub fn remove(&mut self, id: u32) {
        self.targets.remove(&id);
        let hosts: BTreeSet<IpAddr> = self.targets.values().map(|target| target.host).collect();
        self.hosts.retain(|host, _| hosts.contains(host));
    }

    /// The network has changed. Gives the targets whose counts of failures begin anew.
    pub fn set_network(&mut self, network: Network, now: Duration) -> Vec<u32> {
        let before = std::mem::replace(&mut self.network, network);
        let was_up = |number: &u32| before.ports.get(number).is_none_or(|port| port.up);
        for (number, port) in &self.network.ports {
            if port.up && !was_up(number) {
                self.interfaces.entry(*number).or_default().back = Some(now);
            }
        }
        for (address, host) in &mut self.hosts {
            let had_none = before.ways.get(address) == Some(&Way::None);
            if had_none && self.network.ways.get(address) != Some(&Way::None) {
                host.back = Some(now);
            }
        }
        let is_away = |target: &Target| self.away(target.host).is_some();
        let away: Vec<u32> =
            self.targets.iter().filter(|(_, target)| is_away(target)).map(|(id, _)| *id).collect();
        self.forget_waiting(&away);
        away
    }

    /// A target is in this state now.
    pub fn set_state(&mut self, id: u32, state: State) {
        if let Some(target) = self.targets.get_mut(&id) {
            target.up = state.verdict() == Some(Verdict::Up);
        }
    }

    /// What a probe's result leads to.
    pub fn take(&mut self, result: Result<'_>) -> Rulings {
        let mut out = Rulings {
            ruling: Ruling::Judge(result.outcome.clone()),
            released: Vec::new(),
            restart: Vec::new(),
            ask: Vec::new(),
        };
        self.set_state(result.id, result.state);
        let Some(target) = self.targets.get_mut(&result.id) else { return out };
        let (host, full_check) = (target.host, target.full_check);
        if result.outcome.is_answer() {
            target.waiting = None;
            target.alone = None;
            self.heard(host, &result, &mut out);
        }
        if matches!(result.outcome, Outcome::Ok | Outcome::NoVerdict(_)) {
            return out;
        }
        if let Some(why) = self.quiet(host, full_check, result.ended) {
            out.ruling = Ruling::Judge(Outcome::NoVerdict(why));
        } else if matches!(result.outcome, Outcome::Lost(_)) {
            out.ruling = self.silence(host, &result, &mut out.ask);
        }
        out
    }

    /// Whether verdicts on the machine are held, or its checks cannot say anything.
    #[must_use]
    pub fn is_cut_off(&self, host: IpAddr) -> bool {
        self.away(host).is_some() || self.interface(host).is_some_and(|interface| interface.hold.is_some())
    }

    /// Something has answered: what waited for it counts, and what was held begins anew.
    fn heard(&mut self, host: IpAddr, result: &Result<'_>, out: &mut Rulings) {
        // A failure may be noticed long after the server's last word.
        let at = if *result.outcome == Outcome::Ok { result.ended } else { result.started };
        let later = |before: &mut Option<Duration>| *before = (*before).max(Some(at));
        later(&mut self.hosts.entry(host).or_default().answered);
        let number = self.number(host);
        let ids = self.on(number);
        let interface = self.interfaces.entry(number).or_default();
        later(&mut interface.answered);
        if interface.hold.is_some_and(|since| since < at) {
            interface.hold = None;
            interface.back = Some(result.ended);
            out.restart.clone_from(&ids);
            self.forget_waiting(&ids);
            return;
        }
        for id in ids {
            let waiting = self.targets.get_mut(&id).map(|target| &mut target.waiting);
            if let Some((outcome, _)) = waiting.and_then(|it| it.take_if(|(_, started)| *started <= at)) {
                out.released.push((id, outcome));
            }
        }
    }

    /// Nothing has come from a machine that should be reachable.
    fn silence(&mut self, host: IpAddr, result: &Result<'_>, ask: &mut Vec<u32>) -> Ruling {
        let outcome = result.outcome.clone();
        let silent = &mut self.hosts.entry(host).or_default().silent;
        *silent = (*silent).max(Some(result.started));
        let number = self.number(host);
        let interface = self.interfaces.entry(number).or_default();
        if interface.hold.is_some() {
            return Ruling::Judge(self.held(number));
        }
        let confirmed = interface.answered >= Some(result.started);
        match result.state {
            State::Unknown { .. } => return Ruling::Judge(outcome),
            State::Down { .. } if confirmed => return Ruling::Judge(outcome),
            State::Down { .. } => return Ruling::Unconfirmed(outcome),
            State::Up { failures } if confirmed || failures + 1 < result.thresholds.fall.get() => {
                return Ruling::Judge(outcome);
            }
            State::Up { .. } => {}
        }
        let there = self.machines(number);
        if there.len() <= 1 {
            return self.alone(number, result);
        }
        let answered = self.interfaces.get(&number).and_then(|interface| interface.answered);
        let silent: Vec<Duration> = there
            .iter()
            .filter_map(|host| self.hosts.get(host)?.silent)
            .filter(|at| Some(*at) > answered)
            .collect();
        let asked_before = self.targets.get(&result.id).is_some_and(|target| target.waiting.is_some());
        if silent.len() == there.len() || asked_before && silent.len() * 2 > there.len() {
            let first = silent.into_iter().min().unwrap_or(result.started);
            self.interfaces.entry(number).or_default().hold = Some(first);
            let ids = self.on(number);
            self.forget_waiting(&ids);
            return Ruling::Judge(self.held(number));
        }
        *ask = self.witnesses(number, &there, result.started);
        if let Some(target) = self.targets.get_mut(&result.id) {
            target.waiting = Some((outcome, result.started));
        }
        Ruling::Wait
    }

    /// The only machine that was up there.
    fn alone(&mut self, number: u32, result: &Result<'_>) -> Ruling {
        let why = format!(
            "nothing else on {} could tell whether the network works: held for a minute at most",
            self.name(number)
        );
        let Some(target) = self.targets.get_mut(&result.id) else {
            return Ruling::Judge(result.outcome.clone());
        };
        let since = *target.alone.get_or_insert(result.ended);
        if result.ended.saturating_sub(since) >= ALONE {
            target.alone = None;
            return Ruling::Judge(result.outcome.clone());
        }
        Ruling::Judge(Outcome::NoVerdict(why))
    }

    /// The machines of an interface that are up, or answer otherwise than they should.
    fn machines(&self, number: u32) -> BTreeSet<IpAddr> {
        let answers = |host: &IpAddr| {
            self.hosts.get(host).is_some_and(|host| host.answered.is_some() && host.answered >= host.silent)
        };
        let here = self.targets.values().filter(|target| self.number(target.host) == number);
        here.filter(|target| target.up || answers(&target.host)).map(|target| target.host).collect()
    }

    /// A target of each of these machines that has said nothing since, neither by an answer nor by silence.
    fn witnesses(&self, number: u32, there: &BTreeSet<IpAddr>, since: Duration) -> Vec<u32> {
        let is_open = |host: &&IpAddr| self.hosts.get(*host).is_none_or(|host| host.silent < Some(since));
        let mut left: BTreeSet<IpAddr> = there.iter().filter(is_open).copied().collect();
        let here = self.targets.iter().filter(|(_, target)| self.number(target.host) == number);
        here.filter(|(_, target)| left.remove(&target.host)).map(|(id, _)| *id).take(ASKED).collect()
    }

    fn held(&self, number: u32) -> Outcome {
        Outcome::NoVerdict(format!(
            "most servers on {} fell silent together: held until one answers",
            self.name(number)
        ))
    }

    /// Why the machine cannot be reached from here, if so.
    fn away(&self, host: IpAddr) -> Option<String> {
        if self.network.ways.get(&host) == Some(&Way::None) {
            return Some("this machine has no route to it".to_owned());
        }
        let port = self.network.ports.get(&self.number(host)).filter(|port| !port.up)?;
        Some(format!("{} has no carrier", port.name))
    }

    /// Why the machine's checks say nothing, if so.
    fn quiet(&self, host: IpAddr, full_check: Duration, now: Duration) -> Option<String> {
        if let Some(why) = self.away(host) {
            return Some(why);
        }
        let recent = |back: Option<Duration>| back.is_some_and(|back| now < back + full_check);
        if recent(self.hosts.get(&host).and_then(|host| host.back)) {
            return Some("the route to it has just come back".to_owned());
        }
        let back = self.interface(host).is_some_and(|interface| recent(interface.back));
        back.then(|| format!("{} works again since a moment ago", self.name(self.number(host))))
    }

    fn forget_waiting(&mut self, ids: &[u32]) {
        for id in ids {
            if let Some(target) = self.targets.get_mut(id) {
                (target.waiting, target.alone) = (None, None);
            }
        }
    }

    /// The interface that a machine is reached by; zero is that of those of which it is not known.
    fn number(&self, host: IpAddr) -> u32 {
        match self.network.ways.get(&host) {
            Some(Way::Through(number)) => *number,
            _ => 0,
        }
    }

    fn interface(&self, host: IpAddr) -> Option<&Interface> {
        self.interfaces.get(&self.number(host))
    }

    fn on(&self, number: u32) -> Vec<u32> {
        self.targets
            .iter()
            .filter(|(_, target)| self.number(target.host) == number)
            .map(|(id, _)| *id)
            .collect()
    }

    fn name(&self, number: u32) -> String {
        self.network.ports.get(&number).map_or_else(|| "the network".to_owned(), |port| port.name.clone())
    }
}

#[cfg(test)]
mod tests;
