//! Descriptors of what is pinned. Whoever empties the pin directory takes names away and no more: program, link and maps
//! live on by these, and get their names again.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    bpf::{self, OpenFor},
    host,
    pinned::Pins,
};

/// Everything that a running data path consists of, by where it is pinned.
#[derive(Default)]
pub(super) struct Held(Vec<(PathBuf, OwnedFd)>);

impl Held {
    /// Opens all maps and programs, and the links of these interfaces that have one.
    ///
    /// # Errors
    /// The directories could not be listed, or something in them is not ours to open.
    pub(super) fn of(pins: &Pins, interfaces: &[&str]) -> anyhow::Result<Self> {
        let mut paths = Vec::new();
        for directory in [pins.maps(), pins.programs()] {
            let context = || format!("cannot list {}", directory.display());
            for entry in fs::read_dir(&directory).with_context(context)? {
                paths.push(entry.with_context(context)?.path());
            }
        }
        paths.extend(interfaces.iter().map(|name| pins.link(name)).filter(|path| path.exists()));
        let open = |path: PathBuf| -> anyhow::Result<_> {
            let object = bpf::open(&path, OpenFor::Everything);
            let object = object.with_context(|| format!("cannot open {}", path.display()))?;
            Ok((path, object))
        };
        paths.into_iter().map(open).collect::<anyhow::Result<_>>().map(Self)
    }

    /// Pins what is not where it was. Says how many were.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn pin_again(&self, pin_dir: &Path) -> anyhow::Result<usize> {
        let is_gone = |path: &Path| matches!(fs::symlink_metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
        let gone: Vec<_> = self.0.iter().filter(|(path, _)| is_gone(path)).collect();
        if gone.is_empty() {
            return Ok(0);
        }
        host::make_pin_dir(pin_dir)?;
        for (path, object) in &gone {
            bpf::pin(object, path).with_context(|| format!("cannot pin {} again", path.display()))?;
        }
        Ok(gone.len())
    }
}
