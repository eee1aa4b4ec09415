//! Every environment variable that the command reads, by name and purpose.
//!
//! Nothing else in this crate names a variable. The values arrive through the arguments (each variable but
//! `NO_COLOR` stands in for one option), so that a command run by a test depends on nothing around it.

/// Stands in for `--server`: the platform to speak to.
pub const SERVER: &str = "FREEHOLD_SERVER";

/// Stands in for `--config-dir`: where sessions are kept.
pub const CONFIG_DIR: &str = "FREEHOLD_CONFIG_DIR";

/// Stands in for `--password-file` of `login`. There is no variable for the password itself: an environment is
/// inherited by every program started from it.
pub const PASSWORD_FILE: &str = "FREEHOLD_PASSWORD_FILE";

/// Whether the user wants no colours anywhere, by the convention of <https://no-color.org>.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
