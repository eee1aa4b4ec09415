//! Models that the owner lends to tenants.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use garde::Validate;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `PUT /platform/v1/shared-models/{name}`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutSharedModelRequest {
    /// Who serves the models, as for a tenant's AI key.
    #[garde(length(max = 50))]
    pub provider: String,
    /// The server's address; left out, the one that is there, or the provider's own. Unlike a tenant's it may be in a private network.
    #[garde(inner(length(max = 2_000)))]
    #[serde(default)]
    pub base_url: Option<String>,
    /// The key itself. It is stored sealed and never shown again. Left out, the one that is there stays, as long as
    /// provider and address do.
    #[garde(skip)]
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Password)]
    pub api_key: Option<SecretString>,
    /// The models this key is lent for.
    #[garde(length(min = 1, max = 50), inner(length(chars, min = 1, max = 200)))]
    pub models: Vec<String>,
    /// Further names for them: each leads to one of `models`.
    #[garde(length(max = 50))]
    #[serde(default)]
    pub model_aliases: BTreeMap<String, String>,
    /// The model that answers when none is asked for; one of `models`, or another name for one.
    #[garde(length(chars, min = 1, max = 200))]
    pub default_model: String,
    /// Its place: the lowest answers first. Behind all others, or where it is, when left out.
    #[garde(skip)]
    #[serde(default)]
    pub position: Option<i32>,
    /// Whether it is lent at present; yes when left out.
    #[garde(skip)]
    #[serde(default)]
    pub enabled: Option<bool>,
}

/// A shared model, without its key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SharedModel {
    /// Its name.
    pub name: String,
    /// Who serves the models.
    pub provider: String,
    /// The server's address.
    pub base_url: String,
    /// The key's last four characters, `…abcd`.
    pub api_key: String,
    /// The models it is lent for.
    pub models: Vec<String>,
    /// Further names for them.
    pub model_aliases: BTreeMap<String, String>,
    /// The model that answers when none is asked for.
    pub default_model: String,
    /// Its place: the lowest answers first.
    pub position: i32,
    /// Whether it is lent at present.
    pub enabled: bool,
    /// When it was last set.
    pub updated_at: DateTime<Utc>,
}

/// All shared models.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SharedModelList {
    /// In the order in which they answer.
    pub items: Vec<SharedModel>,
}
