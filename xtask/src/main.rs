//! `cargo xtask COMMAND`: set-up, build, lab and tests of Steadfast.

mod bench;
mod build;
mod clean;
mod command;
mod detach;
mod fuzz;
mod kernel;
mod privilege;
mod run;
mod setup;
mod test;
mod toolchain;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing on this machine, saying what and why
    Setup(setup::Arguments),
    /// Build the XDP program, then the daemon and the command line
    Build(build::Arguments),
    /// Bring up the lab of network namespaces with the balancer in it, or run the balancer on a network card
    Run(run::Arguments),
    /// Run every rung of the tests
    Test(test::Arguments),
    /// Feed random packets and states to the XDP program and its model, and compare
    Fuzz(fuzz::Arguments),
    /// Measure the balancer beside what would be used instead
    Bench(bench::Arguments),
    /// Boot other kernels in QEMU, attach the program in their drivers and run the golden packets there
    Vm(vm::Arguments),
    /// Take the balancer off this machine's interfaces (what `steadfastd detach` does)
    Detach,
    /// Remove what a lab that was killed left behind
    Clean,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Workspace::find().and_then(|workspace| match arguments.command {
        Command::Setup(arguments) => setup::with(&workspace, &arguments),
        Command::Build(arguments) => build::build(&workspace, &arguments),
        Command::Run(arguments) => run::run(&workspace, &arguments),
        Command::Test(arguments) => test::test(&workspace, &arguments),
        Command::Fuzz(arguments) => fuzz::fuzz(&workspace, &arguments),
        Command::Bench(arguments) => bench::bench(&workspace, &arguments),
        Command::Vm(arguments) => vm::vm(&workspace, &arguments),
        Command::Detach => detach::detach(&workspace),
        Command::Clean => clean::clean(&workspace),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
