//! The evidence bundle: one ZIP that shows, with nothing of ours, what happened to a dispatch.
//!
//! [`reader`] takes it apart, [`verify`] judges it against an auditor's own root, [`writer`] puts it together. Files and
//! logs are read by the caller. The judgement is the same as that of the exchange's independent verifier.

pub mod reader;
pub mod verify;
pub mod writer;

mod commands;
mod doc;
mod page;
mod rules;

pub use reader::{BundleFiles, ReadError};
pub use verify::{Check, Failure, Question, Verdict, verify, verify_from};
pub use writer::{BundleContents, BundleEvidence, BundleKeys, SignedSuccession, WriteError, cause, write};
