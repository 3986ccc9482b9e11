//! The machine's whole file system: an initramfs of busybox, modules, programs with their libraries, and a script.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _};

use super::{
    debian::{make, write},
    kernels::Unpacked,
    tools::Tools,
};
use crate::command::{Cmd, find_program};

/// Interfaces and devices that the data path's tests make, and the machine's own network card.
const MODULES: [&str; 10] = [
    "virtio_pci",
    "virtio_net",
    "veth",
    "bridge",
    "8021q",
    "dummy",
    "ipip",
    "sit",
    "ip6_tunnel",
    "sch_ingress",
];

/// A directory that becomes an initramfs.
pub(crate) struct Image<'a> {
    root: PathBuf,
    tools: &'a Tools,
}

impl<'a> Image<'a> {
    /// Begins with busybox alone.
    pub(crate) fn begin(root: PathBuf, tools: &'a Tools) -> Result<Self> {
        let _nothing_is_left_of_the_last_run = fs::remove_dir_all(&root);
        for directory in ["bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr/sbin", "var"]
        {
            make(&root.join(directory))?;
        }
        let image = Self { root, tools };
        image.copy(&tools.busybox, Path::new("/bin/busybox"))?;
        for shell in ["bin/sh", "sbin/modprobe"] {
            let link = image.root.join(shell);
            symlink("/bin/busybox", &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
        Ok(image)
    }

    /// A file of the machine.
    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.inside(Path::new(path))?;
        write(&path, content)
    }

    /// A program, at this path in the machine, with the libraries it is linked to.
    pub(crate) fn program(&self, from: &Path, path: &str) -> Result<()> {
        self.copy(from, Path::new(path))?;
        let linked = Cmd::new("ldd").arg(from).output();
        let linked = linked.with_context(|| format!("cannot tell the libraries of {}", from.display()))?;
        for library in libraries(&linked) {
            self.copy(library, library)?;
        }
        // A test with its line tables is three times its own size, and all of it is in the machine's memory.
        if let Some(strip) = find_program("strip") {
            Cmd::new(strip).arg("--strip-debug").arg(self.inside(Path::new(path))?).run()?;
        }
        Ok(())
    }

    fn copy(&self, from: &Path, path: &Path) -> Result<()> {
        let to = self.inside(path)?;
        fs::copy(from, &to)
            .map(drop)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    }

    /// Where an absolute path of the machine is here.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The same, and its directory is made.
    fn inside(&self, path: &Path) -> Result<PathBuf> {
        let path = self.path(path);
        make(path.parent().unwrap_or(&self.root))?;
        Ok(path)
    }

    /// The modules that tests need, with those they need, and the tables by which the machine loads them on demand.
    pub(crate) fn modules(&self, kernel: &Unpacked) -> Result<()> {
        let files = module_files(&kernel.modules)?;
        let directory = Path::new("/lib/modules").join(&kernel.release);
        let mut wanted: Vec<String> = MODULES.map(str::to_owned).to_vec();
        let mut done = BTreeSet::new();
        while let Some(name) = wanted.pop() {
            // What is built into the kernel has no file.
            let Some(file) = files.iter().find(|file| module_name(file).as_ref() == Some(&name)) else {
                continue;
            };
            if done.insert(name.clone()) {
                let to = self.inside(&directory.join(format!("{name}.ko")))?;
                self.decompress(file, &to)?;
                wanted.extend(needs(&to)?);
            }
        }
        if !done.contains("veth") {
            bail!("{} has no veth: it is not the kernel that this expects", kernel.modules.display());
        }
        for table in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
            let from = kernel.modules.join(table);
            if from.is_file() {
                self.copy(&from, &directory.join(table))?;
            }
        }
        self.tools.applet("depmod").arg("-b").arg(&self.root).arg(&kernel.release).run()
    }

    fn decompress(&self, from: &Path, to: &Path) -> Result<()> {
        if from.extension().is_some_and(|extension| extension == "ko") {
            return fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()));
        }
        let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        self.tools.applet("xzcat").arg(from).stdout(Stdio::from(file)).run()
    }

    /// Packs it.
    pub(crate) fn pack(&self, initramfs: &Path) -> Result<()> {
        let listing = self.tools.applet("find").arg(".").dir(&self.root).output()?;
        let list = initramfs.with_extension("list");
        write(&list, listing)?;
        let open = |path: &Path| File::open(path).with_context(|| format!("cannot read {}", path.display()));
        let file =
            File::create(initramfs).with_context(|| format!("cannot write {}", initramfs.display()))?;
        let mut cpio = self.tools.applet("cpio");
        cpio.args(["-o", "-H", "newc"]).dir(&self.root);
        cpio.stdin(Stdio::from(open(&list)?)).stdout(Stdio::from(file)).stderr(Stdio::null()).run()
    }
}

/// The files that `ldd` names.
fn libraries(linked: &str) -> impl Iterator<Item = &Path> {
    let words = linked.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(Path::new)
}

fn module_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![directory.join("kernel")];
    while let Some(directory) = directories.pop() {
        for entry in
            fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?
        {
            let entry = entry?;
            let kind = if entry.file_type()?.is_dir() { &mut directories } else { &mut files };
            kind.push(entry.path());
        }
    }
    Ok(files)
}

/// The kernel's name for a module: `nf_nat` for `nf-nat.ko.xz`.
fn module_name(file: &Path) -> Option<String> {
    let (name, _) = file.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// The modules that a module says it needs.
fn needs(module: &Path) -> Result<Vec<String>> {
    let context = || format!("cannot read the module {}", module.display());
    let bytes = fs::read(module).with_context(context)?;
    let file = object::File::parse(&*bytes).with_context(context)?;
    let about = file.section_by_name(".modinfo").with_context(context)?;
    Ok(depends(&String::from_utf8_lossy(about.data().with_context(context)?)))
}

/// Reads `depends=` of what a module says about itself, in strings that end with a zero.
fn depends(about: &str) -> Vec<String> {
    let depends = about.split('\0').find_map(|string| string.strip_prefix("depends=")).unwrap_or_default();
    depends.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        let about = "license=GPL\0alias=rtnl-link-bridge\0depends=stp,llc\0retpoline=Y\0";
        assert_eq!(depends(about), ["stp", "llc"]);
        assert_eq!(depends("depends=net-failover\0"), ["net_failover"]);
        assert!(depends("depends=\0").is_empty() && depends("license=GPL\0").is_empty());
        assert_eq!(module_name(Path::new("/k/net/nf-nat.ko.xz")).as_deref(), Some("nf_nat"));
        assert_eq!(module_name(Path::new("/k/modules.order")), None);
    }

    #[test]
    fn libraries_are_the_files_that_ldd_names() {
        let linked = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found: Vec<_> = libraries(linked).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(Path::new));
        assert_eq!(libraries("\tstatically linked\n").count(), 0);
    }
}
