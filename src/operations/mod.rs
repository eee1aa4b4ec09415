//! Durable operations: work in named steps that survives a crash at any instant.
//!
//! An operation is a row in `operations` with a row a step; the row and the job that drives it commit together. Each
//! step is safe to repeat, safe to fail and safe to undo twice, so that recovery never has to know how far a killed
//! worker got: the step under way is simply run again. A step that fails for good has everything before it undone, in
//! reverse; an undo that fails leaves the operation in `needs_operator`, with the reason.
//!
//! One worker runs an operation: it holds an advisory lock on the platform database for as long as it works (the lock
//! goes with the connection if the worker is killed), and every note it makes is refused once another worker has
//! taken over, by the `attempt` number.
//!
//! This service knows nothing of what the steps do, nor of tenants beyond their id. Features define the operations;
//! `worker.rs` lists them.

mod engine;
pub mod store;

use std::sync::Arc;

use futures::future::BoxFuture;
use sqlx::PgConnection;
use thiserror::Error;

pub use crate::api::platform::{OperationProgress, OperationState, StepState};
use crate::ids::{OperationId, TenantId};
pub use engine::{Checkpoint, CheckpointAction, Direction, Engine, Moment, Probe, RunError, recover, start_worker};

/// What a step is told: which operation it belongs to and what was asked for.
#[derive(Debug, Clone)]
pub struct StepContext {
    /// The operation.
    pub operation_id: OperationId,
    /// The tenant it works on.
    pub tenant_id: Option<TenantId>,
    /// What was asked for, as its feature wrote it.
    pub input: serde_json::Value,
}

/// Why a step could not be carried out or undone, or not yet.
#[derive(Debug, Error)]
pub enum StepError {
    /// It has to wait until then. The worker goes on with other operations, and runs the step again at that time, or
    /// earlier after a restart.
    #[error("it waits until {0}")]
    NotBefore(chrono::DateTime<chrono::Utc>),
    /// It may go better a moment later: a server that does not answer, a lock that is held.
    #[error("{0}")]
    Transient(&'static str, #[source] anyhow::Error),
    /// Trying again is of no use until somebody changes something. The text is shown to the operator.
    #[error("{message}")]
    Permanent {
        /// A stable code.
        code: &'static str,
        /// What happened and what to do, safe to show.
        message: String,
    },
}

/// What became of an operation, told to its definition in the transaction that settles it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A worker has taken it up.
    Started,
    /// All steps are done.
    Succeeded,
    /// It failed and everything is undone.
    Failed,
    /// Undoing failed.
    NeedsOperator,
}

/// The future of a step.
pub type StepFuture<'a> = BoxFuture<'a, Result<(), StepError>>;

/// One step. `S` is what the feature needs to carry it out.
pub struct Step<S> {
    /// Its name, stable, as operators see it.
    pub name: &'static str,
    /// Carries it out. Safe to repeat.
    pub run: fn(Arc<S>, StepContext) -> StepFuture<'static>,
    /// Takes it back. Safe to repeat, and safe when the step was never or only partly carried out.
    pub undo: fn(Arc<S>, StepContext) -> StepFuture<'static>,
}

/// The future of a settle function, which borrows the transaction.
pub type SettleFuture<'a> = BoxFuture<'a, Result<(), sqlx::Error>>;

/// A kind of operation.
pub struct Definition<S: 'static> {
    /// The kind's name, stable.
    pub kind: &'static str,
    /// The steps, in order.
    pub steps: &'static [Step<S>],
    /// Notes the outcome in the feature's own tables, in the transaction that settles the operation.
    pub settle:
        for<'a> fn(&'a mut PgConnection, &'a StepContext, Outcome, chrono::DateTime<chrono::Utc>) -> SettleFuture<'a>,
}

/// A new operation, to be stored by [`store::create`] in the transaction of the row it belongs to.
#[derive(Debug)]
pub struct NewOperation<'a> {
    /// Its id.
    pub id: OperationId,
    /// Its kind.
    pub kind: &'static str,
    /// The tenant it works on; a tenant has one operation at a time.
    pub tenant_id: Option<TenantId>,
    /// What was asked for: ids, names and hashes, never a secret.
    pub input: serde_json::Value,
    /// The names of its steps.
    pub steps: &'a [&'static str],
    /// Who asked.
    pub created_by: Option<uuid::Uuid>,
    /// The group of operations that are asked for together, if it is of one.
    pub group_id: Option<uuid::Uuid>,
}

/// An operation as it stands.
#[derive(Debug, Clone)]
pub struct OperationRecord {
    /// Its id.
    pub id: OperationId,
    /// Its kind.
    pub kind: String,
    /// The tenant it works on.
    pub tenant_id: Option<TenantId>,
    /// That tenant's slug.
    pub tenant_slug: Option<String>,
    /// How far it is.
    pub state: OperationState,
    /// How far the present step is, if it works on many things.
    pub progress: Option<OperationProgress>,
    /// The group of operations that were asked for together.
    pub group_id: Option<uuid::Uuid>,
    /// A stable code of why it failed.
    pub error_code: Option<String>,
    /// Why it failed and what to do.
    pub error_message: Option<String>,
    /// When it was asked for.
    pub created_at: chrono::DateTime<chrono::Utc>,
    /// When a worker first took it.
    pub started_at: Option<chrono::DateTime<chrono::Utc>>,
    /// When it was settled.
    pub finished_at: Option<chrono::DateTime<chrono::Utc>>,
    /// Its steps, in order.
    pub steps: Vec<StepRecord>,
}

/// A step as it stands.
#[derive(Debug, Clone)]
pub struct StepRecord {
    /// Its name.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// How often it was tried.
    pub tries: i32,
    /// When it was last begun.
    pub started_at: Option<chrono::DateTime<chrono::Utc>>,
    /// When it was done or undone.
    pub finished_at: Option<chrono::DateTime<chrono::Utc>>,
}

/// Why an operation could not be created or retried.
#[derive(Debug, Error)]
pub enum OperationError {
    /// The tenant, or the platform for one of this kind, has an operation that is not settled.
    #[error("held by operation {holder}")]
    Conflict {
        /// The operation that has to be settled first.
        holder: OperationId,
        /// Its kind.
        kind: String,
    },
    /// There is no such operation.
    #[error("no such operation")]
    NotFound,
    /// The tenant it worked on is gone for good.
    #[error("the tenant is gone for good")]
    TenantGone,
    /// Only operations that failed can be retried.
    #[error("the operation has not failed")]
    NotRetryable,
    /// The platform database did not answer.
    #[error("the platform database failed")]
    Database(#[from] sqlx::Error),
    /// The job could not be queued.
    #[error("the job could not be queued")]
    Queue(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl OperationError {
    /// Whether the platform's database ended the transaction that `error` comes from because it and another waited for
    /// each other. Whoever asks for an operation and holds the tenant's row may meet another who locks the two the other
    /// way round; one of the two asks again, and finds what the other did.
    pub fn is_deadlock(error: &(dyn std::error::Error + 'static)) -> bool {
        std::iter::successors(Some(error), |error| error.source())
            .filter_map(|error| error.downcast_ref::<sqlx::Error>())
            .filter_map(sqlx::Error::as_database_error)
            .any(|error| error.code().as_deref() == Some("40P01"))
    }
}

impl OperationState {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Undoing => "undoing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::NeedsOperator => "needs_operator",
        }
    }

    /// Reads the name in the database; the column's CHECK knows the same names.
    pub fn parse(text: &str) -> Self {
        match text {
            "queued" => Self::Queued,
            "running" => Self::Running,
            "undoing" => Self::Undoing,
            "succeeded" => Self::Succeeded,
            "failed" => Self::Failed,
            _ => Self::NeedsOperator,
        }
    }
}

impl StepState {
    /// Reads the name in the database; the column's CHECK knows the same names.
    pub fn parse(text: &str) -> Self {
        match text {
            "pending" => Self::Pending,
            "running" => Self::Running,
            "done" => Self::Done,
            "undoing" => Self::Undoing,
            "undone" => Self::Undone,
            _ => Self::Failed,
        }
    }
}
