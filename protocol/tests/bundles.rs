//! Claims about evidence bundles: what is written holds, for us and for others' tools; what was altered does not.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be built ends the test")]

mod authority;
mod exchange;

use std::collections::BTreeMap;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use docaxis_protocol::bundle::{BundleContents, BundleFiles, Question, Verdict, verify, write};
use docaxis_protocol::tlog::tile;
use docaxis_protocol::{Digest, Event};
use exchange::{Exchange, RECEIVER, Step};

use Event::{ContentAccessTracking, ContentHandover, ContentHandoverFailure, NoAnswer, Refused, Registered};

fn question(exchange: &Exchange) -> Question<'_> {
    Question {
        root: exchange.root.pem.as_bytes(),
        log_key: Some(exchange.log_key()),
        witnesses: vec![exchange.witness_key()],
        quorum: 1,
        ..Question::default()
    }
}

fn faults(verdict: &Verdict) -> Vec<String> {
    verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect()
}

fn judged(exchange: &Exchange, contents: &BundleContents) -> Vec<String> {
    faults(&verify(&write(contents).unwrap(), &question(exchange)))
}

fn step(event: Event, seconds: i64) -> Step {
    Step::at(event, seconds)
}

/// Dispatches of every kind of end, by name.
fn lives(exchange: &Exchange) -> Vec<(&'static str, BundleContents)> {
    let refused_by_node = Step { stated: true, ..step(ContentHandoverFailure, 12).because("digest-mismatch") };
    let acting = |event, seconds| Step { acting: true, ..step(event, seconds) };
    vec![
        ("accepted", exchange.accepted(&[])),
        (
            "registered",
            exchange.accepted(&[step(ContentHandover, 12), step(ContentAccessTracking, 13), step(Registered, 14)]),
        ),
        ("returned", exchange.accepted(&[step(ContentHandover, 12), step(Refused, 14).because("wrong-addressee")])),
        (
            "answered late",
            exchange.accepted(&[
                step(ContentHandover, 12),
                step(NoAnswer, 8000).because("no-answer"),
                step(Registered, 8500),
                step(ContentAccessTracking, 8600),
            ]),
        ),
        ("refused by the node", exchange.accepted(&[refused_by_node])),
        ("withdrawn", exchange.accepted(&[step(ContentHandoverFailure, 12).because("withdrawn")])),
        (
            "expired, then handed over",
            exchange.accepted(&[
                step(ContentHandoverFailure, 9001).because("expired"),
                Step { late: true, ..step(ContentHandover, 9500) },
            ]),
        ),
        ("taken by the successor", exchange.accepted(&[acting(ContentHandover, 12), acting(Registered, 13)])),
        ("refused at submission", exchange.rejected()),
    ]
}

#[test]
fn whatever_became_of_a_dispatch_its_bundle_holds() {
    let exchange = Exchange::new();
    for (name, contents) in lives(&exchange) {
        assert_eq!(judged(&exchange, &contents), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn the_verdict_tells_what_happened() {
    let exchange = Exchange::new();
    let contents = exchange.accepted(&[step(ContentHandover, 12), step(Registered, 14)]);
    let parts = BTreeMap::from([(Digest::of(b"%PDF-1.4 a letter"), 17)]);
    let expect = vec!["Registered".to_owned(), format!("ContentHandover:{RECEIVER}")];
    let verdict =
        verify(&write(&contents).unwrap(), &Question { parts: Some(parts.clone()), expect, ..question(&exchange) });
    assert_eq!(faults(&verdict), Vec::<String>::new());
    let who = Some(RECEIVER.to_owned());
    assert_eq!(
        verdict.events,
        [
            ("SubmissionAcceptance".to_owned(), None),
            ("ContentHandover".to_owned(), who.clone()),
            ("Registered".to_owned(), who)
        ]
    );
    assert_eq!(verdict.states, BTreeMap::from([(RECEIVER.to_owned(), "Registered".to_owned())]));
    let detail = |name: &str| {
        let check = verdict.checks.iter().find(|check| check.name.starts_with(name)).unwrap();
        check.outcome.as_ref().unwrap().clone()
    };
    assert_eq!(detail("Registered for H37.DN.001"), "leaf 5 of 9, cosigned by 1");

    let wrong = BTreeMap::from([(Digest::of(b"another"), 17)]);
    let expect = vec!["Refused".to_owned(), "Registered:H99".to_owned()];
    let verdict = verify(&write(&contents).unwrap(), &Question { parts: Some(wrong), expect, ..question(&exchange) });
    assert_eq!(
        faults(&verdict),
        [
            "expected Refused: it is not in the bundle",
            "expected Registered:H99: it is not in the bundle",
            "part công văn.pdf: no received file has this digest and size"
        ]
    );
}

#[test]
fn a_broken_rule_of_order_is_found() {
    let exchange = Exchange::new();
    let found = |steps: &[Step]| {
        let faults = judged(&exchange, &exchange.accepted(steps));
        faults.first().and_then(|line| line.rsplit(": ").next().map(str::to_owned)).unwrap_or_default()
    };
    let handed = step(ContentHandover, 12);
    assert_eq!(found(&[step(Registered, 12)]), "Registered cannot follow the acceptance");
    assert_eq!(found(&[handed.clone(), handed.clone()]), "ContentHandover cannot follow ContentHandover");
    let failed = step(ContentHandoverFailure, 12).because("expired");
    assert_eq!(found(&[failed]), "expired before its time");
    assert_eq!(found(&[step(ContentHandover, 9301)]), "handed over after it expired, and not marked late");
    let silent = step(ContentHandoverFailure, 12).because("bad-seal");
    assert_eq!(found(&[silent]), "a node's refusal needs the node's statement");
    let late = Step { late: true, ..step(ContentHandover, 13) };
    assert_eq!(found(&[late]), "late is only for a handover after a failure, which it must name");
    let groundless = step(NoAnswer, 13);
    assert_eq!(found(&[handed.clone(), groundless]), "reasons must stand on negative evidence, and only there");
    let back = [step(ContentHandover, 5000), step(Registered, 4000)];
    assert_eq!(found(&back), "time runs backwards along the chain");
}

#[test]
fn a_witness_that_cosigned_before_the_event_is_found() {
    let exchange = Exchange::new();
    let contents = exchange.accepted(&[
        step(ContentHandoverFailure, 21_000).because("expired"),
        Step { late: true, ..step(ContentHandover, 21_000) },
    ]);
    assert!(
        judged(&exchange, &contents).iter().all(|line| line.ends_with("a witness cosigned before the event's time"))
    );
    assert_eq!(judged(&exchange, &contents).len(), 2);
}

fn zipped<'a>(members: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in members {
        zip.start_file(name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Whether two texts are PEM of the very same DER: the last base64 character before the padding has bits that stand for
/// nothing, and openssl does not look at them either.
fn same_der(one: &[u8], other: &[u8]) -> bool {
    let lenient = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    let base64 = GeneralPurpose::new(&STANDARD, lenient);
    let der = |pem: &[u8]| {
        let text = std::str::from_utf8(pem).ok()?.trim_end();
        let (first, rest) = text.split_once('\n')?;
        let (body, last) = rest.rsplit_once('\n')?;
        Some((first.to_owned(), base64.decode(body.replace('\n', "")).ok()?, last.to_owned()))
    };
    der(one).is_some_and(|one| one.0.starts_with("-----BEGIN ") && Some(one) == der(other))
}

const FOR_PEOPLE: [&str; 3] = ["index.html", "VERIFY.txt", "policy.txt"];

#[test]
fn an_altered_byte_is_found_wherever_it_is() {
    let exchange = Exchange::new();
    let acting = |event, seconds| Step { acting: true, ..step(event, seconds) };
    let withdrawn = exchange.accepted(&[step(ContentHandoverFailure, 12).because("withdrawn")]);
    let taken = exchange.accepted(&[acting(ContentHandover, 12)]);
    let mut tried = 0;
    for contents in [taken, withdrawn] {
        let files = BundleFiles::read(&write(&contents).unwrap()).unwrap();
        for (name, bytes) in files.iter().filter(|(name, _)| !FOR_PEOPLE.contains(name)) {
            // The newline after the last PEM block belongs to no certificate.
            let end = bytes.len() - if name.ends_with(".pem") || name.ends_with(".crl") { 2 } else { 1 };
            let positions = (0..end).step_by(11).chain([bytes.len() / 2, end]);
            for position in positions {
                let mut altered = bytes.to_vec();
                altered[position] ^= 4;
                if same_der(bytes, &altered) {
                    continue;
                }
                let zip = zipped(files.iter().map(|(n, b)| (n, if n == name { &altered[..] } else { b })));
                let verdict = verify(&zip, &question(&exchange));
                assert!(!verdict.holds(), "byte {position} of {name} was altered unnoticed");
                tried += 1;
            }
        }
    }
    assert!(tried > 500, "only {tried} alterations were tried");
    let pem = b"-----BEGIN X-----\nAAA=\n-----END X-----\n";
    assert!(same_der(pem, b"-----BEGIN X-----\nAAB=\n-----END X-----\n"));
    assert!(!same_der(pem, b"-----BEGIN X-----\nABA=\n-----END X-----\n"));
}

#[test]
fn a_missing_member_is_found() {
    let exchange = Exchange::new();
    let contents = exchange.accepted(&[step(ContentHandover, 12), step(Registered, 13)]);
    let files = BundleFiles::read(&write(&contents).unwrap()).unwrap();
    let expect = vec!["Registered".to_owned()];
    for name in files.names() {
        let zip = zipped(files.iter().filter(|(n, _)| *n != name));
        let verdict = verify(&zip, &Question { expect: expect.clone(), ..question(&exchange) });
        assert!(!verdict.holds(), "{name} was taken away unnoticed");
    }
}

#[test]
fn another_root_another_log_key_or_too_few_witnesses_refuse_the_bundle() {
    let exchange = Exchange::new();
    let stranger = Exchange::new();
    let zip = write(&exchange.accepted(&[])).unwrap();
    let asked = |change: &dyn Fn(&mut Question<'_>)| {
        let mut asked = question(&exchange);
        change(&mut asked);
        faults(&verify(&zip, &asked)).first().cloned().unwrap_or_default()
    };
    assert_eq!(asked(&|_| ()), "");
    let other = docaxis_protocol::key::SecretKey::from_seed(&[77; 32]).public();
    let other =
        docaxis_protocol::tlog::VerifierKey::new(exchange::ORIGIN, docaxis_protocol::tlog::KeyKind::Ed25519, other)
            .unwrap();
    assert!(asked(&|q| q.log_key = Some(other.clone())).contains("the trusted log key is not the one"));
    assert!(asked(&|q| q.quorum = 2).contains("1 of the trusted witnesses cosigned; 2 are needed"));
    assert!(asked(&|q| q.witnesses.clear()).contains("0 of the trusted witnesses cosigned; 1 are needed"));
    let verdict = verify(&zip, &Question { root: stranger.root.pem.as_bytes(), ..question(&exchange) });
    assert!(!verdict.holds());
}

#[test]
fn every_proof_must_agree_with_the_auditors_copy_of_the_log() {
    let exchange = Exchange::new();
    let contents = exchange.accepted(&[step(ContentHandover, 12)]);
    let zip = write(&contents).unwrap();
    let judge = |contents: &BundleContents| {
        let leaves = exchange.leaves(contents.evidence.iter().map(|piece| piece.signed.log_entry()));
        let size = u64::try_from(leaves.len()).unwrap();
        let name = tile::hash_tiles_of_growth(0, size)[0].path();
        let read = |path: &str| match path {
            "checkpoint" => Ok(exchange.checkpoint(&leaves).into_bytes()),
            path if path == name => Ok(leaves.iter().flat_map(|leaf| leaf.0).collect()),
            _ => Err(std::io::Error::from(std::io::ErrorKind::NotFound)),
        };
        faults(&verify(&zip, &Question { log: Some(&read), ..question(&exchange) }))
    };
    assert_eq!(judge(&contents), Vec::<String>::new());
    let others = judge(&exchange.accepted(&[step(ContentHandover, 13)]));
    assert_eq!(others.len(), 2);
    assert!(others[0].ends_with("the proof's checkpoint is not a prefix of the log"), "{others:?}");
    assert!(others[1].ends_with("the log holds something else at this index"), "{others:?}");
}

#[test]
fn the_same_contents_give_the_same_bytes_and_the_page_is_plain_text_of_the_sender() {
    let exchange = Exchange::new();
    let contents = exchange.accepted(&[step(ContentHandover, 12)]);
    let zip = write(&contents).unwrap();
    assert_eq!(write(&contents).unwrap(), zip);
    let files = BundleFiles::read(&zip).unwrap();
    let page = String::from_utf8(files.get("index.html").unwrap().to_vec()).unwrap();
    assert!(page.contains("V/v &lt;giao nhận&gt; &amp; &quot;kiểm tra&quot;"));
    assert!(page.contains("2026-11-18 18:06:52 +07:00"), "{page}");
    assert!(page.contains("proves nothing") && !page.contains("<script"));
    let policy = String::from_utf8(files.get("policy.txt").unwrap().to_vec()).unwrap();
    let expected = format!(
        "log {}\nwitness w1 {}\ngroup witnesses 1 w1\nquorum witnesses\n",
        exchange.log_key(),
        exchange.witness_key()
    );
    assert_eq!(policy, expected);
}

#[test]
fn a_bundle_without_its_submission_event_is_not_written() {
    let exchange = Exchange::new();
    let mut contents = exchange.accepted(&[step(ContentHandover, 12)]);
    contents.evidence.remove(0);
    assert!(write(&contents).is_err());
}

/// Whether a program is there; loudly if not. With DOCAXIS_REQUIRE_ALL=1 its absence is a failure.
fn have(program: &str, argument: &str) -> bool {
    let there = Command::new(program).arg(argument).output().is_ok_and(|out| out.status.success());
    assert!(there || std::env::var("DOCAXIS_REQUIRE_ALL").as_deref() != Ok("1"), "{program} is not there");
    if !there {
        eprintln!("SKIPPED: {program} is not there");
    }
    there
}

fn unpack(zip: &[u8], folder: &Path) {
    for (name, bytes) in BundleFiles::read(zip).unwrap().iter() {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

fn follow_instructions(folder: &Path, authority: &Path) -> Output {
    Command::new("sh").arg("VERIFY.txt").current_dir(folder).env("AUTHORITY", authority).output().unwrap()
}

#[test]
fn the_commands_in_the_bundle_say_the_same() {
    if !have("openssl", "version") || !have("python3", "--version") {
        return;
    }
    let exchange = Exchange::new();
    let own = tempfile::tempdir().unwrap();
    let authority = own.path().join("authority.pem");
    std::fs::write(&authority, &exchange.root.pem).unwrap();
    let told = ["registered", "withdrawn", "taken by the successor", "refused at submission"];
    for (name, contents) in lives(&exchange).into_iter().filter(|(name, _)| told.contains(name)) {
        let folder = tempfile::tempdir().unwrap();
        unpack(&write(&contents).unwrap(), folder.path());
        let out = follow_instructions(folder.path(), &authority);
        let talk = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{name}: {}{talk}", String::from_utf8_lossy(&out.stdout));
        assert!(String::from_utf8_lossy(&out.stdout).ends_with("All of it holds.\n"), "{name}");
        let victims: Vec<PathBuf> = ["envelope.json", "evidence/000001-SubmissionAcceptance.sig", "keys/seals.crl"]
            .iter()
            .map(|victim| folder.path().join(victim))
            .filter(|victim| victim.exists() && name == "withdrawn")
            .collect();
        for victim in victims {
            let bytes = std::fs::read(&victim).unwrap();
            let mut altered = bytes.clone();
            altered[bytes.len() / 2] ^= 4;
            std::fs::write(&victim, altered).unwrap();
            assert!(!follow_instructions(folder.path(), &authority).status.success(), "{}", victim.display());
            std::fs::write(&victim, bytes).unwrap();
        }
    }
}

#[test]
fn the_independent_verifier_says_the_same() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let shared = std::env::var_os("DOCAXIS_SHARED").map_or(beside, PathBuf::from);
    let script = shared.join("tools/verify_bundle.py");
    if !script.is_file() {
        assert!(std::env::var("DOCAXIS_REQUIRE_ALL").as_deref() != Ok("1"), "{} is not there", script.display());
        eprintln!("SKIPPED: {} is not there", script.display());
        return;
    }
    if !have("openssl", "version") || !have("python3", "--version") {
        return;
    }
    let exchange = Exchange::new();
    let own = tempfile::tempdir().unwrap();
    let (authority, bundle) = (own.path().join("authority.pem"), own.path().join("bundle.zip"));
    std::fs::write(&authority, &exchange.root.pem).unwrap();
    for (name, contents) in lives(&exchange) {
        std::fs::write(&bundle, write(&contents).unwrap()).unwrap();
        let out = Command::new("python3")
            .arg(&script)
            .arg(&bundle)
            .arg("--authority")
            .arg(&authority)
            .args(["--quorum", "1", "--witness", &exchange.witness_key().to_string()])
            .args(["--log-key", &exchange.log_key().to_string()])
            .output()
            .unwrap();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stdout));
    }
}
