//! Defects that a test can plant, to see whether a simulation finds them. A defect counts for the thread that planted it
//! alone, as a simulation runs in one thread, and only until its guard is dropped.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::names::DEFECTS;

/// A planted defect, and what it has been done to.
struct Now {
    name: &'static str,
    victims: BTreeSet<String>,
}

thread_local! {
    static NOW: RefCell<Option<Now>> = const { RefCell::new(None) };
}

/// While it lives, the defect is there.
#[must_use]
pub struct Planted(());

impl Drop for Planted {
    fn drop(&mut self) {
        NOW.with_borrow_mut(Option::take);
    }
}

/// Plants a defect of this name; `None` if there is none.
pub fn plant(name: &str) -> Option<Planted> {
    let name = DEFECTS.iter().copied().find(|known| *known == name)?;
    NOW.with_borrow_mut(|now| *now = Some(Now { name, victims: BTreeSet::new() }));
    Some(Planted(()))
}

pub fn is_planted(name: &str) -> bool {
    NOW.with_borrow(|now| now.as_ref().is_some_and(|now| now.name == name))
}

/// Remembers whom the defect befalls.
pub fn befall(name: &str, victim: impl std::fmt::Display) {
    NOW.with_borrow_mut(|now| {
        if let Some(now) = now.as_mut().filter(|now| now.name == name) {
            now.victims.insert(victim.to_string());
        }
    });
}

pub fn has_befallen(name: &str, victim: impl std::fmt::Display) -> bool {
    NOW.with_borrow(|now| now.as_ref().is_some_and(|now| now.name == name && now.victims.contains(&victim.to_string())))
}
