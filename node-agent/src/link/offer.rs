//! Takes what the broker offers. The order is the promise: verify everything, make dispatch and statement durable, only
//! then send the statement; show the dispatch only when the exchange has recorded it.

use docaxis_protocol::envelope::Envelope;
use docaxis_protocol::frame::{Class, Frame, Need, Offer, Outcome, Standing};
use docaxis_protocol::partial::PartialKey;
use docaxis_protocol::{
    AgencyCode, Digest, Event, Evidence, Part, Reason, ReasonCode, SealedStatement, Statement, Timestamp, limits,
    statement,
};

use super::LinkError;
use super::io::{Read, Stream, begin_body};
use super::session::Session;
use crate::acting;
use crate::agent::Shared;
use crate::bodies::Kept;
use crate::inbox::{self, NotTaken};
use crate::mailbox::{
    self, DocumentKeys, EvidenceRow, Known, QueuedPart, Related, StatementRow, Take, TakeBody, Taken,
};
use crate::parts::{PartWriter, Parts, PartsError};

pub async fn run(session: &Session, mut stream: Stream, offer: Offer) -> Result<(), LinkError> {
    let shared = &session.shared;
    match handle(session, &mut stream, offer).await {
        Ok(()) => Ok(()),
        Err(Problem::Unsigned(reason)) => {
            shared.alarm(format!("an offer of the broker was not taken: {reason}"));
            stream.refuse(shared, reason).await
        }
        Err(Problem::NoRoom(reason)) => {
            // The dispatch waits on at the broker, which offers it again.
            let _unheard = stream.refuse(shared, reason).await;
            Ok(())
        }
        Err(Problem::Link(error)) if error.is_disk_full() => {
            shared.space.ran_out();
            let _unheard = stream.refuse(shared, error.code().because(error.to_string())).await;
            Ok(())
        }
        Err(Problem::Link(error)) => {
            // The broker may be gone; it offers again either way.
            let _unheard = stream.refuse(shared, error.code().because(error.to_string())).await;
            Err(error)
        }
    }
}

enum Problem {
    Unsigned(Reason),
    /// Our own disk is nearly full: no fault of anybody, and no failure of the dispatch.
    NoRoom(Reason),
    Link(LinkError),
}

impl<E: Into<LinkError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Link(error.into())
    }
}

async fn handle(session: &Session, stream: &mut Stream, offer: Offer) -> Result<(), Problem> {
    let shared = &session.shared;
    let envelope = Envelope::parse(&offer.envelope.bytes).map_err(|e| Problem::Unsigned(e.reason()))?;
    let sha256 = offer.envelope.digest();
    let inline = read_inline(stream, &envelope, &offer.inline).await?;
    docaxis_failpoints::failpoint!("agent.offer.read");
    let bodies = inbox::bodies(&envelope);
    let parts = bodies.as_ref().map_or_else(|_| vec![], Clone::clone);
    let known = shared.mailbox.known_of(envelope.id, offer.recipient.clone(), sha256, parts).await?;
    let sealed = match known {
        // Stated once, stated for ever: the same bytes, whatever the clock or the certificates say now.
        Known::Stated(sealed) => sealed,
        Known::Open { other, held } => {
            let pins = held.iter().map(|sha256| shared.parts.pin(*sha256)).collect();
            let kept = Kept { pins, ..Kept::default() };
            let looked = Looked { sha256, inline, bodies, other, here: Here { held, kept } };
            take(session, stream, &offer, &envelope, looked).await?
        }
    };
    docaxis_failpoints::failpoint!("agent.offer.taken");
    stream.write(&Frame::Handover(sealed.clone())).await?;
    docaxis_failpoints::failpoint!("agent.offer.stated");
    let outcome = match stream.read(Class::Large).await? {
        Frame::Recorded(outcome) => outcome,
        other => return Err(LinkError::Unexpected { found: other.name(), expected: "Recorded" }.into()),
    };
    stream.finish();
    docaxis_failpoints::failpoint!("agent.offer.recorded");
    record(session, sealed, outcome).await?;
    docaxis_failpoints::failpoint!("agent.offer.shown");
    Ok(())
}

/// The inline bodies, by index. They are read even where the offer turns out bad: something follows them.
async fn read_inline(stream: &mut Stream, envelope: &Envelope, inline: &[u16]) -> Result<Vec<(u16, Vec<u8>)>, Problem> {
    let malformed = |text: String| Problem::Unsigned(ReasonCode::Malformed.because(text));
    let mut total = 0;
    let mut sizes = Vec::new();
    for index in inline {
        let part = envelope.parts.get(usize::from(*index));
        let size = part.and_then(|part| usize::try_from(part.size).ok()).unwrap_or(usize::MAX);
        total += size.min(limits::MAX_INLINE_TOTAL_BYTES + 1);
        if size > limits::MAX_INLINE_BODY_BYTES || total > limits::MAX_INLINE_TOTAL_BYTES {
            return Err(malformed(format!("part {index} cannot come inline")));
        }
        sizes.push((*index, size));
    }
    let mut bodies = Vec::new();
    for (index, size) in sizes {
        bodies.push((index, stream.read_small(size).await?));
    }
    Ok(bodies)
}

/// What is known of an offer before it is judged.
struct Looked {
    sha256: Digest,
    inline: Vec<(u16, Vec<u8>)>,
    /// The bodies that it names, or why they cannot be taken.
    bodies: Result<Vec<QueuedPart>, Reason>,
    /// Whether the agency has another dispatch under this id.
    other: bool,
    here: Here,
}

/// Judges a new offer, fetches its bodies, and makes the answer durable.
async fn take(
    session: &Session,
    stream: &mut Stream,
    offer: &Offer,
    envelope: &Envelope,
    looked: Looked,
) -> Result<SealedStatement, Problem> {
    let shared = &session.shared;
    let Looked { sha256, inline, bodies, other, here } = looked;
    let bytes = envelope.parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.size));
    // What was kept of an earlier try needs no room any more.
    let kept = shared.parts.partials().into_iter().filter(|name| {
        name.key.agency == offer.recipient && envelope.parts.iter().any(|part| part.sha256 == name.key.sha256)
    });
    let bytes = bytes.saturating_sub(kept.map(|name| name.bytes).sum());
    shared.space.may_begin(bytes).map_err(Problem::NoRoom)?;
    let identity = shared.identity.load_full();
    let acceptance = shared.keys.verify(&identity, &offer.acceptance).map_err(|error| {
        Problem::Unsigned(ReasonCode::Malformed.because(format!("the acceptance does not verify: {error}")))
    })?;
    let who = &offer.recipient;
    let seal_holds = || {
        let at = [envelope.created, acceptance.time];
        let key = identity.seal_key(&offer.envelope.chain, &envelope.sender.agency, &at).map_err(|e| e.to_string())?;
        offer.envelope.verify(key.key()).map_err(|e| e.to_string())
    };
    let signer = acting::signer_soon(shared, &identity, who).await?;
    let hosted = signer.is_some();
    let max = shared.config.inbox.max_part_bytes;
    let judged = inbox::judge(who, hosted, &identity.origin, (envelope, sha256), &acceptance, seal_holds, max);
    let mut fault = match judged {
        Ok(()) => None,
        Err(NotTaken::Signed(reason)) => Some(reason),
        Err(NotTaken::Unsigned(reason)) => return Err(Problem::Unsigned(reason)),
    };
    if fault.is_none() && other {
        fault = Some(conflict(envelope));
    }
    let mut body = None;
    if fault.is_none() {
        match bodies {
            Err(reason) => fault = Some(reason),
            Ok(bodies) => match fetch(session, stream, (envelope, who), &bodies, (inline, here)).await? {
                Err(reason) => fault = Some(reason),
                Ok(fetched) => body = Some((bodies, fetched)),
            },
        }
    }
    docaxis_failpoints::failpoint!("agent.offer.fetched");
    let mut kept = Kept::default();
    let body = body.map(|(parts, fetched)| {
        kept = fetched.kept;
        TakeBody {
            sender: envelope.sender.agency.clone(),
            sealed: offer.envelope.clone(),
            acceptance: row_of(&acceptance, offer.acceptance.clone(), offer.acceptance_leaf, shared.env.now()),
            parts,
            small: kept.small.clone(),
            held: fetched.held,
            related: Related::of(envelope, &offer.recipient, true),
            document: DocumentKeys::of(envelope),
        }
    });
    // Until it is answered, what was stored for this offer must not be cleared away by another's withdrawal: `kept` holds it.
    let signer = signer.unwrap_or_else(|| who.clone());
    state(session, (offer, envelope, sha256), (&acceptance, &signer), fault, (body, &mut kept)).await
}

fn conflict(envelope: &Envelope) -> Reason {
    ReasonCode::IdConflict.because(format!("another dispatch came here under the id {}", envelope.id))
}

/// Seals the statement and makes it durable together with the dispatch, before anyone is told.
async fn state(
    session: &Session,
    (offer, envelope, sha256): (&Offer, &Envelope, Digest),
    (acceptance, signer): (&Evidence, &AgencyCode),
    mut fault: Option<Reason>,
    (mut body, kept): (Option<TakeBody>, &mut Kept),
) -> Result<SealedStatement, Problem> {
    let shared = &session.shared;
    loop {
        let event = if fault.is_some() { Event::ContentHandoverFailure } else { Event::ContentHandover };
        let time = inbox::statement_time(shared.env.now(), acceptance.time);
        let statement = seal_statement(session, (offer, signer), envelope, sha256, (event, time), fault.clone())?;
        let take = Take {
            id: envelope.id,
            recipient: offer.recipient.clone(),
            envelope_sha256: sha256,
            event,
            statement: statement.clone(),
            time,
            body: body.clone(),
        };
        docaxis_failpoints::failpoint!("agent.offer.sealed");
        match shared.mailbox.take(take).await? {
            Taken::New => {
                if let Some(reason) = &fault {
                    tracing::warn!(dispatch = %envelope.id, recipient = %offer.recipient, %reason, "a dispatch was refused");
                }
                return Ok(statement);
            }
            Taken::Already(earlier) => return Ok(earlier),
            Taken::Conflict => {
                fault = Some(conflict(envelope));
                body = None;
            }
            Taken::LookAt(sha256) => {
                kept.look_at(shared, sha256).await??;
                if let Some(body) = &mut body {
                    body.small = kept.small.clone();
                }
            }
            Taken::Contradiction => {
                return Err(Problem::Unsigned(
                    ReasonCode::Malformed.because(mailbox::contradiction(offer.acceptance_leaf)),
                ));
            }
            Taken::HeldPartGone => {
                let text = "a part was destroyed while it was offered again; offer it once more";
                return Err(Problem::Unsigned(ReasonCode::Busy.because(text)));
            }
        }
    }
}

fn seal_statement(
    session: &Session,
    (offer, signer): (&Offer, &AgencyCode),
    envelope: &Envelope,
    sha256: Digest,
    (event, time): (Event, Timestamp),
    fault: Option<Reason>,
) -> Result<SealedStatement, Problem> {
    let identity = session.shared.identity.load();
    let Some(seal) = identity.seals.get(signer) else {
        let text = format!("this node has no seal of {signer}");
        return Err(Problem::Unsigned(ReasonCode::NotHosted.because(text)));
    };
    let statement = Statement {
        kind_of_bytes: statement::TYPE.into(),
        exchange: identity.origin.clone(),
        event,
        dispatch: envelope.id,
        envelope_sha256: sha256,
        recipient: offer.recipient.clone(),
        time,
        reasons: fault.into_iter().collect(),
        acting: Some(signer.clone()).filter(|signer| *signer != offer.recipient),
    };
    SealedStatement::seal(&statement, &seal.key, seal.chain.clone())
        .map_err(|e| Problem::Unsigned(ReasonCode::Other.because(e.to_string())))
}

/// Bodies that this agency has of those that are offered, and what keeps all of them here meanwhile.
struct Here {
    held: Vec<Digest>,
    kept: Kept,
}

/// Gets every body that this agency does not have, checks each, and stores it.
async fn fetch(
    session: &Session,
    stream: &mut Stream,
    (envelope, recipient): (&Envelope, &AgencyCode),
    bodies: &[QueuedPart],
    (inline, Here { held: known, kept }): (Vec<(u16, Vec<u8>)>, Here),
) -> Result<Result<Here, Reason>, Problem> {
    let shared = &session.shared;
    let mut fetched = Here { held: vec![], kept };
    let (mut held, damaged) = whole(session, known).await?;
    for error in damaged {
        shared.alarm(format!("a body that should be here is asked for again: {error}"));
    }
    let mut there: Vec<Digest> = held.clone();
    for (index, bytes) in inline {
        let Some(part) = envelope.parts.get(usize::from(index)) else { continue };
        let found = Digest::of(&bytes);
        if found != part.sha256 {
            return Ok(Err(mismatch(&part.name, part.sha256, found)));
        }
        if !there.contains(&found) {
            // What comes inline is small, all of it together as well.
            fetched.kept.small.add(bytes.into());
            there.push(found);
        }
    }
    let mut missing: Vec<(u16, &Part)> = bodies
        .iter()
        .filter(|body| !there.contains(&body.sha256))
        .filter_map(|body| (0..).zip(&envelope.parts).find(|(_, part)| part.sha256 == body.sha256))
        .collect();
    let (mut fault, mut held_back) = (None, Vec::new());
    // A second round asks again for those of which what an earlier try left was damaged; then they come whole.
    while !missing.is_empty() && fault.is_none() {
        // Nobody waits any longer for a body of many GiB to be read again, once the broker has given up.
        let begun = tokio::select! {
            biased;
            begun = begin(shared, recipient, &missing, &fetched.kept) => begun?,
            _ = stream.send.stopped() => return Err(LinkError::Stream("the broker no longer waits for Need".into()).into()),
        };
        let parts = begun.iter().map(|(index, _, writer)| (*index, writer.as_ref().map_or(0, PartWriter::size)));
        stream.write(&Frame::Need(Need { parts: parts.collect() })).await?;
        missing.clear();
        let mut begun = begun.into_iter();
        while let Some((index, part, writer)) = begun.next() {
            let from = writer.as_ref().map_or(0, PartWriter::size);
            let read = match writer {
                _ if fault.is_some() => {
                    stream.skip(part.size - from).await?;
                    continue;
                }
                Some(writer) => {
                    let more = begun.len() > 0 || !missing.is_empty();
                    stream.read_body(shared, writer, (part.sha256, part.size, more)).await?
                }
                None => match read_small(stream, part, &mut fetched.kept).await? {
                    Ok(()) => continue,
                    Err(found) => Read::Other(found),
                },
            };
            match read {
                Read::Stored(stored) => fetched.kept.pins.push(stored.pin),
                Read::Held(one) => held_back.push(*one),
                Read::Other(found) => fault = Some(mismatch(&part.name, part.sha256, found)),
                Read::Again => missing.push((index, part)),
            }
        }
    }
    // All have come: now they get their names. Of a dispatch that is refused nothing is taken up again.
    for one in held_back {
        match fault {
            Some(_) => one.discard(),
            None => fetched.kept.pins.push(shared.blocking(move |_| one.keep()).await?.pin),
        }
    }
    fetched.held.append(&mut held);
    Ok(match fault {
        Some(reason) => Err(reason),
        None => Ok(fetched),
    })
}

/// A body that must still come, and where it goes if it is not a small one.
type Begun<'a> = (u16, &'a Part, Option<PartWriter>);

async fn begin<'a>(
    shared: &Shared,
    recipient: &AgencyCode,
    missing: &[(u16, &'a Part)],
    kept: &Kept,
) -> Result<Vec<Begun<'a>>, LinkError> {
    let (mut begun, mut small) = (Vec::with_capacity(missing.len()), 0);
    let earlier_end_by = Parts::earlier_end_by();
    for (index, part) in missing {
        let writer = if kept.small.fits_beside(part.size, small) {
            small += part.size;
            None
        } else {
            let key = PartialKey { agency: recipient.clone(), sha256: part.sha256, size: part.size };
            Some(begin_body(shared, key, earlier_end_by).await?)
        };
        begun.push((*index, *part, writer));
    }
    Ok(begun)
}

/// Reads a body that fits; the digest that it has, if that is another one.
async fn read_small(stream: &mut Stream, part: &Part, kept: &mut Kept) -> Result<Result<(), Digest>, LinkError> {
    let bytes = stream.read_small(usize::try_from(part.size).unwrap_or(usize::MAX)).await?;
    let found = Digest::of(&bytes);
    if found != part.sha256 {
        return Ok(Err(found));
    }
    kept.small.add(bytes.into());
    Ok(Ok(()))
}

/// Which of these bodies are whole, and what is wrong with the others.
pub async fn whole(session: &Session, known: Vec<Digest>) -> Result<(Vec<Digest>, Vec<PartsError>), LinkError> {
    let (mut held, mut damaged) = (Vec::new(), Vec::new());
    for sha256 in known {
        match session.shared.check_body(sha256).await? {
            Ok(()) => held.push(sha256),
            Err(error) => damaged.push(error),
        }
    }
    Ok((held, damaged))
}

fn mismatch(name: &str, expected: Digest, found: Digest) -> Reason {
    ReasonCode::DigestMismatch.because(format!("part {name:?} has digest {found}; {expected} was sealed"))
}

pub fn row_of(
    evidence: &Evidence,
    signed: docaxis_protocol::SignedEvidence,
    leaf: u64,
    stored: Timestamp,
) -> EvidenceRow {
    EvidenceRow {
        leaf,
        dispatch: evidence.dispatch,
        recipient: evidence.recipient.clone(),
        event: evidence.event,
        time: evidence.time,
        signed,
        statement_chain: None,
        proof: None,
        stored,
    }
}

/// Whether the statement inside evidence is this one, byte for byte.
fn is_statement(evidence: &Evidence, sealed: &SealedStatement) -> bool {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    evidence.statement.as_ref().is_some_and(|inside| {
        inside.bytes == STANDARD.encode(&sealed.bytes) && inside.signature == STANDARD.encode(sealed.signature.0)
    })
}

/// Takes in the exchange's answer to a statement: its evidence, and what it does to the dispatch here.
pub async fn record(session: &Session, sealed: SealedStatement, outcome: Outcome) -> Result<(), LinkError> {
    let shared = &session.shared;
    let said = Statement::parse(&sealed.bytes).map_err(crate::identity::TrustError::Statement)?;
    let identity = shared.identity.load_full();
    let evidence = shared.keys.verify(&identity, &outcome.evidence)?;
    if !inbox::answers(&evidence, said.dispatch, said.envelope_sha256, &said.recipient) {
        let text = format!("its {} does not answer the statement about dispatch {}", evidence.event, said.dispatch);
        shared.alarm(format!("the broker does not keep to the protocol: {text}"));
        return Err(LinkError::Protocol(text));
    }
    let moved = inbox::after_recorded(said.event, outcome.standing);
    let succession = match &evidence.acting {
        Some(acting) => acting::succession(shared, &identity, &said.recipient, acting).await?.ok(),
        None => None,
    };
    // Other words under a seal of ours are ours as well: a mailbox that was restored states anew, and perhaps under the seal
    // of a successor that it did not have then.
    let speaker = evidence.acting.as_ref().unwrap_or(&said.recipient);
    let chain = identity.seals.get(speaker).map_or(&sealed.chain, |seal| &seal.chain);
    let sealed_by_us = || identity.check_statement(&evidence, Some(chain), succession.as_ref()).is_ok();
    let same = is_statement(&evidence, &sealed);
    let ours = same || (evidence.statement.is_some() && sealed_by_us());
    let statement_chain = if same { sealed.chain.clone() } else { chain.clone() };
    if !inbox::rests_on(moved, said.event, &evidence, ours) {
        let text = format!(
            "its {} of dispatch {} does not bear that this is {:?}",
            evidence.event, said.dispatch, outcome.standing
        );
        shared.alarm(format!("the broker does not keep to the protocol: {text}"));
        return Err(LinkError::Protocol(text));
    }
    if let (Event::ContentHandover, Standing::Withdrawn | Standing::Expired | Standing::Failed) =
        (said.event, outcome.standing)
    {
        tracing::warn!(dispatch = %said.dispatch, recipient = %said.recipient, standing = ?outcome.standing,
            "a dispatch was taken back before it was recorded; its bodies are destroyed");
    }
    let about = StatementRow {
        dispatch: said.dispatch,
        recipient: said.recipient,
        envelope_sha256: said.envelope_sha256,
        event: said.event,
        time: said.time,
        sealed: sealed.clone(),
        answered: false,
        refusal: None,
    };
    let reason = evidence.reasons.first().cloned();
    let mut row = row_of(&evidence, outcome.evidence, outcome.leaf, shared.env.now());
    row.statement_chain = evidence.statement.is_some().then_some(statement_chain);
    let Some(destroyed) = shared.mailbox.recorded(&about, moved, row, reason).await? else {
        let text = mailbox::contradiction(outcome.leaf);
        shared.alarm(text.clone());
        return Err(LinkError::Protocol(text));
    };
    shared.clear(destroyed.unreferenced).await??;
    shared.changed();
    Ok(())
}
