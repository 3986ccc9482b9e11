//! Finds the eBPF object that the daemon carries inside, and names it to the compiler as `STEADFAST_BPF_OBJECT`.

use std::{
    env,
    path::{Path, PathBuf},
};

const VARIABLE: &str = "STEADFAST_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    match object() {
        Ok(object) if object.is_file() => {
            println!("cargo::rerun-if-changed={}", object.display());
            println!("cargo::rustc-env={VARIABLE}={}", object.display());
        }
        Ok(object) => {
            // Named although missing: cargo then looks again at the next build.
            println!("cargo::rerun-if-changed={}", object.display());
            let object = object.display();
            println!(
                "cargo::error=the XDP program is not built ({object} is missing): run `cargo xtask build`"
            );
        }
        Err(problem) => println!("cargo::error={problem}"),
    }
}

/// The object that the environment names, else the one that `cargo xtask build` leaves in the target directory.
fn object() -> Result<PathBuf, String> {
    if let Some(named) = env::var_os(VARIABLE) {
        return std::path::absolute(&named)
            .map_err(|error| format!("{VARIABLE}={}: {error}", named.display()));
    }
    let out = env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: this program is for cargo to run")?;
    let target = Path::new(&out).ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    let target = target.ok_or_else(|| format!("{} is not inside a target directory", out.display()))?;
    Ok(target.join("bpf/steadfast.o"))
}
