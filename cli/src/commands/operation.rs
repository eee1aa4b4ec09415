//! `freehold operation`.

use freehold::api::platform::{Operation, OperationPage};
use serde_json::json;

use super::{Context, note_more, pages};
use crate::args::{OperationCommand, OperationListArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::follow;
use crate::output::{fields, instant, optional, table, wire};

/// Carries out a command.
pub async fn run(context: &Context<'_>, command: OperationCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        OperationCommand::List(args) => list(context, &client, args).await,
        OperationCommand::Show { id } => {
            let operation = follow::ask(&client, id).await?;
            context.output.data(&operation, || shown(&operation))
        }
        OperationCommand::Follow { id } => {
            let operation = follow::follow(&client, context.output, id).await?;
            settled(context, &operation)
        }
        OperationCommand::Retry { id, detach } => {
            let path = ["platform", "v1", "operations", &id.to_string(), "retry"];
            let mut operation: Operation = client.post(&path, &json!({})).await?;
            if detach {
                context.output.note(format!("hint: freehold operation follow {}", operation.id));
                return context.output.data(&operation, || shown(&operation));
            }
            // The answer names the operation to follow, be it the same or a new one.
            operation = follow::follow(&client, context.output, operation.id).await?;
            settled(context, &operation)
        }
    }
}

/// Shows a settled operation: as data if it went well, else as the reason why not.
fn settled(context: &Context<'_>, operation: &Operation) -> Result<(), Failure> {
    follow::outcome(operation).map_err(|failure| failure.with_result(json!({ "operation": operation })))?;
    context.output.data(operation, || shown(operation))
}

async fn list(context: &Context<'_>, client: &Client, args: OperationListArgs) -> Result<(), Failure> {
    let group = args.group.map(|id| id.to_string());
    let filters = [("tenant", args.tenant), ("state", args.state), ("group_id", group)];
    let listed = pages(&args.page, &filters, async |query| {
        let page: OperationPage = client.get(&["platform", "v1", "operations"], &query).await?;
        Ok((page.items, page.next_cursor))
    })
    .await?;
    let rows: Vec<Vec<String>> = listed
        .items
        .iter()
        .map(|operation| {
            vec![
                operation.id.to_string(),
                operation.kind.clone(),
                optional(operation.tenant.as_ref()),
                wire(&operation.state),
                instant(operation.created_at),
                optional(operation.finished_at.map(instant)),
            ]
        })
        .collect();
    let header = ["id", "kind", "tenant", "state", "created", "finished"];
    context.output.data(&listed, || table(&header, &rows, "No operations."))?;
    note_more(context.output, &listed);
    Ok(())
}

fn shown(operation: &Operation) -> String {
    let mut pairs = vec![
        ("id", operation.id.to_string()),
        ("kind", operation.kind.clone()),
        ("tenant", optional(operation.tenant.as_ref())),
        ("state", wire(&operation.state)),
        ("created", instant(operation.created_at)),
        ("started", optional(operation.started_at.map(instant))),
        ("finished", optional(operation.finished_at.map(instant))),
    ];
    if let Some(error) = &operation.error {
        pairs.push(("error", format!("{} ({})", error.message, error.code)));
    }
    let steps: Vec<Vec<String>> = operation
        .steps
        .iter()
        .map(|step| {
            let took = step
                .started_at
                .zip(step.finished_at)
                .map(|(started, finished)| format!("{} ms", (finished - started).num_milliseconds()));
            vec![step.name.clone(), wire(&step.state), step.tries.to_string(), optional(took)]
        })
        .collect();
    let steps = table(&["step", "state", "tries", "took"], &steps, "No steps.");
    format!("{}\n\n{steps}", fields(&pairs))
}
