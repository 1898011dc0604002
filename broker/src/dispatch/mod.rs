//! The exchange itself: performs what the pure parts decide, in order.
//!
//! The one order that everything here keeps: check, make the bodies durable, sign, commit, and only then answer. An
//! answer that means "accepted" or "recorded" is built from what the store returned after its commit.

mod appointed;
mod intake;
mod outcome;
mod recall;
mod repair;
mod turn;
mod unanswered;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::Poll;

use docaxis_protocol::directory::{DirectoryError, SignedEntry, VerifiedEntry};
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::evidence::EvidenceError;
use docaxis_protocol::frame::{EvidenceItem, Notices};
use docaxis_protocol::limits::MAX_BATCH;
use docaxis_protocol::{AgencyCode, NodeId, Origin, Reason, ReasonCode, Timestamp};

use crate::answer::Calendar;
use crate::bells::Bells;
use crate::blobs::BlobStore;
use crate::continuity;
use crate::directory::Directory;
use crate::env::Env;
use crate::evidence::{Issuer, LogReader};
use crate::link::Links;
use crate::quota::Quotas;
use crate::seals::Seals;
use crate::space::Space;
use crate::store::{Answer, Store, StoreError};
use crate::work::{GivenUp, Workers};

pub use appointed::Appointed;
pub use intake::{Admitted, Intake, inline_sizes};
pub use outcome::{Again, Offering, Prepared};
pub use repair::{Repairs, Wanted};
pub use turn::Way;
pub use unanswered::Unanswered;

/// Pieces of evidence that are read at once for a `Follow`: one about a circular can be 200 KiB.
const FOLLOW_READ: usize = 32;
/// Evidence given at once in a `Follow`, in bytes: the node commits what comes together in one transaction.
const FOLLOW_BYTES: usize = 512 << 10;
/// Directory entries sent in one frame, in bytes.
const DIRECTORY_BATCH_BYTES: usize = 512 << 10;

/// Something that went wrong on our side, not the peer's.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    GivenUp(#[from] GivenUp),
    #[error("evidence could not be written: {0}")]
    Evidence(#[from] EvidenceError),
    #[error("a directory entry was not taken: {0}")]
    Directory(#[from] DirectoryError),
    #[error("a revocation list was not taken: {0}")]
    Crl(String),
}

impl ExchangeError {
    /// Whether this is one of many while the store takes nothing new: the log says that once, elsewhere.
    pub const fn is_expected(&self) -> bool {
        matches!(self, Self::Store(StoreError::DiskFull(_) | StoreError::Behind(_)))
    }

    /// What the peer is told. The cause itself goes to the log.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Store(StoreError::Frozen(why)) => ReasonCode::Busy.because(why.clone()),
            Self::Store(source) => source.reason().because(match source {
                StoreError::DiskFull(why) => format!("the exchange's disk is full: {why}"),
                StoreError::Behind(_) => format!("the exchange takes nothing new at the moment: {source}"),
                _ => "the exchange cannot store anything at the moment".into(),
            }),
            Self::Directory(_) | Self::Crl(_) => ReasonCode::Malformed.because(self.to_string()),
            Self::GivenUp(_) | Self::Evidence(_) => {
                ReasonCode::Busy.because("the exchange cannot do this at the moment")
            }
        }
    }
}

/// Waits for the store's answer. `queued` is called when the request stands in the order in which the store decides, unless it
/// was refused at once: what is asked after that is decided after this.
async fn in_place<T>(mut answer: Answer<'_, T>, queued: impl Fn()) -> Result<T, StoreError> {
    // Where the store has no room at the moment, the first poll takes the next place.
    let first = std::future::poll_fn(|context| Poll::Ready(answer.as_mut().poll(context))).await;
    if !matches!(first, Poll::Ready(Err(_))) {
        queued();
    }
    match first {
        Poll::Ready(done) => done,
        Poll::Pending => answer.await,
    }
}

/// Takes a revocation list in PEM to whoever must heed it, or says why it was not taken.
pub type CrlSink = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Everything that sessions share.
pub struct Exchange {
    pub env: Arc<dyn Env>,
    pub origin: Origin,
    pub store: Arc<dyn Store>,
    pub blobs: Arc<BlobStore>,
    /// Whether there is room for new work.
    pub space: Arc<Space>,
    pub issuer: Issuer,
    pub seals: Seals,
    pub directory: RwLock<Directory>,
    pub log: LogReader,
    pub bells: Bells,
    pub repairs: Repairs,
    /// What is not to be offered before its time.
    pub appointed: Appointed,
    pub workers: Workers,
    pub links: Arc<Links>,
    /// Whether the log goes on where it was.
    pub continuity: continuity::Keeper,
    pub max_part_bytes: u64,
    pub quotas: Arc<Quotas>,
    /// Certificates that a node needs to check evidence and the log.
    pub evidence_chain: Chain,
    pub log_chain: Chain,
    /// Takes revocation lists of the nodes' CA to the link's verifier.
    pub nodes_crl: CrlSink,
    /// The revocation lists in force, in PEM, by the name of their issuer: handed on to the nodes.
    pub crls: RwLock<BTreeMap<String, String>>,
    /// By when recipients answer.
    pub calendar: Calendar,
    /// The first handover in the log whose answer may be due.
    pub unanswered_from: AtomicU64,
}

impl Exchange {
    pub fn now(&self) -> Timestamp {
        self.env.now()
    }

    /// Reads the directory for a moment.
    pub fn with_directory<T>(&self, read: impl FnOnce(&Directory) -> T) -> T {
        read(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Evidence for one of these senders from its cursor on: of the first that has any, behind `after` and around.
    pub fn next_news(
        &self,
        cursors: &BTreeMap<AgencyCode, u64>,
        after: Option<&AgencyCode>,
    ) -> Result<Vec<EvidenceItem>, StoreError> {
        let behind = |agency: &AgencyCode| after.is_some_and(|after| agency > after);
        let (first, then): (Vec<_>, Vec<_>) = cursors.iter().partition(|(agency, _)| behind(agency));
        for (sender, cursor) in first.into_iter().chain(then) {
            let news = self.news_for(sender, *cursor)?;
            if !news.is_empty() {
                return Ok(news);
            }
        }
        Ok(vec![])
    }

    /// Evidence for one sender from `cursor` on, as it is sent to the sender's node.
    fn news_for(&self, sender: &AgencyCode, cursor: u64) -> Result<Vec<EvidenceItem>, StoreError> {
        let (mut news, mut bytes, mut from) = (Vec::new(), 0, cursor);
        loop {
            let stored = self.store.evidence_for_sender(sender, from, FOLLOW_READ)?;
            let all = stored.len() < FOLLOW_READ;
            for piece in stored {
                from = piece.leaf + 1;
                let (evidence, statement_chain) = (piece.evidence, piece.statement_chain);
                let item = EvidenceItem { sender: sender.clone(), leaf: piece.leaf, evidence, statement_chain };
                bytes += size_of_item(&item);
                news.push(item);
            }
            if all || bytes >= FOLLOW_BYTES || news.len() + FOLLOW_READ > MAX_BATCH {
                return Ok(news);
            }
        }
    }

    /// What changed in the directory after `version`; none if nothing did.
    pub fn notices_since(&self, version: u64) -> Option<Notices> {
        self.with_directory(|directory| {
            let entries = directory.since(version, DIRECTORY_BATCH_BYTES);
            let (version, _) = *entries.last()?;
            Some(Notices {
                version,
                entries: entries.into_iter().map(|(_, signed)| signed.clone()).collect(),
                crls: Vec::new(),
            })
        })
    }

    /// The revocation lists in force that differ from those in `known`, which is brought up to date.
    pub fn new_crls(&self, known: &mut BTreeMap<String, String>) -> Option<Notices> {
        let crls = self.crls.read().unwrap_or_else(PoisonError::into_inner);
        let news: Vec<_> = crls.iter().filter(|(name, pem)| known.get(*name) != Some(*pem)).collect();
        let crls: Vec<_> = news.into_iter().map(|(name, pem)| (name.clone(), pem.clone())).collect();
        known.extend(crls.iter().cloned());
        (!crls.is_empty()).then(|| Notices { version: 0, entries: Vec::new(), crls })
    }

    /// Takes up what the authority signed: entries are verified, then durable, then in force.
    pub async fn publish(&self, notices: Notices) -> Result<u64, ExchangeError> {
        // Hundreds of signatures: not on the link's thread, and nobody waits for the directory meanwhile.
        let (check, entries) = (self.with_directory(Directory::check), notices.entries);
        let verified = self.workers.run(move || check.verify(entries)).await??;
        let news = self.with_directory(|directory| directory.newer(verified));
        // A revocation takes effect at once, and one that does not verify must never become durable.
        for (name, pem) in &notices.crls {
            self.take_crl(name, pem)?;
        }
        let mut durable = Vec::with_capacity(news.len() + notices.crls.len());
        for entry in &news {
            durable.push((format!("agency/{}", entry.agency), encode_entry(entry)?));
        }
        for (name, pem) in &notices.crls {
            durable.push((format!("crl/{name}"), pem.clone().into_bytes()));
        }
        if !durable.is_empty() {
            self.store.put_notices(durable).await?;
            docaxis_failpoints::failpoint!("broker.notices.committed");
        }
        let version = {
            let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
            directory.take(news);
            directory.version()
        };
        self.bells.directory();
        self.continuity.heard_authority();
        Ok(version)
    }

    fn take_crl(&self, name: &str, pem: &str) -> Result<(), ExchangeError> {
        match name {
            "seals" => {
                self.seals.replace_crls(&[pem.as_bytes().to_vec()]).map_err(|e| ExchangeError::Crl(e.to_string()))
            }
            "nodes" => (self.nodes_crl)(pem).map_err(ExchangeError::Crl),
            other => Err(ExchangeError::Crl(format!("no authority is called {other:?}; expected nodes or seals"))),
        }?;
        self.crls.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), pem.to_owned());
        Ok(())
    }

    /// Puts back in force what was published before the broker was last stopped.
    pub fn restore_notices(&self) -> Result<(), ExchangeError> {
        let mut entries = Vec::new();
        for (key, bytes) in self.store.notices()? {
            if let Some(name) = key.strip_prefix("crl/") {
                self.take_crl(name, &String::from_utf8_lossy(&bytes))?;
            } else if key == unanswered::CURSOR {
                let from = bytes.try_into().map_or(0, u64::from_be_bytes);
                self.unanswered_from.store(from, Ordering::Relaxed);
            } else if key.starts_with("agency/") {
                let damaged =
                    |e: docaxis_protocol::codec::CodecError| StoreError::Damaged(format!("notice {key}: {e}"));
                let signed: SignedEntry = docaxis_protocol::codec::decode(&bytes, bytes.len()).map_err(damaged)?;
                entries.push(signed);
            }
        }
        let verified = self.with_directory(Directory::check).verify(entries)?;
        self.directory.write().unwrap_or_else(PoisonError::into_inner).take(verified);
        Ok(())
    }

    /// Rings at the nodes that these agencies' dispatches go to.
    fn ring_recipients<'a>(&self, recipients: impl Iterator<Item = &'a AgencyCode>) {
        self.with_directory(|directory| {
            for recipient in recipients {
                if let Some(node) = directory.serving_node(recipient) {
                    self.bells.offer(node, recipient);
                }
            }
        });
    }

    /// Everybody looks: for what waits, for evidence, for the directory.
    pub fn ring_all(&self) {
        self.with_directory(|directory| {
            for node in directory.nodes() {
                directory.served_by(&node).iter().for_each(|agency| self.bells.offer(&node, agency));
                self.bells.evidence(&node);
            }
        });
    }

    fn ring_sender(&self, sender: &AgencyCode) {
        if let Some(node) = self.with_directory(|directory| directory.node_of(sender).cloned()) {
            self.bells.evidence(&node);
        }
    }

    /// Whether `node` acts for `agency`.
    pub fn hosts(&self, node: &NodeId, agency: &AgencyCode) -> bool {
        self.with_directory(|directory| directory.hosts(node, agency))
    }
}

/// Bytes that a piece of evidence takes in a frame, or a few more.
pub fn size_of_item(item: &EvidenceItem) -> usize {
    let chain = item.statement_chain.iter().flat_map(|chain| &chain.0).map(|certificate| certificate.0.len() + 16);
    item.evidence.bytes.len() + chain.sum::<usize>() + 256
}

fn encode_entry(entry: &VerifiedEntry) -> Result<Vec<u8>, ExchangeError> {
    let limit = docaxis_protocol::limits::MAX_CONTROL_FRAME_BYTES;
    docaxis_protocol::codec::encode(entry.signed(), limit).map_err(|e| StoreError::Damaged(e.to_string()).into())
}
