//! Databases that clients bring.
pub const INSTANCE_TABLE: &str = "freehold_instance";
