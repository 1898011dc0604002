//! Judging an evidence bundle against an auditor's own trust root, one named check after the other.
//!
//! Nothing in the bundle is trusted without that root; `index.html` proves nothing. The rules of single pieces of
//! evidence are in `rules`; here is the frame: keys, chain order, log, parts, expectations.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read, Seek};

use super::doc::Doc;
use super::reader::{BundleFiles, ReadError};
use super::rules::Walk;
use crate::chain::{self, CertifiedKey, ChainError, SealChains, TrustRoot};
use crate::digest::Digest;
use crate::evidence::Event;
use crate::json::JsonError;
use crate::key::{Context, KeyError, RawSignature};
use crate::time::Timestamp;
use crate::tlog::checkpoint::{Checkpoint, CheckpointError};
use crate::tlog::merkle::{Frontier, ProofError};
use crate::tlog::note::{KeyKind, NoteError, VerifierKey};
use crate::tlog::proof::{TlogProof, TlogProofError};
use crate::tlog::tile::{TILE_WIDTH, TilePath};

/// Reads a file of the auditor's copy of the log, by its path in the tlog-tiles layout.
pub type ReadLog<'a> = &'a dyn Fn(&str) -> std::io::Result<Vec<u8>>;

/// What the auditor brings along and asks.
#[derive(Default)]
pub struct Question<'a> {
    /// The auditor's own trust root, PEM or DER, exactly one certificate.
    pub root: &'a [u8],
    /// The log's key, if the auditor has it from elsewhere; else the one that the authority certified.
    pub log_key: Option<VerifierKey>,
    /// Witnesses that the auditor trusts, and how many of them must have cosigned.
    pub witnesses: Vec<VerifierKey>,
    pub quorum: usize,
    /// A copy of the exchange's log: every proof must agree with it.
    pub log: Option<ReadLog<'a>>,
    /// The received files, by digest with their size: each part must be among them.
    pub parts: Option<BTreeMap<Digest, u64>>,
    /// Events that must be there: `EVENT` or `EVENT:RECIPIENT`.
    pub expect: Vec<String>,
}

/// One thing that was checked: what it was, and what came out.
#[derive(Debug)]
pub struct Check {
    pub name: String,
    /// On success a detail that may be empty.
    pub outcome: Result<String, Failure>,
}

/// What came out of all checks.
#[derive(Debug, Default)]
pub struct Verdict {
    pub checks: Vec<Check>,
    pub dispatch: Option<String>,
    /// Events in chain order, with their recipients.
    pub events: Vec<(String, Option<String>)>,
    /// The state that each recipient reached.
    pub states: BTreeMap<String, String>,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{name} is missing")]
    Missing { name: String },
    #[error("{what} does not read: {source}")]
    Json { what: String, source: JsonError },
    #[error("{what}: field {field:?} is not {expected}")]
    Field { what: String, field: String, expected: &'static str },
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("the signature {signature} over {bytes} does not hold: {source}")]
    Signature { signature: String, bytes: String, source: KeyError },
    #[error("{what}: {source}")]
    Note { what: &'static str, source: NoteError },
    #[error("{}", sentence(.0))]
    Proof(#[from] TlogProofError),
    #[error("{what} cannot be read: {source}")]
    Log { what: String, source: std::io::Error },
    #[error("the log's checkpoint does not open: {}", sentence(.0))]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Tree(#[from] ProofError),
    #[error("{0}")]
    Rule(String),
}

/// An error with what lies behind it, as one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        out = format!("{out}: {error}");
        source = error.source();
    }
    out
}

pub(super) fn need(condition: bool, message: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::Rule(message())) }
}

impl Verdict {
    /// Whether there were checks and none failed.
    pub fn holds(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.outcome.is_ok())
    }

    pub fn failures(&self) -> impl Iterator<Item = (&str, &Failure)> {
        self.checks.iter().filter_map(|check| Some((check.name.as_str(), check.outcome.as_ref().err()?)))
    }

    /// Performs a check and keeps its outcome; what it yields comes back.
    fn check<T>(&mut self, name: impl Into<String>, outcome: Result<(T, String), Failure>) -> Option<T> {
        let (value, outcome) = match outcome {
            Ok((value, detail)) => (Some(value), Ok(detail)),
            Err(failure) => (None, Err(failure)),
        };
        self.checks.push(Check { name: name.into(), outcome });
        value
    }
}

/// Judges a bundle that is in memory.
pub fn verify(zip: &[u8], question: &Question<'_>) -> Verdict {
    verify_from(Cursor::new(zip), question)
}

/// Judges a bundle.
pub fn verify_from<R: Read + Seek>(zip: R, question: &Question<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    let read = BundleFiles::read_from(zip).map_err(Failure::from);
    let opened = read.map(|files| {
        let detail = format!("{} files", files.0.len());
        (files, detail)
    });
    if let Some(files) = verdict.check("the bundle opens", opened) {
        verify_files(&files, question, &mut verdict);
    }
    verdict
}

fn verify_files(files: &BundleFiles, question: &Question<'_>, verdict: &mut Verdict) {
    let opened = Bundle::open(files, question).map(|bundle| {
        let detail = format!("log {}", bundle.log.name());
        (bundle, detail)
    });
    let Some(bundle) = verdict.check("authority, keys and one submission event", opened) else { return };
    verdict.dispatch = bundle.submission.get("dispatch").and_then(|id| id.as_str()).map(str::to_owned);
    let log = question.log.and_then(|read| {
        let facts = bundle.read_log(read).map(|log| {
            let detail = format!("{} leaves", log.size);
            (log, detail)
        });
        verdict.check("the log agrees with its own checkpoint", facts)
    });
    let (name, outcome) = match &bundle.envelope {
        Some(envelope) => ("the envelope is sealed by its sender".to_owned(), bundle.check_envelope(envelope)),
        None => {
            let codes = bundle.submission.reason_codes().unwrap_or_default().join(", ");
            (format!("the envelope was not verified: it was refused as {codes}"), Ok(()))
        }
    };
    verdict.check(name, outcome.map(|()| ((), String::new())));
    let order = bundle.order().map(|names| {
        let detail = format!("{} pieces", names.len());
        (names, detail)
    });
    let names = verdict.check("the evidence forms whole chains", order).unwrap_or_default();
    let mut walk = Walk::new(&bundle, log.as_ref());
    for name in &names {
        let detail = walk.one(name).map(|detail| ((), detail));
        verdict.check(bundle.records.get(name).map_or_else(|| name.clone(), |record| record.title(name)), detail);
    }
    verdict.states = walk.states();
    verdict.events =
        names.iter().filter_map(|name| bundle.records.get(name)).map(Record::event_and_recipient).collect();
    for item in &question.expect {
        let (event, who) = item.split_once(':').unwrap_or((item, ""));
        let found = verdict.events.iter().any(|(e, w)| e == event && (who.is_empty() || w.as_deref() == Some(who)));
        let outcome = need(found, || "it is not in the bundle".into()).map(|()| ((), String::new()));
        verdict.check(format!("expected {item}"), outcome);
    }
    for must in ["index.html", "VERIFY.txt", "policy.txt"] {
        let there = files.get(must).is_some_and(|bytes| !bytes.is_empty());
        let outcome = need(there, || "missing or empty".into()).map(|()| ((), String::new()));
        verdict.check(format!("{must} is there"), outcome);
    }
    if let (Some(have), Some(envelope)) = (&question.parts, &bundle.envelope) {
        check_parts(envelope, have, verdict);
    }
}

fn check_parts(envelope: &Doc, have: &BTreeMap<Digest, u64>, verdict: &mut Verdict) {
    let parts = match envelope.list("parts") {
        Ok(parts) => parts,
        Err(failure) => {
            verdict.check::<()>("the parts", Err(failure));
            return;
        }
    };
    for part in parts {
        let name = part.get("name").and_then(|name| name.as_str()).unwrap_or("without a name");
        let digest = part.get("sha256").and_then(|text| text.as_str()).and_then(|text| text.parse::<Digest>().ok());
        let size = part.get("size").and_then(serde_json::Value::as_u64);
        let found = digest.is_some_and(|digest| size.is_some() && have.get(&digest).copied() == size);
        let outcome = need(found, || "no received file has this digest and size".into()).map(|()| ((), String::new()));
        verdict.check(format!("part {name}"), outcome);
    }
}

/// One piece of evidence as it stands in the bundle.
pub(super) struct Record {
    pub(super) doc: Doc,
    pub(super) raw: Vec<u8>,
    pub(super) digest: Digest,
}

impl Record {
    fn event_and_recipient(&self) -> (String, Option<String>) {
        let text = |field: &str| self.doc.get(field).and_then(|value| value.as_str()).map(str::to_owned);
        (text("event").unwrap_or_default(), text("recipient"))
    }

    fn title(&self, name: &str) -> String {
        match self.event_and_recipient() {
            (event, Some(who)) => format!("{event} for {who} ({name})"),
            (event, None) => format!("{event} ({name})"),
        }
    }
}

/// A bundle whose frame holds: the authority, the log's key, and exactly one submission event.
pub(super) struct Bundle<'a> {
    pub(super) files: &'a BundleFiles,
    pub(super) question: &'a Question<'a>,
    pub(super) records: BTreeMap<String, Record>,
    pub(super) submission_name: String,
    pub(super) submission: Doc,
    pub(super) issuer: String,
    pub(super) accepted: Timestamp,
    /// None if the submission was rejected: then the envelope may be anything.
    pub(super) envelope: Option<Doc>,
    pub(super) envelope_digest: Digest,
    pub(super) log: VerifierKey,
    chains: SealChains,
    /// Keys that were certified in this run, by certificate and name: the same seal stands beside many statements.
    certified: RefCell<BTreeMap<(Digest, String), CertifiedKey>>,
}

impl<'a> Bundle<'a> {
    fn open(files: &'a BundleFiles, question: &'a Question<'a>) -> Result<Self, Failure> {
        let root = TrustRoot::new(question.root)?;
        let crls = files.iter().filter(|(name, _)| name.ends_with(".crl")).map(|(_, bytes)| bytes);
        let chains =
            SealChains::new(root, files.get("keys/chain.pem").unwrap_or_default(), crls)?.with_crl_required()?;
        let envelope_bytes = member(files, "envelope.json")?;
        let records = read_records(files)?;
        let (submission_name, submission) = one_submission(&records)?;
        let rejected = submission.text("event")? == Event::SubmissionRejection.as_str();
        need(!rejected || records.len() == 1, || "a rejection stands alone".into())?;
        let envelope = if rejected { None } else { Some(Doc::parse("envelope.json", envelope_bytes)?) };
        let issuer = submission.text("issuer")?.to_owned();
        let accepted = submission.time("time")?;
        let certified =
            chains.certified(member(files, "keys/log.pem")?, &format!("docaxis://log/{issuer}"), &[accepted])?;
        let log = VerifierKey::new(&issuer, KeyKind::Ed25519, certified.key().clone())
            .map_err(|source| Failure::Note { what: "the issuer is no name of a log", source })?;
        need(question.log_key.as_ref().is_none_or(|key| *key == log), || {
            "the trusted log key is not the one that the authority certified for this issuer".into()
        })?;
        let vkey = String::from_utf8_lossy(member(files, "keys/log.vkey")?);
        need(vkey.trim() == log.to_string(), || "keys/log.vkey is another key".into())?;
        let inside = chain::certificates("keys/authority.pem", member(files, "keys/authority.pem")?)?;
        need(inside.first().is_some_and(|der| der.as_ref() == chains.root().der()), || {
            "keys/authority.pem is another root than the auditor's".into()
        })?;
        Ok(Self {
            files,
            question,
            records,
            submission_name,
            submission,
            issuer,
            accepted,
            envelope,
            envelope_digest: Digest::of(envelope_bytes),
            log,
            chains,
            certified: RefCell::default(),
        })
    }

    pub(super) fn file(&self, name: &str) -> Result<&'a [u8], Failure> {
        member(self.files, name)
    }

    /// The key that a certificate of the bundle holds for `uri`, good at each of these instants.
    pub(super) fn certified(&self, name: &str, uri: &str, instants: &[Timestamp]) -> Result<CertifiedKey, Failure> {
        let bytes = self.file(name)?;
        let slot = (Digest::of(bytes), uri.to_owned());
        if let Some(known) = self.certified.borrow().get(&slot)
            && instants.iter().all(|at| self.chains.still_good(known, *at).is_ok())
        {
            return Ok(known.clone());
        }
        let key = self.chains.certified(bytes, uri, instants)?;
        self.certified.borrow_mut().insert(slot, key.clone());
        Ok(key)
    }

    /// Checks the signature in one member over the bytes of another.
    pub(super) fn signed(
        &self,
        key: &CertifiedKey,
        context: Context,
        (name, bytes): (&str, &[u8]),
        (signature_name, signature): (&str, &[u8]),
    ) -> Result<(), Failure> {
        let checked = RawSignature::from_slice(signature).and_then(|raw| key.key().verify(context, bytes, &raw));
        checked.map_err(|source| Failure::Signature {
            signature: signature_name.to_owned(),
            bytes: name.to_owned(),
            source,
        })
    }

    fn check_envelope(&self, envelope: &Doc) -> Result<(), Failure> {
        let kind = envelope.text("type")?;
        need(kind == crate::envelope::TYPE, || format!("the envelope's type is {kind:?}"))?;
        need(envelope.text("exchange")? == self.issuer, || "the envelope was sealed for another exchange".into())?;
        let uri = format!("docaxis://agency/{}", envelope.text("sender.agency")?);
        let key = self.certified("seal.pem", &uri, &[envelope.time("created")?, self.accepted])?;
        let bytes = self.file("envelope.json")?;
        let signature = self.file("envelope.sig")?;
        self.signed(&key, Context::Envelope, ("envelope.json", bytes), ("envelope.sig", signature))?;
        let recipients = envelope.texts("recipients")?;
        let distinct: BTreeSet<_> = recipients.iter().collect();
        need(!recipients.is_empty() && distinct.len() == recipients.len(), || {
            "the envelope's recipients are empty or repeated".into()
        })
    }

    /// The evidence in chain order: the submission first, then each recipient's chain.
    fn order(&self) -> Result<Vec<String>, Failure> {
        let mut next: BTreeMap<(Option<&str>, Option<&str>), Vec<&String>> = BTreeMap::new();
        let mut recipients = BTreeSet::new();
        for (name, record) in &self.records {
            let who = record.doc.optional_text("recipient")?;
            recipients.extend(who.filter(|who| !who.is_empty()));
            next.entry((who, record.doc.optional_text("previous")?)).or_default().push(name);
        }
        let start = self.records.get(&self.submission_name).map(|record| record.digest.to_string());
        need(self.submission.optional_text("previous")?.is_none(), || {
            "the submission event must have no previous".into()
        })?;
        let mut out = vec![self.submission_name.clone()];
        for who in recipients {
            let mut at = start.clone();
            while let Some(names) = next.get(&(Some(who), at.as_deref())) {
                let [name] = names[..] else {
                    return Err(Failure::Rule(format!("two pieces of evidence of {who} follow the same one")));
                };
                out.push(name.clone());
                at = self.records.get(name).map(|record| record.digest.to_string());
            }
        }
        if out.len() != self.records.len() {
            let placed: BTreeSet<_> = out.iter().collect();
            let left: Vec<_> = self.records.keys().filter(|name| !placed.contains(name)).take(3).cloned().collect();
            let left = left.join(", ");
            return Err(Failure::Rule(format!("evidence is missing in a chain, or belongs to none: {left}")));
        }
        Ok(out)
    }

    /// Reads the whole log once; keeps what the proofs of this bundle will be compared with.
    fn read_log(&self, read: ReadLog<'_>) -> Result<LogFacts, Failure> {
        let file = |path: &str| read(path).map_err(|source| Failure::Log { what: path.to_owned(), source });
        let note = String::from_utf8_lossy(&file("checkpoint")?).into_owned();
        let opened = Checkpoint::open(&note, &self.log, &self.question.witnesses, self.question.quorum)?;
        let Checkpoint { size, root, .. } = opened.checkpoint;
        let (indexes, sizes) = self.claimed_places();
        let mut facts = LogFacts { size, leaves: BTreeMap::new(), roots: BTreeMap::new() };
        let mut frontier = Frontier::new();
        let width = u64::from(TILE_WIDTH);
        for index in 0..size.div_ceil(width) {
            let wide = u16::try_from((size - index * width).min(width)).unwrap_or(TILE_WIDTH);
            let tile = TilePath { level: Some(0), index, width: wide };
            let bytes = read(&tile.path()).or_else(|_| file(&tile.full().path()))?;
            let needed = usize::from(wide) * 32;
            need(bytes.len() >= needed, || format!("tile {} is short", tile.path()))?;
            for hash in bytes[..needed].chunks_exact(32) {
                let leaf = Digest(hash.try_into().unwrap_or([0; 32]));
                if indexes.contains(&frontier.size()) {
                    facts.leaves.insert(frontier.size(), leaf);
                }
                frontier.push(leaf);
                if sizes.contains(&frontier.size()) {
                    facts.roots.insert(frontier.size(), frontier.root());
                }
            }
        }
        need(size == 0 || frontier.root() == root, || "the log's tiles do not lead to its checkpoint".into())?;
        Ok(facts)
    }

    /// The leaf indexes and tree sizes that the proofs in the bundle claim; unverified.
    fn claimed_places(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let proofs = self.files.iter().filter(|(name, _)| name.ends_with(".tlog-proof"));
        let parsed = proofs.filter_map(|(_, bytes)| TlogProof::parse(std::str::from_utf8(bytes).ok()?).ok());
        parsed
            .map(|proof| (proof.index, Checkpoint::parse(&proof.checkpoint).map_or(0, |checkpoint| checkpoint.size)))
            .unzip()
    }
}

/// What a copy of the log holds at the places that a bundle claims.
pub(super) struct LogFacts {
    size: u64,
    leaves: BTreeMap<u64, Digest>,
    roots: BTreeMap<u64, Digest>,
}

impl LogFacts {
    pub(super) fn agrees(&self, index: u64, leaf: Digest, size: u64, root: Digest) -> Result<(), Failure> {
        need(self.leaves.get(&index) == Some(&leaf), || "the log holds something else at this index".into())?;
        need(self.roots.get(&size) == Some(&root), || "the proof's checkpoint is not a prefix of the log".into())
    }
}

fn member<'a>(files: &'a BundleFiles, name: &str) -> Result<&'a [u8], Failure> {
    files.get(name).ok_or_else(|| Failure::Missing { name: name.to_owned() })
}

fn read_records(files: &BundleFiles) -> Result<BTreeMap<String, Record>, Failure> {
    let is_evidence =
        |name: &str| name.starts_with("evidence/") && name.ends_with(".json") && !name.ends_with(".statement.json");
    let mut records = BTreeMap::new();
    for (name, raw) in files.iter().filter(|(name, _)| is_evidence(name)) {
        let doc = Doc::parse(name, raw)?;
        records.insert(name.to_owned(), Record { doc, raw: raw.to_vec(), digest: Digest::of(raw) });
    }
    need(!records.is_empty(), || "there is no evidence in the bundle".into())?;
    Ok(records)
}

fn one_submission(records: &BTreeMap<String, Record>) -> Result<(String, Doc), Failure> {
    let is_submission = |record: &Record| {
        let event = record.doc.get("event").and_then(|event| event.as_str());
        Event::ALL.iter().any(|known| known.is_submission() && Some(known.as_str()) == event)
    };
    let found: Vec<_> = records.iter().filter(|(_, record)| is_submission(record)).collect();
    match found[..] {
        [(name, record)] => Ok((name.clone(), record.doc.clone())),
        _ => Err(Failure::Rule(format!("{} submission events; expected exactly one", found.len()))),
    }
}
