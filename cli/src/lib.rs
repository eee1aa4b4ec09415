//! The `freehold` command, as a library: its parts are used by the program and by the integration tests.

pub mod dev;
