//! The configuration: checked here, compared here, planned and put in force by the daemon.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{
    args::Config as Command,
    screen::{Format, Screen},
    world::{Request, World},
};
use crate::{
    config::{self, Change, Checked, Config, ConfigErrors, Problem},
    daemon::routers,
    paths::Paths,
    view::plan,
};

/// Runs a command of `steadfast config`.
///
/// # Errors
/// The file is not valid (the error lists everything), the daemon is not running, or refused.
pub(super) fn run(
    command: &Command,
    world: &World,
    paths: &Paths,
    screen: &mut Screen<'_>,
) -> anyhow::Result<()> {
    match command {
        Command::Check { file } => check(&Given::read(file, world), screen),
        Command::Show => {
            let (yaml, running, _) = running(world, paths)?;
            screen.show(&running, || yaml)
        }
        Command::Diff { file } => {
            let given = Given::read(file, world);
            let mut candidate = candidate(&given, screen)?;
            let (_, running, set_by_command) = running(world, paths)?;
            for kept in keep_weights(&mut candidate, &set_by_command) {
                screen.remark(&kept)?;
            }
            let changes = config::diff(&running, &candidate);
            screen.show(&changes, || diff_text(&changes, &given.name))
        }
        Command::Plan { file } => {
            let body = request(&Given::read(file, world), screen)?;
            let answer = (world.ask)(paths, Request::Post("/v1/config/plan", &body))?;
            screen.show(&answer, || plan::text(&answer))
        }
        Command::Apply { file } => {
            let given = Given::read(file, world);
            let body = request(&given, screen)?;
            let answer = (world.ask)(paths, Request::Post("/v1/config/apply", &body))?;
            screen.show(&answer, || applied_text(&answer, &given.name))
        }
    }
}

/// What a command was given: the text is read once, because a pipe has it once.
struct Given {
    /// What it is called in answers.
    name: String,
    /// The file; none: standard input.
    path: Option<PathBuf>,
    text: Result<String, ConfigErrors>,
}

impl Given {
    fn read(file: &Path, world: &World) -> Self {
        if file == Path::new("-") {
            let name = "standard input".to_owned();
            let text = config::read_text(&name, (world.input)());
            Self { name, path: None, text }
        } else {
            let name = file.display().to_string();
            Self { name, path: Some(file.to_owned()), text: config::read_file(file) }
        }
    }

    fn checked(&self) -> Result<Checked, ConfigErrors> {
        config::check(&self.name, self.text.as_ref().map_err(Clone::clone)?)
    }
}

fn check(given: &Given, screen: &mut Screen<'_>) -> anyhow::Result<()> {
    let name = &given.name;
    let checked = given.checked();
    if screen.format != Format::Text {
        let (errors, more, warnings): (&[Problem], usize, &[Problem]) = match &checked {
            Ok(checked) => (&[], 0, &checked.warnings),
            Err(errors) => (errors.problems(), errors.more(), &[]),
        };
        let record = json!({
            "file": name, "ok": errors.is_empty(), "errors": errors, "more_errors": more, "warnings": warnings,
        });
        screen.show(&record, String::new)?;
    }
    let checked = checked?;
    warn(name, &checked.warnings, screen)?;
    // As the daemon would, which is not asked here.
    let routers = routers::in_the_way(&checked.config);
    if !routers.is_empty() {
        bail!("{name}: {}", routers.join("; "));
    }
    if screen.format == Format::Text {
        let services = checked.config.services.len();
        let servers: usize = checked.config.services.iter().map(|service| service.real_servers.len()).sum();
        writeln!(
            screen.out,
            "{name}: valid, {services} virtual services, {servers} real servers, {} warnings",
            checked.warnings.len()
        )?;
    }
    Ok(())
}

fn warn(name: &str, warnings: &[Problem], screen: &mut Screen<'_>) -> anyhow::Result<()> {
    for warning in warnings {
        screen.remark(&format!("{name}:{warning} (warning)"))?;
    }
    Ok(())
}

/// A candidate that has passed every rule; its warnings are said.
fn candidate(given: &Given, screen: &mut Screen<'_>) -> anyhow::Result<Config> {
    let checked = given.checked()?;
    warn(&given.name, &checked.warnings, screen)?;
    Ok(checked.config)
}

/// The request with a candidate: its text, and where it is from.
fn request(given: &Given, screen: &mut Screen<'_>) -> anyhow::Result<Value> {
    candidate(given, screen)?;
    let source = match &given.path {
        Some(path) => {
            let whole = std::path::absolute(path).with_context(|| format!("naming {}", given.name))?;
            whole.display().to_string()
        }
        None => given.name.clone(),
    };
    // A candidate has a text.
    Ok(json!({ "yaml": given.text.as_deref().unwrap_or_default(), "source": source }))
}

/// Weights by `VIP/SERVER`.
type Weights = BTreeMap<String, u16>;

/// Gives servers the weights that `server set` gave them, as `config apply` does; says where the candidate has others.
fn keep_weights(candidate: &mut Config, set_by_command: &Weights) -> Vec<String> {
    let mut kept = Vec::new();
    for service in &mut candidate.services {
        for server in &mut service.real_servers {
            let name = format!("{}/{}", service.label, server.label);
            if let Some(weight) = set_by_command.get(&name)
                && *weight != server.weight
            {
                kept.push(format!(
                    "{name} keeps weight {weight}, as set by command, and not the file's {0}: `steadfast server set {name} \
                     --weight {0}` changes it",
                    server.weight
                ));
                server.weight = *weight;
            }
        }
    }
    kept
}

/// The configuration in force, as text and understood, and the weights that were set by command.
fn running(world: &World, paths: &Paths) -> anyhow::Result<(String, Config, Weights)> {
    let answer = (world.ask)(paths, Request::Get("/v1/config")).context(
        "the configuration in force is the daemon's to tell; without it `vip show` and `server show` tell what is served",
    )?;
    let Some(yaml) = answer.get("yaml").and_then(Value::as_str) else {
        bail!("the daemon's answer has no configuration in it; is this steadfast of its release?");
    };
    let running = config::parse("running configuration", yaml)?;
    let weights = answer.get("weights_set_by_command").cloned();
    let weights = weights.map_or_else(|| Ok(Weights::new()), serde_json::from_value)?;
    Ok((yaml.to_owned(), running, weights))
}

fn diff_text(changes: &[Change], name: &str) -> String {
    if changes.is_empty() {
        return format!("{name} does not differ from the running configuration\n");
    }
    changes.iter().map(|change| format!("{change}\n")).collect()
}

fn applied_text(answer: &Value, name: &str) -> String {
    let done = answer.get("done").and_then(Value::as_str);
    let mut out = done.map_or_else(|| format!("{name} is in force\n"), |done| format!("{done}\n"));
    if let Some(plan) = answer.get("plan") {
        out.push_str(&plan::text(plan));
    }
    out
}
