//! The platform API: super admins only, sign-in apart.

pub mod audits;
pub mod backups;
pub mod clusters;
pub mod connections;
pub mod databases;
pub mod doctor;
pub mod fleet;
pub mod lives;
pub mod operations;
pub mod rotations;
pub mod sessions;
pub mod shared_models;
pub mod tenants;
