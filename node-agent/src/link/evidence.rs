//! Follows the evidence about what our agencies sent, and fetches the inclusion proofs. Everything is verified before
//! it is stored. What the exchange did not sign is never stored: alarm, the cursor stays, and it is asked again, while
//! the rest of the session goes on. What it did sign without the recipient's word behind it is kept and moves nothing.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::frame::{Class, EvidenceItem, Follow, Frame};
use docaxis_protocol::limits::MAX_BATCH;
use docaxis_protocol::succession::SealedSuccession;
use docaxis_protocol::tlog::{Checkpoint, OpenedCheckpoint, TlogProof};
use docaxis_protocol::{AgencyCode, Evidence, ReasonCode};
use tokio::sync::{mpsc, watch};

use super::LinkError;
use super::io::Stream;
use super::offer::row_of;
use super::session::Session;
use crate::acting;
use crate::agent::{Shared, told_to_stop};
use crate::identity::{Identity, TrustError};
use crate::mailbox::{EvidenceRow, Follows, MissingProof};
use crate::uplink::back_off;

/// Frames of evidence that are read while earlier ones are stored, of about 1 MiB at most.
const FRAMES_AHEAD: usize = 8;
/// Evidence that is stored together, in bytes, beside the frame that goes over it.
const TOGETHER_BYTES: usize = 512 << 10;
/// How long to wait before evidence is asked for again that builds on something still on its way.
const AFTER_GAP: Duration = Duration::from_millis(200);
const AFTER_REFUSAL: Duration = Duration::from_secs(5);
/// Evidence that has no inclusion proof for so long is an alarm.
const ALARM_AFTER: Duration = Duration::from_secs(60);

pub async fn follow(session: Arc<Session>, mut quit: watch::Receiver<bool>) -> Result<(), LinkError> {
    let link = &session.shared.config.link;
    let mut failures = 0;
    loop {
        let agencies = followed(&session).await?;
        if agencies.is_empty() {
            tokio::select! {
                biased;
                () = told_to_stop(&mut quit) => return Ok(()),
                () = session.hosting.notified() => continue,
            }
        }
        let ended = tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            () = session.hosting.notified() => continue,
            ended = follow_once(&session, agencies, &mut failures) => ended,
        };
        let pause = match ended {
            Ok(()) => AFTER_GAP,
            Err(LinkError::Refused(refusal)) => {
                tracing::warn!(reason = %refusal.reason, "the broker does not give evidence; it is asked again");
                AFTER_REFUSAL
            }
            Err(error) if error.ends_session() => return Err(error),
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, failures, "the evidence cannot be followed; it is asked again");
                back_off(failures, link.retry_min, link.retry_max, session.shared.env.jitter())
            }
        };
        tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Our agencies, as far as the exchange says so as well: it refuses to tell about others.
async fn followed(session: &Session) -> Result<Vec<AgencyCode>, LinkError> {
    let hosted = session.shared.mailbox.hosted_by(session.identity.node.clone()).await?;
    let mut ours = session.shared.identity.load().agencies();
    ours.retain(|agency| session.welcome.agencies.contains(agency) || hosted.contains(agency));
    Ok(ours)
}

/// Reads evidence until the stream ends or a piece builds on one that is not here yet. What comes while the disk is at work
/// is stored together: the exchange sends each piece as soon as there is one.
async fn follow_once(session: &Session, agencies: Vec<AgencyCode>, failures: &mut u32) -> Result<(), LinkError> {
    let cursors = session.shared.mailbox.cursors(agencies).await?;
    let mut stream: Stream = session.open().await?;
    stream.write(&Frame::Follow(Follow { cursors })).await?;
    let (found, news) = mpsc::channel(FRAMES_AHEAD);
    let (mut storing, mut reading) = (pin!(store(session, news, failures)), pin!(read_ahead(&mut stream, found)));
    tokio::select! {
        biased;
        ended = &mut storing => ended,
        // What was read before the stream ended is stored first.
        ended = &mut reading => storing.await.and(ended),
    }
}

async fn read_ahead(stream: &mut Stream, found: mpsc::Sender<Vec<EvidenceItem>>) -> Result<(), LinkError> {
    loop {
        match stream.read_unhurried(Class::Large).await? {
            Frame::Evidence(items) => {
                if found.send(items).await.is_err() {
                    // Whoever stores them has ended, and says why.
                    return Ok(());
                }
            }
            other => return Err(LinkError::Unexpected { found: other.name(), expected: "Evidence" }),
        }
        docaxis_failpoints::failpoint!("agent.follow.read");
    }
}

async fn store(
    session: &Session,
    mut news: mpsc::Receiver<Vec<EvidenceItem>>,
    failures: &mut u32,
) -> Result<(), LinkError> {
    while let Some(mut items) = news.recv().await {
        let bytes_of = |items: &[EvidenceItem]| items.iter().map(|item| item.evidence.bytes.len()).sum::<usize>();
        let mut bytes = bytes_of(&items);
        while items.len() < MAX_BATCH
            && bytes < TOGETHER_BYTES
            && let Ok(more) = news.try_recv()
        {
            bytes += bytes_of(&more);
            items.extend(more);
        }
        let (batch, bad) = verify_all(session, items).await;
        // What came before a bad piece is good, and is not asked for again.
        let done = session.shared.mailbox.follow(batch).await?;
        docaxis_failpoints::failpoint!("agent.follow.stored");
        done.alarms.into_iter().for_each(|alarm| session.shared.alarm(alarm));
        if done.stored > 0 {
            session.shared.changed();
            *failures = 0;
        }
        if done.gap {
            return Ok(());
        }
        if let Some(error) = bad {
            return Err(error);
        }
    }
    Ok(())
}

/// The pieces up to the first bad one, and what is wrong with that. Hundreds may come at once: their signatures do not hold
/// up the link.
async fn verify_all(session: &Session, items: Vec<EvidenceItem>) -> (Vec<Follows>, Option<LinkError>) {
    let mut readable = Vec::with_capacity(items.len());
    let mut bad = None;
    for item in items {
        let leaf = item.leaf;
        let read = async {
            let claimed = Evidence::parse(&item.evidence.bytes).map_err(TrustError::from)?;
            certify(session, &claimed).await?;
            let succession = succession(session, &claimed).await?;
            Ok::<_, LinkError>((item, claimed, succession))
        };
        match read.await {
            Ok(read) => readable.push(read),
            Err(error) => {
                bad = Some((leaf, error));
                break;
            }
        }
    }
    let (shared, identity) = (session.shared.clone(), session.shared.identity.load_full());
    let judge_all = move |_parts| {
        let mut good = Vec::with_capacity(readable.len());
        for (item, claimed, succession) in readable {
            match judge(&shared, &identity, item, (claimed, succession)) {
                Ok(judged) => good.push(judged),
                Err(error) => return (good, Some(error)),
            }
        }
        (good, None)
    };
    let (good, worse) = session.shared.blocking(judge_all).await;
    // One before it is the first that is bad.
    let unreadable = bad.filter(|_| worse.is_none()).map(|(leaf, error)| {
        session.shared.alarm(does_not_verify(leaf, &error));
        error
    });
    (good, worse.or(unreadable))
}

fn does_not_verify(leaf: u64, error: &LinkError) -> String {
    format!("evidence at leaf {leaf} does not verify: {error}")
}

/// Checks the exchange's signature, without which a piece is nothing; then whether the piece may move a delivery.
fn judge(
    shared: &Shared,
    identity: &Identity,
    item: EvidenceItem,
    (claimed, succession): (Evidence, Option<SealedSuccession>),
) -> Result<Follows, LinkError> {
    let leaf = item.leaf;
    let signed = shared.keys.check(identity, &item.evidence, claimed).map_err(LinkError::from);
    let evidence = signed.inspect_err(|error| shared.alarm(does_not_verify(leaf, error)))?;
    let mut believed = true;
    if let Err(error) = identity.check_statement(&evidence, item.statement_chain.as_ref(), succession.as_ref()) {
        shared.alarm(format!("evidence at leaf {leaf} is the exchange's word alone and moves nothing: {error}"));
        believed = false;
    }
    if evidence.sender != item.sender {
        shared.alarm(format!("evidence at leaf {leaf} about {} came for {}", evidence.sender, item.sender));
        believed = false;
    }
    let reason = evidence.reasons.first().cloned();
    let mut row = row_of(&evidence, item.evidence, leaf, shared.env.now());
    row.statement_chain = item.statement_chain;
    Ok(Follows {
        row,
        sender: item.sender,
        envelope_sha256: evidence.envelope_sha256,
        previous: evidence.previous,
        late: evidence.late,
        reason,
        believed,
    })
}

/// Makes an earlier key of the exchange known: its certificate came while it was in use, and need not be good today.
async fn certify(session: &Session, claimed: &Evidence) -> Result<(), LinkError> {
    let shared = &session.shared;
    if !shared.keys.has(claimed.key)
        && let Some(chain) = shared.mailbox.certificates(claimed.key).await?
    {
        shared.keys.add(session.identity.evidence_key(&chain, claimed.time)?);
    }
    Ok(())
}

/// What the authority signed of whoever acts for the recipient. Where the directory does not say so, or not yet, the
/// evidence is asked for again.
async fn succession(session: &Session, claimed: &Evidence) -> Result<Option<SealedSuccession>, LinkError> {
    let (Some(recipient), Some(acting)) = (&claimed.recipient, &claimed.acting) else { return Ok(None) };
    let identity = session.shared.identity.load_full();
    Ok(Some(acting::succession(&session.shared, &identity, recipient, acting).await??))
}

pub async fn fetch_proofs(session: Arc<Session>, mut quit: watch::Receiver<bool>) -> Result<(), LinkError> {
    let every = session.shared.config.link.proofs_every;
    // Where this round over all that is unproven stands: leaves that get no proof must not hold up those behind them.
    let mut after = None;
    loop {
        let fetched = tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            fetched = fetch_once(&session, &mut after) => fetched,
        };
        match fetched {
            // Every leaf that is proven is one that an exchange which is put back can take up on its own.
            Ok(()) if after.is_some() => continue,
            Ok(()) => {}
            Err(LinkError::Refused(refusal)) if refusal.reason.known() == ReasonCode::Busy => {}
            Err(error) if error.ends_session() => return Err(error),
            Err(error) => tracing::warn!(%error, "inclusion proofs cannot be fetched; they are asked for again"),
        }
        tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// Checks one proof; returns the size and the text of its checkpoint. `opened` is the checkpoint of the proof before:
/// those that come together share one, and its signature is checked once.
fn check_proof(
    session: &Session,
    text: &str,
    row: &EvidenceRow,
    opened: &mut Option<(String, OpenedCheckpoint)>,
) -> Result<(u64, String), String> {
    let proof = TlogProof::parse(text).map_err(|e| e.to_string())?;
    if proof.index != row.leaf {
        return Err(format!("it is one of leaf {}", proof.index));
    }
    let (_, under) = match opened.take().filter(|(same, _)| *same == proof.checkpoint) {
        Some(same) => opened.insert(same),
        None => {
            let under = Checkpoint::open(&proof.checkpoint, &session.log, &[], 0).map_err(|e| e.to_string())?;
            opened.insert((proof.checkpoint.clone(), under))
        }
    };
    proof.verify_under(row.signed.log_entry().as_bytes(), under).map_err(|e| e.to_string())?;
    Ok((under.checkpoint.size, proof.checkpoint))
}

async fn fetch_once(session: &Session, after: &mut Option<MissingProof>) -> Result<(), LinkError> {
    let shared = &session.shared;
    let missing = shared.mailbox.unproven(after.take(), u32::try_from(MAX_BATCH).unwrap_or(u32::MAX)).await?;
    *after = missing.last().filter(|_| missing.len() == MAX_BATCH).copied();
    let Some(oldest) = missing.first() else { return Ok(()) };
    let now = shared.env.now();
    let leaves: Vec<u64> = missing.iter().map(|missing| missing.leaf).collect();
    let mut stream = session.open().await?;
    stream.write(&Frame::FetchProofs(leaves.clone())).await?;
    stream.finish();
    let proofs = match stream.read(Class::Large).await? {
        Frame::Proofs(proofs) => proofs,
        other => return Err(LinkError::Unexpected { found: other.name(), expected: "Proofs" }),
    };
    docaxis_failpoints::failpoint!("agent.proofs.read");
    let mut good = Vec::new();
    let mut newest = None;
    let mut opened = None;
    let mut proofs: Vec<(u64, String)> = proofs.into_iter().filter_map(|(leaf, proof)| Some(leaf).zip(proof)).collect();
    proofs.retain(|(leaf, _)| leaves.contains(leaf));
    let held = shared.mailbox.evidence_at(proofs.iter().map(|(leaf, _)| *leaf).collect()).await?;
    for (leaf, text) in proofs {
        let Some(row) = held.get(&leaf) else { continue };
        match check_proof(session, &text, row, &mut opened) {
            Ok((size, checkpoint)) => {
                good.push((leaf, text));
                newest = newest.max(Some((size, checkpoint)));
            }
            Err(error) => shared.alarm(format!("the proof of leaf {leaf} does not verify: {error}")),
        }
    }
    if !good.iter().any(|(leaf, _)| *leaf == oldest.leaf) && now.since(oldest.stored) > ALARM_AFTER {
        shared.alarm(format!("the exchange has given no inclusion proof for the evidence at leaf {}", oldest.leaf));
    }
    if let Some((size, checkpoint)) = newest
        && !shared.mailbox.keep_checkpoint(checkpoint).await?
    {
        shared.alarm(format!("the exchange has signed two checkpoints over {size} leaves with different roots"));
    }
    if !good.is_empty() {
        shared.mailbox.store_proofs(good).await?;
        docaxis_failpoints::failpoint!("agent.proofs.stored");
        shared.changed();
    }
    Ok(())
}
