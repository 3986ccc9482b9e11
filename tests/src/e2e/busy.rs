//! A hospital at work, to see whether anybody notices what happens to its balancer.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::{
    crowd::{Homes, homes, moved},
    downloads::Downloads,
    records,
    site::Site,
    turn::Turn,
    yaml::Wanted,
};
use crate::lab::{LabOptions, Port443};

/// Clients that download.
pub const DOWNLOADS: usize = 200;
/// Clients that are known, and not connected.
const KNOWN: Range<usize> = 1000..1300;
/// Bytes a second of one download (`/slow`).
const RATE: u64 = 64 * 1024;

/// 300 clients are known, 200 others download.
pub struct Busy {
    /// Where.
    pub site: Site,
    known: Homes,
    downloads: Downloads,
}

/// Who is left when all is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// Downloads that were still running when what was tried was over.
    pub running: usize,
    /// Connections that are still counted when nobody has any.
    pub counted: u64,
}

impl Busy {
    /// Downloads that last so many seconds.
    ///
    /// # Errors
    /// Something did not start, or somebody was not answered.
    pub fn start(turn: Turn, seconds: u64) -> Result<Self> {
        let options =
            LabOptions { port_443: Port443::Plain, big_bytes: seconds * RATE, ..LabOptions::default() };
        let site = Site::with(turn, options, &Wanted::default())?;
        let known = homes(&site, KNOWN, Site::HYPERSPACE)?;
        let downloads = Downloads::start(&site, 0..DOWNLOADS, Site::HYPERSPACE)?;
        Ok(Self { site, known, downloads })
    }

    /// Waits for the end of all downloads. They lasted until now, came whole, and nobody moved.
    ///
    /// # Errors
    /// Somebody noticed something.
    pub fn unbroken(self) -> Result<Left> {
        let running = self.downloads.running();
        ensure!(running > 0, "the downloads were over too early to notice anything");
        let after = homes(&self.site, KNOWN, Site::HYPERSPACE)?;
        let moved = moved(&self.known, &after);
        ensure!(moved.is_empty(), "moved: {moved:?}");
        let broken = self.downloads.finish();
        ensure!(broken.is_empty(), "broken: {broken:?}");
        println!(
            "{running} of {DOWNLOADS} downloads were running at the end; all came whole, none of {} clients moved",
            KNOWN.len()
        );
        let servers: Vec<records::Server> = records::ask(&self.site, &["server", "show", "Hyperspace"])?;
        Ok(Left { running, counted: servers.iter().map(|server| server.connections).sum() })
    }
}
