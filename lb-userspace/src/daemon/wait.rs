//! Waiting for the network at a start: interfaces that come late, addresses that are learnt (DHCP, router advertisements).
//! A daemon that ends instead serves nobody after a reboot.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Receiver;
use tokio::time::sleep;
use tracing::{info, warn};

use super::engine::{Refusal, Request};
use super::sources::{self, sources};
use crate::api::{Api, Job};
use crate::config::Config;
use crate::net::{Link, Net, NetError};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long interfaces beside the first are waited for, where the rest can be served without them.
const OTHERS: Duration = Duration::from_secs(30);
/// Between two lines in the log that say the same: at first, and at last.
const SAYS: Duration = Duration::from_secs(10);
const SAYS_AT_LAST: Duration = Duration::from_secs(600);

/// What the network gives.
#[derive(Debug)]
pub struct Found {
    /// The interfaces, in the configuration's order; one that is not there has the index zero.
    pub links: Vec<Link>,
    /// The addresses that the host speaks from to the servers.
    pub sources: Vec<IpAddr>,
}

/// Waits until the network has what a start needs; answers meanwhile what can be answered. Nothing if the daemon was told
/// to end.
///
/// # Errors
/// What waiting does not help against.
pub async fn wait(
    net: &Net,
    names: &[String],
    config: &Config,
    api: &mut Api,
    jobs: &mut Receiver<Job>,
) -> anyhow::Result<Option<Found>> {
    let began = Instant::now();
    let mut sayings = Sayings::default();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let lacks = match look(net, names, config, began.elapsed()).await? {
            Ok(found) => {
                if sayings.has_said() {
                    info!("{} is there: going on", names.join(", "));
                }
                return Ok(Some(found));
            }
            Err(lacks) => lacks,
        };
        let text = format!("waiting for {lacks}; no new data path is started before");
        if sayings.is_due(&text, Instant::now()) {
            warn!("{text}");
        }
        if let Err(error) = api.listen() {
            warn!("nobody can ask what is waited for: {error:#}");
        }
        let pause = sleep(PAUSE);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                _ = terminate.recv() => return Ok(None),
                _ = interrupt.recv() => return Ok(None),
                Some(job) = jobs.recv() => answer(job, &lacks),
            }
        }
    }
}

/// What there is, or what is lacking.
async fn look(
    net: &Net,
    names: &[String],
    config: &Config,
    waited: Duration,
) -> anyhow::Result<Result<Found, String>> {
    let mut links = Vec::new();
    let mut missing = Vec::new();
    for name in names {
        match net.link(name).await {
            Ok(link) => links.push(link),
            Err(NetError::NoSuchLink { name, known }) => {
                missing.push(format!("the interface {name} (there are {})", known.join(", ")));
                links.push(Link::missing(&name));
            }
            Err(error @ NetError::NotEthernet { .. }) => return Err(error.into()),
            Err(error) => missing.push(error.to_string()),
        }
    }
    let first_is_there = links.len() == names.len() && links.first().is_some_and(Link::is_there);
    let goes_without = first_is_there && waited >= OTHERS && sources::are_named(config);
    if !missing.is_empty() && !goes_without {
        return Ok(Err(missing.join(" and ")));
    }
    match sources(net, &links, config).await {
        Ok(sources) => Ok(Ok(Found { links, sources })),
        Err(error) => Ok(Err(format!("an address: {error:#}"))),
    }
}

fn answer(job: Job, lacks: &str) {
    let waits = format!("the daemon is starting, and waits for {lacks}");
    let answer = match job.request {
        Request::Status => Ok(json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "waiting_for": lacks,
            "problems": [{ "kind": "waiting", "subject": "start", "text": waits, "since": "the start" }],
        })),
        _ => Err(Refusal::Conflict(waits)),
    };
    // Whoever asked may be gone.
    let _ = job.reply.send(answer);
}

/// What was said last, so that the same is said at growing intervals.
#[derive(Debug, Default)]
struct Sayings {
    last: Option<(String, Instant, Duration)>,
}

impl Sayings {
    fn has_said(&self) -> bool {
        self.last.is_some()
    }

    fn is_due(&mut self, text: &str, now: Instant) -> bool {
        let pause = match &self.last {
            Some((last, at, pause)) if last == text => {
                if now.duration_since(*at) < *pause {
                    return false;
                }
                (*pause * 2).min(SAYS_AT_LAST)
            }
            _ => SAYS,
        };
        self.last = Some((text.to_owned(), now, pause));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_at_growing_intervals_and_something_else_at_once() {
        let began = Instant::now();
        let mut sayings = Sayings::default();
        let mut said = |text: &str, second: u64| sayings.is_due(text, began + Duration::from_secs(second));
        let due: Vec<u64> = (0..100).filter(|second| said("eth0", *second)).collect();
        assert_eq!(due, [0, 10, 30, 70]);
        assert!(said("an address", 100) && !said("an address", 109) && said("an address", 110));
        // However long it takes, it is said every ten minutes.
        let due: Vec<u64> = (111..7200).filter(|second| said("an address", *second)).collect();
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] <= 600), "{due:?}");
    }
}
