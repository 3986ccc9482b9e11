//! Where things are kept.

use std::path::PathBuf;

use clap::Args;

/// The three directories, as options of every command.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Where the program, its link and its maps are pinned; on a bpf file system.
    #[arg(
        long,
        global = true,
        env = "STEADFAST_PIN_DIR",
        default_value = "/sys/fs/bpf/steadfast",
        value_name = "DIR"
    )]
    pub pin_dir: PathBuf,
    /// Where the daemon's socket is; emptied by a restart of the machine.
    #[arg(
        long,
        global = true,
        env = "STEADFAST_RUNTIME_DIR",
        default_value = "/run/steadfast",
        value_name = "DIR"
    )]
    pub runtime_dir: PathBuf,
    /// Where the daemon keeps what must survive a restart.
    #[arg(
        long,
        global = true,
        env = "STEADFAST_STATE_DIR",
        default_value = "/var/lib/steadfast",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
}

impl Paths {
    /// The daemon's unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.runtime_dir.join("api.sock")
    }

    /// The file that a running daemon holds locked; its process id is in it.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.runtime_dir.join("steadfastd.lock")
    }

    /// What the daemon remembers.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.state_dir.join("state.json")
    }

    /// The same, while that cannot be written.
    #[must_use]
    pub fn state_stand_in(&self) -> PathBuf {
        self.runtime_dir.join("state.json")
    }

    /// The file that the guard of an attachment on trial holds locked.
    #[must_use]
    pub fn guard_lock(&self) -> PathBuf {
        self.runtime_dir.join("guard.lock")
    }
}
