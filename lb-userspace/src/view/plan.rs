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
    for (name, value) in parts.iter().filter(|(_, value)| !value.is_array()) {
        if !is_nothing(value) {
            out.push_str(&format!("{}: {}\n", heading(name), scalar(value)));
        }
    }
    for (name, value) in parts {
        if let Value::Array(items) = value
            && !items.is_empty()
        {
            if !out.is_empty() {
                out.push('\n');
            }
            out.push_str(&list(name, items));
        }
    }
    out
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

/// What a list of the plan is called, with the number of its rows.
fn list(name: &str, items: &[Value]) -> String {
    let mut out = format!("{} ({}):\n", heading(name), items.len());
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
    if items.len() > ROWS {
        out.push_str(&format!("  ... and {} more (--json shows all)\n", items.len() - ROWS));
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
    let rank = |name: &str| {
        ["service", "client", "server", "from", "to", "percent"]
            .iter()
            .position(|known| *known == name)
            .unwrap_or(usize::MAX)
    };
    columns.sort_by_key(|name| rank(name));
    columns
}

fn heading(name: &str) -> String {
    match name {
        "moved" => "clients whose next connection goes elsewhere".to_owned(),
        "moves" => "clients that move".to_owned(),
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
        assert_eq!(text.lines().count(), 1 + 1 + 20 + 1);
    }
}
