//! The file behind `/big` and `/slow`: the same bytes in every lab, mostly holes, so that a large one costs little disk.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// From one island of noise to the next.
const STRIDE: u64 = 64 * 1024;
const ISLAND: usize = 4096;

/// Writes it and returns its SHA-256 as lower-case hexadecimal digits.
pub(super) fn write(path: &Path, length: u64) -> Result<String> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    file.set_len(length)?;
    let mut state = 0x5eed_u64;
    let mut offset = 0;
    while offset < length {
        let left = usize::try_from(length - offset).unwrap_or(ISLAND).min(ISLAND);
        let mut island = [0; ISLAND];
        for word in island.chunks_exact_mut(8) {
            word.copy_from_slice(&noise(&mut state).to_le_bytes());
        }
        file.write_all_at(&island[..left], offset)?;
        offset += STRIDE;
    }
    sha256(File::open(path)?.into())
}

/// xorshift64: noise that is the same everywhere.
fn noise(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// The SHA-256 of all that can be read from the input, as lower-case hexadecimal digits.
pub(super) fn sha256(input: Stdio) -> Result<String> {
    let output = Command::new("sha256sum").stdin(input).output().context("cannot start sha256sum")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    match printed.split_whitespace().next() {
        Some(digest) if output.status.success() => Ok(digest.to_owned()),
        _ => bail!("sha256sum failed: {}", output.status),
    }
}
