//! The balancer's coming and going on its host, and what it refuses to do there.
#![cfg(test)]

use std::{fs, net::IpAddr, time::Duration};

use tests::{
    e2e::{
        Site, Talkers, Turn, Wanted,
        crowd::moved,
        homes,
        kernel::{self, host_state},
        site::said,
        until,
    },
    lab::{CLIENT, HYPERSPACE, INTERFACE, LabOptions, MYCHART, Ns, Port443, Signal},
};

const PATIENCE: Duration = Duration::from_secs(60);

fn idle_site() -> Site {
    let options = LabOptions { port_443: Port443::Plain, ..LabOptions::default() };
    Site::without_daemon(Turn::shared(), options).unwrap()
}

#[test]
fn the_data_path_outlives_the_daemon_until_it_is_detached_and_then_the_host_is_as_before() {
    let mut site = idle_site();
    let before = host_state(&site).unwrap();
    site.write_config(&Wanted::default().yaml()).unwrap();
    site.start_daemon(&[]).unwrap();
    site.wait_until_reachable().unwrap();
    assert_ne!(host_state(&site).unwrap(), before);
    let attached = kernel::attached(&site).unwrap();
    let talkers = Talkers::start(&site, 0..40, Site::HYPERSPACE).unwrap();
    let known = homes(&site, 0..100, Site::HYPERSPACE).unwrap();

    let status = site.kill_daemon(Signal::SIGTERM).unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(kernel::attached(&site).unwrap(), attached);
    for address in [HYPERSPACE, MYCHART] {
        assert!(has_address(&site, address.into()), "{address} went with the daemon");
    }
    assert_eq!(moved(&known, &homes(&site, 0..100, Site::HYPERSPACE).unwrap()), []);
    homes(&site, 100..200, Site::HYPERSPACE).unwrap();
    let talked = talkers.stop().unwrap();
    assert_eq!(talked.broken, Vec::<String>::new());
    drop(talked);

    let output = site.daemon_command(&["detach"]).unwrap();
    assert!(output.status.success(), "{}", said(&output));
    println!("detach: {}", said(&output));
    assert_eq!(kernel::xdp_on(&site, Ns::Lb, INTERFACE).unwrap(), None);
    until("the program is unloaded", PATIENCE, || Ok((!kernel::is_loaded(attached.program)).then_some(())))
        .unwrap();
    let pins = fs::read_dir(&site.places().pins);
    let left: Vec<_> = pins.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let after = host_state(&site).unwrap();
    let (gone, new) = (&before - &after, &after - &before);
    assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
    assert!(site.who_answers(CLIENT, HYPERSPACE, 443).is_err());

    assert!(!site.places().runtime.exists());
    let again = site.daemon_command(&["detach"]).unwrap();
    assert!(again.status.success(), "a second time: {}", said(&again));
    assert!(!site.places().runtime.exists());
    // And it can start again, from nothing.
    site.start_daemon(&[]).unwrap();
    site.wait_until_reachable().unwrap();
    homes(&site, 0..20, Site::HYPERSPACE).unwrap();
}

#[test]
fn whatever_is_removed_from_under_a_running_daemon_is_made_again_and_nobody_notices() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let attached = kernel::attached(&site).unwrap();
    let talkers = Talkers::start(&site, 0..40, Site::HYPERSPACE).unwrap();
    let known = homes(&site, 0..100, Site::HYPERSPACE).unwrap();
    // It has no second in which to make anything again before detach has looked.
    let daemon = nix::unistd::Pid::from_raw(i32::try_from(site.daemon_pid().unwrap()).unwrap());
    nix::sys::signal::kill(daemon, Signal::SIGSTOP).unwrap();
    fs::remove_dir_all(&site.places().runtime).unwrap();
    let refused = site.daemon_command(&["detach"]).unwrap();
    nix::sys::signal::kill(daemon, Signal::SIGCONT).unwrap();
    assert!(!refused.status.success(), "{}", said(&refused));
    assert!(said(&refused).contains(&format!("process {daemon}")), "{}", said(&refused));
    assert!(has_address(&site, HYPERSPACE.into()), "detach took the addresses before it had the lock");

    for directory in ["links", "maps", "programs", ""] {
        fs::remove_dir_all(site.places().pins.join(directory)).unwrap();
        until("everything is pinned again", Duration::from_secs(30), || {
            Ok(site.done(&["vip", "show"]).is_ok().then_some(()))
        })
        .unwrap();
        until("the link is", Duration::from_secs(30), || {
            Ok((kernel::attached(&site)? == attached).then_some(()))
        })
        .unwrap();
    }
    until("commands reach the daemon", Duration::from_secs(30), || {
        Ok(site.done(&["server", "drain", "Hyperspace/Hyperspace_Srv_1"]).is_ok().then_some(()))
    })
    .unwrap();
    assert_eq!(moved(&known, &homes(&site, 0..100, Site::HYPERSPACE).unwrap()), []);
    assert_eq!(talkers.stop().unwrap().broken, Vec::<String>::new());
}

fn has_address(site: &Site, address: IpAddr) -> bool {
    let shown = kernel::ip_json(site, Ns::Lb, &["addr", "show", INTERFACE]).unwrap();
    let infos = shown[0]["addr_info"].as_array().unwrap();
    infos.iter().any(|info| info["local"] == address.to_string())
}

/// A start that must fail and leave the host as it was: what it said.
fn refusal(site: &Site, what: &str, yaml: &str) -> String {
    let before = host_state(site).unwrap();
    site.write_config(yaml).unwrap();
    let output = site.refused_start(&site.config_path()).unwrap();
    let complaint = said(&output);
    println!("{what}: {complaint}");
    assert_eq!(output.status.code(), Some(1), "{what}: {complaint}");
    let after = host_state(site).unwrap();
    assert_eq!(before, after, "{what}");
    let pins = fs::read_dir(&site.places().pins);
    let left: Vec<_> = pins.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{what}: {left:?}");
    for directory in [&site.places().runtime, &site.places().state] {
        assert!(!directory.exists(), "{what}: {} was left behind", directory.display());
    }
    complaint
}

#[test]
fn another_program_on_the_interface_is_named_and_left_alone() {
    let mut site = idle_site();
    let foreign = kernel::attach_foreign(&site, INTERFACE).unwrap();
    let program = kernel::xdp_on(&site, Ns::Lb, INTERFACE).unwrap().unwrap();
    let complaint = refusal(&site, "another program", &Wanted::default().yaml());
    assert!(complaint.contains("xdp_pass"), "{complaint}");
    assert!(complaint.contains(&program.to_string()), "{complaint}");
    assert!(complaint.contains(INTERFACE), "{complaint}");
    assert_eq!(kernel::xdp_on(&site, Ns::Lb, INTERFACE).unwrap(), Some(program));
    drop(foreign);
    site.start_daemon(&[]).unwrap();
    site.wait_until_reachable().unwrap();
    homes(&site, 0..10, Site::HYPERSPACE).unwrap();
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let site = Site::plain(Turn::shared(), &Wanted::default()).unwrap();
    let attached = kernel::attached(&site).unwrap();
    let before = host_state(&site).unwrap();
    let output = site.refused_start(&site.config_path()).unwrap();
    let complaint = said(&output);
    println!("a second daemon: {complaint}");
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    let pid = site.daemon_pid().unwrap().to_string();
    assert!(complaint.contains("running") && complaint.contains(&pid), "{complaint}");
    assert_eq!(kernel::attached(&site).unwrap(), attached);
    assert_eq!(host_state(&site).unwrap(), before);
    homes(&site, 0..10, Site::HYPERSPACE).unwrap();
    site.done(&["server", "drain", "Hyperspace/Hyperspace_Srv_1"]).unwrap();
}

#[test]
fn what_the_host_cannot_do_is_refused_in_one_sentence() {
    let site = idle_site();
    let on_lo = |mode: &str| {
        let wanted = Wanted {
            node: format!("  xdp_mode: {mode}\n  snat_addresses: [192.168.85.10]\n"),
            ..Wanted::default()
        };
        wanted.yaml().replace("[eth0]", "[lo]")
    };
    let complaint = refusal(&site, "native on lo", &on_lo("native"));
    assert!(complaint.contains("lo") && complaint.contains("native"), "{complaint}");
    assert!(complaint.lines().count() <= 2, "{complaint}");
    let wanted = Wanted { node: "  snat_ports: 40000-50000\n".to_owned(), ..Wanted::default() };
    let complaint = refusal(&site, "SNAT ports among the ephemeral ones", &wanted.yaml());
    assert!(complaint.contains("40000-50000") && complaint.contains("32768-60999"), "{complaint}");
    site.in_ns(Ns::Lb, || fs::write("/proc/sys/net/ipv4/ip_local_port_range", "20000 29999"))
        .unwrap()
        .unwrap();
    let complaint = refusal(&site, "ephemeral ports among the SNAT ports", &Wanted::default().yaml());
    assert!(complaint.contains("20000-29999"), "{complaint}");
}
