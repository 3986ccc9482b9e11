//! What is run in a machine, and how each of it must end.

use std::fmt::Write as _;

use super::{
    kernels::Wanted,
    report::{Must, Step, problem},
};

/// The object of the negative control, in the machine.
pub(crate) const SPOILT: &str = "/spoilt.o";
pub(crate) const PROBE: &str = "probe";
pub(crate) const GOLDEN: &str = "golden";
/// The negative controls: a driver without native XDP, and a program that lets everything pass.
pub(crate) const CONTROLS: [&str; 2] = ["probe-control", "golden-control"];
/// Golden packets run the program without its driver; the others are real connections through a real driver, from and to
/// the kernel's own tunnel and VLAN devices.
const USUAL: [(&str, &[&str]); 3] =
    [(GOLDEN, &[]), ("e2e_web", &["tls_ends_at_the_server"]), ("e2e_devices", &[])];

/// The tests to run.
pub(crate) struct Plan {
    chosen: Vec<Chosen>,
}

/// A file of tests, and what names those of it that are run; nothing: all.
struct Chosen {
    test: String,
    filter: Vec<String>,
}

/// A command in the machine.
struct Planned {
    name: String,
    command: String,
    must: Must,
}

impl Plan {
    /// These tests, or the usual ones, or of all golden packets those that a filter names.
    pub(crate) fn new(tests: &[String], filter: &[String]) -> Self {
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let chosen = match (tests, filter) {
            ([], []) => USUAL
                .iter()
                .map(|(test, filter)| Chosen { test: (*test).to_owned(), filter: own(filter) })
                .collect(),
            ([], filter) => vec![Chosen { test: GOLDEN.to_owned(), filter: filter.to_vec() }],
            (tests, filter) => {
                tests.iter().map(|test| Chosen { test: test.clone(), filter: filter.to_vec() }).collect()
            }
        };
        Self { chosen }
    }

    /// The tests that have to be built: those to run, and those of the control.
    pub(crate) fn tests(&self) -> impl Iterator<Item = &str> {
        let control = (!self.chosen().any(|test| test == GOLDEN)).then_some(GOLDEN);
        self.chosen().chain(control)
    }

    /// The tests to run.
    pub(crate) fn chosen(&self) -> impl Iterator<Item = &str> {
        self.chosen.iter().map(|chosen| chosen.test.as_str())
    }

    /// Whether a test may build the lab, with the daemon, servers and clients in it.
    pub(crate) fn needs_the_lab(&self) -> bool {
        self.chosen().any(|test| test != GOLDEN)
    }

    fn steps(&self, wanted: Wanted) -> Vec<Planned> {
        let step = |name: &str, command: String, must| Planned { name: name.to_owned(), command, must };
        let probe = |interfaces: &str| format!("/target/debug/probe {interfaces}");
        let golden = format!("/target/debug/deps/{GOLDEN}");
        if wanted == Wanted::Refused {
            return vec![
                step(
                    PROBE,
                    probe("lb0"),
                    Must::FailSaying("the XDP program needs 5.15 or newer: boot a newer one"),
                ),
                step(GOLDEN, golden, Must::FailSaying("the kernel refuses steadfast")),
            ];
        }
        let [no_driver, no_balancer] = CONTROLS;
        let test = |Chosen { test, filter }: &Chosen| {
            let quoted = filter.iter().map(|word| format!(" '{}'", word.replace('\'', "")));
            let command = format!("/target/debug/deps/{test}{}", quoted.collect::<String>());
            step(test, command, Must::PassTests)
        };
        let first = [
            step(PROBE, probe("eth0 lb0"), Must::Succeed),
            step(no_driver, probe("lo"), Must::FailSaying("the driver of lo has no native XDP")),
        ];
        let control = step(
            no_balancer,
            // Without those that run frames by the thousand: the others are proof enough.
            format!("env STEADFAST_BPF_OBJECT={SPOILT} {golden} --skip frames --skip flood"),
            Must::FailSaying("action 2, not 3"),
        );
        first.into_iter().chain(self.chosen.iter().map(test)).chain([control]).collect()
    }

    /// The script that the machine's first process reads.
    pub(crate) fn script(&self, wanted: Wanted) -> String {
        self.steps(wanted).iter().fold(String::new(), |mut script, step| {
            let _ = writeln!(script, "step {} {}", step.name, step.command);
            script
        })
    }

    /// Everything in a report that is not as it must be.
    pub(crate) fn problems(&self, wanted: Wanted, steps: &[Step]) -> Vec<String> {
        self.steps(wanted).iter().filter_map(|step| problem(steps, &step.name, step.must)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::report;

    fn report(wanted: Wanted, exit_of: impl Fn(&str) -> (i32, &'static str)) -> Vec<Step> {
        let steps = Plan::new(&[], &[]).steps(wanted);
        let text = steps.iter().fold(String::new(), |mut text, step| {
            let (exit, says) = exit_of(&step.name);
            let name = &step.name;
            let _ = writeln!(text, "@@ begin {name}\n{says}\n@@ end {name} {exit}");
            text
        });
        report::steps(&format!("{text}@@ done 6.1.0\n")).unwrap()
    }

    #[test]
    fn controls_that_succeed_fail_the_kernel() {
        let plan = Plan::new(&[], &[]);
        let good = |name: &str| match name {
            "probe-control" => (1, "the driver of lo has no native XDP"),
            "golden-control" => (101, "action 2, not 3"),
            "probe" => (0, ""),
            _ => (0, "test result: ok. 1 passed; 0 failed"),
        };
        assert!(plan.problems(Wanted::Works, &report(Wanted::Works, good)).is_empty());
        let all_succeed = plan.problems(Wanted::Works, &report(Wanted::Works, |_| (0, "")));
        assert_eq!(all_succeed.len(), USUAL.len() + CONTROLS.len(), "{all_succeed:?}");
        let all_fail = plan.problems(Wanted::Works, &report(Wanted::Works, |_| (1, "killed")));
        assert_eq!(all_fail.len(), 1 + USUAL.len() + CONTROLS.len(), "{all_fail:?}");
    }

    #[test]
    fn an_old_kernel_that_takes_the_program_is_a_failure() {
        let problems = Plan::new(&[], &[]).problems(Wanted::Refused, &report(Wanted::Refused, |_| (0, "")));
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn a_filter_is_quoted_for_the_shell() {
        let plan = Plan::new(&["golden".to_owned()], &["a; reboot".to_owned(), "it's".to_owned()]);
        assert!(plan.script(Wanted::Works).contains("deps/golden 'a; reboot' 'its'\n"));
    }
}
