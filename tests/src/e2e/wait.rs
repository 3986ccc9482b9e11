//! Waiting for what must come true.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const PAUSE: Duration = Duration::from_millis(20);

/// Tries until it gives something, and says how long that took. A failed try is as good as none.
///
/// # Errors
/// Not within the time: `what` and the last try's error.
pub fn until<T>(
    what: &str,
    within: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        let outcome = attempt();
        let elapsed = start.elapsed();
        match outcome {
            Ok(Some(value)) => return Ok((value, elapsed)),
            Ok(None) if elapsed < within => {}
            Ok(None) => bail!("{what}: not within {within:?}"),
            Err(_) if elapsed < within => {}
            Err(error) => return Err(error.context(format!("{what}: not within {within:?}"))),
        }
        thread::sleep(PAUSE);
    }
}

/// Makes sure that something stays true for a time.
///
/// # Errors
/// It did not, or could not be looked at.
pub fn steadily(what: &str, during: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < during {
        if !is_so()? {
            bail!("{what}: no longer after {:?}", start.elapsed());
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}
