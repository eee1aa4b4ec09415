//! Rows that arrive while a write is under way go together in the next one: one statement, one commit, one connection.
//!
//! There is no timer. The first row is written at once by a task that ends when nothing waits any more; what comes
//! meanwhile makes the next batch. The busier the database, the larger the batches.
//!
//! A row that **begins** something is written or refused: who waits for it is told. A row that **settles** something is
//! kept and tried again while the database is away. What is **noted** in between is written behind them if that goes well,
//! and is no loss otherwise: of several notes of one thing the last one counts. Knows nothing of what the rows say.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio_util::task::TaskTracker;

use crate::ids::TenantId;
use crate::telemetry::causes;
use crate::tenant_db::TenantDbError;

/// Rows of one statement at most.
const BATCH: usize = 500;
/// Settling rows of a tenant that may wait for a database that is away. Beyond, they are given up, and found later as
/// abandoned.
const MOST_WAITING: usize = 20_000;
/// Waits before rows that settle something are tried again; the last one repeats. A database that is away is not
/// burdened by that: the tenant's breaker lets few attempts through.
const WAITS: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(2)];
/// How long they are tried.
const PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Where rows are written to.
pub(super) trait Sink: Send + Sync + 'static {
    /// A row.
    type Row: Send + Sync + 'static;
    /// What whoever begins something holds from then on. Dropping it must be as good as settling it.
    type Begun: Send + 'static;
    /// What a row is about.
    type Key: Eq + Hash + Send + 'static;

    /// Writes all of them in one transaction, or none; there may be none. Rows that settle something may have been written
    /// before.
    fn write(&self, rows: &[Entry<Self>]) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Writes notes, or does not. One of something that was settled before changes nothing.
    fn note(&self, rows: Vec<Self::Row>) -> impl Future<Output = ()> + Send;

    /// A row was written that begins something.
    fn begun(&self, row: Self::Row) -> Self::Begun;

    /// Nobody knows whether a row was written that begins something, and what it begins will not happen: the row that
    /// settles it.
    fn not_begun(&self, row: Self::Row) -> Self::Row;
}

/// Why rows were not written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// None is there, and trying again may help.
    Away(TenantDbError),
    /// Nobody knows; trying again may help.
    Unknown(TenantDbError),
    /// None is there, and the same rows would be refused again.
    Refused(TenantDbError),
}

impl WriteError {
    fn cause(&self) -> &TenantDbError {
        match self {
            Self::Away(error) | Self::Unknown(error) | Self::Refused(error) => error,
        }
    }
}

/// A row and who waits for it.
pub(super) struct Entry<S: Sink + ?Sized> {
    pub(super) row: S::Row,
    waiter: Waiter<S::Begun>,
    /// Since when it is to be written.
    since: Instant,
}

impl<S: Sink + ?Sized> Entry<S> {
    fn new(row: S::Row, waiter: Waiter<S::Begun>) -> Self {
        Self { row, waiter, since: Instant::now() }
    }
}

enum Waiter<B> {
    Begin(oneshot::Sender<Result<B, TenantDbError>>),
    /// None once it was told that this may take a while.
    Settle(Option<oneshot::Sender<()>>),
}

/// The rows of one tenant. Cheap to clone.
pub(super) struct GroupCommit<S: Sink> {
    shared: Arc<Shared<S>>,
}

impl<S: Sink> Clone for GroupCommit<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<S: Sink> {
    sink: S,
    tenant: TenantId,
    tasks: TaskTracker,
    state: Mutex<State<S>>,
    /// Somebody wants to begin while settling rows wait for the database.
    wake: Notify,
}

struct State<S: Sink> {
    waiting: VecDeque<Entry<S>>,
    notes: HashMap<S::Key, S::Row>,
    /// Whether a task is at work, which takes whatever waits.
    writing: bool,
}

impl<S: Sink> GroupCommit<S> {
    pub(super) fn new(sink: S, tenant: TenantId, tasks: TaskTracker) -> Self {
        let state = Mutex::new(State { waiting: VecDeque::new(), notes: HashMap::new(), writing: false });
        Self { shared: Arc::new(Shared { sink, tenant, tasks, state, wake: Notify::new() }) }
    }

    /// Writes a row that begins something; what comes of it is sent. If nobody receives it, it is dropped, and with
    /// that settled.
    pub(super) fn begin(&self, row: S::Row) -> oneshot::Receiver<Result<S::Begun, TenantDbError>> {
        let (sender, receiver) = oneshot::channel();
        self.push(Entry::new(row, Waiter::Begin(sender)));
        self.shared.wake.notify_one();
        receiver
    }

    /// Writes a row that settles something, whether or not anybody waits. It is sent when it is written; the channel
    /// closes when that may take a while.
    pub(super) fn settle(&self, row: S::Row) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.push(Entry::new(row, Waiter::Settle(Some(sender))));
        receiver
    }

    /// The same for one row that settles and one that begins: they are in one transaction.
    pub(super) fn settle_and_begin(
        &self,
        settled: S::Row,
        begun: S::Row,
    ) -> oneshot::Receiver<Result<S::Begun, TenantDbError>> {
        let (sender, receiver) = oneshot::channel();
        let settled = Entry::new(settled, Waiter::Settle(None));
        self.push_all([settled, Entry::new(begun, Waiter::Begin(sender))]);
        self.shared.wake.notify_one();
        receiver
    }

    /// Notes something about what was begun, sooner or later. Nobody hears what becomes of it.
    pub(super) fn note(&self, key: S::Key, row: S::Row) {
        let Ok(handle) = Handle::try_current() else { return };
        let mut state = self.shared.lock();
        state.notes.insert(key, row);
        self.start(state, &handle);
    }

    fn push(&self, entry: Entry<S>) {
        self.push_all([entry]);
    }

    fn push_all<const N: usize>(&self, entries: [Entry<S>; N]) {
        // Something may be dropped when nothing runs any more.
        let Ok(handle) = Handle::try_current() else { return };
        let mut state = self.shared.lock();
        if state.waiting.len() + N > MOST_WAITING {
            drop(state);
            tracing::error!(tenant_id = %self.shared.tenant, "too many calls wait to be settled; one is left open");
            return;
        }
        state.waiting.extend(entries);
        self.start(state, &handle);
    }

    /// Sees to it that a task is at work, now that there is something to write.
    fn start(&self, mut state: MutexGuard<'_, State<S>>, handle: &Handle) {
        let idle = !std::mem::replace(&mut state.writing, true);
        drop(state);
        if idle {
            self.shared.tasks.spawn_on(Arc::clone(&self.shared).write_all(), handle);
        }
    }

    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.shared.lock().waiting.len()
    }
}

/// Says that the task is at work no more, however it ends.
struct Working<'a, S: Sink>(&'a Shared<S>);

impl<S: Sink> Drop for Working<'_, S> {
    fn drop(&mut self) {
        self.0.lock().writing = false;
    }
}

impl<S: Sink> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write_all(self: Arc<Self>) {
        let working = Working(&*self);
        // Rows that settle something and could not be written so far.
        let mut held = Vec::new();
        let mut failures = 0;
        loop {
            let mut batch = std::mem::take(&mut held);
            let notes = {
                let mut state = self.lock();
                let count = BATCH.saturating_sub(batch.len()).min(state.waiting.len());
                batch.extend(state.waiting.drain(..count));
                if batch.is_empty() && state.notes.is_empty() {
                    // Under the same lock: whoever pushes from now on finds nobody at work.
                    state.writing = false;
                    drop(state);
                    std::mem::forget(working);
                    return;
                }
                std::mem::take(&mut state.notes)
            };
            let rows = batch.len();
            match self.sink.write(&batch).await {
                Ok(()) => batch.into_iter().for_each(|entry| self.written(entry)),
                Err(WriteError::Refused(error)) if rows > 1 => {
                    tracing::warn!(tenant_id = %self.tenant, rows, causes = causes(&error), "write calls; one by one");
                    for entry in batch {
                        match self.sink.write(std::slice::from_ref(&entry)).await {
                            Ok(()) => self.written(entry),
                            Err(error) => held.extend(self.failed(entry, &error)),
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(tenant_id = %self.tenant, rows, causes = causes(error.cause()), "write calls");
                    held = batch.into_iter().filter_map(|entry| self.failed(entry, &error)).collect();
                    if !matches!(error, WriteError::Refused(_)) {
                        self.refuse_beginners(&error);
                    }
                }
            }
            let tried = held.len();
            held.retain(|entry| entry.since.elapsed() < PATIENCE);
            if held.len() < tried {
                tracing::error!(tenant_id = %self.tenant, calls = tried - held.len(), "calls could not be settled");
            }
            if held.is_empty() {
                failures = 0;
                if !notes.is_empty() {
                    self.sink.note(notes.into_values().collect()).await;
                }
                continue;
            }
            let wait = WAITS.get(failures).or(WAITS.last()).copied().unwrap_or_default();
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    fn written(&self, entry: Entry<S>) {
        match entry.waiter {
            // Where nobody waits any more this drops what was begun.
            Waiter::Begin(sender) => drop(sender.send(Ok(self.sink.begun(entry.row)))),
            Waiter::Settle(Some(sender)) => drop(sender.send(())),
            Waiter::Settle(None) => {}
        }
    }

    /// Tells who waits. What is left to be tried again is returned.
    fn failed(&self, entry: Entry<S>, error: &WriteError) -> Option<Entry<S>> {
        let Entry { row, waiter, since } = entry;
        match (waiter, error) {
            (Waiter::Begin(sender), error) => {
                drop(sender.send(Err(again(error.cause()))));
                matches!(error, WriteError::Unknown(_)).then(|| Entry {
                    row: self.sink.not_begun(row),
                    waiter: Waiter::Settle(None),
                    since,
                })
            }
            (Waiter::Settle(_), WriteError::Refused(error)) => {
                tracing::warn!(tenant_id = %self.tenant, causes = causes(error), "a call could not be settled");
                None
            }
            (Waiter::Settle(_), _) => Some(Entry { row, waiter: Waiter::Settle(None), since }),
        }
    }

    /// Nobody waits for a database that is away in order to begin something.
    fn refuse_beginners(&self, error: &WriteError) {
        let mut refused = Vec::new();
        {
            let mut state = self.lock();
            for entry in std::mem::take(&mut state.waiting) {
                match entry.waiter {
                    Waiter::Begin(sender) => refused.push(sender),
                    Waiter::Settle(_) => state.waiting.push_back(entry),
                }
            }
        }
        for sender in refused {
            drop(sender.send(Err(again(error.cause()))));
        }
    }
}

/// The same error for the next one who is told of it.
fn again(error: &TenantDbError) -> TenantDbError {
    match error {
        TenantDbError::NotActive => TenantDbError::NotActive,
        TenantDbError::Suspended => TenantDbError::Suspended,
        TenantDbError::Deleting => TenantDbError::Deleting,
        TenantDbError::SchemaTooOld => TenantDbError::SchemaTooOld,
        TenantDbError::SchemaTooNew => TenantDbError::SchemaTooNew,
        TenantDbError::NoConnectionFree { retry_after } => {
            TenantDbError::NoConnectionFree { retry_after: *retry_after }
        }
        TenantDbError::CircuitOpen { retry_after } => TenantDbError::CircuitOpen { retry_after: *retry_after },
        TenantDbError::Unreachable(_) | TenantDbError::Platform(_) => {
            TenantDbError::Unreachable(anyhow::anyhow!("the ledger could not be written"))
        }
        TenantDbError::Sealed => TenantDbError::Sealed,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Notes each batch. Writes once there is a permit.
    #[derive(Default)]
    struct Fake {
        batches: Mutex<Vec<Vec<i32>>>,
        away: AtomicUsize,
        unknown: AtomicUsize,
    }

    struct Paced {
        fake: Arc<Fake>,
        permits: Arc<Semaphore>,
    }

    fn one_less(count: &AtomicUsize) -> bool {
        count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }

    fn away() -> TenantDbError {
        TenantDbError::Unreachable(anyhow::anyhow!("away"))
    }

    impl Sink for Paced {
        type Row = i32;
        type Begun = i32;
        type Key = i32;

        async fn note(&self, mut rows: Vec<i32>) {
            rows.sort_unstable();
            self.fake.batches.lock().unwrap().push(rows.into_iter().map(|row| row + 1_000_000).collect());
        }

        async fn write(&self, rows: &[Entry<Self>]) -> Result<(), WriteError> {
            if rows.is_empty() {
                return Ok(());
            }
            self.permits.acquire().await.unwrap().forget();
            if one_less(&self.fake.away) {
                return Err(WriteError::Away(away()));
            }
            if one_less(&self.fake.unknown) {
                return Err(WriteError::Unknown(away()));
            }
            let rows: Vec<_> = rows.iter().map(|entry| entry.row).collect();
            if rows.contains(&13) {
                return Err(WriteError::Refused(away()));
            }
            self.fake.batches.lock().unwrap().push(rows);
            Ok(())
        }

        fn begun(&self, row: i32) -> i32 {
            row
        }

        fn not_begun(&self, row: i32) -> i32 {
            -row
        }
    }

    fn paced() -> (GroupCommit<Paced>, Arc<Fake>, Arc<Semaphore>) {
        let (fake, permits) = (Arc::new(Fake::default()), Arc::new(Semaphore::new(0)));
        let sink = Paced { fake: Arc::clone(&fake), permits: Arc::clone(&permits) };
        (GroupCommit::new(sink, TenantId::new(), TaskTracker::new()), fake, permits)
    }

    async fn idle(group: &GroupCommit<Paced>) {
        while group.shared.lock().writing {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_comes_during_a_write_goes_together_in_the_next() {
        let (group, fake, permits) = paced();
        let first = group.begin(1);
        // Once the task has taken the first, it waits for its permit.
        while group.waiting() > 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (2..=9).map(|row| group.begin(row)).collect();
        let settled = group.settle(10);
        permits.add_permits(100);
        assert_eq!(first.await.unwrap().unwrap(), 1);
        for (receiver, row) in others.into_iter().zip(2..) {
            assert_eq!(receiver.await.unwrap().unwrap(), row);
        }
        settled.await.unwrap();
        idle(&group).await;
        assert_eq!(*fake.batches.lock().unwrap(), [vec![1], (2..=10).collect()]);
        // The task has ended, and another one begins.
        assert_eq!(group.begin(11).await.unwrap().unwrap(), 11);
        assert_eq!(fake.batches.lock().unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_batch_has_a_bound() {
        let (group, fake, permits) = paced();
        for row in 100..100 + 2 * i32::try_from(BATCH).unwrap() {
            drop(group.settle(row));
        }
        permits.add_permits(10);
        idle(&group).await;
        let sizes: Vec<_> = fake.batches.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [BATCH, BATCH]);
    }

    #[tokio::test]
    async fn who_begins_is_refused_by_a_database_that_is_away_and_what_settles_is_tried_again() {
        let (group, fake, permits) = paced();
        fake.away.store(2, Ordering::SeqCst);
        permits.add_permits(100);
        let (settled, begun) = (group.settle(1), group.begin(2));
        assert!(begun.await.unwrap().is_err());
        // The channel is closed: nobody waits for a database that is away.
        assert!(settled.await.is_err());
        idle(&group).await;
        assert_eq!(*fake.batches.lock().unwrap(), [[1]]);
    }

    #[tokio::test]
    async fn a_beginning_that_nobody_knows_of_is_settled() {
        let (group, fake, permits) = paced();
        fake.unknown.store(1, Ordering::SeqCst);
        permits.add_permits(100);
        assert!(group.begin(5).await.unwrap().is_err());
        idle(&group).await;
        assert_eq!(*fake.batches.lock().unwrap(), [[-5]]);
    }

    #[tokio::test]
    async fn one_bad_row_fails_alone() {
        let (group, fake, permits) = paced();
        let receivers = [group.begin(1), group.begin(13), group.begin(2)];
        permits.add_permits(100);
        let mut results = Vec::new();
        for receiver in receivers {
            results.push(receiver.await.unwrap().ok());
        }
        assert_eq!(results, [Some(1), None, Some(2)]);
        assert_eq!(*fake.batches.lock().unwrap(), [[1], [2]]);
    }

    #[tokio::test]
    async fn notes_come_behind_what_begins_and_ends_and_only_the_last_of_each() {
        let (group, fake, permits) = paced();
        let begun = group.begin(1);
        while group.waiting() > 0 {
            tokio::task::yield_now().await;
        }
        for (key, note) in [(1, 10), (2, 20), (1, 11)] {
            group.note(key, note);
        }
        let settled = group.settle(2);
        permits.add_permits(100);
        begun.await.unwrap().unwrap();
        settled.await.unwrap();
        idle(&group).await;
        assert_eq!(*fake.batches.lock().unwrap(), [vec![1], vec![2], vec![1_000_011, 1_000_020]]);
        // Nothing else has to come for one to be written; and while the database is away it is not tried again.
        group.note(3, 30);
        idle(&group).await;
        assert_eq!(fake.batches.lock().unwrap().pop().unwrap(), [1_000_030]);
        fake.away.store(1, Ordering::SeqCst);
        let settled = group.settle(4);
        group.note(4, 40);
        assert!(settled.await.is_err());
        idle(&group).await;
        assert_eq!(fake.batches.lock().unwrap().pop().unwrap(), [4]);
    }

    #[tokio::test]
    async fn a_settled_attempt_and_its_successor_are_one_write() {
        let (group, fake, permits) = paced();
        permits.add_permits(1);
        assert_eq!(group.settle_and_begin(1, 2).await.unwrap().unwrap(), 2);
        assert_eq!(*fake.batches.lock().unwrap(), [[1, 2]]);
    }
}
