//! The documents against the code: the tables of `docs/packet-path.md` say what the program says, links lead somewhere,
//! and every path that a document names exists.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    maps::{self, MapKind, Users},
    reason::{Action, Reason},
};

const PACKET_PATH: &str = "docs/packet-path.md";

#[test]
fn the_documents_table_of_reasons_is_the_programs() -> Result<()> {
    let mut table = String::from("| reason | action | alarm | meaning |\n|---|---|---|---|\n");
    for reason in Reason::ALL {
        let action = match reason.action() {
            Action::Pass => "pass",
            Action::Transmit => "transmit",
            Action::Drop => "drop",
        };
        let alarm = if reason.is_alarm() { "yes" } else { "" };
        writeln!(table, "| `{}` | {action} | {alarm} | {} |", reason.label(), reason.description())?;
    }
    holds("reasons", &table)
}

#[test]
fn the_documents_table_of_maps_is_the_programs() -> Result<()> {
    let mut table = String::from(
        "| map | kind | bytes a value | entries | used by | content |\n|---|---|---:|---:|---|---|\n",
    );
    for map in &maps::ALL {
        let kind = match map.kind {
            MapKind::Array => "array",
            MapKind::PerCpuArray => "per-CPU array",
            MapKind::ArrayOfMaps => "array of maps",
            MapKind::DevMap => "device map",
            MapKind::RingBuf => "ring buffer (entries: bytes)",
        };
        let users = match map.users {
            Users::Both => "program, user space",
            Users::UserSpace => "user space",
            Users::Program => "program",
        };
        let (name, bytes, entries, what) = (map.name, map.value_size, map.max_entries, map.description);
        writeln!(table, "| `{name}` | {kind} | {bytes} | {entries} | {users} | {what} |")?;
    }
    holds("maps", &table)
}

/// Whether the document has exactly this table between its markers.
fn holds(name: &str, table: &str) -> Result<()> {
    let text = fs::read_to_string(root().join(PACKET_PATH))?;
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let there = text
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end))
        .with_context(|| format!("{PACKET_PATH} has no lines `{}` and `{end}`", begin.trim_end()))?
        .0;
    ensure!(
        there == table,
        "the table between `{}` and `{end}` in {PACKET_PATH} is not what the code says; put this there:\n\n{table}",
        begin.trim_end()
    );
    Ok(())
}

#[test]
fn every_relative_link_of_the_documents_leads_to_a_file() -> Result<()> {
    let mut broken = Vec::new();
    for document in documents()? {
        let text = prose(&fs::read_to_string(&document)?);
        let here = document.parent().context("a document outside the repository")?;
        for target in links(&text).filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() { document.clone() } else { here.join(path) };
            let leads = file.exists() && (anchor.is_empty() || headings(&file)?.iter().any(|h| h == anchor));
            if !leads {
                broken.push(format!("{}: {target}", shown(&document)));
            }
        }
    }
    ensure!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    Ok(())
}

#[test]
fn every_path_that_a_document_names_exists() -> Result<()> {
    const INSIDE: [&str; 7] =
        ["lb-common/", "lb-ebpf/", "lb-userspace/", "xtask/", "tests/", "docs/", ".ci/"];
    let mut missing = Vec::new();
    for document in documents()? {
        let text = prose(&fs::read_to_string(&document)?);
        let code = text.split('`').skip(1).step_by(2);
        let paths = code.filter(|code| INSIDE.iter().any(|inside| code.starts_with(inside)));
        for path in paths.filter(|path| !path.contains([' ', '*', '{', '\n'])) {
            if !root().join(path).exists() {
                missing.push(format!("{}: {path}", shown(&document)));
            }
        }
    }
    ensure!(missing.is_empty(), "paths that do not exist:\n{}", missing.join("\n"));
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shown(document: &Path) -> String {
    document.strip_prefix(root()).unwrap_or(document).display().to_string()
}

/// The Markdown files of the repository's root and of `docs`.
fn documents() -> Result<Vec<PathBuf>> {
    let mut documents = Vec::new();
    for directory in ["", "docs", "docs/decisions", "docs/reference"] {
        let directory = root().join(directory);
        for entry in
            fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?
        {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    ensure!(documents.len() > 5, "only {} documents were found: {documents:?}", documents.len());
    Ok(documents)
}

/// A document without its blocks of code, in which brackets and backquotes mean something else.
fn prose(text: &str) -> String {
    let mut inside = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}

/// What stands in the round brackets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// The anchors of a document's headings, as web views of Markdown make them.
fn headings(file: &Path) -> Result<Vec<String>> {
    let text = prose(&fs::read_to_string(file)?);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    Ok(headings.map(|line| anchor(line.trim_start_matches('#').trim())).collect())
}

fn anchor(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn a_link_an_anchor_and_code_are_told_apart() {
    let text = "see [a](b.md#c), [d](http://e)\n```\n[not](one)\n```\n";
    assert_eq!(links(&prose(text)).collect::<Vec<_>>(), ["b.md#c", "http://e"]);
    assert_eq!(anchor("What follows: `a` & b"), "what-follows-a--b");
}
