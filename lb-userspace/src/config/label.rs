//! Labels: the names of virtual services and real servers.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// The longest label, in characters.
const MAX_LEN: usize = 63;

/// The name of a virtual service or a real server: 1 to 63 characters of `A-Z a-z 0-9 _ . -`.
///
/// Never contains `/`, so that `VIP/SERVER` on the command line has one meaning. Case matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Label(String);

/// Why a text is not a [`Label`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLabel {
    /// No character at all.
    #[error("is empty")]
    Empty,
    /// More than 63 characters.
    #[error("is longer than 63 characters")]
    TooLong,
    /// A character outside the set.
    #[error("contains {0:?}")]
    Character(char),
}

impl InvalidLabel {
    /// What to do about it.
    pub(super) const REMEDY: &'static str = "use 1 to 63 letters, digits, \"_\", \".\" or \"-\"";
}

impl Label {
    /// The label's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = InvalidLabel;

    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        if text.is_empty() {
            return Err(InvalidLabel::Empty);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if let Some(other) = text.chars().find(|c| !allowed(*c)) {
            return Err(InvalidLabel::Character(other));
        }
        if text.len() > MAX_LEN {
            return Err(InvalidLabel::TooLong);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for Label {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Label {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Label {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_1_to_63_characters_of_a_small_set() {
        for good in ["a", "Hyperspace_Srv_1", "no", "1", "-", "..", &"x".repeat(63)] {
            assert_eq!(good.parse::<Label>().unwrap().as_str(), good);
        }
        assert_eq!("".parse::<Label>(), Err(InvalidLabel::Empty));
        assert_eq!("x".repeat(64).parse::<Label>(), Err(InvalidLabel::TooLong));
        for (bad, character) in [("a b", ' '), ("vip/server", '/'), ("grün", 'ü'), ("a\n", '\n')] {
            assert_eq!(bad.parse::<Label>(), Err(InvalidLabel::Character(character)));
        }
    }
}
