//! The built program with its tables, brought into the model's state and compared with it.
//!
//! The program's time stands still during a sequence: nothing here takes as long as one of its ticks, and a sequence in
//! which one went by is begun again. Time goes by where a sequence says so: then every stamp in the tables is moved back.

mod site;
mod sweep;
mod tables;

use std::fmt::Debug;

use anyhow::{Context as _, Result};
use lb_common::{
    clock::Ticks,
    maps::Traffic,
    reason::{Action, REASONS, Reason},
};

use lb_userspace::dataplane::Maps;

use self::site::same_port;
use super::{
    setup::schedules,
    step::{Step, hex},
};
use crate::{
    golden::{
        bench::{Bench, Sizes, Verdict, since},
        hospital::{SERVERS, SERVICES},
    },
    model::{Chosen, Model, Outcome, Place, Site},
};

/// Few slots, so that they run out.
pub(crate) const SIZES: Sizes = Sizes { flows: 64, half_open: 16, sticky: 16 };

/// The program, and what its tables held after the last step.
pub(crate) struct Machine {
    bench: Bench,
    /// Whether servers change their states within an epoch, as nobody must.
    pub(super) keeps_epoch: bool,
    /// What the daemon sees of it.
    maps: Maps,
    /// What the index of the program's services and servers is of.
    site: Option<Site>,
    /// The program's time when the sequence began.
    begun: Ticks,
    /// The program's time during the sequence.
    tick: Ticks,
    flows: Vec<[u64; 8]>,
    half_open: Vec<[u64; 8]>,
    sticky: Vec<[u64; 4]>,
    cells: Vec<u64>,
    counts: [u64; REASONS],
    traffic: Vec<Traffic>,
}

/// How a step ended.
pub(crate) enum Ended {
    /// As the model says; a frame was counted under this reason.
    Same(Option<Reason>),
    /// Otherwise.
    Different(String),
}

impl Machine {
    pub(crate) fn load() -> Result<Self> {
        Self::load_sized(SIZES)
    }

    pub(crate) fn load_sized(sizes: Sizes) -> Result<Self> {
        let bench = Bench::load_sized(sizes)?;
        Ok(Self {
            maps: bench.maps()?,
            bench,
            keeps_epoch: false,
            site: None,
            begun: Ticks(0),
            tick: Ticks(0),
            flows: Vec::new(),
            half_open: Vec::new(),
            sticky: Vec::new(),
            cells: Vec::new(),
            counts: [0; REASONS],
            traffic: Vec::new(),
        })
    }

    /// Brings the program's tables into the state of the model.
    pub(crate) fn begin(&mut self, model: &Model, schedule: usize) -> Result<()> {
        self.bench.reset()?;
        self.set_up(model)?;
        if schedule != 0 {
            self.set_schedule(schedule)?;
        }
        self.tick = self.bench.now()?;
        self.begun = self.tick;
        self.write(model);
        self.look();
        self.counts = self.bench.reasons()?;
        self.traffic = self.read_traffic()?;
        Ok(())
    }

    /// Whether a tick has gone by since the beginning, so that nothing can be said.
    pub(crate) fn is_late(&self) -> Result<bool> {
        Ok(self.bench.now()? != self.tick)
    }

    fn set_schedule(&mut self, number: usize) -> Result<()> {
        for (service, table) in SERVICES.iter().zip(&schedules()[number]) {
            self.bench.set_schedule(service, table)?;
        }
        Ok(())
    }

    /// Does a step, in the program and in the model, and compares.
    pub(crate) fn step(&mut self, model: &mut Model, step: &Step) -> Result<Ended> {
        match step {
            Step::Frame(frame) => return self.frame(model, frame),
            Step::Server(number, state) => {
                let host = &SERVERS[*number];
                self.bench.write_state(host, *state | same_port(model.settings.site.kind(host.service)));
                if !self.keeps_epoch {
                    self.bench.control().changed();
                }
                model.servers[*number].0 = *state;
            }
            Step::Busy(slots) => {
                self.occupy(*slots);
                self.look();
                model.occupy(*slots);
            }
            Step::Sweep => {
                if let Err(what) = self.sweep(model) {
                    return Ok(Ended::Different(what));
                }
            }
            Step::Ticks(ticks) => {
                self.age(*ticks);
                self.look();
                model.now += i64::from(*ticks);
            }
            Step::Configured(done) => {
                if *done {
                    self.bench.configure();
                } else {
                    self.bench.unconfigure();
                }
                model.configured = *done;
            }
            Step::Schedule(number) => {
                self.set_schedule(*number)?;
                model.settings.schedules = schedules()[*number].clone();
            }
        }
        Ok(Ended::Same(None))
    }

    fn frame(&mut self, model: &mut Model, frame: &[u8]) -> Result<Ended> {
        let verdict = self.bench.run(frame)?;
        let compared =
            self.changes(model, &verdict).and_then(|chosen| self.compare(model, frame, &verdict, &chosen));
        self.counted(compared)
    }

    /// As a step with this frame, but at the program's own time, which goes on and takes the model's along.
    pub(crate) fn frame_in_time(&mut self, model: &mut Model, frame: &[u8]) -> Result<Ended> {
        self.catch_up(model)?;
        let verdict = self.bench.run(frame)?;
        let gone_by = self.catch_up(model)?;
        let compared = self.changes(model, &verdict).and_then(|chosen| {
            // If ticks went by at this moment, it may have been at any of them.
            let (end, tick, before) = (model.now, self.tick, (gone_by != 0).then(|| model.clone()));
            let mut compared = self.compare(model, frame, &verdict, &chosen);
            for back in 1..=gone_by {
                let Some(before) = before.as_ref().filter(|_| compared.is_err()) else { break };
                model.clone_from(before);
                model.now = end - back;
                self.tick = Ticks(self.tick.0.wrapping_sub(1));
                compared = self.compare(model, frame, &verdict, &chosen);
            }
            (model.now, self.tick) = (end, tick);
            compared
        });
        self.counted(compared)
    }

    /// Takes the model's time along with the program's: so many ticks.
    fn catch_up(&mut self, model: &mut Model) -> Result<i64> {
        let now = self.bench.now()?;
        let gone_by = i64::from(now.since(self.tick).0);
        self.tick = now;
        model.now += gone_by;
        Ok(gone_by)
    }

    fn counted(&mut self, compared: Result<Reason, String>) -> Result<Ended> {
        let reason = match compared {
            Ok(reason) => reason,
            Err(what) => return Ok(Ended::Different(what)),
        };
        let count = self.bench.count_of(reason)?;
        let before = std::mem::replace(&mut self.counts[reason as usize], count);
        if count != before + 1 {
            return Ok(Ended::Different(format!("it must be counted as {reason:?} and is not")));
        }
        Ok(Ended::Same(Some(reason)))
    }

    fn compare(
        &self,
        model: &mut Model,
        frame: &[u8],
        verdict: &Verdict,
        chosen: &Chosen,
    ) -> Result<Reason, String> {
        model.written.clear();
        let outcome = model.judge(frame, chosen)?;
        if let Some(what) = difference(&outcome, verdict) {
            return Err(what);
        }
        let differ = |what: &str, slot: usize, is: String, must: String| {
            Err(format!("{what} in place {slot} is\n    {is}\n  and must be\n    {must}"))
        };
        for (slot, row) in &chosen.flows {
            if model.flows[*slot] != *row {
                return differ("the flow", *slot, format!("{row:?}"), format!("{:?}", model.flows[*slot]));
            }
        }
        for (slot, row) in &chosen.half_open {
            if model.half_open[*slot] != *row {
                let must = format!("{:?}", model.half_open[*slot]);
                return differ("the half-open flow", *slot, format!("{row:?}"), must);
            }
        }
        for (slot, row) in &chosen.sticky {
            if model.sticky[*slot] != *row {
                return differ("the record", *slot, format!("{row:?}"), format!("{:?}", model.sticky[*slot]));
            }
        }
        for (place, cell) in &chosen.ports {
            let must = model.ports.get(*place).copied().flatten();
            if must != *cell {
                return differ("the SNAT port", *place, format!("{cell:?}"), format!("{must:?}"));
            }
        }
        self.compare_written(model)?;
        Ok(outcome.reason)
    }

    /// Compares what the model wrote, also where the program wrote nothing.
    fn compare_written(&self, model: &Model) -> Result<(), String> {
        for place in &model.written {
            let (is, must) = match *place {
                Place::Flow(slot) => {
                    told(self.flow(&self.flows[slot], model)?.as_ref(), model.flows[slot].as_ref())
                }
                Place::HalfOpen(slot) => {
                    told(self.flow(&self.half_open[slot], model)?.as_ref(), model.half_open[slot].as_ref())
                }
                Place::Sticky(slot) => {
                    told(self.record(&self.sticky[slot], model)?.as_ref(), model.sticky[slot].as_ref())
                }
                Place::Port(slot) => {
                    told(self.cell(self.cells[slot], model).as_ref(), model.ports[slot].as_ref())
                }
            }
            .unwrap_or_default();
            if is != must {
                return Err(format!("{place:?} was left as it was,\n    {is}\n  and must be\n    {must}"));
            }
        }
        Ok(())
    }

    /// Compares all counters with what was counted packet by packet.
    pub(crate) fn finish(&mut self, model: &Model) -> Result<Option<String>> {
        let counts = self.bench.reasons()?;
        if counts != self.counts {
            let other = Reason::ALL.iter().find(|r| counts[**r as usize] != self.counts[**r as usize]);
            return Ok(Some(format!("{other:?} was counted for a frame of another reason")));
        }
        let traffic = self.read_traffic()?;
        for (place, (after, before)) in traffic.iter().zip(&self.traffic).enumerate() {
            let counted = since(before, after);
            if counted != model.traffic[place] {
                let must = model.traffic[place];
                return Ok(Some(format!(
                    "the counters of place {place} (services, then servers) say\n    {counted:?}\n  and must say\n    {must:?}"
                )));
            }
        }
        Ok(None)
    }

    fn read_traffic(&self) -> Result<Vec<Traffic>> {
        let services = SERVICES.iter().map(|service| self.bench.service_traffic(service.id));
        let servers = SERVERS.iter().map(|server| self.bench.server_traffic(server.id));
        services.chain(servers).collect::<Result<_>>().context("cannot read the counters")
    }
}

/// The two in words, if they differ.
fn told<T: PartialEq + Debug>(is: Option<&T>, must: Option<&T>) -> Option<(String, String)> {
    (is != must).then(|| (format!("{is:?}"), format!("{must:?}")))
}

/// How a verdict differs from what it must be.
fn difference(outcome: &Outcome, verdict: &Verdict) -> Option<String> {
    let action = match outcome.reason.action() {
        Action::Drop => 1,
        Action::Pass => 2,
        Action::Transmit => 3,
    };
    if verdict.action != action {
        return Some(format!("action {}, and must be {:?}", verdict.action, outcome.reason));
    }
    match &outcome.frame {
        Some(frame) if *frame != verdict.frame => Some(format!(
            "{:?}: the frame out is\n    {}\n  and must be\n    {}",
            outcome.reason,
            hex(&verdict.frame),
            hex(frame)
        )),
        _ => None,
    }
}
