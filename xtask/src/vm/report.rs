//! What a machine printed, and whether that is what must be.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};

/// A command that the machine ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    name: String,
    exit: i32,
    text: String,
}

/// How a test says that its kernel lacks what it needs.
const SKIPPED: &str = "skipped ";

/// How a step must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Must {
    /// With success.
    Succeed,
    /// With success of one test at least, and none skipped: a name that is no test's any more succeeds too.
    PassTests,
    /// With a failure that says this.
    FailSaying(&'static str),
}

/// Reads a report. QEMU ends with success also after a panic of the kernel, so it counts only with its last line.
pub(crate) fn steps(report: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut open: Option<Step> = None;
    for line in report.lines() {
        let marker = line.strip_prefix("@@ ").map(|marker| marker.split(' ').collect::<Vec<_>>());
        match (marker.as_deref(), &mut open) {
            (Some(["begin", name]), None) => {
                open = Some(Step { name: (*name).to_owned(), exit: -1, text: String::new() });
            }
            (Some(["end", name, exit]), Some(step)) if step.name == *name => {
                step.exit = exit.parse().with_context(|| format!("no exit code: {line}"))?;
                steps.extend(open.take());
            }
            (Some(["done", _]), None) => return Ok(steps),
            (None, Some(step)) => {
                let _ = writeln!(step.text, "{line}");
            }
            (None, None) => {}
            (Some(_), _) => bail!("the report makes no sense at `{line}`"),
        }
    }
    let at = open.map_or_else(|| "outside of a step".to_owned(), |step| format!("in {}", step.name));
    bail!("the machine ended {at}: the kernel may have panicked")
}

/// What is wrong with the step of this name; `None`: nothing.
pub(crate) fn problem(steps: &[Step], name: &str, must: Must) -> Option<String> {
    let Some(step) = steps.iter().find(|step| step.name == name) else {
        return Some(format!("{name}: it was not run"));
    };
    let (exit, text) = (step.exit, step.text.trim_end());
    match must {
        Must::PassTests if exit == 0 && tests(steps, name).is_none_or(|(passed, _)| passed == 0) => {
            Some(format!("{name}: no test was run"))
        }
        Must::PassTests if exit == 0 && text.lines().any(|line| line.starts_with(SKIPPED)) => {
            let skipped: Vec<_> = text.lines().filter(|line| line.starts_with(SKIPPED)).collect();
            Some(format!("{name}: {}", skipped.join("\n")))
        }
        Must::Succeed | Must::PassTests if exit == 0 => None,
        Must::Succeed | Must::PassTests => Some(format!("{name}: exit code {exit}\n{text}")),
        Must::FailSaying(words) if exit != 0 && text.contains(words) => None,
        Must::FailSaying(words) if exit != 0 => {
            Some(format!("{name}: it failed, but not saying `{words}`\n{text}"))
        }
        Must::FailSaying(_) => Some(format!("{name}: it must fail, and succeeded\n{text}")),
    }
}

/// Tests that passed and failed in a step.
pub(crate) fn tests(steps: &[Step], name: &str) -> Option<(u32, u32)> {
    let step = steps.iter().find(|step| step.name == name)?;
    let line = step.text.lines().find_map(|line| line.strip_prefix("test result: "))?;
    let count = |what: &str| {
        let part = line.split(&[';', '.']).find_map(|part| part.trim().strip_suffix(what))?;
        part.trim().parse().ok()
    };
    Some((count(" passed")?, count(" failed")?))
}

/// What the kernel says of the programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The interfaces that took the program into their driver.
    pub(crate) native: Vec<String>,
    /// Each program, and how many instructions the verifier walked through.
    pub(crate) verified: Vec<(String, u64)>,
}

/// Reads what the probe printed.
pub(crate) fn facts(steps: &[Step], name: &str) -> Facts {
    let mut facts = Facts::default();
    let text = steps.iter().find(|step| step.name == name).map(|step| step.text.as_str());
    for line in text.unwrap_or_default().lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["native", interface, driver] => facts.native.push(format!("{interface} ({driver})")),
            ["program", program, verified, _] => {
                let known = facts.verified.iter().any(|(name, _)| name == program);
                let verified = verified.parse().ok().filter(|_| !known);
                facts.verified.extend(verified.map(|verified| (program.to_owned(), verified)));
            }
            _ => {}
        }
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "busybox: something\n@@ begin probe\nnative eth0 virtio_net\nprogram steadfast 300 20\n\
        program clock 9 1\nnative lb0 virtual\nprogram steadfast 300 20\n@@ end probe 0\n@@ begin golden\n\
        test a ... FAILED\ntest result: FAILED. 15 passed; 1 failed; 0 ignored; 0 measured; finished in 3.2s\n\
        @@ end golden 101\n@@ done 6.1.0\n";

    #[test]
    fn a_report_is_steps_and_facts() {
        let steps = steps(REPORT).unwrap();
        assert_eq!(steps.len(), 2);
        assert_eq!(problem(&steps, "probe", Must::Succeed), None);
        assert_eq!(tests(&steps, "golden"), Some((15, 1)));
        assert_eq!(tests(&steps, "probe"), None);
        let facts = facts(&steps, "probe");
        assert_eq!(facts.native, ["eth0 (virtio_net)", "lb0 (virtual)"]);
        assert_eq!(facts.verified, [("steadfast".to_owned(), 300), ("clock".to_owned(), 9)]);
    }

    #[test]
    fn a_step_that_ends_otherwise_than_it_must_is_a_problem() {
        let steps = steps(REPORT).unwrap();
        let problem = |name, must| problem(&steps, name, must);
        assert!(problem("golden", Must::Succeed).unwrap().contains("exit code 101"));
        assert_eq!(problem("golden", Must::FailSaying("1 failed")), None);
        assert!(problem("golden", Must::FailSaying("2 failed")).unwrap().contains("not saying"));
        assert!(problem("probe", Must::FailSaying("native")).unwrap().contains("must fail"));
        assert!(problem("probe", Must::PassTests).unwrap().contains("no test was run"));
        assert!(problem("golden", Must::PassTests).unwrap().contains("exit code 101"));
        let skipped = "@@ begin devices\nskipped vlan: no device\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n\
            @@ end devices 0\n@@ done 6.1.0\n";
        let skipped = super::problem(&super::steps(skipped).unwrap(), "devices", Must::PassTests);
        assert_eq!(skipped.unwrap(), "devices: skipped vlan: no device");
        assert!(problem("contract", Must::Succeed).unwrap().contains("not run"));
    }

    #[test]
    fn a_report_that_breaks_off_is_no_report() {
        for (end, says) in
            [("@@ done 6.1.0\n", "outside"), ("@@ end golden 101\n@@ done 6.1.0\n", "in golden")]
        {
            let error = steps(REPORT.strip_suffix(end).unwrap()).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(steps("").is_err() && steps("@@ end golden 0\n@@ done 6\n").is_err());
        assert!(steps("@@ begin a\n@@ done 6\n").is_err());
    }
}
