//! What a tenant's calls have used, for its admin.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use thiserror::Error;
use uuid::Uuid;

use super::tenant_store;
use crate::ids::ModelCallId;
use crate::tenant_db::{TenantDb, TenantDbError};

/// Why usage could not be read.
#[derive(Debug, Error)]
pub enum MeteringError {
    /// No connection to the tenant's database could be had.
    #[error("the tenant's database could not be had")]
    TenantDb(#[from] TenantDbError),
    /// The tenant's database refused a statement.
    #[error("the tenant's database refused a statement")]
    Database(#[from] tokio_postgres::Error),
}

/// What calls are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBy {
    /// The day they began, in UTC.
    Day,
    /// The name of the model that was asked for.
    Model,
    /// The user.
    User,
    /// The API key.
    ApiKey,
    /// The kind of call.
    Kind,
}

impl GroupBy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Model => "model",
            Self::User => "user",
            Self::ApiKey => "api_key",
            Self::Kind => "kind",
        }
    }
}

/// Sums of calls of one group and one currency, as read.
#[derive(Debug, Clone, Default)]
pub(super) struct UsageRow {
    pub(super) key: Option<String>,
    pub(super) currency: Option<String>,
    pub(super) calls: i64,
    pub(super) started: i64,
    pub(super) succeeded: i64,
    pub(super) failed: i64,
    pub(super) cancelled: i64,
    pub(super) interrupted: i64,
    pub(super) estimated: i64,
    pub(super) unpriced: i64,
    pub(super) input_tokens: i64,
    pub(super) output_tokens: i64,
    pub(super) cached_input_tokens: i64,
    pub(super) cost_micros: i64,
}

/// Sums of calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageGroup {
    /// What they have in common; none where they have no such thing, as calls without a user.
    pub key: Option<String>,
    /// How many, each attempt counted by itself.
    pub calls: i64,
    /// Those still under way. Their tokens are not counted yet.
    pub started: i64,
    /// Those that ended well.
    pub succeeded: i64,
    /// Those whose provider failed.
    pub failed: i64,
    /// Those that were left or stopped.
    pub cancelled: i64,
    /// Those that our server did not bring to an end.
    pub interrupted: i64,
    /// Those whose tokens are estimated.
    pub estimated: i64,
    /// Those that used tokens for which there is no price.
    pub unpriced: i64,
    /// Tokens of the prompts.
    pub input_tokens: i64,
    /// Tokens of the answers.
    pub output_tokens: i64,
    /// Those of the prompts that the provider had in a cache.
    pub cached_input_tokens: i64,
    /// In millionths, by currency.
    pub cost_micros: BTreeMap<String, i64>,
}

impl UsageGroup {
    fn add(&mut self, row: &UsageRow) {
        self.calls += row.calls;
        self.started += row.started;
        self.succeeded += row.succeeded;
        self.failed += row.failed;
        self.cancelled += row.cancelled;
        self.interrupted += row.interrupted;
        self.estimated += row.estimated;
        self.unpriced += row.unpriced;
        self.input_tokens += row.input_tokens;
        self.output_tokens += row.output_tokens;
        self.cached_input_tokens += row.cached_input_tokens;
        if let Some(currency) = &row.currency {
            *self.cost_micros.entry(currency.clone()).or_default() += row.cost_micros;
        }
    }
}

/// What the calls of a time have used.
#[derive(Debug, Clone)]
pub struct UsageReport {
    /// Each group, by its key.
    pub groups: Vec<UsageGroup>,
    /// All of them together.
    pub total: UsageGroup,
}

impl UsageReport {
    fn of(rows: &[UsageRow]) -> Self {
        let mut groups: Vec<UsageGroup> = Vec::new();
        let mut total = UsageGroup::default();
        for row in rows {
            total.add(row);
            match groups.last_mut() {
                Some(last) if last.key == row.key => last.add(row),
                _ => {
                    let mut group = UsageGroup { key: row.key.clone(), ..UsageGroup::default() };
                    group.add(row);
                    groups.push(group);
                }
            }
        }
        Self { groups, total }
    }
}

/// A call as the ledger has it.
#[derive(Debug, Clone)]
pub struct ModelCallRow {
    /// Its id.
    pub id: ModelCallId,
    /// What kind of call it is.
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
    pub configuration: String,
    /// The model that was asked for.
    pub model: String,
    /// The provider's own name of it.
    pub upstream_model: String,
    /// Whose key paid.
    pub billed_to: String,
    /// How it ended; `started` while it has not.
    pub state: String,
    /// Why, if not well.
    pub error_code: Option<String>,
    /// Tokens of the prompt.
    pub input_tokens: Option<i64>,
    /// Tokens of the answer.
    pub output_tokens: Option<i64>,
    /// Those of the prompt that the provider had in a cache.
    pub cached_input_tokens: Option<i64>,
    /// Whether the provider counted them.
    pub usage_reported: Option<bool>,
    /// What they cost, in millionths.
    pub cost_micros: Option<i64>,
    /// Of what.
    pub currency: Option<String>,
    /// Whether the answer came from a cache.
    pub cached: bool,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How long until something was delivered.
    pub first_token_ms: Option<i32>,
    /// How long it took.
    pub latency_ms: Option<i32>,
}

/// Some calls, newest first.
pub type CallPage = Vec<ModelCallRow>;

/// Reads usage.
#[derive(Debug, Clone, Copy)]
pub struct UsageReader;

impl UsageReader {
    /// What the calls have used that began from one time on and before another.
    ///
    /// # Errors
    /// If the tenant's database fails.
    pub async fn report(
        self,
        db: &TenantDb,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        group_by: GroupBy,
    ) -> Result<UsageReport, MeteringError> {
        let client = db.client().await?;
        let rows = tenant_store::usage(&client, from, to, group_by.as_str()).await?;
        Ok(UsageReport::of(&rows))
    }

    /// At most `limit` calls before one, newest first.
    ///
    /// # Errors
    /// If the tenant's database fails.
    pub async fn calls(
        self,
        db: &TenantDb,
        before: Option<ModelCallId>,
        limit: usize,
    ) -> Result<CallPage, MeteringError> {
        let client = db.client().await?;
        Ok(tenant_store::calls(&client, before, i64::try_from(limit).unwrap_or(i64::MAX)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn currencies_of_one_group_are_apart_and_its_calls_together() {
        let row = |key: &str, currency: Option<&str>, calls, cost_micros| UsageRow {
            key: Some(key.to_owned()),
            currency: currency.map(str::to_owned),
            calls,
            cost_micros,
            ..UsageRow::default()
        };
        let rows = [
            row("a", Some("EUR"), 1, 10),
            row("a", Some("USD"), 2, 20),
            row("a", None, 3, 0),
            row("b", Some("USD"), 4, 5),
        ];
        let report = UsageReport::of(&rows);
        let seen: Vec<_> = report.groups.iter().map(|group| (group.key.as_deref(), group.calls)).collect();
        assert_eq!(seen, [(Some("a"), 6), (Some("b"), 4)]);
        let costs = |group: &UsageGroup| group.cost_micros.clone().into_iter().collect::<Vec<_>>();
        assert_eq!(costs(&report.groups[0]), [("EUR".to_owned(), 10), ("USD".to_owned(), 20)]);
        assert_eq!((report.total.calls, report.total.cost_micros["USD"]), (10, 25));
    }
}
