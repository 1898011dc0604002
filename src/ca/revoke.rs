//! `docaxis ca revoke`: ends certificates before their time.

use clap::{ArgGroup, Args, ValueEnum};
use docaxis_certs::authority::{Issued, RevocationReason, Target};
use docaxis_certs::name::{Serial, Subject};
use docaxis_protocol::{AgencyCode, NodeId, Timestamp};
use serde_json::json;

use super::DirArg;
use super::folder::{open, revoke_failure};
use crate::clock;
use crate::confirm::Confirm;
use crate::out::{Failure, Out};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("target").required(true))]
pub struct Revoke {
    /// Every certificate of this node's link and witness.
    #[arg(long, group = "target")]
    node: Option<NodeId>,
    /// Every seal of this agency.
    #[arg(long, group = "target", value_name = "CODE")]
    agency: Option<AgencyCode>,
    /// One certificate, by the serial number that `ca list` shows.
    #[arg(long, group = "target")]
    serial: Option<Serial>,
    #[arg(long, value_enum, default_value = "unspecified")]
    reason: Reason,
    /// Only say what would be revoked.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    dir: DirArg,
}

/// RFC 5280, section 5.3.1.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Reason {
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

impl From<Reason> for RevocationReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Unspecified => Self::Unspecified,
            Reason::KeyCompromise => Self::KeyCompromise,
            Reason::AffiliationChanged => Self::AffiliationChanged,
            Reason::Superseded => Self::Superseded,
            Reason::CessationOfOperation => Self::CessationOfOperation,
            Reason::PrivilegeWithdrawn => Self::PrivilegeWithdrawn,
        }
    }
}

pub fn run(args: Revoke, out: Out) -> Result<(), Failure> {
    let target = match (args.node, args.agency, args.serial) {
        (Some(node), ..) => Target::Node(node),
        (_, Some(code), _) => Target::Agency(code),
        (.., Some(serial)) => Target::Serial(serial),
        // The group requires one of them.
        (None, None, None) => return Err(Failure::usage("name a --node, an --agency or a --serial")),
    };
    let mut authority = open(&args.dir.dir)?;
    let now = clock::now();
    let meant: Vec<&Issued> = authority.list().filter(|issued| is_meant(issued, &target, now)).collect();
    let lines: String =
        meant.iter().map(|issued| format!("{}  {}\n", issued.facts.serial, issued.facts.subject)).collect();
    if args.dry_run {
        let serials: Vec<_> = meant.iter().map(|issued| issued.facts.serial.clone()).collect();
        return out.data(&json!({"would_revoke": serials}), lines);
    }
    if !meant.is_empty() {
        out.talk(lines.trim_end());
        let question = format!("Revoke {} for good?", certificates(meant.len()));
        args.confirm.ask(out, &question)?;
    }
    let revoked = authority.revoke(&target, now, args.reason.into()).map_err(|error| revoke_failure(&error))?;
    let words = format!("revoked {}; a running `docaxis ca serve` tells the broker", certificates(revoked.len()));
    out.data(&json!({"revoked": revoked}), words)
}

fn certificates(count: usize) -> String {
    format!("{count} certificate{}", if count == 1 { "" } else { "s" })
}

/// What the authority itself will take, shown beforehand.
fn is_meant(issued: &Issued, target: &Target, now: Timestamp) -> bool {
    let facts = &issued.facts;
    let named = match target {
        Target::Serial(serial) => facts.serial == *serial,
        Target::Node(id) => matches!(&facts.subject, Subject::Node(node) | Subject::Witness(node) if node == id),
        Target::Agency(code) => matches!(&facts.subject, Subject::Agency(agency) if agency == code),
    };
    named && issued.revoked.is_none() && now < facts.not_after
}
