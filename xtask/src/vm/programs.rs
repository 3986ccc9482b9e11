//! What runs in the machines: built here, or this system's tools.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::plan::Plan;
use crate::{
    command::{find_program, is_executable},
    workspace::Workspace,
};

/// Where the machine has what the build leaves in the target directory here.
pub(crate) const TARGET: &str = "/target";
/// Every test's tools: program, package.
const TOOLS: [(&str, &str); 2] = [("ip", "iproute2"), ("ethtool", "ethtool")];
/// Those of tests that build the lab.
const LAB_TOOLS: [(&str, &str); 5] = [
    ("curl", "curl"),
    ("nginx", "nginx-light"),
    ("openssl", "openssl"),
    ("ss", "iproute2"),
    ("tcpdump", "tcpdump"),
];
const LAB_PROGRAMS: [&str; 3] = ["lab", "steadfast", "steadfastd"];

/// Builds and finds them: each program by the path it has in the machine.
pub(crate) fn collect(workspace: &Workspace, plan: &Plan) -> Result<BTreeMap<String, PathBuf>> {
    println!("build: what runs in the machines");
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--package", "tests", "--bin", "probe"]);
    if plan.needs_the_lab() {
        cargo.args([
            "--bin",
            "lab",
            "--package",
            "lb-userspace",
            "--bin",
            "steadfast",
            "--bin",
            "steadfastd",
        ]);
    }
    cargo.run()?;
    let mut programs = built_tests(workspace, plan)?;
    let lab: &[&str] = if plan.needs_the_lab() { &LAB_PROGRAMS } else { &[] };
    for name in lab.iter().chain(&["probe"]) {
        programs.insert(format!("{TARGET}/debug/{name}"), workspace.program("debug", name));
    }
    let lab_tools: &[_] = if plan.needs_the_lab() { &LAB_TOOLS } else { &[] };
    for (name, package) in TOOLS.iter().chain(lab_tools) {
        let unpacked = workspace.tools().join("nginx/usr/sbin").join(name);
        let found = find_program(name).or_else(|| is_executable(&unpacked).then_some(unpacked));
        let missing = || format!("{name} is missing: install {package}, or run `cargo xtask setup`");
        programs.insert(format!("/usr/sbin/{name}"), found.with_context(missing)?);
    }
    Ok(programs)
}

fn built_tests(workspace: &Workspace, plan: &Plan) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = workspace.cargo();
    cargo.args(["test", "--no-run", "--package", "tests", "--message-format", "json-render-diagnostics"]);
    for test in plan.tests() {
        cargo.args(["--test", test]);
    }
    let built = executables(&cargo.output()?).into_iter();
    Ok(built.map(|(name, path)| (format!("{TARGET}/debug/deps/{name}"), path)).collect())
}

/// The tests that cargo says it has built, by name.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let read = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        let is_test = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
        is_test.then_some((name, Path::new(message["executable"].as_str()?).to_owned()))
    };
    messages.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_names_the_tests_it_has_built() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"tests"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"golden"},"executable":"/t/debug/deps/golden-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executables(messages), [("golden".to_owned(), PathBuf::from("/t/debug/deps/golden-1"))]);
    }
}
