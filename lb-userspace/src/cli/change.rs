//! What changes things: a request to the daemon, and what it answered.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{
    args::DryRun,
    screen::Screen,
    world::{Request, World},
};
use crate::{
    config::Label,
    paths::Paths,
    view::{ServerName, format::plural, plan},
};

/// A change to ask the daemon for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) path: &'static str,
    pub(super) body: Value,
}

impl Change {
    fn new(path: &'static str, fields: Value, dry: DryRun) -> Self {
        let mut body = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        body.retain(|_, value| !value.is_null());
        if dry.dry_run {
            body.insert("dry_run".to_owned(), true.into());
        }
        Self { path, body: body.into() }
    }

    pub(super) fn add(
        name: &ServerName,
        address: IpAddr,
        port: Option<u16>,
        weight: Option<u16>,
        dry: DryRun,
    ) -> Self {
        let fields = json!({
            "service": name.service, "label": name.server, "address": address, "port": port, "weight": weight,
        });
        Self::new("/v1/servers/add", fields, dry)
    }

    pub(super) fn remove(name: &ServerName, now: bool, dry: DryRun) -> Self {
        let fields = json!({ "service": name.service, "label": name.server, "now": now });
        Self::new("/v1/servers/remove", fields, dry)
    }

    pub(super) fn weight(name: &ServerName, weight: u16, dry: DryRun) -> Self {
        let fields = json!({ "service": name.service, "label": name.server, "weight": weight });
        Self::new("/v1/servers/set", fields, dry)
    }

    pub(super) fn state(name: &ServerName, state: &str, dry: DryRun) -> Self {
        let fields = json!({ "service": name.service, "label": name.server, "state": state });
        Self::new("/v1/servers/state", fields, dry)
    }

    pub(super) fn confirm() -> Self {
        Self::new("/v1/confirm", json!({}), DryRun { dry_run: false })
    }

    pub(super) fn forget(client: IpAddr, service: Option<&Label>, dry: DryRun) -> Self {
        let fields = json!({ "client": client.to_canonical(), "service": service });
        Self::new("/v1/sticky/forget", fields, dry)
    }

    pub(super) fn move_client(client: IpAddr, name: &ServerName, dry: DryRun) -> Self {
        let fields =
            json!({ "client": client.to_canonical(), "service": name.service, "server": name.server });
        Self::new("/v1/sticky/move", fields, dry)
    }
}

/// Asks for a change and shows the answer.
///
/// # Errors
/// The daemon is not running, or refused.
pub(super) fn run(
    change: &Change,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    let answer = (world.ask)(paths, Request::Post(change.path, &change.body))?;
    let dry = change.body.get("dry_run").is_some();
    screen.show(&answer, || text(&answer, dry))
}

/// The answer for a person: what was done, and what it did to whom.
fn text(answer: &Value, dry: bool) -> String {
    let mut out = String::new();
    if dry {
        out.push_str("nothing was changed; it would do this:\n");
    } else if let Some(done) = answer.get("done").and_then(Value::as_str) {
        out.push_str(&format!("{done}\n"));
    } else if let Some(forgotten) = answer.get("forgotten").and_then(Value::as_u64) {
        out.push_str(&format!("forgot {}\n", plural(forgotten, "sticky record", "sticky records")));
    } else {
        out.push_str("done\n");
    }
    // A dry run's answer may be the plan itself.
    let plan = answer.get("plan").or_else(|| dry.then_some(answer));
    if let Some(plan) = plan {
        out.push_str(&plan::text(plan));
    }
    out
}
