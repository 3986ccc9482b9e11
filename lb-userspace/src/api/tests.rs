use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use lb_common::server::{ServerState, Servers as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::*;
use crate::config;
use crate::core::testing::yaml;
use crate::daemon::engine::{About, ConfigFile, Engine, Memory};
use crate::daemon::store::Store;
use crate::dataplane::Maps;
use crate::dataplane::fake::{FakeKernel, maps};

/// A daemon's core behind a real socket.
struct Served {
    _directory: TempDir,
    socket: PathBuf,
    maps: Arc<Maps>,
    api: Api,
}

fn served() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("run/api.sock");
    let text = yaml(&[("V", 150, &[("a", 1), ("b", 2)])]);
    let file = ConfigFile { source: "f".to_owned(), config: config::parse("f", &text).unwrap(), text };
    let store = Store::new(directory.path().join("state.json"), directory.path().join("run/state.json"));
    let memory = Memory::recall(store, &file);
    let maps = Arc::new(maps(FakeKernel::default()));
    let clock: crate::daemon::engine::Clock = Arc::new(|| Timestamp::UNIX_EPOCH);
    let mut engine = Engine::new(Arc::clone(&maps), memory, About::default(), clock, false);
    engine.begin().unwrap();
    let (mut api, mut jobs) = Api::new(&socket);
    api.listen().unwrap();
    tokio::spawn(async move {
        while let Some(job) = jobs.recv().await {
            let _gone = job.reply.send(engine.request(job.request));
        }
    });
    Served { _directory: directory, socket, maps, api }
}

impl Served {
    async fn raw(&self, request: &[u8]) -> (u16, Value) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        // The server may answer and close before it has read everything.
        let _refused_early = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {answer}")))
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: steadfast\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.raw(request.as_bytes()).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask("POST", path, &body.to_string()).await
    }

    fn bits(&self, id: u16) -> ServerState {
        self.maps.servers.present(id).unwrap().state
    }
}

#[tokio::test]
async fn a_change_is_in_the_maps_when_its_answer_comes() {
    let served = served();
    let drain = json!({ "service": "V", "label": "a", "state": "drain" });
    let (status, answer) = served.post("/v1/servers/state", drain).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["done"].as_str().unwrap().contains("V/a drains"));
    assert_eq!(answer["plan"]["draining"][0]["server"], "a");
    assert!(!served.bits(0).has(ServerState::TAKES_NEW));
    let add = json!({ "service": "V", "label": "c", "address": "192.0.2.3" });
    let (status, answer) = served.post("/v1/servers/add", add).await;
    assert_eq!(
        (status, answer["done"].as_str()),
        (200, Some("V/c is added at 192.0.2.3:443 with weight 100"))
    );
    assert!(served.maps.servers.present(2).is_some());
    let (_, config) = served.ask("GET", "/v1/config", "").await;
    assert!(config["yaml"].as_str().unwrap().contains("192.0.2.3"));
    let (status, _) = served.post("/v1/servers/remove", json!({ "service": "V", "label": "c" })).await;
    assert_eq!(status, 200);
    assert!(served.maps.servers.present(2).is_none());
    let (status, forgotten) = served.post("/v1/sticky/forget", json!({ "client": "10.1.2.3" })).await;
    assert_eq!((status, &forgotten["forgotten"]), (200, &json!(0)));
    let (status, moved) =
        served.post("/v1/sticky/move", json!({ "client": "10.1.2.3", "service": "V", "server": "b" })).await;
    assert_eq!(status, 200, "{moved}");
    let (_, forgotten) = served.post("/v1/sticky/forget", json!({ "client": "10.1.2.3" })).await;
    assert_eq!(forgotten["forgotten"], 1);
}

#[tokio::test]
async fn a_dry_run_and_a_plan_change_nothing() {
    let served = served();
    let halt = json!({ "service": "V", "label": "a", "state": "halt", "dry_run": true });
    let (status, answer) = served.post("/v1/servers/state", halt).await;
    assert_eq!(status, 200);
    assert!(answer.get("done").is_none() && answer["plan"]["changes"][0].as_str().unwrap().contains("halt"));
    let one = yaml(&[("V", 150, &[("b", 2)])]);
    let (status, plan) = served.post("/v1/config/plan", json!({ "yaml": one })).await;
    assert_eq!(status, 200);
    assert!(plan["changes"][0].as_str().unwrap().contains('a'), "{plan}");
    let apply = json!({ "yaml": one, "source": "x", "dry_run": true });
    let (_, answer) = served.post("/v1/config/apply", apply).await;
    assert_eq!(answer["applied"], false);
    assert!(served.bits(0).has(ServerState::TAKES_NEW));
    let (_, answer) = served.post("/v1/config/apply", json!({ "yaml": one, "source": "x" })).await;
    assert_eq!(answer["applied"], true);
    assert!(served.maps.servers.present(0).is_none());
}

#[tokio::test]
async fn every_refusal_is_a_sentence_in_json() {
    let served = served();
    let cases = [
        ("GET", "/", "", 404),
        ("GET", "/v2/status", "", 404),
        ("POST", "/v1/status", "{}", 405),
        ("GET", "/v1/servers/add", "", 405),
        ("POST", "/v1/servers/add", "", 400),
        ("POST", "/v1/servers/add", "[]", 400),
        ("POST", "/v1/servers/add", "{\"service\":", 400),
        ("POST", "/v1/servers/add", "\u{0}\u{ff}", 400),
        ("POST", "/v1/servers/add", r#"{"service":"V","label":"c","address":"here"}"#, 400),
        ("POST", "/v1/servers/add", r#"{"service":"V","label":"c","address":"192.0.2.3","wieght":1}"#, 400),
        ("POST", "/v1/servers/add", r#"{"service":"V","label":"c d","address":"192.0.2.3"}"#, 400),
        ("POST", "/v1/servers/set", r#"{"service":"V","label":"a","weight":-1}"#, 400),
        ("POST", "/v1/servers/state", r#"{"service":"V","label":"a","state":"up"}"#, 400),
        ("POST", "/v1/servers/state", r#"{"service":"V","label":"z","state":"drain"}"#, 404),
        ("POST", "/v1/config/apply", r#"{"yaml":"version: 2","source":"x"}"#, 400),
        ("POST", "/v1/sticky/move", r#"{"client":"10.0.0.1","service":"W","server":"a"}"#, 404),
    ];
    for (method, path, body, expected) in cases {
        let (status, answer) = served.ask(method, path, body).await;
        assert_eq!(status, expected, "{method} {path} {body}: {answer}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.len() > 10, "{method} {path} {body}: {error}");
    }
}

#[tokio::test]
async fn a_configuration_of_the_largest_size_is_read_and_a_larger_body_is_not() {
    let served = served();
    let text = yaml(&[("V", 150, &[("a", 1), ("b", 2)])]);
    let long = format!("{text}{}", "# comment\n".repeat((MAX_BYTES - text.len()) / 10));
    let (status, answer) = served.post("/v1/config/plan", json!({ "yaml": long })).await;
    assert_eq!(status, 200, "{answer}");
    let too_long = json!({ "yaml": "#".repeat(MAX_BYTES + 1) });
    let (status, answer) = served.post("/v1/config/plan", too_long).await;
    assert_eq!(status, 400, "{answer}");
    let (status, answer) = served.ask("POST", "/v1/config/plan", &" ".repeat(BODY_LIMIT + 1)).await;
    assert_eq!(status, 413);
    assert!(answer["error"].is_string());
}

#[tokio::test]
async fn the_socket_is_its_users_alone_and_replaces_one_that_was_left() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let (mut api, mut jobs) = Api::new(&socket);
    api.listen().unwrap();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let connected = UnixStream::connect(&socket).await;
    assert!(connected.is_ok());
    assert!(jobs.try_recv().is_err());
}

#[tokio::test]
async fn a_request_to_a_daemon_that_stops_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let (mut api, jobs) = Api::new(&directory.path().join("api.sock"));
    api.listen().unwrap();
    let served = Served {
        socket: directory.path().join("api.sock"),
        _directory: directory,
        maps: Arc::new(maps(FakeKernel::default())),
        api,
    };
    drop(jobs);
    let (status, answer) = served.ask("GET", "/v1/status", "").await;
    assert_eq!((status, answer["error"].as_str()), (503, Some("the daemon is stopping")));
}

#[tokio::test]
async fn a_socket_that_was_removed_is_made_again_and_one_that_is_there_is_left_alone() {
    let mut served = served();
    assert!(!served.api.listen().unwrap());
    fs::remove_dir_all(served.socket.parent().unwrap()).unwrap();
    assert!(served.api.listen().unwrap());
    let (status, _) = served.ask("GET", "/v1/status", "").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_client_that_would_keep_the_connection_is_told_and_seen_off() {
    let served = served();
    let (status, answer) = served.raw(b"GET /v1/status HTTP/1.1\r\nHost: steadfast\r\n\r\n").await;
    assert_eq!((status, answer["pid"].as_u64()), (200, Some(u64::from(std::process::id()))));
    let socket = served.socket.clone();
    let daemon = crate::cli::client::Daemon::at(socket);
    let asked = tokio::task::spawn_blocking(move || daemon.get("/v1/config"));
    let config =
        tokio::time::timeout(std::time::Duration::from_secs(20), asked).await.unwrap().unwrap().unwrap();
    assert!(config["yaml"].as_str().unwrap().contains("192.0.2.150"));
}
