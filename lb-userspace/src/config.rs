//! The configuration file: YAML text in, a valid model out, or every mistake at once.
//!
//! Three types, three stages, none of which can be skipped:
//!
//! 1. text -> a tree whose every node knows its line and column (`tree`);
//! 2. tree -> [`Config`], collecting what is wrong instead of stopping at it (`read_*`, `rules`);
//! 3. [`Config`] -> text again ([`Config::to_yaml`]), and the difference of two ([`diff`]).
//!
//! A [`Config`] that came from [`parse`] has passed every rule of this version; the rest of the daemon
//! does not check again. A change made elsewhere (the API, the command line) is checked by the same
//! rules with `parse("...", &changed.to_yaml())`.

mod diff;
mod duration;
mod error;
mod fields;
mod label;
mod model;
mod pairings;
mod read;
mod read_health;
mod read_node;
mod read_service;
mod render;
mod rules;
mod suggest;
mod tree;
mod values;

#[cfg(test)]
mod bad_file_tests;
#[cfg(test)]
mod bad_input_tests;
#[cfg(test)]
mod property_tests;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use diff::{Change, FieldChange, diff};
pub use duration::{display_duration, parse_duration};
pub use error::{ConfigErrors, MOST_TOLD, Problem};
pub use label::{InvalidLabel, Label};
pub use model::{
    AddressConflict, Config, Forwarding, HealthCheck, HealthKind, Node, OnDown, Persistence, PortRange,
    Protocol, Scheduler, Scope, Server, Service, StatusRange, Tables, XdpMode,
};
pub(crate) use render::port_list;
pub(crate) use suggest::suggest;

/// The largest configuration that is read, in bytes (4 MiB): as many services as there may be, with everything written out.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;

/// A valid configuration, and what in it is allowed but probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The configuration.
    pub config: Config,
    /// In line order; printed like errors, with the same `file:line:column`.
    pub warnings: Vec<Problem>,
}

/// Reads a configuration. `source_name` (a path, usually) begins each line of an error.
///
/// # Errors
///
/// The mistakes in the file, in line order, the first [`MOST_TOLD`] of them and a count; of a text that is not YAML at all,
/// the first.
pub fn parse(source_name: &str, text: &str) -> Result<Config, ConfigErrors> {
    check(source_name, text).map(|checked| checked.config)
}

/// [`parse`], with the warnings.
///
/// # Errors
///
/// As [`parse`].
pub fn check(source_name: &str, text: &str) -> Result<Checked, ConfigErrors> {
    if text.len() > MAX_BYTES {
        return Err(ConfigErrors::about_file(source_name, too_large()));
    }
    let tree = tree::parse(text).map_err(|problem| ConfigErrors::about_file(source_name, problem))?;
    read::config(&tree).map_err(|mistakes| ConfigErrors::new(source_name, mistakes.first, mistakes.more))
}

/// Reads the configuration file at `path`.
///
/// # Errors
///
/// As [`parse`]; a file that is missing, unreadable, larger than [`MAX_BYTES`], empty or not UTF-8 is
/// one error at line 1, column 1.
pub fn parse_file(path: &Path) -> Result<Config, ConfigErrors> {
    check_file(path).map(|checked| checked.config)
}

/// [`parse_file`], with the warnings.
///
/// # Errors
///
/// As [`parse_file`].
pub fn check_file(path: &Path) -> Result<Checked, ConfigErrors> {
    let name = path.display().to_string();
    check(&name, &read_file(path)?)
}

/// The text of the file at `path`, not understood yet.
///
/// # Errors
///
/// What of [`parse_file`] is not about its content.
pub fn read_file(path: &Path) -> Result<String, ConfigErrors> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|error| ConfigErrors::about_file(&name, unreadable(&error)))?;
    read_text(&name, file)
}

/// The text that `source` gives, which may be a device or a pipe: never more than one byte over [`MAX_BYTES`] is read.
///
/// # Errors
///
/// As [`read_file`].
pub fn read_text(source_name: &str, source: impl Read) -> Result<String, ConfigErrors> {
    bounded_text(source).map_err(|problem| ConfigErrors::about_file(source_name, problem))
}

fn unreadable(error: &std::io::Error) -> Problem {
    Problem::at_start(format!("cannot read the file: {error}"), "name a file that this user can read")
}

fn bounded_text(source: impl Read) -> Result<String, Problem> {
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    source.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    if bytes.len() > MAX_BYTES {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
        Problem::at_start(format!("the file is not UTF-8 text (line {line})"), "save it as UTF-8")
    })
}

fn too_large() -> Problem {
    Problem::at_start(
        format!("the configuration is larger than {MAX_BYTES} bytes"),
        "check that this is the right file",
    )
}
