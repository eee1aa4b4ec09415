//! A tenant's API keys: what its programs call the OpenAI-compatible endpoint with.

use std::fmt;

use chrono::{DateTime, Utc};
use garde::Validate;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// What an API key may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApiKeyScope {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// `GET /v1/models`.
    Models,
}

impl ApiKeyScope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Embeddings, Self::Models];

    /// The name in the database and in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Embeddings => "embeddings",
            Self::Models => "models",
        }
    }

    /// Reads the name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

/// `POST /api/v1/api-keys`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateApiKeyRequest {
    /// What the key is for, in words.
    #[garde(length(chars, min = 1, max = 100), pattern(r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"))]
    pub name: String,
    /// What it may be used for; everything when left out.
    #[garde(inner(length(min = 1, max = 3)))]
    #[serde(default)]
    pub scopes: Option<Vec<ApiKeyScope>>,
    /// When it stops working; never when left out.
    #[garde(skip)]
    #[serde(default)]
    pub expires_at: Option<DateTime<Utc>>,
}

/// An API key, without the key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiKey {
    /// Its id.
    pub id: Uuid,
    /// What it is for, in words.
    pub name: String,
    /// The token's last four characters, `…abcd`.
    pub hint: String,
    /// What it may be used for.
    pub scopes: Vec<ApiKeyScope>,
    /// The user who made it, unless that account was deleted.
    pub created_by: Option<Uuid>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops working, if ever.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A key that was just made.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedApiKey {
    /// The key.
    #[serde(flatten)]
    pub key: ApiKey,
    /// The token itself, `fh_…`. It is shown this once.
    pub token: String,
}

impl fmt::Debug for CreatedApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreatedApiKey").field("key", &self.key).finish_non_exhaustive()
    }
}

/// A page of API keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyPage {
    /// Oldest first, revoked and expired ones included.
    pub items: Vec<ApiKey>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_stored_as_serde_writes_them() {
        for scope in ApiKeyScope::ALL {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
            assert_eq!(ApiKeyScope::parse(scope.as_str()), Some(scope));
        }
        assert_eq!(ApiKeyScope::parse("Chat"), None);
    }

    #[test]
    fn names_are_one_line_of_text() {
        let name = |name: &str| CreateApiKeyRequest { name: name.to_owned(), scopes: None, expires_at: None };
        assert!(name("Nightly report").validate().is_ok());
        for bad in ["", " ", "a\nb", "a\0b", &"x".repeat(101)] {
            assert!(name(bad).validate().is_err(), "{bad:?}");
        }
        let none = CreateApiKeyRequest { scopes: Some(Vec::new()), ..name("a") };
        assert!(none.validate().is_err());
    }
}
