//! The engine against the claims, and against crashes.

mod claims;
mod crash;
mod damage;
mod full;
mod kill;
mod life;
mod support;
