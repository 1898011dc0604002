//! `docaxis ca invite` and `docaxis ca approve`: who may join.

use std::time::Duration;

use clap::Args;
use docaxis_certs::authority::Pending;
use docaxis_protocol::{AgencyCode, NodeId};
use serde_json::{Value, json};

use super::DirArg;
use super::folder::{join_failure, open};
use crate::clock;
use crate::out::{Failure, Out};

/// An invitation that nobody uses should not lie around for long.
const MAX_VALID: Duration = Duration::from_secs(30 * 86_400);

#[derive(Debug, Args)]
pub struct Invite {
    /// The node's name: lower-case letters, digits and hyphens.
    node: NodeId,
    /// An agency that the node hosts; repeat it, or separate codes with commas.
    #[arg(long = "agency", value_name = "CODE", required = true, value_delimiter = ',')]
    agencies: Vec<AgencyCode>,
    /// How long the token can be used: such as 24h, 90m or 7d, at most 30d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = valid_for)]
    valid: Duration,
    #[command(flatten)]
    dir: DirArg,
}

#[derive(Debug, Args)]
pub struct Approve {
    /// The invitation whose request is granted.
    invitation: Option<String>,
    #[command(flatten)]
    dir: DirArg,
}

pub fn invite(args: &Invite, out: Out) -> Result<(), Failure> {
    let mut authority = open(&args.dir.dir)?;
    let token =
        authority.invite(&args.node, &args.agencies, args.valid, clock::now()).map_err(|error| join_failure(&error))?;
    let value = json!({
        "token": token.to_string(), "invitation": token.invitation, "node": token.node, "agencies": token.agencies,
        "expires": token.expires,
    });
    out.data(&value, &token)?;
    out.talk(format_args!(
        "Invitation {} for {} is good for one node until {}. Send the token over a channel that only its administrator reads.",
        token.invitation, token.node, token.expires
    ));
    Ok(())
}

pub fn approve(args: &Approve, out: Out) -> Result<(), Failure> {
    let mut authority = open(&args.dir.dir)?;
    let Some(invitation) = &args.invitation else {
        let pending = authority.pending();
        let words = match pending.is_empty() {
            true => "no request waits".to_owned(),
            false => pending.iter().map(in_words).collect(),
        };
        return out.data(&json!({"pending": pending.iter().map(as_json).collect::<Vec<_>>()}), words);
    };
    authority.approve(invitation, clock::now()).map_err(|error| join_failure(&error))?;
    let words = format!("approved; the node gets its certificates when it repeats `docaxis agent join`: {invitation}");
    out.data(&json!({"approved": invitation}), words)
}

pub fn as_json(pending: &Pending) -> Value {
    json!({
        "invitation": pending.invitation, "node": pending.node, "invited": pending.invited, "asked": pending.asked,
        "since": pending.since,
    })
}

pub fn in_words(pending: &Pending) -> String {
    let codes = |codes: &[AgencyCode]| codes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "{}  {} asks for {}; invited for {}; since {}\n",
        pending.invitation,
        pending.node,
        codes(&pending.asked),
        codes(&pending.invited),
        pending.since
    )
}

fn valid_for(text: &str) -> Result<Duration, String> {
    let span: jiff::Span = text.parse().map_err(|_| "expected a time such as 24h, 90m or 7d".to_owned())?;
    let signed = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|error| error.to_string())?;
    let valid = Duration::try_from(signed).map_err(|_| "expected a time that is not negative".to_owned())?;
    match valid.is_zero() || valid > MAX_VALID {
        true => Err("expected more than nothing and at most 30d".to_owned()),
        false => Ok(valid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_a_bounded_time() {
        let hours = |n: u64| Ok(Duration::from_secs(n * 3600));
        assert_eq!([valid_for("24h"), valid_for("7d"), valid_for("30d")], [hours(24), hours(168), hours(720)]);
        for text in ["", "24", "0h", "-1h", "31d", "tomorrow"] {
            assert!(valid_for(text).is_err(), "{text}");
        }
    }
}
