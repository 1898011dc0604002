//! What the mailbox promises: an answered write is there after kill -9, a failed one leaves nothing.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use docaxis_protocol::envelope::Chain;
use docaxis_protocol::frame::SignedBytes;
use docaxis_protocol::key::{RawSignature, SecretKey};
use docaxis_protocol::{AgencyCode, Digest, DispatchId, SealedEnvelope, Timestamp};

use super::*;
use crate::link::testing::{code, envelope};

fn queued(n: u32) -> Queued {
    let mut envelope = envelope("000.00.00.G22", &["H37.DN.001"]);
    let mut random = [0; 10];
    random[..4].copy_from_slice(&n.to_be_bytes());
    envelope.id = DispatchId::from_parts(envelope.created, random);
    envelope.document.insert("Subject".into(), format!("letter {n}").into());
    Queued {
        id: envelope.id,
        sender: envelope.sender.agency.clone(),
        recipients: envelope.recipients.clone(),
        sealed: SealedEnvelope::seal(&envelope, &SecretKey::from_seed(&[1; 32]), Chain::default()).unwrap(),
        priority: 0,
        queued: envelope.created,
        parts: vec![QueuedPart { sha256: Digest::of(&n.to_be_bytes()), size: 4 }],
        idempotency: None,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

const CHILD: &str = "DOCAXIS_TEST_MAILBOX";

/// Not a claim of its own: the process that the next test kills. Prints each id once it was told that it is queued.
#[test]
#[ignore = "run by what_was_answered_survives_kill_9_in_the_middle_of_writing"]
fn child_that_queues_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mailbox = std::sync::Arc::new(Mailbox::open(path.as_ref()).unwrap());
    runtime().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..16u32 {
            let mailbox = mailbox.clone();
            tasks.spawn(async move {
                for n in 0u32.. {
                    let id = mailbox.queue(queued(task << 24 | n)).await.unwrap().unwrap();
                    println!("queued {id} {}", task << 24 | n);
                }
            });
        }
        tasks.join_next().await;
    });
}

#[test]
fn what_was_answered_survives_kill_9_in_the_middle_of_writing() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 1..=3usize {
        let child = format!("{}::child_that_queues_until_it_is_killed", module_path!().split_once("::").unwrap().1);
        let path = folder.path().join(format!("mailbox-{round}.db"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &child, "--ignored", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let parse = |line: String| -> Option<(DispatchId, u32)> {
            let (id, n) = line.split_once("queued ")?.1.split_once(' ')?;
            Some((id.parse().ok()?, n.trim().parse().ok()?))
        };
        acknowledged.clear();
        while acknowledged.len() < 100 * round {
            acknowledged.extend(parse(lines.next().expect("the child writes")));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // The last line may be cut short by the kill; a whole one was answered.
        acknowledged.extend(lines.filter_map(parse));

        let mailbox = Mailbox::open(&path).unwrap();
        runtime().block_on(async {
            for (id, n) in &acknowledged {
                let row = mailbox.outgoing(*id).await.unwrap().expect("an answered write is there");
                assert_eq!((row.sealed, row.state), (queued(*n).sealed, OutState::Queued));
                assert_eq!(mailbox.deliveries(*id).await.unwrap().len(), 1);
            }
        });
        mailbox.close();
    }
}

#[test]
fn many_waiting_writes_share_transactions_and_a_failed_one_undoes_only_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = std::sync::Arc::new(Mailbox::open(&folder.path().join("mailbox.db")).unwrap());
    runtime().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200 {
            let mailbox = mailbox.clone();
            // Every number is queued twice; the second of the two breaks the uniqueness of ids.
            tasks.spawn(async move { mailbox.queue(queued(n / 2)).await.is_ok() });
        }
        assert_eq!(tasks.join_all().await.into_iter().filter(|done| *done).count(), 100);
        assert_eq!(mailbox.outbox_counts().await.unwrap(), [(OutState::Queued, 100)]);
    });
    mailbox.close();
    runtime().block_on(async {
        assert!(matches!(mailbox.queue(queued(1000)).await, Err(MailboxError::Closed)));
    });
}

#[test]
fn a_second_piece_of_evidence_for_one_leaf_is_kept_apart_and_moves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    let row = |n: u32, bytes: &[u8]| EvidenceRow {
        leaf: 5,
        dispatch: queued(n).id,
        recipient: None,
        event: docaxis_protocol::Event::SubmissionAcceptance,
        time: queued(n).queued,
        signed: docaxis_protocol::SignedEvidence { bytes: bytes.to_vec(), signature: RawSignature([0; 64]) },
        statement_chain: None,
        proof: None,
        stored: queued(n).queued,
    };
    runtime().block_on(async {
        for n in [1, 2] {
            mailbox.queue(queued(n)).await.unwrap().unwrap();
        }
        let settle = async |n: u32, bytes: &[u8]| {
            let evidence = Some(row(n, bytes));
            mailbox.settle(queued(n).id, OutState::Accepted, queued(n).queued, None, evidence).await.unwrap()
        };
        assert_eq!((settle(1, b"one").await, settle(2, b"two").await), (true, false));
        let follows = Follows {
            row: row(2, b"two"),
            sender: queued(2).sender,
            envelope_sha256: queued(2).sealed.digest(),
            previous: None,
            late: false,
            reason: None,
            believed: true,
        };
        let followed = mailbox.follow(vec![follows]).await.unwrap();
        assert_eq!(followed, Followed { stored: 1, gap: false, alarms: vec![contradiction(5)] });
        assert_eq!(mailbox.outgoing(queued(2).id).await.unwrap().unwrap().state, OutState::Queued);
        assert_eq!(mailbox.evidence_at(5).await.unwrap().unwrap().signed.bytes, b"one");
        let kept = mailbox
            .read(|connection| {
                Ok(connection.query_row("SELECT bytes FROM contradictions", [], |row| row.get::<_, Vec<u8>>(0))?)
            })
            .await;
        assert_eq!(kept.unwrap(), b"two".to_vec());
    });
    mailbox.close();
}

#[test]
fn a_body_that_was_referred_to_meanwhile_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    runtime().block_on(async {
        mailbox.queue(queued(1)).await.unwrap().unwrap();
        let (kept, free) = (queued(1).parts[0].sha256, queued(2).parts[0].sha256);
        let (tell, told) = std::sync::mpsc::channel();
        mailbox.remove_unreferenced(vec![kept, free], move |sha256| tell.send(sha256)).await.unwrap().unwrap();
        assert_eq!(told.iter().collect::<Vec<_>>(), [free]);
    });
    mailbox.close();
}

#[test]
fn urgent_goes_before_normal_then_the_oldest_and_what_is_postponed_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    runtime().block_on(async {
        for (n, priority) in [(1, 0), (2, 0), (3, 4), (4, 0)] {
            mailbox.queue(Queued { priority, ..queued(n) }).await.unwrap().unwrap();
        }
        let now = queued(0).queued;
        let later = now.plus(Duration::from_secs(1));
        let why = docaxis_protocol::ReasonCode::Busy.because("later");
        mailbox.postpone(queued(1).id, later, why.clone()).await.unwrap();
        let due =
            async |at: Timestamp| mailbox.due(at, 10).await.unwrap().into_iter().map(|row| row.id).collect::<Vec<_>>();
        assert_eq!(due(now).await, [3, 2, 4].map(|n| queued(n).id));
        assert_eq!(due(later).await, [3, 1, 2, 4].map(|n| queued(n).id));
        let row = mailbox.outgoing(queued(1).id).await.unwrap().unwrap();
        assert_eq!((row.attempts, row.trouble), (1, Some(why)));
    });
    mailbox.close();
}

fn agency(text: &str, version: u64, aliases: &[&str]) -> AgencyRow {
    AgencyRow {
        code: code(text),
        version,
        signed: SignedBytes { bytes: vec![], signature: RawSignature([0; 64]) },
        name: format!("Sở Nội vụ {text}"),
        node: None,
        locked: false,
        successor: None,
        aliases: aliases.iter().map(|text| code(text)).collect(),
    }
}

#[test]
fn aliases_resolve_to_one_agency_and_older_entries_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    let named = |resolved: Resolved| match resolved {
        Resolved::Agency(row) => row.code.to_string(),
        other => format!("{other:?}"),
    };
    runtime().block_on(async {
        let resolve = async |text: &str| named(mailbox.resolve(code(text)).await.unwrap());
        assert_eq!(resolve("H37.DN.001").await, "NoDirectory");
        let first = agency("H37.DN.001", 2, &["000.12.31.H37"]);
        mailbox.store_agencies(2, vec![first, agency("A53", 1, &[])]).await.unwrap();
        mailbox.store_agencies(1, vec![agency("H37.DN.001", 1, &["000.99.99.H37"])]).await.unwrap();
        assert_eq!(resolve("000.12.31.H37").await, "H37.DN.001");
        assert_eq!(resolve("H37.DN.001").await, "H37.DN.001");
        assert_eq!(resolve("000.99.99.H37").await, "Unknown");
        mailbox.store_agencies(3, vec![agency("H37.DN.001", 3, &[])]).await.unwrap();
        assert_eq!(resolve("000.12.31.H37").await, "Unknown");
        assert_eq!(mailbox.directory_version().await.unwrap(), 3);
        let found = mailbox.find_agencies("noi vu h37", 10).await.unwrap();
        let codes: Vec<AgencyCode> = found.into_iter().map(|row| row.code).collect();
        assert_eq!(codes, [code("H37.DN.001")]);
    });
    mailbox.close();
}

#[test]
fn a_database_of_a_newer_program_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mailbox.db");
    Mailbox::open(&path).unwrap().close();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(Mailbox::open(&path), Err(MailboxError::Newer { found: 99, known: 2 })));
}

#[test]
fn after_a_failed_commit_nothing_more_is_taken_and_the_mailbox_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    let runtime = runtime();
    assert_eq!(mailbox.poisoned(), None);
    // The transaction is gone when the writer comes to its end, as after an error of the disk.
    let failed = runtime.block_on(mailbox.write(|connection| Ok(connection.execute_batch("COMMIT")?))).unwrap_err();
    let why = mailbox.poisoned().unwrap();
    assert!(matches!(failed, MailboxError::Poisoned(told) if told == why));
    assert!(matches!(runtime.block_on(mailbox.queue(queued(1))), Err(MailboxError::Closed)));
    mailbox.close();
}

#[test]
fn a_database_that_the_disk_does_not_give_is_said_to_be_lost_and_a_busy_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    let runtime = runtime();
    let fails = |code| {
        let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        runtime.block_on(mailbox.read(move |_| Err::<(), _>(error.into()))).unwrap_err()
    };
    assert!(matches!(fails(rusqlite::ffi::SQLITE_BUSY), MailboxError::Sql(_)));
    assert_eq!(mailbox.poisoned(), None);
    assert!(matches!(fails(rusqlite::ffi::SQLITE_IOERR), MailboxError::Sql(_)));
    assert!(mailbox.poisoned().is_some());
    mailbox.close();
}
