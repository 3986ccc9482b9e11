//! `steadfastd run`: starting in an order in which nobody is served by half a data path, then the loop.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::Unit;
use lb_common::clock::Ticks;
use lb_common::control::LAYOUT_VERSION;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tracing::{error, info, warn};

use super::elicit::elicit;
use super::engine::{About, Clock, ConfigFile, Engine, Memory};
use super::guard;
use super::kernel_log;
use super::lock::RunLock;
use super::outside::{ArmEvent, News, Outside};
use super::return_hops::Follower;
use super::routers;
use super::setup;
use super::store::Store;
use super::wait::{Found, wait};
use crate::api::{Api, Job};
use crate::config::{self, Config, XdpMode};
use crate::core::ServerName;
use crate::core::plan::count;
use crate::dataplane::arms;
use crate::dataplane::clock::measure_hz;
use crate::dataplane::load::{DataPath, Started};
use crate::dataplane::loads;
use crate::dataplane::repair::{Suspects, repair, suspects};
use crate::dataplane::sweep::sweep;
use crate::dataplane::{self, Geometry, Maps, confirm};
use crate::net::{Link, Net, ephemeral_range};
use crate::paths::Paths;

/// How long a fresh start waits for the servers' MAC addresses before it takes clients.
const NEIGHBOURS_WAIT: Duration = Duration::from_millis(1500);
/// Between two looks at what was answered meanwhile.
const NEIGHBOURS_STEP: Duration = Duration::from_millis(50);
/// How long the kernel may take for what is asked of the network at once.
const NETWORK_WAIT: Duration = Duration::from_secs(5);
/// Slots that are looked at in a second, looking for what has expired.
const SWEPT_A_SECOND: usize = 1 << 20;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Another interface than the configuration's.
    pub interface: Option<String>,
    /// Where things are kept.
    pub paths: Paths,
    /// A program that this start attaches is on trial for so long.
    pub confirm_within: Option<Duration>,
}

/// Why the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to; the data path goes on.
    Stopped,
    /// The attachment was on trial and not confirmed: the caller is to undo it.
    NotConfirmed,
}

/// A data path that was started.
pub struct Attached {
    /// Its maps.
    pub maps: Arc<Maps>,
    /// Whether it was there before, with its sessions.
    pub adopted: bool,
    /// How the program runs.
    pub mode: String,
    /// What there is to say.
    pub notes: Vec<String>,
    /// Looks whether the program is where it was attached, and puts it back.
    pub watch: Watch,
}

/// Says what it had to do. Dropping it gives up what has to live as long as the daemon.
pub type Watch = Box<dyn FnMut() -> anyhow::Result<Option<String>> + Send>;

/// Starts a data path on interfaces.
pub type Attach = Box<dyn FnOnce(&[String], XdpMode, Geometry) -> anyhow::Result<Attached> + Send>;

/// The real one: the XDP program, pinned.
#[must_use]
pub fn xdp(pin_dir: PathBuf) -> Attach {
    Box::new(move |interfaces, mode, geometry| {
        let (first, others) = interfaces.split_first().context("no interface is named")?;
        arms::check(&pin_dir, interfaces)?;
        let (mut path, started) = DataPath::start(&pin_dir, first, mode, geometry)?;
        for other in others {
            path.extend(other, mode)?;
        }
        arms::warn_of_others(&pin_dir, interfaces)?;
        let places = || [&path.attached].into_iter().chain(&path.others);
        let mut notes: Vec<String> = places().filter_map(|place| place.note.clone()).collect();
        let modes: BTreeSet<&str> = places().map(|place| place.mode.name()).collect();
        let modes = modes.into_iter().collect::<Vec<_>>().join(", ");
        let adopted = match started {
            Started::Fresh => path.maps.control().layout.load() != 0,
            Started::Migrated(carried) => {
                let from = match carried.layout {
                    LAYOUT_VERSION => "the tables have other sizes now".to_owned(),
                    older => format!("the tables had layout {older}, and have {LAYOUT_VERSION} now"),
                };
                notes.push(format!("{from}: {carried}"));
                true
            }
            Started::Adopted { program_replaced } => {
                if program_replaced {
                    notes.push(
                        "the program was of another build, and was replaced between two packets".to_owned(),
                    );
                }
                // A start that was cut off before it set up the maps has left nothing to adopt.
                path.maps.control().layout.load() != 0
            }
        };
        kernel_log::follow(path.attached.program);
        Ok(Attached {
            maps: Arc::clone(&path.maps),
            adopted,
            mode: modes,
            notes,
            watch: Box::new(move || path.put_back(mode)),
        })
    })
}

/// Reads the configuration file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read_config(path: &std::path::Path) -> anyhow::Result<ConfigFile> {
    let source = path.display().to_string();
    let checked = config::check_file(path).map_err(|errors| anyhow::anyhow!("{errors}"))?;
    for warning in &checked.warnings {
        warn!("{source}:{warning}");
    }
    // The same bytes again: `check_file` has bounded and decoded them.
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {source}"))?;
    Ok(ConfigFile { source, text, config: checked.config })
}

/// Runs until SIGTERM or SIGINT. The data path goes on without the daemon.
///
/// # Errors
/// One sentence about what is in the way, and what to do.
pub async fn run(options: Options, attach: Attach) -> anyhow::Result<Ended> {
    let file = read_config(&options.config)?;
    let (mut lock, unlocked) = RunLock::take_if_possible(&options.paths.lock(), "start another")?;
    let (mut api, mut jobs) = Api::new(&options.paths.socket());
    let store = Store::new(options.paths.state_file(), options.paths.state_stand_in());
    let memory = Memory::recall(store, &file);
    let started = match interfaces_of(&options, &memory.running) {
        Ok(names) => start(&options, memory, attach, &names, &mut api, &mut jobs)
            .await
            .map_err(|error| name_interfaces(error, &names)),
        Err(error) => Err(error),
    };
    let (mut daemon, news) = match started {
        Ok(Some(started)) => started,
        ended => {
            // It has served nobody: the host is as before.
            api.remove();
            lock.remove();
            return ended.map(|_| Ended::Stopped);
        }
    };
    if let Some(why) = unlocked {
        warn!("{why}: the lock of the pins alone keeps a second daemon away");
    }
    daemon.look_after_runtime(&mut api, &mut lock);
    daemon.ready();
    daemon.serve(news, jobs, &mut api, &mut lock, &options.config).await
}

/// Everything until clients are served. Nothing if the daemon was told to end before.
async fn start(
    options: &Options,
    memory: Memory,
    attach: Attach,
    names: &[String],
    api: &mut Api,
    jobs: &mut mpsc::Receiver<Job>,
) -> anyhow::Result<Option<(Daemon, News)>> {
    setup::ports_apart(&memory.running, &ephemeral_range()?)?;
    let net = Net::open()?;
    let Some(Found { links, sources }) = wait(&net, names, &memory.running, api, jobs).await? else {
        return Ok(None);
    };
    let geometry = setup::geometry(&memory.running, &sources)?;
    let mode = memory.running.node.xdp_mode;
    let named = names.to_vec();
    let attached = tokio::task::spawn_blocking(move || attach(&named, mode, geometry)).await??;
    bring_up(options, memory, attached, net, links, &sources, &geometry).await.map(Some)
}

/// What a configuration asks of the network that it can't have.
fn in_the_way(config: &Config) -> Vec<String> {
    let mut found = routers::in_the_way(config);
    let ports = ephemeral_range().ok().and_then(|host| setup::ports_apart(config, &host).err());
    found.extend(ports.map(|error| error.to_string()));
    found
}

/// Whoever reads a process's last words has to know which interface they are about.
fn name_interfaces(error: anyhow::Error, names: &[String]) -> anyhow::Error {
    let text = format!("{error:#}");
    if names.iter().all(|name| text.contains(name.as_str())) {
        return error;
    }
    anyhow::anyhow!("{text} (on {})", names.join(", "))
}

fn interfaces_of(options: &Options, config: &Config) -> anyhow::Result<Vec<String>> {
    let names = match &options.interface {
        Some(name) => vec![name.clone()],
        None => config.node.interfaces.clone(),
    };
    ensure!(
        !names.is_empty(),
        "the configuration names no interface: write node.interfaces, or give --iface"
    );
    Ok(names)
}

struct Daemon {
    engine: Engine,
    outside: Outside,
    /// Keeps the answers to clients on living hops.
    hops: Follower,
    seed: u32,
    adopted: bool,
    /// Rows that a killed process may have left half-made, seen once.
    suspects: Option<(Suspects, &'static str)>,
    drift: Vec<i64>,
    ticks: u64,
    watch: Watch,
    /// What the watch said last, so that it is said once.
    off: Option<String>,
}

/// Sets up or adopts the maps, and the network around them.
async fn bring_up(
    options: &Options,
    mut memory: Memory,
    attached: Attached,
    net: Net,
    links: Vec<Link>,
    sources: &[IpAddr],
    geometry: &Geometry,
) -> anyhow::Result<(Daemon, News)> {
    let Attached { maps, adopted, mode, notes, watch } = attached;
    for note in notes {
        info!("{note}");
    }
    let secrets = if adopted {
        setup::settle_adopted(&maps, geometry, sources)?;
        setup::secrets_of(&maps)
    } else {
        let secrets = match memory.state.secrets {
            Some(secrets) => secrets,
            None => setup::draw_secrets()?,
        };
        let hz = measure_hz(maps.kernel.as_ref())?;
        setup::settle_fresh(&maps, geometry, sources, &secrets, hz)?;
        secrets
    };
    trial(options, &maps, adopted)?;
    memory.state.secrets = Some(secrets);
    let clock: Clock = Arc::new(jiff::Timestamp::now);
    let about = About {
        started_at: clock(),
        file: options.config.display().to_string(),
        interface: links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", "),
        xdp_mode: mode,
    };
    let suspects = adopted.then(|| (suspects(&maps), "that an ended process left half-made"));
    let drift = if adopted { loads::drift(&maps) } else { Vec::new() };
    let mut engine = Engine::new(Arc::clone(&maps), memory, about, clock, adopted);
    let seed =
        getrandom::u64().map_err(|error| anyhow::anyhow!("the kernel gives no random numbers: {error}"))?;
    engine.refuse_by(in_the_way);
    let hops = Follower::start(net.clone(), Arc::clone(&maps), links.clone());
    let (mut outside, mut news) = Outside::start(net, links, sources.to_vec(), &mut engine, seed)?;
    outside.follow_hops(&mut engine).await;
    if !adopted {
        wait_for_neighbours(&mut outside, &mut news, &mut engine).await?;
    }
    let applied = engine.begin()?;
    if adopted {
        info!(
            "adopted the running data path{}",
            if applied.changed() { ", and brought it up to date" } else { "" }
        );
    } else {
        setup::open(&maps);
    }
    outside.follow(&mut engine).await;
    engine.tick()?;
    engine.take_moved();
    let [a, b, c, d, ..] = seed.to_be_bytes();
    let seed = u32::from_be_bytes([a, b, c, d]);
    Ok((Daemon { engine, outside, hops, seed, adopted, suspects, drift, ticks: 0, watch, off: None }, news))
}

/// Begins the trial of what was attached now, or goes on with that of what was adopted.
fn trial(options: &Options, maps: &Maps, adopted: bool) -> anyhow::Result<()> {
    if let Some(within) = options.confirm_within {
        if adopted && confirm::undone_at(maps.control()).is_none() {
            info!("there is nothing to confirm: the data path was running already, and stays");
        } else if !adopted {
            let jiffies = u64::try_from(within.as_millis())? * maps.control().hz.load() / 1000;
            confirm::begin(maps.control(), maps.kernel.jiffies()? + jiffies);
        }
    }
    let Some(by) = confirm::undone_at(maps.control()) else { return Ok(()) };
    guard::start(&options.paths)?;
    let clock = dataplane::Clock::read(maps)?;
    warn!(
        "on trial: unless `steadfast prog confirm` comes before {}, everything is undone then, as by `steadfastd \
         detach`: the program comes off, the service addresses go, and all connections end. Stopping the daemon before \
         undoes it at once; a dead daemon or the end of this session changes nothing of it",
        clock.instant_of(Ticks::from_jiffies(by)).round(Unit::Second)?
    );
    Ok(())
}

/// The first clients of a fresh start should not find their server's MAC address unknown. Meanwhile it is found out, for
/// all addresses together, whether another machine has them.
async fn wait_for_neighbours(
    outside: &mut Outside,
    news: &mut News,
    engine: &mut Engine,
) -> anyhow::Result<()> {
    let until = Instant::now() + NEIGHBOURS_WAIT;
    loop {
        outside.look_for_conflicts(engine);
        if engine.all_reachable() && !outside.is_asking() {
            return Ok(());
        }
        let step = (Instant::now() + NEIGHBOURS_STEP).min(until);
        match timeout_at(step, news.network.recv()).await {
            Ok(Some(event)) => outside.events([event], engine).await?,
            Ok(None) => return Ok(()),
            Err(_) if Instant::now() >= until => break,
            Err(_) => {}
        }
    }
    engine.warn_of_unknown_neighbours();
    Ok(())
}

impl Daemon {
    /// The one line that says that clients are served.
    fn ready(&self) {
        let running = self.engine.running();
        let servers: usize = running.services.iter().map(|service| service.real_servers.len()).sum();
        info!(
            "ready: {} virtual services, {servers} real servers on {}, {}",
            running.services.len(),
            self.outside.names(),
            if self.adopted { "sessions kept" } else { "fresh start" },
        );
    }

    async fn serve(
        mut self,
        mut news: News,
        mut jobs: mpsc::Receiver<Job>,
        api: &mut Api,
        lock: &mut RunLock,
        config: &std::path::Path,
    ) -> anyhow::Result<Ended> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hang_up.recv() => self.reload(config),
                _ = second.tick() => {
                    self.tick();
                    self.look_after_runtime(api, lock);
                    self.look_for_interfaces().await;
                    self.outside.look_for_conflicts(&mut self.engine);
                    if self.is_lost() {
                        break;
                    }
                }
                Some(event) = news.health.recv() => {
                    let others = std::iter::from_fn(|| news.health.try_recv().ok());
                    self.engine.health_news(std::iter::once(event).chain(others));
                }
                Some(event) = news.network.recv() => {
                    let others = std::iter::from_fn(|| news.network.try_recv().ok());
                    self.network_events(std::iter::once(event).chain(others)).await?;
                }
                Some(job) = jobs.recv() => {
                    let answer = self.engine.request(job.request);
                    // Whoever asked may be gone.
                    let _ = job.reply.send(answer);
                }
            }
            if self.engine.take_moved() {
                self.follow().await;
            }
            self.elicit();
        }
        if confirm::claim_undoing(self.engine.maps().control()) {
            warn!("the attachment was not confirmed: it is undone");
            return Ok(Ended::NotConfirmed);
        }
        info!(
            "stopped; the data path goes on forwarding without the daemon (`steadfastd detach` would end it)"
        );
        Ok(Ended::Stopped)
    }

    /// Whether the time for confirming the attachment is over.
    fn is_lost(&self) -> bool {
        let maps = self.engine.maps();
        let jiffies = maps.kernel.jiffies();
        jiffies.is_ok_and(|now| confirm::trial(maps.control(), now) == confirm::Trial::Lost)
    }

    /// Has the program put back if somebody took it off.
    fn look_after_program(&mut self) {
        match (self.watch)() {
            Ok(None) => self.off = None,
            Ok(Some(done)) => {
                warn!("{done}");
                self.off = None;
            }
            Err(error) => {
                let why = format!("{error:#}");
                if self.off.as_ref() != Some(&why) {
                    error!("{why}");
                }
                self.off = Some(why);
            }
        }
    }

    async fn network_events(&mut self, events: impl IntoIterator<Item = ArmEvent>) -> anyhow::Result<()> {
        match timeout(NETWORK_WAIT, self.outside.events(events, &mut self.engine)).await {
            Ok(done) => done,
            Err(_) => {
                self.network_is_silent();
                Ok(())
            }
        }
    }

    async fn look_for_interfaces(&mut self) {
        if timeout(NETWORK_WAIT, self.outside.look_for_interfaces(&mut self.engine)).await.is_err() {
            self.network_is_silent();
        }
    }

    /// Commands have to find the daemon, also when the runtime directory was emptied or full.
    fn look_after_runtime(&mut self, api: &mut Api, lock: &mut RunLock) {
        const KIND: &str = "socket";
        lock.renew();
        let now = self.engine.now();
        match api.listen() {
            Ok(_) => self.engine.problems().clear(KIND, KIND, "commands reach the daemon again"),
            Err(error) => {
                let text = format!("no command reaches the daemon, and it is tried again: {error:#}");
                self.engine.problems().raise(KIND, KIND, text, now);
            }
        }
    }

    async fn follow(&mut self) {
        if timeout(NETWORK_WAIT, self.outside.follow(&mut self.engine)).await.is_err() {
            self.network_is_silent();
        }
    }

    /// Health and requests are not to wait for a kernel that does not answer. Everything is compared again then.
    fn network_is_silent(&mut self) {
        warn!("the kernel did not answer a question about the network within {NETWORK_WAIT:?}; asking again");
        self.engine.set_moved();
    }

    fn reload(&mut self, config: &std::path::Path) {
        let taken = read_config(config)
            .map_err(|error| format!("{error:#}"))
            .and_then(|file| self.engine.reload(&file).map_err(|refusal| refusal.to_string()));
        if let Err(why) = taken {
            error!("the configuration was not taken again, and what was in force still is: {why}");
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.look_after_program();
        self.hops.set_links(self.outside.links());
        if let Err(error) = self.engine.tick() {
            error!("{error:#}");
        }
        let renamed = self.engine.take_renamed();
        let maps = self.engine.maps();
        let Ok(now) = maps.now() else { return };
        // Two seconds after it was seen, no run of the program can still be making it.
        if self.ticks >= 2
            && let Some((suspects, which)) = self.suspects.take_if(|(suspects, _)| !suspects.is_empty())
        {
            let repaired = repair(maps, &suspects, now);
            info!("rows {which}: {repaired:?}");
        }
        if renamed {
            // A flow that was closed while its record got another name may have been counted in neither or in both.
            self.suspects = Some((suspects(maps), "that were miscounted while records got other names"));
        }
        if self.ticks == 2 {
            let mended = loads::mend(maps, &self.drift);
            if mended > 0 {
                info!("open connections of {} counted anew", count(mended as u64, "server"));
            }
        }
        if self.ticks.is_multiple_of(sweep_every(maps)) {
            sweep_all(maps, now);
        }
    }

    fn elicit(&mut self) {
        for id in self.engine.take_resetting() {
            let name = self.engine.name_of(id).map_or_else(|| format!("#{id}"), ServerName::to_string);
            let (maps, links) = (Arc::clone(self.engine.maps()), self.outside.links());
            tokio::spawn(elicit(maps, links, id, name, self.seed));
        }
    }
}

/// Seconds between two sweeps: the larger the tables, the longer.
fn sweep_every(maps: &Maps) -> u64 {
    let slots = maps.flows.len() + maps.half_open.len() + maps.sticky.len();
    u64::try_from(slots.div_ceil(SWEPT_A_SECOND)).unwrap_or(u64::MAX).max(1)
}

fn sweep_all(maps: &Maps, now: Ticks) {
    let swept = sweep(maps, now);
    if swept != dataplane::sweep::Swept::default() {
        tracing::debug!("expired: {swept:?}");
    }
}
