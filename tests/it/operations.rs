//! The engine of durable operations and the periodic tasks, with operations made for these tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use freehold::clock::{Clock, SystemClock};
use freehold::ids::OperationId;
use freehold::operations::{self, Definition, Engine, NewOperation, OperationError, Step, StepError, store};
use freehold::schedule::{self, Task};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Options, Platform};

/// Waits until the given instant, counting how often it was asked.
struct Waiting {
    until: DateTime<Utc>,
    asked: AtomicU32,
}

static WAITS: Definition<Waiting> = Definition {
    kind: "waits",
    steps: &[Step {
        name: "wait",
        run: |services, _| {
            Box::pin(async move {
                services.asked.fetch_add(1, Ordering::SeqCst);
                if SystemClock.now() < services.until { Err(StepError::NotBefore(services.until)) } else { Ok(()) }
            })
        },
        undo: |_, _| Box::pin(async { Ok(()) }),
    }],
    settle: |_, _, _, _| Box::pin(async { Ok(()) }),
};

fn operation(kind: &'static str, group_id: Option<Uuid>) -> NewOperation<'static> {
    let input = json!({});
    NewOperation { id: OperationId::new(), kind, tenant_id: None, input, steps: &["wait"], created_by: None, group_id }
}

async fn platform() -> Platform {
    Platform::start_with(Options { settings: &[("FREEHOLD_WORKER_CONCURRENCY", "0")], ..Options::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_has_to_wait_lets_its_worker_go_and_is_run_again_then() {
    let platform = platform().await;
    let pool = platform.state.pool.clone();
    let until = SystemClock.now() + TimeDelta::milliseconds(1500);
    let services = Arc::new(Waiting { until, asked: AtomicU32::new(0) });
    let engine = Engine::new(pool.clone(), SystemClock::shared()).register(&WAITS, Arc::clone(&services));
    let waiting = operation("waits", None);
    let mut connection = pool.acquire().await.unwrap();
    store::create(&mut connection, &waiting, SystemClock.now()).await.unwrap();
    drop(connection);
    let stop = CancellationToken::new();
    let worker = tokio::spawn(operations::start_worker(Arc::new(engine), 1, stop.clone(), Duration::from_secs(1)));
    let settled = async {
        loop {
            let found = store::find(&pool, waiting.id).await.unwrap().unwrap();
            if found.state.is_settled() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
    assert_eq!(settled.state, operations::OperationState::Succeeded);
    assert!(settled.finished_at.unwrap() >= until);
    // Asked a few times, not in a loop: the worker was free in between.
    assert!((2..10).contains(&services.asked.load(Ordering::SeqCst)), "{}", services.asked.load(Ordering::SeqCst));
    stop.cancel();
    worker.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_an_operation_on_the_whole_platform_one_runs_and_the_second_is_told_which() {
    let platform = platform().await;
    let mut connection = platform.state.pool.acquire().await.unwrap();
    let first = operation("migrate_everything", None);
    store::create(&mut connection, &first, SystemClock.now()).await.unwrap();
    let second = operation("migrate_everything", None);
    match store::create(&mut connection, &second, SystemClock.now()).await.unwrap_err() {
        OperationError::Conflict { holder, kind } => {
            assert_eq!((holder, kind.as_str()), (first.id, "migrate_everything"));
        }
        other => panic!("{other}"),
    }
    // One of another kind is free to run.
    store::create(&mut connection, &operation("audit_everything", None), SystemClock.now()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_counted_and_listed() {
    let platform = platform().await;
    let group = Uuid::now_v7();
    let mut connection = platform.state.pool.acquire().await.unwrap();
    for kind in ["one", "two", "three"] {
        store::create(&mut connection, &operation(kind, Some(group)), SystemClock.now()).await.unwrap();
    }
    store::create(&mut connection, &operation("four", None), SystemClock.now()).await.unwrap();
    let path = format!("/platform/v1/operation-groups/{group}");
    let counted = platform.get(&path, &platform.token).await.expect_success();
    assert_eq!((&counted["total"], &counted["queued"]), (&json!(3), &json!(3)));
    let path = format!("/platform/v1/operations?group_id={group}");
    let listed = platform.get(&path, &platform.token).await.expect_success();
    assert_eq!(listed["items"].as_array().unwrap().len(), 3);
    let unknown = format!("/platform/v1/operation-groups/{}", Uuid::now_v7());
    platform.get(&unknown, &platform.token).await.expect_problem(reqwest::StatusCode::NOT_FOUND);
}

static PERIODIC: &[Task<Arc<AtomicU32>>] = &[Task {
    name: "count",
    period: TimeDelta::minutes(1),
    run: |count| {
        Box::pin(async move {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
    },
}];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_servers_one_runs_a_periodic_task_once_a_period() {
    let platform = platform().await;
    let (count, clock, stop) = (Arc::new(AtomicU32::new(0)), crate::harness::manual_clock(), CancellationToken::new());
    for _ in 0..4 {
        let (count, pool, clock) = (Arc::clone(&count), platform.state.pool.clone(), Arc::clone(&clock));
        tokio::spawn(schedule::run_periodically(PERIODIC, count, pool, clock, stop.clone()));
    }
    let reached = async |wanted: u32| {
        while count.load(Ordering::SeqCst) < wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    for wanted in 1..=3 {
        tokio::time::timeout(Duration::from_secs(10), reached(wanted)).await.unwrap();
        clock.advance(TimeDelta::seconds(59));
        // Every server looks once more, and finds that it is not due.
        tokio::time::sleep(Duration::from_millis(2200)).await;
        assert_eq!(count.load(Ordering::SeqCst), wanted);
        clock.advance(TimeDelta::seconds(2));
    }
    stop.cancel();
}
