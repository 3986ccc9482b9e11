//! The program's own log lines (aya-log), in the daemon's log: tables and ranges that are too small.

use std::time::Duration;

use aya_log::EbpfLogger;
use tracing::warn;

/// How often the lines are fetched. They are few, and nobody acts on them within a second.
const EVERY: Duration = Duration::from_secs(1);

/// Follows the log of the program with this id for as long as the daemon runs. Call it within a tokio runtime.
///
/// That it cannot be followed is only said: the same alarms are counters (`steadfast stats --reasons`).
pub fn follow(program: u32) {
    match EbpfLogger::init_from_id(program) {
        Ok(mut lines) => {
            tokio::spawn(async move {
                let mut second = tokio::time::interval(EVERY);
                loop {
                    second.tick().await;
                    lines.flush();
                }
            });
        }
        Err(error) => warn!("the program's own log lines cannot be read: {error}"),
    }
}
