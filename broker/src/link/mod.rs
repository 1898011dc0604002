//! The link to nodes and to the authority: QUIC streams become calls on the exchange, and the exchange's bells become
//! offers. The only place in the broker that knows quinn.

mod again;
mod bodies;
mod give_back;
mod io;
mod join;
mod line;
mod links;
mod listener;
mod precedence;
mod push;
mod resend;
mod session;
mod submissions;
mod submit;

pub use links::Links;
pub use listener::{Link, LinkConfig, LinkError, Network};
