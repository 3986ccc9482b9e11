//! What a packet costs, and what memory is taken, against the number of services, servers, sticky records and flows.

mod chart;
mod memory;
mod sites;
mod tables;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use self::{
    chart::{Chart, Series},
    sites::{Site, Sites},
    tables::{Point, Tables},
};
use super::{
    figures::{Report, Rounds, Row, Table, Target},
    world::alone,
};

/// How thoroughly.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds, in each of which everything is run once.
    pub rounds: usize,
    /// Packets of one kind in a round.
    pub repeat: u32,
    /// Where curves are drawn.
    pub svg: Option<PathBuf>,
}

/// Runs the suite.
///
/// # Errors
/// The kernel refused something, a packet came to something else than it should, or a curve could not be written.
pub fn scale(options: &Options) -> Result<Report> {
    ensure!(options.rounds > 0, "a bench of no rounds");
    let (rounds, repeat) = (options.rounds, options.repeat);
    let sites = alone(move |pins| sites::measure(pins, rounds, repeat))?;
    let tables = tables::measure(rounds, repeat)?;
    if let Some(directory) = &options.svg {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        for chart in charts(&sites, &tables) {
            let path = directory.join(format!("{}.svg", chart.file));
            fs::write(&path, chart.svg()?).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(report(&sites, &tables))
}

fn report(sites: &Sites, tables: &Tables) -> Report {
    let mut report = Report::default();
    for (title, of) in [("services", &sites.services), ("servers of a service", &sites.servers)] {
        report.tables.push(Table {
            title: format!("A packet against {title}"),
            columns: ["ns", "x that of 1"].map(str::to_owned).to_vec(),
            rows: site_rows(of, title),
        });
        report.targets.extend(site_targets(of, title));
    }
    let taken = [("services", &sites.services), ("servers of a service", &sites.servers)];
    report.tables.push(Table {
        title: "Memory of all tables of the data path".to_owned(),
        columns: vec!["MiB".to_owned()],
        rows: taken
            .iter()
            .flat_map(|(title, of)| {
                of.iter().map(move |site| Row {
                    name: format!("{} {title}", site.count),
                    cells: vec![Rounds(vec![site.mebibytes])],
                })
            })
            .collect(),
    });
    report.tables.push(Table {
        title: "A packet against rows".to_owned(),
        columns: ["ns", "% of rows without room"].map(str::to_owned).to_vec(),
        rows: tables.points().map(point_row).collect(),
    });
    let bytes = tables.bytes();
    let row = |name: &str, value: f64| Row { name: name.to_owned(), cells: vec![Rounds(vec![value])] };
    report.tables.push(Table {
        title: format!("Bytes a row, {:.2} of the slots taken", bytes.load),
        columns: vec!["bytes".to_owned()],
        rows: vec![
            row("a flow: its share of the flow table and the tags, and its port's cell", bytes.flow),
            row("a sticky record: its share of the sticky table", bytes.sticky),
        ],
    });
    report.targets.extend([
        Target::at_most("bytes a sticky record: its slot", &Rounds(vec![bytes.sticky_slot]), 32.0),
        Target::at_most(
            "bytes a flow: its share of the table, and its port",
            &Rounds(vec![bytes.flow]),
            128.0,
        ),
    ]);
    report
}

fn site_rows(sites: &[Site], title: &str) -> Vec<Row> {
    let Some(one) = sites.first() else { return Vec::new() };
    let of_site = |site: &Site| {
        let (count, figures) = (site.count, site.figures.clone());
        figures.into_iter().zip(&one.figures).map(move |((name, rounds), (_, least))| Row {
            name: format!("{name}, {count} {title}"),
            cells: vec![rounds.clone(), rounds.with(least, |many, one| many / one)],
        })
    };
    sites.iter().flat_map(of_site).collect()
}

/// The most of them, over one.
fn site_targets(sites: &[Site], title: &str) -> Vec<Target> {
    let (Some(one), Some(most)) = (sites.first(), sites.last()) else { return Vec::new() };
    let both = most.figures.iter().zip(&one.figures).filter(|((name, _), _)| sites::is_promised(name));
    both.map(|((name, many), (_, least))| {
        let ratio = many.with(least, |many, one| many / one);
        Target::at_most(format!("{name}: {} {title} / 1", most.count), &ratio, 1.15)
    })
    .collect()
}

fn point_row(point: &Point) -> Row {
    Row {
        name: point.name(),
        cells: vec![
            point.rounds.clone(),
            Rounds(vec![100.0 * f64::from(point.without) / f64::from(point.rows)]),
        ],
    }
}

fn charts(sites: &Sites, tables: &Tables) -> Vec<Chart> {
    let mut charts = Vec::new();
    for (file, label, of) in
        [("services", "services", &sites.services), ("servers", "servers of a service", &sites.servers)]
    {
        let names = of.first().map(|site| site.figures.iter().map(|(name, _)| name.clone()));
        let series = names.into_iter().flatten().enumerate().map(|(number, name)| Series {
            name,
            points: of.iter().map(|site| (f64::from(site.count), site.figures[number].1.median())).collect(),
        });
        let title = format!("A packet against {label}");
        charts.push(Chart { file, title, x: label, y: "ns a packet", series: series.collect() });
        let memory = of.iter().map(|site| (f64::from(site.count), site.mebibytes));
        charts.push(Chart {
            file: if file == "services" { "services-memory" } else { "servers-memory" },
            title: format!("Memory against {label}"),
            x: label,
            y: "MiB of all tables",
            series: vec![Series { name: "tables".to_owned(), points: memory.collect() }],
        });
    }
    for (file, label) in [("flows", "flows"), ("sticky", "sticky records")] {
        let series = |of: fn(&Point) -> f64| {
            let mut series: Vec<Series> = Vec::new();
            for point in tables.points().filter(|point| point.file == file) {
                let value = (f64::from(point.rows), of(point));
                match series.iter_mut().find(|series| series.name == point.series) {
                    Some(series) => series.points.push(value),
                    None => series.push(Series { name: point.series.clone(), points: vec![value] }),
                }
            }
            series
        };
        let title = format!("A packet against {label}");
        charts.push(Chart {
            file,
            title,
            x: label,
            y: "ns a packet",
            series: series(|point| point.rounds.median()),
        });
        charts.push(Chart {
            file: if file == "flows" { "flows-memory" } else { "sticky-memory" },
            title: format!("Memory against {label}"),
            x: label,
            y: "MiB of their table",
            series: series(|point| point.mebibytes),
        });
    }
    charts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_is_the_most_over_one_in_the_same_round() {
        let site = |count, hot: [f64; 2]| Site {
            count,
            mebibytes: 1.0,
            figures: vec![
                (sites::HOT.to_owned(), Rounds(hot.to_vec())),
                (sites::SYN.to_owned(), Rounds(vec![1.0, 1.0])),
            ],
        };
        let sites = [site(1, [10.0, 20.0]), site(16, [50.0, 50.0]), site(4096, [11.0, 24.0])];
        let targets = site_targets(&sites, "services");
        assert_eq!(targets.len(), 1, "no promise is made of a SYN");
        assert_eq!(targets[0].range, (1.1, 1.2));
        assert!(targets[0].name.ends_with("4096 services / 1"));
    }
}
