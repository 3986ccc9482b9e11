//! The daemon's command line.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lb_userspace::config;
use lb_userspace::daemon::detach::detach;
use lb_userspace::daemon::run::{Options, run, xdp};
use lb_userspace::dataplane::load;
use lb_userspace::paths::Paths;
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
    },
    /// Takes the program off its interface and removes everything: all connections end.
    Detach,
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
        .with_ansi(std::io::stderr().is_terminal())
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
        Command::Run { config, iface } => {
            let attach = xdp(paths.pin_dir.clone());
            let options = Options { config, interface: iface, paths };
            runtime()?.block_on(run(options, attach))
        }
        Command::Detach => {
            let pin_dir = paths.pin_dir.clone();
            let unload = move || {
                let detached = load::detach(&pin_dir)?;
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
            for line in runtime()?.block_on(detach(&paths, unload))? {
                println!("{line}");
            }
            Ok(())
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
