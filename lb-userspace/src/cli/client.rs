//! The daemon's API over its unix socket: HTTP/1.1 with JSON.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// How long an answer may take: applying a large configuration reads back what it wrote.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one may take that is only shown beside something else.
const GLANCE: Duration = Duration::from_secs(2);
/// The largest answer, in bytes.
const LARGEST: usize = 64 << 20;

/// The daemon behind a socket.
#[derive(Clone, Debug)]
pub struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    /// The daemon that listens on this socket.
    #[must_use]
    pub const fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks for a path.
    ///
    /// # Errors
    /// The daemon is not running, does not answer, or refused: then the error is its own sentence.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, Bytes::new(), PATIENCE)
    }

    /// Asks for a path, and does not wait for long.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn glance(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, Bytes::new(), GLANCE)
    }

    /// Sends a body to a path.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, serde_json::to_vec(body)?.into(), PATIENCE)
    }

    fn ask(&self, method: Method, path: &str, body: Bytes, patience: Duration) -> anyhow::Result<Value> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            match tokio::time::timeout(patience, exchange(&self.socket, method, path, body)).await {
                Ok(answer) => answer,
                Err(_) => bail!(
                    "the daemon did not answer within {} s; its log says what it is doing (journalctl -u steadfastd)",
                    patience.as_secs()
                ),
            }
        })
    }
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Bytes) -> anyhow::Result<Value> {
    let stream = UnixStream::connect(socket).await.map_err(|error| unreachable(socket, error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "steadfast")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    // Moved in: the connection ends when the last sender is gone.
    let talk = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body.map_err(|error| anyhow!("reading the daemon's answer: {error}"))?;
        Ok::<_, anyhow::Error>((status, body.to_bytes()))
    };
    // The connection has to be driven for as long as the talk lasts, and may end before it.
    let (answer, _closed) = tokio::join!(talk, async { connection.await.is_ok() });
    let (status, body) = answer.context("the daemon broke off the conversation")?;
    understand(status, &body)
}

/// The answer's JSON, or the sentence of its refusal.
fn understand(status: StatusCode, body: &[u8]) -> anyhow::Result<Value> {
    let value: Option<Value> = serde_json::from_slice(body).ok();
    if !status.is_success() {
        let sentence = value.as_ref().and_then(|value| value.get("error")?.as_str());
        let sentence = sentence.map_or_else(
            || format!("the daemon answered {status}: {}", String::from_utf8_lossy(body)),
            ToOwned::to_owned,
        );
        bail!(sentence);
    }
    value.context("the daemon's answer is not JSON; is this steadfast of its release?")
}

fn unreachable(socket: &Path, error: std::io::Error) -> anyhow::Error {
    let socket = socket.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => anyhow!(
            "the daemon is not running (nobody answers at {socket}); changes need the daemon: start it with \
             `systemctl start steadfastd`, or `steadfastd run --config FILE`"
        ),
        ErrorKind::PermissionDenied => {
            anyhow!("this user may not talk to the daemon at {socket}; run it as root (sudo steadfast ...)")
        }
        _ => anyhow::Error::new(error).context(format!("cannot talk to the daemon at {socket}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixListener,
        thread,
    };

    use serde_json::json;

    use super::*;

    /// Answers one request with these bytes; gives back what was asked.
    fn served(
        answer: &'static str,
        ask: impl FnOnce(&Daemon) -> anyhow::Result<Value>,
    ) -> (String, anyhow::Result<Value>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        let result = ask(&Daemon::at(socket));
        (server.join().unwrap(), result)
    }

    #[test]
    fn a_body_goes_out_as_json_and_the_answer_comes_back() {
        let (request, answer) =
            served("HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"done\":\"ok\"}", |daemon| {
                daemon.post("/v1/servers/set", &json!({ "weight": 5 }))
            });
        assert!(request.starts_with("POST /v1/servers/set HTTP/1.1\r\n"), "{request}");
        assert!(request.ends_with("{\"weight\":5}"), "{request}");
        assert_eq!(answer.unwrap(), json!({ "done": "ok" }));
    }

    #[test]
    fn a_refusal_is_the_daemons_own_sentence() {
        let answer = "HTTP/1.1 409 Conflict\r\ncontent-length: 24\r\n\r\n{\"error\":\"3 flows open\"}";
        let (_, refused) = served(answer, |daemon| daemon.get("/v1/status"));
        assert_eq!(refused.unwrap_err().to_string(), "3 flows open");
        let (_, odd) = served("HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno", |daemon| daemon.get("/"));
        assert!(odd.unwrap_err().to_string().contains("500"));
    }

    #[test]
    fn an_answer_that_breaks_off_is_an_error() {
        let (_, broken) = served("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", |daemon| daemon.get("/"));
        assert!(broken.unwrap_err().to_string().contains("broke off"));
    }

    #[test]
    fn without_a_daemon_the_error_says_how_to_start_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = Daemon::at(dir.path().join("api.sock")).get("/v1/status").unwrap_err();
        assert!(error.to_string().contains("changes need the daemon: start it with"), "{error}");
    }
}
