//! YAML text to a tree whose every node knows where it stands.
//!
//! The model is not deserialised directly, because serde stops at the first mistake and an operator
//! wants all of them. The tree keeps a scalar's own spelling (`no`, `1`, `0x10`): what it means is for
//! the place where it stands to say, not for YAML's guess of a type.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_yaml::{MessageFormatter as _, Options, Spanned, UserMessageFormatter};

use super::error::{Position, Problem};

/// Deeper than any valid configuration, shallow enough for recursion.
const MAX_DEPTH: usize = 16;
/// More than any valid configuration of the largest size.
const MAX_NODES: usize = 250_000;
/// Aliases, and the nodes they may add in all: enough for shared sections, not for a "billion laughs".
const MAX_ALIASES: usize = 10_000;
const MAX_ALIASED_NODES: usize = 50_000;

/// A YAML node and the position of its first character; of an alias, that of what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) at: Position,
    pub(super) shape: Shape,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// No value: `key:` or `~` or `null`.
    Null,
    /// A scalar as it is spelled, without quotes and escapes.
    Text(String),
    /// A list.
    List(Vec<Tree>),
    /// A mapping in file order; duplicate keys are still there.
    Map(Vec<(Tree, Tree)>),
}

impl Shape {
    /// The shape's name in an error.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Parses one YAML document.
pub(super) fn parse(text: &str) -> Result<Tree, Problem> {
    // The parser skips a byte order mark without counting it, and the positions must fit the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Err(empty());
    }
    let raw: RawTree = serde_yaml::from_str_with_options(text, options()).map_err(|error| problem(&error))?;
    match raw.resolve(text) {
        Tree { shape: Shape::Null, .. } => Err(empty()),
        tree => Ok(tree),
    }
}

fn empty() -> Problem {
    Problem::at_start("the configuration is empty", "start it with \"version: 1\"")
}

fn options() -> Options {
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_aliases: MAX_ALIASES,
        },
        alias_limits: serde_yaml::alias_limits! {
            max_total_replayed_events: MAX_ALIASED_NODES,
            max_replay_stack_depth: MAX_DEPTH,
        },
        // Reported together with everything else.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

fn problem(error: &serde_yaml::Error) -> Problem {
    let at = error.location().map_or(Position::START, position);
    let message = UserMessageFormatter.format_message(error).into_owned();
    Problem::new(at, format!("not readable as YAML: {message}"), "correct the text here or just before")
}

fn position(location: serde_yaml::Location) -> Position {
    Position { line: location.line().max(1), column: location.column().max(1) }
}

/// A node as serde hands it over: scalars that YAML takes for numbers or booleans have lost their spelling,
/// which is then cut out of the text by their span.
struct RawTree(Spanned<RawShape>);

enum RawShape {
    Null,
    Text(String),
    Typed(String),
    List(Vec<RawTree>),
    Map(Vec<(RawTree, RawTree)>),
}

impl RawTree {
    fn resolve(self, text: &str) -> Tree {
        let location = self.0.defined;
        let shape = match self.0.value {
            RawShape::Null => Shape::Null,
            RawShape::Text(value) => Shape::Text(value),
            RawShape::Typed(guess) => Shape::Text(spelling(text, location).unwrap_or(guess)),
            RawShape::List(items) => Shape::List(items.into_iter().map(|item| item.resolve(text)).collect()),
            RawShape::Map(entries) => Shape::Map(
                entries.into_iter().map(|(key, value)| (key.resolve(text), value.resolve(text))).collect(),
            ),
        };
        Tree { at: position(location), shape }
    }
}

fn spelling(text: &str, location: serde_yaml::Location) -> Option<String> {
    let start = usize::try_from(location.span().byte_offset()?).ok()?;
    let length = usize::try_from(location.span().byte_len()?).ok()?;
    let spelled = text.get(start..start.checked_add(length)?)?.trim();
    (!spelled.is_empty()).then(|| spelled.to_owned())
}

impl<'de> Deserialize<'de> for RawTree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = RawShape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a mapping")
    }

    fn visit_unit<E>(self) -> Result<RawShape, E> {
        Ok(RawShape::Null)
    }

    fn visit_none<E>(self) -> Result<RawShape, E> {
        Ok(RawShape::Null)
    }

    fn visit_str<E>(self, value: &str) -> Result<RawShape, E> {
        Ok(RawShape::Text(value.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<RawShape, E> {
        Ok(RawShape::Typed(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<RawShape, E> {
        Ok(RawShape::Typed(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<RawShape, E> {
        Ok(RawShape::Typed(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<RawShape, E> {
        Ok(RawShape::Typed(value.to_string()))
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<RawShape, E> {
        Err(E::custom("binary values are not used here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<RawShape, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(RawShape::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<RawShape, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(RawShape::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(tree: &Tree) -> String {
        let Position { line, column } = tree.at;
        let inner = match &tree.shape {
            Shape::Null => "~".to_owned(),
            Shape::Text(text) => format!("{text:?}"),
            Shape::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
            Shape::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| format!("{}: {}", show(key), show(value)));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
        };
        format!("{line}:{column} {inner}")
    }

    fn shown(text: &str) -> String {
        match parse(text) {
            Ok(tree) => show(&tree),
            Err(problem) => format!("error {problem}"),
        }
    }

    #[test]
    fn every_node_knows_its_line_and_column() {
        assert_eq!(
            shown("a: 1\nb:\n  - x: 'q'\n    y: \"a\\tb\"\nü: ~\n"),
            "1:1 {1:1 \"a\": 1:4 \"1\", 2:1 \"b\": 3:3 [3:5 {3:5 \"x\": 3:8 \"q\", 4:5 \"y\": 4:8 \"a\\tb\"}], \
             5:1 \"ü\": 5:4 ~}"
        );
    }

    #[test]
    fn a_byte_order_mark_does_not_shift_positions_or_spellings() {
        assert_eq!(shown("\u{feff}a: off\nb: 0x10"), r#"1:1 {1:1 "a": 1:4 "off", 2:1 "b": 2:4 "0x10"}"#);
    }

    #[test]
    fn scalars_keep_their_spelling() {
        for spelled in ["no", "0100", "0x1F", "1_000", "1.50", ".nan", "-.inf", "1e999", "TRUE", "2024-01-01"]
        {
            assert_eq!(parse(spelled).unwrap().shape, Shape::Text(spelled.to_owned()));
        }
    }

    #[test]
    fn an_alias_stands_where_its_anchor_does_and_keeps_its_spelling() {
        assert_eq!(
            shown("a: &x { k: off }\nb: *x"),
            r#"1:1 {1:1 "a": 1:7 {1:9 "k": 1:12 "off"}, 2:1 "b": 1:7 {1:9 "k": 1:12 "off"}}"#
        );
    }

    #[test]
    fn merge_keys_are_expanded_and_duplicate_keys_are_kept() {
        assert_eq!(
            shown("a: &x { k: 1, l: 2 }\nb: { <<: *x, k: 3 }"),
            r#"1:1 {1:1 "a": 1:7 {1:9 "k": 1:12 "1", 1:15 "l": 1:18 "2"}, 2:1 "b": 2:4 {2:14 "k": 2:17 "3", 1:15 "l": 1:18 "2"}}"#
        );
        assert_eq!(shown("a: 1\na: 2"), r#"1:1 {1:1 "a": 1:4 "1", 2:1 "a": 2:4 "2"}"#);
    }

    #[test]
    fn nothing_in_the_file_is_one_clear_error() {
        for text in ["", " \n\n", "# only a comment\n", "---\n...\n", "~", "\u{feff}"] {
            assert_eq!(
                shown(text),
                "error 1:1: the configuration is empty; start it with \"version: 1\"",
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_is_not_yaml_is_refused_where_it_goes_wrong() {
        for (text, place) in [
            ("a: [1,\n", "1:4"),
            ("a: b: c\n", "1:5"),
            ("a:\n\t- 1", "2:2"),
            ("a: 'x", "1:4"),
            ("- a\nb: 1", "2:1"),
            ("a: \0", "1:4"),
            ("a: *nowhere", "1:4"),
            ("a: !include /etc/shadow", "1:13"),
            ("a: 1\n---\nb: 1\n", "3:1"),
        ] {
            let shown = shown(text);
            assert!(
                shown.starts_with(&format!("error {place}: not readable as YAML: ")),
                "{text:?}: {shown}"
            );
        }
    }

    #[test]
    fn nesting_and_aliases_are_bounded() {
        let deep = "[".repeat(100_000);
        assert!(shown(&deep).starts_with("error 1:17: "), "{}", shown(&deep));
        let deep_block: String = (0..500).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        assert!(shown(&deep_block).starts_with("error "), "{}", shown(&deep_block));

        let mut laughs = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
        for level in 1..10 {
            let before = format!("*a{}", level - 1);
            laughs.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(", ")));
        }
        assert!(shown(&laughs).contains("too large or too complex"), "{}", shown(&laughs));
        assert!(shown("a: &a [*a]").starts_with("error 1:8: "));
    }
}
