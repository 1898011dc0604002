//! Makes a dispatch out of a draft: stores its parts, gives it its id once and for all, seals it, and answers when it
//! is durable. A draft that breaks a rule is refused before anything is kept.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docaxis_protocol::digest::Hasher;
use docaxis_protocol::envelope::{self, Envelope, Kind, Part, PartRole, Relation, Sender, StatusReport};
use docaxis_protocol::{AgencyCode, Digest, DispatchId, Reason, ReasonCode, SealedEnvelope, Timestamp, limits};
use serde_json::{Map, Value};
use unicode_normalization::UnicodeNormalization as _;

use crate::agent::{AgentHandle, Shared};
use crate::bodies::Kept;
use crate::env::EntropyError;
use crate::mailbox::{
    Destroyed, DocumentKeys, GivesUp, MAX_SMALL_BODY_BYTES, MailboxError, NotQueued, Queued, QueuedAs, QueuedPart,
    Related, Resolved,
};
use crate::parts::{CHUNK_BYTES, Parts, PartsError, Stored};
use crate::related;
use crate::transfers::Transfer;

/// Longest key that a caller may give its request.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 255;

/// What a sender asks for.
#[derive(Debug, Clone)]
pub struct Draft {
    pub from: AgencyCode,
    pub to: Vec<AgencyCode>,
    /// Let those have it who can, where some of the recipients cannot.
    pub partial: bool,
    pub kind: Kind,
    /// 0 normal to 4.
    pub priority: u8,
    pub not_before: Option<Timestamp>,
    /// The edXML header under its own field names, plus `secret`.
    pub document: Map<String, Value>,
    pub parts: Vec<DraftPart>,
    /// When the exchange stops trying; the configured time from now if absent.
    pub expires: Option<Timestamp>,
    pub relates: Vec<Relation>,
    pub status: Option<StatusReport>,
    /// A name under which the caller can see meanwhile how far its files are taken in ([`crate::AgentHandle::taken_in`]).
    pub progress_key: Option<String>,
    /// The caller's own name for this request: the same again gets the same dispatch.
    pub idempotency_key: Option<String>,
    /// Whether a document that was sent under the same name before keeps this one back.
    pub unless_sent_before: bool,
    /// Whether `related.rs` made it: a recall of what was sent, or a recipient's status, whose rules stand there.
    pub(crate) checked: bool,
    /// The document that its recipient gives up by this.
    pub(crate) gives_up: Option<GivesUp>,
}

impl Draft {
    /// A new document with nothing but sender and recipients.
    pub fn new(from: AgencyCode, to: Vec<AgencyCode>) -> Self {
        Self {
            from,
            to,
            partial: false,
            kind: Kind::New,
            priority: 0,
            not_before: None,
            document: Map::new(),
            parts: vec![],
            expires: None,
            relates: vec![],
            status: None,
            progress_key: None,
            idempotency_key: None,
            unless_sent_before: false,
            checked: false,
            gives_up: None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct DraftPart {
    pub name: String,
    pub media_type: String,
    pub role: PartRole,
    pub source: Source,
}

#[derive(Debug, Clone)]
pub enum Source {
    Bytes(Vec<u8>),
    File(PathBuf),
}

/// Why something that a caller asked for was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A rule, with its code.
    #[error("{0}")]
    Rule(Reason),
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    #[error(transparent)]
    Parts(#[from] PartsError),
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl Refused {
    /// The code that a program sees.
    pub fn code(&self) -> ReasonCode {
        match self {
            Self::Rule(reason) => reason.known(),
            Self::Read { .. } => ReasonCode::NotFound,
            Self::Parts(error) if error.is_disk_full() => ReasonCode::DiskFull,
            Self::Mailbox(MailboxError::Full) => ReasonCode::DiskFull,
            Self::Parts(PartsError::Missing(_)) => ReasonCode::NotFound,
            Self::Mailbox(_) | Self::Parts(_) | Self::Entropy(_) => ReasonCode::Other,
        }
    }
}

fn rule<T>(code: ReasonCode, text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Rule(code.because(text)))
}

impl AgentHandle {
    /// Queues a dispatch; when this answers, it is durable and will be sent.
    pub async fn compose(&self, draft: Draft) -> Result<DispatchId, Refused> {
        Ok(compose(&self.shared, draft).await?.id)
    }
}

/// A durable dispatch, and documents that were sent under the same name before.
pub(crate) struct Composed {
    pub id: DispatchId,
    pub sent_before: Vec<DispatchId>,
}

pub(crate) async fn compose(shared: &Shared, draft: Draft) -> Result<Composed, Refused> {
    let identity = shared.identity.load_full();
    let Some(seal) = identity.seals.get(&draft.from) else {
        return rule(ReasonCode::NotHosted, format!("this node does not act for {}", draft.from));
    };
    if draft.idempotency_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY_BYTES) {
        return rule(ReasonCode::Malformed, "an idempotency key has 1 to 255 bytes");
    }
    if let Some(own) = shared.mailbox.agency(draft.from.clone()).await? {
        if let Some(successor) = own.successor {
            let text = format!("{} was merged into {successor}, which sends in its place", draft.from);
            return rule(ReasonCode::SenderLocked, text);
        }
        // The exchange would reject the answer, and what it says is destroyed would be.
        if own.locked && draft.gives_up.is_some() {
            let text = format!("{} is locked: nothing is given back before it may send again", draft.from);
            return rule(ReasonCode::SenderLocked, text);
        }
    }
    // What is refused here is still with its sender, who can send it again; what is queued must be able to go out.
    shared.space.may_begin(size_of(&draft.parts)).map_err(Refused::Rule)?;
    // A recall names them as the document did, whatever the directory says of them since.
    let as_sent = draft.checked && draft.kind == Kind::Recall;
    let recipients = if as_sent { draft.to.clone() } else { resolve(shared, &draft.to, draft.partial).await? };
    let now = shared.env.now();
    let max_part_bytes = shared.config.inbox.max_part_bytes;
    let mut envelope = Envelope {
        kind_of_bytes: envelope::TYPE.into(),
        exchange: identity.origin.clone(),
        id: shared.env.dispatch_id()?,
        created: now,
        expires: draft.expires.unwrap_or_else(|| now.plus(shared.config.outbox.expires_after)),
        sender: Sender { agency: draft.from.clone(), node: identity.node.clone() },
        recipients,
        partial: draft.partial,
        kind: draft.kind,
        priority: draft.priority,
        not_before: draft.not_before,
        document: draft.document,
        relates: draft.relates,
        status: draft.status,
        parts: vec![],
        encryption: None,
        salt: STANDARD.encode(shared.env.random::<16>()?),
    };
    // Before any byte is stored: a secret document must not touch the disk, nor a hundred files for nothing.
    check(&envelope, max_part_bytes)?;
    let about = (related::check(shared, &envelope, draft.checked).await?, draft.gives_up, draft.unless_sent_before);
    if draft.parts.len() > limits::MAX_PARTS {
        return rule(
            ReasonCode::TooManyParts,
            format!("{} parts; the limit is {}", draft.parts.len(), limits::MAX_PARTS),
        );
    }
    let drafts = draft.parts;
    let name = draft.progress_key.map(|key| taking_in(&key));
    let taken = name.map(|name| shared.transfers.begin(name, size_of(&drafts)));
    let (parts, mut kept) =
        shared.blocking(move |parts| store_all(&parts, drafts, max_part_bytes, taken.as_ref())).await?;
    docaxis_failpoints::failpoint!("agent.compose.stored");
    envelope.parts = parts;
    let queued = queue(shared, &envelope, &draft.from, seal, (draft.idempotency_key, now), about, &mut kept).await;
    let bodies: Vec<Digest> = envelope.parts.iter().map(|part| part.sha256).collect();
    drop(kept);
    match queued {
        Ok(QueuedAs { id, destroyed: Destroyed { unreferenced }, sent_before }) => {
            docaxis_failpoints::failpoint!("agent.compose.queued");
            shared.outbox.notify_one();
            shared.changed();
            // It is queued whatever comes of this; what cannot be cleared away now is by the next start.
            let cleared = shared.clear(unreferenced).await.map_err(|error| error.to_string());
            if let Err(error) = cleared.and_then(|cleared| cleared.map_err(|error| error.to_string())) {
                shared.alarm(format!(
                    "bodies that dispatch {id} gave up are still on the disk: {error}; restart the agent to clear them"
                ));
            }
            Ok(Composed { id, sent_before })
        }
        Err(refused) => {
            shared.clear(bodies).await??;
            Err(refused)
        }
    }
}

async fn queue(
    shared: &Shared,
    envelope: &Envelope,
    from: &AgencyCode,
    seal: &crate::identity::Seal,
    (key, now): (Option<String>, Timestamp),
    (related, gives_up, unless_sent_before): (Vec<Related>, Option<GivesUp>, bool),
    kept: &mut Kept,
) -> Result<QueuedAs, Refused> {
    check(envelope, shared.config.inbox.max_part_bytes)?;
    let idempotency = key.map(|key| (key, request_digest(envelope)));
    let sealed =
        SealedEnvelope::seal(envelope, &seal.key, seal.chain.clone()).map_err(|e| Refused::Rule(e.reason()))?;
    let parts: BTreeSet<QueuedPart> =
        envelope.parts.iter().map(|part| QueuedPart { sha256: part.sha256, size: part.size }).collect();
    let mut queued = Queued {
        id: envelope.id,
        sender: from.clone(),
        recipients: envelope.recipients.clone(),
        sealed,
        priority: envelope.priority,
        queued: now,
        parts: parts.into_iter().collect(),
        small: kept.small.clone(),
        related,
        document: DocumentKeys::of(envelope),
        unless_sent_before,
        gives_up,
        idempotency,
    };
    docaxis_failpoints::failpoint!("agent.compose.sealed");
    loop {
        match shared.mailbox.queue(queued.clone()).await? {
            Ok(queued) => return Ok(queued),
            Err(NotQueued::SentBefore(before)) => {
                let before: Vec<String> = before.iter().map(DispatchId::to_string).collect();
                let text = format!(
                    "a document of this id, or of this number, notation, issuer and year, was sent already: {}",
                    before.join(", ")
                );
                return rule(ReasonCode::DuplicateDocument, text);
            }
            Err(NotQueued::Said(code)) => {
                return rule(ReasonCode::IdConflict, format!("{from} has said {code} already; this does not go back"));
            }
            Err(NotQueued::NotHere) => {
                return rule(ReasonCode::NotFound, "the document that would be given up is not here, or no longer");
            }
            Err(NotQueued::Conflict(id)) => {
                let text = format!("this idempotency key was used for dispatch {id}, which is another");
                return rule(ReasonCode::IdConflict, text);
            }
            Err(NotQueued::LookAt(sha256)) => {
                kept.look_at(shared, sha256).await??;
                queued.small = kept.small.clone();
            }
        }
    }
}

fn check(envelope: &Envelope, max_part_bytes: u64) -> Result<(), Refused> {
    envelope.check(max_part_bytes).map_err(|e| Refused::Rule(e.reason()))
}

/// What was asked for, apart from what each attempt makes anew: id, times and salt.
fn request_digest(envelope: &Envelope) -> Digest {
    let mut hasher = Hasher::new();
    let mut asked = envelope.clone();
    asked.created = Timestamp::from_unix_ms(0);
    asked.expires = Timestamp::from_unix_ms(0);
    asked.salt.clear();
    let mut text = serde_json::to_value(&asked).unwrap_or_default();
    if let Some(object) = text.as_object_mut() {
        object.remove("id");
    }
    hasher.update(text.to_string().as_bytes());
    hasher.finish()
}

/// Canonical codes in place of aliases. As long as there is no directory here, the exchange is left to judge; and where
/// others shall have it anyway, it gives evidence of those who cannot.
async fn resolve(shared: &Shared, to: &[AgencyCode], partial: bool) -> Result<Vec<AgencyCode>, Refused> {
    let mut canonical = Vec::with_capacity(to.len());
    let mut seen = BTreeSet::new();
    if to.len() > limits::MAX_RECIPIENTS {
        return rule(ReasonCode::TooLarge, format!("{} recipients; the limit is {}", to.len(), limits::MAX_RECIPIENTS));
    }
    for code in to {
        let found = match shared.mailbox.resolve(code.clone()).await? {
            Resolved::Agency(agency) if agency.locked && !partial => {
                return rule(ReasonCode::RecipientLocked, format!("{code} ({}) is locked", agency.name));
            }
            Resolved::Agency(agency) => agency.code,
            Resolved::Ambiguous(several) => {
                return rule(ReasonCode::UnknownRecipient, format!("{code} may be any of {several:?}"));
            }
            Resolved::Unknown if partial => code.clone(),
            Resolved::Unknown => return rule(ReasonCode::UnknownRecipient, format!("the directory has no {code}")),
            Resolved::NoDirectory => code.clone(),
        };
        if !seen.insert(found.clone()) {
            return rule(ReasonCode::DuplicateRecipient, format!("{code} stands for {found}, which is named already"));
        }
        canonical.push(found);
    }
    Ok(canonical)
}

/// Under which name it is counted how far a caller's files are taken in.
pub(crate) fn taking_in(progress_key: &str) -> String {
    format!("taking in {progress_key}")
}

/// Bytes that the parts will take. A file that cannot be looked at now is reported when it is read.
fn size_of(parts: &[DraftPart]) -> u64 {
    let size = |part: &DraftPart| match &part.source {
        Source::Bytes(bytes) => bytes.len() as u64,
        Source::File(path) => std::fs::metadata(path).map_or(0, |metadata| metadata.len()),
    };
    parts.iter().map(size).fold(0, u64::saturating_add)
}

/// Stores what is large, and reads what is small: that becomes durable with the dispatch.
fn store_all(
    parts: &Arc<Parts>,
    drafts: Vec<DraftPart>,
    max_part_bytes: u64,
    taken: Option<&Transfer>,
) -> Result<(Vec<Part>, Kept), Refused> {
    let mut all = Vec::with_capacity(drafts.len());
    let mut kept = Kept::default();
    for draft in drafts {
        let name: String = draft.name.nfc().collect();
        let (sha256, size) = match draft.source {
            Source::Bytes(bytes) => keep(parts, bytes, &mut kept)?,
            Source::File(path) => keep_file(parts, &path, (max_part_bytes, taken), &mut kept)?,
        };
        all.push(Part { name, media_type: draft.media_type, size, sha256, role: draft.role });
    }
    Ok((all, kept))
}

fn keep(parts: &Arc<Parts>, bytes: Vec<u8>, kept: &mut Kept) -> Result<(Digest, u64), PartsError> {
    let size = bytes.len() as u64;
    if kept.small.fits(size) {
        return Ok((kept.small.add(bytes.into()), size));
    }
    let Stored { sha256, size, pin } = parts.store(&bytes)?;
    kept.pins.push(pin);
    Ok((sha256, size))
}

fn keep_file(
    parts: &Arc<Parts>,
    path: &std::path::Path,
    (max_part_bytes, taken): (u64, Option<&Transfer>),
    kept: &mut Kept,
) -> Result<(Digest, u64), Refused> {
    let failed = |source| Refused::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut chunk = Vec::new();
    (&mut file).take(MAX_SMALL_BODY_BYTES as u64 + 1).read_to_end(&mut chunk).map_err(failed)?;
    if chunk.len() <= MAX_SMALL_BODY_BYTES {
        within(path, chunk.len() as u64, max_part_bytes)?;
        return Ok(keep(parts, chunk, kept)?);
    }
    let mut writer = parts.begin()?;
    while !chunk.is_empty() {
        writer.write(&chunk)?;
        if let Some(taken) = taken {
            taken.add(chunk.len() as u64);
        }
        within(path, writer.size(), max_part_bytes)?;
        chunk.clear();
        (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).map_err(failed)?;
    }
    let Stored { sha256, size, pin } = writer.finish()?.keep()?;
    kept.pins.push(pin);
    Ok((sha256, size))
}

fn within(path: &std::path::Path, size: u64, max_part_bytes: u64) -> Result<(), Refused> {
    if size <= max_part_bytes {
        return Ok(());
    }
    rule(ReasonCode::TooLarge, format!("{} is over the limit of {max_part_bytes} bytes", path.display()))
}
