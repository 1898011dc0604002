//! Putting an evidence bundle together: a ZIP that an auditor can check with openssl and python alone.
//!
//! The same contents always give the same bytes. What goes in is not judged here; [`super::verify`] does that, and
//! whoever hands a bundle out should ask it first.

use std::collections::BTreeSet;
use std::io::{Cursor, Write as _};

use super::{commands, page};
use crate::chain::{self, ChainError};
use crate::envelope::{Envelope, SealedEnvelope};
use crate::evidence::{Cause, Evidence, EvidenceError, SignedEvidence};
use crate::id::AgencyCode;
use crate::key::{KeyError, PublicKey, RawSignature};
use crate::reason::{Reason, ReasonCode};
use crate::succession::SealedSuccession;
use crate::tlog::note::{KeyKind, NoteError, VerifierKey};
use crate::tlog::unbase64;

/// All that a bundle is made of.
#[derive(Debug, Clone)]
pub struct BundleContents {
    pub envelope: SealedEnvelope,
    /// The submission event first, then each recipient's chain in order.
    pub evidence: Vec<BundleEvidence>,
    /// The recall for which the dispatch was withdrawn.
    pub cause: Option<SealedEnvelope>,
    pub successions: Vec<SignedSuccession>,
    pub keys: BundleKeys,
    /// Whom the exchange proposes to trust as witnesses, and how many of them; auditors decide for themselves.
    pub witnesses: Vec<VerifierKey>,
    pub quorum: usize,
}

/// One piece of evidence with its proof, and the seal's certificate (DER) of the recipient who stated it.
#[derive(Debug, Clone)]
pub struct BundleEvidence {
    pub signed: SignedEvidence,
    pub proof: String,
    pub seal: Option<Vec<u8>>,
}

/// What the directory says about a successor, signed by the directory's key.
#[derive(Debug, Clone)]
pub struct SignedSuccession {
    pub agency: AgencyCode,
    pub bytes: Vec<u8>,
    pub signature: RawSignature,
}

impl SignedSuccession {
    pub fn of(agency: AgencyCode, sealed: &SealedSuccession) -> Self {
        Self { agency, bytes: sealed.bytes().to_vec(), signature: *sealed.signature() }
    }
}

/// The certificates, in DER, and revocation lists, in DER or PEM.
#[derive(Debug, Clone, Default)]
pub struct BundleKeys {
    pub root: Vec<u8>,
    pub seals_cas: Vec<Vec<u8>>,
    /// One for each evidence key that signed anything in the bundle.
    pub evidence: Vec<Vec<u8>>,
    pub log: Vec<u8>,
    pub directory: Option<Vec<u8>>,
    pub crls: Vec<Vec<u8>>,
}

/// Why a bundle was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("a bundle needs evidence, the submission event first; found {found}")]
    NoSubmission { found: String },
    #[error("evidence {n} of the bundle does not read")]
    Evidence {
        n: usize,
        #[source]
        source: EvidenceError,
    },
    #[error("evidence {n} of the bundle has a statement that is not base64")]
    Statement { n: usize },
    #[error("a certificate for the bundle")]
    Chain(#[from] ChainError),
    #[error("the key of {what}")]
    Key {
        what: &'static str,
        #[source]
        source: KeyError,
    },
    #[error("the log's name")]
    Name(#[from] NoteError),
    #[error("{found} revocation lists; a bundle takes at most 26")]
    Crls { found: usize },
    #[error("writing the ZIP")]
    Zip(#[from] zip::result::ZipError),
    #[error("compressing")]
    Io(#[from] std::io::Error),
}

/// The recall that the withdrawals among this evidence name, if there are any. A bundle has room for one: of a dispatch that
/// two recalls withdrew, each from other recipients, there is one for each recipient.
pub fn cause<'a>(evidence: impl Iterator<Item = &'a SignedEvidence>) -> Result<Option<Cause>, Reason> {
    let mut causes = BTreeSet::new();
    for signed in evidence {
        let read = Evidence::parse(&signed.bytes);
        let read = read.map_err(|error| ReasonCode::Other.because(format!("evidence does not read: {error}")))?;
        causes.extend(read.cause);
    }
    if causes.len() > 1 {
        let text = format!("{} recalls withdrew it from its recipients; export it for one recipient", causes.len());
        return Err(ReasonCode::Other.because(text));
    }
    Ok(causes.pop_first())
}

/// A piece of evidence with what was read out of it, for the parts of a bundle that people read.
pub(super) struct Told {
    pub(super) stem: String,
    pub(super) evidence: Evidence,
}

/// Members in the order in which they are written.
type Members = Vec<(String, Vec<u8>)>;

/// Writes the bundle.
pub fn write(contents: &BundleContents) -> Result<Vec<u8>, WriteError> {
    let told = told(contents)?;
    let Some(first) = told.first().filter(|first| first.evidence.event.is_submission()) else {
        let found = told.first().map_or("none".into(), |first| first.evidence.event.to_string());
        return Err(WriteError::NoSubmission { found });
    };
    let log_key = key_of("the log", &contents.keys.log)?;
    let log = VerifierKey::new(first.evidence.issuer.as_str(), KeyKind::Ed25519, log_key)?;
    // An envelope that was refused as malformed may not read; the page then shows only what the evidence says.
    let envelope = Envelope::parse(&contents.envelope.bytes).ok();
    let mut members: Members = vec![
        ("index.html".into(), page::page(envelope.as_ref(), &told).into_bytes()),
        ("VERIFY.txt".into(), commands::commands(contents, envelope.as_ref(), &told).into_bytes()),
        ("policy.txt".into(), policy(&log, &contents.witnesses, contents.quorum).into_bytes()),
    ];
    sealed(&mut members, "envelope", "seal.pem", &contents.envelope);
    for (n, (told, piece)) in told.iter().zip(&contents.evidence).enumerate() {
        evidence_members(&mut members, told, piece).ok_or(WriteError::Statement { n })?;
    }
    if let Some(cause) = &contents.cause {
        sealed(&mut members, "cause/envelope", "cause/envelope.pem", cause);
    }
    for succession in &contents.successions {
        members.push((format!("directory/{}.json", succession.agency), succession.bytes.clone()));
        members.push((format!("directory/{}.sig", succession.agency), succession.signature.0.to_vec()));
    }
    key_members(&mut members, &contents.keys, &log)?;
    zip(members)
}

fn told(contents: &BundleContents) -> Result<Vec<Told>, WriteError> {
    let tell = |(n, piece): (usize, &BundleEvidence)| {
        let evidence = Evidence::parse(&piece.signed.bytes).map_err(|source| WriteError::Evidence { n, source })?;
        let who = evidence.recipient.as_ref().map_or(String::new(), |who| format!("-{who}"));
        Ok(Told { stem: format!("evidence/{:06}-{}{who}", n + 1, evidence.event), evidence })
    };
    contents.evidence.iter().enumerate().map(tell).collect()
}

fn sealed(members: &mut Members, stem: &str, certificate: &str, envelope: &SealedEnvelope) {
    members.push((format!("{stem}.json"), envelope.bytes.clone()));
    members.push((format!("{stem}.sig"), envelope.signature.0.to_vec()));
    members.extend(envelope.chain.leaf().map(|der| (certificate.to_owned(), certificate_pem(der))));
}

/// None if the statement in the evidence is not base64.
fn evidence_members(members: &mut Members, told: &Told, piece: &BundleEvidence) -> Option<()> {
    let stem = &told.stem;
    members.push((format!("{stem}.json"), piece.signed.bytes.clone()));
    members.push((format!("{stem}.sig"), piece.signed.signature.0.to_vec()));
    members.push((format!("{stem}.tlog-proof"), piece.proof.clone().into_bytes()));
    if let Some(statement) = &told.evidence.statement {
        members.push((format!("{stem}.statement.json"), unbase64(&statement.bytes)?));
        members.push((format!("{stem}.statement.sig"), unbase64(&statement.signature)?));
    }
    members.extend(piece.seal.as_ref().map(|der| (format!("{stem}.seal.pem"), certificate_pem(der))));
    Some(())
}

fn key_members(members: &mut Members, keys: &BundleKeys, log: &VerifierKey) -> Result<(), WriteError> {
    members.push(("keys/authority.pem".into(), certificate_pem(&keys.root)));
    let chain: Vec<u8> = keys.seals_cas.iter().flat_map(|der| certificate_pem(der)).collect();
    members.push(("keys/chain.pem".into(), chain));
    for der in &keys.evidence {
        let id = key_of("the evidence", der)?.id();
        members.push((format!("keys/evidence-{id}.pem"), certificate_pem(der)));
    }
    members.push(("keys/log.pem".into(), certificate_pem(&keys.log)));
    members.push(("keys/log.vkey".into(), format!("{log}\n").into_bytes()));
    members.extend(keys.directory.as_ref().map(|der| ("keys/directory.pem".into(), certificate_pem(der))));
    for (n, crl) in keys.crls.iter().enumerate() {
        let name = crl_name(n).ok_or(WriteError::Crls { found: keys.crls.len() })?;
        let pem = if crl.first() == Some(&0x30) { chain::pem("X509 CRL", crl).into_bytes() } else { crl.clone() };
        members.push((name, pem));
    }
    Ok(())
}

/// Names of revocation lists are letters only: seals, sealsb, sealsc, ...
pub(super) fn crl_name(n: usize) -> Option<String> {
    let letter = u8::try_from(n).ok().filter(|n| *n < 26)?;
    let suffix = if n == 0 { String::new() } else { char::from(b'a' + letter).to_string() };
    Some(format!("keys/seals{suffix}.crl"))
}

fn certificate_pem(der: &[u8]) -> Vec<u8> {
    chain::pem("CERTIFICATE", der).into_bytes()
}

fn key_of(what: &'static str, der: &[u8]) -> Result<PublicKey, WriteError> {
    PublicKey::from_spki(&chain::spki(what, der)?).map_err(|source| WriteError::Key { what, source })
}

/// The C2SP tlog-policy that goes with the bundle.
fn policy(log: &VerifierKey, witnesses: &[VerifierKey], quorum: usize) -> String {
    let mut out = format!("log {log}\n");
    let names: Vec<String> = (1..=witnesses.len()).map(|n| format!("w{n}")).collect();
    for (name, witness) in names.iter().zip(witnesses) {
        out.push_str(&format!("witness {name} {witness}\n"));
    }
    if quorum == 0 || names.is_empty() {
        out.push_str("quorum none\n");
    } else {
        out.push_str(&format!("group witnesses {quorum} {}\nquorum witnesses\n", names.join(" ")));
    }
    out
}

fn zip(members: Members) -> Result<Vec<u8>, WriteError> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated)
        .last_modified_time(zip::DateTime::default())
        .unix_permissions(0o644);
    for (name, bytes) in members {
        zip.start_file(name, options)?;
        zip.write_all(&bytes)?;
    }
    Ok(zip.finish()?.into_inner())
}
