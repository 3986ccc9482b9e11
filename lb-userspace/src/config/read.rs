//! The whole tree to a whole configuration.

use super::Checked;
use super::error::{Findings, Mistakes, Position, Problem};
use super::fields::Fields;
use super::model::{Config, Service};
use super::rules;
use super::tree::{Shape, Tree};
use super::values::{At, list, quoted};
use super::{read_node, read_service};

/// The version of the file's shape that is read and written.
pub(super) const VERSION: u16 = 1;

const KEYS: &[&str] = &["version", "node", "virtual_services"];

/// Reads the document.
pub(super) fn config(tree: &Tree) -> Result<Checked, Mistakes> {
    let mut findings = Findings::default();
    let config = document(tree, &mut findings);
    let warnings = findings.into_result()?;
    // Whatever leaves no configuration has reported why.
    let defect = || Problem::at_start("no configuration was read", "report this defect");
    let config = config.ok_or_else(|| Mistakes { first: vec![defect()], more: 0 })?;
    Ok(Checked { config, warnings })
}

fn document(tree: &Tree, findings: &mut Findings) -> Option<Config> {
    let fields = Fields::open(tree, "the configuration", KEYS, findings)?;
    version(&fields, findings);
    let node = fields
        .required("node", "add \"node: { interfaces: [eth0] }\" with the interface's name", findings)
        .and_then(|tree| read_node::node(tree, findings));
    let drafts = services(&fields, findings);
    rules::check(node.as_ref(), &drafts, findings);
    let services: Option<Vec<Service>> = drafts.into_iter().map(|draft| draft.service).collect();
    Some(Config { node: node?.node, services: services? })
}

fn version(fields: &Fields<'_>, findings: &mut Findings) {
    let remedy = format!("write \"version: {VERSION}\"");
    let Some(tree) = fields.required("version", &remedy, findings) else {
        return;
    };
    match &tree.shape {
        Shape::Text(text) if *text == VERSION.to_string() => {}
        Shape::Text(text) => {
            findings.error(
                tree.at,
                format!("version {} is not known to this Steadfast", quoted(text)),
                remedy,
            );
        }
        other => findings.error(tree.at, format!("version is {}", other.name()), remedy),
    }
}

fn services(fields: &Fields<'_>, findings: &mut Findings) -> Vec<read_service::Draft> {
    let remedy = "list the virtual services, or write \"virtual_services: []\" for none";
    let Some(tree) = fields.required("virtual_services", remedy, findings) else {
        return Vec::new();
    };
    let items = list(tree, "virtual_services", remedy, findings).unwrap_or_default();
    if matches!(&tree.shape, Shape::List(items) if items.is_empty()) {
        findings.warn(tree.at, "there is no virtual service", "add one to balance anything");
    }
    items.iter().map(|item| read_service::service(item, findings)).collect()
}

/// A label with the position to blame, for rules about duplicates.
pub(super) fn located<T>(tree: &Tree, value: Option<T>) -> Option<At<T>> {
    let at: Position = tree.at;
    value.map(|value| At { value, at })
}
