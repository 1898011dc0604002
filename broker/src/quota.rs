//! How much of the exchange one node, and one agency, may use: dispatches in a minute, bytes on their way in, bytes that
//! wait for their recipients. Time and what waits come in, a verdict goes out; nothing here is kept over a restart but
//! what waits, which the store counts.
//!
//! Whoever is over a quota is told on the link to come again later. That leaves no evidence and ends no dispatch: the
//! sender's agent keeps it and tries again, and `doc show` says why it waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use docaxis_protocol::space::binary;
use docaxis_protocol::{AgencyCode, NodeId, Reason, ReasonCode, Timestamp};
use serde::{Deserialize, Serialize};

/// `[quota]` in `broker.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaSection {
    /// Of each node, unless it stands in `nodes`.
    pub node: Limits,
    /// Of each sending agency, unless it stands in `agencies`.
    pub agency: Limits,
    /// Nodes with limits of their own, by name.
    pub nodes: BTreeMap<NodeId, Limits>,
    /// Agencies with limits of their own, by code.
    pub agencies: BTreeMap<AgencyCode, Limits>,
}

/// What one of them may use. 0 is no limit; of what a table of its own leaves out there is none either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Submissions in a minute, all of which may come at once. Repeated ones that were answered before do not count.
    pub dispatches_per_minute: u32,
    /// Bodies over 64 KiB that are being uploaded, in MiB. A single one is always taken.
    pub in_flight_mib: u64,
    /// Bodies of what was sent and waits for at least one recipient, each once, in MiB.
    pub waiting_mib: u64,
}

impl Default for QuotaSection {
    fn default() -> Self {
        Self {
            node: Limits { dispatches_per_minute: 60_000, in_flight_mib: 32 << 10, waiting_mib: 256 << 10 },
            agency: Limits { dispatches_per_minute: 12_000, in_flight_mib: 16 << 10, waiting_mib: 64 << 10 },
            nodes: BTreeMap::new(),
            agencies: BTreeMap::new(),
        }
    }
}

impl QuotaSection {
    /// No limits.
    pub fn unlimited() -> Self {
        let (node, agency) = (Limits::default(), Limits::default());
        Self { node, agency, nodes: BTreeMap::new(), agencies: BTreeMap::new() }
    }
}

/// Who has a quota.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum User {
    Node(NodeId),
    Agency(AgencyCode),
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Agency(agency) => write!(f, "agency {agency}"),
        }
    }
}

/// What one of them uses.
#[derive(Debug, Default)]
struct Used {
    /// When its quota of dispatches would be unused again, in microseconds: each takes its share of a minute.
    free_at: i64,
    in_flight: u64,
    /// When the log last said that it was turned away.
    told: Option<Timestamp>,
}

const MINUTE_US: i64 = 60_000_000;
/// How often the log says that somebody is over a quota.
const TELL_EVERY: std::time::Duration = std::time::Duration::from_secs(60);
/// For so long what waits for a node's agencies is not added up again: that reads a row for each of them.
const RECKONED_FOR: std::time::Duration = std::time::Duration::from_secs(1);
/// Users beyond which those that use nothing are forgotten.
const SWEEP_AT: usize = 4_096;

#[derive(Debug, Default)]
struct Book {
    used: BTreeMap<User, Used>,
    sweep_at: usize,
    /// What waits of each node's agencies, and when that was added up.
    of_nodes: BTreeMap<NodeId, (Timestamp, u64)>,
    turned_away: u64,
}

/// The quotas of all nodes and agencies.
#[derive(Debug)]
pub struct Quotas {
    config: QuotaSection,
    book: Mutex<Book>,
}

impl Quotas {
    pub fn new(config: QuotaSection) -> Self {
        Self { config, book: Mutex::new(Book { sweep_at: SWEEP_AT, ..Book::default() }) }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self, user: &User) -> Limits {
        let QuotaSection { node, agency, nodes, agencies } = &self.config;
        match user {
            User::Node(name) => *nodes.get(name).unwrap_or(node),
            User::Agency(code) => *agencies.get(code).unwrap_or(agency),
        }
    }

    fn users(node: &NodeId, agency: &AgencyCode) -> [User; 2] {
        [User::Node(node.clone()), User::Agency(agency.clone())]
    }

    /// Submissions that were turned away since the start.
    pub fn turned_away(&self) -> u64 {
        self.book().turned_away
    }

    /// Counts one submission, if both may submit one more now.
    pub fn submit(&self, node: &NodeId, agency: &AgencyCode, now: Timestamp) -> Result<(), Reason> {
        let users = Self::users(node, agency);
        let at = now.unix_ms().saturating_mul(1_000);
        let mut book = self.book();
        book.sweep(at);
        let mut counted = Vec::with_capacity(users.len());
        for user in users {
            let limit = self.limits(&user).dispatches_per_minute;
            if limit == 0 {
                continue;
            }
            let share = MINUTE_US / i64::from(limit);
            let free_at = book.used.get_mut(&user).map_or(at, |used| {
                // A clock that was set back must not shut anybody out for longer than a minute.
                used.free_at = used.free_at.min(at + MINUTE_US);
                used.free_at.max(at)
            });
            let wait = free_at + share - (at + MINUTE_US);
            if wait > 0 {
                let text = format!(
                    "{user} has submitted {limit} dispatches within a minute, as many as its quota allows; one more is taken \
                     in {} ms",
                    (wait + 999) / 1_000
                );
                return Err(book.turn_away(user, now, text));
            }
            counted.push((user, free_at + share));
        }
        for (user, free_at) in counted {
            book.used.entry(user).or_default().free_at = free_at;
        }
        Ok(())
    }

    /// Whether a dispatch with bodies of `own` bytes may be added to what waits. `waiting` gives what waits of the agency,
    /// and `of_node` of all agencies of the node.
    pub fn wait<E>(
        &self,
        (node, agency): (&NodeId, &AgencyCode),
        own: u64,
        now: Timestamp,
        waiting: impl FnOnce() -> Result<u64, E>,
        of_node: impl FnOnce() -> Result<u64, E>,
    ) -> Result<Result<(), Reason>, E> {
        if own == 0 {
            return Ok(Ok(()));
        }
        let [node_user, agency_user] = Self::users(node, agency);
        let allowed = |user: &User| self.limits(user).waiting_mib << 20;
        let (agency_may, node_may) = (allowed(&agency_user), allowed(&node_user));
        if agency_may > 0
            && let waits = waiting()?
            && let Err(reason) = self.may_wait(agency_user, waits, own, agency_may, now)
        {
            return Ok(Err(reason));
        }
        if node_may > 0 {
            let known =
                self.book().of_nodes.get(node).filter(|(at, _)| now.since(*at) < RECKONED_FOR && *at <= now).copied();
            let waits = match known {
                Some((_, waits)) => waits,
                None => {
                    let waits = of_node()?;
                    self.book().of_nodes.insert(node.clone(), (now, waits));
                    waits
                }
            };
            if let Err(reason) = self.may_wait(node_user, waits, own, node_may, now) {
                return Ok(Err(reason));
            }
        }
        Ok(Ok(()))
    }

    fn may_wait(&self, user: User, waits: u64, own: u64, may: u64, now: Timestamp) -> Result<(), Reason> {
        // Nothing is too large to be sent at all: that is for the limit of a part to say.
        if waits == 0 || waits.saturating_add(own) <= may {
            return Ok(());
        }
        let text = format!(
            "{} sent by {user} wait for recipients, and these would be {} more; its quota is {}: it is taken when \
             recipients' nodes have fetched some",
            binary(waits),
            binary(own),
            binary(may)
        );
        Err(self.book().turn_away(user, now, text))
    }

    /// Counts bodies as being uploaded until what is returned is dropped, if both may upload so much more now.
    pub fn upload(
        self: &Arc<Self>,
        (node, agency): (&NodeId, &AgencyCode),
        bytes: u64,
        now: Timestamp,
    ) -> Result<Upload, Reason> {
        let users = Self::users(node, agency);
        let mut book = self.book();
        for user in &users {
            let may = self.limits(user).in_flight_mib << 20;
            let in_flight = book.used.get(user).map_or(0, |used| used.in_flight);
            if may > 0 && bytes > 0 && in_flight > 0 && in_flight.saturating_add(bytes) > may {
                let text = format!(
                    "{user} is uploading {}, and these would be {} more; its quota is {} at once",
                    binary(in_flight),
                    binary(bytes),
                    binary(may)
                );
                return Err(book.turn_away(user.clone(), now, text));
            }
        }
        for user in &users {
            let used = book.used.entry(user.clone()).or_default();
            used.in_flight = used.in_flight.saturating_add(bytes);
        }
        Ok(Upload { quotas: self.clone(), users, bytes })
    }
}

impl Book {
    fn turn_away(&mut self, user: User, now: Timestamp, text: String) -> Reason {
        self.turned_away += 1;
        let used = self.used.entry(user).or_default();
        if used.told.is_none_or(|told| told > now || now.since(told) >= TELL_EVERY) {
            used.told = Some(now);
            tracing::warn!("over a quota: {text}");
        }
        ReasonCode::OverQuota.because(text)
    }

    /// Forgets those that use nothing, when there are many.
    fn sweep(&mut self, at: i64) {
        if self.used.len() < self.sweep_at {
            return;
        }
        self.used.retain(|_, used| used.in_flight > 0 || used.free_at > at);
        self.of_nodes.clear();
        self.sweep_at = self.used.len().saturating_mul(2).max(SWEEP_AT);
    }
}

/// Bodies that are being uploaded.
#[derive(Debug)]
pub struct Upload {
    quotas: Arc<Quotas>,
    users: [User; 2],
    bytes: u64,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut book = self.quotas.book();
        for user in &self.users {
            if let Some(used) = book.used.get_mut(user) {
                used.in_flight = used.in_flight.saturating_sub(self.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn now() -> Timestamp {
        Timestamp::from_unix_ms(1_795_318_200_000)
    }

    fn who() -> (NodeId, AgencyCode) {
        ("g22".parse().unwrap(), "000.00.00.G22".parse().unwrap())
    }

    fn quotas(node: Limits, agency: Limits) -> Arc<Quotas> {
        let section = QuotaSection { node, agency, ..QuotaSection::default() };
        Arc::new(Quotas::new(section))
    }

    fn text(refused: Result<(), Reason>) -> String {
        let reason = refused.unwrap_err();
        assert_eq!(reason.known(), ReasonCode::OverQuota);
        assert!(ReasonCode::OverQuota.text().retryable);
        reason.text
    }

    #[test]
    fn a_minute_s_quota_may_be_used_at_once_and_comes_back_evenly() {
        let quotas = quotas(Limits::default(), Limits { dispatches_per_minute: 4, ..Limits::default() });
        let (node, agency) = who();
        let submit = |after_ms: u64| quotas.submit(&node, &agency, now().plus(Duration::from_millis(after_ms)));
        (0..4).for_each(|_| submit(0).unwrap());
        let refused = text(submit(1));
        assert!(refused.contains("agency 000.00.00.G22 has submitted 4 dispatches"), "{refused}");
        assert!(refused.contains("in 14999 ms"), "{refused}");
        submit(15_000).unwrap();
        text(submit(15_001));
        // What was turned away took nothing from the quota.
        submit(30_000).unwrap();
        (0..4).for_each(|_| submit(120_000).unwrap());
        text(submit(120_000));
        assert_eq!(quotas.turned_away(), 3);
        let other = "H37.DN.001".parse().unwrap();
        quotas.submit(&node, &other, now().plus(Duration::from_secs(120))).unwrap();
    }

    #[test]
    fn a_node_s_quota_is_for_all_its_agencies_and_a_refusal_costs_neither() {
        let one = |n| Limits { dispatches_per_minute: n, ..Limits::default() };
        let quotas = quotas(one(2), one(1));
        let (node, first) = who();
        let [second, third]: [AgencyCode; 2] = ["H37.DN.001", "A53.01"].map(|code| code.parse().unwrap());
        quotas.submit(&node, &first, now()).unwrap();
        assert!(text(quotas.submit(&node, &first, now())).starts_with("agency 000.00.00.G22"));
        quotas.submit(&node, &second, now()).unwrap();
        assert!(text(quotas.submit(&node, &third, now())).starts_with("node g22"));
        quotas.submit(&"h37".parse().unwrap(), &third, now()).unwrap();
    }

    #[test]
    fn a_clock_that_is_set_back_shuts_nobody_out_for_longer_than_a_minute() {
        let quotas = quotas(Limits::default(), Limits { dispatches_per_minute: 1, ..Limits::default() });
        let (node, agency) = who();
        quotas.submit(&node, &agency, now()).unwrap();
        let hours_ago = now().minus(Duration::from_secs(7_200));
        text(quotas.submit(&node, &agency, hours_ago));
        quotas.submit(&node, &agency, hours_ago.plus(Duration::from_secs(60))).unwrap();
    }

    #[test]
    fn uploads_count_until_they_end_and_a_single_one_is_always_taken() {
        let quotas =
            quotas(Limits { in_flight_mib: 10, ..Limits::default() }, Limits { in_flight_mib: 4, ..Limits::default() });
        let (node, agency) = who();
        let huge = quotas.upload((&node, &agency), 100 * MIB, now()).unwrap();
        text(quotas.upload((&node, &agency), 1, now()).map(drop));
        drop(huge);
        let [_one, two] = [3, 1].map(|n| quotas.upload((&node, &agency), n * MIB, now()).unwrap());
        text(quotas.upload((&node, &agency), 1, now()).map(drop));
        drop(two);
        let _again = quotas.upload((&node, &agency), MIB, now()).unwrap();
        let other = "H37.DN.001".parse().unwrap();
        assert!(text(quotas.upload((&node, &other), 7 * MIB, now()).map(drop)).starts_with("node g22"));
    }

    #[test]
    fn what_waits_is_bounded_for_agency_and_node_but_words_without_files_always_pass() {
        let limits = |waiting_mib| Limits { waiting_mib, ..Limits::default() };
        let quotas = quotas(limits(10), limits(4));
        let (node, agency) = who();
        let wait = |own, of_agency: u64, of_node: u64, seconds| {
            let at = now().plus(Duration::from_secs(seconds));
            let asked = quotas.wait((&node, &agency), own, at, || Ok::<_, Infallible>(of_agency), || Ok(of_node));
            asked.unwrap_or_else(|never| match never {})
        };
        wait(MIB, 3 * MIB, 9 * MIB, 0).unwrap();
        let refused = text(wait(MIB + 1, 3 * MIB, 9 * MIB, 10));
        assert!(refused.starts_with("3.0 MiB sent by agency 000.00.00.G22 wait"), "{refused}");
        assert!(text(wait(MIB, 3 * MIB, 10 * MIB, 20)).contains("by node g22"));
        // Added up a moment ago, and not again before a second is over.
        text(wait(MIB, 3 * MIB, 0, 20));
        wait(MIB, 3 * MIB, 0, 21).unwrap();
        wait(0, 400 * MIB, 400 * MIB, 30).unwrap();
        wait(40 * MIB, 0, 0, 40).unwrap();
    }

    #[test]
    fn those_with_limits_of_their_own_have_these_and_those_that_use_nothing_are_forgotten() {
        let mut section = QuotaSection {
            agency: Limits { dispatches_per_minute: 1, ..Limits::default() },
            ..QuotaSection::default()
        };
        let (node, agency) = who();
        section.agencies.insert(agency.clone(), Limits { dispatches_per_minute: 2, ..Limits::default() });
        let quotas = Quotas::new(section);
        (0..2).for_each(|_| quotas.submit(&node, &agency, now()).unwrap());
        text(quotas.submit(&node, &agency, now()));
        let others = |range: std::ops::Range<usize>, at| {
            for n in range {
                let _over_the_node_s = quotas.submit(&node, &format!("A{n:04}").parse().unwrap(), at);
            }
        };
        others(0..SWEEP_AT - 2, now());
        others(0..4, now().plus(Duration::from_secs(61)));
        assert!(quotas.book().used.len() < 10, "{}", quotas.book().used.len());
    }
}
