//! The HTTP/JSON API on the daemon's unix socket. Each request becomes a [`Job`] for the one task that owns the
//! configuration; nothing is decided here.

#[cfg(test)]
mod tests;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::error;

use crate::config::MAX_BYTES;
use crate::daemon::engine::{Refusal, Request};

/// The largest body: a configuration with every line end and quote escaped, and what is around it.
const BODY_LIMIT: usize = 2 * MAX_BYTES + 64 * 1024;
/// Requests that wait for the daemon.
const QUEUE: usize = 16;

/// A request, and where its answer goes.
#[derive(Debug)]
pub struct Job {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Value, Refusal>>,
}

type Jobs = mpsc::Sender<Job>;

/// The API on a unix socket that only this user can open.
#[derive(Debug)]
pub struct Api {
    socket: PathBuf,
    jobs: Jobs,
    /// Who serves, and device and inode of the socket's file.
    serving: Option<(JoinHandle<()>, (u64, u64))>,
}

impl Api {
    /// Nobody listens yet. Gives the jobs.
    #[must_use]
    pub fn new(socket: &Path) -> (Self, mpsc::Receiver<Job>) {
        let (sender, jobs) = mpsc::channel(QUEUE);
        (Self { socket: socket.to_owned(), jobs: sender, serving: None }, jobs)
    }

    /// Listens, unless somebody can reach it already; true if it began now. A socket that a daemon before left is replaced,
    /// and one that was removed is made anew. Call it within a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(&mut self) -> anyhow::Result<bool> {
        let there = file_of(&self.socket);
        if let Some((_, ours)) = &self.serving
            && there.as_ref().is_ok_and(|there| there == ours)
        {
            return Ok(false);
        }
        let context = || format!("cannot listen on {}", self.socket.display());
        let listener = bind(&self.socket).with_context(context)?;
        let file = file_of(&self.socket).with_context(context)?;
        self.stop();
        let app = router(self.jobs.clone());
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                error!("the API has ended: {error}");
            }
        });
        self.serving = Some((serving, file));
        Ok(true)
    }

    /// Listens no more, and removes the socket.
    pub fn remove(mut self) {
        if let Some((_, ours)) = &self.serving
            && file_of(&self.socket).is_ok_and(|there| there == *ours)
        {
            // What stays behind is replaced by the next.
            let _removed = fs::remove_file(&self.socket);
        }
        self.stop();
    }

    fn stop(&mut self) {
        if let Some((serving, _)) = self.serving.take() {
            serving.abort();
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop();
    }
}

fn file_of(socket: &Path) -> std::io::Result<(u64, u64)> {
    fs::symlink_metadata(socket).map(|there| (there.dev(), there.ino()))
}

/// Bound under another name first, so that at no moment others could open it.
fn bind(socket: &Path) -> anyhow::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        fs::create_dir_all(directory)?;
    }
    let fresh = socket.with_extension("sock.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, socket)?;
    Ok(listener)
}

fn router(jobs: Jobs) -> Router {
    Router::new()
        .route("/v1/status", get(async |State(jobs): State<Jobs>| ask(&jobs, Request::Status).await))
        .route("/v1/config", get(async |State(jobs): State<Jobs>| ask(&jobs, Request::Config).await))
        .route("/v1/config/plan", action(Request::PlanConfig))
        .route("/v1/config/apply", action(Request::ApplyConfig))
        .route("/v1/confirm", action(Request::Confirm))
        .route("/v1/servers/add", action(Request::Add))
        .route("/v1/servers/remove", action(Request::Remove))
        .route("/v1/servers/set", action(Request::Set))
        .route("/v1/servers/state", action(Request::State))
        .route("/v1/sticky/forget", action(Request::Forget))
        .route("/v1/sticky/move", action(Request::Move))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is no such path in this API (version 1)"))
        .method_not_allowed_fallback(async || {
            refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path takes another method: GET to look, POST to change",
            )
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(jobs)
}

/// A path that takes a JSON object.
fn action<T: DeserializeOwned + Send + 'static>(
    request: fn(T) -> Request,
) -> axum::routing::MethodRouter<Jobs> {
    post(async move |State(jobs): State<Jobs>, body: Result<Bytes, BytesRejection>| {
        let body = match body {
            Ok(body) => body,
            Err(rejected) => return refuse(rejected.status(), &rejected.body_text()),
        };
        match serde_json::from_slice(&body) {
            Ok(asked) => ask(&jobs, request(asked)).await,
            Err(error) => {
                refuse(StatusCode::BAD_REQUEST, &format!("the request is not what this path takes: {error}"))
            }
        }
    })
}

async fn ask(jobs: &Jobs, request: Request) -> Response {
    let (reply, answer) = oneshot::channel();
    let stopping = || refuse(StatusCode::SERVICE_UNAVAILABLE, "the daemon is stopping");
    if jobs.send(Job { request, reply }).await.is_err() {
        return stopping();
    }
    match answer.await {
        Ok(Ok(value)) => respond(StatusCode::OK, &value),
        Ok(Err(refusal)) => {
            let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            refuse(status, &refusal.to_string())
        }
        Err(_) => stopping(),
    }
}

fn refuse(status: StatusCode, why: &str) -> Response {
    respond(status, &json!({ "error": why }))
}

fn respond(status: StatusCode, value: &Value) -> Response {
    // A command asks once: a connection that stays open would only hold its client until it notices.
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CONNECTION, "close")];
    (status, headers, value.to_string()).into_response()
}
