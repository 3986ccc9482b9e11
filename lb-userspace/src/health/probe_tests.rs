//! Probes of real listeners on loopback.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::probe::{ProbeResult, probe};
use super::spec::{HttpCheck, ProbeKind, ProbeSpec, TlsName};
use super::state::Outcome;
use super::tls::expiry;

const PATIENT: Duration = Duration::from_secs(30);
const HASTY: Duration = Duration::from_millis(150);

async fn probing(kind: ProbeKind, limit: Duration, target: SocketAddr) -> ProbeResult {
    probe(&ProbeSpec::new(kind, limit, None).unwrap(), target).await
}

async fn outcome(kind: ProbeKind, limit: Duration, target: SocketAddr) -> Outcome {
    probing(kind, limit, target).await.outcome
}

fn failed(reason: &str) -> Outcome {
    Outcome::Failed(reason.to_owned())
}

/// A listener that gives its first connection to `serve`, whose value the task returns.
async fn listener<F, T>(serve: impl FnOnce(TcpStream) -> F + Send + 'static) -> (SocketAddr, JoinHandle<T>)
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    listener_on("127.0.0.1:0", serve).await
}

/// The same at an address of the caller's.
pub(super) async fn listener_on<F, T>(
    place: &str,
    serve: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (SocketAddr, JoinHandle<T>)
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let listener = TcpListener::bind(place).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move { serve(listener.accept().await.unwrap().0).await });
    (address, task)
}

/// Accepts, and never says a word.
async fn silent() -> (SocketAddr, JoinHandle<()>) {
    listener(|mut stream| async move { while stream.read_u8().await.is_ok() {} }).await
}

/// Answers anything with these bytes, and closes.
async fn answering(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> (SocketAddr, JoinHandle<String>) {
    listener(|mut stream| async move { answer_request(&mut stream, answer.as_ref()).await }).await
}

pub(super) async fn answer_request(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    answer: &[u8],
) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => break,
        }
    }
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
    String::from_utf8_lossy(&request).into_owned()
}

async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn http(path: &str, host: Option<&str>, body: Option<&str>) -> HttpCheck {
    HttpCheck::new(path, host, vec![], body.map(str::to_owned)).unwrap()
}

fn http_body(body: &str) -> ProbeKind {
    ProbeKind::Http(http("/", None, Some(body)))
}

pub(super) struct Certificate {
    der: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

pub(super) fn certificate(not_after_year: i32) -> Certificate {
    let mut params = rcgen::CertificateParams::new(vec!["mychart.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(not_after_year, 2, 3);
    let key = rcgen::KeyPair::generate().unwrap();
    let der = params.self_signed(&key).unwrap().der().clone();
    Certificate { der, key: PrivateKeyDer::try_from(key.serialize_der()).unwrap() }
}

pub(super) fn server_config(
    version: &'static rustls::SupportedProtocolVersion,
    certificate: Certificate,
) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der], certificate.key)
        .unwrap()
}

/// A TLS server for one connection; returns the name asked for and the request.
async fn tls_server(
    config: ServerConfig,
    answer: &'static str,
) -> (SocketAddr, JoinHandle<Option<(String, String)>>) {
    let acceptor = TlsAcceptor::from(Arc::new(config));
    listener(move |stream| async move {
        let mut stream = acceptor.accept(stream).await.ok()?;
        let name = stream.get_ref().1.server_name().unwrap_or("").to_owned();
        let request = answer_request(&mut stream, answer.as_bytes()).await;
        Some((name, request))
    })
    .await
}

#[tokio::test]
async fn a_syn_without_an_answer_is_lost() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // Nobody accepts: when its queue is full the kernel drops SYNs.
    let mut queue = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        queue.push(stream.unwrap());
        assert!(queue.len() < 20);
    }
    let found = outcome(ProbeKind::Tcp, HASTY, address).await;
    assert_eq!(found, Outcome::Lost("timed out after 150ms while connecting".to_owned()));
}

#[tokio::test]
async fn no_probe_sends_nothing_and_is_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert_eq!(outcome(ProbeKind::None, PATIENT, listener.local_addr().unwrap()).await, Outcome::Ok);
    assert!(tokio::time::timeout(Duration::from_millis(50), listener.accept()).await.is_err());
}

#[tokio::test]
async fn an_open_port_is_up_and_a_closed_one_is_refused() {
    let (address, _server) = silent().await;
    assert_eq!(outcome(ProbeKind::Tcp, PATIENT, address).await, Outcome::Ok);
    assert_eq!(outcome(ProbeKind::Tcp, PATIENT, closed_port().await).await, failed("connection refused"));
}

#[tokio::test]
async fn a_tcp_probe_does_not_reset_a_server_that_speaks_first() {
    let (address, server) = listener(|mut stream| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        sleep(Duration::from_millis(100)).await;
        let end = stream.read(&mut [0; 8]).await;
        stream.write_all(b"221 bye\r\n").await.unwrap();
        drop(stream);
        end
    })
    .await;
    assert_eq!(outcome(ProbeKind::Tcp, PATIENT, address).await, Outcome::Ok);
    assert_eq!(server.await.unwrap().expect("the probe reset the connection"), 0);
}

#[tokio::test]
async fn a_server_that_keeps_its_half_open_does_not_hold_the_probe() {
    let (address, server) = listener(|mut stream| async move {
        while stream.read_u8().await.is_ok() {}
        std::future::pending::<()>().await;
    })
    .await;
    let probing = probing(ProbeKind::Tcp, PATIENT, address);
    let result = tokio::time::timeout(Duration::from_secs(60), probing).await.expect("the probe was held");
    assert_eq!(result.outcome, Outcome::Ok);
    server.abort();
}

#[tokio::test]
async fn the_source_address_is_the_one_asked_for() {
    let (address, server) = listener(|stream| async move { stream.peer_addr().unwrap().ip() }).await;
    let source: IpAddr = "127.0.0.77".parse().unwrap();
    let spec = ProbeSpec::new(ProbeKind::Tcp, PATIENT, Some(source)).unwrap();
    assert_eq!(probe(&spec, address).await.outcome, Outcome::Ok);
    assert_eq!(server.await.unwrap(), source);

    for elsewhere in ["192.0.2.1", "2001:db8::1"] {
        let spec = ProbeSpec::new(ProbeKind::Tcp, PATIENT, Some(elsewhere.parse().unwrap())).unwrap();
        // An address that this machine has not is no sign of a dead server.
        let Outcome::NoVerdict(reason) = probe(&spec, address).await.outcome else {
            panic!("connected from {elsewhere}, or blamed the server")
        };
        assert!(reason.starts_with(&format!("cannot connect from source address {elsewhere}: ")), "{reason}");
    }
}

#[tokio::test]
async fn any_certificate_is_up_and_its_expiry_is_reported() {
    for (version, year, expires) in [
        (&rustls::version::TLS13, 2031, "2031-02-03T00:00:00Z"),
        (&rustls::version::TLS12, 2031, "2031-02-03T00:00:00Z"),
        (&rustls::version::TLS13, 2009, "2009-02-03T00:00:00Z"),
    ] {
        let (address, server) = tls_server(server_config(version, certificate(year)), "").await;
        let result = probing(ProbeKind::Tls(None), PATIENT, address).await;
        assert_eq!(result.outcome, Outcome::Ok, "{version:?} {year}");
        assert_eq!(result.certificate_expires.unwrap().to_string(), expires);
        assert_eq!(
            server.await.unwrap(),
            Some((String::new(), String::new())),
            "an address is not sent as SNI"
        );
    }
}

#[tokio::test]
async fn a_tls_probe_asks_for_the_given_name() {
    let (address, server) = tls_server(server_config(&rustls::version::TLS13, certificate(2031)), "").await;
    let kind = ProbeKind::Tls(Some(TlsName::new("other.example").unwrap()));
    assert_eq!(outcome(kind, PATIENT, address).await, Outcome::Ok);
    assert_eq!(server.await.unwrap().unwrap().0, "other.example");
}

#[test]
fn a_certificate_without_end_expires_at_the_end_of_time() {
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone();
    assert_eq!(expiry(&der), Some(jiff::Timestamp::MAX));
    assert_eq!(expiry(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])), None);
}

#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[tokio::test]
async fn a_server_without_its_certificates_key_is_down() {
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let provider = ring::default_provider();
        let wrong_key = provider.key_provider.load_private_key(certificate(2031).key).unwrap();
        let pair = CertifiedKey::new(vec![certificate(2031).der], wrong_key);
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Fixed(Arc::new(pair))));
        let (address, _server) = tls_server(config, "").await;
        assert_eq!(
            outcome(ProbeKind::Tls(None), PATIENT, address).await,
            failed("the server's certificate does not fit its handshake (bad signature)")
        );
    }
}

#[tokio::test]
async fn an_alert_is_an_answer_and_what_it_says_is_noted() {
    let mut config = server_config(&rustls::version::TLS13, certificate(2031));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (address, _server) = tls_server(config, "").await;
    let result = probing(ProbeKind::Https(http("/", None, None)), PATIENT, address).await;
    let note = "HTTP status not asked: alert \"no application protocol\" after TLS 1.3, suite 0x1302";
    assert_eq!((result.outcome, result.note.as_deref()), (Outcome::Ok, Some(note)));
}

#[tokio::test]
async fn a_tls_probe_of_something_else_says_so() {
    let tls = || ProbeKind::Tls(None);
    let (address, _server) = listener(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        while stream.read_u8().await.is_ok() {}
    })
    .await;
    assert_eq!(outcome(tls(), PATIENT, address).await, failed("the answer is not TLS"));

    let (address, _server) = listener(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    let closed = failed("the server closed the connection during TLS handshake");
    assert_eq!(outcome(tls(), PATIENT, address).await, closed);

    let (address, _server) = silent().await;
    let late = probing(tls(), HASTY, address).await;
    assert_eq!(late.outcome, failed("timed out after 150ms during TLS handshake"));
    assert_eq!(outcome(tls(), PATIENT, closed_port().await).await, failed("connection refused"));
}

#[tokio::test]
async fn an_http_probe_asks_for_its_path_and_host() {
    let (address, server) = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
    let kind = ProbeKind::Http(http("/MyChart/health?x=1", Some("mychart.example:99"), None));
    assert_eq!(outcome(kind, PATIENT, address).await, Outcome::Ok);
    let request = server.await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("get /mychart/health?x=1 http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nhost: mychart.example:99\r\n"), "{request}");
    assert!(request.contains("\r\nconnection: close\r\n"), "{request}");

    let (address, server) = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(outcome(ProbeKind::Http(http("/", None, None)), PATIENT, address).await, Outcome::Ok);
    let request = server.await.unwrap().to_ascii_lowercase();
    assert!(request.contains(&format!("\r\nhost: {address}\r\n")), "{request}");
}

#[tokio::test]
async fn the_status_decides() {
    for (status, expected, result) in [
        (200, vec![], Outcome::Ok),
        (399, vec![], Outcome::Ok),
        (503, vec![], failed("status 503, expected 200-399")),
        (401, vec![200..=299, 401..=401], Outcome::Ok),
        (302, vec![200..=299, 401..=401], failed("status 302, expected 200-299, 401")),
    ] {
        let (address, _server) = answering(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n")).await;
        let check = HttpCheck::new("/", None, expected, None).unwrap();
        assert_eq!(outcome(ProbeKind::Http(check), PATIENT, address).await, result, "{status}");
    }
}

#[tokio::test]
async fn the_body_decides_even_in_pieces() {
    let (address, _server) = answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall is OK").await;
    assert_eq!(outcome(http_body("is OK"), PATIENT, address).await, Outcome::Ok);

    let (address, _server) = answering("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot at a.").await;
    assert_eq!(outcome(http_body("OK"), PATIENT, address).await, failed("the body does not contain \"OK\""));

    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nserv\r\n1\r\ni\r\n8\r\nce ready\r\n0\r\n\r\n";
    let (address, _server) = answering(chunked).await;
    assert_eq!(outcome(http_body("service"), PATIENT, address).await, Outcome::Ok);

    let (address, _server) = answering("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    let cut = failed("the server closed the connection before the answer was complete");
    assert_eq!(outcome(http_body("OK"), PATIENT, address).await, cut);
}

#[tokio::test]
async fn only_the_first_64_kib_of_a_body_count() {
    let page = |before: usize| format!("HTTP/1.1 200 OK\r\n\r\n{}needle", "x".repeat(before));
    let (address, _server) = answering(page(65_536 - 6)).await;
    assert_eq!(outcome(http_body("needle"), PATIENT, address).await, Outcome::Ok);
    let (address, _server) = answering(page(65_536 - 5)).await;
    let beyond = failed("the first 64 KiB of the body do not contain \"needle\"");
    assert_eq!(outcome(http_body("needle"), PATIENT, address).await, beyond);
}

#[tokio::test]
async fn a_body_that_drips_is_timed_out_only_when_it_matters() {
    let dripping = || {
        listener(|mut stream| async move {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
            while stream.write_all(b".").await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let (address, _server) = dripping().await;
    assert_eq!(
        outcome(http_body("OK"), HASTY, address).await,
        failed("timed out after 150ms reading the body")
    );
    let (address, _server) = dripping().await;
    assert_eq!(outcome(ProbeKind::Http(http("/", None, None)), HASTY, address).await, Outcome::Ok);
}

#[tokio::test]
async fn nothing_but_status_and_body_is_judged() {
    let fields = "X-Field: y\r\n".repeat(500);
    for answer in [
        "HTTP/1.1 200 OK\r\nServer : X\r\nContent-Length: 5\r\n\r\nready",
        "HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\n\r\nready",
        "HTTP/1.1 200 OK\r\na line without colon\r\n\r\nready",
        &format!("HTTP/1.1 200 OK\r\n{fields}\r\nready"),
        "HTTP/1.0 200\r\n\r\nready",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nready\r\n0\r\n\r\n",
    ] {
        let (address, _server) = answering(answer.to_owned()).await;
        assert_eq!(outcome(http_body("ready"), PATIENT, address).await, Outcome::Ok, "{answer:?}");
        let (address, _server) = answering(answer.to_owned()).await;
        let missing = failed("the body does not contain \"steady\"");
        assert_eq!(outcome(http_body("steady"), PATIENT, address).await, missing, "{answer:?}");
    }
}

#[tokio::test]
async fn an_http_probe_of_something_else_says_so() {
    let get = || ProbeKind::Http(http("/", None, None));
    let (address, _server) = answering("SSH-2.0-OpenSSH_9.2\r\n").await;
    assert_eq!(outcome(get(), PATIENT, address).await, failed("the answer is not HTTP"));
    let (address, _server) = answering(b"\x15\x03\x01\x00\x02\x02\x46".to_vec()).await;
    assert_eq!(outcome(get(), PATIENT, address).await, failed("the answer is not HTTP"));
    let (address, _server) = answering("").await;
    let closed = failed("the server closed the connection before the answer was complete");
    assert_eq!(outcome(get(), PATIENT, address).await, closed);
    let (address, _server) =
        answering(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(300_000))).await;
    assert_eq!(outcome(get(), PATIENT, address).await, failed("the answer's header fields are too large"));
    let (address, _server) = silent().await;
    let late = failed("timed out after 150ms waiting for the HTTP answer");
    assert_eq!(outcome(get(), HASTY, address).await, late);
}

#[tokio::test]
async fn a_server_that_speaks_before_it_is_asked_is_down_with_a_reason() {
    let (address, _server) = listener(|mut stream| async move {
        let _ = stream.write_all(b"220 smtp.example ESMTP\r\n").await;
        while stream.read_u8().await.is_ok() {}
    })
    .await;
    let Outcome::Failed(reason) = outcome(ProbeKind::Http(http("/", None, None)), PATIENT, address).await
    else {
        panic!("taken for HTTP");
    };
    assert!(!reason.contains("timed out") && !reason.contains("closed"), "{reason}");
}

#[tokio::test]
async fn an_https_probe_speaks_http_inside_tls_and_reports_expiry_also_when_it_fails() {
    let serve = |answer| tls_server(server_config(&rustls::version::TLS13, certificate(2031)), answer);
    let check = || http("/health", Some("mychart.example:8443"), Some("ok"));

    let (address, server) = serve("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let result = probing(ProbeKind::Https(check()), PATIENT, address).await;
    assert_eq!(result.outcome, Outcome::Ok);
    assert_eq!(result.certificate_expires.unwrap().to_string(), "2031-02-03T00:00:00Z");
    let (name, request) = server.await.unwrap().unwrap();
    assert_eq!(name, "mychart.example");
    assert!(request.to_ascii_lowercase().contains("\r\nhost: mychart.example:8443\r\n"), "{request}");

    let (address, _server) = serve("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await;
    let result = probing(ProbeKind::Https(check()), PATIENT, address).await;
    assert_eq!(result.outcome, failed("status 500, expected 200-399"));
    assert!(result.certificate_expires.is_some());
}
