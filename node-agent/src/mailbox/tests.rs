//! What the mailbox promises: an answered write is there after kill -9, a failed one leaves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use docaxis_protocol::envelope::Chain;
use docaxis_protocol::frame::SignedBytes;
use docaxis_protocol::key::{RawSignature, SecretKey};
use docaxis_protocol::{AgencyCode, Digest, DispatchId, SealedEnvelope, Timestamp};

use super::*;
use crate::link::testing::{code, envelope};
use crate::order::{self, Ended, Order, Places, Waits};

pub(super) fn queued(n: u32) -> Queued {
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
        small: SmallBodies::default(),
        related: vec![],
        document: Default::default(),
        unless_sent_before: false,
        gives_up: None,
        idempotency: None,
    }
}

fn with_its_body(n: u32) -> Queued {
    let mut new = queued(n);
    new.small.add(n.to_be_bytes().to_vec().into());
    new
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
}

const CHILD: &str = "DOCAXIS_TEST_MAILBOX";

/// Not a test of its own: the process that the next one starts and kills. Without the path it does nothing. Prints each id
/// once it was told that it is queued.
#[test]
fn child_that_queues_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let mailbox = std::sync::Arc::new(Mailbox::open(path.as_ref()).unwrap());
    runtime().block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..16u32 {
            let mailbox = mailbox.clone();
            tasks.spawn(async move {
                for n in 0u32.. {
                    let id = mailbox.queue(with_its_body(task << 24 | n)).await.unwrap().unwrap();
                    println!("queued {} {}", id.id, task << 24 | n);
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
            .args(["--exact", &child, "--nocapture"])
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
                let body = mailbox.body(queued(*n).parts[0].sha256).await.unwrap();
                assert_eq!(body, BodyRow::Whole(n.to_be_bytes().to_vec()));
            }
            // And none is there that no dispatch names.
            let unnamed = mailbox
                .read(|connection| {
                    let sql = "SELECT count(*) FROM bodies b WHERE NOT EXISTS (SELECT 1 FROM part_refs p WHERE p.sha256 = b.sha256)";
                    Ok(connection.query_row(sql, [], |row| row.get::<_, i64>(0))?)
                })
                .await;
            assert_eq!(unnamed.unwrap(), 0);
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
fn a_full_disk_refuses_writes_whole_keeps_what_was_answered_and_takes_more_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mailbox.db");
    let mailbox = std::sync::Arc::new(Mailbox::open(&path).unwrap());
    let pages = async |more: i64| {
        let bound = move |connection: &Connection| {
            let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let sql = format!("PRAGMA max_page_count = {}", pages + more);
            Ok(connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?)
        };
        mailbox.write(bound).await.unwrap()
    };
    let queue_all = async |from: u32| {
        let mut tasks = tokio::task::JoinSet::new();
        for n in from..from + 300 {
            let mailbox = mailbox.clone();
            tasks.spawn(async move { (n, mailbox.queue(queued(n)).await) });
        }
        tasks.join_all().await
    };
    runtime().block_on(async {
        // Room for some, as SQLite itself counts it: the same answer as from a disk without room.
        pages(40).await;
        let mut answers = vec![];
        for round in 0..3 {
            answers.extend(queue_all(round * 300).await);
        }
        let refused = answers.iter().filter(|(_, answer)| answer.is_err()).count();
        assert!(refused > 0 && refused < answers.len(), "{refused} of {} were refused", answers.len());
        pages(1 << 20).await;
        answers.extend(queue_all(900).await);
        for (n, answer) in answers {
            let there = mailbox.outgoing(queued(n).id).await.unwrap().is_some();
            match answer {
                Ok(id) => assert_eq!((id.unwrap().id, there), (queued(n).id, true)),
                Err(error) => assert!(matches!(error, MailboxError::Full) && !there && n < 900, "{n}: {error}"),
            }
        }
    });
    mailbox.close();
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
        assert_eq!(mailbox.evidence_at(vec![5, 6]).await.unwrap()[&5].signed.bytes, b"one");
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

/// So many places for normal ones.
const fn all(normal: usize) -> Places {
    Places { normal, under_way: 0 }
}

#[test]
fn what_is_queued_is_read_on_in_its_order_until_it_is_settled() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    runtime().block_on(async {
        for (n, priority) in [(1, 0), (2, 0), (3, 4), (4, 0)] {
            mailbox.queue(Queued { priority, ..queued(n) }).await.unwrap().unwrap();
        }
        let later = queued(0).queued.plus(Duration::from_secs(1));
        let why = docaxis_protocol::ReasonCode::Busy.because("later");
        mailbox.postpone(queued(1).id, later, why.clone()).await.unwrap();
        let behind = async |places: &[(u8, Option<u64>)], limit| {
            let places = places.iter().map(|(priority, place)| ((queued(1).sender, *priority), *place)).collect();
            let found = mailbox.queued_behind(places, all(limit)).await.unwrap();
            found.into_iter().map(|waits| waits.seq).collect::<Vec<_>>()
        };
        assert_eq!(behind(&[], 3).await, [3, 1, 2]);
        assert_eq!(behind(&[(0, Some(2)), (4, Some(3))], 2).await, [4]);
        assert_eq!(behind(&[(0, None)], 10).await, [3]);
        let urgent = mailbox.queued_behind(BTreeMap::new(), Places { normal: 1, under_way: 3 }).await.unwrap();
        assert_eq!(urgent.iter().map(|waits| waits.seq).collect::<Vec<_>>(), [3]);
        mailbox.settle(queued(2).id, OutState::Accepted, later, None, None).await.unwrap();
        assert_eq!(behind(&[(4, None)], 10).await, [1, 4]);
        let left: Vec<_> = mailbox.queued_at(vec![1, 2, 9]).await.unwrap().into_iter().map(|row| row.id).collect();
        assert_eq!(left, [queued(1).id]);
        let new = queued(1);
        let found = mailbox.queued_behind(BTreeMap::from([((queued(1).sender, 4), None)]), all(1)).await.unwrap();
        let expected = Waits {
            seq: 1,
            id: new.id,
            sender: new.sender,
            priority: 0,
            recipients: new.recipients,
            large: false,
            about: vec![],
            attempts: 1,
            next_attempt: later,
            trouble: Some(why),
            expires: Some(docaxis_protocol::Envelope::parse(&new.sealed.bytes).unwrap().expires),
        };
        assert_eq!(found, [expected]);
    });
    mailbox.close();
}

#[test]
fn what_one_agency_has_that_rests_keeps_nothing_of_another_from_being_read() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    let many = u32::try_from(order::MAX_ROWS).unwrap() + 200;
    runtime().block_on(async {
        let queue_all =
            mailbox.write(move |connection| (1..=many).try_for_each(|n| outgoing::insert(connection, &queued(n))));
        queue_all.await.unwrap();
        let other = Queued { sender: code("000.00.01.A53"), ..queued(many + 1) };
        mailbox.queue(other.clone()).await.unwrap().unwrap();
        let (now, why) = (other.queued, docaxis_protocol::ReasonCode::OverQuota.because("full"));
        let (mut order, mut sent) = (Order::default(), BTreeSet::new());
        loop {
            let found = mailbox.queued_behind(order.read_from(), all(64)).await.unwrap();
            let more = !found.is_empty();
            found.into_iter().for_each(|waits| order.add(waits));
            for next in order.next(now, all(64), true) {
                sent.insert(next.id);
                let (until, why) = (now.plus(Duration::from_secs(60)), why.clone());
                order.ended(next.id, Ended::Postponed { attempts: 1, until, why, expires: None });
            }
            if !more {
                break;
            }
        }
        assert!(sent.contains(&queued(1).id) && sent.contains(&other.id));
        assert_eq!(order.read_from()[&(queued(1).sender, 0)], None, "there is more of it than is looked at");
    });
    mailbox.close();
}

#[test]
fn bodies_that_do_not_go_with_the_envelope_make_a_dispatch_a_large_one() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    let kib = |n: u8, kib: u64| QueuedPart { sha256: Digest::of(&[n]), size: kib << 10 };
    runtime().block_on(async {
        let parts = [
            vec![kib(1, 64); 1],
            vec![kib(1, 65)],
            (1..=4).map(|n| kib(n, 64)).collect(),
            (1..=5).map(|n| kib(n, 60)).collect(),
        ];
        for (n, parts) in (1..).zip(parts) {
            mailbox.queue(Queued { parts, ..queued(n) }).await.unwrap().unwrap();
        }
        let found = mailbox.queued_behind(BTreeMap::new(), all(10)).await.unwrap();
        assert_eq!(found.into_iter().map(|waits| waits.large).collect::<Vec<_>>(), [false, true, false, true]);
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

/// A sealed statement of an agency of ours, with this time.
fn stated(n: u32, ms: i64) -> (DispatchId, Take) {
    let id = queued(n).id;
    let statement = docaxis_protocol::Statement {
        kind_of_bytes: docaxis_protocol::statement::TYPE.into(),
        exchange: "docaxis.example/test".parse().unwrap(),
        event: docaxis_protocol::Event::ContentHandoverFailure,
        dispatch: id,
        envelope_sha256: queued(n).sealed.digest(),
        recipient: code("H37.DN.001"),
        time: Timestamp::from_unix_ms(ms),
        reasons: vec![docaxis_protocol::ReasonCode::BadSeal.because("x")],
        acting: None,
    };
    let key = SecretKey::from_seed(&[2; 32]);
    let take = Take {
        id,
        recipient: statement.recipient.clone(),
        envelope_sha256: statement.envelope_sha256,
        event: statement.event,
        time: statement.time,
        statement: docaxis_protocol::SealedStatement::seal(&statement, &key, Chain::default()).unwrap(),
        body: None,
    };
    (id, take)
}

#[test]
fn what_stays_open_at_the_front_does_not_hide_what_is_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    runtime().block_on(async {
        // Three of the same time, and one later: none of them is ever answered.
        for (n, ms) in [(1, 1_000), (2, 1_000), (3, 1_000), (4, 2_000)] {
            assert_eq!(mailbox.take(stated(n, ms).1).await.unwrap(), Taken::New);
        }
        let mut seen = vec![];
        let mut after = None;
        loop {
            let page = mailbox.open_statements(after, 2).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.key());
            seen.extend(page.into_iter().map(|row| row.dispatch));
        }
        assert_eq!(seen, [1, 2, 3, 4].map(|n| stated(n, 0).0));

        let row = |leaf: u64, ms: i64| EvidenceRow {
            leaf,
            dispatch: queued(1).id,
            recipient: None,
            event: docaxis_protocol::Event::SubmissionAcceptance,
            time: queued(1).queued,
            signed: docaxis_protocol::SignedEvidence {
                bytes: leaf.to_string().into_bytes(),
                signature: RawSignature([0; 64]),
            },
            statement_chain: None,
            proof: None,
            stored: Timestamp::from_unix_ms(ms),
        };
        for (leaf, ms) in [(9, 5), (2, 5), (7, 5), (1, 6)] {
            let (state, time) = (OutState::Accepted, queued(1).queued);
            assert!(mailbox.settle(queued(1).id, state, time, None, Some(row(leaf, ms))).await.unwrap());
        }
        let (mut seen, mut after) = (vec![], None);
        loop {
            let page = mailbox.unproven(after, 2).await.unwrap();
            after = page.last().copied();
            if after.is_none() {
                break;
            }
            seen.extend(page.into_iter().map(|missing| missing.leaf));
        }
        assert_eq!(seen, [2, 7, 9, 1]);
    });
    mailbox.close();
}

#[test]
fn the_bodies_of_what_was_sent_stay_whatever_has_become_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mailbox.db");
    let mailbox = Mailbox::open(&path).unwrap();
    let bodies: Vec<Digest> = (1..=3).map(|n| queued(n).parts[0].sha256).collect();
    runtime().block_on(async {
        for n in 1..=3 {
            mailbox.queue(queued(n)).await.unwrap().unwrap();
        }
        let now = queued(1).queued;
        for (n, state) in [(1, OutState::Accepted), (2, OutState::Rejected)] {
            assert!(mailbox.settle(queued(n).id, state, now, None, None).await.unwrap());
        }
        assert_eq!(mailbox.unreferenced(bodies.clone()).await.unwrap(), []);
        // The same bytes came in as well and are taken back: that reference goes, the sender's stays.
        let (_, mut take) = stated(3, 1_000);
        take.event = docaxis_protocol::Event::ContentHandover;
        take.body = Some(TakeBody {
            sender: queued(3).sender,
            sealed: queued(3).sealed,
            acceptance: EvidenceRow {
                leaf: 1,
                dispatch: queued(3).id,
                recipient: None,
                event: docaxis_protocol::Event::SubmissionAcceptance,
                time: now,
                signed: docaxis_protocol::SignedEvidence { bytes: b"{}".to_vec(), signature: RawSignature([0; 64]) },
                statement_chain: None,
                proof: None,
                stored: now,
            },
            parts: queued(3).parts,
            small: SmallBodies::default(),
            held: vec![],
            related: vec![],
            document: Default::default(),
        });
        assert_eq!(mailbox.take(take).await.unwrap(), Taken::New);
        let open = mailbox.open_statements(None, 9).await.unwrap().remove(0);
        let why = docaxis_protocol::ReasonCode::NotYours.because("no");
        assert_eq!(mailbox.statement_refused(&open, why).await.unwrap(), Destroyed::default());
    });
    mailbox.close();
    let mailbox = Mailbox::open(&path).unwrap();
    runtime().block_on(async {
        assert_eq!(mailbox.unreferenced(bodies).await.unwrap(), []);
    });
    mailbox.close();
}

#[test]
fn a_database_of_the_first_version_keeps_everything_and_takes_what_later_ones_brought() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mailbox.db");
    // As the first program made it, with a dispatch and a statement in it.
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(&format!("PRAGMA journal_mode=WAL; {}", schema::V1)).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    outgoing::insert(&connection, &queued(7)).unwrap();
    drop(connection);
    for _ in 0..2 {
        let mailbox = Mailbox::open(&path).unwrap();
        runtime().block_on(async {
            let row = mailbox.outgoing(queued(7).id).await.unwrap().unwrap();
            assert_eq!((row.sealed, row.state), (queued(7).sealed, OutState::Queued));
            assert_eq!((row.sender, row.queued), (queued(7).sender, queued(7).queued));
            assert_eq!(mailbox.deliveries(queued(7).id).await.unwrap().len(), 1);
            assert_eq!(mailbox.unreferenced(vec![queued(7).parts[0].sha256]).await.unwrap(), []);
            assert_eq!(mailbox.epoch().await.unwrap(), 1);
            let found = mailbox
                .read(|connection| {
                    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
                    let second: i64 =
                        connection.query_row("SELECT count(*) FROM contradictions", [], |row| row.get(0))?;
                    Ok((version, second))
                })
                .await;
            assert_eq!(found.unwrap(), (7, 0));
        });
        mailbox.close();
    }
}

#[test]
fn a_database_of_a_newer_program_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mailbox.db");
    Mailbox::open(&path).unwrap().close();
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(matches!(Mailbox::open(&path), Err(MailboxError::Newer { found: 99, known: 7 })));
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
    let later = runtime.block_on(mailbox.queue(queued(1))).unwrap_err();
    assert!(matches!(later, MailboxError::Poisoned(told) if told == why));
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

#[test]
fn evidence_that_is_damaged_here_does_not_keep_the_rest_from_an_exchange_that_lost_it() {
    let folder = tempfile::tempdir().unwrap();
    let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let exchange = crate::link::testing::Exchange::start();
        let event = docaxis_protocol::Event::SubmissionAcceptance;
        let good = exchange.evidence(event, &queued(1).sealed, |_| {});
        let filled = mailbox.write(move |connection| {
            for leaf in 5..9 {
                let bytes = if leaf == 6 { b"rot" } else { good.bytes.as_slice() };
                connection.execute(
                    "INSERT INTO evidence VALUES (?1, ?2, NULL, 'SubmissionAcceptance', 0, ?3, ?4, x'', NULL, NULL, 0)",
                    rusqlite::params![leaf, queued(1).id.as_bytes(), bytes, good.signature.0.as_slice()],
                )?;
            }
            Ok(())
        });
        filled.await.unwrap();
        for (from, expected, damaged) in [(5, vec![5, 7], 1), (8, vec![8], 0)] {
            let (leaves, errors) = mailbox.give_back(from, 2, Timestamp::from_unix_ms(0)).await.unwrap();
            let found: Vec<u64> = leaves.into_iter().map(|given| given.leaf).collect();
            assert_eq!((found, errors.len()), (expected, damaged), "{errors:?}");
        }
    });
    mailbox.close();
}
