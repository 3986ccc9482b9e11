//! From runs to tables and promises. Pure.

use std::collections::BTreeMap;

use super::{
    load::{Load, Run},
    napi::Napi,
    stand::Contender,
};
use crate::{
    bench::figures::{Report, Rounds, Row, Table, Target},
    lab::Mode,
};

/// What was measured.
pub(super) type Figures = BTreeMap<(Napi, Load, Contender), Runs>;

/// A run's figures, round by round.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    rate: Rounds,
    cpu: Rounds,
    latency: Rounds,
}

impl Runs {
    pub(super) fn add(&mut self, run: Run) {
        self.rate.0.push(run.rate);
        self.cpu.0.push(run.cpu);
        self.latency.0.push(run.latency);
    }
}

/// All contenders under one load.
struct Field<'a> {
    napi: Napi,
    load: Load,
    runs: BTreeMap<Contender, &'a Runs>,
}

const US: Contender = Contender::Steadfast(Mode::Snat);

impl<'a> Field<'a> {
    fn of(figures: &'a Figures, napi: Napi, load: Load) -> Self {
        let under = figures.iter().filter(|((mode, kind, _), _)| (*mode, *kind) == (napi, load));
        Self { napi, load, runs: under.map(|((.., contender), runs)| (*contender, runs)).collect() }
    }

    /// Of somebody who was not measured: nothing.
    fn rounds(&self, contender: Contender, of: impl Fn(&Runs) -> &Rounds) -> Rounds {
        self.runs.get(&contender).map(|runs| of(runs).clone()).unwrap_or_default()
    }

    fn rate(&self, contender: Contender) -> Rounds {
        self.rounds(contender, |runs| &runs.rate)
    }

    /// Beyond what it is directly.
    fn added(&self, contender: Contender, of: impl Fn(&Runs) -> &Rounds) -> Rounds {
        let own = self.rounds(contender, &of);
        own.with(&self.rounds(Contender::Direct, &of), |own, direct| own - direct)
    }

    fn added_cpu(&self, contender: Contender) -> Rounds {
        self.added(contender, |runs| &runs.cpu)
    }

    fn added_latency(&self, contender: Contender) -> Rounds {
        self.added(contender, |runs| &runs.latency)
    }

    /// The better HAProxy of each round.
    fn haproxy(&self, of: impl Fn(Contender) -> Rounds, better: impl Fn(f64, f64) -> f64) -> Rounds {
        let [one, two] = [1, 2].map(|threads| of(Contender::Haproxy { threads }));
        one.with(&two, better)
    }

    fn table(&self) -> Table {
        let (unit, times) = self.load.unit();
        let (speed, size) = self.load.speed();
        let mut columns = vec![speed.to_owned(), format!("CPU s / {unit}"), format!("CPU s added / {unit}")];
        let is_latency = self.load == Load::OneAtATime;
        if is_latency {
            columns.extend(["median us", "median us added"].map(str::to_owned));
        }
        let scaled = |rounds: &Rounds, by: f64| Rounds(rounds.0.iter().map(|value| value * by).collect());
        let row = |(contender, runs): (&Contender, &&Runs)| {
            let added = scaled(&self.added_cpu(*contender), times);
            let mut cells = vec![scaled(&runs.rate, size), scaled(&runs.cpu, times), added];
            if is_latency {
                cells.push(scaled(&runs.latency, 1e6));
                cells.push(scaled(&self.added_latency(*contender), 1e6));
            }
            Row { name: contender.name(), cells }
        };
        let title = format!("{} ({})", self.load.name(), self.napi.name());
        Table { title: first_letter_up(&title), columns, rows: self.runs.iter().map(row).collect() }
    }
}

fn first_letter_up(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// Round by round. Of nothing, or less, that a noisy round says was added, there is no ratio.
fn ratio(one: &Rounds, two: &Rounds) -> Rounds {
    one.with(two, |one, two| if two > 0.0 { one / two } else { f64::NAN })
}

/// The tables, and what Steadfast promises. `others` is the share of the processors that were at work between the runs.
pub(super) fn report(figures: &Figures, others: Rounds) -> Report {
    let mut fields: Vec<(Napi, Load)> = figures.keys().map(|(napi, load, _)| (*napi, *load)).collect();
    fields.dedup();
    let tables = fields.into_iter().map(|(napi, load)| Field::of(figures, napi, load).table());
    let rows = vec![Row { name: "at work between the runs".to_owned(), cells: vec![others] }];
    let quiet =
        Table { title: "Everybody else".to_owned(), columns: vec!["% of the processors".to_owned()], rows };
    Report { tables: tables.chain([quiet]).collect(), targets: targets(figures) }
}

fn targets(figures: &Figures) -> Vec<Target> {
    let soft = |load| Field::of(figures, Napi::Softirq, load);
    let threaded = |load| Field::of(figures, Napi::Threaded, load);
    let plain = Load::Requests { tls: false };
    let tls = Load::Requests { tls: true };
    let connections = Load::Connections { tls: false };
    let mut targets = Vec::new();
    for (field, must) in
        [(soft(tls), 1.85), (soft(plain), 1.5), (soft(connections), 1.2), (threaded(connections), 1.5)]
    {
        let haproxy = field.haproxy(|who| field.rate(who), f64::max);
        let name = format!("{} a second / HAProxy's ({})", field.load.name(), field.napi.name());
        targets.push(Target::at_least(name, &ratio(&field.rate(US), &haproxy), must));
    }
    for (field, must) in [(soft(tls), 0.28), (soft(connections), 0.3)] {
        let haproxy = field.haproxy(|who| field.added_cpu(who), f64::min);
        let name = format!("CPU added, {} / HAProxy's", field.load.name());
        targets.push(Target::at_most(name, &ratio(&field.added_cpu(US), &haproxy), must));
        let nft = field.added_cpu(Contender::Nft);
        let name = format!("CPU added, {} / nftables'", field.load.name());
        targets.push(Target::at_most(name, &ratio(&field.added_cpu(US), &nft), 1.0));
    }
    let field = soft(Load::OneAtATime);
    let haproxy = field.haproxy(|who| field.added_latency(who), f64::min);
    let latency = ratio(&field.added_latency(US), &haproxy);
    targets.push(Target::at_most("latency added, one request at a time / HAProxy's", &latency, 0.2));
    let field = soft(Load::Bulk);
    for mode in [Mode::Dr, Mode::Tunnel] {
        let name = format!("downloads, {} / direct", mode.name());
        let rate = ratio(&field.rate(Contender::Steadfast(mode)), &field.rate(Contender::Direct));
        targets.push(Target::at_least(name, &rate, 0.9));
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One round of everybody under one load: rate, CPU seconds each, latency.
    fn round(figures: &mut Figures, load: Load, all: [(Contender, [f64; 3]); 5]) {
        for (contender, [rate, cpu, latency]) in all {
            figures.entry((Napi::Softirq, load, contender)).or_default().add(Run { rate, cpu, latency });
        }
    }

    fn value(report: &Report, start: &str) -> f64 {
        let target = report.targets.iter().find(|target| target.name.starts_with(start));
        target.unwrap_or_else(|| unreachable!("no target {start}")).value
    }

    #[test]
    fn what_counts_is_added_to_direct_in_the_same_round_and_compared_with_the_better_rival() {
        let mut figures = Figures::new();
        let [one, two] = [1, 2].map(|threads| Contender::Haproxy { threads });
        for scale in [1.0, 2.0, 4.0] {
            let tls = [
                (Contender::Direct, [scale * 100.0, scale * 1e-5, 1e-5]),
                (one, [scale * 40.0, scale * 5e-5, 1e-4]),
                (two, [scale * 30.0, scale * 6e-5, 1e-4]),
                (Contender::Nft, [scale * 70.0, scale * 3e-5, 1e-4]),
                (US, [scale * 80.0, scale * 2e-5, 1e-4]),
            ];
            round(&mut figures, Load::Requests { tls: true }, tls);
        }
        let report = report(&figures, Rounds::default());
        let near = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-9, "{value}");
        near(value(&report, "keep-alive requests, TLS a second / HAProxy's"), 2.0);
        near(value(&report, "CPU added, keep-alive requests, TLS / HAProxy's"), 0.25);
        near(value(&report, "CPU added, keep-alive requests, TLS / nftables'"), 0.5);
        let table = &report.tables[0];
        assert_eq!(table.title, "Keep-alive requests, TLS (softirq NAPI)");
        near(table.rows[1].cells[2].median(), 0.8);
    }

    #[test]
    fn there_is_no_ratio_of_what_cost_nothing() {
        let ratio = ratio(&Rounds(vec![-2.0, 1.0]), &Rounds(vec![-1.0, 0.0]));
        assert!(!Target::at_most("x", &ratio, 3.0).met && !Target::at_least("x", &ratio, 0.0).met);
    }

    #[test]
    fn a_promise_of_what_was_not_measured_is_not_kept() {
        assert!(targets(&Figures::new()).iter().all(|target| !target.met));
    }
}
