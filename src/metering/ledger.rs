//! A call from its row to its end.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use dashmap::{DashMap, DashSet};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::group_commit::{Entry, GroupCommit, Sink, WriteError};
use super::prices::Prices;
use super::{CallStart, CallState, Outcome, estimate_tokens, tenant_store};
use crate::clock::SharedClock;
use crate::ids::{ModelCallId, TenantId};
use crate::providers::Usage;
use crate::telemetry::causes;
use crate::tenant_db::{TenantDb, TenantDbError, is_outcome_unknown, is_statement_at_fault};

/// How long one write may take. A statement that needs one round trip and takes this long will not come back.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is noted at most how much a call has delivered.
const NOTED: Duration = Duration::from_secs(1);

/// Why a call ends that nobody said anything about.
const LEFT: &str = "caller_left";
/// Why a call ends that was never made, though its row may be there.
const NOT_STARTED: &str = "not_started";

/// Writes calls into tenants' databases. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    shared: Arc<Shared>,
}

struct Shared {
    server_id: Uuid,
    prices: Prices,
    clock: SharedClock,
    tasks: TaskTracker,
    queues: DashMap<TenantId, GroupCommit<Book>>,
    /// This server's calls that are not settled yet.
    open: DashSet<ModelCallId>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("tenants", &self.shared.queues.len()).finish_non_exhaustive()
    }
}

/// A call before its end. Dropped, it is settled as cancelled.
pub struct OpenCall {
    call: Arc<Call>,
    /// Whether the row is there, as far as is known.
    written: bool,
    /// Whether the provider was asked: before, nothing was used.
    asked: bool,
    first_token: Option<Duration>,
    characters: usize,
    /// How long it had been going on when it was last noted how much it had delivered.
    noted: Duration,
}

/// What does not change about a call.
pub(super) struct Call {
    pub(super) id: ModelCallId,
    pub(super) start: CallStart,
    pub(super) started_at: DateTime<Utc>,
    started: Instant,
    db: TenantDb,
    queue: GroupCommit<Book>,
    ledger: Arc<Shared>,
}

/// Everybody has let go of it: it is settled, or cannot be.
impl Drop for Call {
    fn drop(&mut self) {
        self.ledger.open.remove(&self.id);
    }
}

impl Call {
    pub(super) fn server_id(&self) -> Uuid {
        self.ledger.server_id
    }

    pub(super) fn estimated_input(&self) -> i64 {
        integer(estimate_tokens(self.start.prompt_characters))
    }
}

/// How a call ended, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// How.
    pub state: CallState,
    /// Why, if not well.
    pub error_code: Option<&'static str>,
    /// Counted or estimated; none if nothing is known to have been used.
    pub usage: Option<Usage>,
    /// In millionths; none without a price.
    pub cost_micros: Option<i64>,
    /// Of the price.
    pub currency: Option<Arc<str>>,
    /// From the row to the first thing delivered.
    pub first_token_ms: Option<i32>,
    /// From the row to the end.
    pub latency_ms: i32,
    /// When.
    pub settled_at: DateTime<Utc>,
}

impl End {
    /// Tokens of the prompt.
    pub fn input_tokens(&self) -> Option<i64> {
        self.usage.map(|usage| integer(usage.input_tokens))
    }

    /// Tokens of the answer.
    pub fn output_tokens(&self) -> Option<i64> {
        self.usage.map(|usage| integer(usage.output_tokens))
    }

    /// Those of the prompt that the provider had in a cache.
    pub fn cached_input_tokens(&self) -> Option<i64> {
        self.usage.map(|usage| integer(usage.cached_input_tokens))
    }

    /// Whether the provider counted.
    pub fn usage_reported(&self) -> Option<bool> {
        self.usage.map(|usage| usage.reported)
    }
}

/// A call with its end, to be stored together with something else. Dropped before [`EndedCall::stored`], the ledger
/// stores it.
pub struct EndedCall {
    call: Arc<Call>,
    end: End,
    stored: bool,
}

/// Resolves when a call is settled, or the database is away and it will be later.
#[derive(Debug)]
pub struct Settling(oneshot::Receiver<()>);

impl Future for Settling {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(drop)
    }
}

impl Ledger {
    /// A ledger for calls of this server, which has a new id each time it is started. Rows that are still to be written
    /// are among `tasks`.
    pub fn new(server_id: Uuid, prices: Prices, clock: SharedClock, tasks: TaskTracker) -> Self {
        Self {
            shared: Arc::new(Shared { server_id, prices, clock, tasks, queues: DashMap::new(), open: DashSet::new() }),
        }
    }

    /// The server whose calls these are.
    pub fn server_id(&self) -> Uuid {
        self.shared.server_id
    }

    /// Whether this server still has to settle a call.
    pub(super) fn is_open(&self, id: ModelCallId) -> bool {
        self.shared.open.contains(&id)
    }

    /// The prices.
    pub fn prices(&self) -> &Prices {
        &self.shared.prices
    }

    /// Forgets a tenant that is gone.
    pub fn forget(&self, tenant: TenantId) {
        self.shared.queues.remove(&tenant);
    }

    /// Writes the row of a call. Once this returns, the provider may be asked.
    ///
    /// # Errors
    /// If the tenant's database does not take it.
    pub async fn begin(&self, db: &TenantDb, start: CallStart) -> Result<OpenCall, TenantDbError> {
        let call = self.call(db, start);
        let receiver = call.queue.begin(Row::begins(&call));
        begun(receiver).await
    }

    /// Settles a call, and writes the row of the one that is made in its place, in one transaction.
    ///
    /// # Errors
    /// If the tenant's database does not take it. The first call is settled later then.
    pub async fn replace(
        &self,
        open: OpenCall,
        outcome: &Outcome,
        start: CallStart,
    ) -> Result<OpenCall, TenantDbError> {
        let mut ended = open.end(outcome);
        ended.stored = true;
        let settled = Row::ends(&ended.call, ended.end.clone());
        let next = self.call(&ended.call.db, start);
        let receiver = next.queue.settle_and_begin(settled, Row::begins(&next));
        begun(receiver).await
    }

    /// A call whose row somebody else writes, in a statement of their own: [`OpenCall::note_written`] says that it is
    /// there.
    pub fn open(&self, db: &TenantDb, start: CallStart) -> OpenCall {
        OpenCall::new(self.call(db, start), false)
    }

    fn call(&self, db: &TenantDb, start: CallStart) -> Arc<Call> {
        let tenant = db.record().id;
        let known = self.shared.queues.get(&tenant).map(|queue| queue.clone());
        let queue = known.unwrap_or_else(|| {
            let new = || GroupCommit::new(Book, tenant, self.shared.tasks.clone());
            self.shared.queues.entry(tenant).or_insert_with(new).clone()
        });
        let id = ModelCallId::new();
        self.shared.open.insert(id);
        Arc::new(Call {
            id,
            start,
            started_at: self.shared.clock.now(),
            started: Instant::now(),
            db: db.clone(),
            queue,
            ledger: Arc::clone(&self.shared),
        })
    }
}

async fn begun(receiver: oneshot::Receiver<Result<OpenCall, TenantDbError>>) -> Result<OpenCall, TenantDbError> {
    match receiver.await {
        Ok(begun) => begun,
        Err(lost) => Err(TenantDbError::Unreachable(lost.into())),
    }
}

impl fmt::Debug for OpenCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenCall").field("id", &self.call.id).finish_non_exhaustive()
    }
}

impl OpenCall {
    fn new(call: Arc<Call>, written: bool) -> Self {
        Self { call, written, asked: false, first_token: None, characters: 0, noted: Duration::ZERO }
    }

    /// Its id.
    pub fn id(&self) -> ModelCallId {
        self.call.id
    }

    /// What was known before it was made.
    pub fn start(&self) -> &CallStart {
        &self.call.start
    }

    /// When it began.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.call.started_at
    }

    /// The server that makes it.
    pub fn server_id(&self) -> Uuid {
        self.call.server_id()
    }

    /// The estimate of the prompt's tokens that its row has while it is under way.
    pub fn estimated_input(&self) -> i64 {
        self.call.estimated_input()
    }

    /// How long it has been going on.
    pub fn elapsed(&self) -> Duration {
        self.call.started.elapsed()
    }

    /// Its row is there.
    pub fn note_written(&mut self) {
        self.written = true;
    }

    /// The provider is about to be asked.
    pub fn note_asked(&mut self) {
        self.asked = true;
    }

    /// Something was delivered, of so many characters. How much it is by now is noted in its row now and then, in case this
    /// server dies; of an answer in a conversation there is more than that, for it is written down itself.
    pub fn delivered(&mut self, characters: usize) {
        let elapsed = self.call.started.elapsed();
        self.first_token.get_or_insert(elapsed);
        self.characters = self.characters.saturating_add(characters);
        if elapsed.saturating_sub(self.noted) >= NOTED && self.written && self.call.start.message_id.is_none() {
            self.noted = elapsed;
            let delivered = Some(integer(estimate_tokens(self.characters)));
            self.call.queue.note(self.call.id, Row { delivered, ..Row::begins(&self.call) });
        }
    }

    /// Ends it, for somebody who stores its end together with something else.
    pub fn end(mut self, outcome: &Outcome) -> EndedCall {
        self.written = false;
        EndedCall { call: Arc::clone(&self.call), end: self.ending(outcome), stored: false }
    }

    /// Settles it. This goes on whether or not anybody waits.
    pub fn settle(self, outcome: &Outcome) -> Settling {
        self.end(outcome).settle()
    }

    fn ending(&self, outcome: &Outcome) -> End {
        let start = &self.call.start;
        let usage = if self.asked { usage(outcome, start.prompt_characters, self.characters) } else { None };
        let prices = &self.call.ledger.prices;
        let cost = usage.and_then(|usage| prices.cost(&start.target, self.call.started_at, &usage));
        End {
            state: outcome.state,
            error_code: outcome.error_code,
            usage,
            cost_micros: cost,
            currency: cost.map(|_| prices.currency()),
            first_token_ms: self.first_token.map(milliseconds),
            latency_ms: milliseconds(self.call.started.elapsed()),
            settled_at: self.call.ledger.clock.now(),
        }
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        if self.written {
            let end = self.ending(&Outcome::ended(CallState::Cancelled, LEFT));
            drop(self.call.queue.settle(Row::ends(&self.call, end)));
        }
    }
}

impl fmt::Debug for EndedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndedCall").field("id", &self.call.id).field("end", &self.end).finish_non_exhaustive()
    }
}

impl EndedCall {
    /// Its id.
    pub fn id(&self) -> ModelCallId {
        self.call.id
    }

    /// How it ended.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// It is stored.
    pub fn stored(mut self) {
        self.stored = true;
    }

    /// Lets the ledger store it. This goes on whether or not anybody waits.
    pub fn settle(mut self) -> Settling {
        self.stored = true;
        self.write()
    }

    fn write(&self) -> Settling {
        Settling(self.call.queue.settle(Row::ends(&self.call, self.end.clone())))
    }
}

impl Drop for EndedCall {
    fn drop(&mut self) {
        if !self.stored {
            drop(self.write());
        }
    }
}

/// More tokens than any call has. A provider that counts more does not count, and what is summed up fits its type.
const MOST_TOKENS: u64 = 1_000_000_000;

/// What was used. What the provider counted counts as it is, zero included. Of a call that failed before it delivered
/// anything, nothing is known.
fn usage(outcome: &Outcome, prompt: usize, delivered: usize) -> Option<Usage> {
    let counted = outcome.usage.filter(|usage| {
        [usage.input_tokens, usage.output_tokens, usage.cached_input_tokens].iter().all(|count| *count <= MOST_TOKENS)
    });
    if counted.is_some() || (outcome.state == CallState::Failed && delivered == 0) {
        return counted;
    }
    Some(Usage {
        input_tokens: estimate_tokens(prompt),
        output_tokens: estimate_tokens(delivered),
        cached_input_tokens: 0,
        reported: false,
    })
}

fn integer(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// A call as it is written: without an end the row that begins it, with one the row that settles it.
pub(super) struct Row {
    pub(super) call: Arc<Call>,
    pub(super) end: Option<End>,
    /// Without an end, and if it was begun before: how many tokens it has delivered, as an estimate.
    pub(super) delivered: Option<i64>,
}

impl Row {
    fn begins(call: &Arc<Call>) -> Self {
        Self { call: Arc::clone(call), end: None, delivered: None }
    }

    fn ends(call: &Arc<Call>, end: End) -> Self {
        Self { call: Arc::clone(call), end: Some(end), delivered: None }
    }
}

/// The ledger's table.
pub(super) struct Book;

impl Sink for Book {
    type Row = Row;
    type Begun = OpenCall;
    type Key = ModelCallId;

    async fn write(&self, rows: &[Entry<Self>]) -> Result<(), WriteError> {
        // All are of one tenant; the last one's record is the newest.
        let Some(last) = rows.last() else { return Ok(()) };
        // Nothing was sent. That goes for a tenant that was suspended meanwhile, too: it may come back.
        let client = last.row.call.db.client().await.map_err(WriteError::Away)?;
        match timeout(WRITE_TIMEOUT, tenant_store::write(&client, rows.iter().map(|entry| &entry.row))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(judged(error)),
            Err(elapsed) => {
                // Not given back: whatever came next on it would wait for the statement that is given up here.
                client.discard();
                Err(WriteError::Unknown(TenantDbError::Unreachable(elapsed.into())))
            }
        }
    }

    async fn note(&self, rows: Vec<Row>) {
        let Some(last) = rows.last() else { return };
        let Ok(client) = last.call.db.client().await else { return };
        match timeout(WRITE_TIMEOUT, tenant_store::write(&client, rows.iter())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(causes = causes(&error), "note what calls have delivered"),
            Err(_) => client.discard(),
        }
    }

    fn begun(&self, row: Row) -> OpenCall {
        OpenCall::new(row.call, true)
    }

    fn not_begun(&self, row: Row) -> Row {
        let end = End {
            state: CallState::Failed,
            error_code: Some(NOT_STARTED),
            usage: None,
            cost_micros: None,
            currency: None,
            first_token_ms: None,
            latency_ms: milliseconds(row.call.started.elapsed()),
            settled_at: row.call.ledger.clock.now(),
        };
        Row { end: Some(end), ..row }
    }
}

/// What a refusal or a broken connection means.
fn judged(error: tokio_postgres::Error) -> WriteError {
    let unknown = is_outcome_unknown(&error);
    let refused = is_statement_at_fault(&error);
    let cause = TenantDbError::Unreachable(error.into());
    if unknown {
        WriteError::Unknown(cause)
    } else if refused {
        WriteError::Refused(cause)
    } else {
        WriteError::Away(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(reported: bool) -> Usage {
        Usage { input_tokens: 0, output_tokens: 0, cached_input_tokens: 0, reported }
    }

    #[test]
    fn what_is_reported_counts_and_zero_is_a_number() {
        let zero = Some(counted(true));
        assert_eq!(usage(&Outcome::succeeded(zero), 400, 400), zero);
    }

    #[test]
    fn without_a_report_tokens_are_estimated_and_marked() {
        let estimated = usage(&Outcome::succeeded(None), 400, 40).unwrap();
        assert_eq!((estimated.input_tokens, estimated.output_tokens, estimated.reported), (100, 10, false));
        let left = usage(&Outcome::ended(CallState::Cancelled, LEFT), 400, 0).unwrap();
        assert_eq!((left.input_tokens, left.output_tokens), (100, 0));
    }

    #[test]
    fn what_no_call_can_use_is_no_count() {
        let absurd = Usage { output_tokens: u64::MAX, ..counted(true) };
        let estimated = usage(&Outcome::succeeded(Some(absurd)), 400, 40).unwrap();
        assert_eq!((estimated.output_tokens, estimated.reported), (10, false));
    }

    #[test]
    fn a_failure_before_anything_was_delivered_used_nothing_that_is_known() {
        let failed = Outcome::ended(CallState::Failed, "provider_unavailable");
        assert_eq!(usage(&failed, 400, 0), None);
        assert!(usage(&failed, 400, 1).is_some());
    }
}
