//! cargo-deny, for `.ci/run`: licences, sources and advisories of what comes into the build.

use anyhow::{Result, ensure};

use crate::{
    command::{Cmd, find_program},
    workspace::Workspace,
};

/// The release series that reads our `deny.toml`, and that the compiler of user space can build.
const SERIES: &str = "0.20";

/// Takes one that is there, else builds one beside the other tools: cargo-deny has no Debian package.
pub(crate) fn install(workspace: &Workspace) -> Result<()> {
    if let Some(program) = find_program("cargo-deny") {
        println!("  have     cargo-deny: {}", program.display());
        return Ok(());
    }
    let tools = workspace.tools();
    let program = tools.join("bin/cargo-deny");
    if Cmd::new(&program).arg("--version").succeeds() {
        println!("  have     cargo-deny: {}", program.display());
        return Ok(());
    }
    println!(
        "  build    cargo-deny {SERIES}: checks licences, sources and advisories of dependencies (into {}, about \
         three minutes on two idle cores, once)",
        tools.display()
    );
    let mut cargo = workspace.cargo();
    // It runs for seconds: what optimising it would cost is never earned back.
    for (setting, value) in [("OPT_LEVEL", "1"), ("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "0")] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    // Its own build directory: the workspace's would be filled with a tool's dependencies.
    cargo.env_remove("CARGO_TARGET_DIR");
    cargo
        .args(["install", "cargo-deny", "--locked", "--version", &format!("^{SERIES}"), "--root"])
        .arg(&tools);
    cargo.run()?;
    ensure!(
        Cmd::new(&program).arg("--version").succeeds(),
        "cargo installed a cargo-deny that does not start"
    );
    Ok(())
}
