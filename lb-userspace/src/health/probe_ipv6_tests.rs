//! Probes of listeners at `::1`: what is another over IPv6 is the names that a server is asked for, and the source.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::probe::probe;
use super::probe_tests::{answer_request, certificate, listener_on, server_config};
use super::spec::{HttpCheck, ProbeKind, ProbeSpec, TlsName};
use super::state::Outcome;

const PATIENT: Duration = Duration::from_secs(5);
const PLACE: &str = "[::1]:0";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

fn spec(kind: ProbeKind) -> ProbeSpec {
    ProbeSpec::new(kind, PATIENT, Some(IpAddr::V6(Ipv6Addr::LOCALHOST))).unwrap()
}

fn check(host: Option<&str>) -> HttpCheck {
    HttpCheck::new("/", host, vec![], None).unwrap()
}

#[tokio::test]
async fn a_connection_is_made_from_the_source_of_the_family() {
    let peer = async |stream: TcpStream| stream.peer_addr().unwrap().ip();
    let (target, served) = listener_on(PLACE, peer).await;
    assert_eq!(probe(&spec(ProbeKind::Tcp), target).await.outcome, Outcome::Ok);
    assert_eq!(served.await.unwrap(), Ipv6Addr::LOCALHOST);
}

#[tokio::test]
async fn a_closed_port_and_a_source_of_the_other_family_fail_in_words() {
    let closed = TcpListener::bind(PLACE).await.unwrap().local_addr().unwrap();
    let refused = probe(&spec(ProbeKind::Tcp), closed).await.outcome;
    assert_eq!(refused, Outcome::Failed("connection refused".to_owned()));
    let wrong = ProbeSpec::new(ProbeKind::Tcp, PATIENT, Some([127, 0, 0, 1].into())).unwrap();
    let Outcome::NoVerdict(why) = probe(&wrong, closed).await.outcome else { panic!("it cannot be bound") };
    assert!(why.contains("source address 127.0.0.1"), "{why}");
}

#[tokio::test]
async fn an_http_probe_names_the_server_in_brackets() {
    for (host, expected) in [
        (None, None),
        (Some("mychart.example"), Some("mychart.example")),
        (Some("[2001:db8::1]"), Some("[2001:db8::1]")),
    ] {
        let serve = async |mut stream: TcpStream| answer_request(&mut stream, ANSWER).await;
        let (target, served) = listener_on(PLACE, serve).await;
        assert_eq!(probe(&spec(ProbeKind::Http(check(host))), target).await.outcome, Outcome::Ok);
        let expected = format!("{}:{}", expected.unwrap_or("[::1]"), target.port());
        let request = served.await.unwrap().to_lowercase();
        assert!(request.contains(&format!("\r\nhost: {expected}\r\n")), "{host:?}: {request}");
    }
}

#[tokio::test]
async fn an_address_is_asked_for_by_no_server_name() {
    for (kind, expected) in [
        (ProbeKind::Tls(None), None),
        (ProbeKind::Tls(Some(TlsName::new("[2001:db8::1]").unwrap())), None),
        (ProbeKind::Tls(Some(TlsName::new("mychart.example").unwrap())), Some("mychart.example")),
        (ProbeKind::Https(check(None)), None),
        (ProbeKind::Https(check(Some("[2001:db8::1]"))), None),
        (ProbeKind::Https(check(Some("mychart.example"))), Some("mychart.example")),
    ] {
        let config = server_config(&rustls::version::TLS13, certificate(2090));
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let serve = async move |stream: TcpStream| {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            answer_request(&mut stream, ANSWER).await;
            name
        };
        let (target, served) = listener_on(PLACE, serve).await;
        assert_eq!(probe(&spec(kind.clone()), target).await.outcome, Outcome::Ok, "{kind:?}");
        assert_eq!(served.await.unwrap().as_deref(), expected, "{kind:?}");
    }
}
