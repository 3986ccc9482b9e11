//! "Did you mean": the known word nearest to a mistyped one.

/// Longer words are not compared: no known word comes near, and the comparison is quadratic.
const MAX_WORD: usize = 32;

/// The candidate that `word` is probably a slip of: at most a third of its letters wrong (swapped
/// neighbours count once), or one contained in the other.
pub(crate) fn suggest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    #[cfg(test)]
    tests::ASKED.set(tests::ASKED.get() + 1);
    if word.len() > MAX_WORD {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('-', "_");
    let nearest = candidates
        .iter()
        .map(|candidate| (distance(&word, &candidate.replace('-', "_")), *candidate))
        .min_by_key(|(distance, _)| *distance)?;
    if nearest.0 <= (word.len() / 3).max(1) {
        return Some(nearest.1);
    }
    let contained =
        |candidate: &str| word.len() >= 4 && (candidate.contains(&word) || word.contains(candidate));
    candidates.iter().copied().find(|candidate| contained(candidate))
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = a[i - 1] == b[j - 1];
            let mut best = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + usize::from(!same));
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// How often this thread has looked for the nearest word.
        pub(in crate::config) static ASKED: Cell<usize> = const { Cell::new(0) };
    }

    const KEYS: &[&str] = &["label", "address", "ports", "health_check", "real_servers", "weight"];

    #[test]
    fn a_slip_of_the_hand_is_recognised() {
        for (typed, meant) in [
            ("helth_check", "health_check"),
            ("health-check", "health_check"),
            ("Label", "label"),
            ("wieght", "weight"),
            ("port", "ports"),
            ("servers", "real_servers"),
            ("adress", "address"),
        ] {
            assert_eq!(suggest(typed, KEYS), Some(meant), "{typed}");
        }
    }

    #[test]
    fn another_word_is_not_a_slip() {
        for typed in ["", "x", "colour", "vip", &"label".repeat(20)] {
            assert_eq!(suggest(typed, KEYS), None, "{typed}");
        }
    }
}
