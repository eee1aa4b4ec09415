//! What a tenant's model calls have used, and what they cost.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// What calls are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageGroupBy {
    /// The day they began, in UTC.
    #[default]
    Day,
    /// The name of the model that was asked for.
    Model,
    /// The user.
    User,
    /// The API key.
    ApiKey,
    /// The kind: `chat`, `completion`, `embedding` or `routing`.
    Kind,
}

/// The query of `GET /api/v1/usage`.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct UsageQuery {
    /// Calls that began then or later; 30 days before `to` when left out.
    pub from: Option<DateTime<Utc>>,
    /// Calls that began before; now when left out. At most 400 days after `from`.
    pub to: Option<DateTime<Utc>>,
    /// What they are counted by; `day` when left out.
    #[serde(default)]
    pub group_by: UsageGroupBy,
}

/// `GET /api/v1/usage`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageReport {
    /// Calls that began then or later,
    pub from: DateTime<Utc>,
    /// and before.
    pub to: DateTime<Utc>,
    /// What they are counted by.
    pub group_by: UsageGroupBy,
    /// Each group, by its key.
    pub items: Vec<UsageGroup>,
    /// All of them together.
    pub total: UsageSums,
}

/// The calls that have something in common.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageGroup {
    /// What: a day such as `2026-11-21`, a model, an id or a kind. Null where they have none, as calls without a user.
    pub key: Option<String>,
    /// Their sums.
    #[serde(flatten)]
    pub sums: UsageSums,
}

/// Sums of calls.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UsageSums {
    /// How many; each attempt counts by itself.
    pub calls: i64,
    /// Those still under way. Their tokens are not counted yet.
    pub started: i64,
    /// Those that ended well.
    pub succeeded: i64,
    /// Those whose provider failed.
    pub failed: i64,
    /// Those that somebody left or stopped.
    pub cancelled: i64,
    /// Those that the server did not bring to an end.
    pub interrupted: i64,
    /// Those whose tokens are estimated, for the provider did not report them.
    pub estimated: i64,
    /// Those that used tokens for which the price list has no price.
    pub unpriced: i64,
    /// Tokens of the prompts.
    pub input_tokens: i64,
    /// Tokens of the answers.
    pub output_tokens: i64,
    /// Those of the prompts that the provider had in its cache; part of `input_tokens`.
    pub cached_input_tokens: i64,
    /// What they cost, in millionths of each currency's unit: `{"USD": 1234}`.
    pub cost_micros: BTreeMap<String, i64>,
}

/// `GET /api/v1/quota`. A visitor is told of its own questions, and everybody else of the tenant's.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Quota {
    /// The tenant's plan; absent for visitors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// In any minute; absent for visitors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<QuotaMinute>,
    /// In this calendar month, in UTC; absent for visitors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_this_month: Option<QuotaPeriod>,
    /// What the visitor who asks may ask today, in UTC; absent for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions_today: Option<QuotaPeriod>,
}

/// Requests in any minute.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QuotaMinute {
    /// How many; null if there is no limit.
    pub limit: Option<u32>,
    /// How many are left now; null if there is no limit.
    pub remaining: Option<u32>,
}

/// Requests in a month, or a day.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QuotaPeriod {
    /// How many; null if there is no limit.
    pub limit: Option<u64>,
    /// How many were answered; null if there is no limit.
    pub used: Option<u64>,
    /// How many are left; null if there is no limit.
    pub remaining: Option<u64>,
    /// When the next one begins.
    pub resets_at: DateTime<Utc>,
}

/// A page of calls.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ModelCallPage {
    /// Newest first.
    pub items: Vec<ModelCall>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// One attempt to call a model.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ModelCall {
    /// Its id.
    pub id: Uuid,
    /// `chat`, `completion`, `embedding`, or `routing`: finding out which assistant a question belongs to.
    pub kind: String,
    /// The user it was made for.
    pub user_id: Option<Uuid>,
    /// The API key it was made with.
    pub api_key_id: Option<Uuid>,
    /// The message that holds its answer.
    pub message_id: Option<Uuid>,
    /// The provider's kind.
    pub provider: String,
    /// The name of the AI key.
    pub ai_key: String,
    /// The name of the model that was asked for.
    pub model: String,
    /// The provider's own name of it.
    pub upstream_model: String,
    /// Whose key paid: `own` or `shared`.
    pub billed_to: String,
    /// `started`, `succeeded`, `failed`, `cancelled` or `interrupted`.
    pub state: String,
    /// Why it did not end well, as a stable code.
    pub error_code: Option<String>,
    /// Tokens of the prompt; an estimate while it is under way.
    pub input_tokens: Option<i64>,
    /// Tokens of the answer; an estimate of those so far, now and then, while it is under way.
    pub output_tokens: Option<i64>,
    /// Those of the prompt that the provider had in its cache.
    pub cached_input_tokens: Option<i64>,
    /// Whether the provider reported the tokens; else they are estimated.
    pub usage_reported: Option<bool>,
    /// What it cost, in millionths; null if the price list has no price.
    pub cost_micros: Option<i64>,
    /// The currency of that.
    pub currency: Option<String>,
    /// Whether the answer came from a cache.
    pub cached: bool,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// Milliseconds until something was delivered.
    pub first_token_ms: Option<i32>,
    /// Milliseconds until it ended.
    pub latency_ms: Option<i32>,
}
