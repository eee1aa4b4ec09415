//! Writes answers down while they are being generated, and hears from their rows that they are to be stopped.
//!
//! For each tenant with answers under way there is one task, which looks at all of them once a second and sends one
//! statement for those that have taken longer than that. An answer that is over before costs nothing here.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dashmap::{DashMap, Entry};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use super::event_log::{Deltas, EventLog};
use super::tenant_store;
use crate::chat::ChatError;
use crate::chat::under_way::Interruption;
use crate::ids::{MessageId, TenantId};
use crate::telemetry::causes;
use crate::tenant_db::{TenantDb, TenantDbError};

/// How often answers are written down.
const PERIOD: Duration = Duration::from_secs(1);
/// How long the statement may take. It is behind nobody's lock but its own.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Answers in one statement.
const TOGETHER: usize = 200;

/// The answers that are written down.
#[derive(Default)]
pub(in crate::chat) struct Parts {
    /// Whoever works on an answer holds it until it is stored.
    tenants: DashMap<TenantId, Vec<Weak<PartedAnswer>>>,
}

/// A part of an answer, with whose it is.
pub(super) type Part = (MessageId, Deltas);

/// An answer under way, as the task that writes it down knows it.
pub(in crate::chat) struct PartedAnswer {
    id: MessageId,
    log: Arc<EventLog>,
    interruption: Interruption,
    begun: Instant,
    written: Arc<Mutex<Written>>,
}

/// How much of an answer was written down. Locked while a statement is under way that writes more.
#[derive(Default)]
struct Written {
    /// Deltas.
    deltas: usize,
    /// Whether any statement was sent with a part of it, known to be carried out or not.
    any: bool,
    /// The answer is about to be finished: nothing more may be written.
    closed: bool,
}

impl PartedAnswer {
    /// Sees to it that nothing more of it is written down, once what is being written is. Whether anything may have
    /// been.
    pub(in crate::chat) async fn close(&self) -> bool {
        let mut written = self.written.lock().await;
        written.closed = true;
        written.any
    }
}

impl Parts {
    /// Writes an answer down from now on, until it is closed or dropped.
    pub(in crate::chat) fn enter(
        self: &Arc<Self>,
        db: &TenantDb,
        id: MessageId,
        log: &Arc<EventLog>,
        interruption: &Interruption,
    ) -> Arc<PartedAnswer> {
        let answer = Arc::new(PartedAnswer {
            id,
            log: Arc::clone(log),
            interruption: interruption.clone(),
            begun: Instant::now(),
            written: Arc::default(),
        });
        match self.tenants.entry(db.record().id) {
            Entry::Occupied(mut entry) => entry.get_mut().push(Arc::downgrade(&answer)),
            Entry::Vacant(entry) => {
                entry.insert(vec![Arc::downgrade(&answer)]);
                // A server that stops does not wait for it: each answer does, for the statement that has a part of it.
                tokio::spawn(Arc::clone(self).write_down(db.clone()));
            }
        }
        answer
    }

    /// Writes a tenant's answers down for as long as there are any.
    async fn write_down(self: Arc<Self>, db: TenantDb) {
        let mut failing = false;
        loop {
            tokio::time::sleep(PERIOD).await;
            let Some(answers) = self.slow_answers(db.record().id) else { return };
            for some in answers.chunks(TOGETHER) {
                let result = write(&db, some).await;
                if let Err(error) = &result
                    && !failing
                {
                    tracing::warn!(tenant_id = %db.record().id, causes = causes(error), "write answers down");
                }
                failing = result.is_err();
            }
        }
    }

    /// The tenant's answers that take long; `None`, and the tenant is forgotten, if none is under way.
    fn slow_answers(&self, tenant: TenantId) -> Option<Vec<Arc<PartedAnswer>>> {
        // The entry is locked: whoever enters an answer finds it with a task, or makes a new one.
        let Entry::Occupied(mut entry) = self.tenants.entry(tenant) else { return None };
        entry.get_mut().retain(|answer| answer.strong_count() > 0);
        if entry.get().is_empty() {
            entry.remove();
            return None;
        }
        let answers = entry.get().iter().filter_map(Weak::upgrade);
        Some(answers.filter(|answer| answer.begun.elapsed() >= PERIOD).collect())
    }
}

/// Writes down what is new of some answers, and stops those whose row says so.
async fn write(db: &TenantDb, answers: &[Arc<PartedAnswer>]) -> Result<(), ChatError> {
    let mut ids = Vec::with_capacity(answers.len());
    let mut parts = Vec::new();
    let mut held: Vec<(OwnedMutexGuard<Written>, usize)> = Vec::new();
    for answer in answers {
        // Locked by nobody but one who closes it.
        let Ok(written) = Arc::clone(&answer.written).try_lock_owned() else { continue };
        if written.closed {
            continue;
        }
        ids.push(answer.id);
        if let Some((deltas, known)) = answer.log.since(written.deltas) {
            parts.push((answer.id, deltas));
            held.push((written, known));
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    let client = db.client().await?;
    for (written, _) in &mut held {
        written.any = true;
    }
    let stopped = match timeout(TIMEOUT, tenant_store::write_parts(&client, &ids, &parts)).await {
        Ok(stopped) => stopped?,
        Err(elapsed) => {
            // Not given back: whoever came next on it would wait for the statement that is given up here.
            client.discard();
            return Err(TenantDbError::Unreachable(elapsed.into()).into());
        }
    };
    for (mut written, known) in held {
        written.deltas = known;
    }
    for id in stopped {
        if let Some(answer) = answers.iter().find(|answer| answer.id == id) {
            answer.interruption.stop();
        }
    }
    Ok(())
}
