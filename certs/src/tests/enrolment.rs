//! Invitations, joining, renewal.

use docaxis_protocol::key::Context;
use docaxis_protocol::reason::ReasonCode;

use super::{DAY, Exchange, NOW, code, node};
use crate::authority::{Agency, Authority, JoinError, JoinReply, RenewError, RevocationReason, Target};
use crate::join::{AcceptError, JoinAnswer, SignedRenewal};
use crate::name::{Facts, Subject};
use crate::{NodeIdentity, PendingJoin, PendingRenewal, Token};

fn pending(exchange: &mut Exchange) -> PendingJoin {
    let token = exchange.authority.invite(&node("h37"), &[code("H37.DN.001")], DAY, NOW).unwrap();
    PendingJoin::new(token.to_string().parse::<Token>().unwrap(), "docaxis 0.1.0").unwrap()
}

fn granted(reply: JoinReply) -> Vec<u8> {
    match reply {
        JoinReply::Granted(answer) => answer,
        JoinReply::Kept { invitation } => panic!("{invitation} was kept"),
    }
}

#[test]
fn a_node_that_joined_reads_its_identity_back_and_its_agency_is_hosted() {
    let mut exchange = Exchange::new();
    let folder = exchange.folder.path().join("node");
    let pending = pending(&mut exchange);
    pending.save(&folder).unwrap();
    let again = PendingJoin::load(&folder).unwrap().unwrap();
    assert_eq!((again.request(), again.mac()), (pending.request(), pending.mac()));
    let answer = granted(exchange.authority.join(again.request(), &again.mac(), NOW).unwrap());
    let identity = again.accept(&answer, NOW).unwrap();
    assert!(!NodeIdentity::exists(&folder));
    identity.save(&folder).unwrap();
    assert!(NodeIdentity::exists(&folder) && PendingJoin::load(&folder).unwrap().is_none());

    let loaded = NodeIdentity::load(&folder).unwrap();
    assert_eq!((&loaded.link, &loaded.common), (&identity.link, &identity.common));
    assert_eq!(loaded.chain(), identity.chain());
    assert_eq!(loaded.key.pkcs8(), identity.key.pkcs8());
    assert_eq!(loaded.witness_key.seed(), identity.witness_key.seed());
    assert_eq!((&loaded.evidence, &loaded.log), (&identity.evidence, &identity.log));
    let seal = &loaded.seals[&code("H37.DN.001")];
    let signature = seal.key.sign(Context::Envelope, b"{}");
    let sealed_with = crate::identity::public_key(&seal.certificate).unwrap();
    assert_eq!(sealed_with.verify(Context::Envelope, b"{}", &signature), Ok(()));
    assert_eq!(exchange.authority.agency(&code("H37.DN.001")).unwrap().node, Some(node("h37")));
    assert_eq!(exchange.authority.agency(&code("000.00.00.G22")).unwrap().node, None);
}

#[test]
fn the_same_request_gets_the_same_answer_and_another_one_none_also_after_a_restart() {
    let mut exchange = Exchange::new();
    let first = pending(&mut exchange);
    let second = PendingJoin::new(first.token().clone(), "docaxis 0.1.0").unwrap();
    let answer = granted(exchange.authority.join(first.request(), &first.mac(), NOW).unwrap());
    let version = exchange.authority.directory_version();
    let mut reopened = Authority::open(&exchange.folder.path().join("authority")).unwrap();
    for authority in [&mut exchange.authority, &mut reopened] {
        assert_eq!(granted(authority.join(first.request(), &first.mac(), NOW.plus(DAY * 2)).unwrap()), answer);
        let other = authority.join(second.request(), &second.mac(), NOW).unwrap_err();
        assert_eq!(other.reason(), ReasonCode::TokenUsed);
        assert_eq!(authority.directory_version(), version);
    }
}

#[test]
fn expired_unknown_and_altered_requests_are_refused_each_with_its_code() {
    let mut exchange = Exchange::new();
    let join = pending(&mut exchange);
    let authority = &mut exchange.authority;
    let late = authority.join(join.request(), &join.mac(), NOW.plus(DAY)).unwrap_err();
    assert_eq!(late.reason(), ReasonCode::TokenExpired);
    let unproven = authority.join(join.request(), &[0; 32], NOW).unwrap_err();
    assert!(matches!(unproven, JoinError::NotAuthentic { .. }));
    let text = String::from_utf8(join.request().to_vec()).unwrap();
    let altered = text.replace("docaxis 0.1.0", "docaxis 0.1.1").into_bytes();
    assert!(matches!(authority.join(&altered, &join.mac(), NOW), Err(JoinError::NotAuthentic { .. })));
    let unknown = text.replace(&join.token().invitation, "0000000000000000").into_bytes();
    assert_eq!(authority.join(&unknown, &join.mac(), NOW).unwrap_err().reason(), ReasonCode::NotFound);
    for garbage in [&b""[..], b"{}", b"null", b"{\"type\":1}"] {
        assert_eq!(authority.join(garbage, &join.mac(), NOW).unwrap_err().reason(), ReasonCode::Malformed);
    }
    // None of them used the invitation up.
    granted(authority.join(join.request(), &join.mac(), NOW).unwrap());
}

#[test]
fn a_request_for_more_than_was_invited_waits_for_approval() {
    let mut exchange = Exchange::new();
    let asked = [code("000.00.00.G22"), code("H37.DN.001")];
    let token = exchange.authority.invite(&node("h37"), &[code("H37.DN.001")], DAY, NOW).unwrap();
    let join = PendingJoin::asking_for(token, &asked, "docaxis 0.1.0").unwrap();
    for _ in 0..2 {
        let kept = exchange.authority.join(join.request(), &join.mac(), NOW).unwrap();
        assert_eq!(kept, JoinReply::Kept { invitation: join.token().invitation.clone() });
    }
    let waiting = exchange.authority.pending();
    assert_eq!((waiting.len(), waiting[0].asked.as_slice()), (1, &asked[..]));
    exchange.authority.approve(&waiting[0].invitation, NOW).unwrap();
    assert_eq!(exchange.authority.pending(), []);
    let answer = granted(exchange.authority.join(join.request(), &join.mac(), NOW).unwrap());
    assert_eq!(join.accept(&answer, NOW).unwrap().seals.len(), 2);
}

#[test]
fn an_agency_of_another_node_is_not_given_away() {
    let mut exchange = Exchange::new();
    exchange.join("g22", &["000.00.00.G22"]);
    let taken = exchange.authority.invite(&node("h37"), &[code("000.00.00.G22")], DAY, NOW).unwrap_err();
    assert!(matches!(taken, JoinError::HostedElsewhere { .. }), "{taken}");
    let unknown = exchange.authority.invite(&node("h37"), &[code("H99.NONE")], DAY, NOW).unwrap_err();
    assert!(matches!(unknown, JoinError::UnknownAgency { .. }), "{unknown}");
}

#[test]
fn an_answer_is_believed_only_under_the_tokens_root_for_its_names_and_the_own_keys() {
    let mut exchange = Exchange::new();
    let join = pending(&mut exchange);
    let bytes = granted(exchange.authority.join(join.request(), &join.mac(), NOW).unwrap());
    let good: JoinAnswer = serde_json::from_slice(&bytes).unwrap();
    let foreign = Exchange::new().join("h37", &["H37.DN.001"]);
    let g22 = exchange.join("g22", &["000.00.00.G22"]);
    let refuses = |edit: &dyn Fn(&mut JoinAnswer)| {
        let mut answer = good.clone();
        edit(&mut answer);
        join.accept(&serde_json::to_vec(&answer).unwrap(), NOW).expect_err("it was believed")
    };
    let own = code("H37.DN.001");
    assert!(matches!(refuses(&|a| a.broker_address = "evil:1".into()), AcceptError::Field { .. }));
    assert!(matches!(refuses(&|a| a.root = foreign.common.root.clone()), AcceptError::Field { field: "root", .. }));
    assert!(matches!(refuses(&|a| a.node = node("g22")), AcceptError::Field { field: "node", .. }));
    assert!(matches!(refuses(&|a| a.node_certificate = foreign.certificate.clone()), AcceptError::Chain(_)));
    assert!(matches!(refuses(&|a| a.node_certificate = g22.certificate.clone()), AcceptError::Chain(_)));
    assert!(matches!(refuses(&|a| a.seals.clear()), AcceptError::Seal(_)));
    assert!(matches!(
        refuses(&|a| {
            a.seals.insert(own.clone(), foreign.seals[&own].certificate.clone());
        }),
        AcceptError::Seal(_)
    ));
    assert!(matches!(refuses(&|a| a.evidence_certificate = a.log_certificate.clone()), AcceptError::Seal(_)));
    assert!(matches!(refuses(&|a| a.nodes_crl = foreign.common.nodes_crl.clone()), AcceptError::Crl { .. }));
    assert!(matches!(refuses(&|a| a.seals_crl = foreign.common.seals_crl.clone()), AcceptError::Seal(_)));
    assert!(matches!(join.accept(b"{}", NOW), Err(AcceptError::Json(_))));
    join.accept(&bytes, NOW).unwrap();
}

#[test]
fn tokens_that_are_cut_or_altered_are_refused() {
    let mut exchange = Exchange::new();
    let token = exchange.authority.invite(&node("h37"), &[], DAY, NOW).unwrap();
    let text = token.to_string();
    assert_eq!(format!(" {text}\n").parse::<Token>().unwrap(), token);
    assert!(!format!("{token:?}").contains(&text[..40]) && !text.contains('\n'));
    let other = Token { root: b"another".to_vec(), ..token };
    for wrong in ["", "x", &text[..text.len() - 8], &other.to_string()] {
        assert!(wrong.parse::<Token>().is_err(), "{wrong}");
    }
}

#[test]
fn a_renewal_is_signed_by_the_old_key_and_repeats_with_the_same_certificate() {
    let mut exchange = Exchange::new();
    let mut h37 = exchange.join("h37", &[]);
    let before = Facts::of(&h37.certificate).unwrap();
    let renewal = PendingRenewal::new(&h37).unwrap();
    let later = NOW.plus(DAY * 60);
    let renewed = exchange.authority.renew_node(renewal.request(), later).unwrap();
    assert_eq!(exchange.authority.renew_node(renewal.request(), later.plus(DAY)).unwrap(), renewed);
    for edit in [|r: &mut SignedRenewal| r.signature[40] ^= 1, |r: &mut SignedRenewal| r.signature.clear()] {
        let mut altered: SignedRenewal = serde_json::from_slice(renewal.request()).unwrap();
        edit(&mut altered);
        let refused = exchange.authority.renew_node(&serde_json::to_vec(&altered).unwrap(), later).unwrap_err();
        assert!(matches!(refused, RenewError::NotAuthentic { .. }), "{refused}");
    }
    renewal.accept(&renewed, &mut h37, later).unwrap();
    let after = Facts::of(&h37.certificate).unwrap();
    assert_eq!((after.subject, h37.key.spki()), (Subject::Node(node("h37")), after.spki));
    assert!(after.serial != before.serial && after.not_after > before.not_after);

    let next = PendingRenewal::new(&h37).unwrap();
    let ended = exchange.authority.renew_node(next.request(), NOW.plus(DAY * 151)).unwrap_err();
    assert!(matches!(ended, RenewError::Ended { .. }), "{ended}");
    exchange.authority.revoke(&Target::Node(node("h37")), later, RevocationReason::Superseded).unwrap();
    let revoked = exchange.authority.renew_node(next.request(), later).unwrap_err();
    assert!(matches!(revoked, RenewError::Revoked { .. }), "{revoked}");
}

#[test]
fn a_simulation_may_use_ed25519_for_nodes() {
    let mut exchange = Exchange::with(|config| config.node_key = crate::keys::KeyAlgorithm::Ed25519);
    let extra = Agency::new(code("ABC"), "x");
    exchange.authority.add_agency(&extra, NOW).unwrap();
    let joined = exchange.join("h37", &["ABC"]);
    assert_eq!(joined.key.algorithm(), crate::keys::KeyAlgorithm::Ed25519);
}

#[test]
fn an_invitation_from_before_the_broker_moved_is_still_answered_and_the_next_names_the_new_address() {
    let mut exchange = Exchange::new();
    let before = pending(&mut exchange);
    exchange.authority.set_broker_address("127.0.0.1:7401").unwrap();
    let answer = granted(exchange.authority.join(before.request(), &before.mac(), NOW).unwrap());
    assert_eq!(before.accept(&answer, NOW).unwrap().link.broker_address, "broker.example:7400");
    let mut reopened = Authority::open(&exchange.folder.path().join("authority")).unwrap();
    let after = reopened.invite(&node("h37"), &[], DAY, NOW).unwrap();
    assert_eq!(after.broker_address, "127.0.0.1:7401");
    assert!(reopened.set_broker_address("nowhere").is_err());
}

#[test]
fn an_identity_that_is_replaced_while_the_machine_stops_reads_as_the_new_one() {
    let mut exchange = Exchange::new();
    let old = exchange.join("h37", &["H37.DN.001"]);
    let new = exchange.join("h37", &["H37.DN.001"]);
    let (folder, donor) = (exchange.folder.path().join("node"), exchange.folder.path().join("donor"));
    new.save(&donor).unwrap();
    let read = |name: &str| std::fs::read(donor.join(name)).unwrap();
    for (certificate, key) in [("node.pem", "node.key"), ("seals/H37.DN.001.pem", "seals/H37.DN.001.key")] {
        for stopped_after in 1..=3 {
            old.save(&folder).unwrap();
            let both = [read(key), read(certificate)].concat();
            std::fs::write(folder.join(format!("{certificate}.next")), both).unwrap();
            if stopped_after > 1 {
                std::fs::write(folder.join(key), read(key)).unwrap();
            }
            if stopped_after > 2 {
                std::fs::write(folder.join(certificate), read(certificate)).unwrap();
            }
            NodeIdentity::load(&folder).unwrap();
            let found = |name: &str| std::fs::read(folder.join(name)).unwrap();
            assert_eq!((found(certificate), found(key)), (read(certificate), read(key)));
            assert!(!folder.join(format!("{certificate}.next")).exists());
        }
    }
}
