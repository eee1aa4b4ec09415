//! `freehold tenant`.

use std::path::PathBuf;

use freehold::api::database::FindingSeverity;
use freehold::api::platform::{
    AdminInvite, AiMode, CreateInviteRequest, CreateTenantRequest, CreateTenantResponse, DatabaseRequest,
    DatabaseToken, Operation, Tenant, TenantLimitsChange, TenantPage, UpdateTenantRequest,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Context, backup, life, note_more, pages};
use crate::args::tenant::{
    ConfigFileArgs, Limit, LimitName, RequestLimit, TenantCommand, TenantCreateArgs, TenantDatabaseTokenArgs,
    TenantInviteArgs, TenantListArgs, TenantSetArgs,
};
use crate::client::Client;
use crate::config_file::{self, Reserved};
use crate::failure::{Exit, Failure, finding_line};
use crate::output::{fields, instant, optional, table, wire};
use crate::{follow, input};

const TENANTS: [&str; 3] = ["platform", "v1", "tenants"];

/// Carries out a command.
pub async fn run(context: &Context<'_>, command: TenantCommand) -> Result<(), Failure> {
    match command {
        TenantCommand::Create(args) => create(context, *args).await,
        TenantCommand::List(args) => list(context, args).await,
        TenantCommand::Show { slug } => {
            let tenant = fetch(&context.client()?, &slug).await?;
            context.output.data(&tenant, || shown(&tenant))
        }
        TenantCommand::Set(args) => set(context, args).await,
        TenantCommand::Invite(args) => invite(context, args).await,
        TenantCommand::Backup(args) => backup::create(context, args).await,
        TenantCommand::Restore(args) => backup::restore(context, *args).await,
        TenantCommand::Suspend(args) => life::suspend(context, args).await,
        TenantCommand::Resume(args) => life::resume(context, args).await,
        TenantCommand::Delete(args) => life::delete(context, args).await,
        TenantCommand::Undelete(args) => life::undelete(context, args).await,
        TenantCommand::DatabaseToken(args) => database_token(context, args).await,
    }
}

pub(super) async fn fetch(client: &Client, slug: &str) -> Result<Tenant, Failure> {
    client.get(&["platform", "v1", "tenants", slug], &[]).await
}

/// Where a client's configuration goes.
enum Destination {
    File(Reserved),
    Stdout,
}

/// A client's configuration that has been written down, or is still to be printed.
enum Handed {
    File(PathBuf),
    Text { text: String, invite: AdminInvite },
}

impl Destination {
    fn new(args: ConfigFileArgs, usual: String) -> Result<Self, Failure> {
        if args.print_config {
            return Ok(Self::Stdout);
        }
        let target = args.config_file.unwrap_or_else(|| PathBuf::from(usual));
        Reserved::new(target, args.force).map(Self::File)
    }

    /// Writes the configuration down. If that fails the invite is lost, but a new one can be made.
    fn hand_over(self, tenant: &Tenant, invite: AdminInvite, token: Option<&DatabaseToken>) -> Result<Handed, Failure> {
        let text = config_file::render(tenant, &invite, token)?;
        match self {
            Self::Stdout => Ok(Handed::Text { text, invite }),
            Self::File(reserved) => {
                let written = reserved.write(&text).map_err(|failure| {
                    failure
                        .exiting(Exit::Failed)
                        .detail("The invite could not be written down, and is not shown again.")
                        .hint(format!("freehold tenant invite {}", tenant.slug))
                })?;
                Ok(Handed::File(written))
            }
        }
    }
}

impl Handed {
    /// What stands in the JSON document. The invite's token only where printing it was asked for.
    fn document(&self) -> Map<String, Value> {
        let mut document = Map::new();
        match self {
            Self::File(path) => {
                document.insert("config_file".into(), json!(path));
            }
            Self::Text { text, invite } => {
                document.insert("config".into(), json!(text));
                document.insert("admin_invite".into(), json!(invite));
            }
        }
        document
    }
}

async fn create(context: &Context<'_>, args: TenantCreateArgs) -> Result<(), Failure> {
    let output = context.output;
    let client = context.client()?;
    let destination = Destination::new(args.config, format!("./{}.env", args.slug))?;
    let key = args.idempotency_key.unwrap_or_else(|| Uuid::new_v4().to_string());
    let database = match (&args.database_url_file, args.own_database) {
        (None, false) => DatabaseRequest::Managed { cluster: args.cluster },
        (file, _) => DatabaseRequest::Own {
            url: file.as_deref().map(|file| input::secret_from_file(file, "database URL")).transpose()?,
            ca: args.database_ca_file.as_deref().map(input::certificates_from_file).transpose()?,
        },
    };
    let request = CreateTenantRequest {
        slug: args.slug,
        name: args.name,
        plan: args.plan,
        template: args.template,
        admin_email: args.admin_email,
        database,
    };
    let answer: CreateTenantResponse = client.post_once(&TENANTS, &request, &key, output).await?;
    let CreateTenantResponse { tenant, operation, admin_invite, database_token, database_check } = answer;
    // The invite is shown this once, so it is written down before anything else can go wrong.
    let handed = destination
        .hand_over(&tenant, admin_invite, database_token.as_ref())
        .map_err(|failure| failure.with_result(json!({ "tenant": tenant, "operation": operation })))?;
    if let Handed::File(path) = &handed {
        output.note(format!("Wrote {}, which holds the client's invite.", path.display()));
    }
    for finding in database_check.iter().flat_map(|check| &check.findings) {
        if finding.severity != FindingSeverity::Note {
            output.note(format!("{}\n  hint: {}", finding_line(finding), finding.remedy));
        }
    }
    let Some(operation) = operation else {
        output.note("The tenant waits until its client gives the database, as the file says.");
        return created(context, &tenant, None, &handed);
    };
    if args.detach {
        output.note(format!("hint: freehold operation follow {}", operation.id));
        return created(context, &tenant, Some(&operation), &handed);
    }
    let settled = match follow::follow(&client, output, operation.id).await {
        Ok(settled) => settled,
        Err(failure) => return Err(beside(context, failure, &tenant, &operation, &handed)),
    };
    // The registry has changed meanwhile. It is shown as it was if it cannot be asked now.
    let tenant = fetch(&client, &tenant.slug).await.unwrap_or(tenant);
    if let Err(failure) = follow::outcome(&settled) {
        return Err(beside(context, failure, &tenant, &settled, &handed));
    }
    created(context, &tenant, Some(&settled), &handed)
}

/// A failure after the tenant was accepted, with what there is nevertheless. A configuration that was to be printed
/// still is: its invite works once a retry has succeeded.
fn beside(context: &Context<'_>, failure: Failure, tenant: &Tenant, operation: &Operation, handed: &Handed) -> Failure {
    if context.global.json {
        return failure.with_result(document(tenant, Some(operation), handed));
    }
    match handed {
        Handed::Text { text, .. } => match context.output.data(&(), || text.clone()) {
            Ok(()) => failure,
            Err(unwritten) => failure.detail(unwritten.lines().join(" ")),
        },
        Handed::File(_) => failure,
    }
}

fn document(tenant: &Tenant, operation: Option<&Operation>, handed: &Handed) -> Value {
    let mut document = handed.document();
    document.insert("tenant".into(), json!(tenant));
    document.insert("operation".into(), json!(operation));
    Value::Object(document)
}

fn created(
    context: &Context<'_>,
    tenant: &Tenant,
    operation: Option<&Operation>,
    handed: &Handed,
) -> Result<(), Failure> {
    context.output.data(&document(tenant, operation, handed), || match handed {
        // Whoever asked for the configuration on stdout wants nothing else there.
        Handed::Text { text, .. } => text.clone(),
        Handed::File(path) => format!("{}\nconfig file     {}", shown(tenant), path.display()),
    })
}

async fn database_token(context: &Context<'_>, args: TenantDatabaseTokenArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let destination = Destination::new(args.config, format!("./{}-database.env", args.slug))?;
    let path = ["platform", "v1", "tenants", &args.slug, "database-token"];
    let token: DatabaseToken = client.post(&path, &json!({})).await?;
    let text = config_file::render_token(&args.slug, &token)?;
    let written = match destination {
        Destination::Stdout => None,
        Destination::File(reserved) => Some(reserved.write(&text)?),
    };
    let mut document = json!({ "tenant": args.slug, "expires_at": token.expires_at });
    if let Value::Object(fields) = &mut document {
        match &written {
            Some(path) => fields.insert("config_file".into(), json!(path)),
            None => fields.insert("database_token".into(), json!(token.token)),
        };
    }
    context.output.data(&document, || match &written {
        None => text,
        Some(path) => fields(&[
            ("tenant", args.slug.clone()),
            ("expires", instant(token.expires_at)),
            ("config file", path.display().to_string()),
        ]),
    })
}

async fn list(context: &Context<'_>, args: TenantListArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let listed = pages(&args.page, &[("state", args.state)], async |query| {
        let page: TenantPage = client.get(&TENANTS, &query).await?;
        Ok((page.items, page.next_cursor))
    })
    .await?;
    let rows: Vec<Vec<String>> = listed
        .items
        .iter()
        .map(|tenant| {
            vec![
                tenant.slug.clone(),
                tenant.name.clone(),
                tenant.plan.clone(),
                wire(&tenant.state),
                optional(tenant.database.cluster.as_ref()),
                optional(tenant.schema_version),
                instant(tenant.created_at),
            ]
        })
        .collect();
    let header = ["slug", "name", "plan", "state", "cluster", "schema", "created"];
    context.output.data(&listed, || table(&header, &rows, "No tenants."))?;
    note_more(context.output, &listed);
    Ok(())
}

async fn set(context: &Context<'_>, args: TenantSetArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let set = |limit: Option<RequestLimit>| limit.map(|RequestLimit(limit)| limit);
    let mut change = TenantLimitsChange {
        connections: None,
        requests_per_minute: set(args.requests_per_minute),
        requests_per_minute_per_user: set(args.requests_per_minute_per_user),
        requests_per_minute_per_api_key: set(args.requests_per_minute_per_api_key),
        requests_per_month: set(args.requests_per_month),
        features: (!args.features.is_empty()).then(|| args.features.iter().cloned().collect()),
    };
    for Limit { name: LimitName::Connections, value } in &args.limits {
        change.connections = Some(*value);
    }
    let limits = (change != TenantLimitsChange::default()).then_some(change);
    let ai_mode = args.ai_mode.as_deref().map(AiMode::parse);
    let (name, plan, admin_email) = (args.name, args.plan, args.admin_email);
    let change = UpdateTenantRequest { name, plan, admin_email, limits, ai_mode };
    let tenant: Tenant = client.patch(&["platform", "v1", "tenants", &args.slug], &change).await?;
    context.output.data(&tenant, || shown(&tenant))
}

async fn invite(context: &Context<'_>, args: TenantInviteArgs) -> Result<(), Failure> {
    let client = context.client()?;
    let destination = Destination::new(args.config, format!("./{}-invite.env", args.slug))?;
    let tenant = fetch(&client, &args.slug).await?;
    let request = CreateInviteRequest { email: args.email };
    let path = ["platform", "v1", "tenants", &args.slug, "invites"];
    let invite: AdminInvite = client.post(&path, &request).await?;
    let (email, expires_at) = (invite.email.clone(), invite.expires_at);
    let handed = destination.hand_over(&tenant, invite, None)?;
    let mut document = json!({ "tenant": tenant.slug, "email": email, "expires_at": expires_at });
    if let Value::Object(fields) = &mut document {
        fields.extend(handed.document());
    }
    context.output.data(&document, || match &handed {
        Handed::Text { text, .. } => text.clone(),
        Handed::File(path) => fields(&[
            ("tenant", tenant.slug.clone()),
            ("invited", email),
            ("expires", instant(expires_at)),
            ("config file", path.display().to_string()),
        ]),
    })
}

pub(super) fn shown(tenant: &Tenant) -> String {
    let mut pairs = vec![
        ("slug", tenant.slug.clone()),
        ("name", tenant.name.clone()),
        ("id", tenant.id.to_string()),
        ("state", wire(&tenant.state)),
        ("plan", tenant.plan.clone()),
        ("template", tenant.template.clone()),
        ("models", wire(&tenant.ai_mode)),
        ("admin", tenant.admin_email.clone()),
        ("database", wire(&tenant.database.mode)),
        ("cluster", optional(tenant.database.cluster.as_ref())),
        ("database name", optional(tenant.database.name.as_ref())),
        ("schema version", optional(tenant.schema_version)),
        ("created", instant(tenant.created_at)),
        ("active since", optional(tenant.activated_at.map(instant))),
    ];
    if let Some(connections) = tenant.limits.connections {
        pairs.push(("connections", format!("at most {connections} on each server")));
    }
    let limits = &tenant.limits;
    let own = [
        ("requests a minute", limits.requests_per_minute),
        ("of each user", limits.requests_per_minute_per_user),
        ("of each API key", limits.requests_per_minute_per_api_key),
        ("requests a month", limits.requests_per_month),
    ];
    let own = own.into_iter().filter_map(|(name, limit)| Some((name, limit?)));
    pairs.extend(own.map(|(name, limit)| (name, limit.number().map_or("unlimited".to_owned(), |n| n.to_string()))));
    if !limits.features.is_empty() {
        let features = limits.features.iter().map(|(name, on)| format!("{name} {}", if *on { "on" } else { "off" }));
        pairs.push(("features", features.collect::<Vec<_>>().join(", ")));
    }
    if let Some(month) = &tenant.requests_this_month {
        let told = match (month.used, month.limit) {
            (Some(used), Some(limit)) => format!("{used} of {limit} used, until {}", instant(month.resets_at)),
            _ => "unlimited".to_owned(),
        };
        pairs.push(("this month", told));
    }
    if let Some(at) = tenant.suspended_at {
        let reason = tenant.suspend_reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        pairs.push(("suspended", format!("{}{reason}", instant(at))));
    }
    match (tenant.deleted_at, tenant.delete_after) {
        (Some(at), _) => pairs.push(("deleted", instant(at))),
        (None, Some(at)) => pairs.push(("deleted after", instant(at))),
        (None, None) => {}
    }
    let shown = fields(&pairs);
    if tenant.rotations.is_empty() {
        return shown;
    }
    let rows: Vec<Vec<String>> = tenant
        .rotations
        .iter()
        .map(|rotation| {
            vec![
                wire(&rotation.kind),
                optional(rotation.last_at.map(instant)),
                optional(rotation.next_at.map(instant)),
                rotation.every_days.map_or_else(|| "-".to_owned(), |days| format!("every {days} days")),
            ]
        })
        .collect();
    format!("{shown}\n\n{}", table(&["rotation", "last", "next", "schedule"], &rows, ""))
}
