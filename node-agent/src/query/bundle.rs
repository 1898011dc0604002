//! What this node can prove about a dispatch, put together for an auditor. A node has the evidence that it was given:
//! the sender's about every recipient, a recipient's about itself.

use std::collections::BTreeMap;

use docaxis_protocol::bundle::{self, BundleContents, BundleEvidence, BundleKeys, SignedSuccession};
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::{AgencyCode, DispatchId, Evidence, Kind, Origin, ReasonCode, SealedEnvelope};

use super::{find, no_such};
use crate::acting;
use crate::agent::Shared;
use crate::compose::Refused;
use crate::mailbox::EvidenceRow;

/// All that a bundle is made of.
#[derive(Debug, Clone)]
pub struct BundleMaterial {
    pub envelope: SealedEnvelope,
    pub evidence: Vec<EvidenceRow>,
    /// Our recalls of it.
    pub recalls: Vec<SealedEnvelope>,
    /// Certificates of the exchange's keys under which the evidence is signed, without repeats.
    pub evidence_chains: Vec<Chain>,
    /// The certificate of the log's key, if the exchange has shown it.
    pub log_chain: Option<Chain>,
    /// What the authority signed of everybody who spoke for a merged recipient.
    pub successions: Vec<SignedSuccession>,
    pub common: docaxis_certs::identity::Common,
    pub origin: Origin,
}

pub(crate) async fn bundle(shared: &Shared, id: DispatchId) -> Result<BundleMaterial, Refused> {
    let (outgoing, incoming) = find(shared, id).await?;
    let Some(envelope) = outgoing.map(|row| row.sealed).or(incoming.into_iter().next().map(|row| row.sealed)) else {
        return no_such(id);
    };
    let evidence = shared.mailbox.evidence_of(id).await?;
    let identity = shared.identity.load_full();
    let mut keys = std::collections::BTreeSet::new();
    let mut successions = BTreeMap::new();
    for row in &evidence {
        let Ok(said) = Evidence::parse(&row.signed.bytes) else { continue };
        keys.insert(said.key);
        if let (Some(recipient), Some(acting)) = (said.recipient, said.acting)
            && let Ok(sealed) = acting::succession(shared, &identity, &recipient, &acting).await?
        {
            successions.insert(recipient, sealed);
        }
    }
    let mut recalls = Vec::new();
    for row in shared.mailbox.related(id).await? {
        if row.related.kind == Kind::Recall {
            recalls.extend(shared.mailbox.outgoing(row.related.dispatch).await?.map(|recall| recall.sealed));
        }
    }
    let successions = successions.into_iter().map(|(agency, sealed)| SignedSuccession::of(agency, &sealed)).collect();
    let mut evidence_chains = Vec::new();
    for key in keys {
        evidence_chains.extend(shared.mailbox.certificates(key).await?);
    }
    Ok(BundleMaterial {
        envelope,
        evidence,
        recalls,
        evidence_chains,
        log_chain: shared.mailbox.log_certificates().await?,
        successions,
        common: identity.common.clone(),
        origin: identity.origin.clone(),
    })
}

impl BundleMaterial {
    /// The bundle as a ZIP, about all recipients or one of them. Every piece needs its inclusion proof, which comes a
    /// moment after the evidence.
    pub fn zip(&self, recipient: Option<&AgencyCode>) -> Result<Vec<u8>, Refused> {
        let busy = |text: String| Refused::Rule(ReasonCode::Busy.because(text));
        let wanted =
            |row: &&EvidenceRow| row.recipient.is_none() || recipient.is_none_or(|r| row.recipient.as_ref() == Some(r));
        let cause = bundle::cause(self.evidence.iter().filter(wanted).map(|row| &row.signed)).map_err(Refused::Rule)?;
        let cause = cause.map(|cause| {
            let recall = self.recalls.iter().find(|recall| recall.digest() == cause.envelope_sha256);
            recall.cloned().ok_or_else(|| {
                Refused::Rule(ReasonCode::NotFound.because(format!("the recall {} is not here", cause.dispatch)))
            })
        });
        let evidence = self.evidence.iter().filter(wanted).map(|row| {
            let proof = row.proof.clone();
            Ok(BundleEvidence {
                signed: row.signed.clone(),
                proof: proof
                    .ok_or_else(|| busy(format!("the proof of the evidence at leaf {} is not here yet", row.leaf)))?,
                seal: row.statement_chain.as_ref().and_then(Chain::leaf).map(<[u8]>::to_vec),
            })
        });
        let leaf = |chain: &Chain| chain.leaf().map(<[u8]>::to_vec);
        let contents = BundleContents {
            envelope: self.envelope.clone(),
            evidence: evidence.collect::<Result<_, Refused>>()?,
            cause: cause.transpose()?,
            successions: self
                .successions
                .iter()
                .filter(|one| recipient.is_none_or(|r| one.agency == *r))
                .cloned()
                .collect(),
            keys: BundleKeys {
                root: self.common.root.clone(),
                seals_cas: vec![self.common.seals_ca.clone()],
                evidence: self.evidence_chains.iter().filter_map(leaf).collect(),
                log: self.log_chain.as_ref().and_then(leaf).unwrap_or_default(),
                directory: Some(self.common.directory.clone()),
                crls: vec![self.common.seals_crl.clone()],
            },
            witnesses: vec![],
            quorum: 0,
        };
        docaxis_protocol::bundle::write(&contents)
            .map_err(|e| Refused::Rule(ReasonCode::Other.because(format!("the bundle cannot be written: {e}"))))
    }
}
