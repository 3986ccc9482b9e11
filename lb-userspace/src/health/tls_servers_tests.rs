//! Probes of real TLS servers such as sites have them: `openssl s_server` with their keys, suites and rules.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::Verify;
use super::probe::{ProbeResult, probe};
use super::spec::{HttpCheck, ProbeKind, ProbeSpec, TlsName};
use super::state::Outcome;

/// A server process, ended with the value.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn openssl(directory: &Path, arguments: &[&str]) {
    let made = Command::new("openssl").args(arguments).current_dir(directory).output();
    let made = made.expect("openssl is needed: apt-get install openssl");
    assert!(made.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&made.stderr));
}

/// Makes `key.pem` and `cert.pem`.
fn certificate(directory: &Path, key: &[&str], more: &[&str]) {
    let usual = [
        "req", "-x509", "-nodes", "-days", "3650", "-subj", "/CN=x", "-keyout", "key.pem", "-out", "cert.pem",
    ];
    openssl(directory, &[&usual[..], key, more].concat());
}

fn serve(directory: &Path, arguments: &[&str]) -> Server {
    let mut process = Command::new("openssl")
        .args(["s_server", "-accept", "127.0.0.1:0", "-key", "key.pem", "-cert", "cert.pem", "-www"])
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is needed: apt-get install openssl");
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let address =
        lines.find_map(|line| line.unwrap().strip_prefix("ACCEPT ").map(|place| place.parse().unwrap()));
    let address = address.unwrap_or_else(|| panic!("s_server {arguments:?} did not start"));
    // Whoever does not read makes it wait.
    std::thread::spawn(move || lines.for_each(drop));
    Server { process, address }
}

async fn asked(kind: ProbeKind, server: &Server, verify: Verify) -> ProbeResult {
    let spec = ProbeSpec::new(kind, Duration::from_secs(30), None).unwrap().verifying(verify);
    probe(&spec, server.address).await
}

fn tls(name: Option<&str>) -> ProbeKind {
    ProbeKind::Tls(name.map(|name| TlsName::new(name).unwrap()))
}

/// Passes only where the status was asked, or could not be.
fn https() -> ProbeKind {
    ProbeKind::Https(HttpCheck::new("/", None, vec![200..=200], None).unwrap())
}

const RSA: &[&str] = &["-newkey", "rsa:2048"];
const WEAK: &str = "DEFAULT:@SECLEVEL=0";
const OFFERED: &str = "alert \"handshake failure\" to TLS 1.2/1.3 with ECDHE, AEAD";

/// What a server is like: its key and certificate, and how it is started.
struct Row {
    name: &'static str,
    key: &'static [&'static str],
    more: &'static [&'static str],
    serve: &'static [&'static str],
    /// What is noted, without the words before it.
    note: Option<&'static str>,
    /// Whether the status could be asked.
    asked: bool,
}

/// Nothing unusual.
const USUAL: Row = Row { name: "usual", key: RSA, more: &[], serve: &[], note: None, asked: true };

const ROWS: &[Row] = &[
    USUAL,
    Row {
        name: "ECDHE-RSA with CBC only",
        serve: &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA"],
        note: Some(OFFERED),
        asked: false,
        ..USUAL
    },
    Row {
        name: "RSA key exchange only",
        serve: &["-tls1_2", "-cipher", "AES128-GCM-SHA256"],
        note: Some(OFFERED),
        asked: false,
        ..USUAL
    },
    Row {
        name: "DHE only",
        serve: &["-tls1_2", "-cipher", "DHE-RSA-AES128-GCM-SHA256"],
        note: Some(OFFERED),
        asked: false,
        ..USUAL
    },
    Row { name: "P-521 only", serve: &["-groups", "P-521"], note: Some(OFFERED), asked: false, ..USUAL },
    Row {
        name: "TLS 1.0 only",
        serve: &["-tls1", "-cipher", WEAK],
        note: Some("alert \"protocol version\" to TLS 1.2/1.3 with ECDHE, AEAD"),
        asked: false,
        ..USUAL
    },
    Row {
        name: "an RSA key of 1024 bits",
        key: &["-newkey", "rsa:1024"],
        serve: &["-cipher", WEAK],
        note: Some("key RSA 1024"),
        ..USUAL
    },
    Row {
        name: "an RSA key of 1024 bits in TLS 1.2",
        key: &["-newkey", "rsa:1024"],
        serve: &["-tls1_2", "-cipher", WEAK],
        note: Some("key RSA 1024"),
        ..USUAL
    },
    Row {
        name: "a key of P-521",
        key: &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
        note: Some("key P-521"),
        ..USUAL
    },
    Row {
        name: "a key of P-521 in TLS 1.2",
        key: &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
        serve: &["-tls1_2"],
        note: Some(OFFERED),
        asked: false,
        ..USUAL
    },
    Row {
        name: "a key for RSA-PSS",
        key: &["-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"],
        note: Some("key for RSA-PSS only"),
        ..USUAL
    },
    Row {
        name: "an unknown critical extension",
        more: &["-addext", "1.2.3.4=critical,ASN1:UTF8String:x"],
        note: Some("unknown critical extension 1.2.3.4"),
        ..USUAL
    },
    Row {
        name: "a required client certificate in TLS 1.3",
        serve: &["-tls1_3", "-Verify", "1", "-verify_return_error"],
        note: Some("asks for a client certificate"),
        asked: false,
        ..USUAL
    },
    Row {
        name: "a wished client certificate",
        serve: &["-verify", "1"],
        note: Some("asks for a client certificate"),
        ..USUAL
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_answers_the_hello_is_alive_whatever_its_suites_key_and_certificate_are() {
    for row in ROWS {
        let directory = tempfile::tempdir().unwrap();
        certificate(directory.path(), row.key, row.more);
        let server = serve(directory.path(), row.serve);
        for (kind, what, has_session) in
            [(tls(None), "no TLS session", row.asked), (https(), "HTTP status not asked", row.asked)]
        {
            let found = asked(kind, &server, Verify::None).await;
            assert_eq!(found.outcome, Outcome::Ok, "{}: {what}", row.name);
            let note = found.note.unwrap_or_default();
            // For the client, a handshake of TLS 1.3 is complete before the server misses its certificate.
            let has_session = has_session || row.name.ends_with("TLS 1.3") && what == "no TLS session";
            match row.note {
                None => assert_eq!(note, "", "{}", row.name),
                Some(expected) if has_session => assert_eq!(note, expected, "{}", row.name),
                Some(expected) => assert_eq!(note, format!("{what}: {expected}"), "{}", row.name),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_session_for_other_reasons_is_alive_too() {
    // X.509 v1 has no extensions, and openssl makes it of a request.
    let old = tempfile::tempdir().unwrap();
    certificate(old.path(), RSA, &[]);
    openssl(old.path(), &["req", "-new", "-key", "key.pem", "-subj", "/CN=x", "-out", "request.pem"]);
    openssl(
        old.path(),
        &["x509", "-req", "-in", "request.pem", "-signkey", "key.pem", "-days", "3650", "-out", "cert.pem"],
    );
    let server = serve(old.path(), &[]);
    let found = asked(https(), &server, Verify::None).await;
    assert_eq!((found.outcome, found.note.as_deref()), (Outcome::Ok, Some("certificate of X.509 v1")));

    let pss = tempfile::tempdir().unwrap();
    certificate(pss.path(), &["-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"], &[]);
    for (directory, arguments, says) in [
        (&pss, &["-tls1_2"][..], "it chose TLS 1.2, suite 0xc0"),
        (
            &old,
            &["-tls1_2", "-Verify", "1", "-verify_return_error"],
            "alert \"handshake failure\" after TLS 1.2",
        ),
    ] {
        let server = serve(directory.path(), arguments);
        let found = asked(https(), &server, Verify::None).await;
        assert_eq!(found.outcome, Outcome::Ok, "{arguments:?}");
        let note = found.note.unwrap();
        assert!(note.starts_with(&format!("HTTP status not asked: {says}")), "{arguments:?}: {note}");
    }
}

/// A server with a certificate of its own authority for `mychart.example`, and that authority's file.
fn signed() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let san =
        ["-addext", "subjectAltName=DNS:mychart.example", "-addext", "basicConstraints=critical,CA:FALSE"];
    certificate(directory.path(), RSA, &["-addext", "keyUsage=keyCertSign"]);
    for file in ["key.pem", "cert.pem"] {
        std::fs::rename(directory.path().join(file), directory.path().join(format!("ca-{file}"))).unwrap();
    }
    certificate(directory.path(), RSA, &[&san[..], &["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"]].concat());
    let authority = directory.path().join("ca-cert.pem");
    (directory, authority)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_configuration_asks_chain_and_name_count() {
    let (directory, authority) = signed();
    let server = serve(directory.path(), &[]);
    let verify = Verify::File(authority);
    let good = asked(tls(Some("mychart.example")), &server, verify.clone()).await;
    assert_eq!(good.outcome, Outcome::Ok);
    for (name, verify, why) in [
        (
            "other.example",
            verify.clone(),
            "the server's certificate is not accepted: certificate not valid for name",
        ),
        ("mychart.example", Verify::System, "the server's certificate is not accepted: "),
    ] {
        let found = asked(tls(Some(name)), &server, verify).await;
        let Outcome::Failed(reason) = &found.outcome else { panic!("{name}: {:?}", found.outcome) };
        assert!(reason.starts_with(why), "{name}: {reason}");
        assert_eq!(asked(tls(Some(name)), &server, Verify::None).await.outcome, Outcome::Ok, "not asked for");
    }
    // What this machine lacks says nothing about the server.
    let gone = Verify::File(directory.path().join("none.pem"));
    let found = asked(tls(Some("mychart.example")), &server, gone).await;
    let Outcome::NoVerdict(reason) = &found.outcome else { panic!("{:?}", found.outcome) };
    assert!(reason.starts_with("cannot read the certificate authorities in "), "{reason}");

    let strict = serve(directory.path(), &["-tls1_2", "-cipher", "AES128-GCM-SHA256"]);
    let found = asked(tls(Some("mychart.example")), &strict, verify).await;
    assert!(matches!(found.outcome, Outcome::Failed(_)), "nothing could be verified: {:?}", found.outcome);
}
