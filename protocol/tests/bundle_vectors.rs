//! Judges the exchange's published bundle vectors, where they are at hand: the verdict must be the published one.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be built ends the test")]

use std::path::{Path, PathBuf};

use docaxis_protocol::bundle::{Question, verify};
use docaxis_protocol::tlog::{KeyKind, VerifierKey};
use serde_json::Value;

/// The vectors' folder (beside the workspace, or where DOCAXIS_SHARED says), or None, loudly. With
/// DOCAXIS_REQUIRE_ALL=1 their absence is a failure.
fn vectors() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let folder = std::env::var_os("DOCAXIS_SHARED").map_or(beside, PathBuf::from).join("vectors/bundles");
    if folder.is_dir() {
        return Some(folder);
    }
    assert!(std::env::var("DOCAXIS_REQUIRE_ALL").as_deref() != Ok("1"), "{} is not there", folder.display());
    eprintln!("SKIPPED: {} is not there", folder.display());
    None
}

#[test]
fn every_vector_gets_the_published_verdict() {
    let Some(folder) = vectors() else { return };
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let list: Value = serde_json::from_slice(&read("vectors.json")).unwrap();
    let root = read("authority.pem");
    let witness = VerifierKey::parse(list["witness"].as_str().unwrap(), KeyKind::Cosignature).unwrap();
    let quorum = usize::try_from(list["quorum"].as_u64().unwrap()).unwrap();
    let mut wrong = Vec::new();
    for bundle in list["bundles"].as_array().unwrap() {
        let question = Question { root: &root, witnesses: vec![witness.clone()], quorum, ..Question::default() };
        let verdict = verify(&read(bundle["file"].as_str().unwrap()), &question);
        let failures: Vec<String> = verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect();
        println!("{} {}: {failures:?}", bundle["file"], bundle["what"]);
        if Some(verdict.holds()) != bundle["good"].as_bool() {
            wrong.push(format!("{} ({}): {failures:?}", bundle["file"], bundle["what"]));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_first_vector_stands_in_the_published_log_and_an_altered_log_is_found() {
    let Some(folder) = vectors() else { return };
    let root = std::fs::read(folder.join("authority.pem")).unwrap();
    let judge = |name: &str, alter: bool| {
        let read = |path: &str| {
            let mut bytes = std::fs::read(folder.join("log").join(path))?;
            if alter && path.starts_with("tile/") {
                bytes[40] ^= 1;
            }
            Ok(bytes)
        };
        let zip = std::fs::read(folder.join(name)).unwrap();
        let question = Question { root: &root, log: Some(&read), ..Question::default() };
        verify(&zip, &question).failures().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>()
    };
    assert_eq!(judge("good-001.zip", false), Vec::<String>::new());
    assert_eq!(
        judge("good-001.zip", true),
        ["the log agrees with its own checkpoint: the log's tiles do not lead to its checkpoint"]
    );
    assert!(
        judge("good-002.zip", false)
            .iter()
            .any(|line| line.contains("is not a prefix of the log") || line.contains("holds something else"))
    );
}
