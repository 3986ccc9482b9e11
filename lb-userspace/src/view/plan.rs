//! A plan for people: who would move, before anything does.
//!
//! The daemon makes the plan; this renders whatever parts it has, so that a part added there is shown here at once.

use serde_json::{Map, Value};

use super::table::{Align, render};

/// How many rows of a list are shown to a person.
const ROWS: usize = 20;

/// Renders a plan: counts first, then each list that is not empty.
#[must_use]
pub fn text(plan: &Value) -> String {
    let Value::Object(parts) = plan else {
        return match plan {
            Value::Null => String::new(),
            other => format!("{}\n", scalar(other)),
        };
    };
    let mut out = String::new();
    if changes_nothing(plan) {
        return "nobody moves and no connection is reset\n".to_owned();
    }
    for (name, value) in parts.iter().filter(|(name, value)| !value.is_array() && *name != TOTAL) {
        if !is_nothing(value) {
            out.push_str(&format!("{}: {}\n", heading(name), scalar(value)));
        }
    }
    for (names, nothing) in NOTHING {
        let part = |name: &&str| parts.get(*name);
        if names.iter().any(|name| part(name).is_some()) && names.iter().filter_map(part).all(is_nothing) {
            out.push_str(&format!("{nothing}\n"));
        }
    }
    let mut lists: Vec<_> =
        parts.iter().filter_map(|(name, value)| Some((name, value.as_array()?))).collect();
    lists.sort_by_key(|(name, _)| place(name, &ORDER));
    for (name, items) in lists.into_iter().filter(|(_, items)| !items.is_empty()) {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&list(name, items, counted(name, items, parts)));
    }
    out
}

/// The part that counts the clients that move, of whom the plan lists the first.
const TOTAL: &str = "clients_moved";
/// What is said where a list is there and empty: it is what is looked for first.
const NOTHING: [(&[&str], &str); 2] = [
    (&["resets"], "no open connection is reset"),
    (&["moves", "moved"], "no client that has a record moves"),
];
/// The lists, worst first.
const ORDER: [&str; 8] =
    ["refused", "warnings", "resets", "moves", "moved", "draining", "unknown_changed", "changes"];

/// The place of a name in an order; the unknown ones come last.
fn place(name: &str, order: &[&str]) -> usize {
    order.iter().position(|known| *known == name).unwrap_or(order.len())
}

/// What a list's heading counts: what its rows stand for, also those rows that the plan leaves out. None where only the
/// rows say it.
fn counted(name: &str, items: &[Value], plan: &Map<String, Value>) -> Option<u64> {
    let sum = |field: &str| items.iter().filter_map(|item| item.get(field)?.as_u64()).sum();
    match name {
        "moved" => Some(plan.get(TOTAL).and_then(Value::as_u64).unwrap_or(items.len() as u64)),
        "moves" => Some(sum("clients")),
        "resets" => Some(sum("connections")),
        "unknown_changed" => None,
        _ => Some(items.len() as u64),
    }
}

/// Whether every part of the plan is empty, zero or false.
#[must_use]
pub fn changes_nothing(plan: &Value) -> bool {
    match plan {
        Value::Object(parts) => parts.values().all(is_nothing),
        other => is_nothing(other),
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(parts) => parts.values().all(is_nothing),
    }
}

/// A list of the plan under its heading, with the number of what it is about.
fn list(name: &str, items: &[Value], counted: Option<u64>) -> String {
    let number = counted.map_or_else(String::new, |number| format!(" ({number})"));
    let mut out = format!("{}{number}:\n", heading(name));
    let shown = &items[..items.len().min(ROWS)];
    let columns = columns(shown);
    if columns.is_empty() {
        for item in shown {
            out.push_str(&format!("  {}\n", scalar(item)));
        }
    } else {
        let headings: Vec<String> =
            columns.iter().map(|name| name.to_uppercase().replace('_', " ")).collect();
        let headings: Vec<(&str, Align)> = headings.iter().map(|name| (name.as_str(), Align::Left)).collect();
        let rows = shown.iter().map(|item| {
            let cell = |name: &String| item.get(name).map_or_else(String::new, |value| field(name, value));
            columns.iter().map(cell).collect()
        });
        for line in render(&headings, rows).lines() {
            out.push_str(&format!("  {line}\n"));
        }
    }
    // Only clients that move are listed in part by the plan itself; other lists are as long as they are.
    let all = if name == "moved" { counted.unwrap_or_default() } else { items.len() as u64 };
    let (listed, json) = (shown.len() as u64, items.len() as u64);
    if all > listed {
        let has = if json == all { "all".to_owned() } else { format!("the first {json}") };
        out.push_str(&format!(
            "  ... and {} more: these are the first {listed}, --json lists {has}\n",
            all - listed
        ));
    }
    out
}

/// The fields of the list's objects, in the order in which they appear; none if they are not objects.
fn columns(items: &[Value]) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for field in items.iter().filter_map(Value::as_object).flat_map(Map::keys) {
        if !columns.contains(field) {
            columns.push(field.clone());
        }
    }
    // serde_json sorts keys; these come first, in this order.
    columns.sort_by_key(|name| place(name, &["service", "client", "server", "from", "to", "percent"]));
    columns
}

fn heading(name: &str) -> String {
    match name {
        "refused" => "services that refuse clients".to_owned(),
        "moved" => "clients whose next connection goes elsewhere".to_owned(),
        "moves" => "clients that move, by server".to_owned(),
        "resets" => "connections that are reset or end".to_owned(),
        "unknown_changed" => "new clients that the scheduler would send elsewhere".to_owned(),
        "draining" => "servers that drain".to_owned(),
        other => other.replace('_', " "),
    }
}

/// A field of a row: where a client comes from or goes to may be nowhere, and shares are shares.
fn field(name: &str, value: &Value) -> String {
    match (name, value) {
        ("from" | "to", Value::Null) => "(refused)".to_owned(),
        ("percent", Value::Number(number)) => percent(number.as_f64()),
        (_, other) => scalar(other),
    }
}

fn percent(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| format!("{number:.1}%"))
}

/// What moves from where to where, if that is what the object says.
fn movement(parts: &Map<String, Value>) -> Option<String> {
    let (from, to) = (parts.get("from")?, parts.get("to")?);
    let share =
        parts.get("percent").map_or_else(String::new, |share| format!(" {}", percent(share.as_f64())));
    Some(format!("{} -> {}{share}", field("from", from), field("to", to)))
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        Value::Object(parts) => movement(parts).unwrap_or_else(|| {
            let part = |(name, value): (&String, &Value)| format!("{name} {}", scalar(value));
            parts.iter().map(part).collect::<Vec<_>>().join(", ")
        }),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_shows_who_moves_and_leaves_out_what_is_empty() {
        let plan = json!({
            "moved": [{ "service": "Hyperspace", "client": "10.0.0.9", "from": "A", "to": "B" }],
            "unknown_changed": [],
            "connections_reset": 3,
            "sticky_clients_lost": 0,
        });
        assert_eq!(
            text(&plan),
            "connections reset: 3\n\n\
             clients whose next connection goes elsewhere (1):\n  \
               SERVICE     CLIENT    FROM  TO\n  \
               Hyperspace  10.0.0.9  A     B\n"
        );
    }

    #[test]
    fn shares_and_refusals_are_readable() {
        let plan = json!({
            "changes": ["~ real server V/A: weight 100 -> 50"],
            "moves": [{ "service": "V", "from": "A", "to": null, "clients": 2 }],
            "unknown_changed": [{ "service": "V", "percent": 12.345, "shares": [
                { "from": "A", "to": "B", "percent": 12.0 }, { "from": null, "to": "B", "percent": 0.345 },
            ] }],
        });
        let text = text(&plan);
        assert!(text.contains("  ~ real server V/A: weight 100 -> 50\n"), "{text}");
        assert!(text.contains("  V        A     (refused)  2\n"), "{text}");
        assert!(text.contains("12.3%    A -> B 12.0%, (refused) -> B 0.3%\n"), "{text}");
    }

    #[test]
    fn a_plan_without_resets_or_movers_says_so_first() {
        let text = text(&json!({
            "changes": ["~ real server V/A: weight 100 -> 50"], "moved": [], "moves": [], "resets": [],
        }));
        assert!(
            text.starts_with("no open connection is reset\nno client that has a record moves\n\n"),
            "{text}"
        );
        let moves = super::text(&json!({ "moves": [{ "clients": 1 }], "moved": [{ "client": "10.0.0.1" }] }));
        assert!(!moves.contains("no client"), "{moves}");
    }

    #[test]
    fn an_empty_plan_says_that_nobody_moves() {
        let plan = json!({ "moved": [], "connections_reset": 0, "unknown_changed": [] });
        assert_eq!(text(&plan), "nobody moves and no connection is reset\n");
        assert!(changes_nothing(&plan));
        assert!(!changes_nothing(&json!({ "moved": [{}], "n": 1 })));
    }

    #[test]
    fn a_long_list_is_cut_and_says_how_much_is_left() {
        let moved: Vec<Value> = (0..25).map(|n| json!({ "client": format!("10.0.0.{n}") })).collect();
        let text = text(&json!({ "moved": moved }));
        assert!(text.contains("(25):") && text.contains("... and 5 more"), "{text}");
        assert!(text.contains("--json lists all"), "{text}");
        assert_eq!(text.lines().count(), 1 + 1 + 20 + 1);
    }

    #[test]
    fn a_heading_counts_what_the_change_does_and_not_what_is_listed() {
        let moved: Vec<Value> = (0..100).map(|n| json!({ "client": format!("10.0.0.{n}") })).collect();
        let text = text(&json!({
            "clients_moved": 859,
            "moved": moved,
            "moves": [
                { "service": "V", "from": "A", "to": "B", "clients": 800 },
                { "service": "V", "from": "A", "to": "C", "clients": 59 },
            ],
            "resets": [{ "service": "V", "server": "A", "connections": 57, "reason": "it is removed" }],
        }));
        assert!(text.contains("clients whose next connection goes elsewhere (859):\n"), "{text}");
        assert!(
            text.contains("... and 839 more: these are the first 20, --json lists the first 100\n"),
            "{text}"
        );
        assert!(text.contains("clients that move, by server (859):\n"), "{text}");
        assert!(text.starts_with("connections that are reset or end (57):\n"), "{text}");
        assert!(!text.contains("clients moved"), "the number is said once: {text}");
    }
}
