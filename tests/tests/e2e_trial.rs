//! `steadfastd run --confirm-within`: an attachment that undoes itself.
#![cfg(test)]

use std::{collections::BTreeSet, fs, thread, time::Duration};

use tests::{
    e2e::{
        Site, Turn, Wanted, homes,
        kernel::{attached, host_state},
        site::said,
        until,
    },
    lab::{LabOptions, Port443, Signal},
};

const WITHIN: &str = "8s";
/// That, what the guard leaves to the daemon, and a busy machine.
const UNDONE_WITHIN: Duration = Duration::from_secs(60);

/// A site on trial, and what its host was like before.
fn on_trial() -> (Site, BTreeSet<String>) {
    let options = LabOptions { port_443: Port443::Plain, ..LabOptions::default() };
    let mut site = Site::without_daemon(Turn::shared(), options).unwrap();
    let before = host_state(&site).unwrap();
    site.write_config(&Wanted::default().yaml()).unwrap();
    site.start_daemon(&["--confirm-within", WITHIN]).unwrap();
    assert_ne!(host_state(&site).unwrap(), before);
    let log = site.daemon_log();
    assert!(log.contains("on trial: unless `steadfast prog confirm` comes before 2"), "{log}");
    (site, before)
}

fn undone(site: &Site, before: &BTreeSet<String>) {
    let ((), took) =
        until("the host is as before", UNDONE_WITHIN, || Ok((host_state(site)? == *before).then_some(())))
            .unwrap_or_else(|error| {
                let after = host_state(site).unwrap();
                panic!("{error:#}: gone {:#?}, new {:#?}", before - &after, &after - before)
            });
    println!("the host is as before after {took:?}");
    let pins = fs::read_dir(&site.places().pins);
    let left: Vec<_> = pins.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_nobody_confirms_is_undone_also_when_the_operators_session_ends() {
    let (site, before) = on_trial();
    site.wait_until_reachable().unwrap();
    homes(&site, 0..10, Site::HYPERSPACE).unwrap();
    let doctor = site.cli(&["doctor"]).unwrap();
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(text.contains("attached for a trial") && text.contains("prog confirm"), "{text}");
    // What the end of an ssh session sends.
    let daemon = i32::try_from(site.daemon_pid().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), Signal::SIGHUP).unwrap();
    undone(&site, &before);
    assert!(site.daemon_log().contains("not confirmed: it is undone"), "{}", site.daemon_log());
}

#[test]
fn a_dead_daemon_does_not_keep_it() {
    let (mut site, before) = on_trial();
    site.kill_daemon(Signal::SIGKILL).unwrap();
    attached(&site).unwrap();
    undone(&site, &before);
}

#[test]
fn stopping_the_daemon_undoes_it_at_once() {
    let (mut site, before) = on_trial();
    let status = site.kill_daemon(Signal::SIGTERM).unwrap();
    assert!(status.success(), "{status}");
    undone(&site, &before);
}

#[test]
fn what_is_confirmed_stays_and_the_next_start_has_nothing_to_confirm() {
    let (mut site, _) = on_trial();
    let done = site.done(&["prog", "confirm"]).unwrap();
    println!("{done}");
    let kept = attached(&site).unwrap();
    thread::sleep(Duration::from_secs(10));
    assert_eq!(attached(&site).unwrap(), kept);
    site.kill_daemon(Signal::SIGTERM).unwrap();
    assert_eq!(attached(&site).unwrap(), kept);
    site.start_daemon(&["--confirm-within", "3s"]).unwrap();
    let log = site.daemon_log();
    assert!(log.contains("there is nothing to confirm"), "{log}");
    thread::sleep(Duration::from_secs(5));
    assert_eq!(attached(&site).unwrap(), kept);
    let again = site.cli(&["prog", "confirm"]).unwrap();
    assert!(again.status.success() && said(&again).contains("nothing to confirm"), "{again:?}");
    let bad = site.daemon_command(&["run", "--config", "x", "--confirm-within", "1s"]).unwrap();
    assert_eq!(bad.status.code(), Some(2), "{bad:?}");
}
