//! What a tenant may use: limits and features, as they are told and changed.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use garde::Validate;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a tenant may use, where it differs from the platform's settings and its plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantLimits {
    /// Connections to its database that each server may hold, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Requests in any minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<Limit>,
    /// Requests in any minute of each user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute_per_user: Option<Limit>,
    /// Requests in any minute of each API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute_per_api_key: Option<Limit>,
    /// Requests in a calendar month, in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_month: Option<Limit>,
    /// Features it has, or has not, whatever its plan says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<String, bool>,
}

/// Features that a plan or a tenant may have: `api` is the OpenAI-compatible endpoint, `embeddings` its embeddings,
/// `vision` images in questions.
pub const FEATURES: [&str; 3] = ["api", "embeddings", VISION];
/// The feature that images in questions need.
pub const VISION: &str = "vision";

/// A number, or `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Limit {
    /// So many.
    Of(u32),
    /// No limit.
    Unlimited(Unlimited),
}

/// The word for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unlimited {
    /// No limit.
    Unlimited,
}

impl Limit {
    /// No limit.
    pub const UNLIMITED: Self = Self::Unlimited(Unlimited::Unlimited);

    /// The number, none if there is no limit.
    pub fn number(self) -> Option<u32> {
        match self {
            Self::Of(number) => Some(number),
            Self::Unlimited(_) => None,
        }
    }
}

/// How a tenant's month stands, as its owner sees it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantMonth {
    /// How many requests the tenant may make in it; null if there is no limit.
    pub limit: Option<u64>,
    /// How many were answered; null if there is no limit, for then nobody counts.
    pub used: Option<u64>,
    /// When the next month begins.
    pub resets_at: DateTime<Utc>,
}

/// A limit of 0 would be a suspension under another name.
fn not_zero(limit: &Option<Option<Limit>>, _: &()) -> garde::Result {
    match limit {
        Some(Some(Limit::Of(0))) => Err(garde::Error::new("must be at least 1, or \"unlimited\"")),
        _ => Ok(()),
    }
}

fn known_features(features: &Option<BTreeMap<String, Option<bool>>>, _: &()) -> garde::Result {
    let mut names = features.iter().flat_map(BTreeMap::keys);
    match names.any(|name| !FEATURES.contains(&name.as_str())) {
        true => Err(garde::Error::new(format!("the features are: {}", FEATURES.join(", ")))),
        false => Ok(()),
    }
}

/// A change of what a tenant may use. What is left out stays as it is, and `null` takes a limit away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantLimitsChange {
    /// See [`TenantLimits::connections`], 1 to 1000.
    #[garde(inner(inner(range(min = 1, max = 1000))))]
    #[serde(default, deserialize_with = "super::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>)]
    pub connections: Option<Option<u32>>,
    /// See [`TenantLimits::requests_per_minute`]; `null` for what the plan says, as below.
    #[garde(custom(not_zero))]
    #[serde(default, deserialize_with = "super::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Limit>)]
    pub requests_per_minute: Option<Option<Limit>>,
    /// See [`TenantLimits::requests_per_minute_per_user`].
    #[garde(custom(not_zero))]
    #[serde(default, deserialize_with = "super::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Limit>)]
    pub requests_per_minute_per_user: Option<Option<Limit>>,
    /// See [`TenantLimits::requests_per_minute_per_api_key`].
    #[garde(custom(not_zero))]
    #[serde(default, deserialize_with = "super::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Limit>)]
    pub requests_per_minute_per_api_key: Option<Option<Limit>>,
    /// See [`TenantLimits::requests_per_month`].
    #[garde(custom(not_zero))]
    #[serde(default, deserialize_with = "super::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Limit>)]
    pub requests_per_month: Option<Option<Limit>>,
    /// See [`TenantLimits::features`]; those that are left out stay as they are.
    #[garde(custom(known_features))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<BTreeMap<String, Option<bool>>>,
}
