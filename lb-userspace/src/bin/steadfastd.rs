//! The daemon's command line.

use std::io::IsTerminal as _;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use lb_userspace::config::{self, parse_duration};
use lb_userspace::daemon::descriptors;
use lb_userspace::daemon::detach::detach;
use lb_userspace::daemon::guard;
use lb_userspace::daemon::run::{Ended, Options, run, xdp};
use lb_userspace::dataplane::load::Seized;
use lb_userspace::paths::Paths;
use lb_userspace::terminal::takes_escapes;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Steadfast's daemon: balances virtual services over real servers in the kernel.
#[derive(Parser, Debug)]
#[command(name = "steadfastd", version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    paths: Paths,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Runs until SIGTERM; the data path goes on without it. SIGHUP takes the configuration file again.
    Run {
        /// The configuration file.
        #[arg(long, env = "STEADFAST_CONFIG", value_name = "FILE")]
        config: PathBuf,
        /// The interface, instead of the configuration's.
        #[arg(long, value_name = "IF")]
        iface: Option<String>,
        /// Only for a trial: takes the program off again after this time (such as 60s or 5m), as `detach` does, unless
        /// `steadfast prog confirm` comes before. Holds also if the daemon dies or the session ends; does nothing to a
        /// data path that runs already. Not for a unit file: after a reboot nobody would confirm.
        #[arg(long, value_name = "TIME", value_parser = trial)]
        confirm_within: Option<Duration>,
    },
    /// Takes the program off its interface and removes everything: all connections end.
    Detach,
    /// Undoes an attachment on trial when its time is over.
    #[command(name = guard::COMMAND, hide = true)]
    Guard,
    /// Checks a configuration file, and says everything that is wrong with it.
    Check {
        /// The file.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("STEADFAST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(takes_escapes(std::io::stderr().is_terminal(), |name| std::env::var_os(name)))
        .with_writer(std::io::stderr)
        .init();
    match execute(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("steadfastd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: Arguments) -> anyhow::Result<()> {
    let paths = arguments.paths;
    match arguments.command {
        Command::Check { file } => {
            let checked = config::check_file(&file).map_err(|errors| anyhow::anyhow!("{errors}"))?;
            for warning in &checked.warnings {
                eprintln!("{}:{warning}", file.display());
            }
            println!("{} is valid", file.display());
            Ok(())
        }
        Command::Run { config, iface, confirm_within } => {
            descriptors::raise();
            let attach = xdp(paths.pin_dir.clone());
            let options = Options { config, interface: iface, paths: paths.clone(), confirm_within };
            match runtime()?.block_on(run(options, attach))? {
                Ended::Stopped => Ok(()),
                Ended::NotConfirmed => undo(&paths),
            }
        }
        Command::Guard => {
            if guard::wait(&paths)? {
                undo(&paths)?;
            }
            Ok(())
        }
        Command::Detach => {
            for line in taken_off(&paths)? {
                println!("{line}");
            }
            Ok(())
        }
    }
}

/// The terminal may be gone with the operator's session: only the log is told.
fn undo(paths: &Paths) -> anyhow::Result<()> {
    for line in taken_off(paths)? {
        info!("{line}");
    }
    Ok(())
}

/// Detaches, and says what was done.
fn taken_off(paths: &Paths) -> anyhow::Result<Vec<String>> {
    let pin_dir = paths.pin_dir.clone();
    let unload = move |seized: Seized| {
        let detached = seized.remove()?;
        let mut done: Vec<String> =
            detached.interfaces.iter().map(|name| format!("took the program off {name}")).collect();
        if detached.pins > 0 {
            done.push(format!(
                "removed {} pinned programs and maps from {}",
                detached.pins,
                pin_dir.display()
            ));
        }
        Ok(done)
    };
    runtime()?.block_on(detach(paths, unload))
}

/// How long a trial may be.
const TRIALS: RangeInclusive<Duration> = Duration::from_secs(3)..=Duration::from_secs(24 * 3600);

fn trial(text: &str) -> Result<Duration, String> {
    let within = parse_duration(text, Duration::from_secs(1)).filter(|within| TRIALS.contains(within));
    within.ok_or_else(|| "a time from 3s to 24h, such as 60s or 5m".to_owned())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
