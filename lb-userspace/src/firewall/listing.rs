//! What `nft -j list table` says of our table.

use anyhow::Context as _;
use serde_json::Value;

use super::{DIRECT, SERVERS, SERVICES};

/// The table as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InForce {
    /// The digest in the rules' comments; empty if they differ or there are none.
    pub mark: String,
    /// Rules.
    pub rules: usize,
    /// Elements of all sets that we fill.
    pub elements: usize,
    /// Packets from clients that were dropped.
    pub from_clients: u64,
    /// Packets from servers that were dropped.
    pub from_servers: u64,
}

impl InForce {
    /// Whether both are the same table, whatever they have counted.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        (&self.mark, self.rules, self.elements) == (&other.mark, other.rules, other.elements)
    }
}

/// Reads the listing.
///
/// # Errors
/// It is not what `nft -j` prints.
pub fn read(json: &[u8]) -> anyhow::Result<InForce> {
    let listing: Value = serde_json::from_slice(json).context("nft printed no JSON")?;
    let objects = listing.get("nftables").and_then(Value::as_array).context("nft printed no list")?;
    let mut there = InForce::default();
    let mut marks = Vec::new();
    for object in objects {
        if let Some(set) = object.get("set").filter(|set| !is_direct(set)) {
            there.elements += set.get("elem").and_then(Value::as_array).map_or(0, Vec::len);
        }
        let Some(rule) = object.get("rule") else { continue };
        there.rules += 1;
        let comment = rule.get("comment").and_then(Value::as_str).unwrap_or_default();
        marks.push(comment.rsplit(' ').next().unwrap_or_default());
        if comment.starts_with(SERVICES) {
            there.from_clients += packets(rule);
        } else if comment.starts_with(SERVERS) {
            there.from_servers += packets(rule);
        }
    }
    marks.dedup();
    if let [mark] = marks.as_slice() {
        (*mark).clone_into(&mut there.mark);
    }
    Ok(there)
}

fn is_direct(set: &Value) -> bool {
    set.get("name").and_then(Value::as_str).is_some_and(|name| name.starts_with(DIRECT))
}

fn packets(rule: &Value) -> u64 {
    let expressions = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
    expressions.filter_map(|expression| expression.get("counter")?.get("packets")?.as_u64()).sum()
}
