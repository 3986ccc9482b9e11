//! A day in a hospital, in simulated time: clients come, work, leave in every way that there is and come again, servers go
//! down and are drained, the daemon sweeps once a minute. Each packet and each sweep is compared with the model.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Result, bail, ensure};
use lb_common::reason::Reason;

use super::{
    generate::plain,
    machine::{Ended, Machine},
    onward::{self, Next, any_number},
    setup::{self, STATES},
    step::Step,
};
use crate::{
    golden::{
        bench::{Sizes, USABLE},
        hospital::{SERVERS, SERVICES, span},
        random::Random,
    },
    model::{Freed, Key, Model, Site, flag},
};

/// Ticks of an hour at HZ 1000.
const HOUR: i64 = 56_250;
const MINUTE: i64 = HOUR / 60;
const CLIENTS: usize = 120;
/// Room for all of them.
const SIZES: Sizes = Sizes { flows: 256, half_open: 64, sticky: 256 };

/// What happened on a day.
#[derive(Clone, Debug, Default)]
pub struct Day {
    /// Packets that were compared.
    pub packets: u64,
    /// Connections that were established.
    pub connections: u64,
    /// The most that were open at a full minute.
    pub most_open: usize,
    /// Packets that were answered with RST because the server was gone.
    pub server_gone: u64,
    /// Sweeps, and what they freed: flows, half-open flows, sticky records.
    pub sweeps: u64,
    /// Flows that the sweeps freed.
    pub swept_flows: usize,
    /// Half-open flows that the sweeps freed.
    pub swept_half_open: usize,
    /// Sticky records that the sweeps freed.
    pub swept_sticky: usize,
}

/// What comes next.
enum Event {
    /// A client opens a connection.
    Arrive(usize),
    /// Whatever a connection does next.
    GoOn(Visit),
    /// The daemon sweeps.
    Sweep,
    /// A server changes its state.
    Server(usize, u16),
}

/// A client's connection.
#[derive(Clone, Copy)]
struct Visit {
    client: usize,
    key: Key,
    until: i64,
}

struct Hospital {
    machine: Machine,
    model: Model,
    random: Random,
    /// By time, and by number at the same time.
    agenda: BTreeMap<(i64, u64), Event>,
    entries: u64,
    end: i64,
    day: Day,
}

/// Plays so many hours, and then goes on until nobody is there any more. In the end the tables are empty.
///
/// # Errors
/// The program is not built, the kernel refuses it, or it did otherwise than the model.
pub fn day(seed: u64, hours: i64) -> Result<Day> {
    let mut model = setup::plain(SIZES, 64);
    model.settings.idle = [span::IDLE; 2];
    let mut machine = Machine::load_sized(SIZES)?;
    machine.begin(&model, 0)?;
    let agenda = BTreeMap::new();
    let (random, end) = (Random(seed), hours * HOUR);
    let mut hospital = Hospital { machine, model, random, agenda, entries: 0, end, day: Day::default() };
    hospital.plan();
    hospital.live()?;
    hospital.close()?;
    Ok(hospital.day)
}

impl Hospital {
    fn at(&mut self, moment: i64, event: Event) {
        self.entries += 1;
        self.agenda.insert((moment, self.entries), event);
    }

    fn after(&mut self, from: i64, to: i64, event: Event) {
        let moment = self.model.now + self.between(from, to);
        self.at(moment, event);
    }

    fn between(&mut self, from: i64, to: i64) -> i64 {
        from + i64::try_from(self.random.below(usize::try_from(to - from).unwrap_or(1))).unwrap_or_default()
    }

    fn plan(&mut self) {
        for client in 0..CLIENTS {
            self.after(0, HOUR, Event::Arrive(client));
        }
        for minute in 1..=self.end / MINUTE {
            self.at(minute * MINUTE, Event::Sweep);
        }
        for hour in 1..self.end / HOUR {
            let server = self.random.below(SERVERS.len());
            // Drained for a quarter of an hour, or down for three minutes.
            let (state, minutes) = if self.random.one_in(2) { (STATES[1], 15) } else { (STATES[2], 3) };
            self.at(hour * HOUR, Event::Server(server, state));
            self.at(hour * HOUR + minutes * MINUTE, Event::Server(server, USABLE));
        }
    }

    fn live(&mut self) -> Result<()> {
        while let Some(((moment, _), event)) = self.agenda.pop_first() {
            self.wait_until(moment)?;
            match event {
                Event::Arrive(client) => self.arrive(client)?,
                Event::GoOn(visit) => self.go_on(visit)?,
                Event::Sweep => self.sweep()?,
                Event::Server(server, state) => self.step(&Step::Server(server, state))?,
            }
        }
        Ok(())
    }

    fn wait_until(&mut self, moment: i64) -> Result<()> {
        match u32::try_from(moment - self.model.now) {
            Ok(ticks) if ticks > 0 => self.step(&Step::Ticks(ticks)),
            _ => Ok(()),
        }
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match self.machine.step(&mut self.model, step)? {
            Ended::Same(_) => Ok(()),
            Ended::Different(what) => bail!("at {}, {step}: {what}", self.model.now),
        }
    }

    fn send(&mut self, frame: &[u8]) -> Result<Reason> {
        self.day.packets += 1;
        match self.machine.frame_in_time(&mut self.model, frame)? {
            Ended::Same(Some(reason)) => Ok(reason),
            Ended::Same(None) => bail!("a frame without a reason"),
            Ended::Different(what) => {
                bail!("at {}, packet {}: {what}", self.model.now, self.day.packets)
            }
        }
    }

    fn arrive(&mut self, client: usize) -> Result<()> {
        if self.model.now >= self.end {
            return Ok(());
        }
        let number = u8::try_from(client).unwrap_or(u8::MAX);
        let key = Key {
            service: SERVICES[client % SERVICES.len()].id,
            client: IpAddr::V4(Ipv4Addr::new(10, 85, 1, number)),
            port: 32_768 + u16::try_from(self.random.below(16_384)).unwrap_or_default(),
            service_port: 443,
        };
        let shape = plain(&mut self.random);
        let syn = onward::from_client(&shape, &Site::PLAIN, key, any_number(&mut self.random), 0, flag::SYN);
        self.send(&syn)?;
        let until = (self.model.now + self.between(MINUTE, HOUR)).min(self.end);
        // Some give up before they were answered.
        if self.random.one_in(20) {
            self.after(MINUTE, 2 * MINUTE, Event::Arrive(client));
        } else {
            self.after(0, 3, Event::GoOn(Visit { client, key, until }));
        }
        Ok(())
    }

    /// The client comes again: soon, or after so long that its record is forgotten.
    fn come_again(&mut self, client: usize) {
        let longest = if self.random.one_in(4) { 2 * HOUR } else { HOUR / 4 };
        self.after(MINUTE / 10, longest, Event::Arrive(client));
    }

    fn go_on(&mut self, visit: Visit) -> Result<()> {
        let Visit { client, key, until } = visit;
        let here = |row: &&Option<_>| row.as_ref().is_some_and(|flow: &crate::model::Flow| flow.key == key);
        let open = self.model.flows.iter().find(here).cloned().flatten();
        let Some(flow) = open.clone().or_else(|| self.model.half_open.iter().find(here).cloned().flatten())
        else {
            // Only a connection that never was is gone: no server for it, or no port.
            self.come_again(client);
            return Ok(());
        };
        if open.is_none() && self.model.now >= until {
            // It found no room, and lives on where it may be overwritten.
            self.come_again(client);
        } else if open.is_none() {
            self.say(&flow.key, Next::SynAck)?;
            let reason = self.say(&flow.key, Next::Ack(0))?;
            self.day.connections += u64::from(reason == Some(Reason::Established));
            self.after(1, 5 * MINUTE, Event::GoOn(visit));
        } else if self.model.now < until {
            let reason = self.say(&flow.key, Next::Client(flag::PSH))?;
            if reason == Some(Reason::ResetServerGone) {
                self.day.server_gone += 1;
                self.come_again(client);
                return Ok(());
            }
            ensure!(reason == Some(Reason::Forwarded), "{key:?} lost its connection: {reason:?}");
            self.say(&flow.key, Next::Server(flag::PSH))?;
            let moment = (self.model.now + self.between(1, 5 * MINUTE)).min(until);
            self.at(moment, Event::GoOn(visit));
        } else {
            self.leave(&key)?;
            self.come_again(client);
        }
        Ok(())
    }

    /// By FIN from either side first, by RST, or without a word.
    fn leave(&mut self, key: &Key) -> Result<()> {
        let ways: [&[Next]; 5] = [
            &[Next::Client(flag::FIN), Next::Server(flag::FIN), Next::Client(0)],
            &[Next::Server(flag::FIN), Next::Client(flag::FIN), Next::Server(0)],
            &[Next::Client(flag::RST)],
            &[Next::Server(flag::RST)],
            &[],
        ];
        for next in ways[self.random.below(ways.len())] {
            self.say(key, *next)?;
        }
        Ok(())
    }

    /// A segment of a connection, if it is remembered.
    fn say(&mut self, key: &Key, next: Next) -> Result<Option<Reason>> {
        let rows = self.model.flows.iter().chain(&self.model.half_open);
        let Some(flow) = rows.flatten().find(|flow| flow.key == *key).cloned() else { return Ok(None) };
        let shape = plain(&mut self.random);
        let number = any_number(&mut self.random);
        self.send(&onward::segment(&shape, &Site::PLAIN, &flow, next, number)).map(Some)
    }

    fn sweep(&mut self) -> Result<()> {
        let open = self.machine.compare_counts(&self.model).map_err(anyhow::Error::msg)?;
        self.day.most_open = self.day.most_open.max(open);
        let Freed { flows, half_open, sticky } =
            self.machine.sweep(&mut self.model).map_err(anyhow::Error::msg)?;
        self.day.sweeps += 1;
        self.day.swept_flows += flows;
        self.day.swept_half_open += half_open;
        self.day.swept_sticky += sticky;
        Ok(())
    }

    /// When everybody is gone for long enough, nothing is left; and all counters are what they must be.
    fn close(&mut self) -> Result<()> {
        for wait in [span::IDLE, span::PERSISTENCE] {
            self.wait_until(self.model.now + wait + 1)?;
            self.sweep()?;
        }
        ensure!(self.machine.is_empty(), "rows, or ports with an owner, are left");
        match self.machine.finish(&self.model)? {
            Some(what) => bail!("{what}"),
            None => Ok(()),
        }
    }
}
