//! kill -9 of broker and agents, again and again under load: what was answered is kept, and nothing is doubled.
//!
//! DOCAXIS_KILL_ROUNDS and DOCAXIS_KILL_SEED choose how often and when; the moments follow from the seed.

use std::time::Duration;

use crate::load::{
    Dice, Draft, every_inbox_holds_exactly_what_was_sent, the_evidence_is_whole, wait_handed_over, wait_linked,
};
use crate::testnet::{BROKER, HANG, Processes, Sent};

const NODES: &[(&str, &[&str])] =
    &[("g22", &["000.00.00.G22"]), ("h37", &["H37.DN.001", "H37.TC.002"]), ("a53", &["000.00.01.A53"])];
/// Who submits, each in a thread of its own.
const SENDERS: [&str; 3] = ["000.00.00.G22", "H37.TC.002", "000.00.01.A53"];
/// Dispatches that each sender submits in one round.
const EACH_ROUND: usize = 4;
/// A kill comes at a moment between the start of a round and this.
const LATEST_KILL_MS: u64 = 700;
/// Well under the idle timeout of 45 s, after which a silent link counts as lost.
const LESS_THAN_SILENCE: Duration = Duration::from_secs(30);

#[test]
fn under_kill_9_every_answered_dispatch_is_handed_over_once_with_whole_evidence() {
    let from_env = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = from_env("DOCAXIS_KILL_ROUNDS").unwrap_or(20);
    let mut dice = Dice(from_env("DOCAXIS_KILL_SEED").unwrap_or(7));
    let mut processes = Processes::start(NODES);
    let mut sent = Vec::new();
    for round in 0..rounds {
        sent.extend(one_round(&mut processes, round, &mut dice));
    }
    assert_eq!(sent.len() as u64, rounds * (SENDERS.len() * EACH_ROUND) as u64);
    for sent in &sent {
        wait_handed_over(&processes, sent, HANG);
    }
    every_inbox_holds_exactly_what_was_sent(&processes, NODES, &sent);
    for sent in &sent {
        the_evidence_is_whole(&processes, sent);
    }
}

#[test]
fn agents_hear_from_a_restarted_broker_that_their_links_are_gone_and_need_not_wait_for_silence() {
    let mut processes = Processes::start(NODES);
    for (node, _) in NODES {
        wait_linked(&processes, node);
    }
    processes.kill(BROKER);
    processes.launch(BROKER);
    let sent = draft(&processes, SENDERS[0], "after the restart", &mut Dice(1)).submit();
    wait_handed_over(&processes, &sent, LESS_THAN_SILENCE);
}

/// Some dispatches are submitted; meanwhile one or two processes are killed and started again.
fn one_round(processes: &mut Processes, round: u64, dice: &mut Dice) -> Vec<Sent> {
    let drafts: Vec<Vec<Draft>> = SENDERS
        .iter()
        .map(|from| (0..EACH_ROUND).map(|n| draft(processes, from, &format!("{round}-{from}-{n}"), dice)).collect())
        .collect();
    let mut names = processes.names();
    let mut victims = vec![names.swap_remove(dice.below(names.len()))];
    if dice.below(4) == 0 {
        victims.push(names.swap_remove(dice.below(names.len())));
    }
    let moment = Duration::from_millis(dice.roll() % LATEST_KILL_MS);
    eprintln!("round {round}: kill -9 of {} after {moment:?}", victims.join(" and "));
    std::thread::scope(|scope| {
        let running: Vec<_> = drafts
            .into_iter()
            .map(|drafts| scope.spawn(move || drafts.into_iter().map(Draft::submit).collect::<Vec<_>>()))
            .collect();
        std::thread::sleep(moment);
        victims.iter().for_each(|name| processes.kill(name));
        victims.iter().for_each(|name| processes.launch(name));
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// A letter from this sender to one or more others.
fn draft(processes: &Processes, from: &str, key: &str, dice: &mut Dice) -> Draft {
    let mut others: Vec<&str> =
        NODES.iter().flat_map(|(_, agencies)| agencies.iter().copied()).filter(|agency| *agency != from).collect();
    let to: Vec<&str> = (0..=dice.below(others.len())).map(|_| others.swap_remove(dice.below(others.len()))).collect();
    // Most fit into the submission; some are transfers that a kill can hit in the middle.
    let size = [1_000, 1_000, 20_000, 60_000, 150_000, 300_000, 3_000_000][dice.below(7)];
    let socket = processes.socket(processes.net.node_of(from));
    Draft::new(processes.folder(), &socket, from, &to, key, &[size])
}
