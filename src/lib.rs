//! Freehold: a control plane for AI chat over many client companies.
//!
//! `ARCHITECTURE.md` is the map. Dependencies point downward only:
//! edge (`http`, `worker`) -> features (`tenants`, `access`, `chat`) -> services (`operations`, `tenant_db`,
//! `provisioning`, `providers`, `audit`, `secrets`) -> foundations (`config`, `ids`, `clock`, `platform_db`,
//! `telemetry`).

pub mod api;
pub mod clock;
pub mod config;
pub mod configuration;
pub mod ids;
pub mod operations;
pub mod platform_db;
pub mod postgres_pool;
pub mod providers;
pub mod provisioning;
pub mod secrets;
pub mod tenant_db;
