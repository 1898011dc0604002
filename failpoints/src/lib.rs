//! Named places at which a process can be made to die as by kill -9, or to wait: one between any two steps of which a crash could
//! separate the promise from the disk.
//!
//! Only builds with `debug_assertions` have them: there [`failpoint!`] counts passes, and in a release build it is
//! nothing, not even its name. One failpoint can be armed in a process, once, at its start.

#[cfg(debug_assertions)]
mod defects;
#[cfg(debug_assertions)]
mod names;
#[cfg(debug_assertions)]
mod pass;

#[cfg(debug_assertions)]
pub use defects::{Planted, befall, has_befallen, is_planted, plant};
#[cfg(debug_assertions)]
pub use names::{AGENT, BROKER, DEFECTS};
#[cfg(debug_assertions)]
pub use pass::{ArmError, arm, pass};

/// A place at which an armed process dies. Its name stands in [`AGENT`] or [`BROKER`], and nowhere else in the code.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(debug_assertions)]
        $crate::pass($name);
    };
}

/// Whether a test planted this defect ([`plant`]). In a release build it is `false`, and not even its name is there. With a
/// victim: whether the defect has befallen it; after `befalls`, it has from now on.
#[macro_export]
macro_rules! defect {
    ($name:literal) => {{
        #[cfg(debug_assertions)]
        let planted = $crate::is_planted($name);
        #[cfg(not(debug_assertions))]
        let planted = false;
        planted
    }};
    ($name:literal befalls $victim:expr) => {
        #[cfg(debug_assertions)]
        $crate::befall($name, $victim);
    };
    ($name:literal has befallen $victim:expr) => {{
        #[cfg(debug_assertions)]
        let befallen = $crate::has_befallen($name, $victim);
        #[cfg(not(debug_assertions))]
        let befallen = {
            let _never_asked = || $victim;
            false
        };
        befallen
    }};
}
