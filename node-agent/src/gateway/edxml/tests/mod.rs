//! Claims about edXML, made with small fixtures of our own and, where they are at hand, with real files.

mod fixture;
mod hostile;
mod reading;
mod round_trip;
mod samples;
