//! A hospital's clients at work while somebody floods its balancer.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::Flood;
use crate::{
    e2e::{
        Site, Talkers, Turn, Wanted, homes,
        records::{self, Flow},
    },
    lab::{FloodReport, ForgedAcks, HYPERSPACE, Junk, Ns, SynFlood},
};

/// Clients that ask all the time.
const TALKERS: Range<usize> = 0..200;
/// Clients that are known, and not connected.
const KNOWN: Range<usize> = 1000..1300;
/// How long clients are watched before a flood.
const QUIET: Duration = Duration::from_millis(1000);
/// How long a flood lasts.
const LONG: Duration = Duration::from_millis(2500);
const SERVICE: &str = "Hyperspace";
const TO: SocketAddrV4 = SocketAddrV4::new(HYPERSPACE, 443);

/// What a flood did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flooded {
    /// Frames a second that the kernel took.
    pub(super) sent: f64,
    /// Packets a second that the balancer's program saw, those of the clients with them.
    pub(super) seen: f64,
    /// Answers that clients got, of those before.
    pub(super) kept: f64,
    /// Seconds of the slowest answer.
    pub(super) slowest: f64,
    /// Connections that broke, or were answered by another server.
    pub(super) broken: f64,
    /// Sticky records that were lost or led elsewhere.
    pub(super) lost: f64,
}

/// The site, and where its clients belong.
pub(super) struct Beside {
    site: Site,
    records: BTreeMap<IpAddr, String>,
}

impl Beside {
    /// A balancer, and 500 clients that it knows.
    ///
    /// # Errors
    /// Something did not start, or somebody was not answered.
    pub(super) fn up() -> Result<Self> {
        let site = Site::plain(Turn::alone(), &Wanted::default())?;
        homes(&site, KNOWN.chain(TALKERS), SocketAddr::V4(TO))?;
        let records = remembered(&site)?;
        Ok(Self { site, records })
    }

    /// Has it flooded while clients are at work.
    ///
    /// # Errors
    /// A client could not connect before, or a flood could not be sent.
    pub(super) fn suffer(&self, flood: Flood) -> Result<Flooded> {
        let talkers = Talkers::start(&self.site, TALKERS, SocketAddr::V4(TO))?;
        let rate =
            |from: u64, start: Instant| (talkers.exchanges() - from) as f64 / start.elapsed().as_secs_f64();
        let (start, before) = (Instant::now(), talkers.exchanges());
        thread::sleep(QUIET);
        let quiet = rate(before, start);
        let seen = self.seen()?;
        let (start, before) = (Instant::now(), talkers.exchanges());
        let report = self.send(flood)?;
        let flooded = rate(before, start);
        let seen = self.seen()? - seen;
        let talked = talkers.stop()?;
        for broken in &talked.broken {
            eprintln!("bench: broken by {}: {broken}", flood.name());
        }
        let now = remembered(&self.site)?;
        let lost = self.records.iter().filter(|(client, server)| now.get(client) != Some(server)).count();
        Ok(Flooded {
            sent: report.rate(),
            seen: seen as f64 / report.elapsed.as_secs_f64(),
            kept: flooded / quiet,
            slowest: talked.slowest.as_secs_f64(),
            broken: talked.broken.len() as f64,
            lost: lost as f64,
        })
    }

    fn send(&self, flood: Flood) -> Result<FloodReport> {
        match flood {
            Flood::Syns => self.site.syn_flood(
                Ns::Lb,
                &SynFlood {
                    first_source: Ipv4Addr::new(100, 64, 0, 0),
                    sources: 1 << 22,
                    to: TO,
                    frames: u64::MAX,
                    longest: LONG,
                    rate: None,
                },
            ),
            Flood::Acks => {
                let victims = self.victims()?;
                self.site.forged_acks(&ForgedAcks { victims, to: TO, frames: u64::MAX, longest: LONG })
            }
            Flood::Fragments => self.site.junk(&Junk { fragments: true, to: TO, longest: LONG }),
            Flood::Malformed => self.site.junk(&Junk { fragments: false, to: TO, longest: LONG }),
        }
    }

    /// The clients' ends of open connections.
    fn victims(&self) -> Result<Vec<SocketAddrV4>> {
        let flows: Vec<Flow> = records::ask(&self.site, &["flow", "show"])?;
        let open = flows.iter().filter(|flow| flow.service == SERVICE && flow.state == "established");
        let victims: Vec<_> = open
            .filter_map(|flow| match flow.client {
                IpAddr::V4(client) => Some(SocketAddrV4::new(client, flow.client_port)),
                IpAddr::V6(_) => None,
            })
            .collect();
        (!victims.is_empty()).then_some(victims).context("no connection is open")
    }

    /// Packets that the program has seen.
    fn seen(&self) -> Result<u64> {
        Ok(records::stats(&self.site)?.reasons.values().sum())
    }
}

/// Each known client's server.
fn remembered(site: &Site) -> Result<BTreeMap<IpAddr, String>> {
    let records = records::sticky(site, SERVICE)?;
    Ok(records.into_iter().map(|(client, record)| (client, record.server)).collect())
}
