//! Freehold: a control plane for AI chat over many client companies.
//!
//! `ARCHITECTURE.md` is the map. Dependencies point downward only:
//! edge (`http`, `worker`) -> features (`tenants`, `access`, `configuration`, `chat`) -> services (`operations`,
//! `tenant_db`, `provisioning`, `providers`, `audit`, `idempotency`, `secrets`) -> foundations (`config`, `ids`,
//! `clock`, `platform_db`, `postgres_pool`, `telemetry`).

pub mod access;
pub mod addresses;
pub mod answer_cache;
pub mod api;
pub mod app;
pub mod audit;
pub mod backup_archive;
pub mod backups;
pub mod chat;
pub mod clock;
pub mod config;
pub mod configuration;
pub mod content_filter;
pub mod database_check;
pub mod doctor;
pub mod fleet;
pub mod fleet_audit;
pub mod http;
pub mod idempotency;
pub mod ids;
pub mod json;
pub mod limits;
pub mod metering;
pub mod operations;
pub mod pages;
pub mod platform_db;
pub mod postgres_pool;
pub mod postgres_programs;
pub mod providers;
pub mod provisioning;
pub mod redis_client;
pub mod rotation;
pub mod schedule;
pub mod scheduled;
pub mod secrets;
pub mod shared_models;
pub mod telemetry;
pub mod tenant_db;
pub mod tenants;
pub mod worker;
