//! Bodies in rows: named once or several times, gone with the last name, and what becomes of damaged ones.

use std::os::unix::fs::FileExt as _;

use docaxis_protocol::envelope::Chain;
use docaxis_protocol::key::{RawSignature, SecretKey};
use docaxis_protocol::{
    DispatchId, Event, ReasonCode, SealedStatement, SignedEvidence, Statement, Timestamp, statement,
};

use super::super::tests::queued;
use super::super::{
    Destroyed, EvidenceRow, NotQueued, Queued, QueuedPart, Take, TakeBody, Taken, begin_epoch, damage, snapshot,
};
use super::*;
use crate::link::testing::code;

struct Node {
    folder: tempfile::TempDir,
    mailbox: Mailbox,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
        Self { folder, mailbox }
    }

    fn database(&self) -> std::path::PathBuf {
        self.folder.path().join("mailbox.db")
    }

    fn body(&self, bytes: &[u8]) -> BodyRow {
        wait(self.mailbox.body(Digest::of(bytes))).unwrap()
    }

    fn rows(&self) -> usize {
        let sql = "SELECT count(*) FROM bodies";
        let count = self.mailbox.read(move |c| Ok(c.query_row(sql, [], |row| row.get::<_, i64>(0))?));
        usize::try_from(wait(count).unwrap()).unwrap()
    }

    fn queue(&self, new: Queued) -> Result<DispatchId, NotQueued> {
        wait(self.mailbox.queue(new)).unwrap().map(|queued| queued.id)
    }

    fn take(&self, n: u8, bodies: &[&[u8]]) -> Taken {
        wait(self.mailbox.take(taken(n, bodies))).unwrap()
    }

    /// The exchange does not take the statement about it: what was taken goes again.
    fn take_back(&self, n: u8) -> Destroyed {
        let open = wait(self.mailbox.open_statements(None, 99)).unwrap();
        let ours = open.iter().find(|row| row.dispatch == sent(n, &[]).id).unwrap();
        let destroyed = wait(self.mailbox.statement_refused(ours, ReasonCode::NotYours.because("no"))).unwrap();
        let no_file = |_| Ok::<_, ()>(());
        wait(self.mailbox.remove_unreferenced(destroyed.unreferenced.clone(), no_file)).unwrap().unwrap();
        destroyed
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn sent(n: u8, bodies: &[&[u8]]) -> Queued {
    let mut small = SmallBodies::default();
    for body in bodies {
        small.add(body.to_vec().into());
    }
    let parts = bodies.iter().map(|body| QueuedPart { sha256: Digest::of(body), size: body.len() as u64 }).collect();
    Queued { parts, small, ..queued(n.into()) }
}

fn taken(n: u8, bodies: &[&[u8]]) -> Take {
    let Queued { id, sender, sealed, parts, small, queued: time, .. } = sent(n, bodies);
    let statement = Statement {
        kind_of_bytes: statement::TYPE.into(),
        exchange: "docaxis.example/test".parse().unwrap(),
        event: Event::ContentHandover,
        dispatch: id,
        envelope_sha256: sealed.digest(),
        recipient: code("H37.DN.001"),
        time,
        reasons: vec![],
        acting: None,
    };
    Take {
        id,
        recipient: statement.recipient.clone(),
        envelope_sha256: statement.envelope_sha256,
        event: statement.event,
        time,
        statement: SealedStatement::seal(&statement, &SecretKey::from_seed(&[2; 32]), Chain::default()).unwrap(),
        body: Some(TakeBody {
            sender,
            sealed,
            acceptance: EvidenceRow {
                leaf: n.into(),
                dispatch: id,
                recipient: None,
                event: Event::SubmissionAcceptance,
                time,
                signed: SignedEvidence { bytes: vec![n], signature: RawSignature([0; 64]) },
                statement_chain: None,
                proof: None,
                stored: time,
            },
            parts,
            small,
            held: vec![],
            related: vec![],
            document: Default::default(),
        }),
    }
}

#[test]
fn a_body_of_several_dispatches_stands_once_and_goes_with_the_last_that_names_it() {
    let node = Node::new();
    let (shared, own) = ([1; 5_000].as_slice(), [2; 300].as_slice());
    assert_eq!(node.take(1, &[shared, own]), Taken::New);
    let mut second = taken(2, &[shared, shared]);
    // It is looked at first: then no second one is made.
    assert_eq!(wait(node.mailbox.take(second.clone())).unwrap(), Taken::LookAt(Digest::of(shared)));
    assert_eq!((node.body(shared), node.rows()), (BodyRow::Whole(shared.to_vec()), 2));
    second.body.as_mut().unwrap().small.found_whole(Digest::of(shared));
    assert_eq!(wait(node.mailbox.take(second)).unwrap(), Taken::New);
    assert_eq!(node.queue(found(sent(3, &[shared]))), Ok(sent(3, &[]).id));
    assert_eq!(node.rows(), 2);
    assert_eq!(node.take_back(1), Destroyed { unreferenced: vec![Digest::of(own)] });
    assert_eq!((node.body(own), node.body(shared)), (BodyRow::None, BodyRow::Whole(shared.to_vec())));
    assert_eq!(node.take_back(2), Destroyed::default());
    assert_eq!(node.body(shared), BodyRow::Whole(shared.to_vec()), "the sender's stays");

    // Without the sender's the last one takes it along.
    let node = Node::new();
    assert_eq!(node.take(1, &[shared]), Taken::New);
    let mut second = taken(2, &[shared]);
    second.body.as_mut().unwrap().small.found_whole(Digest::of(shared));
    assert_eq!(wait(node.mailbox.take(second)).unwrap(), Taken::New);
    assert_eq!(node.take_back(1), Destroyed::default());
    assert_eq!(node.rows(), 1);
    assert_eq!(node.take_back(2), Destroyed { unreferenced: vec![Digest::of(shared)] });
    assert_eq!(node.rows(), 0);
    // Its row went between the look and the commit: it is made again.
    assert_eq!(node.queue(found(sent(4, &[shared]))), Ok(sent(4, &[]).id));
    assert_eq!(node.body(shared), BodyRow::Whole(shared.to_vec()));
}

/// As one whose bodies' rows were looked at.
fn found(mut new: Queued) -> Queued {
    new.parts.iter().for_each(|part| new.small.found_whole(part.sha256));
    new
}

#[test]
fn a_row_that_a_crash_left_without_a_name_is_found_and_one_that_is_named_again_stays() {
    let node = Node::new();
    let (left, kept) = (b"left".as_slice(), b"kept".as_slice());
    node.queue(sent(1, &[left, kept])).unwrap();
    let forgotten = Digest::of(left);
    super::super::raw(&node.database())
        .execute("DELETE FROM part_refs WHERE sha256 = ?1", [forgotten.as_bytes()])
        .unwrap();
    assert_eq!(wait(node.mailbox.unnamed_bodies()).unwrap(), [forgotten]);
    let removed = wait(node.mailbox.remove_unreferenced(vec![forgotten, Digest::of(kept)], |_| Ok::<_, ()>(())));
    assert_eq!(removed.unwrap(), Ok(()));
    assert_eq!((node.body(left), node.body(kept)), (BodyRow::None, BodyRow::Whole(kept.to_vec())));
    assert_eq!(wait(node.mailbox.unnamed_bodies()).unwrap(), []);
}

#[test]
fn the_bytes_of_a_destroyed_body_are_nowhere_in_the_database() {
    let node = Node::new();
    let body: Vec<u8> = (0..20_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    assert_eq!(node.take(1, &[&body]), Taken::New);
    let in_file = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        body.chunks(1_000).filter(|piece| bytes.windows(200).any(|window| window == &piece[400..600])).count()
    };
    let emptied = || {
        raw_checkpoint(&node.database());
        in_file(&node.database())
    };
    assert!(emptied() > 15, "what this test looks for can be found");
    node.take_back(1);
    assert_eq!(emptied(), 0);
}

fn raw_checkpoint(database: &Path) {
    super::super::raw(database).query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
}

#[test]
fn a_body_whose_row_is_damaged_or_gone_is_to_be_looked_at_and_nothing_is_stored_before() {
    let (good, bad) = ([3; 9_000].as_slice(), [4; 9_000].as_slice());
    for bytes in [Some(bad), None] {
        let node = Node::new();
        let sha256 = Digest::of(good);
        assert_eq!(node.take(1, &[good]), Taken::New);
        damage(&node.database(), sha256, bytes);
        let found = bytes.map_or(BodyRow::None, |bad| BodyRow::Damaged(bad.to_vec()));
        assert_eq!(node.body(good), found);
        assert_eq!(node.take(2, &[good, b"beside"]), Taken::LookAt(sha256));
        assert_eq!(node.queue(sent(3, &[good, b"beside"])), Err(NotQueued::LookAt(sha256)));
        assert_eq!((node.body(good), node.body(b"beside")), (found.clone(), BodyRow::None));
        for n in [2, 3] {
            assert_eq!(wait(node.mailbox.incoming_all(sent(n, &[]).id)).unwrap(), []);
            assert_eq!(wait(node.mailbox.outgoing(sent(n, &[]).id)).unwrap(), None);
        }
        // As a file it is none of the mailbox's business; and what is damaged is not touched.
        let mut again = taken(2, &[good, b"beside"]);
        again.body.as_mut().unwrap().small.remove(sha256).unwrap();
        assert_eq!(wait(node.mailbox.take(again)).unwrap(), Taken::New);
        assert_eq!((node.take_back(1), node.body(good)), (Destroyed::default(), found.clone()));
        let mut gone = node.take_back(2).unreferenced;
        gone.sort();
        let mut both = vec![sha256, Digest::of(b"beside")];
        both.sort();
        assert_eq!((gone, node.body(good), node.body(b"beside")), (both, found, BodyRow::None));
    }
}

#[test]
fn a_body_whose_pages_are_bent_is_unreadable_and_everything_else_goes_on() {
    let node = Node::new();
    let (path, bent, good) = (node.database(), [5; 30_000], [6; 30_000]);
    assert_eq!(node.take(1, &[&bent]), Taken::New);
    assert_eq!(node.take(2, &[&good]), Taken::New);
    node.mailbox.close();
    raw_checkpoint(&path);
    // The chain of the first one's pages: each begins with the number of the next.
    let page = 4096;
    let bytes = std::fs::read(&path).unwrap();
    let full = bytes.chunks(page).position(|page| page[4..].iter().all(|byte| *byte == 5)).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0x7f], (full * page) as u64).unwrap();
    drop(file);

    let mailbox = Mailbox::open(&path).unwrap();
    let (unreadable, whole) = (wait(mailbox.body(Digest::of(&bent))), wait(mailbox.body(Digest::of(&good))));
    assert!(matches!(&unreadable, Ok(BodyRow::Unreadable(why)) if why.contains("malformed")), "{unreadable:?}");
    assert_eq!(whole.unwrap(), BodyRow::Whole(good.to_vec()));
    let again = wait(mailbox.take(taken(3, &[&bent]))).unwrap();
    assert_eq!(again, Taken::LookAt(Digest::of(&bent)));
    let removed = wait(mailbox.remove_unreferenced(vec![Digest::of(&bent)], |_| Ok::<_, ()>(()))).unwrap();
    assert_eq!(removed, Ok(()));
    assert_eq!(wait(mailbox.take(taken(4, &[b"another"]))).unwrap(), Taken::New);
    assert_eq!(mailbox.poisoned(), None);
    let copy = node.folder.path().join("copy.db");
    assert!(snapshot(&path, &copy).is_err(), "a copy that cannot hold everything is none");
    mailbox.close();
}

#[test]
fn a_database_of_the_version_before_keeps_its_bodies_as_files_and_takes_new_ones_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mailbox.db");
    let old = b"a body that is a file".as_slice();
    let mut as_file = sent(1, &[old]);
    as_file.small = SmallBodies::default();
    let mailbox = Mailbox::open(&path).unwrap();
    wait(mailbox.queue(as_file)).unwrap().unwrap();
    mailbox.close();
    let connection = super::super::raw(&path);
    connection
        .execute_batch("DROP TABLE bodies; DROP TABLE related; DROP TABLE documents; PRAGMA user_version = 4;")
        .unwrap();
    drop(connection);
    for _ in 0..2 {
        let mailbox = Mailbox::open(&path).unwrap();
        assert_eq!(wait(mailbox.unreferenced(vec![Digest::of(old)])).unwrap(), [], "the file stays");
        assert_eq!(wait(mailbox.body(Digest::of(old))).unwrap(), BodyRow::None);
        // It stands in one place: a file it was, a file it stays.
        let expected = Err(NotQueued::LookAt(Digest::of(old)));
        assert_eq!(wait(mailbox.queue(sent(2, &[old]))).unwrap(), expected);
        let _second_time_it_is_there = wait(mailbox.queue(sent(3, &[b"new"])));
        assert_eq!(wait(mailbox.body(Digest::of(b"new"))).unwrap(), BodyRow::Whole(b"new".to_vec()));
        mailbox.close();
    }
}

#[test]
fn a_copy_says_which_bodies_it_does_not_hold_whole_and_gives_out_the_others() {
    let node = Node::new();
    let (good, bad, file) = (b"good".as_slice(), b"bad".as_slice(), b"file".as_slice());
    let mut new = sent(1, &[good, bad, file]);
    new.small.remove(Digest::of(file)).unwrap();
    node.queue(new).unwrap();
    let (first, second) = (node.folder.path().join("first.db"), node.folder.path().join("second.db"));
    assert_eq!(snapshot(&node.database(), &first).unwrap().bodies, [Digest::of(file)].into());
    damage(&node.database(), Digest::of(bad), Some(b"BAD"));
    assert_eq!(snapshot(&node.database(), &second).unwrap().bodies, [Digest::of(file), Digest::of(bad)].into());
    let found = [(&first, bad), (&second, bad), (&second, good), (&second, file)]
        .map(|(copy, body)| body_in(copy, Digest::of(body)));
    assert_eq!(found, [Some(bad.to_vec()), None, Some(good.to_vec()), None]);
    assert_eq!(std::fs::read_dir(node.folder.path()).unwrap().count(), 5, "two copies and the mailbox's three files");
    begin_epoch(&second, Timestamp::from_unix_ms(1)).unwrap();
    let restored = Mailbox::open(&second).unwrap();
    assert_eq!(wait(restored.body(Digest::of(good))).unwrap(), BodyRow::Whole(good.to_vec()));
    restored.close();
}

#[test]
fn small_bodies_of_one_dispatch_are_bounded_one_by_one_and_together() {
    let mut small = SmallBodies::default();
    let largest = MAX_SMALL_BODY_BYTES as u64;
    assert_eq!((small.fits(largest), small.fits(largest + 1)), (true, false));
    let bodies: Vec<Bytes> = (0..4).map(|n| vec![n; MAX_SMALL_BODY_BYTES].into()).collect();
    for body in &bodies {
        assert!(small.fits(largest));
        // The same once more takes no more room.
        assert_eq!([small.add(body.clone()), small.add(body.clone())], [Digest::of(body); 2]);
    }
    assert_eq!((small.fits(0), small.fits(1)), (true, false));
    assert_eq!(small.remove(Digest::of(&bodies[2])), Some(bodies[2].clone()));
    assert_eq!((small.fits(largest), small.remove(Digest::of(b"none"))), (true, None));
}
