//! `cargo xtask run`: the lab, or the balancer on a network card. When it ends, everything is gone.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicI32, Ordering},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::{
    libc::c_int,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction},
    unistd::Pid,
};

use crate::{
    build::{self, Profile},
    command::Cmd,
    privilege::Privilege,
    setup,
    workspace::Workspace,
};

const ATTACHES: &str = "to attach an XDP program";
/// Where a balancer's program and tables are pinned unless told otherwise.
const PINS: &str = "/sys/fs/bpf/steadfast";
/// What a balancer remembers, likewise.
const STATE: &str = "/var/lib/steadfast";

#[derive(Args)]
pub(crate) struct Arguments {
    /// Run on this interface instead of in the lab; FILE must name it
    #[arg(long, value_name = "IF", requires = "config")]
    iface: Option<String>,
    /// The configuration to run with on the interface
    #[arg(long, value_name = "FILE", requires = "iface")]
    config: Option<PathBuf>,
    /// Run CMD in a shell once the lab is up, then end with its exit code
    #[arg(long, value_name = "CMD", conflicts_with = "iface")]
    script: Option<String>,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let on_card = arguments.iface.as_deref().zip(arguments.config.as_deref());
    if let Some((interface, config)) = on_card {
        check_interface(interface, config)?;
    }
    let why = if on_card.is_some() { ATTACHES } else { "to make the lab's network namespaces" };
    let privilege = Privilege::require(why)?;
    setup::setup(workspace)?;
    build::objects(workspace)?;
    build::user_space(workspace, Profile::Release, &["steadfastd", "steadfast"])?;
    match on_card {
        Some((_, config)) => run_on_card(workspace, privilege, config),
        None => {
            build::user_space(workspace, Profile::Debug, &["lab"])?;
            let lab = workspace.program("debug", "lab");
            // `env`, because sudo keeps no PATH and may keep little else.
            let mut lab_command = privilege.command("env", why)?;
            lab_command.arg(format!("STEADFAST_BIN_DIR={}", workspace.target().join("release").display()));
            lab_command.arg(lab);
            if let Some(script) = &arguments.script {
                lab_command.args(["--script", script]);
            }
            Err(lab_command.exec())
        }
    }
}

/// The daemon attaches to what the configuration names: the two must mean the same interface.
fn check_interface(interface: &str, config: &Path) -> Result<()> {
    let text = fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    let named = interfaces(&text);
    if named != [interface] {
        bail!(
            "{} attaches to {named:?}, not to {interface} alone: set `node: {{ interfaces: [{interface}] }}` in it",
            config.display()
        );
    }
    if !Path::new("/sys/class/net").join(interface).exists() {
        bail!("this machine has no interface {interface}: `ip link` lists them");
    }
    Ok(())
}

/// The words listed under `interfaces:`, in either of YAML's list styles; the daemon does the real parsing.
fn interfaces(config: &str) -> Vec<String> {
    let mut lines = config.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let Some(inline) = lines.by_ref().find_map(|line| line.split_once("interfaces:").map(|(_, rest)| rest))
    else {
        return Vec::new();
    };
    let bare = |word: &str| word.trim_matches([' ', '"', '\'', '[', ']', '{', '}']).to_owned();
    let words: Vec<String> = match inline.split_once(']') {
        Some((list, _)) => list.split(',').map(bare).collect(),
        None => lines.map_while(|line| line.strip_prefix('-')).map(bare).collect(),
    };
    words.into_iter().filter(|word| !word.is_empty()).collect()
}

fn run_on_card(workspace: &Workspace, privilege: Privilege, config: &Path) -> Result<()> {
    if privilege.command("test", ATTACHES)?.args(["-e", PINS]).succeeds() {
        bail!(
            "a balancer is installed on this machine ({PINS} exists), and this command would remove it at its end: \
             run `steadfastd run --config {}` itself, or `cargo xtask detach` first",
            config.display()
        );
    }
    // What an installed balancer remembers is for its next start; what this run remembers is for none.
    let remembers = privilege.command("test", ATTACHES)?.args(["-e", STATE]).succeeds();
    let steadfastd = workspace.program("release", "steadfastd");
    let mut daemon = privilege.command(&steadfastd, ATTACHES)?;
    let ended = wait_passing_signals_on(daemon.args(["run", "--config"]).arg(config));
    println!("run: detaching");
    privilege.command(&steadfastd, ATTACHES)?.arg("detach").run()?;
    if !remembers {
        privilege.command("rm", ATTACHES)?.args(["-rf", "--", STATE]).run()?;
    }
    ended
}

/// The child that [`pass_on`] signals; 0 before there is one.
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Ctrl-C and SIGTERM ask the child to end, while we stay to clean up after it.
fn wait_passing_signals_on(command: &mut Cmd) -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(pass_on), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler only loads an atomic and calls kill(2), both async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("cannot handle signals")?;
    }
    let mut child = command.spawn()?;
    let id = i32::try_from(child.id()).context("the child's process id is out of range")?;
    CHILD.store(id, Ordering::Release);
    let status = child.wait().context("cannot wait for the daemon")?;
    CHILD.store(0, Ordering::Release);
    if !status.success() {
        bail!("`{command}` failed: {status}");
    }
    Ok(())
}

extern "C" fn pass_on(_signal: c_int) {
    let child = CHILD.load(Ordering::Acquire);
    if child > 0 {
        // It may have ended already: nothing to do about that here.
        let _ = kill(Pid::from_raw(child), Signal::SIGTERM);
    }
}

#[cfg(test)]
mod tests {
    use super::interfaces;

    #[test]
    fn interfaces_are_read_in_both_list_styles() {
        assert_eq!(interfaces("node:\n  interfaces: [eth0]   # here\n"), ["eth0"]);
        assert_eq!(interfaces("node: { interfaces: [ 'eth0', \"eth1\" ] }\n"), ["eth0", "eth1"]);
        assert_eq!(
            interfaces("node:\n  interfaces:\n    - eth0\n    - eth1\n  xdp_mode: auto\n"),
            ["eth0", "eth1"]
        );
        assert_eq!(interfaces("# interfaces: [eth0]\nversion: 1\n"), Vec::<String>::new());
    }
}
