//! The central broker of docaxis.

pub mod admission;
pub mod delivery;
pub mod env;
pub mod evidence;
pub mod schedule;
pub mod seals;
pub mod store;
