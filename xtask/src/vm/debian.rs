//! Debian packages of any release, unpacked and never installed: an apt of our own beside the system's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::{Cmd, find_program};

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";

/// apt with lists and a cache of its own, which knows one release and believes that nothing is installed.
pub(crate) struct Apt {
    root: PathBuf,
}

impl Apt {
    /// Reads the lists of a release from the mirror that this system uses.
    pub(crate) fn open(root: &Path, release: &str) -> Result<Self> {
        ensure!(
            find_program("apt-get").is_some() && Path::new(KEYS).is_file(),
            "apt-get or {KEYS} is missing: the kernels are Debian's, so run this on a Debian (or install apt and \
             debian-archive-keyring)"
        );
        for directory in ["etc/apt/preferences.d", "var/lib/apt/lists/partial", "var/lib/dpkg"] {
            make(&root.join(directory))?;
        }
        make(&root.join("var/cache/apt/archives/partial"))?;
        write(&root.join("var/lib/dpkg/status"), "")?;
        write(&root.join("etc/apt/sources.list"), sources(release))?;
        let apt = Self { root: root.to_owned() };
        apt.command("apt-get").args(["update", "-q", "-q"]).run()?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Cmd {
        let mut command = Cmd::new(program);
        command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").env_remove("APT_CONFIG");
        command.arg("-o").arg(format!("Dir={}", self.root.display()));
        command.arg("-o").arg(format!("Dir::State::status={}", self.status().display()));
        // As root, apt would complain that its own user cannot write here.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none"]);
        command
    }

    fn status(&self) -> PathBuf {
        self.root.join("var/lib/dpkg/status")
    }

    /// What a package depends on, by name; alternatives are left out.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let printed = self.command("apt-cache").args(["depends", package]).output()?;
        Ok(printed.lines().filter_map(|line| line.strip_prefix("  Depends: ").map(str::to_owned)).collect())
    }

    /// Downloads these packages and unpacks them.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let directory = self.root.join("download");
        make(&directory)?;
        self.command("apt-get").args(["download", "-q", "-q"]).args(packages).dir(&directory).run()?;
        extract(&directory, into)?;
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))
    }

    /// Downloads these packages with all that they need, down to the C library, and unpacks them.
    pub(crate) fn unpack_whole(&self, packages: &[&str], into: &Path) -> Result<()> {
        let mut install = self.command("apt-get");
        install.args(["install", "-q", "-q", "-y", "--download-only", "--no-install-recommends"]);
        install.args(packages).run()?;
        let archives = self.root.join("var/cache/apt/archives");
        extract(&archives, into)?;
        fs::remove_dir_all(&archives).with_context(|| format!("cannot remove {}", archives.display()))
    }
}

/// The suites of a release; sid has no security updates of its own.
fn sources(release: &str) -> String {
    let main = mirror("/debian").unwrap_or_else(|| MIRROR.to_owned());
    let security = mirror("/debian-security").unwrap_or_else(|| format!("{MIRROR}-security"));
    let mut text = format!("deb [signed-by={KEYS}] {main} {release} main\n");
    if release != "sid" {
        text += &format!("deb [signed-by={KEYS}] {security} {release}-security main\n");
    }
    text
}

/// The system's own address for an archive.
fn mirror(archive: &str) -> Option<String> {
    let printed = Cmd::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]).output().ok()?;
    let mut addresses = printed.lines().map(|address| address.trim_end_matches('/'));
    addresses.find(|address| address.ends_with(archive)).map(str::to_owned)
}

fn extract(archives: &Path, into: &Path) -> Result<()> {
    make(into)?;
    let mut count = 0;
    for entry in fs::read_dir(archives).with_context(|| format!("cannot list {}", archives.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            Cmd::new("dpkg-deb").arg("--extract").arg(path).arg(into).run()?;
            count += 1;
        }
    }
    if count == 0 {
        bail!("apt-get left no package in {}", archives.display());
    }
    Ok(())
}

pub(crate) fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))
}

pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
