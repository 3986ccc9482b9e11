//! What the daemon remembers, in one file.
//!
//! The file is replaced whole and made durable before a change is made, so that a crash at any moment leaves either
//! the old or the new. A file that cannot be read is put aside, and where the disk takes nothing the state is kept in
//! the runtime directory until it does: a daemon that will not start serves nobody.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
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

/// The file, and where its content is kept while the file cannot be written.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
    stand_in: PathBuf,
    /// What is in the file's place could not be read, nor moved aside: neither is it to be replaced unseen.
    is_in_the_way: bool,
}

/// What was found in the file's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// Nothing: this is the first start.
    Nothing,
    /// The state.
    State(Box<State>),
    /// Something that is no state or cannot be read: what, and where it is now.
    Broken(String),
}

impl Store {
    /// The file at `path`, and the one at `stand_in` where that cannot be written; their directories are made when they
    /// are needed.
    #[must_use]
    pub const fn new(path: PathBuf, stand_in: PathBuf) -> Self {
        Self { path, stand_in, is_in_the_way: false }
    }

    /// The newest state. What is no state, or cannot be read, is moved aside.
    pub fn load(&mut self) -> Loaded {
        // It is there only while it is newer than the file.
        if let Ok(Some(state)) = read(&self.stand_in) {
            return Loaded::State(Box::new(state));
        }
        let why = match read(&self.path) {
            Ok(Some(state)) => return Loaded::State(Box::new(state)),
            Ok(None) => return Loaded::Nothing,
            Err(why) => why,
        };
        let now = match self.put_aside() {
            Ok(aside) => format!("it is now {}", aside.display()),
            Err(error) => {
                self.is_in_the_way = true;
                format!("it is still there, because it cannot be moved aside: {error}")
            }
        };
        Loaded::Broken(format!(
            "{} could not be used ({why}; {now}): weights and servers set by command and applied configurations are \
             forgotten; drained and halted servers too, unless the running data path says which they are",
            self.path.display(),
        ))
    }

    /// Replaces the file, durably.
    ///
    /// # Errors
    /// The file system's; what was there before is still there.
    pub fn save(&mut self, state: &State) -> anyhow::Result<()> {
        if self.is_in_the_way || self.path.is_dir() {
            self.put_aside().with_context(|| format!("cannot move {} aside", self.path.display()))?;
            self.is_in_the_way = false;
        }
        write(&self.path, state).with_context(|| format!("cannot write {}", self.path.display()))?;
        remove(&self.stand_in)
            .with_context(|| format!("cannot remove {}, which is older now", self.stand_in.display()))
    }

    /// Keeps the state for as long as the machine runs.
    ///
    /// # Errors
    /// The file system's.
    pub fn save_until_reboot(&self, state: &State) -> anyhow::Result<()> {
        write(&self.stand_in, state).with_context(|| format!("cannot write {}", self.stand_in.display()))
    }

    fn put_aside(&self) -> io::Result<PathBuf> {
        let aside = self.path.with_extension("json.broken");
        fs::rename(&self.path, &aside)?;
        Ok(aside)
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The state in a file, if there is one; else why it cannot be used.
fn read(path: &Path) -> Result<Option<State>, String> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    match serde_json::from_slice::<State>(&bytes) {
        Ok(state) if state.version == VERSION => Ok(Some(state)),
        Ok(state) => Err(format!("it is of version {}, this daemon reads version {VERSION}", state.version)),
        Err(error) => Err(error.to_string()),
    }
}

fn write(path: &Path, state: &State) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let fresh = path.with_extension("json.new");
    let written = write_fresh(&fresh, state).and_then(|()| Ok(fs::rename(&fresh, path)?));
    if written.is_err() {
        // On a full disk the half of it would take the last of the room. The first error counts.
        let _ = fs::remove_file(&fresh);
    }
    written?;
    File::open(directory)?.sync_all()?;
    Ok(())
}

fn write_fresh(fresh: &Path, state: &State) -> anyhow::Result<()> {
    // Not for everyone's eyes: the secrets are in it.
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(fresh)?;
    file.write_all(&serde_json::to_vec_pretty(state)?)?;
    Ok(file.sync_all()?)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::core::{AdminState, ServerName};

    fn store(directory: &Path) -> Store {
        Store::new(directory.join("deep/state.json"), directory.join("run/state.json"))
    }

    #[test]
    fn what_is_saved_is_loaded_and_nobody_else_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(directory.path());
        assert_eq!(store.load(), Loaded::Nothing);
        let mut state = State::new("version: 1\n");
        state.overlay.set_state(ServerName::new("V", "a"), AdminState::Drain);
        state.secrets = Some(Secrets { hash_key: [u64::MAX, 2, 3, 4], maglev_seed: 5 });
        store.save(&state).unwrap();
        assert_eq!(store.load(), Loaded::State(Box::new(state)));
        assert_eq!(fs::metadata(store.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_broken_file_is_moved_aside_and_the_next_start_is_a_first_one() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(directory.path());
        let good = serde_json::to_string(&State::new("x")).unwrap();
        let broken = [
            String::new(),
            "{".to_owned(),
            good[..good.len() / 2].to_owned(),
            good.replace("\"version\":1", "\"version\":2"),
            "\0\u{1}".to_owned(),
        ];
        fs::create_dir(directory.path().join("deep")).unwrap();
        for content in broken {
            fs::write(store.path(), &content).unwrap();
            assert!(matches!(store.load(), Loaded::Broken(_)), "{content:?}");
            assert_eq!(store.load(), Loaded::Nothing);
            assert_eq!(fs::read_to_string(directory.path().join("deep/state.json.broken")).unwrap(), content);
        }
    }

    #[test]
    fn a_directory_in_the_files_place_is_moved_aside_too() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(directory.path());
        fs::create_dir_all(store.path().join("inside")).unwrap();
        assert!(matches!(store.load(), Loaded::Broken(_)));
        store.save(&State::new("x")).unwrap();
        assert!(directory.path().join("deep/state.json.broken/inside").exists());
    }

    #[test]
    fn what_cannot_be_moved_aside_at_the_start_is_moved_before_it_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(directory.path());
        // A directory with something in it, where things are put aside: nothing can take its place.
        let aside = directory.path().join("deep/state.json.broken");
        fs::create_dir_all(aside.join("inside")).unwrap();
        fs::write(store.path(), "broken").unwrap();
        let Loaded::Broken(why) = store.load() else { panic!("it is broken") };
        assert!(why.contains("still there"), "{why}");
        assert!(store.save(&State::new("x")).unwrap_err().to_string().contains("aside"));
        assert_eq!(fs::read_to_string(store.path()).unwrap(), "broken");

        fs::remove_dir_all(&aside).unwrap();
        store.save(&State::new("x")).unwrap();
        assert_eq!(fs::read_to_string(aside).unwrap(), "broken");
        assert_eq!(store.load(), Loaded::State(Box::new(State::new("x"))));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_that_names_the_file() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let at = directory.path().join("file/state.json");
        let mut store = Store::new(at, directory.path().join("run/state.json"));
        assert!(store.save(&State::new("")).unwrap_err().to_string().contains("state.json"));
    }

    #[test]
    fn the_stand_in_is_the_newest_until_the_file_is_written_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = store(directory.path());
        store.save(&State::new("old")).unwrap();
        store.save_until_reboot(&State::new("new")).unwrap();
        assert_eq!(store.load(), Loaded::State(Box::new(State::new("new"))));
        store.save(&State::new("newest")).unwrap();
        assert!(!directory.path().join("run/state.json").exists());
        assert_eq!(store.load(), Loaded::State(Box::new(State::new("newest"))));
    }
}
