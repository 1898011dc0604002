//! System tests: claims about whole exchanges, and about the form of the source.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod layout;
mod link;
mod net;
mod raw;
mod refusals;
