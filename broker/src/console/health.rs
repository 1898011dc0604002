//! What `/readyz` says: whether the broker serves and, if not, what it is doing, how far it is and whose move it is.
//!
//! *Ready* means: nodes that link are served as they expect. A disk that is nearly full is no reason against it:
//! deliveries, outcomes and control go on, each refused submission says `disk-full`, and its sender tries again. To take the
//! broker away, or to start it again, would stop what still goes on and make no room. So the answer stays 200 and says
//! `"takes_new":false`. An exchange that is closed after a restore is not ready: it signs and accepts nothing.

use std::sync::{Arc, PoisonError, RwLock};

use docaxis_protocol::space::Level;
use serde::Serialize;

use crate::store::embedded::{Doing, Progress, Reached};

/// How a broker that serves stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Condition {
    /// Why nothing is acknowledged any more.
    pub poisoned: Option<String>,
    /// Why the exchange signs and accepts nothing.
    pub closed: Option<String>,
    pub space: Level,
}

/// Where the broker is in its life.
enum Phase {
    /// The store is being opened.
    Opening,
    /// The store is open; what rests on it is not.
    Starting,
    /// Nodes are served. None: what was asked is gone, as it is at the very end.
    Serving(Box<dyn Fn() -> Option<Condition> + Send + Sync>),
    Stopping,
}

/// Shared by whoever starts and stops the broker and those who answer.
pub struct Health {
    progress: Arc<Progress>,
    phase: RwLock<Phase>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Opening,
    CatchingUp,
    Rebuilding,
    Starting,
    Serving,
    /// After a restore, until what was lost has been taken back.
    Closed,
    /// A write failed: the process ends by itself.
    Failed,
    Stopping,
}

/// The answer, field by field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    pub ready: bool,
    pub state: State,
    /// What is being done, or why it is not ready.
    pub why: String,
    #[serde(flatten)]
    pub reached: Option<Reached>,
    /// Whether new dispatches are taken, and how full the disk is; while it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub takes_new: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<Level>,
    /// What comes next, and whose move it is.
    pub next: &'static str,
}

const WAIT: &str = "nothing is to be done: it serves when this has ended. Killed meanwhile, it begins this anew";

impl Health {
    pub fn new(progress: Arc<Progress>) -> Arc<Self> {
        Arc::new(Self { progress, phase: RwLock::new(Phase::Opening) })
    }

    pub fn store_opened(&self) {
        self.set(Phase::Starting);
    }

    /// From now on `look` says how it stands.
    pub fn serving(&self, look: impl Fn() -> Option<Condition> + Send + Sync + 'static) {
        self.set(Phase::Serving(Box::new(look)));
    }

    pub fn stopping(&self) {
        self.set(Phase::Stopping);
    }

    fn set(&self, phase: Phase) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    /// Waits for nothing but short locks.
    pub fn readiness(&self) -> Readiness {
        match &*self.phase.read().unwrap_or_else(PoisonError::into_inner) {
            Phase::Opening => opening(self.progress.reached()),
            Phase::Starting => Readiness::not(
                State::Starting,
                "the store is open; the evidence log is compared with it and the link is started",
                WAIT,
            ),
            Phase::Serving(look) => look().map_or_else(stopping, |condition| serving(&condition)),
            Phase::Stopping => stopping(),
        }
    }
}

fn opening(reached: Reached) -> Readiness {
    let state = match reached.doing {
        Doing::Opening | Doing::Collecting => State::Opening,
        Doing::CatchingUp => State::CatchingUp,
        Doing::Rebuilding | Doing::Writing => State::Rebuilding,
    };
    let counted = matches!(reached.doing, Doing::CatchingUp | Doing::Rebuilding | Doing::Writing);
    let not = Readiness::not(state, reached.doing.words(), WAIT);
    Readiness { reached: counted.then_some(reached), ..not }
}

fn stopping() -> Readiness {
    Readiness::not(State::Stopping, "it was told to stop", "it ends by itself; start it again when it is wanted")
}

/// What outweighs the rest comes first.
fn serving(condition: &Condition) -> Readiness {
    if let Some(why) = &condition.poisoned {
        return Readiness::not(State::Failed, why, "the process ends by itself: look at the disk, then start it again");
    }
    let takes_new = condition.space < Level::RefuseNew && condition.closed.is_none();
    let stands = Readiness {
        ready: condition.closed.is_none(),
        state: State::Serving,
        why: "nodes are served".to_owned(),
        reached: None,
        takes_new: Some(takes_new),
        space: Some(condition.space),
        next: "nothing is to be done",
    };
    match &condition.closed {
        Some(why) => Readiness {
            state: State::Closed,
            why: why.clone(),
            next: "agents must reach it, to give back what it lost; `docaxis broker status` says whom it waits for",
            ..stands
        },
        None if !takes_new => Readiness {
            why: "the disk is nearly full: new work is refused; deliveries, outcomes and control go on".to_owned(),
            next: "make room on the disk under broker.data; `docaxis broker status` says how much is free",
            ..stands
        },
        None => stands,
    }
}

impl Readiness {
    fn not(state: State, why: &str, next: &'static str) -> Self {
        Self { ready: false, state, why: why.to_owned(), reached: None, takes_new: None, space: None, next }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(health: &Health) -> serde_json::Value {
        serde_json::to_value(health.readiness()).unwrap()
    }

    fn health() -> (Arc<Progress>, Arc<Health>) {
        let progress = Arc::<Progress>::default();
        (progress.clone(), Health::new(progress))
    }

    #[test]
    fn until_it_serves_it_says_what_it_does_and_how_far_it_is() {
        let (progress, health) = health();
        for (doing, state, why) in [
            (Doing::Opening, "opening", "opening the store's files"),
            (Doing::Collecting, "opening", "looking for bodies that nothing names"),
        ] {
            progress.begin(doing);
            assert_eq!(answer(&health), json!({"ready": false, "state": state, "why": why, "next": WAIT}));
        }
        for (doing, state, why) in [
            (Doing::CatchingUp, "catching-up", "bringing the index up to the journal's end"),
            (Doing::Rebuilding, "rebuilding", "building the index from evidence and journal"),
            (Doing::Writing, "rebuilding", "writing the index; evidence and journal have been read"),
        ] {
            progress.begin(doing);
            let expected = json!({
                "ready": false, "state": state, "why": why, "records": 0, "bytes_read": 0, "bytes_total": 0,
                "percent": 0, "seconds": 0, "next": WAIT,
            });
            assert_eq!(answer(&health), expected);
        }
        health.store_opened();
        let found = answer(&health);
        assert_eq!((&found["ready"], &found["state"]), (&json!(false), &json!("starting")));
        assert_eq!(found["records"], json!(null), "what was counted is over");
    }

    #[test]
    fn it_is_ready_while_it_serves_unless_it_is_closed_or_failed() {
        let (_, health) = health();
        let with = |poisoned: Option<&str>, closed: Option<&str>, space| {
            let (poisoned, closed) = (poisoned.map(str::to_owned), closed.map(str::to_owned));
            let condition = Condition { poisoned, closed, space };
            health.serving(move || Some(condition.clone()));
            let found = answer(&health);
            [&found["ready"], &found["state"], &found["takes_new"], &found["space"], &found["why"]].map(Clone::clone)
        };
        let nearly = "the disk is nearly full: new work is refused; deliveries, outcomes and control go on";
        for (poisoned, closed, space, expected) in [
            (None, None, Level::Open, json!([true, "serving", true, "open", "nodes are served"])),
            (None, None, Level::RefuseNew, json!([true, "serving", false, "refuse-new", nearly])),
            (None, None, Level::DrainOnly, json!([true, "serving", false, "drain-only", nearly])),
            (None, None, Level::Full, json!([true, "serving", false, "full", nearly])),
            (None, Some("put back"), Level::Open, json!([false, "closed", false, "open", "put back"])),
            (Some("EIO"), None, Level::Open, json!([false, "failed", null, null, "EIO"])),
            (Some("EIO"), Some("put back"), Level::Full, json!([false, "failed", null, null, "EIO"])),
        ] {
            assert_eq!(json!(with(poisoned, closed, space)), expected);
        }
    }

    #[test]
    fn it_is_not_ready_when_it_stops_or_what_it_asks_is_gone() {
        let (_, health) = health();
        health.serving(|| None);
        assert_eq!(answer(&health)["state"], "stopping");
        health.serving(|| Some(Condition::default()));
        assert_eq!(answer(&health)["ready"], true);
        health.stopping();
        let expected = json!({
            "ready": false, "state": "stopping", "why": "it was told to stop",
            "next": "it ends by itself; start it again when it is wanted",
        });
        assert_eq!(answer(&health), expected);
    }
}
