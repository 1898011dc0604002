//! `docaxis ca list` and `docaxis ca crl`: what was issued, and what was revoked.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use docaxis_certs::authority::{Issued, Which};
use docaxis_certs::{encoding, files};
use docaxis_protocol::Timestamp;
use serde_json::{Map, Value, json};

use super::folder::{authority_failure, open};
use super::{DirArg, invite};
use crate::clock;
use crate::out::{Failure, Out, chain};

#[derive(Debug, Args)]
pub struct List {
    /// Revoked and ended certificates as well.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    dir: DirArg,
}

#[derive(Debug, Args)]
pub struct Crl {
    /// Of which issuing certificate.
    #[arg(long, value_enum, default_value = "both")]
    issuer: Issuer,
    /// Write to this file instead of stdout.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    dir: DirArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Issuer {
    Nodes,
    Seals,
    Both,
}

pub fn list(args: &List, out: Out) -> Result<(), Failure> {
    let authority = open(&args.dir.dir)?;
    let now = clock::now();
    let mut shown: Vec<&Issued> =
        authority.list().filter(|issued| args.all || standing(issued, now) == "good").collect();
    shown.sort_by_key(|issued| (issued.facts.subject.uri(), issued.facts.not_after));
    let pending = authority.pending();
    let mut words = String::new();
    for issued in &shown {
        let facts = &issued.facts;
        words +=
            &format!("{:7}  {}  until {}  {}\n", standing(issued, now), facts.serial, facts.not_after, facts.subject);
    }
    for waiting in &pending {
        words += &format!("waits for `docaxis ca approve`: {}", invite::in_words(waiting));
    }
    let value = json!({
        "certificates": shown.iter().map(|issued| as_json(issued, now)).collect::<Vec<_>>(),
        "pending": pending.iter().map(invite::as_json).collect::<Vec<_>>(),
    });
    out.data(&value, words)
}

fn as_json(issued: &Issued, now: Timestamp) -> Value {
    let facts = &issued.facts;
    let mut value = json!({
        "serial": facts.serial, "subject": facts.subject.uri(), "state": standing(issued, now),
        "not_before": facts.not_before, "not_after": facts.not_after,
    });
    if let Some((at, reason)) = issued.revoked {
        value["revoked"] = json!({"at": at, "reason": reason});
    }
    value
}

fn standing(issued: &Issued, now: Timestamp) -> &'static str {
    match issued.revoked {
        Some(_) => "revoked",
        None if issued.is_good(now) => "good",
        None if now < issued.facts.not_before => "not yet",
        None => "ended",
    }
}

pub fn crl(args: &Crl, out: Out) -> Result<(), Failure> {
    let mut authority = open(&args.dir.dir)?;
    let mut lists = Map::new();
    let mut text = String::new();
    for (name, which, issuer) in [("nodes", Which::Nodes, Issuer::Nodes), ("seals", Which::Seals, Issuer::Seals)] {
        if args.issuer != Issuer::Both && args.issuer != issuer {
            continue;
        }
        let der = authority.crl(which, clock::now()).map_err(|error| authority_failure(&error))?;
        let pem = encoding::pem("X509 CRL", &der);
        text += &pem;
        lists.insert(name.into(), pem.into());
    }
    let Some(path) = &args.out else { return out.data(&lists, text) };
    files::write(path, text.as_bytes()).map_err(|error| Failure::other(chain(&error)))?;
    out.data(&json!({"written": path}), format!("written: {}", path.display()))
}
