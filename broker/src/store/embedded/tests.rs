//! The engine against the claims, and against crashes.

mod blobs;
mod bodies;
mod claims;
mod crash;
mod cut;
mod damage;
mod full;
mod index;
mod kill;
mod life;
mod mend;
mod states;
mod support;
