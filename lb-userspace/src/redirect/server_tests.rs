//! The redirect server as raw TCP clients on loopback see it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::server::{Admission, Limits, RedirectCounts, RedirectOptions, RedirectStats, serve};

/// For what must come, on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(60);

struct Service {
    address: SocketAddr,
    stats: Arc<RedirectStats>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

fn quick() -> Limits {
    Limits {
        head_timeout: Duration::from_millis(200),
        connection_lifetime: Duration::from_secs(5),
        linger: Duration::from_millis(200),
        drain: Duration::from_millis(500),
        ..Limits::default()
    }
}

/// For tests in which no timeout is meant to strike.
fn patient() -> Limits {
    Limits { head_timeout: Duration::from_secs(30), connection_lifetime: Duration::from_secs(30), ..quick() }
}

async fn start(limits: Limits) -> Service {
    admitting(limits, Admission::new(1024, 1024)).await
}

async fn admitting(limits: Limits, admission: Arc<Admission>) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stats = Arc::new(RedirectStats::default());
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let options = RedirectOptions { limits, ..RedirectOptions::default() };
    let task = tokio::spawn(serve(listener, options, admission, shutdown, Arc::clone(&stats)));
    Service { address, stats, stop, task }
}

impl Service {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes, half-closes and returns all that comes back.
    async fn exchange(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.unwrap();
        stream.shutdown().await.unwrap();
        read_to_end(&mut stream).await
    }

    /// The counters, once they say what is expected or have had the time to.
    async fn counts_when(&self, expected: impl Fn(&RedirectCounts) -> bool) -> RedirectCounts {
        for _ in 0..6_000 {
            if expected(&self.stats.counts()) {
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        self.stats.counts()
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("no end of answer").unwrap();
    String::from_utf8(answer).unwrap()
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(answer).unwrap()
}

fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, v)| v)
}

#[tokio::test]
async fn a_request_is_redirected_to_the_same_place_over_https() {
    let service = start(patient()).await;
    let answer = service.exchange("GET /a/b?c='d'&e HTTP/1.1\r\nHost: mychart.example:80\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 301 Moved Permanently\r\n"), "{answer}");
    assert_eq!(field(&answer, "location"), Some("https://mychart.example/a/b?c='d'&e"));
    assert_eq!(field(&answer, "strict-transport-security"), None);
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(field(&answer, "content-length"), Some(body.len().to_string().as_str()));
    assert!(body.contains("<a href=\"https://mychart.example/a/b?c=&#39;d&#39;&amp;e\">"), "{body}");
    let counts = service.stats.counts();
    assert_eq!((counts.requests, counts.redirected, counts.refused), (1, 1, 0));
}

#[tokio::test]
async fn head_gets_the_same_head_and_no_body() {
    let service = start(patient()).await;
    let get = service.exchange("GET /x HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let head = service.exchange("HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!(field(&head, "location"), Some("https://h/x"));
    assert_eq!(field(&head, "content-length"), field(&get, "content-length"));
}

#[tokio::test]
async fn each_malformed_request_gets_400_and_the_connection_ends() {
    let service = start(patient()).await;
    let requests: [&[u8]; 15] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: user@h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.com/..\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: b\xc3\xbccher\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h:99999\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ];
    for request in requests {
        let shown = String::from_utf8_lossy(request);
        let mut stream = service.connect().await;
        stream.write_all(request).await.unwrap();
        let answer = read_to_end(&mut stream).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "),
            "{shown:?}: {answer:?}"
        );
        assert_eq!(field(&answer, "location"), None, "{shown:?}");
    }
    let counts = service.counts_when(|counts| counts.refused == 15).await;
    assert_eq!((counts.requests, counts.redirected, counts.refused), (15, 0, 15));
}

#[tokio::test]
async fn an_absolute_target_is_redirected_when_it_agrees_with_host() {
    let service = start(patient()).await;
    let answer = service.exchange("GET http://Name/a?b HTTP/1.1\r\nHost: name\r\n\r\n").await;
    assert_eq!(field(&answer, "location"), Some("https://name/a?b"));
}

#[tokio::test]
async fn a_head_sent_byte_by_byte_is_cut_off_at_the_deadline() {
    let service = start(quick()).await;
    let begun = Instant::now();
    let mut stream = service.connect().await;
    let slow = async {
        let (mut reader, mut writer) = stream.split();
        let drip = async {
            for byte in b"GET / HTTP/1.1\r\nHost: h\r\n".iter().cycle() {
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let closed = async {
            let mut answer = Vec::new();
            let _ = reader.read_to_end(&mut answer).await;
            answer
        };
        tokio::select! { () = drip => Vec::new(), answer = closed => answer }
    };
    let answer = timeout(PATIENCE, slow).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(180), "cut off after {:?}", begun.elapsed());
    assert!(answer.is_empty());
    let counts = service.counts_when(|counts| counts.timed_out == 1).await;
    assert_eq!((counts.timed_out, counts.requests), (1, 0));
}

#[tokio::test]
async fn an_idle_kept_alive_connection_is_closed() {
    let service = start(quick()).await;
    let mut stream = service.connect().await;
    stream.write_all(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 301 "), "{answer}");
    let counts = service.counts_when(|counts| counts.idle_closed == 1).await;
    assert_eq!((counts.idle_closed, counts.timed_out), (1, 0));
}

#[tokio::test]
async fn a_client_that_never_reads_does_not_hold_its_connection_forever() {
    let limits = Limits { connection_lifetime: Duration::from_millis(400), ..patient() };
    let service = start(limits).await;
    let stream = service.connect().await;
    let (_reader, mut writer) = stream.into_split();
    let request = "GET / HTTP/1.1\r\nHost: h\r\n\r\n".repeat(1000);
    let flood = async { while writer.write_all(request.as_bytes()).await.is_ok() {} };
    timeout(PATIENCE, flood).await.expect("the server never closed the connection");
    assert_eq!(service.counts_when(|counts| counts.timed_out == 1).await.timed_out, 1);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let service = start(patient()).await;
    let too_long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let too_many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(65));
    for request in [too_long, too_many] {
        let mut stream = service.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
    }
    let fitting = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(60));
    assert!(service.exchange(fitting).await.starts_with("HTTP/1.1 301 "));
    assert_eq!(service.counts_when(|counts| counts.refused == 2).await.refused, 2);
}

#[tokio::test]
async fn pipelined_garbage_does_not_take_the_first_answer_away() {
    let service = start(patient()).await;
    let answer = service
        .exchange("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n\0\x01junk\r\n\r\n")
        .await;
    assert!(answer.contains("https://h/1\r\n") && answer.contains("https://h/2\r\n"), "{answer}");
    assert!(answer.contains("HTTP/1.1 400 "), "{answer}");
    let counts = service.counts_when(|counts| counts.refused == 1).await;
    assert_eq!((counts.requests, counts.redirected, counts.refused), (3, 2, 1));
}

#[tokio::test]
async fn a_request_body_is_not_read_and_is_not_taken_for_a_request() {
    let service = start(patient()).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    let request =
        format!("POST /form HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    let mut stream = service.connect().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert_eq!(field(&answer, "location"), Some("https://h/form"));
    assert_eq!(field(&answer, "connection"), Some("close"));
    assert!(!answer.contains("smuggled"), "{answer}");
    assert_eq!(service.stats.counts().requests, 1);
}

#[tokio::test]
async fn an_unread_body_does_not_take_the_answer_away() {
    let service = start(patient()).await;
    let mut stream = service.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 60000\r\n\r\n").await.unwrap();
    for _ in 0..6 {
        stream.write_all(&[b'x'; 10_000]).await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    // Read late: a reset would have thrown the answer away by now.
    assert!(read_to_end(&mut stream).await.starts_with("HTTP/1.1 308 "));
}

#[tokio::test]
async fn an_endless_body_does_not_keep_the_connection() {
    let service = start(patient()).await;
    let mut stream = service.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n").await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 308 "));
    let flood = async { while stream.write_all(&[b'x'; 4096]).await.is_ok() {} };
    timeout(PATIENCE, flood).await.expect("the server kept reading the body");
}

const ASKING: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn where_all_are_connected_the_longest_idle_gives_way() {
    let service = admitting(patient(), Admission::new(2, 2)).await;
    let mut silent = service.connect().await;
    service.counts_when(|counts| counts.connections == 1).await;
    let mut answered = service.connect().await;
    answered.write_all(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    assert!(read_head(&mut answered).await.starts_with("HTTP/1.1 301 "));

    let mut third = service.connect().await;
    assert_eq!(read_to_end(&mut silent).await, "", "it has said nothing, and gives way");
    third.write_all(ASKING).await.unwrap();
    assert!(read_to_end(&mut third).await.starts_with("HTTP/1.1 301 "));
    answered.write_all(ASKING).await.unwrap();
    assert!(read_to_end(&mut answered).await.starts_with("HTTP/1.1 301 "));
    assert_eq!(service.stats.counts().gave_way, 1);
}

#[tokio::test]
async fn one_address_with_more_half_sent_requests_than_there_is_room_shuts_nobody_out() {
    let admission = Admission::new(64, 16);
    let service = admitting(patient(), Arc::clone(&admission)).await;
    let other = admitting(patient(), admission).await;
    let mut halves = Vec::new();
    for service in [&service, &other].into_iter().cycle().take(200) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.66:0".parse().unwrap()).unwrap();
        let mut half = socket.connect(service.address).await.unwrap();
        half.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        halves.push(half);
    }
    service.counts_when(|counts| counts.gave_way + other.stats.counts().gave_way == 200 - 16).await;
    let counts = (service.stats.counts(), other.stats.counts());
    assert_eq!(counts.0.gave_way + counts.1.gave_way, 200 - 16, "both services count as one");
    for service in [&service, &other] {
        let mut mine = service.connect().await;
        mine.write_all(ASKING).await.unwrap();
        assert!(read_to_end(&mut mine).await.starts_with("HTTP/1.1 301 "));
    }
    assert_eq!(service.stats.counts().gave_way + other.stats.counts().gave_way, 200 - 16);
}

#[tokio::test]
async fn a_request_with_the_clients_fin_behind_it_gets_its_answer() {
    let service = start(patient()).await;
    for _ in 0..200 {
        // Both are there before the server looks.
        let request = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n";
        let address = service.address;
        let mut stream = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            std::io::Write::write_all(&mut stream, request).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.set_nonblocking(true).unwrap();
            TcpStream::from_std(stream).unwrap()
        })
        .await
        .unwrap();
        let answer = read_to_end(&mut stream).await;
        assert_eq!(field(&answer, "location"), Some("https://h/a"), "{answer:?}");
    }
}

#[tokio::test]
async fn what_browsers_send_raw_is_carried_over_encoded() {
    let service = start(patient()).await;
    let answer = service.exchange("GET /a?q=\"x\"&r=<y>` HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(field(&answer, "location"), Some("https://h/a?q=%22x%22&r=%3Cy%3E%60"));
    let answer = service.exchange(b"GET /b\xfccher HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(field(&answer, "location"), Some("https://h/b%FCcher"));
}

#[tokio::test]
async fn a_post_is_to_be_sent_again_as_a_post() {
    let service = start(patient()).await;
    let answer = service.exchange("POST /form HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{answer}");
    assert_eq!(field(&answer, "location"), Some("https://h/form"));
    assert!(field(&answer, "date").unwrap().ends_with(" GMT"), "{answer}");
}

#[tokio::test]
async fn shutdown_closes_idle_connections_lets_requests_finish_and_returns() {
    let service = start(patient()).await;
    let mut idle = service.connect().await;
    idle.write_all(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    read_head(&mut idle).await;
    let mut half_sent = service.connect().await;
    half_sent.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    service.counts_when(|counts| counts.connections == 2).await;
    sleep(Duration::from_millis(50)).await;

    service.stop.send(()).unwrap();
    assert_eq!(read_to_end(&mut idle).await, "");
    half_sent.write_all(b"Host: h\r\n\r\n").await.unwrap();
    assert!(read_to_end(&mut half_sent).await.starts_with("HTTP/1.1 301 "));
    drop(half_sent);
    timeout(PATIENCE, service.task).await.expect("serve did not return").unwrap();
    assert!(TcpStream::connect(service.address).await.is_err());
}

#[tokio::test]
async fn shutdown_does_not_wait_longer_than_the_drain_time() {
    let service = start(patient()).await;
    let mut stuck = service.connect().await;
    stuck.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    service.counts_when(|counts| counts.connections == 1).await;
    sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    service.stop.send(()).unwrap();
    timeout(PATIENCE, service.task).await.expect("serve did not return").unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
}
