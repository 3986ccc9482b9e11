//! A hospital at work, to see whether anybody notices what happens to its balancer.

use std::{net::SocketAddr, ops::Range, time::Duration};

use anyhow::{Error, Result, ensure};

use super::{
    crowd::{Homes, homes, moved},
    downloads::Downloads,
    records,
    site::Site,
    turn::Turn,
    wait::until,
};
use crate::lab::{LabOptions, Port443, Services, Topology};

/// Clients that download.
pub const DOWNLOADS: usize = 200;
/// Clients that are known, and not connected.
const KNOWN: Range<usize> = 1000..1300;
/// So much that servers have something to send for minutes, and all comes to its end in seconds.
const BYTES: u64 = 2 << 20;
/// A last segment that is lost is sent again.
const CLOSES_WITHIN: Duration = Duration::from_secs(60);

/// 300 clients are known, 200 others download.
pub struct Busy {
    /// Where.
    pub site: Site,
    /// Whose service.
    pub to: SocketAddr,
    known: Homes,
    downloads: Downloads,
}

impl Busy {
    /// A balancer in this topology, and all clients at work.
    ///
    /// # Errors
    /// Something did not start, or somebody was not answered.
    pub fn start(turn: Turn, topology: Topology) -> Result<Self> {
        let options =
            LabOptions { port_443: Port443::Plain, big_bytes: BYTES, topology, ..LabOptions::default() };
        let site = Site::serving(turn, options, &Services::default().yaml(topology))?;
        let to = SocketAddr::new(topology.hyperspace(), 443);
        let known = homes(&site, KNOWN, to)?;
        let downloads = Downloads::start(&site, 0..DOWNLOADS, to)?;
        Ok(Self { site, to, known, downloads })
    }

    /// Has all downloads come to their end. They lasted until now, come whole, and nobody moved. How many connections
    /// are counted when nobody has any.
    ///
    /// # Errors
    /// Somebody noticed something.
    pub fn unbroken(self) -> Result<u64> {
        let (running, sending) = (self.downloads.running(), self.downloads.are_on_their_way());
        let after = homes(&self.site, KNOWN, self.to);
        let broken = self.downloads.finish();
        ensure!(broken.is_empty(), "{} broken: {broken:?}", broken.len());
        ensure!(running == DOWNLOADS, "{} downloads ended by themselves", DOWNLOADS - running);
        ensure!(sending, "it took so long that the servers had nothing left to send");
        let after = after?;
        let moved = moved(&self.known, &after);
        ensure!(moved.is_empty(), "{} moved: {moved:?}", moved.len());
        println!("all {DOWNLOADS} downloads lasted and came whole, none of {} clients moved", KNOWN.len());
        let counted =
            || Ok::<u64, Error>(records::open_connections(&self.site, "Hyperspace")?.values().sum());
        // What is counted then is the caller's to judge.
        let _ = until("no connection is counted", CLOSES_WITHIN, || Ok((counted()? == 0).then_some(())));
        counted()
    }
}
