//! File descriptors: as many as the system gives, and so few for strangers that the daemon's own work never lacks one.
//!
//! A health check that finds no descriptor has no verdict; what connects to the redirects must not bring that about. The
//! redirects together get a quarter at most. The rest is for checks (one each, two while one closes), the API and the
//! kernel's sockets.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// What the limit is raised to where that is allowed: enough for the checks of the most servers there may be.
const WANTED: u64 = 1 << 17;
/// For maps, netlink, the API and the log.
const OWN: u64 = 256;
/// Most connections to the redirects; more would be memory for nobody.
const MOST_REDIRECTS: u64 = 8192;

/// How many connections the redirects may have, under a limit of so many descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// All redirect services together.
    pub all: usize,
    /// One client.
    pub of_one_client: usize,
}

/// The redirects' share of a limit.
#[must_use]
pub fn share(limit: u64) -> Share {
    let all = usize::try_from((limit / 4).clamp(8, MOST_REDIRECTS)).unwrap_or(usize::MAX);
    Share { all, of_one_client: (all / 16).max(4) }
}

/// How many descriptors the checks of so many servers, the daemon itself and the redirects' share need.
#[must_use]
pub fn needed(limit: u64, servers: usize) -> u64 {
    let redirects = u64::try_from(share(limit).all).unwrap_or(u64::MAX);
    OWN + redirects + 2 * u64::try_from(servers).unwrap_or(u64::MAX / 4)
}

/// What to say where the limit is too low for so many servers.
#[must_use]
pub fn shortage(limit: u64, servers: usize) -> Option<String> {
    let needed = needed(limit, servers);
    (limit < needed).then(|| {
        format!(
            "this process may have {limit} file descriptors, and needs up to {needed} for the checks of {servers} \
             servers: with too few, checks have no verdict; set LimitNOFILE={} in its unit",
            WANTED.max(needed)
        )
    })
}

/// Raises the limit as far as the system lets it, and says what it is now.
pub fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    let enough = WANTED.max(hard);
    // The hard limit takes CAP_SYS_RESOURCE, and is under fs.nr_open.
    let raised = [(enough, enough), (hard, hard)]
        .into_iter()
        .find(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, *soft, *hard).is_ok());
    let limit = raised.map_or(soft, |(soft, _)| soft);
    if limit != soft {
        info!("this process may have {limit} file descriptors ({soft} before)");
    }
    limit
}

/// The limit as it is.
#[must_use]
pub fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// How many this process has.
#[must_use]
pub fn open() -> Option<usize> {
    fs::read_dir("/proc/self/fd").ok().map(Iterator::count)
}

/// Says a shortage in the log, once for each number of servers.
pub fn warn_of_shortage(servers: usize) {
    if let Some(shortage) = shortage(limit(), servers) {
        warn!("{shortage}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_never_have_what_the_checks_need() {
        for limit in [256, 1024, 4096, 65_536, WANTED, 1 << 30] {
            let share = share(limit);
            assert!(u64::try_from(share.all).unwrap() <= limit / 4, "{limit}: {share:?}");
            assert!(share.of_one_client * 4 <= share.all, "{limit}: {share:?}");
        }
        assert_eq!(share(1024), Share { all: 256, of_one_client: 16 });
        assert_eq!(share(u64::MAX), Share { all: 8192, of_one_client: 512 });
    }

    #[test]
    fn a_limit_that_is_too_low_for_the_servers_is_said_with_what_to_do() {
        assert_eq!(shortage(1024, 100), None);
        assert_eq!(
            shortage(1024, 300).unwrap(),
            "this process may have 1024 file descriptors, and needs up to 1112 for the checks of 300 servers: with too \
             few, checks have no verdict; set LimitNOFILE=131072 in its unit"
        );
        assert_eq!(shortage(WANTED, 50_000), None);
    }
}
