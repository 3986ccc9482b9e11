//! Tables of other sizes, and an older build's, with connections open: everything in them is carried over.
#![cfg(test)]

use std::{
    env,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lb_common::control::LAYOUT_VERSION;
use tests::{
    e2e::{
        Site, Talkers, Turn, Wanted,
        crowd::moved,
        downloads::Downloads,
        homes,
        kernel::attached,
        records::{self, Sticky},
        site::said,
        until,
    },
    lab::{LabOptions, Ns, Port443, Signal, client, client_address},
};

const DOWNLOADS: usize = 200;
const CLIENTS: std::ops::Range<usize> = 1000..1300;

fn options() -> LabOptions {
    LabOptions { port_443: Port443::Plain, big_bytes: 1024 * 1024, ..LabOptions::default() }
}

fn sized(flows: u32, half_open: u32, sticky: u32, endpoints: u32) -> Wanted {
    let node = format!(
        "  tables: {{ flows: {flows}, half_open: {half_open}, sticky: {sticky}, endpoints: {endpoints} }}\n"
    );
    Wanted { node, ..Wanted::default() }
}

/// The line of the daemon's log that says what was carried over.
fn carried(site: &Site) -> String {
    let log = site.daemon_log();
    let line = log.lines().rev().find(|line| line.contains("were carried over"));
    line.unwrap_or_else(|| panic!("nothing was carried over:\n{log}")).to_owned()
}

fn where_they_are(site: &Site) -> Vec<(std::net::IpAddr, String)> {
    let sticky = records::sticky(site, "Hyperspace").unwrap();
    sticky.into_iter().map(|(client, Sticky { server, .. })| (client, server)).collect()
}

/// New clients, one connection after the other, until they are stopped.
struct Newcomers {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Newcomers {
    fn start(site: &Site) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let connect = move || {
            let (mut answered, mut failed) = (0, Vec::new());
            for number in (3000..3200).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                match client::who_answers(client_address(number), Site::HYPERSPACE) {
                    Ok(_) => answered += 1,
                    Err(error) => failed.push(format!("{error:#}")),
                }
                // So many that one falls into each moment of a migration, and not so many that they fill the tables.
                thread::sleep(Duration::from_millis(2));
            }
            (answered, failed)
        };
        // A thread is born in the namespace of the one that starts it.
        Self { stop, thread: site.in_ns(Ns::Client, || thread::spawn(connect)).unwrap() }
    }

    /// How many were answered, and what went wrong with the others.
    fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn other_table_sizes_break_no_download_and_move_nobody() {
    let mut site = Site::with(Turn::alone(), options(), &sized(8192, 1024, 8192, 16)).unwrap();
    let known = homes(&site, CLIENTS, Site::HYPERSPACE).unwrap();
    let before = attached(&site).unwrap();
    let downloads = Downloads::start(&site, 0..DOWNLOADS, Site::HYPERSPACE).unwrap();
    let talkers = Talkers::start(&site, 2000..2020, Site::HYPERSPACE).unwrap();
    let records = where_they_are(&site);
    for wanted in
        [sized(65_536, 16_384, 32_768, 64), sized(8192, 1024, 8192, 16), sized(16_384, 1024, 16_384, 32)]
    {
        site.write_config(&wanted.yaml()).unwrap();
        site.kill_daemon(Signal::SIGKILL).unwrap();
        let newcomers = Newcomers::start(&site);
        site.start_daemon(&[]).unwrap();
        let (answered, failed) = newcomers.stop();
        println!("{}; {answered} new clients meanwhile", carried(&site));
        assert_eq!(failed, Vec::<String>::new());
        assert!(carried(&site).ends_with(" 0 were lost"), "{}", carried(&site));
        let now = where_they_are(&site);
        assert!(records.iter().all(|record| now.contains(record)), "{records:?}, and now {now:?}");
        assert_eq!(moved(&known, &homes(&site, CLIENTS, Site::HYPERSPACE).unwrap()), []);
    }
    let after = attached(&site).unwrap();
    assert_eq!(after.link, before.link, "it was never taken off");
    assert_ne!(after.program, before.program);
    println!("{} downloads were still running after three migrations", downloads.running());
    assert!(downloads.running() > 0);
    assert_eq!(talkers.stop().unwrap().broken, Vec::<String>::new());
    assert_eq!(downloads.finish(), Vec::<String>::new());
    // The daemon looks for rows that do not fit each other.
    thread::sleep(Duration::from_secs(3));
    let log = site.daemon_log();
    let mut repairs = log.lines().filter(|line| line.contains("left half-made"));
    assert!(repairs.all(|line| line.contains("slots: 0, ports: 0, records: 0")), "{log}");
}

#[test]
fn tables_that_are_too_small_are_refused_and_everything_goes_on() {
    let mut site = Site::with(Turn::shared(), options(), &sized(4096, 1024, 4096, 16)).unwrap();
    let before = attached(&site).unwrap();
    let known = homes(&site, 0..1200, Site::HYPERSPACE).unwrap();
    site.kill_daemon(Signal::SIGKILL).unwrap();
    site.write_config(&sized(4096, 1024, 1024, 16).yaml()).unwrap();
    let refused = site.refused_start(&site.config_path()).unwrap();
    println!("{}", said(&refused));
    assert!(said(&refused).contains("have no room") && said(&refused).contains("as it was"), "{refused:?}");
    assert_eq!(attached(&site).unwrap(), before);
    assert_eq!(moved(&known, &homes(&site, 0..1200, Site::HYPERSPACE).unwrap()), []);
    site.write_config(&sized(4096, 1024, 4096, 16).yaml()).unwrap();
    site.start_daemon(&[]).unwrap();
    assert_eq!(attached(&site).unwrap(), before);
}

#[test]
#[ignore = "needs steadfastd of an older layout, in the directory that STEADFAST_OLD_BIN_DIR names"]
fn an_older_build_is_replaced_under_downloads_and_does_not_come_back() {
    let old = PathBuf::from(env::var_os("STEADFAST_OLD_BIN_DIR").unwrap()).join("steadfastd");
    let mut site = Site::without_daemon(Turn::alone(), options()).unwrap();
    site.write_config(&Wanted::default().yaml()).unwrap();
    let run_old = |site: &Site| {
        let config = site.config_path();
        let mut command = site.command(Ns::Lb, &old, ["run", "--config"]);
        command.arg(config).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let template = site.program("steadfastd", &[]).unwrap();
        for (name, value) in template.get_envs() {
            command.env(name, value.unwrap());
        }
        command.spawn().unwrap()
    };
    let mut daemon = run_old(&site);
    let known = until("the old build serves", Duration::from_secs(60), || {
        Ok(homes(&site, CLIENTS, Site::HYPERSPACE).ok())
    })
    .unwrap()
    .0;
    let before = attached(&site).unwrap();
    let downloads = Downloads::start(&site, 0..DOWNLOADS, Site::HYPERSPACE).unwrap();
    thread::sleep(Duration::from_secs(1));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    site.start_daemon(&[]).unwrap();
    println!("{}", carried(&site));
    assert!(carried(&site).contains("the tables had layout "), "{}", carried(&site));
    assert!(carried(&site).ends_with(" 0 were lost"), "{}", carried(&site));
    assert_eq!(attached(&site).unwrap().link, before.link);
    assert_eq!(downloads.running(), DOWNLOADS);
    assert_eq!(moved(&known, &homes(&site, CLIENTS, Site::HYPERSPACE).unwrap()), []);
    site.kill_daemon(Signal::SIGKILL).unwrap();
    let refused = run_old(&site).wait_with_output().unwrap();
    println!("the older build: {}", said(&refused));
    assert!(
        !refused.status.success() && said(&refused).contains(&format!("layout {LAYOUT_VERSION}")),
        "{refused:?}"
    );
    site.start_daemon(&[]).unwrap();
    assert_eq!(downloads.finish(), Vec::<String>::new());
}
