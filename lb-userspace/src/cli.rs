//! The command line `steadfast`: OBJECT COMMAND, as `ip` and `bpftool` have it.
//!
//! What reads, reads the pinned maps and works with the daemon dead; what writes asks the daemon over its socket.
//! Exit status: 0 done, 1 refused or failed with the reason on standard error, 2 usage.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use clap::Parser as _;

use crate::{config::ConfigErrors, terminal::takes_escapes};

mod address;
pub mod args;
mod change;
pub mod client;
mod config;
mod doctor;
mod read;
mod screen;
mod watch;
pub mod world;

#[cfg(test)]
mod args_tests;
#[cfg(test)]
mod run_tests;

use args::{Cli, Command};
use screen::{Format, Screen};
use world::World;

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let escapes = takes_escapes(stdout.is_terminal(), |name| std::env::var_os(name));
    let mut out = io::BufWriter::new(stdout.lock());
    let mut err = stderr.lock();
    let mut screen = Screen { format: Format::of(&cli), escapes, out: &mut out, err: &mut err };
    let result = run(&cli, &World::real(), &mut screen);
    let result = result.and_then(|()| Ok(out.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // With standard error gone, too, the exit status is all that is left to say it.
            let _unheard = match error.downcast_ref::<ConfigErrors>() {
                Some(errors) => writeln!(err, "{errors}"),
                None => writeln!(err, "steadfast: {error:#}"),
            };
            ExitCode::FAILURE
        }
    }
}

/// Whether the reader of our output has gone (`| head`): nobody is left to be told.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            || cause
                .downcast_ref::<serde_json::Error>()
                .is_some_and(|error| error.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
    })
}

/// Runs a command.
///
/// # Errors
/// It was refused or failed; the error says why.
fn run(cli: &Cli, world: &World, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let paths = &cli.paths;
    match &cli.command {
        Command::Vip(command) => read::vip(command, world, paths, screen),
        Command::Server(command) => match command.change() {
            Some(change) => change::run(&change, world, paths, screen),
            None => read::server(command, world, paths, screen),
        },
        Command::Sticky(command) => match command.change() {
            Some(change) => change::run(&change, world, paths, screen),
            None => read::sticky(command, world, paths, screen),
        },
        Command::Flow(command) => read::flow(command, world, paths, screen),
        Command::Map(command) => read::map(command, world, paths, screen),
        Command::Prog(command) => match command.change() {
            Some(change) => change::run(&change, world, paths, screen),
            None => read::prog(world, paths, screen),
        },
        Command::Stats(stats) => watch::stats(stats, world, paths, screen),
        Command::Top(top) => watch::top(top, world, paths, screen),
        Command::Explain(explain) => read::explain(explain, world, paths, screen),
        Command::Config(command) => config::run(command, world, paths, screen),
        Command::Doctor(doctor) => doctor::run(doctor, world, paths, screen),
    }
}
