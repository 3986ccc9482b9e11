//! What the daemon remembers, in one file.
//!
//! The file is replaced whole and made durable before a change is made, so that a crash at any moment leaves either
//! the old or the new. A file that cannot be read is put aside: a daemon that will not start serves nobody.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::core::{Ids, Overlay};

/// The version of the file's content.
const VERSION: u32 = 1;

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    /// The text of the configuration file at the last start or reload: if the file still says this, what was applied
    /// since is in force again.
    pub file_text: String,
    /// What is in force instead of the file's text.
    #[serde(default)]
    pub applied: Option<AppliedText>,
    /// What was changed by command.
    #[serde(default)]
    pub overlay: Overlay,
    /// Numbers of services, servers and endpoints.
    #[serde(default)]
    pub ids: Ids,
    /// The secrets of the tables.
    #[serde(default)]
    pub secrets: Option<Secrets>,
    /// Addresses that the daemon has put on an interface.
    #[serde(default)]
    pub addresses: BTreeSet<OwnAddress>,
}

/// A configuration that came by `config apply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedText {
    /// The text.
    pub text: String,
    /// Where it was from.
    pub source: String,
}

/// What keeps others from choosing where rows of the tables fall.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// Of the tables.
    pub hash_key: [u64; 4],
    /// Of the schedulers.
    pub maglev_seed: u64,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

/// An address that the daemon has put on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OwnAddress {
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}

impl State {
    /// What is remembered at the first start.
    #[must_use]
    pub fn new(file_text: &str) -> Self {
        Self {
            version: VERSION,
            file_text: file_text.to_owned(),
            applied: None,
            overlay: Overlay::default(),
            ids: Ids::default(),
            secrets: None,
            addresses: BTreeSet::new(),
        }
    }
}

/// The file.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

/// What was found in the file's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Nothing: this is the first start.
    Nothing,
    /// The state.
    State(Box<State>),
    /// Something that is no state; it was moved aside. Why, and where to.
    Broken(String),
}

impl Store {
    /// The file at `path`; its directory is made when it is needed.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Reads the file. What is no state is moved aside.
    ///
    /// # Errors
    /// The file is there, but the system does not let us read it or move it aside.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Loaded::Nothing),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        };
        let why = match serde_json::from_slice::<State>(&bytes) {
            Ok(state) if state.version == VERSION => return Ok(Loaded::State(Box::new(state))),
            Ok(state) => format!("it is of version {}, this daemon reads version {VERSION}", state.version),
            Err(error) => error.to_string(),
        };
        let aside = self.path.with_extension("json.broken");
        fs::rename(&self.path, &aside)
            .with_context(|| format!("cannot move {} aside, which is broken: {why}", self.path.display()))?;
        Ok(Loaded::Broken(format!(
            "{} could not be used ({why}); it is now {}: drained and halted servers, weights set by command and \
             applied configurations are forgotten",
            self.path.display(),
            aside.display()
        )))
    }

    /// Replaces the file, durably.
    ///
    /// # Errors
    /// The file system's; what was there before is still there.
    pub fn save(&self, state: &State) -> anyhow::Result<()> {
        self.write(state).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn write(&self, state: &State) -> anyhow::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let fresh = self.path.with_extension("json.new");
        // Not for everyone's eyes: the secrets are in it.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(state)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        File::open(directory)?.sync_all()?;
        Ok(())
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::core::{AdminState, ServerName};

    #[test]
    fn what_is_saved_is_loaded_and_nobody_else_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("deep/state.json"));
        assert_eq!(store.load().unwrap(), Loaded::Nothing);
        let mut state = State::new("version: 1\n");
        state.overlay.set_state(ServerName::new("V", "a"), AdminState::Drain);
        state.secrets = Some(Secrets { hash_key: [u64::MAX, 2, 3, 4], maglev_seed: 5 });
        store.save(&state).unwrap();
        assert_eq!(store.load().unwrap(), Loaded::State(Box::new(state)));
        assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_broken_file_is_moved_aside_and_the_next_start_is_a_first_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("state.json"));
        let good = serde_json::to_string(&State::new("x")).unwrap();
        let broken = [
            String::new(),
            "{".to_owned(),
            good[..good.len() / 2].to_owned(),
            good.replace("\"version\":1", "\"version\":2"),
            "\0\u{1}".to_owned(),
        ];
        for content in broken {
            fs::write(store.path(), &content).unwrap();
            assert!(matches!(store.load().unwrap(), Loaded::Broken(_)), "{content:?}");
            assert_eq!(store.load().unwrap(), Loaded::Nothing);
            assert_eq!(fs::read_to_string(directory.path().join("state.json.broken")).unwrap(), content);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let store = Store::new(directory.path().join("file/state.json"));
        assert!(store.save(&State::new("")).unwrap_err().to_string().contains("state.json"));
    }
}
