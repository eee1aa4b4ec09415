//! `freehold migrate`.

use freehold::api::fleet::{
    CreateFleetMigrationRequest, CreateFleetVerificationRequest, FleetMigration, FleetPlan, FleetTenant,
    FleetTenantPage, FleetTenantState, Wave,
};
use freehold::api::platform::{Operation, OperationPage, OperationState};
use serde_json::json;
use uuid::Uuid;

use super::Context;
use crate::args::migrate::MigrateArgs;
use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::follow;
use crate::output::{fields, optional, table, wire};
use crate::progress::Progress;

/// The kinds of operations that `--status` shows.
const KINDS: [&str; 2] = [follow::MIGRATE_FLEET, "verify_fleet"];
/// How many tenants of a plan are shown.
const SHOWN: usize = 20;

/// Carries the command out.
pub async fn run(context: &Context<'_>, args: MigrateArgs) -> Result<Exit, Failure> {
    let client = context.client()?;
    if let Some(status) = args.status {
        let operation = match status {
            Some(id) => follow::ask(&client, id).await?,
            None => last(&client).await?,
        };
        return report(context, &client, &operation, false).await;
    }
    let Some(operation) = begin(context, &client, &args).await? else {
        return Ok(Exit::Done);
    };
    if args.detach {
        context.output.note(format!("hint: freehold migrate --status {}", operation.id));
        context.output.data(&operation, || format!("{} {}", operation.kind, operation.id))?;
        return Ok(Exit::Done);
    }
    let is_json = context.output.is_json();
    let progress = Progress::new(context.output).with_events(is_json);
    let operation = follow::follow_with(&client, progress, operation.id).await?;
    report(context, &client, &operation, is_json).await
}

/// Begins what was asked for. Returns nothing if that is all: there is nothing to do, or only a plan was wanted.
async fn begin(context: &Context<'_>, client: &Client, args: &MigrateArgs) -> Result<Option<Operation>, Failure> {
    let tenants = (!args.all).then(|| args.slugs.clone());
    if args.verify {
        let request = CreateFleetVerificationRequest { tenants, parallel: args.parallel };
        return client.post(&["platform", "v1", "fleet", "verifications"], &request).await.map(Some);
    }
    let request = CreateFleetMigrationRequest {
        tenants,
        canary: args.canary,
        parallel: args.parallel,
        on_error: args.on_error,
        max_failures: args.max_failures,
        target_version: args.target,
        recheck: args.recheck,
        lock_timeout_ms: args.lock_timeout.map(milliseconds).transpose()?,
        statement_timeout_ms: args.statement_timeout.map(milliseconds).transpose()?,
        concurrent_timeout_ms: args.concurrent_timeout.map(milliseconds).transpose()?,
        plan_only: args.plan_only,
    };
    let answer: FleetMigration = client.post(&["platform", "v1", "fleet", "migrations"], &request).await?;
    if answer.operation.is_some() {
        return Ok(answer.operation);
    }
    context.output.data(&answer, || match &answer.plan {
        Some(plan) => planned(plan, answer.target_version),
        None => format!("Nothing to do: every tenant in service has schema version {}.", answer.target_version),
    })?;
    Ok(None)
}

fn milliseconds(seconds: f64) -> Result<u64, Failure> {
    if (0.01..=86_400.0).contains(&seconds) {
        return Ok((seconds * 1000.0) as u64);
    }
    Err(Failure::usage("usage", "a time-out has 0.01 to 86400 seconds"))
}

fn planned(plan: &FleetPlan, target: i64) -> String {
    let migrations: Vec<Vec<String>> = plan
        .migrations
        .iter()
        .map(|migration| {
            let how = if migration.transaction { "in a transaction" } else { "concurrently" };
            vec![migration.version.to_string(), migration.description.clone(), how.to_owned()]
        })
        .collect();
    let tenants: Vec<Vec<String>> = plan
        .first
        .iter()
        .take(SHOWN)
        .map(|tenant| vec![tenant.tenant.clone(), wire(&tenant.wave), optional(tenant.from_version)])
        .collect();
    let canaries = plan.first.iter().filter(|tenant| tenant.wave == Wave::Canary).count();
    let mut text = format!("{} tenants would be migrated to schema version {target}", plan.tenants);
    text.push_str(&format!(", {canaries} of them first.\n\n"));
    text.push_str(&table(&["version", "migration", "runs"], &migrations, "No migrations."));
    text.push_str("\n\n");
    text.push_str(&table(&["tenant", "wave", "from"], &tenants, "No tenants."));
    let more = plan.tenants - tenants.len() as i64;
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    if !plan.skipped.is_empty() {
        let skipped: Vec<Vec<String>> =
            plan.skipped.iter().map(|skip| vec![skip.tenant.clone(), skip.code.clone()]).collect();
        text.push_str("\n\nWould be skipped:\n");
        text.push_str(&table(&["tenant", "why"], &skipped, ""));
    }
    text
}

async fn last(client: &Client) -> Result<Operation, Failure> {
    let query = [("limit", "100".to_owned())];
    let page: OperationPage = client.get(&["platform", "v1", "operations"], &query).await?;
    let last = page.items.into_iter().find(|operation| KINDS.contains(&operation.kind.as_str()));
    last.ok_or_else(|| {
        Failure::failed("not_found", "none of the last 100 operations is a run over the fleet")
            .hint("freehold migrate --status ID")
    })
}

/// All tenants of a run that are in a state.
async fn tenants(client: &Client, id: Uuid, state: FleetTenantState) -> Result<Vec<FleetTenant>, Failure> {
    let id = id.to_string();
    let path = ["platform", "v1", "fleet", "migrations", &id, "tenants"];
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let mut query = vec![("limit", "100".to_owned()), ("state", wire(&state))];
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: FleetTenantPage = client.get(&path, &query).await?;
        found.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(found);
        }
    }
}

/// Shows how a run stands: counts, and every tenant that failed or was skipped with its reason.
async fn report(
    context: &Context<'_>,
    client: &Client,
    operation: &Operation,
    as_event: bool,
) -> Result<Exit, Failure> {
    let failed = tenants(client, operation.id, FleetTenantState::Failed).await?;
    let skipped = tenants(client, operation.id, FleetTenantState::Skipped).await?;
    let exit = match operation.state {
        OperationState::Failed | OperationState::NeedsOperator => Exit::Failed,
        _ if failed.is_empty() => Exit::Done,
        _ => Exit::Failed,
    };
    let troubled: Vec<&FleetTenant> = failed.iter().chain(&skipped).collect();
    let document = json!({ "event": "report", "operation": operation, "tenants": troubled });
    if as_event {
        context.output.event(&document);
    } else {
        context.output.data(&document, || shown(operation, failed.len(), skipped.len(), &troubled))?;
    }
    let is_settled_badly = operation.state == OperationState::Failed && operation.kind == follow::MIGRATE_FLEET;
    if is_settled_badly && !as_event {
        context.output.note(format!("hint: freehold operation retry {}", operation.id));
    }
    Ok(exit)
}

fn shown(operation: &Operation, failed: usize, skipped: usize, troubled: &[&FleetTenant]) -> String {
    let progress = operation.progress.unwrap_or_default();
    let done = progress.done.saturating_sub((failed + skipped) as u64);
    let took = operation.started_at.zip(operation.finished_at).map(|(started, finished)| {
        let seconds = (finished - started).num_milliseconds() as f64 / 1000.0;
        format!("{seconds:.1} s")
    });
    let verb = if operation.kind == follow::MIGRATE_FLEET { "migrated" } else { "as they have to be" };
    let untouched = progress.total.saturating_sub(progress.done);
    let mut pairs = vec![
        ("operation", operation.id.to_string()),
        ("kind", operation.kind.clone()),
        ("state", wire(&operation.state)),
        ("took", optional(took)),
        ("tenants", format!("{done} {verb}, {failed} failed, {skipped} skipped, {untouched} not touched")),
    ];
    if let Some(error) = &operation.error {
        pairs.push(("error", format!("{} ({})", error.message, error.code)));
    }
    if troubled.is_empty() {
        return fields(&pairs);
    }
    let mut rows = Vec::new();
    let mut hints: Vec<String> = Vec::new();
    for tenant in troubled {
        let row = |code: &str, message: &str| {
            vec![tenant.tenant.clone(), wire(&tenant.state), code.to_owned(), message.to_owned()]
        };
        match &tenant.error {
            Some(error) if tenant.findings.is_empty() => rows.push(row(&error.code, &error.message)),
            _ => rows.extend(tenant.findings.iter().map(|finding| row(&finding.code, &finding.message))),
        }
        if let Some(error) = &tenant.error {
            let hint = format!("{}: {}", error.code, error.hint.replace(&tenant.tenant, "SLUG"));
            if !hints.contains(&hint) {
                hints.push(hint);
            }
        }
    }
    let rows = table(&["tenant", "state", "code", "reason"], &rows, "");
    format!("{}\n\n{rows}\n\nWhat to do:\n  {}", fields(&pairs), hints.join("\n  "))
}
