//! What a tenant's admin decides: chat settings, every change of which is a new version, and AI keys.
//!
//! All of it is in the tenant's own database. The keys are sealed there with the tenant's data key, which is kept
//! elsewhere, and leave this module only inside a model provider.

mod ai_keys;
mod aliases;
mod assistants;
mod sealing;
mod settings;
pub mod tenant_store;

use thiserror::Error;

pub use ai_keys::{AiKey, AiKeys, KeyTest, NewAiKey, check as check_ai_key, open_key, try_key};
pub use sealing::{Reseal, SealingFence, hold_sealing};
pub use settings::{SettingsChange, SettingsVersion, check as check_settings, insert_first, read, update};

use crate::tenant_db::TenantDbError;

/// Why settings or AI keys could not be read or changed.
#[derive(Debug, Error)]
pub enum ConfigurationError {
    /// A change was made from a version that is no longer in force.
    #[error("the settings have changed meanwhile")]
    VersionConflict {
        /// The version that is in force.
        current: i64,
    },
    /// The settings that would result break limits; the report names the fields.
    #[error("the settings break a limit")]
    Invalid(garde::Report),
    /// A field was refused.
    #[error("{field}: {message}")]
    Refused {
        /// The field.
        field: &'static str,
        /// Why, for the person who sent it.
        message: String,
    },
    /// There is no AI key of this name.
    #[error("no such AI key")]
    NotFound,
    /// Two changes of the same AI key met too often.
    #[error("the AI key is being changed by somebody else")]
    Contended,
    /// There are no settings, or this version of the server cannot read them.
    #[error("the stored settings cannot be read")]
    Unreadable,
    /// A stored AI key did not open, or is of a kind this version of the server does not know.
    #[error("a stored AI key cannot be used")]
    UnusableKey,
    /// No connection to the tenant's database could be had.
    #[error("the tenant's database could not be had")]
    TenantDb(#[from] TenantDbError),
    /// The tenant's database refused a statement.
    #[error("the tenant's database refused a statement")]
    Database(#[from] tokio_postgres::Error),
}
