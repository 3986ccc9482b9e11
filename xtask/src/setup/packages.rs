//! Debian packages: which are missing, and one `apt-get install` for all of them.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{
    command::{Cmd, find_program},
    privilege::Privilege,
    toolchain::{Compiler, OLDEST_RUSTC},
};

/// LLVM of the Debian compiler that set-up installs; one that is already there says so itself.
const LLVM: u32 = 22;

/// A package, and why it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    name: String,
    why: &'static str,
}

/// What is not there yet. A program that is there, wherever it came from, is not wanted again.
pub(crate) fn wanted(linker_is_missing: bool) -> Vec<Package> {
    let mut wanted = Vec::new();
    let mut want = |name: &str, why| {
        let name = name.to_owned();
        wanted.push(Package { name, why });
    };
    let compiler = Compiler::find();
    if compiler.is_none() {
        want("rustc-web", "compiles the XDP program");
        want("cargo-web", "compiles the XDP program");
        want("libstd-rust-web-dev-bpf", "the core library of the BPF target");
    }
    if linker_is_missing {
        let llvm = compiler.as_ref().and_then(Compiler::llvm).unwrap_or(LLVM);
        if !Path::new(&format!("/usr/lib/llvm-{llvm}/include/llvm")).exists() {
            want(&format!("llvm-{llvm}-dev"), "bpf-linker is built against it");
        }
    }
    let programs = [
        ("ip", "iproute2", "makes the lab's network namespaces"),
        ("ethtool", "ethtool", "turns off offloads that hide checksums in the lab"),
        ("tcpdump", "tcpdump", "looks at the lab's packets"),
        ("curl", "curl", "the lab's client"),
        ("nft", "nftables", "keeps the host from answering while the program is off"),
    ];
    for (program, package, why) in programs {
        if find_program(program).is_none() {
            want(package, why);
        }
    }
    wanted
}

/// Installs them, refreshing apt's lists first only if what they offer is too old.
pub(crate) fn install(privilege: Privilege, wanted: &[Package]) -> Result<()> {
    if wanted.is_empty() {
        println!("  have     all packages");
        return Ok(());
    }
    for Package { name, why } in wanted {
        println!("  install  {name}: {why}");
    }
    let names: Vec<&str> = wanted.iter().map(|package| package.name.as_str()).collect();
    if find_program("apt-get").is_none() {
        bail!("this is not a Debian: install the equivalents of {} and run this again", names.join(" "));
    }
    let update = !names.iter().all(|name| is_offered(name));
    if privilege == Privilege::None {
        let sudo = if find_program("sudo").is_some() { "sudo " } else { "" };
        let as_root = if sudo.is_empty() { "as root, type" } else { "type" };
        let first = if update { format!("{sudo}apt-get update && ") } else { String::new() };
        bail!(
            "packages are missing and this user is neither root nor allowed to sudo without a password; {as_root}\n  \
             {first}{sudo}apt-get install --no-install-recommends --no-remove {}\nand run this again",
            names.join(" ")
        );
    }
    if update {
        println!("  update   apt's package lists: what they offer is missing or too old");
        apt_get(privilege)?.args(["update", "-q"]).run()?;
        if let Some(name) = names.iter().find(|name| !is_offered(name)) {
            bail!("this system's package sources offer no fitting {name}: {}", other_way(name));
        }
    }
    let mut install = apt_get(privilege)?;
    // Debian's rustc-web excludes its rustc and rustup packages: better to stop than to take those away.
    install.args(["install", "-q", "-y", "--no-install-recommends", "--no-remove"]).args(&names);
    install.run()
}

fn other_way(package: &str) -> &'static str {
    if package.contains("rust") || package.contains("cargo") {
        "install a nightly instead, `rustup toolchain install nightly --component rust-src`"
    } else {
        "check /etc/apt/sources.list"
    }
}

fn apt_get(privilege: Privilege) -> Result<Cmd> {
    let mut env = privilege.command("env", "to install packages")?;
    env.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    Ok(env)
}

/// Whether apt's lists offer the package, and for the compiler: one that is new enough.
fn is_offered(name: &str) -> bool {
    let policy = Cmd::new("apt-cache").env("LC_ALL", "C").args(["policy", name]).output().unwrap_or_default();
    candidate(&policy).is_some_and(|version| {
        !matches!(name, "rustc-web" | "cargo-web" | "libstd-rust-web-dev-bpf") || is_new_enough(version)
    })
}

fn candidate(policy: &str) -> Option<&str> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then_some(version)
}

/// Whether a Debian version such as `1.96.0+dfsg1-1~deb12u2` is at least [`OLDEST_RUSTC`].
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST_RUSTC,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_list_offers_a_compiler_that_is_too_old() {
        let stale =
            "rustc-web:\n  Installed: (none)\n  Candidate: 1.85.0+dfsg3-1~deb12u3\n  Version table:\n";
        assert!(!candidate(stale).is_some_and(is_new_enough));
        let fresh = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n";
        assert!(candidate(fresh).is_some_and(is_new_enough));
    }

    #[test]
    fn an_unknown_package_has_no_candidate() {
        assert_eq!(candidate(""), None);
        assert_eq!(candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
    }
}
