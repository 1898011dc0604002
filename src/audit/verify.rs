//! `docaxis audit verify`: judges evidence bundles and says of each check, in words, whether it holds.
//!
//! Reads only the files that it is given. Exit code 6 if anything does not hold.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use docaxis_protocol::bundle::{Question, Verdict, verify_from};
use docaxis_protocol::chain::TrustRoot;
use docaxis_protocol::digest::Hasher;
use docaxis_protocol::tlog::{KeyKind, VerifierKey};
use docaxis_protocol::{Digest, ReasonCode};
use serde_json::{Value, json};

use crate::out::{Failure, Out, chain};

/// Exit code of a bundle that does not hold.
const VERIFICATION_FAILED: u8 = 6;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Evidence bundles.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Your own copy of the authority's root certificate.
    #[arg(long, value_name = "ROOT.pem")]
    authority: PathBuf,
    /// The log's key as a vkey, if you have it from elsewhere [default: the one that the authority certified].
    #[arg(long, value_name = "VKEY")]
    log_key: Option<String>,
    /// A witness that you trust, as a vkey; may be repeated.
    #[arg(long, value_name = "VKEY")]
    witness: Vec<String>,
    /// How many of those witnesses must have cosigned.
    #[arg(long, value_name = "N", default_value_t = 0)]
    quorum: usize,
    /// A copy of the exchange's log: every proof must agree with it.
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// The received files: each part must be among them.
    #[arg(long, value_name = "DIR")]
    parts: Option<PathBuf>,
    /// An event that must be there, EVENT or EVENT:RECIPIENT; may be repeated.
    #[arg(long, value_name = "EVENT[:RECIPIENT]")]
    expect: Vec<String>,
}

/// One bundle's verdict.
struct Judged<'a> {
    file: &'a Path,
    verdict: Verdict,
}

pub fn run(args: &Args, out: Out) -> Result<(), Failure> {
    let root = read(&args.authority)?;
    TrustRoot::new(&root).map_err(|e| {
        Failure::usage(format!("{}: {}", args.authority.display(), chain(&e)))
            .hint("--authority takes one self-signed CA certificate in PEM: your own copy of the exchange's root.")
    })?;
    let log_folder = args.log.as_deref().map(folder).transpose()?;
    let read_log = |path: &str| std::fs::read(log_folder.unwrap_or(Path::new("")).join(path));
    let question = Question {
        root: &root,
        log_key: args.log_key.as_deref().map(|text| vkey(text, KeyKind::Ed25519)).transpose()?,
        witnesses: args.witness.iter().map(|text| vkey(text, KeyKind::Cosignature)).collect::<Result<_, _>>()?,
        quorum: args.quorum,
        log: if log_folder.is_some() { Some(&read_log) } else { None },
        parts: args.parts.as_deref().map(|dir| folder(dir).and_then(digests)).transpose()?,
        expect: args.expect.clone(),
    };
    let mut judged = Vec::new();
    for file in &args.files {
        let bundle = File::open(file).map_err(|e| file_failure(file, &e))?;
        judged.push(Judged { file, verdict: verify_from(BufReader::new(bundle), &question) });
    }
    let ok = judged.iter().all(|one| one.verdict.holds());
    let bundles: Vec<Value> = judged.iter().map(Judged::json).collect();
    let words: String = judged.iter().map(|one| one.words(judged.len() > 1)).collect();
    out.data(&json!({"ok": ok, "bundles": bundles}), words)?;
    if ok { Ok(()) } else { Err(Failure::told(VERIFICATION_FAILED)) }
}

impl Judged<'_> {
    fn words(&self, named: bool) -> String {
        let mut lines = Vec::new();
        if named {
            lines.push(self.file.display().to_string());
        }
        for check in &self.verdict.checks {
            let name = printable(&check.name);
            lines.push(match &check.outcome {
                Ok(detail) if detail.is_empty() => format!("ok    {name}"),
                Ok(detail) => format!("ok    {name}: {}", printable(detail)),
                Err(why) => format!("FAIL  {name}: {}", printable(&chain(why))),
            });
        }
        let failed = self.verdict.failures().count();
        lines.push(format!("{} passed, {failed} failed\n", self.verdict.checks.len() - failed));
        lines.join("\n")
    }

    fn json(&self) -> Value {
        let Verdict { checks, dispatch, events, states } = &self.verdict;
        let checks: Vec<Value> = checks
            .iter()
            .map(|check| match &check.outcome {
                Ok(detail) => json!({"name": check.name, "ok": true, "detail": detail}),
                Err(why) => json!({"name": check.name, "ok": false, "error": chain(why)}),
            })
            .collect();
        let events: Vec<Value> = events.iter().map(|(event, who)| json!({"event": event, "recipient": who})).collect();
        json!({"file": self.file.display().to_string(), "ok": self.verdict.holds(), "dispatch": dispatch,
               "events": events, "states": states, "checks": checks})
    }
}

/// What a bundle says must not steer the reader's terminal.
fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn vkey(text: &str, kind: KeyKind) -> Result<VerifierKey, Failure> {
    VerifierKey::parse(text, kind).map_err(|e| Failure::usage(chain(&e)))
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| file_failure(path, &e))
}

fn folder(path: &Path) -> Result<&Path, Failure> {
    let found = std::fs::metadata(path).map_err(|e| file_failure(path, &e))?;
    if found.is_dir() { Ok(path) } else { Err(Failure::usage(format!("{} is no folder", path.display()))) }
}

fn file_failure(path: &Path, error: &std::io::Error) -> Failure {
    let message = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::NotFound => Failure::new(ReasonCode::NotFound, message).hint("Check the path."),
        _ => Failure::other(message),
    }
}

/// The digest and size of every file in a folder, read in pieces whatever their size.
fn digests(dir: &Path) -> Result<BTreeMap<Digest, u64>, Failure> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(|e| file_failure(dir, &e))? {
        let path = entry.map_err(|e| file_failure(dir, &e))?.path();
        if !path.is_file() {
            continue;
        }
        let mut file = File::open(&path).map_err(|e| file_failure(&path, &e))?;
        let (mut hasher, mut size, mut piece) = (Hasher::new(), 0, vec![0; 1 << 20]);
        loop {
            let read = file.read(&mut piece).map_err(|e| file_failure(&path, &e))?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            size += u64::try_from(read).unwrap_or(u64::MAX);
        }
        found.insert(hasher.finish(), size);
    }
    Ok(found)
}
