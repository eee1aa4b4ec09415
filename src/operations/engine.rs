//! Carries operations out: takes them over, runs or undoes their steps, notes how far they are.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use graphile_worker::{IntoTaskHandlerResult, TaskHandler, WorkerContext, WorkerOptions};
use serde::{Deserialize, Serialize};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use sqlx::{Connection, PgConnection, Postgres};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::store::{self, Taken};
use super::{Definition, OperationState, Outcome, SettleFuture, Step, StepContext, StepError, StepFuture, StepState};
use crate::clock::SharedClock;
use crate::ids::OperationId;
use crate::telemetry::causes;

/// How often a step is tried before it counts as failed: for about a quarter of a minute.
const TRIES: u32 = 8;
/// How often its undoing is tried, for that calls for a person: for more than a minute, which a restarting cluster
/// may take.
const UNDO_TRIES: u32 = 20;
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause before the second try; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// How long whoever runs an operation waits for its lock while another worker holds it.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// How long a job waits for it: as long as a killed worker's connection may take to end. It occupies one of few slots.
const JOB_LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// When a job that has not got it looks again. Most likely the other worker is well, and it will find nothing to do.
const LOOK_AGAIN: TimeDelta = TimeDelta::seconds(10);
/// How often it looks whether the lock is free. Polling, for a blocked wait would hold a snapshot open.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// How long a step that waits lies in the queue, at least and at most: whatever was asked, it is looked at again by
/// then, for clocks differ and may be set.
const SHORTEST_WAIT: TimeDelta = TimeDelta::milliseconds(200);
const LONGEST_WAIT: TimeDelta = TimeDelta::minutes(10);

/// Whether a step is carried out or taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Carried out.
    Run,
    /// Taken back.
    Undo,
}

/// On which side of a step's work a checkpoint lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The step is noted as begun, and nothing of it is done.
    Before,
    /// All of it is done, and nothing of that is noted.
    After,
}

/// A place at which a worker may die and leave the most doubtful state behind.
#[derive(Debug, Clone, Copy)]
pub struct Checkpoint {
    /// The operation's kind.
    pub kind: &'static str,
    /// The step.
    pub step: &'static str,
    /// Which way it goes.
    pub direction: Direction,
    /// Before or after its work.
    pub moment: Moment,
}

/// What a probe wants to happen at a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointAction {
    /// Go on.
    Continue,
    /// Do the step's work once more.
    Repeat,
    /// Take the step as failed for good.
    Fail,
}

/// Called at every checkpoint. The server has none; the crash tests kill the process from inside it.
pub type Probe = Arc<dyn Fn(&Checkpoint) -> CheckpointAction + Send + Sync>;

/// Why a run ended without settling the operation; its job is queued again.
#[derive(Debug, Error)]
pub enum RunError {
    /// Another worker holds it.
    #[error("another worker holds the operation")]
    Held,
    /// Another worker took it over meanwhile.
    #[error("another worker took the operation over")]
    TakenOver,
    /// Its kind or steps are unknown to this version of the server.
    #[error("the operation is of a kind or shape that this version does not know")]
    Unknown,
    /// A step has to wait; the job is queued for that time.
    #[error("a step waits until {0}")]
    NotBefore(DateTime<Utc>),
    /// The job could not be queued.
    #[error("the job could not be queued")]
    Queue(#[source] super::OperationError),
    /// The platform database failed.
    #[error("the platform database failed")]
    Database(#[from] sqlx::Error),
}

trait Runnable: Send + Sync {
    fn kind(&self) -> &'static str;
    fn step(&self, position: usize) -> Option<&'static str>;
    fn work(&self, position: usize, direction: Direction, context: StepContext) -> Option<StepFuture<'static>>;
    fn settle<'a>(
        &self,
        connection: &'a mut PgConnection,
        context: &'a StepContext,
        outcome: Outcome,
        now: DateTime<Utc>,
    ) -> SettleFuture<'a>;
}

struct Registered<S: 'static> {
    definition: &'static Definition<S>,
    services: Arc<S>,
}

impl<S: Send + Sync> Runnable for Registered<S> {
    fn kind(&self) -> &'static str {
        self.definition.kind
    }

    fn step(&self, position: usize) -> Option<&'static str> {
        self.definition.steps.get(position).map(|step| step.name)
    }

    fn work(&self, position: usize, direction: Direction, context: StepContext) -> Option<StepFuture<'static>> {
        let Step { run, undo, .. } = self.definition.steps.get(position)?;
        let services = Arc::clone(&self.services);
        Some(match direction {
            Direction::Run => run(services, context),
            Direction::Undo => undo(services, context),
        })
    }

    fn settle<'a>(
        &self,
        connection: &'a mut PgConnection,
        context: &'a StepContext,
        outcome: Outcome,
        now: DateTime<Utc>,
    ) -> SettleFuture<'a> {
        (self.definition.settle)(connection, context, outcome, now)
    }
}

/// All kinds of operations with what carries them out.
pub struct Engine {
    pool: PgPool,
    clock: SharedClock,
    definitions: HashMap<&'static str, Box<dyn Runnable>>,
    probe: Option<Probe>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("kinds", &self.definitions.keys()).finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that knows no operations yet. `pool` is its own: an operation under way keeps a connection for its
    /// lock, and steps that wait for one of the same pool could wait for each other.
    pub fn new(pool: PgPool, clock: SharedClock) -> Self {
        Self { pool, clock, definitions: HashMap::new(), probe: None }
    }

    /// Adds a kind of operation.
    #[must_use]
    pub fn register<S: Send + Sync + 'static>(mut self, definition: &'static Definition<S>, services: Arc<S>) -> Self {
        self.definitions.insert(definition.kind, Box::new(Registered { definition, services }));
        self
    }

    /// Adds a probe for crash tests.
    #[must_use]
    pub fn with_probe(mut self, probe: Probe) -> Self {
        self.probe = Some(probe);
        self
    }

    /// Every kind with its steps, for tests that go through all of them.
    pub fn kinds(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        self.definitions
            .values()
            .map(|definition| (definition.kind(), (0..).map_while(|position| definition.step(position)).collect()))
            .collect()
    }

    /// Carries an operation out until it is settled. Does nothing when it already is.
    pub async fn run(&self, id: OperationId) -> Result<(), RunError> {
        self.run_within(id, LOCK_PATIENCE).await
    }

    /// The same, waiting that long for another worker that holds it.
    async fn run_within(&self, id: OperationId, patience: Duration) -> Result<(), RunError> {
        // The lock lives as long as this connection, so a killed worker's lock is free at once.
        let mut holder = Holder(Some(self.pool.acquire().await?));
        let Some(connection) = holder.0.as_mut() else { return Err(RunError::Held) };
        let key = lock_key(id);
        if !self.lock(connection, key, patience).await? {
            // It holds nothing, so it may go back to the pool.
            holder.0 = None;
            return Err(RunError::Held);
        }
        let result = self.run_locked(connection, id).await;
        let unlocked = sqlx::query_scalar!(r#"SELECT pg_advisory_unlock($1) AS "unlocked!""#, key)
            .fetch_one(&mut **connection)
            .await;
        if unlocked.is_ok() {
            // Only now may the connection go back to the pool.
            holder.0 = None;
        }
        result
    }

    /// Returns whether the lock was free in time.
    async fn lock(&self, connection: &mut PgConnection, key: i64, patience: Duration) -> Result<bool, RunError> {
        // A machine that dies says no farewell; Postgres would keep its lock until the system's keepalive, for hours.
        sqlx::raw_sql("SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3")
            .execute(&mut *connection)
            .await?;
        let give_up = tokio::time::Instant::now() + patience;
        loop {
            if sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1) AS "locked!""#, key)
                .fetch_one(&mut *connection)
                .await?
            {
                return Ok(true);
            }
            if tokio::time::Instant::now() > give_up {
                return Ok(false);
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    async fn run_locked(&self, connection: &mut PgConnection, id: OperationId) -> Result<(), RunError> {
        let mut transaction = connection.begin().await?;
        let Some(taken) = store::take(&mut transaction, id, self.clock.now()).await? else {
            return Ok(());
        };
        let definition = self.definitions.get(taken.kind.as_str()).ok_or(RunError::Unknown)?.as_ref();
        let known = taken.steps.iter().zip(0..).all(|((_, name, _), at)| definition.step(at) == Some(name.as_str()))
            && definition.step(taken.steps.len()).is_none();
        if !known {
            return Err(RunError::Unknown);
        }
        if !taken.undoing {
            definition.settle(&mut transaction, &taken.context, Outcome::Started, self.clock.now()).await?;
        }
        transaction.commit().await?;
        let mut run = Run { engine: self, definition, connection, id, taken: &taken };
        if !taken.undoing && run.forward().await? {
            return Ok(());
        }
        run.backward().await
    }

    /// Queues the job of an operation for later. Its present job, which is locked while it runs, gets no second run by
    /// this: the queue keeps a locked job and adds one of the same key. Should the server die in between, the present
    /// job is found by others and the step is asked again when to go on.
    async fn postpone(&self, id: OperationId, at: DateTime<Utc>) -> Result<(), RunError> {
        // The queue compares with the database's clock, which a test's clock does not move.
        let wait = (at - self.clock.now()).clamp(SHORTEST_WAIT, LONGEST_WAIT);
        let mut connection = self.pool.acquire().await?;
        let at = store::database_time(&mut connection).await? + wait;
        store::enqueue_at(&mut connection, id, at).await.map_err(|error| match error {
            super::OperationError::Database(error) => RunError::Database(error),
            other => RunError::Queue(other),
        })
    }

    fn probe(&self, checkpoint: &Checkpoint) -> CheckpointAction {
        self.probe.as_ref().map_or(CheckpointAction::Continue, |probe| probe(checkpoint))
    }
}

/// An advisory lock's key has 64 bits; two operations that share one would only wait for each other.
fn lock_key(id: OperationId) -> i64 {
    id.as_uuid().as_u64_pair().1.cast_signed()
}

/// The connection that holds an operation's lock. Dropped with the connection in it, it closes that connection: one
/// that went back to the pool with the lock on it would hold the operation for ever.
struct Holder(Option<PoolConnection<Postgres>>);

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

/// One worker's turn at one operation.
struct Run<'a> {
    engine: &'a Engine,
    definition: &'a dyn Runnable,
    connection: &'a mut PgConnection,
    id: OperationId,
    taken: &'a Taken,
}

impl Run<'_> {
    /// Runs the steps that are not done. Returns `false` when one failed for good and undoing has to begin.
    async fn forward(&mut self) -> Result<bool, RunError> {
        let mut finished = None;
        for (position, _, state) in &self.taken.steps {
            if *state == StepState::Done {
                continue;
            }
            self.note(finished, Some((*position, "running"))).await?;
            if let Err(error) = self.attempt(*position, Direction::Run).await? {
                let (code, message) = self.describe(*position, Direction::Run, &error);
                self.note(Some((*position, "failed")), None).await?;
                self.move_to(OperationState::Undoing, Some((code, &message)), None).await?;
                return Ok(false);
            }
            finished = Some((*position, "done"));
        }
        self.settle(finished, OperationState::Succeeded, None, Outcome::Succeeded).await?;
        Ok(true)
    }

    /// Undoes every step that may have left something behind, last first.
    async fn backward(&mut self) -> Result<(), RunError> {
        let mut finished = None;
        // The list is the one read when the operation was taken, so steps begun since may still say `pending`:
        // undoing what was never done is safe, and every step is undone.
        for (position, _, state) in self.taken.steps.iter().rev() {
            if self.taken.undoing && *state == StepState::Undone {
                continue;
            }
            self.note(finished, Some((*position, "undoing"))).await?;
            if let Err(error) = self.attempt(*position, Direction::Undo).await? {
                let (code, message) = self.describe(*position, Direction::Undo, &error);
                return self
                    .settle(
                        Some((*position, "failed")),
                        OperationState::NeedsOperator,
                        Some((code, &message)),
                        Outcome::NeedsOperator,
                    )
                    .await;
            }
            finished = Some((*position, "undone"));
        }
        self.settle(finished, OperationState::Failed, None, Outcome::Failed).await
    }

    /// Does one step's work, trying again while it may help. The outer error is the engine's own.
    async fn attempt(&mut self, position: i32, direction: Direction) -> Result<Result<(), StepError>, RunError> {
        let index = usize::try_from(position - 1).map_err(|_| RunError::Unknown)?;
        let step = self.definition.step(index).ok_or(RunError::Unknown)?;
        let most = if direction == Direction::Run { TRIES } else { UNDO_TRIES };
        let mut pause = FIRST_PAUSE;
        for tries in 1.. {
            let error = match self.work(index, step, direction).await? {
                Ok(()) => break,
                Err(StepError::NotBefore(at)) => return Err(RunError::NotBefore(at)),
                Err(error) => error,
            };
            // The cause goes to the log only; the table and the client get text that is known to be safe.
            tracing::warn!(operation_id = %self.id, step, ?direction, tries, causes = causes(&error), "run operation step");
            store::note_step_error(self.connection, self.id, position, &error.to_string()).await?;
            if matches!(error, StepError::Permanent { .. }) || tries >= most {
                return Ok(Err(error));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(Ok(()))
    }

    async fn work(
        &self,
        index: usize,
        step: &'static str,
        direction: Direction,
    ) -> Result<Result<(), StepError>, RunError> {
        let checkpoint = |moment| Checkpoint { kind: self.definition.kind(), step, direction, moment };
        let failure = || StepError::Permanent { code: "probe", message: "a test made the step fail".to_owned() };
        if self.engine.probe(&checkpoint(Moment::Before)) == CheckpointAction::Fail {
            return Ok(Err(failure()));
        }
        loop {
            let work = self.definition.work(index, direction, self.taken.context.clone()).ok_or(RunError::Unknown)?;
            if let Err(error) = work.await {
                return Ok(Err(error));
            }
            match self.engine.probe(&checkpoint(Moment::After)) {
                CheckpointAction::Continue => return Ok(Ok(())),
                CheckpointAction::Repeat => {}
                CheckpointAction::Fail => return Ok(Err(failure())),
            }
        }
    }

    fn describe(&self, position: i32, direction: Direction, error: &StepError) -> (&'static str, String) {
        let step = usize::try_from(position - 1).ok().and_then(|index| self.definition.step(index)).unwrap_or("?");
        let (code, verb) = match (error, direction) {
            (StepError::Permanent { code, .. }, Direction::Run) => (*code, "failed"),
            (StepError::Transient(..) | StepError::NotBefore(_), Direction::Run) => ("step_failed", "kept failing"),
            (_, Direction::Undo) => ("undo_failed", "could not be undone"),
        };
        (code, format!("step `{step}` {verb}: {error}; retry the operation when the cause is gone"))
    }

    async fn note(&mut self, finished: Option<(i32, &str)>, begun: Option<(i32, &str)>) -> Result<(), RunError> {
        let now = self.engine.clock.now();
        if store::note_step(self.connection, self.id, self.taken.attempt, finished, begun, now).await? {
            Ok(())
        } else {
            Err(RunError::TakenOver)
        }
    }

    async fn move_to(
        &mut self,
        state: OperationState,
        error: Option<(&str, &str)>,
        outcome: Option<(Outcome, Option<(i32, &str)>)>,
    ) -> Result<(), RunError> {
        let now = self.engine.clock.now();
        let attempt = self.taken.attempt;
        let mut transaction = self.connection.begin().await?;
        if !store::note_state(&mut transaction, self.id, attempt, state, error, now).await? {
            return Err(RunError::TakenOver);
        }
        if let Some((outcome, finished)) = outcome {
            store::note_step(&mut transaction, self.id, attempt, finished, None, now).await?;
            self.definition.settle(&mut transaction, &self.taken.context, outcome, now).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    async fn settle(
        &mut self,
        finished: Option<(i32, &str)>,
        state: OperationState,
        error: Option<(&str, &str)>,
        outcome: Outcome,
    ) -> Result<(), RunError> {
        self.move_to(state, error, Some((outcome, finished))).await?;
        tracing::info!(
            operation_id = %self.id,
            kind = self.definition.kind(),
            tenant_id = self.taken.context.tenant_id.map(|id| id.to_string()),
            state = state.as_str(),
            "settle operation"
        );
        Ok(())
    }
}

/// The job that drives an operation. It carries nothing but the id, for payloads of failed jobs are logged.
#[derive(Debug, Serialize, Deserialize)]
struct RunOperation {
    operation_id: OperationId,
}

impl TaskHandler for RunOperation {
    const IDENTIFIER: &'static str = store::JOB;

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let Some(engine) = context.get_ext::<Arc<Engine>>() else {
            return Err("no engine".to_owned());
        };
        let result = match engine.run_within(self.operation_id, JOB_LOCK_PATIENCE).await {
            Err(RunError::NotBefore(at)) => engine.postpone(self.operation_id, at).await,
            Err(RunError::Held) => engine.postpone(self.operation_id, engine.clock.now() + LOOK_AGAIN).await,
            other => other,
        };
        result.map_err(|error| {
            tracing::warn!(operation_id = %self.operation_id, causes = causes(&error), "run operation");
            error.to_string()
        })
    }
}

/// Queues every operation that is not settled once more. A starting server calls it, so that what a killed one left
/// goes on at once, without waiting until the dead worker is missed.
pub async fn recover(pool: &PgPool) -> Result<usize, super::OperationError> {
    let unsettled = store::unsettled(pool).await?;
    let mut connection = pool.acquire().await?;
    for id in &unsettled {
        store::enqueue(&mut connection, *id).await?;
    }
    Ok(unsettled.len())
}

/// Works through the queue until `stop` is cancelled, then ends what is under way.
pub async fn start_worker(
    engine: Arc<Engine>,
    concurrency: usize,
    stop: CancellationToken,
    grace: Duration,
) -> anyhow::Result<()> {
    let worker = WorkerOptions::default()
        .pg_pool(engine.pool.clone())
        .concurrency(concurrency)
        .poll_interval(Duration::from_secs(2))
        .heartbeat_interval(Duration::from_secs(5))
        .sweep_interval(Duration::from_secs(5))
        .sweep_threshold(Duration::from_secs(20))
        .recovery_delay(Duration::from_secs(1))
        .define_job::<RunOperation>()
        .add_extension(engine)
        .listen_os_shutdown_signals(false)
        .shutdown_signal(async move { stop.cancelled().await })
        .shutdown_grace_period(grace)
        .init()
        .await?;
    worker.run().await?;
    Ok(())
}
