//! Debian packages that are unpacked beside the other tools and not installed, so that no service is ever enabled or started.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{
    command::{Cmd, find_program, is_executable},
    workspace::Workspace,
};

/// A program that may be there already, wherever it came from.
pub(super) struct Tool {
    /// Its name, and that of the Debian package that has it in `usr/sbin`.
    pub(super) name: &'static str,
    /// What it is needed for.
    pub(super) why: &'static str,
    /// The option with which it prints its version and ends.
    pub(super) version: &'static str,
    /// Whether it needs libraries that an ordinary system has not.
    pub(super) has_libraries: bool,
}

/// Takes one that is there, else unpacks Debian's package into a directory of its name.
pub(super) fn install(workspace: &Workspace, tool: &Tool) -> Result<()> {
    let Tool { name, why, version, has_libraries } = *tool;
    if let Some(program) = find_program(name) {
        println!("  have     {name}: {}", program.display());
        return Ok(());
    }
    let tools = workspace.tools();
    let place = tools.join(name);
    let program = place.join("usr/sbin").join(name);
    if is_executable(&program) {
        println!("  have     {name}: {}", program.display());
        return Ok(());
    }
    if find_program("apt-get").is_none() {
        bail!("{name} is missing ({why}): install it with this system's package manager");
    }
    println!("  unpack   {name}: {why} (into {}, nothing is started or enabled)", tools.display());
    let packages = if has_libraries { with_missing_libraries(name)? } else { vec![name.to_owned()] };
    let download = tools.join(format!("{name}-download"));
    fs::create_dir_all(&download).with_context(|| format!("cannot make {}", download.display()))?;
    // Run as root, apt would complain that its own user cannot write here.
    Cmd::new("apt-get")
        .args(["download", "-q", "-o", "APT::Sandbox::User=root"])
        .args(&packages)
        .dir(&download)
        .run()?;
    for entry in fs::read_dir(&download).with_context(|| format!("cannot read {}", download.display()))? {
        Cmd::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(&place).run()?;
    }
    fs::remove_dir_all(&download).with_context(|| format!("cannot remove {}", download.display()))?;
    let libraries = place.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    Cmd::new(&program)
        .arg(version)
        .env("LD_LIBRARY_PATH", libraries)
        .run()
        .with_context(|| format!("Debian's {name} does not start here"))
}

/// The package and what its installation would bring with it.
fn with_missing_libraries(package: &str) -> Result<Vec<String>> {
    let plan = Cmd::new("apt-get")
        .env("LC_ALL", "C")
        .args(["install", "--simulate", "--no-install-recommends", "--no-remove", package])
        .output()?;
    let packages = to_be_installed(&plan);
    if packages.is_empty() {
        bail!(
            "apt-get has no plan for the installation of {package}: is its program missing from the package?"
        );
    }
    Ok(packages)
}

/// The packages that a simulation of apt-get says it would install.
fn to_be_installed(plan: &str) -> Vec<String> {
    let package = |line: &str| Some(line.strip_prefix("Inst ")?.split_whitespace().next()?.to_owned());
    plan.lines().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_the_libraries_too() {
        let plan = "Reading package lists...\nInst liblua5.3-0 (5.3.6-2 Debian:12.15/oldstable [amd64])\n\
                    Inst haproxy (2.6.12-1+deb12u4 Debian [amd64])\nConf liblua5.3-0 (5.3.6-2)\n";
        assert_eq!(to_be_installed(plan), ["liblua5.3-0", "haproxy"]);
    }
}
