//! The negative control: the real object with an entry that lets everything pass. It loads, and golden packets must fail.

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

const PROGRAM: &str = "steadfast";
const INSTRUCTION: usize = 8;
/// `r0 = 2`, `XDP_PASS`.
const PASS: [u8; INSTRUCTION] = [0xb7, 0, 0, 0, 2, 0, 0, 0];
/// `exit`.
const EXIT: u8 = 0x95;

/// Overwrites the first two instructions of the program: `r0 = XDP_PASS; if r0 == XDP_PASS goto the first exit`. The
/// branch keeps the rest reachable for the verifier, which refuses programs with dead code.
pub(crate) fn spoil(object: &[u8]) -> Result<Vec<u8>> {
    let file = object::File::parse(object).context("the object is no ELF file")?;
    let symbol = file.symbol_by_name(PROGRAM).context("the object has no program steadfast")?;
    let section = file.section_by_index(symbol.section_index().context("the program is in no section")?)?;
    let (start, _) = section.file_range().context("the program's section has no bytes")?;
    let begin = usize::try_from(start + symbol.address())?;
    let end = begin + usize::try_from(symbol.size())?;
    let first = symbol.address()..symbol.address() + 2 * 8;
    let relocated = section.relocations().any(|(at, _)| first.contains(&at));
    ensure!(
        !relocated,
        "the program begins with an instruction that is relocated: the control can't replace it"
    );
    let code = object.get(begin..end).context("the program is not within the object")?;
    let mut spoilt = object.to_vec();
    spoilt[begin..begin + 2 * INSTRUCTION].copy_from_slice(&entry(code)?);
    Ok(spoilt)
}

/// The two instructions, for this code.
fn entry(code: &[u8]) -> Result<[u8; 2 * INSTRUCTION]> {
    let exit = code.chunks(INSTRUCTION).skip(2).position(|instruction| instruction[0] == EXIT);
    let [low, high] = i16::try_from(exit.context("the program has no exit")?)
        .context("the program's first exit is too far")?
        .to_le_bytes();
    let mut entry = [0; 2 * INSTRUCTION];
    entry[..INSTRUCTION].copy_from_slice(&PASS);
    entry[INSTRUCTION..].copy_from_slice(&[0x15, 0, low, high, 2, 0, 0, 0]);
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_branch_leads_to_the_first_exit_behind_it() {
        let mut code = vec![0xbf; 6 * INSTRUCTION];
        code[0] = EXIT;
        code[4 * INSTRUCTION] = EXIT;
        let entry = entry(&code).unwrap();
        // From the third instruction, which a branch by nothing reaches, two further.
        assert_eq!(entry[INSTRUCTION..], [0x15, 0, 2, 0, 2, 0, 0, 0]);
        assert!(super::entry(&code[..4 * INSTRUCTION]).is_err());
    }
}
