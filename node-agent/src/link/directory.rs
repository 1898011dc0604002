//! Follows the directory and the revocation lists. The broker only relays them: every entry is checked under the
//! directory's key, every list under its authority.

use std::pin::pin;
use std::sync::Arc;

use docaxis_certs::encoding::crl_from_pem;
use docaxis_certs::entries::verify_all;
use docaxis_protocol::directory::VerifiedEntry;
use docaxis_protocol::frame::{Class, Frame};
use tokio::sync::{mpsc, watch};

use super::LinkError;
use super::io::Stream;
use super::session::Session;
use crate::agent::told_to_stop;
use crate::mailbox::AgencyRow;
use crate::parts::Parts;
use crate::uplink::back_off;

/// Frames whose entries are checked while earlier ones are stored, of half a MiB each. What has come by then is stored at once:
/// a country's agencies come in an order that is not that of their codes and names, so that each transaction changes nearly
/// all pages of the mailbox's indexes. Twice as many may be in memory, and the one that is checked.
const FRAMES_AHEAD: usize = 6;

pub async fn follow(session: Arc<Session>, mut quit: watch::Receiver<bool>) -> Result<(), LinkError> {
    let link = &session.shared.config.link;
    let mut failures = 0;
    loop {
        let ended = tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            ended = follow_once(&session, &mut failures) => ended,
        };
        match ended {
            Err(error) if error.ends_session() => return Err(error),
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, failures, "the directory cannot be followed; it is asked for again");
            }
            Ok(()) => {}
        }
        let pause = back_off(failures, link.retry_min, link.retry_max, session.shared.env.jitter());
        tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Reads until the stream ends. What was read is checked while what came before it is stored.
async fn follow_once(session: &Session, failures: &mut u32) -> Result<(), LinkError> {
    let since = session.shared.mailbox.directory_version().await?;
    let mut stream = session.open().await?;
    stream.write(&Frame::Directory(since)).await?;
    let (found, news) = mpsc::channel(FRAMES_AHEAD);
    let (mut storing, mut reading) = (pin!(store(session, news, failures)), pin!(read_ahead(session, stream, found)));
    tokio::select! {
        biased;
        ended = &mut storing => ended,
        ended = &mut reading => storing.await.and(ended),
    }
}

/// Entries whose signatures hold, and the directory's version after them.
struct News {
    version: u64,
    entries: Vec<AgencyRow>,
}

async fn read_ahead(session: &Session, mut stream: Stream, found: mpsc::Sender<News>) -> Result<(), LinkError> {
    let shared = &session.shared;
    loop {
        let notices = match stream.read_unhurried(Class::Large).await? {
            Frame::Notices(notices) => notices,
            other => return Err(LinkError::Unexpected { found: other.name(), expected: "Notices" }),
        };
        // First, and whatever the entries are like: a revocation must not wait for a directory that is in order.
        for (issuer, pem) in notices.crls {
            take_crl(session, &issuer, &pem);
        }
        docaxis_failpoints::failpoint!("agent.directory.read");
        let (identity, entries) = (session.identity.clone(), notices.entries);
        let check = move |_: Arc<Parts>| verify_all(entries, &identity.directory_key, &identity.origin);
        let verified = match shared.blocking(check).await {
            Ok(verified) => verified,
            Err(error) => {
                shared.alarm(format!("an entry of the directory was not taken: {error}"));
                return Err(LinkError::Protocol(error.to_string()));
            }
        };
        let news = News { version: notices.version, entries: verified.into_iter().map(row).collect() };
        if found.send(news).await.is_err() {
            // Whoever stores them has ended, and says why.
            return Ok(());
        }
    }
}

fn row(verified: VerifiedEntry) -> AgencyRow {
    let (entry, signed) = verified.into_parts();
    AgencyRow {
        code: entry.agency,
        version: entry.version,
        name: entry.name,
        node: entry.node,
        locked: entry.locked,
        successor: entry.successor,
        aliases: entry.aliases,
        signed,
    }
}

async fn store(session: &Session, mut news: mpsc::Receiver<News>, failures: &mut u32) -> Result<(), LinkError> {
    let (shared, node) = (&session.shared, &session.identity.node);
    let mut read = Vec::with_capacity(FRAMES_AHEAD);
    while news.recv_many(&mut read, FRAMES_AHEAD).await > 0 {
        let version = read.iter().map(|news| news.version).max().unwrap_or_default();
        let entries: Vec<AgencyRow> = read.drain(..).flat_map(|news| news.entries).collect();
        let ours = entries.iter().any(|entry| entry.node.as_ref() == Some(node));
        shared.mailbox.store_agencies(version, entries).await?;
        docaxis_failpoints::failpoint!("agent.directory.stored");
        if ours {
            session.hosting.notify_one();
        }
        shared.changed();
        *failures = 0;
    }
    Ok(())
}

/// Puts a newer revocation list in force and keeps it; one that does not verify is only reported.
fn take_crl(session: &Session, issuer: &str, pem: &str) {
    let shared = &session.shared;
    let problem = |why: String| shared.alarm(format!("the revocation list of {issuer:?} was not taken: {why}"));
    let der = match crl_from_pem(pem.as_bytes()) {
        Ok(der) => der,
        Err(error) => return problem(error.to_string()),
    };
    let identity = shared.identity.load_full();
    let mut common = identity.common.clone();
    match issuer {
        "nodes" => match identity.trust.reload_crl(&der) {
            Ok(true) => common.nodes_crl = der,
            Ok(false) => return,
            Err(error) => return problem(error.to_string()),
        },
        "seals" => match newer_seals_crl(&der, &common.seals_crl, &common.seals_ca) {
            Ok(true) => common.seals_crl = der,
            Ok(false) => return,
            Err(why) => return problem(why),
        },
        _ => return problem("expected \"nodes\" or \"seals\"".into()),
    }
    if let Err(error) = common.save_crls(&shared.config.agent.identity) {
        problem(format!("in force until the next start only: {error}"));
    }
    match identity.with_common(common) {
        Ok(next) => shared.identity.store(Arc::new(next)),
        Err(error) => problem(error.to_string()),
    }
}

/// Whether `new` verifies and is newer than the list in force.
fn newer_seals_crl(new: &[u8], held: &[u8], issuer: &[u8]) -> Result<bool, String> {
    use docaxis_certs::crl::RevocationList;
    let new = RevocationList::verify(new, issuer).map_err(|e| e.to_string())?;
    let held = RevocationList::verify(held, issuer).map_err(|e| e.to_string())?;
    if new.number < held.number {
        return Err(format!("it is number {}; number {} is in force", new.number, held.number));
    }
    Ok(new.number > held.number)
}
