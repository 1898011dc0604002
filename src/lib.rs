//! The command line of docaxis.
