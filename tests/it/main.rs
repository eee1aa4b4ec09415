//! The integration tests: one binary, a file a capability, on a real Postgres.
//!
//! `harness` starts the server under test and speaks HTTP with it as a client would. Every test has a platform
//! database of its own, so all run at once.

mod architecture;
mod fake_model;
mod harness;
mod isolation;
mod kill_matrix;
mod providers;
mod provisioning;
