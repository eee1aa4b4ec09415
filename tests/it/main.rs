//! The integration tests: one binary, a file a capability, on a real Postgres.
//!
//! `harness` starts the server under test and speaks HTTP with it as a client would. Every test has a platform
//! database of its own, so all run at once.

#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, which is what it is for"
)]

mod access;
mod answer_cache;
mod api_keys;
mod architecture;
mod assistants;
mod backup;
mod chat;
mod cli;
mod clusters;
mod configuration;
mod connections;
mod content_filter;
mod database_check;
mod dev_stack;
mod duplicates;
mod fake_model;
mod fake_providers;
mod fleet_audit;
mod fleet_migration;
mod harness;
mod images;
mod isolation;
mod kill_matrix;
mod ledger;
mod life;
mod limits;
mod machine_postgres;
mod openai_endpoint;
mod openapi;
mod operations;
mod own_database;
mod page;
mod provider_kinds;
mod providers;
mod provisioning;
mod proxy;
mod recovery;
mod resume;
mod rotation;
mod secrets;
mod server_command;
mod shared_models;
mod shutdown;
mod tls;
