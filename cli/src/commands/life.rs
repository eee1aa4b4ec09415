//! `freehold tenant suspend`, `resume`, `delete` and `undelete`.

use freehold::api::platform::{SuspendTenantRequest, Tenant, TenantOperation, TenantState};
use serde_json::json;

use super::Context;
use super::tenant::{fetch, shown};
use crate::args::tenant::{TenantDeleteArgs, TenantLifeArgs, TenantSuspendArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::follow;
use crate::input;
use crate::output::{instant, wire};

/// Takes a tenant out of service.
pub async fn suspend(context: &Context<'_>, args: TenantSuspendArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let request = SuspendTenantRequest { reason: args.reason };
    let path = ["platform", "v1", "tenants", &args.life.slug, "suspend"];
    let answer: TenantOperation = client.post(&path, &request).await?;
    done(context, &client, answer, args.life.detach).await
}

/// Puts a suspended tenant back into service.
pub async fn resume(context: &Context<'_>, args: TenantLifeArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let path = ["platform", "v1", "tenants", &args.slug, "resume"];
    let answer: TenantOperation = client.post(&path, &json!({})).await?;
    done(context, &client, answer, args.detach).await
}

/// Takes a deletion back.
pub async fn undelete(context: &Context<'_>, args: TenantLifeArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let path = ["platform", "v1", "tenants", &args.slug, "undelete"];
    let answer: TenantOperation = client.post(&path, &json!({})).await?;
    done(context, &client, answer, args.detach).await
}

/// Deletes a tenant, once its slug was typed.
pub async fn delete(context: &Context<'_>, args: TenantDeleteArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let slug = &args.life.slug;
    if !args.yes {
        let tenant = fetch(&client, slug).await?;
        confirm(context, &tenant, args.now)?;
    }
    let grace = if args.now { Some(0) } else { args.grace_days };
    let mut query = vec![("confirm", slug.clone())];
    query.extend(grace.map(|days| ("grace_days", days.to_string())));
    let answer: TenantOperation = client.delete_for(&["platform", "v1", "tenants", slug], &query).await?;
    done(context, &client, answer, args.life.detach).await
}

fn confirm(context: &Context<'_>, tenant: &Tenant, now: bool) -> Result<(), Failure> {
    if !context.output.is_interactive() {
        return Err(Failure::usage(
            "confirmation_missing",
            format!("deleting {} needs its slug typed, and there is no terminal to ask at", tenant.slug),
        )
        .hint("--yes, if you are sure"));
    }
    context.output.warn(format!("{} ({}) is {}.", tenant.slug, tenant.name, wire(&tenant.state)));
    if now || tenant.state == TenantState::Failed {
        context.output.warn("Its database, roles and keys are removed at once. Nothing brings them back.");
    }
    let typed = input::ask_line("Type its slug to delete it")?;
    if typed.trim() == tenant.slug {
        Ok(())
    } else {
        Err(Failure::failed("not_confirmed", "that is not its slug; nothing was deleted"))
    }
}

/// Follows the operation, if there is one, and shows how the tenant is then.
async fn done(context: &Context<'_>, client: &Client, answer: TenantOperation, detach: bool) -> Result<(), Failure> {
    let output = context.output;
    let TenantOperation { tenant, operation } = answer;
    let Some(operation) = operation else {
        output.note(format!("Nothing to do: {} is {}.", tenant.slug, wire(&tenant.state)));
        return output.data(&json!({ "tenant": tenant, "operation": null }), || shown(&tenant));
    };
    if detach {
        output.note(format!("hint: freehold operation follow {}", operation.id));
        return output.data(&json!({ "tenant": tenant, "operation": operation }), || shown(&tenant));
    }
    let settled = match follow::follow(client, output, operation.id).await {
        Ok(settled) => settled,
        Err(failure) => return Err(failure.with_result(json!({ "tenant": tenant, "operation": operation }))),
    };
    follow::outcome(&settled)
        .map_err(|failure| failure.with_result(json!({ "tenant": tenant, "operation": settled })))?;
    if settled.kind == "purge_tenant" {
        // It cannot be asked for any more.
        let tenant = Tenant { state: TenantState::Deleted, ..tenant };
        let document = json!({ "tenant": tenant, "operation": settled });
        return output.data(&document, || format!("{} is deleted for good; its slug is free.", tenant.slug));
    }
    // The registry has changed meanwhile. It is shown as it was if it cannot be asked now.
    let tenant = fetch(client, &tenant.slug).await.unwrap_or(tenant);
    if let (TenantState::Deleting, Some(after)) = (tenant.state, tenant.delete_after) {
        output.note(format!("It is removed for good at {}. Until then:", instant(after)));
        output.note(format!("hint: freehold tenant undelete {}", tenant.slug));
    }
    output.data(&json!({ "tenant": tenant, "operation": settled }), || shown(&tenant))
}
