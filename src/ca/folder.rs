//! The authority's folder on the command line, and what its errors mean to a person.

use std::path::Path;

use docaxis_certs::Authority;
use docaxis_certs::authority::{AuthorityError, DirectoryChangeError, JoinError, RevokeError};
use docaxis_protocol::ReasonCode;

use crate::out::{Failure, chain};

/// Where the authority is kept unless told otherwise.
pub const DEFAULT: &str = "/var/lib/docaxis/authority";

/// Opens the authority that a command works on.
pub fn open(folder: &Path) -> Result<Authority, Failure> {
    Authority::open(folder).map_err(|error| authority_failure(&error))
}

/// A thing that is there already and is not overwritten.
pub fn exists(message: impl Into<String>) -> Failure {
    Failure { exit: 5, code: "exists".into(), ..Failure::other(message) }
}

pub fn authority_failure(error: &AuthorityError) -> Failure {
    use AuthorityError as E;
    let message = chain(error);
    match error {
        E::Exists { .. } => exists(message).hint("Give --dir an empty folder, or use the authority that is there."),
        E::Missing { .. } => Failure::new(ReasonCode::NotFound, message)
            .hint("Make one with `docaxis ca init`, or name its folder with --dir (`agency`: --authority)."),
        E::Address { .. } => Failure::usage(message).hint("For example --broker-address exchange.example.vn:7400."),
        E::Facts { .. } | E::KeyMismatch { .. } | E::Pem(_) | E::Key(_) | E::Seal(_) => {
            Failure { exit: 7, code: "identity".into(), ..Failure::other(message) }
                .hint("Restore the authority's folder from a backup.")
        }
        _ => Failure::other(message),
    }
}

pub fn directory_failure(error: &DirectoryChangeError) -> Failure {
    use DirectoryChangeError as E;
    let message = chain(error);
    match error {
        E::Unknown { code } => unknown_agency(message, code),
        E::Exists { .. } | E::Taken { .. } => exists(message).hint("`docaxis agency show` tells about a code."),
        E::Circle { .. } => {
            Failure { exit: 5, code: "circle".into(), ..Failure::other(message) }.hint("Merge the other way round.")
        }
        E::TooManySuccessors { .. } => Failure::new(ReasonCode::TooLarge, message),
        E::TooLarge { .. } => Failure::new(ReasonCode::TooLarge, message),
        E::Columns { .. } | E::NotUtf8 | E::Csv(_) | E::Entry(_) => Failure::new(ReasonCode::Malformed, message),
        E::Authority(error) => authority_failure(error),
    }
}

pub fn unknown_agency(message: String, code: &docaxis_protocol::AgencyCode) -> Failure {
    Failure::new(ReasonCode::NotFound, message).hint(format!("Add it: docaxis agency add {code} --name \"...\""))
}

pub fn join_failure(error: &JoinError) -> Failure {
    let message = chain(error);
    match error {
        JoinError::Authority(error) => authority_failure(error),
        JoinError::UnknownAgency { code } => unknown_agency(message, code),
        JoinError::NotPending { .. } => {
            Failure::new(ReasonCode::NotFound, message).hint("`docaxis ca approve` without an id lists what waits.")
        }
        JoinError::HostedElsewhere { host, .. } => {
            Failure { exit: 5, code: "hosted-elsewhere".into(), ..Failure::other(message) }
                .hint(format!("Revoke node {host} first if it no longer acts for the agency, or invite {host}."))
        }
        _ => Failure::new(error.reason(), message),
    }
}

pub fn revoke_failure(error: &RevokeError) -> Failure {
    match error {
        RevokeError::Nothing { .. } => Failure::new(ReasonCode::NotFound, "no certificate in force is meant by that")
            .hint("`docaxis ca list` shows what was issued."),
        RevokeError::Authority(error) => authority_failure(error),
    }
}
