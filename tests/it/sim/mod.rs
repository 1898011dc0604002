//! The simulator: a broker and several agents on simulated time, network and disk, all from one seed.
//!
//! Everything runs in one thread: each host is a runtime of its own with time standing still between steps (turmoil), the
//! loops of broker and agents are tasks of it (`Broker::simulated`, `Agent::simulated`), QUIC goes over simulated
//! datagrams, and clock and randomness come from the seed. The broker's journal, evidence and bodies lie on a disk in
//! memory that forgets what was not synced; an agent's files are real, and its crash is the end of the process. So a seed
//! repeats: the first test runs one twice and compares a digest of every datagram's time, way and length, every Retry's
//! bytes and every event. Keys and randoms of TLS come from its own library; so most bytes of datagrams differ.
//!
//! `faults.rs` says what goes wrong, `ledger.rs` what the world was promised; `broker.rs` and `agent.rs` hold the checks.
//! What is not simulated: power cuts under agents and under the log's tiles, enrolment, control sockets and consoles.
//!
//! `DOCAXIS_SIM_SEEDS=N` runs N seeds, from `DOCAXIS_SIM_FIRST` on; `DOCAXIS_SIM_SEED=S` with `sim::replay` one of them,
//! with every event.

mod agent;
mod broker;
mod faults;
mod identities;
mod ledger;
mod network;
mod random;
mod run;
mod world;

use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use run::run;
use tracing_subscriber::EnvFilter;

/// Seeds that run where nobody asks for more.
const FEW: u64 = 3;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// The one command that repeats a seed.
fn command(seed: u64) -> String {
    format!("DOCAXIS_SIM_SEED={seed} cargo test -p docaxis --test it sim::replay -- --nocapture")
}

#[test]
fn a_seed_repeats_in_every_datagram_and_event() {
    let (first, second) = (run(1, false), run(1, false));
    assert_eq!(first, second);
    assert_ne!(first.digest, run(2, false).digest, "another seed is another run");
}

#[test]
fn whatever_goes_wrong_nothing_that_was_promised_is_lost() {
    let (first, seeds) = (number("DOCAXIS_SIM_FIRST").unwrap_or(1), number("DOCAXIS_SIM_SEEDS").unwrap_or(FEW));
    let began = Instant::now();
    let (next, failed) = (AtomicU64::new(first), Mutex::new(BTreeSet::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + seeds {
                return;
            }
            let outcome = run(seed, false);
            if !outcome.violations.is_empty() {
                println!("seed {seed}, {}: {:#?}\n    {}", outcome.digest, outcome.violations, command(seed));
                failed.lock().unwrap().insert(seed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().unwrap();
    let took = began.elapsed();
    println!("{seeds} seeds, {} bad, in {took:.1?} with {threads} threads", failed.len());
    if let Some(seed) = failed.first() {
        panic!("seeds {failed:?} broke a promise; the first again: {}", command(*seed));
    }
}

/// Repeats the seed in `DOCAXIS_SIM_SEED` and prints what happens in it.
#[test]
fn replay() {
    let Some(seed) = number("DOCAXIS_SIM_SEED") else { return };
    // With RUST_LOG, what the programs log stands between the events.
    tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).without_time().with_test_writer().init();
    let began = Instant::now();
    let outcome = run(seed, true);
    println!("{outcome:#?}\nin {:?}", began.elapsed());
    assert!(outcome.violations.is_empty(), "seed {seed} broke a promise");
}

/// Breaks a promise in the product, and looks whether the simulation notices: within so many seeds it must.
#[cfg(debug_assertions)]
fn is_found(defect: &str, within: u64) {
    let _planted = docaxis_failpoints::plant(defect).expect("the defect is known");
    let found = (1..=within).find_map(|seed| run(seed, false).violations.first().map(|found| (seed, found.clone())));
    let (seed, found) = found.unwrap_or_else(|| panic!("{defect} was not found within {within} seeds"));
    println!("{defect}: seed {seed}, {found}");
}

/// Seeds within which each planted defect must be found.
#[cfg(debug_assertions)]
const WITHIN: u64 = 100;

#[cfg(debug_assertions)]
#[test]
fn an_acknowledgement_before_the_sync_is_found() {
    is_found("broker.defect.acknowledged-before-sync", WITHIN);
}

#[cfg(debug_assertions)]
#[test]
fn a_recipient_dropped_on_a_retry_is_found() {
    is_found("broker.defect.dropped-on-retry", WITHIN);
}

#[cfg(debug_assertions)]
#[test]
fn a_recall_and_a_handover_that_both_win_are_found() {
    is_found("broker.defect.recall-and-handover", WITHIN);
}

#[cfg(debug_assertions)]
#[test]
fn a_handover_out_of_turn_is_found() {
    is_found("broker.defect.handed-over-out-of-turn", WITHIN);
}

#[cfg(debug_assertions)]
#[test]
fn a_handover_before_the_appointed_time_is_found() {
    is_found("broker.defect.handed-over-early", WITHIN);
}

#[cfg(debug_assertions)]
#[test]
fn a_dispatch_that_is_shown_before_it_is_recorded_is_found() {
    is_found("agent.defect.shown-before-recorded", WITHIN);
}
