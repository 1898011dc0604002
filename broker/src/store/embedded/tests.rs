//! The engine against the claims, and against crashes.

mod claims;
