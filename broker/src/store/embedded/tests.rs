//! The engine against the claims, and against crashes.

mod blobs;
mod bodies;
mod claims;
mod crash;
mod cut;
mod damage;
#[cfg(debug_assertions)]
mod death;
mod full;
mod index;
mod kill;
mod life;
mod measure;
mod mend;
mod rebuild;
mod room;
mod states;
mod support;
