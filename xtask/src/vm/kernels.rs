//! The kernels: Debian's cloud flavour of each release, and what Steadfast must do on it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::debian::{Apt, make};
use crate::workspace::Workspace;

const PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel by the name it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    /// The Debian release that has it.
    pub(crate) release: &'static str,
    pub(crate) wanted: Wanted,
}

/// What must happen on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// It is attached in the driver, and every test passes.
    Works,
    /// It is too old: our loader says so by its version, and the kernel does not take the program either.
    Refused,
}

/// Oldest first.
pub(crate) const ALL: [Kernel; 4] = [
    Kernel { name: "5.10", release: "bullseye", wanted: Wanted::Refused },
    Kernel { name: "6.1", release: "bookworm", wanted: Wanted::Works },
    Kernel { name: "6.12", release: "trixie", wanted: Wanted::Works },
    Kernel { name: "newest", release: "sid", wanted: Wanted::Works },
];

/// The kernels of these names; all, if none is named.
pub(crate) fn named(names: &[String]) -> Result<Vec<Kernel>> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let find = |name: &String| {
        let known = ALL.iter().find(|kernel| kernel.name == name).copied();
        known.with_context(|| {
            let names = ALL.map(|kernel| kernel.name).join(", ");
            format!("there is no kernel {name} here: there are {names}")
        })
    };
    names.iter().map(find).collect()
}

/// An unpacked kernel.
pub(crate) struct Unpacked {
    /// As `uname -r` says it.
    pub(crate) release: String,
    pub(crate) image: PathBuf,
    /// The directory of its modules.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// Downloads and unpacks it, unless it is there; `again` takes what the mirror has now.
    pub(crate) fn fetch(&self, workspace: &Workspace, again: bool) -> Result<Unpacked> {
        let vm = workspace.target().join("vm");
        let root = vm.join("kernels").join(self.name);
        if again && root.exists() {
            fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
        }
        if !root.exists() {
            let apt = Apt::open(&vm.join("apt").join(self.release), self.release)?;
            let packages = packages(&apt)?;
            println!("  unpack   {}: Linux {} of Debian {}", packages.join(" "), self.name, self.release);
            let partial = root.with_extension("partial");
            let _nothing_is_left_of_a_download_that_was_interrupted = fs::remove_dir_all(&partial);
            make(&partial)?;
            apt.unpack(&packages, &partial)?;
            fs::rename(&partial, &root).with_context(|| format!("cannot make {}", root.display()))?;
        }
        let kernel = find(&root)?;
        ensure!(
            self.name == "newest" || kernel.release.starts_with(&format!("{}.", self.name)),
            "Debian {} has Linux {} by now, not {}",
            self.release,
            kernel.release,
            self.name
        );
        println!("  have     Linux {} of Debian {}", kernel.release, self.release);
        Ok(kernel)
    }
}

/// The packages that hold the image and the modules; from 7.0 on they are several.
fn packages(apt: &Apt) -> Result<Vec<String>> {
    let is_image = |name: &String| name.starts_with("linux-image-");
    let image = apt.depends(PACKAGE)?.into_iter().find(is_image);
    let image = image.with_context(|| format!("{PACKAGE} depends on no image"))?;
    let parts = apt.depends(&image)?.into_iter();
    let parts = parts.filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"));
    Ok(parts.chain([image.clone()]).collect())
}

fn find(root: &Path) -> Result<Unpacked> {
    let Some(modules) = ["usr/lib/modules", "lib/modules"].iter().find_map(|path| only(&root.join(path)))
    else {
        bail!("{} holds no kernel's modules: remove it and run this again", root.display());
    };
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let images = [modules.join("vmlinuz"), root.join("boot").join(format!("vmlinuz-{release}"))];
    let image = images.into_iter().find(|image| image.is_file());
    let image = image.with_context(|| format!("{} holds no kernel {release}", root.display()))?;
    Ok(Unpacked { release, image, modules })
}

/// The one entry of a directory.
fn only(directory: &Path) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.next()?.ok().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_asked_for_by_name_and_others_are_refused_with_those_there_are() {
        assert_eq!(named(&[]).unwrap(), ALL);
        let two = named(&["6.12".to_owned(), "5.10".to_owned()]).unwrap();
        assert_eq!(two.iter().map(|kernel| kernel.name).collect::<Vec<_>>(), ["6.12", "5.10"]);
        let error = named(&["2.6".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("no kernel 2.6") && error.contains("6.12"), "{error}");
    }
}
