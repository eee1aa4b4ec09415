//! Periodic tasks: each runs once a period, over all servers.
//!
//! A server takes a task by moving its next time on in the platform's database, in one statement, so that of many
//! servers one gets it. A task that fails, or whose server dies, runs again at its next time: whatever has to happen
//! for certain is a durable operation, which a task may ask for.
//!
//! It knows names, periods and the table `scheduled_tasks`. What the tasks do is listed in `scheduled.rs`.

mod store;

use std::time::Duration;

use chrono::TimeDelta;
use futures::future::BoxFuture;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::clock::SharedClock;

/// How often a server looks whether a task is due.
const LOOK: Duration = Duration::from_secs(1);

/// A periodic task. `S` is what it needs.
pub struct Task<S> {
    /// Its name, stable.
    pub name: &'static str,
    /// How long from one run to the next.
    pub period: TimeDelta,
    /// Does it.
    pub run: fn(S) -> BoxFuture<'static, anyhow::Result<()>>,
}

/// Runs tasks until `stop` is cancelled. One that takes long holds up no other.
pub async fn run_periodically<S: Clone + Send + 'static>(
    tasks: &'static [Task<S>],
    services: S,
    pool: PgPool,
    clock: SharedClock,
    stop: CancellationToken,
) {
    let names: Vec<String> = tasks.iter().map(|task| task.name.to_owned()).collect();
    let seconds: Vec<f64> = tasks.iter().map(|task| task.period.as_seconds_f64()).collect();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let due = match store::take_due(&pool, &names, &seconds, clock.now()).await {
            Ok(due) => due,
            Err(error) => {
                tracing::debug!(%error, "look for periodic tasks");
                continue;
            }
        };
        for task in tasks.iter().filter(|task| due.iter().any(|name| name == task.name)) {
            let work = (task.run)(services.clone());
            let (name, stop) = (task.name, stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    result = work => if let Err(error) = result {
                        tracing::warn!(task = name, error = format!("{error:#}"), "run periodic task");
                    },
                }
            });
        }
    }
}
