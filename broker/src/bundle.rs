//! Puts the evidence bundle of a dispatch together from what the store, the log and the identity folder hold.

use std::collections::BTreeMap;

use docaxis_certs::BrokerIdentity;
use docaxis_protocol::bundle::{self, BundleContents, BundleEvidence, BundleKeys, SignedSuccession, write};
use docaxis_protocol::evidence::Cause;
use docaxis_protocol::{AgencyCode, Evidence, Reason, ReasonCode, SealedEnvelope};

use crate::dispatch::Exchange;
use crate::store::{Seq, StoredEvidence};

/// The certificates that every bundle carries.
pub struct Keys(BundleKeys);

impl Keys {
    pub fn of(identity: &BrokerIdentity) -> Self {
        let common = &identity.common;
        Self(BundleKeys {
            root: common.root.clone(),
            seals_cas: vec![common.seals_ca.clone()],
            evidence: vec![identity.evidence.clone()],
            log: identity.log.clone(),
            directory: Some(common.directory.clone()),
            crls: vec![common.seals_crl.clone()],
        })
    }
}

/// The bundle of a dispatch as a ZIP; of one recipient's part in it, if one is named.
pub fn export(exchange: &Exchange, keys: &Keys, seq: Seq, recipient: Option<&AgencyCode>) -> Result<Vec<u8>, Reason> {
    let busy = |error: &dyn std::error::Error| ReasonCode::Busy.because(error.to_string());
    let not_found = |text: String| ReasonCode::NotFound.because(text);
    let dispatch = exchange.store.dispatch(seq).map_err(|e| busy(&e))?;
    let dispatch = dispatch.ok_or_else(|| not_found(format!("there is no dispatch {}", seq.0)))?;
    let mut pieces = exchange.store.evidence(seq).map_err(|e| busy(&e))?;
    if let Some(wanted) = recipient {
        pieces.retain(|piece| piece.recipient.as_ref().is_none_or(|code| code == wanted));
        if exchange.store.delivery(seq, wanted).map_err(|e| busy(&e))?.is_none() {
            return Err(not_found(format!("{wanted} is no recipient of dispatch {}", dispatch.id)));
        }
    }
    // The submission has no recipient and sorts first; then each recipient's chain in order.
    pieces.sort_by(|a, b| (&a.recipient, a.leaf).cmp(&(&b.recipient, b.leaf)));
    let cause = bundle::cause(pieces.iter().map(|piece| &piece.evidence))?;
    let cause = cause.map(|cause| recall(exchange, &cause)).transpose()?;
    let successions = successions(exchange, &pieces)?;
    let evidence = pieces.into_iter().map(|piece| with_proof(exchange, piece)).collect::<Result<_, _>>()?;
    let mut keys = keys.0.clone();
    if let Some(crl) = exchange.seals.crl() {
        keys.crls = vec![crl];
    }
    let contents = BundleContents {
        envelope: dispatch.envelope,
        evidence,
        cause,
        successions,
        keys,
        witnesses: Vec::new(),
        quorum: 0,
    };
    write(&contents).map_err(|e| ReasonCode::Other.because(format!("the bundle cannot be written: {e}")))
}

/// The recall's envelope.
fn recall(exchange: &Exchange, cause: &Cause) -> Result<SealedEnvelope, Reason> {
    let busy = |error: crate::store::StoreError| ReasonCode::Busy.because(error.to_string());
    for seq in exchange.store.find(cause.dispatch).map_err(busy)? {
        if let Some(found) = exchange.store.dispatch(seq).map_err(busy)?
            && found.envelope_sha256 == cause.envelope_sha256
        {
            return Ok(found.envelope);
        }
    }
    Err(ReasonCode::NotFound.because(format!("the recall {} is not here", cause.dispatch)))
}

/// What the authority signed of everybody who spoke for a merged recipient.
fn successions(exchange: &Exchange, pieces: &[StoredEvidence]) -> Result<Vec<SignedSuccession>, Reason> {
    let mut found = BTreeMap::new();
    for piece in pieces {
        let read = Evidence::parse(&piece.evidence.bytes).map_err(|e| ReasonCode::Other.because(e.to_string()))?;
        let (Some(recipient), Some(acting)) = (read.recipient, read.acting) else { continue };
        let sealed = exchange.with_directory(|directory| directory.succession(&recipient, &acting).cloned());
        let Some(sealed) = sealed else {
            let text = format!("the directory no longer says that {acting} answered for {recipient}");
            return Err(ReasonCode::Other.because(text));
        };
        found.insert(recipient, sealed);
    }
    Ok(found.into_iter().map(|(agency, sealed)| SignedSuccession::of(agency, &sealed)).collect())
}

fn with_proof(exchange: &Exchange, piece: StoredEvidence) -> Result<BundleEvidence, Reason> {
    let proof =
        exchange.log.proof(piece.leaf).map_err(|e| ReasonCode::Busy.because(e.to_string()))?.ok_or_else(|| {
            ReasonCode::Busy
                .because(format!("no checkpoint covers leaf {} yet; one follows within a second", piece.leaf))
        })?;
    let seal = piece.statement_chain.and_then(|chain| chain.leaf().map(<[u8]>::to_vec));
    Ok(BundleEvidence { signed: piece.evidence, proof, seal })
}
