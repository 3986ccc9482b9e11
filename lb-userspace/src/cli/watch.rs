//! Counters, once or again and again.

use std::time::{Duration, Instant};

use super::{
    args::{Stats as StatsArgs, Top},
    read::look,
    screen::Screen,
    world::World,
};
use crate::{
    dataplane::Maps,
    paths::Paths,
    view::{
        Snapshot,
        rates::{self, Rates},
        stats::{self, Stats},
    },
};

pub(super) fn stats(
    args: &StatsArgs,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    if let Some(seconds) = args.watch {
        let show = |rates: &Rates| rates::text(rates, false, args.reasons);
        return watch(seconds, args.count, false, show, world, paths, screen);
    }
    look(world, paths, screen, |snapshot, screen| {
        let counters = Stats::read(snapshot)?;
        screen.show(&counters, || stats::text(&counters, args.reasons))
    })
}

pub(super) fn top(args: &Top, world: &World, paths: &Paths, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let show = |rates: &Rates| rates::text(rates, true, false);
    watch(args.seconds, args.count, true, show, world, paths, screen)
}

/// Shows rates every so many seconds; ends after `count` of them, or with the process (Ctrl-C).
fn watch(
    seconds: u32,
    count: Option<u32>,
    busiest_first: bool,
    text: impl Fn(&Rates) -> String,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let maps = (world.maps)(&paths.pin_dir)?;
    let mut before = sample(&maps, world, screen, true)?;
    let mut shown = 0;
    while count.is_none_or(|count| shown < count) {
        (world.sleep)(Duration::from_secs(u64::from(seconds)));
        let after = sample(&maps, world, screen, false)?;
        let mut rates = Rates::between(&before.0, &after.0, after.1.duration_since(before.1));
        if busiest_first {
            rates.busiest_first();
        }
        screen.redraw(shown == 0)?;
        screen.show(&rates, || text(&rates))?;
        screen.out.flush()?;
        before = after;
        shown += 1;
    }
    Ok(())
}

fn sample(
    maps: &Maps,
    world: &World,
    screen: &mut Screen<'_>,
    first: bool,
) -> anyhow::Result<(Stats, Instant)> {
    let snapshot = Snapshot::read(maps, (world.now)())?;
    let at = Instant::now();
    if first {
        screen.warn_of_silence(&snapshot)?;
    }
    Ok((Stats::read(&snapshot)?, at))
}
