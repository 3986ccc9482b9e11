//! What a hospital's balancer goes through in years, in half a minute each, under 200 running downloads and 300 clients
//! with records.
#![cfg(test)]

use std::{
    thread,
    time::{Duration, Instant},
};

use tests::{
    e2e::{Turn, busy::Busy},
    lab::{Ns, Signal},
};

fn busy(seconds: u64) -> Busy {
    Busy::start(Turn::shared(), seconds).unwrap()
}

/// Nobody has noticed anything, and the downloads lasted until now.
fn nobody_noticed(busy: Busy) {
    assert_eq!(busy.unbroken().unwrap().counted, 0, "counts end at zero");
}

#[test]
fn twenty_deaths_of_the_daemon_break_no_connection() {
    let mut busy = busy(40);
    let begun = Instant::now();
    let mut deaths = 0;
    while deaths < 20 {
        busy.site.kill_daemon(Signal::SIGKILL).unwrap();
        busy.site.start_daemon(&[]).unwrap();
        // Each at another point of its start.
        thread::sleep(Duration::from_millis(37 * deaths % 200));
        deaths += 1;
    }
    println!("{deaths} deaths in {:?}", begun.elapsed());
    nobody_noticed(busy);
}

#[test]
fn changes_in_a_row_break_no_connection_and_move_nobody() {
    const NEW: &str = "Hyperspace/Hyperspace_Srv_4";
    let mut busy = busy(25);
    let index = busy.site.add_server("Hyperspace_Srv_4", 203).unwrap();
    busy.site.start_nginx(index).unwrap();
    let begun = Instant::now();
    for _ in 0..12 {
        for change in [
            &["server", "add", NEW, "--address", "192.168.85.203"][..],
            &["server", "drain", "Hyperspace/Hyperspace_Srv_1"],
            &["server", "set", "Hyperspace/Hyperspace_Srv_2", "--weight", "7"],
            &["server", "drain", NEW],
            &["server", "online", "Hyperspace/Hyperspace_Srv_1"],
            &["server", "set", "Hyperspace/Hyperspace_Srv_2", "--weight", "100"],
            &["server", "remove", NEW],
        ] {
            busy.site.done(change).unwrap();
        }
    }
    println!("12 rounds of 7 changes in {:?}", begun.elapsed());
    nobody_noticed(busy);
}

#[test]
fn an_interface_that_goes_down_and_comes_back_breaks_no_connection() {
    let busy = busy(40);
    let routes = "route replace 10.85.0.0/16 via 192.168.85.100";
    for _ in 0..5 {
        // Shorter than the health checks need to lose a server: fall x interval.
        busy.site.ip(Ns::Lb, "link set eth0 down").unwrap();
        thread::sleep(Duration::from_millis(700));
        // The kernel forgets an interface's routes when it goes down; the host's own configuration brings them back.
        busy.site.ip(Ns::Lb, &format!("link set eth0 up\n{routes}")).unwrap();
        thread::sleep(Duration::from_secs(3));
    }
    busy.site.wait_until_reachable().unwrap();
    nobody_noticed(busy);
}
