//! The ledger of model calls, and what they cost.
//!
//! Every attempt to call a model has a row in the tenant's own database before the provider is asked, and is settled
//! when it has ended. It knows tokens, prices and outcomes; never who asks or why: users, keys and messages are ids
//! here and nothing else.
//!
//! - [`Ledger::begin`] writes a row and [`OpenCall::settle`] its end, both together with those of all calls that come
//!   meanwhile: see `group_commit`. Who has a statement to send anyway writes the row in that ([`Ledger::open`],
//!   [`OpenCall::end`]).
//! - An [`OpenCall`] that is dropped is settled as cancelled, so nobody who is given up midway leaves a row open.
//! - Rows that dead servers left are found by [`abandoned`].

pub mod abandoned;
mod group_commit;
mod ledger;
mod prices;
pub mod tenant_store;
mod usage;

use std::sync::Arc;

use crate::ids::{ApiKeyId, MessageId, UserId};

pub use ledger::{End, EndedCall, Ledger, OpenCall, Settling};
pub use prices::Prices;
pub use usage::{CallPage, GroupBy, MeteringError, ModelCallRow, UsageGroup, UsageReader, UsageReport};

/// What kind of call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// An answer in a conversation that Freehold keeps.
    Chat,
    /// A completion for a program, kept nowhere.
    Completion,
    /// Embeddings.
    Embedding,
    /// Finding out which of a tenant's assistants a question belongs to.
    Routing,
}

impl CallKind {
    /// The word that is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Embedding => "embedding",
            Self::Routing => "routing",
        }
    }
}

/// Whose key pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BilledTo {
    /// The tenant's own.
    Own,
    /// The platform's.
    Shared,
}

impl BilledTo {
    /// The word that is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Shared => "shared",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallState {
    /// The provider said all it had to say.
    Succeeded,
    /// The provider failed.
    Failed,
    /// Whoever asked left or stopped it, or it passed one of our limits.
    Cancelled,
    /// Our server stopped or died, or the tenant went out of service.
    Interrupted,
}

impl CallState {
    /// The word that is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Which model of which key is called. Made once for a key's settings and shared by all its calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The provider's kind.
    pub provider: &'static str,
    /// The name of the AI key.
    pub configuration: Arc<str>,
    /// The provider's own name of the model.
    pub upstream_model: Arc<str>,
    /// Whose key it is.
    pub billed_to: BilledTo,
}

/// What is known of a call before it is made.
#[derive(Debug, Clone)]
pub struct CallStart {
    /// What kind of call it is.
    pub kind: CallKind,
    /// The user it is made for.
    pub user_id: Option<UserId>,
    /// The API key it is made with.
    pub api_key_id: Option<ApiKeyId>,
    /// The message that is to hold its answer.
    pub message_id: Option<MessageId>,
    /// The name of the model that was asked for.
    pub model: Arc<str>,
    /// What is called.
    pub target: Arc<Target>,
    /// The length of the prompt in characters, for an estimate.
    pub prompt_characters: usize,
}

/// How a call ended, as far as whoever made it knows.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// How.
    pub state: CallState,
    /// Why, if not well, as a stable code.
    pub error_code: Option<&'static str>,
    /// What the provider counted. Without it tokens are estimated, unless nothing can have been used.
    pub usage: Option<crate::providers::Usage>,
}

impl Outcome {
    /// All went well.
    #[must_use]
    pub fn succeeded(usage: Option<crate::providers::Usage>) -> Self {
        Self { state: CallState::Succeeded, error_code: None, usage }
    }

    /// It did not, and nobody counted.
    #[must_use]
    pub fn ended(state: CallState, code: &'static str) -> Self {
        Self { state, error_code: Some(code), usage: None }
    }
}

/// About four characters make a token. What has any is at least one.
#[must_use]
pub fn estimate_tokens(characters: usize) -> u64 {
    match characters {
        0 => 0,
        _ => u64::try_from(characters / 4).unwrap_or(u64::MAX).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_is_a_quarter_of_the_characters() {
        assert_eq!([0, 1, 7, 8, 4000].map(estimate_tokens), [0, 1, 1, 2, 1000]);
    }
}
