//! The routes under `/v1`. Each reads its input, makes the same call as a caller in the process, and writes the answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use docaxis_protocol::{AgencyCode, DispatchId, Event, ReasonCode, StatusCode as Status};
use hyper::body::{Frame, SizeHint};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::copies;
use super::problem::Problem;
use super::shapes::{AgencyJson, DraftJson, EvidenceJson, Made, OpenJson, RecallJson, StatusJson};
use crate::agent::Shared;
use crate::query::{self, Box as Which, DispatchView, StatusView, Until, Waited};
use crate::transfers::TransferView;
use crate::{compose, officer, related};

/// A draft with an edXML header and small parts in base64; large parts come by path.
const MAX_REQUEST_BYTES: usize = 8 << 20;
/// Longest a `wait` may hang.
const MAX_WAIT: Duration = Duration::from_secs(3600);
/// Chunks between disk and socket.
const CHUNKS_IN_FLIGHT: usize = 4;

type Answer<T> = Result<Json<T>, Problem>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/dispatches", get(list).post(make))
        .route("/v1/progress/{key}", get(progress))
        .route("/v1/dispatches/{id}", get(show))
        .route("/v1/dispatches/{id}/wait", get(wait))
        .route("/v1/dispatches/{id}/parts/{n}", get(part))
        .route("/v1/dispatches/{id}/status", post(state))
        .route("/v1/dispatches/{id}/recall", post(recall))
        .route("/v1/dispatches/{id}/open", post(open))
        .route("/v1/dispatches/{id}/evidence", get(evidence))
        .route("/v1/dispatches/{id}/bundle", get(bundle))
        .route("/v1/agencies", get(agencies))
        .route("/v1/backup", post(copies::backup))
        .fallback(|| async { Problem(ReasonCode::NotFound.because("there is no such call")) })
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .with_state(shared)
}

fn id_of(text: &str) -> Result<DispatchId, Problem> {
    text.parse().map_err(|e: docaxis_protocol::id::InvalidName| Problem::malformed(e.to_string()))
}

/// A body as strict JSON of the expected shape.
fn body_of<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    docaxis_protocol::json::parse(body).map_err(|e| Problem::malformed(e.to_string()))
}

async fn status(State(shared): State<Arc<Shared>>) -> Answer<StatusView> {
    Ok(Json(query::status(&shared).await?))
}

async fn make(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Result<Response, Problem> {
    let text = |name: &'static str| match headers.get(name).map(|value| value.to_str()) {
        None => Ok(None),
        Some(Ok(key)) => Ok(Some(key.to_owned())),
        Some(Err(_)) => Err(Problem::malformed(format!("{name} is not plain text"))),
    };
    let draft = body_of::<DraftJson>(&body)?.into_draft(text("idempotency-key")?, text("progress-key")?)?;
    let compose::Composed { id, sent_before } = compose::compose(&shared, draft).await?;
    Ok((StatusCode::ACCEPTED, Json(Made { id, sent_before })).into_response())
}

/// How far the files of a request are taken in that bears this `Progress-Key`; `null` if none is under way.
async fn progress(State(shared): State<Arc<Shared>>, Path(key): Path<String>) -> Json<Option<TransferView>> {
    Json(shared.transfers.of(&compose::taking_in(&key)))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(rename = "box", default)]
    which: Option<String>,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    after: Option<u64>,
}

async fn list(State(shared): State<Arc<Shared>>, Query(asked): Query<ListQuery>) -> Answer<Value> {
    let which = match asked.which.as_deref() {
        None | Some("in") => Which::In,
        Some("out") => Which::Out,
        Some(other) => return Err(Problem::malformed(format!("box is {other:?}; expected in or out"))),
    };
    let found = query::list(&shared, which, asked.state.as_deref(), asked.after).await?;
    let full = u32::try_from(found.len()).is_ok_and(|len| len == query::PAGE);
    let next = found.last().filter(|_| full).map(|last| last.cursor);
    Ok(Json(json!({ "dispatches": found, "next": next })))
}

async fn show(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<DispatchView> {
    Ok(Json(query::show(&shared, id_of(&id)?).await?))
}

#[derive(Deserialize)]
struct WaitQuery {
    until: String,
    #[serde(default)]
    timeout_ms: Option<u64>,
}

#[derive(Serialize)]
struct WaitAnswer {
    /// `reached`, `never` or `timed-out`.
    outcome: &'static str,
    dispatch: DispatchView,
}

async fn wait(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(asked): Query<WaitQuery>,
) -> Answer<WaitAnswer> {
    let Some(until) = Until::from_text(&asked.until) else {
        let expected = "accepted, handed-over, opened, registered, refused or failed";
        return Err(Problem::malformed(format!("until is {:?}; expected {expected}", asked.until)));
    };
    let timeout = asked.timeout_ms.map_or(MAX_WAIT, Duration::from_millis).min(MAX_WAIT);
    let (outcome, dispatch) = match query::wait(&shared, id_of(&id)?, until, timeout).await? {
        Waited::Reached(view) => ("reached", view),
        Waited::Never(view) => ("never", view),
        Waited::TimedOut(view) => ("timed-out", view),
    };
    Ok(Json(WaitAnswer { outcome, dispatch }))
}

async fn part(State(shared): State<Arc<Shared>>, Path((id, n)): Path<(String, usize)>) -> Result<Response, Problem> {
    let open = query::part(&shared, id_of(&id)?, n).await?;
    let (media_type, size) = (open.part.media_type.clone(), open.part.size);
    let (chunks, body) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let mut reader = open.reader;
    // Ends by itself when the caller goes away: then nobody takes the chunks.
    let _detached = tokio::task::spawn_blocking(move || {
        // The last chunk leaves only when the whole body has its digest: nobody gets all of a damaged one.
        let mut held = None::<Bytes>;
        loop {
            let ready = match reader.next_chunk() {
                Ok(Some(chunk)) => held.replace(chunk.into()).map(Ok),
                Ok(None) => break,
                Err(error) => {
                    shared.alarm(format!("part {n} of dispatch {id} cannot be given out: {error}"));
                    held = None;
                    Some(Err(std::io::Error::other(error)))
                }
            };
            let failed = matches!(ready, Some(Err(_)));
            if ready.is_some_and(|ready| chunks.blocking_send(ready).is_err()) || failed {
                return;
            }
        }
        if let Some(last) = held {
            let _gone = chunks.blocking_send(Ok(last));
        }
    });
    let mut response = Response::new(Body::new(Chunks { body, left: size }));
    for (name, value) in [(header::CONTENT_TYPE, media_type), (header::CONTENT_LENGTH, size.to_string())] {
        // A media type that is no header value is left out: it stands in the dispatch as well.
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// A body that is read from disk as fast as the caller takes it.
struct Chunks {
    body: mpsc::Receiver<std::io::Result<Bytes>>,
    left: u64,
}

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let next = std::task::ready!(self.body.poll_recv(cx));
        if let Some(Ok(chunk)) = &next {
            self.left = self.left.saturating_sub(chunk.len() as u64);
        }
        Poll::Ready(next.map(|chunk| chunk.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

async fn state(State(shared): State<Arc<Shared>>, Path(id): Path<String>, body: Bytes) -> Answer<DispatchView> {
    let (id, asked) = (id_of(&id)?, body_of::<StatusJson>(&body)?);
    let (event, reasons) = match asked.code.as_str() {
        "03" => (Event::Registered, vec![]),
        "02" if asked.description.trim().is_empty() => {
            return Err(Problem::malformed("a refusal (02) needs a description that says why"));
        }
        "02" => {
            let code = asked.reason.unwrap_or_else(|| ReasonCode::Other.as_str().into());
            let code: ReasonCode =
                code.parse().map_err(|e: docaxis_protocol::reason::UnknownReason| Problem::malformed(e.to_string()))?;
            (Event::Refused, vec![code.because(asked.description)])
        }
        other => {
            let code: Status = other.parse().map_err(|_| {
                Problem::malformed(format!("status {other:?} is not a recipient's; 02 to 06, 15 and 16 are"))
            })?;
            related::report(&shared, id, asked.recipient, code, &asked.description).await?;
            return Ok(Json(query::show(&shared, id).await?));
        }
    };
    officer::state(&shared, id, asked.recipient, event, reasons).await?;
    Ok(Json(query::show(&shared, id).await?))
}

async fn open(State(shared): State<Arc<Shared>>, Path(id): Path<String>, body: Bytes) -> Answer<DispatchView> {
    let (id, asked) = (id_of(&id)?, body_of::<OpenJson>(&body)?);
    officer::state(&shared, id, asked.recipient, Event::ContentAccessTracking, vec![]).await?;
    Ok(Json(query::show(&shared, id).await?))
}

async fn recall(State(shared): State<Arc<Shared>>, Path(id): Path<String>, body: Bytes) -> Result<Response, Problem> {
    let (id, asked) = (id_of(&id)?, body_of::<RecallJson>(&body)?);
    let id = related::recall(&shared, id, asked.to, &asked.reason).await?;
    Ok((StatusCode::ACCEPTED, Json(Made { id, sent_before: vec![] })).into_response())
}

async fn evidence(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer<Value> {
    let rows = query::evidence(&shared, id_of(&id)?).await?;
    let rows: Vec<EvidenceJson> = rows.into_iter().map(EvidenceJson::from).collect();
    Ok(Json(json!({ "evidence": rows })))
}

#[derive(Deserialize)]
struct BundleQuery {
    #[serde(default)]
    recipient: Option<AgencyCode>,
}

async fn bundle(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(asked): Query<BundleQuery>,
) -> Result<Response, Problem> {
    let zip = query::bundle(&shared, id_of(&id)?).await?.zip(asked.recipient.as_ref())?;
    Ok(([(header::CONTENT_TYPE, "application/zip")], zip).into_response())
}

#[derive(Deserialize)]
struct AgenciesQuery {
    #[serde(default)]
    q: String,
}

async fn agencies(State(shared): State<Arc<Shared>>, Query(asked): Query<AgenciesQuery>) -> Answer<Value> {
    let found = shared.mailbox.find_agencies(&asked.q, query::PAGE).await.map_err(compose::Refused::from)?;
    let found = found.into_iter().map(AgencyJson::try_from).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(compose::Refused::from)?;
    Ok(Json(json!({ "agencies": found })))
}
