//! Whether escape sequences, for colours and for the place on the screen, are of use where something is printed.

use std::ffi::{OsStr, OsString};

/// Whether a stream takes escape sequences: it is a terminal, one that understands them (`TERM` is neither `dumb` nor
/// unset), and nobody asked for none (`NO_COLOR`, see no-color.org).
#[must_use]
pub fn takes_escapes(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let is_plain = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let understands = variable("TERM").is_some_and(|term| !term.is_empty() && term != OsStr::new("dumb"));
    is_terminal && understands && !is_plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_for_terminals_that_understand_them_where_nobody_minds() {
        let with = |is_terminal, set: &[(&str, &str)]| {
            takes_escapes(is_terminal, |name| {
                set.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            })
        };
        assert!(with(true, &[("TERM", "xterm-256color")]));
        assert!(with(true, &[("TERM", "linux"), ("NO_COLOR", "")]), "an empty NO_COLOR says nothing");
        assert!(!with(true, &[("TERM", "linux"), ("NO_COLOR", "1")]));
        assert!(!with(true, &[("TERM", "dumb")]));
        assert!(!with(true, &[]), "without TERM, as in a unit of systemd");
        assert!(!with(false, &[("TERM", "xterm-256color")]), "a file, a pipe");
    }
}
