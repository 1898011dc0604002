//! Ways in and out of the agent for other systems: files and calls that document systems already speak.
//!
//! A gateway translates; it decides nothing about delivery and keeps no state of its own.

pub mod edxml;
