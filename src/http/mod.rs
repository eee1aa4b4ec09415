//! The HTTP edge: turns requests into calls of features, and their results into answers.
//!
//! The only modules that know axum are here and in `app.rs`. A handler's arguments prove the caller's authority
//! ([`extract`]); one table turns errors into answers ([`error`]); [`router`] is the list of all routes. No SQL, no
//! decisions: those belong to the features.

pub mod context;
pub mod docs;
pub mod error;
pub mod extract;
pub mod health;
mod large_body;
mod limits;
pub mod openai;
pub mod page;
pub mod patience;
pub mod platform;
pub mod router;
pub mod tenant;
