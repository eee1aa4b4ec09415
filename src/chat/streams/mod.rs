//! Answers as streams of numbered events, which survive those who listen and the server that makes them.
//!
//! | number | event |
//! |---|---|
//! | 0 | the answer has begun |
//! | 1 to n | its deltas |
//! | n + 1 | its end: done, or failed |
//! | n + 2 | the mark of a stream that ended well |
//!
//! The server that makes an answer keeps its events in a log ([`event_log`]), which everybody here reads at their own
//! pace, and writes them down every second ([`parts`]). Another server reads what was written down ([`replay`]), once for
//! all who listen there ([`listeners`]). No connection is held between two looks at the database.

pub(super) mod event_log;
pub(super) mod listeners;
pub(super) mod parts;
mod replay;
pub mod tenant_store;

pub use event_log::{AnswerEnd, AnswerEvent, Listener};

/// What is told where nobody knows the tenant's own words, or there are none.
pub(super) const UNFINISHED: &str = "The answer could not be finished.";
