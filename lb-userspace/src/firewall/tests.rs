use lb_common::address::Address;
use lb_common::service::{IndexEntry, Spread};

use super::*;
use crate::net::testing::Namespace;

fn place(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn guarded() -> Guarded {
    Guarded {
        services: ["192.0.2.150:443", "192.0.2.150:8443", "[2001:db8::150]:443"].map(place).into(),
        servers: ["192.0.2.20:443"].map(place).into(),
        nat_servers: ["192.0.2.21:443", "[2001:db8::21]:443"].map(place).into(),
        sources: ["192.0.2.10".parse().unwrap()].into(),
        ports: (1024, 32767),
    }
}

/// What the text of a namespace's whole ruleset is.
fn ruleset() -> String {
    let output = std::process::Command::new("/usr/sbin/nft").args(["list", "ruleset"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_kernel_takes_the_table_and_what_is_read_back_is_what_was_wanted() {
    Namespace::new().run(async || {
        assert_eq!(look().unwrap(), None);
        let mut wanted = guarded();
        put(&wanted).unwrap();
        let there = look().unwrap().unwrap();
        assert!(there.is(&wanted.expected()), "{there:?} is not {:?}", wanted.expected());
        let text = ruleset();
        assert!(text.contains("192.0.2.150 . 8443") && text.contains("2001:db8::150 . 443"), "{text}");
        // A commit: the same table with another content, not a second one.
        wanted.services.remove(&place("192.0.2.150:8443"));
        assert!(!there.is(&wanted.expected()));
        put(&wanted).unwrap();
        assert!(look().unwrap().unwrap().is(&wanted.expected()));
        assert!(!ruleset().contains("8443"));
        assert_eq!(ruleset().matches("table ").count(), 1);
        // Who speaks with servers directly is not ours to forget.
        let known = "add element inet steadfast direct4 { 192.0.2.99 . 192.0.2.21 }";
        assert!(std::process::Command::new("/usr/sbin/nft").arg(known).status().unwrap().success());
        assert!(look().unwrap().unwrap().is(&wanted.expected()));
        wanted.nat_servers.remove(&place("[2001:db8::21]:443"));
        put(&wanted).unwrap();
        assert!(look().unwrap().unwrap().is(&wanted.expected()));
        assert!(ruleset().contains("192.0.2.99 . 192.0.2.21"));
    });
}

#[test]
fn a_table_that_somebody_has_changed_is_made_anew_and_others_tables_are_left_alone() {
    Namespace::new().run(async || {
        let nft = |script: &str| {
            let output = std::process::Command::new("/usr/sbin/nft").arg(script).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        nft("table inet filter { chain input { type filter hook input priority filter; tcp dport 22 accept; }; }");
        let wanted = guarded();
        let mut follower = Follower::default();
        follower.follow(&wanted).unwrap();
        for change in [
            "flush chain inet steadfast input",
            "delete element inet steadfast services4 { 192.0.2.150 . 443 }",
            "flush chain inet steadfast forward",
            "add rule inet steadfast input accept",
            "add chain inet steadfast more; add rule inet steadfast more accept",
            "delete chain inet steadfast forward; add chain inet steadfast forward { type filter hook forward priority 7; }",
            "delete table inet steadfast",
        ] {
            nft(change);
            let there = look().unwrap();
            assert!(!there.is_some_and(|there| there.is(&wanted.expected())), "{change} is not seen");
            follower.follow(&wanted).unwrap();
            assert!(look().unwrap().unwrap().is(&wanted.expected()), "{change} is not mended");
        }
        assert!(remove().unwrap());
        assert!(!remove().unwrap());
        let left = ruleset();
        assert!(left.contains("tcp dport 22 accept") && !left.contains("steadfast"), "{left}");
    });
}

#[test]
fn what_the_index_holds_is_guarded_but_not_what_the_daemon_answers_itself() {
    let maps = crate::dataplane::fake::maps(crate::dataplane::fake::FakeKernel::default());
    let control = maps.control();
    control.snat.store(Snat { first_port: 1024, ports: 31_744, sources: 1, sources_v6: 0 }.word());
    for (word, value) in control.sources[0].iter().zip(Address::from(IpAddr::from([192, 0, 2, 10])).0) {
        word.store(value);
    }
    let entry = |address: &str, kind| {
        let place = place(address);
        IndexEntry {
            address: place.ip().into(),
            port: place.port().to_be(),
            protocol: 6,
            kind,
            id: 0,
            service_port: 0,
        }
    };
    let entries = [
        entry("192.0.2.150:443", EntryKind::Service),
        entry("192.0.2.150:80", EntryKind::Local),
        entry("192.0.2.150:0", EntryKind::Address),
        entry("192.0.2.20:443", EntryKind::Endpoint),
        entry("192.0.2.21:443", EntryKind::NatEndpoint),
    ];
    let laid_out = lb_common::service::layout(Spread::Hashed, &maps.key(), &entries).unwrap();
    for (slot, words) in maps.service_index.iter().zip(laid_out) {
        for (word, value) in slot.iter().zip(words) {
            word.store(value);
        }
    }
    control.generation.store(0);
    assert_eq!(
        Guarded::of(&maps),
        Guarded {
            services: [place("192.0.2.150:443")].into(),
            servers: [place("192.0.2.20:443")].into(),
            nat_servers: [place("192.0.2.21:443")].into(),
            sources: ["192.0.2.10".parse().unwrap()].into(),
            ports: (1024, 32767),
        }
    );
}

#[test]
fn dropped_packets_are_summed_over_both_families() {
    let rule = |comment: &str, packets: u64| serde_json::json!({ "rule": { "comment": comment, "expr": [{ "counter": { "packets": packets } }] } });
    let listing = serde_json::json!({ "nftables": [
        rule("services ab", 3), rule("services ab", 4), rule("servers ab", 5),
        { "set": { "elem": [1, 2] } }, { "set": {} },
    ] });
    let there = read(listing.to_string().as_bytes()).unwrap();
    let wanted = InForce { mark: "ab".to_owned(), rules: 3, elements: 2, from_clients: 7, from_servers: 5 };
    assert_eq!(there, wanted);
    assert!(read(b"{}").is_err() && read(b"").is_err());
}
