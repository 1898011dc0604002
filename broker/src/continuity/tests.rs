use docaxis_protocol::key::RawSignature;
use docaxis_protocol::{SealedEnvelope, SignedEvidence};

use super::*;
use crate::store::Rejection;

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn piece(leaf: u64, proven: bool) -> Piece {
    let evidence = SignedEvidence { bytes: leaf.to_be_bytes().to_vec(), signature: RawSignature([0; 64]) };
    let envelope = SealedEnvelope {
        bytes: vec![],
        signature: RawSignature([0; 64]),
        chain: docaxis_protocol::envelope::Chain::from_ders([]),
    };
    let id = docaxis_protocol::DispatchId::from_parts(Timestamp::from_unix_ms(0), [0; 10]);
    let entry = evidence.log_entry();
    let rejection = Rejection { sender: "G22".parse().unwrap(), id, envelope, evidence };
    Piece { leaf, entry, proven, what: What::Rejected(Box::new(rejection)) }
}

fn checkpoint(size: u64) -> Checkpoint {
    Checkpoint { origin: "docaxis.example/test".into(), size, root: Digest([9; 32]) }
}

/// Two nodes are expected and linked, the authority was heard; the newest checkpoint covers 5 leaves, the log has 2.
fn closed() -> (Continuity, Present) {
    let mut continuity = Continuity::default();
    continuity.shown(&checkpoint(5));
    continuity.close(Why::Restored { taken: None, leaves: 2 });
    let nodes = BTreeSet::from([node("a"), node("b")]);
    (continuity, Present { expected: nodes.clone(), linked: nodes, authority: true })
}

fn give(continuity: &mut Continuity, who: &str, own: u64, pieces: &[(u64, bool)]) {
    let pieces = pieces.iter().map(|(leaf, proven)| Ok(piece(*leaf, *proven))).collect();
    continuity.given(&node(who), own, pieces, own);
}

fn leaves(step: Step) -> Vec<u64> {
    match step {
        Step::Import(pieces) | Step::ImportIfRooted(pieces, _) => pieces.iter().map(|piece| piece.leaf).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_opens_only_when_everybody_has_given_everything_from_the_logs_end_on() {
    let (mut continuity, present) = closed();
    assert_eq!(continuity.next(2, &present), Step::Wait);
    give(&mut continuity, "a", 2, &[(2, true), (3, true), (4, true)]);
    assert_eq!(leaves(continuity.next(2, &present)), [2, 3, 4]);
    assert_eq!(continuity.next(5, &present), Step::Wait, "both are asked again from 5 on");
    assert_eq!((continuity.to_ask(&node("a"), 5), continuity.to_ask(&node("b"), 5)), (Some(5), Some(5)));
    give(&mut continuity, "a", 5, &[]);
    assert_eq!(continuity.next(5, &present), Step::Wait);
    give(&mut continuity, "b", 5, &[]);
    let unheard = Present { authority: false, ..present.clone() };
    assert_eq!(continuity.next(5, &unheard), Step::Wait, "only the authority knows who joined since");
    assert_eq!(continuity.next(5, &present), Step::Open(Some(checkpoint(5))));
    continuity.open();
    assert_eq!((continuity.is_open(), continuity.to_ask(&node("a"), 5)), (true, None));
}

#[test]
fn a_leaf_that_a_checkpoint_covers_is_taken_only_with_a_proof_or_with_the_whole_root() {
    let (mut continuity, present) = closed();
    give(&mut continuity, "a", 2, &[(2, true), (3, false)]);
    assert_eq!(leaves(continuity.next(2, &present)), [2]);
    assert_eq!(continuity.next(3, &present), Step::Wait, "leaf 4 is not here");
    give(&mut continuity, "b", 3, &[(4, false), (5, false)]);
    let step = continuity.next(3, &present);
    assert!(matches!(&step, Step::ImportIfRooted(_, newest) if *newest == checkpoint(5)), "{step:?}");
    assert_eq!(leaves(step), [3, 4]);
    // The root was another one: both are given up, and a proven one replaces the first.
    continuity.refused(3, "no".into());
    continuity.refused(4, "no".into());
    give(&mut continuity, "a", 3, &[(3, true)]);
    assert_eq!(leaves(continuity.next(3, &present)), [3]);
    // Beyond the newest checkpoint no proof can be asked for.
    assert_eq!(leaves(continuity.next(5, &present)), [5]);
}

#[test]
fn a_hole_that_a_checkpoint_covers_is_named_and_never_filled() {
    let (mut continuity, present) = closed();
    give(&mut continuity, "a", 2, &[(4, true)]);
    give(&mut continuity, "b", 2, &[(6, false)]);
    continuity.waive();
    assert_eq!(continuity.next(2, &present), Step::Wait);
    assert_eq!(continuity.report(2, &present).missing, [(2, 3), (5, 5)]);
}

#[test]
fn a_hole_beyond_every_checkpoint_is_filled_when_everybody_was_heard() {
    let (mut continuity, mut present) = closed();
    present.linked.remove(&node("b"));
    give(&mut continuity, "a", 5, &[(7, false)]);
    assert_eq!(continuity.next(5, &present), Step::Wait, "b may hold 5 and 6");
    assert_eq!(continuity.report(5, &present).waiting_for, BTreeSet::from([node("b")]));
    continuity.waive();
    assert_eq!(continuity.next(5, &present), Step::FillLost { until: 7 });
    assert_eq!(leaves(continuity.next(7, &present)), [7]);
}

#[test]
fn the_operators_word_replaces_who_is_away_but_not_who_is_linked() {
    let (mut continuity, mut present) = closed();
    present.linked.remove(&node("b"));
    present.authority = false;
    continuity.waive();
    assert_eq!(continuity.next(5, &present), Step::Wait, "a is linked and has not answered");
    assert_eq!(continuity.report(5, &present).giving, present.linked, "and it is named");
    assert_eq!(continuity.next(5, &Present::default()), Step::Wait, "nobody is there to compare with");
    give(&mut continuity, "a", 5, &[]);
    assert_eq!(continuity.next(5, &present), Step::Open(Some(checkpoint(5))));
}

#[test]
fn two_histories_close_for_good() {
    let (mut continuity, present) = closed();
    continuity.close(Why::Forked("two roots".into()));
    continuity.waive();
    give(&mut continuity, "a", 5, &[]);
    assert_eq!((continuity.next(5, &present), continuity.to_ask(&node("b"), 5)), (Step::Wait, None));
    continuity.close(Why::Restored { taken: None, leaves: 2 });
    assert!(matches!(continuity.why(), Some(Why::Forked(_))));
}

#[test]
fn a_leaf_far_beyond_every_checkpoint_is_not_believed() {
    let (mut continuity, present) = closed();
    give(&mut continuity, "a", 5, &[(5 + MAX_BEYOND, false)]);
    give(&mut continuity, "b", 5, &[]);
    assert_eq!(continuity.next(5, &present), Step::Open(Some(checkpoint(5))));
}

/// What a node that holds the leaves `from..until` answers to one question, none of them proven.
fn page(from: u64, until: u64) -> Vec<(u64, bool)> {
    (from..until).take(MAX_BATCH).map(|leaf| (leaf, false)).collect()
}

#[test]
fn a_node_is_asked_page_by_page_until_what_it_holds_leads_to_the_newest_checkpoint() {
    for size in [302, 2 + WINDOW + 1500] {
        let (mut continuity, mut present) = closed();
        present.expected.remove(&node("b"));
        continuity.shown(&checkpoint(size));
        let mut asked = Vec::new();
        while let Step::Wait = continuity.next(2, &present) {
            let from = continuity.to_ask(&node("a"), 2).expect("there is more");
            asked.push(from);
            let pieces = page(from, size).into_iter().map(|(leaf, proven)| Ok(piece(leaf, proven))).collect();
            continuity.given(&node("a"), from, pieces, 2);
        }
        assert_eq!(asked, (2..size).step_by(MAX_BATCH).collect::<Vec<_>>());
        let step = continuity.next(2, &present);
        assert!(matches!(&step, Step::ImportIfRooted(_, newest) if newest.size == size), "{size}");
        assert_eq!(leaves(step), (2..size).collect::<Vec<_>>());
        // Once more from the new end on, and it has been heard.
        assert_eq!((continuity.next(size, &present), continuity.to_ask(&node("a"), size)), (Step::Wait, Some(size)));
        give(&mut continuity, "a", size, &[]);
        assert_eq!(continuity.next(size, &present), Step::Open(Some(checkpoint(size))));
    }
}

#[test]
fn a_node_that_fills_its_answers_without_coming_further_is_not_asked_for_ever() {
    let (mut continuity, _) = closed();
    give(&mut continuity, "a", 2, &[(1, false); MAX_BATCH]);
    assert_eq!(continuity.to_ask(&node("a"), 2), None);
    let far = 5 + MAX_BEYOND;
    give(&mut continuity, "b", 2, &page(far, far + 1000));
    assert_eq!(continuity.to_ask(&node("b"), 2), None);
}
