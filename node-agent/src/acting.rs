//! Whose seal answers for a recipient: its own, or that of the agency that succeeded it. Only a successor that the
//! authority signed acts; and who took a dispatch answers for it to the end, whatever is merged meanwhile.

use std::time::Duration;

use docaxis_protocol::succession::SealedSuccession;
use docaxis_protocol::{AgencyCode, DispatchId, Event, Evidence};

use crate::agent::Shared;
use crate::identity::{Identity, TrustError};
use crate::mailbox::MailboxError;

/// How long an offer waits for the directory, which tells of a merge at the same moment as the exchange begins to act on it.
const DIRECTORY_WITHIN: Duration = Duration::from_secs(2);

/// The agency whose seal signs for what `recipient` is offered now; none if this node has no right to.
pub async fn signer(
    shared: &Shared,
    identity: &Identity,
    recipient: &AgencyCode,
) -> Result<Option<AgencyCode>, MailboxError> {
    if let Some(row) = shared.mailbox.agency(recipient.clone()).await?
        && row.successor.is_some()
        && let Some(succession) = row.entry()?.successions.last()
        && identity.seals.contains_key(&succession.said().successor)
    {
        return Ok(Some(succession.said().successor.clone()));
    }
    Ok(identity.seals.contains_key(recipient).then(|| recipient.clone()))
}

/// The same, after giving the directory a moment to arrive.
pub async fn signer_soon(
    shared: &Shared,
    identity: &Identity,
    recipient: &AgencyCode,
) -> Result<Option<AgencyCode>, MailboxError> {
    let mut changes = shared.changes.subscribe();
    let deadline = tokio::time::Instant::now() + DIRECTORY_WITHIN;
    loop {
        changes.mark_unchanged();
        let found = signer(shared, identity, recipient).await?;
        if found.is_some() || !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return Ok(found);
        }
    }
}

/// The agency whose seal signs for what `recipient` has taken: that of the handover that was recorded.
pub async fn signer_of(
    shared: &Shared,
    identity: &Identity,
    id: DispatchId,
    recipient: &AgencyCode,
) -> Result<Option<AgencyCode>, MailboxError> {
    let rows = shared.mailbox.evidence_of(id).await?;
    let recorded =
        rows.iter().find(|row| row.recipient.as_ref() == Some(recipient) && row.event == Event::ContentHandover);
    match recorded.and_then(|row| Evidence::parse(&row.signed.bytes).ok()) {
        Some(evidence) => Ok(Some(evidence.acting.unwrap_or_else(|| recipient.clone()))),
        None => signer(shared, identity, recipient).await,
    }
}

/// What the authority signed of `acting` answering for `recipient`, from the directory here, checked.
pub async fn succession(
    shared: &Shared,
    identity: &Identity,
    recipient: &AgencyCode,
    acting: &AgencyCode,
) -> Result<Result<SealedSuccession, TrustError>, MailboxError> {
    let none = || TrustError::NoSuccession { agency: recipient.clone(), acting: acting.clone() };
    let Some(row) = shared.mailbox.agency(recipient.clone()).await? else { return Ok(Err(none())) };
    let Some(sealed) = row.entry()?.succession_to(acting).cloned() else { return Ok(Err(none())) };
    let checked = sealed.verify(&identity.directory_key, &identity.origin, recipient);
    Ok(checked.map(|()| sealed).map_err(|error| TrustError::Succession(error.to_string())))
}
