//! The engine against the claims, and against crashes.

mod claims;
mod crash;
mod cut;
mod damage;
mod kill;
mod life;
mod support;
