//! Following an operation until it is settled, whatever happens to the connection.
//!
//! Events are only the fast way. When their stream breaks, or there is none, the operation itself is asked; when
//! the server is gone too, it is given time to restart, because an operation survives that.

use std::pin::pin;
use std::time::Duration;

use freehold::api::platform::{Operation, OperationGroup, OperationState};
use futures::StreamExt;
use tokio::time::Instant;
use uuid::Uuid;

use crate::client::{Client, is_transient};
use crate::failure::Failure;
use crate::output::{Output, wire};
use crate::progress::Progress;

/// The kind of operation whose work is never taken back.
pub const MIGRATE_FLEET: &str = "migrate_fleet";

/// Between two questions, when there are no events.
const POLL_PAUSE: Duration = Duration::from_millis(500);
/// How long the server may be away before following is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Follows an operation and returns it as it was settled, be it well or badly. Interrupting stops the following
/// only.
pub async fn follow(client: &Client, output: &Output, id: Uuid) -> Result<Operation, Failure> {
    follow_with(client, Progress::new(output), id).await
}

/// The same with a display of one's own.
pub async fn follow_with(client: &Client, progress: Progress<'_>, id: Uuid) -> Result<Operation, Failure> {
    tokio::select! {
        settled = until_settled(client, progress, id) => settled,
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::failed("interrupted", "stopped following; the operation goes on")
                .hint(format!("freehold operation follow {id}")),
        ),
    }
}

async fn until_settled(client: &Client, mut progress: Progress<'_>, id: Uuid) -> Result<Operation, Failure> {
    let mut last_answer = Instant::now();
    loop {
        if let Some(settled) = listen(client, &mut progress, id, &mut last_answer).await? {
            return Ok(settled);
        }
        match ask(client, id).await {
            Ok(operation) => {
                last_answer = Instant::now();
                progress.show(&operation);
                if operation.state.is_settled() {
                    return Ok(operation);
                }
            }
            Err(failure) if is_transient(&failure) && last_answer.elapsed() < PATIENCE => {
                progress.waiting("the platform cannot be reached; waiting for it");
            }
            Err(failure) if is_transient(&failure) => {
                return Err(failure
                    .detail("The operation is durable: it goes on when the platform is back.")
                    .hint(format!("freehold operation follow {id}")));
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Follows the events for as long as they come. Returns nothing if they ended before the operation was settled.
async fn listen(
    client: &Client,
    progress: &mut Progress<'_>,
    id: Uuid,
    last_answer: &mut Instant,
) -> Result<Option<Operation>, Failure> {
    let id = id.to_string();
    let events = match client.events(&["platform", "v1", "operations", &id, "events"]).await {
        Ok(events) => events,
        // Nobody is signed in any more: asking would fail in the same way.
        Err(failure) if failure.status() == Some(401) => return Err(failure),
        Err(_) => return Ok(None),
    };
    let mut events = pin!(events);
    while let Some(Ok(data)) = events.next().await {
        // An event of another shape is a later server's: the operation itself is asked instead.
        let Ok(operation) = serde_json::from_str::<Operation>(&data) else {
            continue;
        };
        progress.show(&operation);
        if operation.state.is_settled() {
            return Ok(Some(operation));
        }
    }
    // A stream may be silent but for signs of life: the server was there until now.
    *last_answer = Instant::now();
    Ok(None)
}

/// Follows a group of operations until all are settled, and returns their counts. Interrupting stops the following
/// only.
pub async fn follow_group(client: &Client, output: &Output, id: Uuid) -> Result<OperationGroup, Failure> {
    let hint = format!("freehold operation list --group {id}");
    tokio::select! {
        settled = until_group_settled(client, output, id) => settled.map_err(|failure| {
            if is_transient(&failure) { failure.hint(hint.clone()) } else { failure }
        }),
        Ok(()) = tokio::signal::ctrl_c() => Err(
            Failure::failed("interrupted", "stopped following; the operations go on").hint(hint.clone()),
        ),
    }
}

async fn until_group_settled(client: &Client, output: &Output, id: Uuid) -> Result<OperationGroup, Failure> {
    let mut progress = Progress::new(output);
    let mut last_answer = Instant::now();
    loop {
        match client.get::<OperationGroup>(&["platform", "v1", "operation-groups", &id.to_string()], &[]).await {
            Ok(group) => {
                last_answer = Instant::now();
                progress.show_group(&group);
                if group.is_settled() {
                    return Ok(group);
                }
            }
            Err(failure) if is_transient(&failure) && last_answer.elapsed() < PATIENCE => {
                progress.waiting("the platform cannot be reached; waiting for it");
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Asks for an operation.
pub async fn ask(client: &Client, id: Uuid) -> Result<Operation, Failure> {
    client.get(&["platform", "v1", "operations", &id.to_string()], &[]).await
}

/// A failure, if the operation was settled badly.
pub fn outcome(operation: &Operation) -> Result<(), Failure> {
    let told = match operation.state {
        OperationState::Failed if operation.kind == MIGRATE_FLEET => {
            "failed; what was migrated stays, and a retry goes on"
        }
        OperationState::Failed => "failed, and what it had done is undone",
        OperationState::NeedsOperator => "failed, and so did undoing it: somebody has to look",
        _ => return Ok(()),
    };
    let code = match &operation.error {
        Some(error) => error.code.clone(),
        None => format!("operation_{}", wire(&operation.state)),
    };
    let mut failure = Failure::failed(code, format!("{} {told}", operation.kind));
    if let Some(error) = &operation.error {
        failure = failure.detail(error.message.clone());
    }
    Err(failure.hint(format!("freehold operation retry {}", operation.id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;
    use crate::output::Sinks;
    use crate::testing::{Scripted, answer, problem};
    use freehold::api::platform::OperationError;
    use secrecy::SecretString;

    fn operation(state: OperationState) -> Operation {
        Operation {
            id: Uuid::from_u128(1),
            kind: "provision_tenant".into(),
            tenant: Some("acme".into()),
            state,
            steps: vec![],
            progress: None,
            group_id: None,
            error: None,
            created_at: chrono::DateTime::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
        }
    }

    fn json(state: OperationState) -> String {
        serde_json::to_string(&operation(state)).unwrap()
    }

    async fn followed(answers: Vec<String>) -> Result<Operation, Failure> {
        crate::install_crypto();
        let server = Scripted::start(answers).await;
        let token = SecretString::from("t");
        let client = Client::new(server.address().clone(), Some(&token), false)?;
        let (sinks, _) = Sinks::captured();
        let output = Output::new(sinks, false, false);
        until_settled(&client, Progress::new(&output), Uuid::from_u128(1)).await
    }

    #[tokio::test]
    async fn a_stream_is_followed_to_its_end() {
        let events = format!(
            ": alive\n\ndata: {}\n\nevent: later\ndata: what\n\ndata: {}\n\n",
            json(OperationState::Running),
            json(OperationState::Succeeded)
        );
        let settled = followed(vec![answer("text/event-stream", &events)]).await.unwrap();
        assert_eq!(settled.state, OperationState::Succeeded);
    }

    #[tokio::test]
    async fn a_broken_stream_and_a_restart_are_survived() {
        let begun = format!("data: {}\n\n", json(OperationState::Running));
        let settled = followed(vec![
            answer("text/event-stream", &begun),
            String::new(),
            problem(503),
            problem(503),
            problem(404),
            answer("application/json", &json(OperationState::Failed)),
        ])
        .await
        .unwrap();
        assert_eq!(settled.state, OperationState::Failed);
    }

    #[tokio::test]
    async fn a_refusal_ends_it() {
        let failure = followed(vec![problem(401)]).await.unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        let failure = followed(vec![problem(404), problem(404)]).await.unwrap_err();
        assert_eq!(failure.status(), Some(404));
    }

    #[test]
    fn a_bad_end_says_why_and_how_to_retry() {
        let mut failed = operation(OperationState::Failed);
        failed.error =
            Some(OperationError { code: "cluster_unreachable".into(), message: "The cluster did not answer.".into() });
        let failure = outcome(&failed).unwrap_err();
        assert_eq!((failure.exit(), failure.code()), (Exit::Failed, "cluster_unreachable"));
        let lines = failure.lines();
        assert!(lines.contains(&"  The cluster did not answer.".to_owned()));
        assert_eq!(lines.last().unwrap(), &format!("hint: freehold operation retry {}", failed.id));
        assert!(outcome(&operation(OperationState::Succeeded)).is_ok());
    }
}
