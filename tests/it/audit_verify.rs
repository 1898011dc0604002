//! `docaxis audit verify` on the published bundle vectors: the verdicts are the published ones, which are those of the
//! independent verifier.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be read ends the test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The folder of shared material beside the workspace (or where DOCAXIS_SHARED says), or None, loudly. With
/// DOCAXIS_REQUIRE_ALL=1 its absence is a failure.
fn shared(path: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let path = std::env::var_os("DOCAXIS_SHARED").map_or(beside, PathBuf::from).join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var("DOCAXIS_REQUIRE_ALL").as_deref() != Ok("1"), "{} is not there", path.display());
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}

struct Vectors {
    folder: PathBuf,
    witness: String,
    quorum: String,
    bundles: Vec<(String, bool)>,
}

fn vectors() -> Option<Vectors> {
    let folder = shared("vectors/bundles")?;
    let list: Value = serde_json::from_slice(&std::fs::read(folder.join("vectors.json")).unwrap()).unwrap();
    let bundle = |one: &Value| (one["file"].as_str().unwrap().to_owned(), one["good"].as_bool().unwrap());
    Some(Vectors {
        witness: list["witness"].as_str().unwrap().to_owned(),
        quorum: list["quorum"].to_string(),
        bundles: list["bundles"].as_array().unwrap().iter().map(bundle).collect(),
        folder,
    })
}

impl Vectors {
    fn judge(&self, mut command: Command, file: &str, more: &[&str]) -> Output {
        let policy = ["--witness", &self.witness, "--quorum", &self.quorum, "--authority", "authority.pem"];
        command.current_dir(&self.folder).arg(file).args(policy).args(more).output().unwrap()
    }

    fn ours(&self, file: &str, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_docaxis"));
        command.args(["audit", "verify"]);
        self.judge(command, file, more)
    }
}

#[test]
fn every_vector_gets_its_published_verdict_and_exit_code_6_if_bad() {
    let Some(vectors) = vectors() else { return };
    for (file, good) in &vectors.bundles {
        let out = vectors.ours(file, &["--json"]);
        let told: Value = serde_json::from_slice(&out.stdout).unwrap();
        let verdict = (told["ok"].as_bool(), out.status.code());
        assert_eq!(verdict, (Some(*good), Some(if *good { 0 } else { 6 })), "{file}: {told:#}");
    }
}

#[test]
fn the_independent_verifier_agrees_on_a_sample() {
    let (Some(vectors), Some(script)) = (vectors(), shared("tools/verify_bundle.py")) else { return };
    for (file, _) in vectors.bundles.iter().step_by(6) {
        let mut python = Command::new("python3");
        python.arg(&script);
        let theirs = vectors.judge(python, file, &[]).status.success();
        assert_eq!(vectors.ours(file, &[]).status.success(), theirs, "{file}");
    }
}

#[test]
fn checks_are_printed_in_words_and_the_log_and_expectations_are_held_against_the_bundle() {
    let Some(vectors) = vectors() else { return };
    let out = vectors.ours("good-001.zip", &["--log", "log", "--expect", "ContentHandover:H37.DN.001"]);
    let words = String::from_utf8(out.stdout).unwrap();
    assert_eq!(
        words,
        "ok    the bundle opens: 21 files\n\
         ok    authority, keys and one submission event: log docaxis.example/test\n\
         ok    the log agrees with its own checkpoint: 7 leaves\n\
         ok    the envelope is sealed by its sender\n\
         ok    the evidence forms whole chains: 2 pieces\n\
         ok    SubmissionAcceptance (evidence/000001-SubmissionAcceptance.json): leaf 3 of 7, cosigned by 1\n\
         ok    ContentHandover for H37.DN.001 (evidence/000002-ContentHandover-H37.DN.001.json): leaf 4 of 7, \
         cosigned by 1\n\
         ok    expected ContentHandover:H37.DN.001\n\
         ok    index.html is there\n\
         ok    VERIFY.txt is there\n\
         ok    policy.txt is there\n\
         11 passed, 0 failed\n"
    );
    let out = vectors.ours("good-001.zip", &["--expect", "Registered"]);
    assert_eq!(out.status.code(), Some(6));
    assert!(String::from_utf8(out.stdout).unwrap().contains("FAIL  expected Registered: it is not in the bundle\n"));
    let out = vectors.ours("good-002.zip", &["--log", "log"]);
    assert_eq!(out.status.code(), Some(6), "another log");
}

#[test]
fn a_missing_file_is_exit_code_3_and_a_wrong_key_is_2() {
    let Some(vectors) = vectors() else { return };
    assert_eq!(vectors.ours("good-099.zip", &[]).status.code(), Some(3));
    assert_eq!(vectors.ours("good-001.zip", &["--log", "nowhere"]).status.code(), Some(3));
    assert_eq!(vectors.ours("good-001.zip", &["--log-key", "x"]).status.code(), Some(2));
}
