//! A daemon of another build: its program does the same, and is another one for the kernel.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use aya_obj::{Object, generated::bpf_insn};

use crate::lab::{bin_dir, bpf_object};

/// Instructions around the two that are swapped, by which they are found in the daemon.
const AROUND: usize = 12;
/// Puts a number into a register, with 64 bits or with 32.
const MOVES: [u8; 2] = [0xb7, 0xb4];

/// Writes `steadfastd` of this build into a directory, with a program in which two instructions have changed places.
///
/// # Errors
/// There are no two that may, or the daemon carries another object than the build's.
pub fn another_build(directory: &Path) -> Result<PathBuf> {
    let object = fs::read(bpf_object("steadfast.o")?)?;
    let object = Object::parse(&object).context("cannot parse the built object")?;
    let pair = object.functions.values().find_map(|function| exchangeable(&function.instructions));
    let (code, place) = pair.context("no two instructions of the program may change places")?;
    let mut daemon = fs::read(bin_dir()?.join("steadfastd"))?;
    let found: Vec<usize> = places_of(&daemon, &code).collect();
    ensure!(found.len() == 1, "the daemon has those instructions {} times: build it again", found.len());
    let first = found[0] + 8 * place;
    let (one, other) = daemon[first..first + 16].split_at_mut(8);
    one.swap_with_slice(other);
    let path = directory.join("steadfastd-of-another-build");
    fs::write(&path, daemon)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// A piece of code in which the instruction at a place and the next one may change places: both put a number into a
/// register, each into another, and no jump goes between them.
fn exchangeable(instructions: &[bpf_insn]) -> Option<(Vec<u8>, usize)> {
    let targets: BTreeSet<i64> = (0..).zip(instructions).filter_map(|(at, code)| target(at, code)).collect();
    let fits = |at: usize| {
        let [one, other] = [&instructions[at], &instructions[at + 1]];
        let moves = MOVES.contains(&one.code) && MOVES.contains(&other.code);
        let is_target = i64::try_from(at + 1).is_ok_and(|next| targets.contains(&next));
        moves && one.dst_reg() != other.dst_reg() && bytes(one) != bytes(other) && !is_target
    };
    let last = instructions.len().checked_sub(AROUND)?;
    let at = (AROUND..last).find(|at| fits(*at))?;
    Some((instructions[at - AROUND..at + AROUND].iter().flat_map(bytes).collect(), AROUND))
}

/// Where a jump goes.
fn target(at: i64, instruction: &bpf_insn) -> Option<i64> {
    let (class, operation) = (instruction.code & 7, instruction.code >> 4);
    // Calls and exits have no offset; an unconditional jump of class 6 has a long one.
    match (class, operation) {
        (5, 8 | 9) => None,
        (6, 0) => Some(at + 1 + i64::from(instruction.imm)),
        (5 | 6, _) => Some(at + 1 + i64::from(instruction.off)),
        _ => None,
    }
}

/// An instruction as it is in the object.
fn bytes(instruction: &bpf_insn) -> [u8; 8] {
    let registers = instruction.src_reg() << 4 | instruction.dst_reg();
    let ([a, b], [c, d, e, f]) = (instruction.off.to_le_bytes(), instruction.imm.to_le_bytes());
    [instruction.code, registers, a, b, c, d, e, f]
}

fn places_of<'a>(within: &'a [u8], what: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    within.windows(what.len()).enumerate().filter(move |(_, bytes)| *bytes == what).map(|(at, _)| at)
}
