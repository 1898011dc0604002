//! Talks to a running broker or agent through its control socket: HTTP/1.1 over a Unix socket.

use std::path::{Path, PathBuf};

use docaxis_protocol::ReasonCode;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::out::Failure;

/// The largest answer that is read into memory: a bundle of a circular to thousands.
const MAX_ANSWER_BYTES: usize = 512 << 20;

/// A control socket, and what should be started if nobody listens there.
pub struct Control {
    socket: PathBuf,
    start_hint: String,
}

/// An error as the sockets send it (RFC 9457, with our code and hint).
#[derive(Debug, Deserialize)]
struct Problem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    hint: String,
}

impl Control {
    pub fn new(socket: &Path, start_hint: impl Into<String>) -> Self {
        Self { socket: socket.to_owned(), start_hint: start_hint.into() }
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.json("GET", path, Bytes::new(), &[])
    }

    /// A `POST`; `idempotency_key` is the caller's own name for it.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        idempotency_key: Option<&str>,
    ) -> Result<T, Failure> {
        self.json("POST", path, body.to_string().into(), &[("idempotency-key", idempotency_key)])
    }

    /// A `POST` during which `progress_key` may be asked about.
    pub fn post_watched<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        idempotency_key: Option<&str>,
        progress_key: &str,
    ) -> Result<T, Failure> {
        let headers = [("idempotency-key", idempotency_key), ("progress-key", Some(progress_key))];
        self.json("POST", path, body.to_string().into(), &headers)
    }

    /// The body of a `GET`, as it is.
    pub fn bytes(&self, path: &str) -> Result<Vec<u8>, Failure> {
        block_on(async {
            let response = self.send("GET", path, Bytes::new(), &[]).await?;
            Ok(collect(response).await?.to_vec())
        })
    }

    /// Writes the body of a `GET` piece by piece to `sink`; memory stays constant.
    pub fn stream(&self, path: &str, sink: &mut dyn std::io::Write) -> Result<(), Failure> {
        block_on(async {
            let mut response = self.send("GET", path, Bytes::new(), &[]).await?;
            if !response.status().is_success() {
                return Err(problem(response).await);
            }
            while let Some(frame) = response.body_mut().frame().await {
                let frame = frame.map_err(|e| self.lost(&e))?;
                if let Some(bytes) = frame.data_ref() {
                    sink.write_all(bytes)?;
                }
            }
            Ok(())
        })
    }

    fn json<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        headers: &[(&str, Option<&str>)],
    ) -> Result<T, Failure> {
        block_on(async {
            let bytes = collect(self.send(method, path, body, headers).await?).await?;
            serde_json::from_slice(&bytes)
                .map_err(|e| Failure::other(format!("{} answered something unexpected: {e}", self.socket.display())))
        })
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Bytes,
        headers: &[(&str, Option<&str>)],
    ) -> Result<Response<Incoming>, Failure> {
        let stream = tokio::net::UnixStream::connect(&self.socket).await.map_err(|error| {
            let message = format!("nobody answers at {}: {error}", self.socket.display());
            Failure { exit: 4, ..Failure::new(ReasonCode::Busy, message).hint(self.start_hint.clone()) }
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.lost(&e))?;
        // Ends by itself when the answer has been read, or with the runtime.
        let _driver = tokio::spawn(connection);
        let mut request = Request::builder();
        for (name, value) in headers.iter().filter_map(|(name, value)| Some((*name, (*value)?))) {
            request = request.header(name, value);
        }
        let request = request
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| Failure::usage(format!("{path:?} cannot be asked for: {e}")))?;
        sender.send_request(request).await.map_err(|e| self.lost(&e))
    }

    fn lost(&self, error: &dyn std::error::Error) -> Failure {
        let message = format!("{} stopped answering: {}", self.socket.display(), crate::out::chain(error));
        Failure { exit: 4, ..Failure::new(ReasonCode::Busy, message).hint(self.start_hint.clone()) }
    }
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, Failure> {
    if !response.status().is_success() {
        return Err(problem(response).await);
    }
    body(response).await
}

async fn body(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let limited = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    limited.map(|collected| collected.to_bytes()).map_err(|error| {
        let what = if error.is::<LengthLimitError>() { "the answer is too large" } else { "the answer was cut off" };
        Failure::other(format!("{what}: {error}"))
    })
}

async fn problem(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let bytes = match body(response).await {
        Ok(bytes) => bytes,
        Err(failure) => return failure,
    };
    match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) if !problem.code.is_empty() => {
            let known = problem.code.parse().unwrap_or(ReasonCode::Other);
            let mut failure = Failure { code: problem.code, ..Failure::new(known, problem.detail) };
            if !problem.hint.is_empty() {
                failure.hint = problem.hint;
            }
            failure
        }
        _ if status == StatusCode::NOT_FOUND => Failure::new(ReasonCode::NotFound, "there is no such thing"),
        _ => Failure::other(format!("the answer was {status}: {}", String::from_utf8_lossy(&bytes))),
    }
}

/// Runs a future to its end on this thread.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::other(format!("no runtime can be started: {e}")))?
        .block_on(future)
}
