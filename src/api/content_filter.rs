//! What is masked in a tenant's answers, as its settings say it.

use garde::Validate;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// What is masked in every answer, before anybody sees it and before it is stored. All of it is off unless it is switched
/// on. Read as leniently as the other settings; a request's is not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Validate, ToSchema)]
#[serde(default)]
pub struct ContentFilterSettings {
    /// Payment cards' numbers become `[card number]`.
    #[garde(skip)]
    pub card_numbers: bool,
    /// E-mail addresses become `[e-mail address]`.
    #[garde(skip)]
    pub email_addresses: bool,
    /// Telephone numbers become `[phone number]`.
    #[garde(skip)]
    pub phone_numbers: bool,
    /// Patterns of the tenant's own, 20 at most.
    #[garde(length(max = 20), dive)]
    pub patterns: Vec<FilterPattern>,
}

/// A pattern of the tenant's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Validate, ToSchema)]
pub struct FilterPattern {
    /// What it finds, for example `employee number`.
    #[garde(length(chars, min = 1, max = 50), pattern(r"^[\p{L}\p{N}][\p{L}\p{N} _.-]*$"))]
    pub name: String,
    /// A regular expression in the syntax of Rust's `regex`. It must not match an empty text, nor one of more than 256
    /// characters.
    #[garde(length(chars, min = 1, max = 1_000))]
    pub pattern: String,
    /// What stands in the place of a match; the name in brackets if it is left out.
    #[garde(inner(length(chars, min = 1, max = 100)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<String>,
}

/// [`ContentFilterSettings`] as people write them: a field that does not belong there is refused.
#[derive(Deserialize)]
#[serde(remote = "ContentFilterSettings", default = "ContentFilterSettings::default", deny_unknown_fields)]
pub(super) struct StrictContentFilter {
    card_numbers: bool,
    email_addresses: bool,
    phone_numbers: bool,
    #[serde(deserialize_with = "strict_patterns")]
    patterns: Vec<FilterPattern>,
}

#[derive(Deserialize)]
#[serde(remote = "FilterPattern", deny_unknown_fields)]
struct StrictPattern {
    name: String,
    pattern: String,
    #[serde(default)]
    replacement: Option<String>,
}

fn strict_patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<FilterPattern>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(with = "StrictPattern")] FilterPattern);
    Ok(Vec::<Strict>::deserialize(deserializer)?.into_iter().map(|Strict(pattern)| pattern).collect())
}

pub(super) fn strict<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ContentFilterSettings>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(with = "StrictContentFilter")] ContentFilterSettings);
    Ok(Option::<Strict>::deserialize(deserializer)?.map(|Strict(filter)| filter))
}
