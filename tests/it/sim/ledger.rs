//! What the world outside of broker and agents knows: which letters were ordered, what was promised about them, what was
//! seen. The checks compare broker and agents with it; it forgets nothing in a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use docaxis_protocol::{AgencyCode, Digest, DispatchId};

use super::identities::NODES;
use super::random::Random;

/// A letter that an officer wants to be sent.
#[derive(Debug, Clone)]
pub struct Letter {
    pub number: usize,
    pub node: &'static str,
    pub from: AgencyCode,
    pub to: Vec<AgencyCode>,
    pub priority: u8,
    /// When the officer comes with it, from the beginning.
    pub at: Duration,
    pub expires_after: Option<Duration>,
    /// Its appointed time, from the beginning: it is not handed over before.
    pub appointed: Option<Duration>,
    pub parts: Vec<Vec<u8>>,
    /// When the officer takes it back, after having brought it.
    pub recalled_after: Option<Duration>,
    /// The recall was queued, or there was nothing to be taken back.
    pub recalled: bool,
    /// The agent's promise that it will be sent.
    pub id: Option<DispatchId>,
    /// All that its sender awaits has come.
    pub done: bool,
}

/// Outcomes as a sender is told them.
pub const HANDED_OVER: &str = "handed over";
pub const FAILED: &str = "failed";
pub const WITHDRAWN: &str = "withdrawn";
pub const REJECTED: &str = "rejected";

/// A dispatch at a recipient.
pub type Delivery = (DispatchId, AgencyCode);

#[derive(Default)]
pub struct Ledger {
    pub letters: Vec<Letter>,
    pub violations: Vec<String>,
    /// Leaves of the log whose evidence somebody holds, with their entries.
    pub leaves: BTreeMap<u64, Digest>,
    /// Checkpoints that left the broker: sizes and roots.
    pub checkpoints: BTreeMap<u64, Digest>,
    /// Seen by officers.
    pub visible: BTreeSet<Delivery>,
    /// Outcomes that a sender was told.
    pub outcomes: BTreeMap<Delivery, String>,
    /// Places in the outbox of their node: they grow in the order of queueing.
    pub places: BTreeMap<DispatchId, u64>,
    /// How often each was tried in vain, at most.
    pub tries: BTreeMap<DispatchId, u32>,
    /// What an officer reported.
    pub reported: BTreeSet<Delivery>,
}

impl Ledger {
    /// So many letters, from everybody to everybody, within this time.
    pub fn of(seed: u64, letters: usize, within: Duration) -> Self {
        let mut random = Random::of(seed, "letters");
        let agencies: Vec<(&'static str, AgencyCode)> =
            NODES.iter().flat_map(|(node, codes)| codes.iter().map(|code| (*node, code.parse().unwrap()))).collect();
        let mut made: Vec<Letter> = Vec::with_capacity(letters);
        for number in 0..letters {
            let mut letter = Letter::of(number, &agencies, within, &mut random);
            // Many come close behind another of the same sender, to the same recipients: their order is to be kept.
            if let Some(before) = made.last().filter(|_| random.chance(50)) {
                letter.node = before.node;
                letter.from = before.from.clone();
                letter.to = before.to.clone();
                letter.priority = before.priority;
                letter.at = before.at + Duration::from_millis(random.between(0, 300));
            }
            made.push(letter);
        }
        let mut random = Random::of(seed, "appointments");
        for letter in made.iter_mut().filter(|letter| letter.expires_after.is_none()) {
            let after = Duration::from_millis(random.between(500, 10_000));
            letter.appointed = random.chance(12).then(|| letter.at + after);
        }
        Self { letters: made, ..Self::default() }
    }

    pub fn letter(&self, id: DispatchId) -> Option<&Letter> {
        self.letters.iter().find(|letter| letter.id == Some(id))
    }

    /// Letters of one sender to one recipient in one priority, each in the order of queueing.
    pub fn in_order(&self) -> BTreeMap<(AgencyCode, AgencyCode, u8), Vec<DispatchId>> {
        let mut queued: Vec<(u64, &Letter)> =
            self.letters.iter().filter_map(|letter| Some((*self.places.get(&letter.id?)?, letter))).collect();
        queued.sort_by_key(|(place, _)| *place);
        let mut pairs: BTreeMap<_, Vec<DispatchId>> = BTreeMap::new();
        for (_, letter) in queued {
            for to in &letter.to {
                let pair = (letter.from.clone(), to.clone(), letter.priority);
                pairs.entry(pair).or_default().extend(letter.id);
            }
        }
        pairs
    }

    /// Every sender knows all that there is to know, and every officer sees what was handed over.
    pub fn all_done(&self) -> bool {
        let seen =
            |(delivery, outcome): (&Delivery, &String)| outcome != HANDED_OVER || self.visible.contains(delivery);
        self.letters.iter().all(|letter| letter.done) && self.outcomes.iter().all(seen)
    }
}

impl Letter {
    fn of(number: usize, agencies: &[(&'static str, AgencyCode)], within: Duration, random: &mut Random) -> Self {
        let (node, from) = random.pick(agencies).clone();
        let mut to: Vec<AgencyCode> = agencies.iter().map(|(_, code)| code.clone()).collect();
        while to.len() > 1 && random.chance(60) {
            let gone = usize::try_from(random.between(0, to.len() as u64 - 1)).unwrap();
            to.remove(gone);
        }
        let parts = (0..random.between(1, 2)).map(|_| {
            let size = match random.between(0, 99) {
                0..60 => random.between(1, 3_000),
                60..90 => random.between(3_000, 60_000),
                _ => random.between(70_000, 600_000),
            };
            let mut bytes = vec![0; usize::try_from(size).unwrap()];
            random.fill(&mut bytes);
            bytes
        });
        let parts = parts.collect();
        Self {
            number,
            node,
            from,
            to,
            priority: u8::try_from(random.between(0, 3)).unwrap(),
            at: Duration::from_millis(random.between(0, u64::try_from(within.as_millis()).unwrap())),
            expires_after: random.chance(10).then(|| Duration::from_secs(random.between(20, 90))),
            appointed: None,
            parts,
            recalled_after: random.chance(25).then(|| Duration::from_millis(random.between(0, 9_000))),
            recalled: false,
            id: None,
            done: false,
        }
    }
}
