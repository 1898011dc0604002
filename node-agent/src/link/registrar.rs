//! The thread that owns the authority while it is linked: reading its folder, signing and syncing must not stop the
//! link's runtime. Questions come over a bounded channel; each brings its own way back.

use std::path::{Path, PathBuf};

use docaxis_certs::authority::{AuthorityError, JoinReply, renewal_is_due};
use docaxis_certs::identity::IdentityError;
use docaxis_certs::name::{Facts, FactsError};
use docaxis_certs::{Authority, AuthorityLink};
use docaxis_protocol::frame::Notices;
use docaxis_protocol::{Reason, ReasonCode, Timestamp};
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait: the link allows few requests at once.
const WAITING: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum RegistrarError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the authority's own certificate does not read")]
    Facts(#[from] FactsError),
    #[error("the thread that holds the authority has ended")]
    Ended,
}

/// Where the broker is, and with what to connect to it.
#[derive(Debug)]
pub struct LinkTo {
    pub address: String,
    pub dns_name: String,
    pub identity: AuthorityLink,
}

/// The answer to a request to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    pub answer: Vec<u8>,
    /// The directory's version that names the node as its agencies' host.
    pub version: u64,
}

enum Ask {
    Link { back: oneshot::Sender<Result<LinkTo, RegistrarError>> },
    Notices { since: u64, back: oneshot::Sender<Result<Notices, RegistrarError>> },
    Join { request: Vec<u8>, mac: Vec<u8>, back: oneshot::Sender<Result<Granted, Reason>> },
}

/// A handle to the thread; it ends when the last handle is dropped.
#[derive(Clone)]
pub struct Registrar(mpsc::Sender<Ask>);

impl Registrar {
    /// Opens the authority in `folder` and starts its thread. `now` is asked for the time of each act.
    pub fn start(folder: &Path, now: fn() -> Timestamp) -> Result<Self, RegistrarError> {
        let mut desk = Desk { authority: Some(Authority::open(folder)?), folder: folder.to_owned(), now };
        let (send, mut asked) = mpsc::channel(WAITING);
        let started = std::thread::Builder::new().name("authority".into()).spawn(move || {
            while let Some(ask) = asked.blocking_recv() {
                desk.answer(ask);
            }
        });
        match started {
            // The thread ends with the channel; nothing of it has to be waited for, since every change is on disk
            // before it is answered.
            Ok(_detached) => Ok(Self(send)),
            Err(error) => {
                tracing::error!(%error, "no thread for the authority can be started");
                Err(RegistrarError::Ended)
            }
        }
    }

    pub async fn link(&self) -> Result<LinkTo, RegistrarError> {
        let (back, answer) = oneshot::channel();
        self.0.send(Ask::Link { back }).await.map_err(|_| RegistrarError::Ended)?;
        answer.await.unwrap_or(Err(RegistrarError::Ended))
    }

    pub async fn notices_since(&self, since: u64) -> Result<Notices, RegistrarError> {
        let (back, answer) = oneshot::channel();
        self.0.send(Ask::Notices { since, back }).await.map_err(|_| RegistrarError::Ended)?;
        answer.await.unwrap_or(Err(RegistrarError::Ended))
    }

    /// The answer to a request to join, or the reason that goes back instead.
    pub async fn join(&self, request: Vec<u8>, mac: Vec<u8>) -> Result<Granted, Reason> {
        let away = || ReasonCode::Busy.because("the authority cannot answer at the moment");
        let (back, answer) = oneshot::channel();
        self.0.send(Ask::Join { request, mac, back }).await.map_err(|_| away())?;
        answer.await.unwrap_or_else(|_| Err(away()))
    }
}

struct Desk {
    authority: Option<Authority>,
    folder: PathBuf,
    now: fn() -> Timestamp,
}

impl Desk {
    fn answer(&mut self, ask: Ask) {
        // Whoever asked may be gone; what was recorded stays, and the same question gets the same answer.
        match ask {
            Ask::Link { back } => drop(back.send(self.link())),
            Ask::Notices { since, back } => drop(back.send(self.notices(since))),
            Ask::Join { request, mac, back } => drop(back.send(self.join(&request, &mac))),
        }
    }

    /// After a failed write nobody knows what is on disk: the folder is read again before the next answer.
    fn open(&mut self) -> Result<&mut Authority, AuthorityError> {
        let authority = match self.authority.take() {
            Some(authority) => authority,
            None => Authority::open(&self.folder)?,
        };
        Ok(self.authority.insert(authority))
    }

    fn link(&mut self) -> Result<LinkTo, RegistrarError> {
        let (folder, now) = (self.folder.clone(), (self.now)());
        let authority = self.open()?;
        let mut identity = AuthorityLink::load(&folder)?;
        if renewal_is_due(&Facts::of(&identity.certificate)?, now) {
            authority.issue_link(&folder, now)?;
            identity = AuthorityLink::load(&folder)?;
            tracing::info!("the authority's own certificate was renewed");
        }
        Ok(LinkTo { address: authority.broker_address().to_owned(), dns_name: authority.broker_dns_name(), identity })
    }

    fn notices(&mut self, since: u64) -> Result<Notices, RegistrarError> {
        let now = (self.now)();
        let notices = self.open()?.notices_since(since, now);
        if notices.is_err() {
            self.authority = None;
        }
        Ok(notices?)
    }

    fn join(&mut self, request: &[u8], mac: &[u8]) -> Result<Granted, Reason> {
        let now = (self.now)();
        let unable = |error: &dyn std::error::Error| {
            tracing::error!(%error, "a request to join could not be answered");
            // Our own files are no business of a stranger's.
            ReasonCode::Busy.because("the authority cannot answer at the moment; its log says why")
        };
        let authority = self.open().map_err(|error| unable(&error))?;
        match authority.join(request, mac, now) {
            Ok(JoinReply::Granted(answer)) => {
                tracing::info!("a node has joined, or has asked again for its answer");
                Ok(Granted { answer, version: authority.directory_version() })
            }
            Ok(JoinReply::Kept { invitation }) => {
                tracing::warn!(%invitation, "a node asks for more than its invitation allows: `docaxis ca approve`");
                let text = format!("the request with invitation {invitation} waits for the authority's approval");
                Err(ReasonCode::Busy.because(text))
            }
            Err(docaxis_certs::authority::JoinError::Authority(error)) => {
                self.authority = None;
                Err(unable(&error))
            }
            Err(error) => {
                tracing::warn!(%error, "a request to join was refused");
                Err(error.reason().because(error.to_string()))
            }
        }
    }
}
