//! Calls whose server died before it could settle them.
//!
//! A call's row says which server makes it. Once that server is known not to run any more, nobody will settle the row,
//! and whoever finds it does: as interrupted, with an estimate. A server that was only taken for dead settles its call
//! all the same when it ends, and its word is the last one; there is one row either way.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tokio_postgres::Error;
use uuid::Uuid;

use super::ledger::Ledger;
use super::{estimate_tokens, tenant_store};
use crate::ids::{MessageId, ModelCallId};
use crate::providers::Usage;
use crate::tenant_db::Transaction;

/// How old a call is at least. Longer than a server may be silent before it is taken for dead.
const YOUNGEST: TimeDelta = TimeDelta::seconds(30);
/// How old a call of a server that runs has to be: longer than any call takes.
const LONGEST: TimeDelta = TimeDelta::hours(1);
/// The same while nobody knows which servers run.
const LONGEST_UNKNOWN: TimeDelta = TimeDelta::minutes(10);
/// How many are settled at once. What is left is found the next time.
const MOST: i64 = 5_000;

/// A call that nobody makes any more.
#[derive(Debug, Clone)]
pub struct Abandoned {
    /// Its id.
    pub id: ModelCallId,
    /// The server that made it.
    pub server_id: Uuid,
    /// The message that was to hold its answer.
    pub message_id: Option<MessageId>,
    pub(super) provider: String,
    pub(super) upstream_model: String,
    /// The estimate that was made when it began.
    pub(super) input_tokens: i64,
    /// What was noted of it meanwhile.
    pub(super) output_tokens: i64,
    pub(super) started_at: DateTime<Utc>,
}

/// What to look for.
pub(super) struct Search<'a> {
    pub(super) before: DateTime<Utc>,
    pub(super) long_before: DateTime<Utc>,
    /// The server that asks.
    pub(super) server_id: Uuid,
    /// The others that run, if that is known.
    pub(super) others: Option<&'a [Uuid]>,
    pub(super) limit: i64,
}

/// What is stored of such a call.
pub(super) struct Interrupted {
    pub(super) id: ModelCallId,
    pub(super) output_tokens: i64,
    pub(super) cost_micros: Option<i64>,
    pub(super) currency: Option<Arc<str>>,
}

impl Ledger {
    /// The calls in a tenant's database that nobody makes any more, locked until the transaction ends. `others` are the
    /// other servers that run, if that is known; of its own calls this one knows which go on.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn abandoned(
        &self,
        transaction: &Transaction<'_>,
        others: Option<&[Uuid]>,
        now: DateTime<Utc>,
    ) -> Result<Vec<Abandoned>, Error> {
        let search = Search {
            before: now - YOUNGEST,
            long_before: now - if others.is_some() { LONGEST } else { LONGEST_UNKNOWN },
            server_id: self.server_id(),
            others,
            limit: MOST,
        };
        let mut calls = tenant_store::abandoned(transaction, &search).await?;
        calls.retain(|call| call.server_id != self.server_id() || !self.is_open(call.id));
        Ok(calls)
    }

    /// Settles them as interrupted, with an estimate: the prompt's from when they began, the answer's from as many
    /// characters as were kept of it, or what was noted meanwhile. Returns how many were still open.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn interrupt(
        &self,
        transaction: &Transaction<'_>,
        calls: &[(Abandoned, usize)],
        now: DateTime<Utc>,
    ) -> Result<u64, Error> {
        let ends: Vec<_> = calls.iter().map(|(call, kept)| self.interrupted(call, *kept)).collect();
        tenant_store::interrupt(transaction, &ends, now).await
    }

    fn interrupted(&self, call: &Abandoned, kept: usize) -> Interrupted {
        let usage = Usage {
            input_tokens: call.input_tokens.unsigned_abs(),
            output_tokens: estimate_tokens(kept).max(call.output_tokens.unsigned_abs()),
            cached_input_tokens: 0,
            reported: false,
        };
        let cost = self.prices().cost_of(&call.provider, &call.upstream_model, call.started_at, &usage);
        Interrupted {
            id: call.id,
            output_tokens: i64::try_from(usage.output_tokens).unwrap_or(i64::MAX),
            cost_micros: cost,
            currency: cost.map(|_| self.prices().currency()),
        }
    }
}
