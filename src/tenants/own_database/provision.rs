//! The operation `provision_own_database`: from an address that a client gave to a tenant in service.
//!
//! The address and the data key that seals it are on record before the operation is: its input holds no secret. They
//! are what was asked for, and so no step makes or destroys them: a retry finds them, or what replaced them.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `prepare_keys` | the signing key, sealed | destroyed |
//! | `claim_database` | the marker: this database is this tenant's, claimed by this operation | see below |
//! | `migrate_database` | the tenant's schema, as the client's own role | everything this operation made is dropped |
//! | `apply_template` | the first settings, the first admin's invite | goes with its tables |
//!
//! What the undo drops is decided by what is on record in the database itself: the marker has to name this tenant and this
//! operation, tables are dropped that migrations noted there have made, nothing is dropped once somebody has an account
//! in it, and nothing that depends on our tables is dropped along. So a database is afterwards as it was found.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use zeroize::Zeroizing;

use super::store;
use crate::ids::{InviteId, SigningKeyId, Slug, TenantId};
use crate::operations::{Definition, Outcome, SettleFuture, Step, StepContext, StepError};
use crate::provisioning::{OwnDatabaseError, own};
use crate::secrets::{DatabaseUrl, connect};
use crate::tenant_db::signing_key_location;
use crate::tenants::first_rows::{self, FirstRows};
use crate::tenants::provision::{Provisioning, boxed, nothing, permanent};
use crate::tenants::{TenantError, store as registry_store};

/// What was asked for. Only the hash of the invite: the input is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OwnInput {
    pub(super) slug: Slug,
    pub(super) name: String,
    pub(super) template: String,
    pub(super) admin_email: String,
    pub(super) invite_id: InviteId,
    pub(super) invite_hash: String,
    pub(super) invite_expires_at: DateTime<Utc>,
}

/// The operation.
pub static DEFINITION: Definition<Provisioning> = Definition {
    kind: "provision_own_database",
    steps: &[
        Step { name: "prepare_keys", run: |s, c| boxed(prepare_keys(s, c)), undo: |s, c| boxed(destroy_keys(s, c)) },
        Step { name: "claim_database", run: |s, c| boxed(claim(s, c)), undo: |s, c| boxed(give_back(s, c)) },
        Step { name: "migrate_database", run: |s, c| boxed(migrate(s, c)), undo: |s, c| boxed(give_back(s, c)) },
        // Its rows go with the tables.
        Step { name: "apply_template", run: |s, c| boxed(apply_template(s, c)), undo: |_, _| boxed(nothing()) },
    ],
    settle,
};

impl From<OwnDatabaseError> for StepError {
    fn from(error: OwnDatabaseError) -> Self {
        match &error {
            OwnDatabaseError::Unreachable(_) => Self::Transient(
                "the client's database does not let us in; check it with `freehold database check`",
                error.into(),
            ),
            OwnDatabaseError::Statement(_) => {
                Self::Transient("the client's database refused a statement", error.into())
            }
            OwnDatabaseError::TimedOut => Self::Transient("the client's database did not answer in time", error.into()),
            OwnDatabaseError::Held => Self::Transient("somebody else changes the database's schema", error.into()),
            OwnDatabaseError::Taken => permanent("database_of_another_tenant", &error.to_string()),
            OwnDatabaseError::ForeignTables => permanent("foreign_tables", &error.to_string()),
            OwnDatabaseError::InUse => permanent("database_in_use", &error.to_string()),
            OwnDatabaseError::Altered(_) => permanent("migration_altered", &error.to_string()),
        }
    }
}

struct Task {
    tenant: TenantId,
    context: StepContext,
    input: OwnInput,
}

fn task(context: StepContext) -> Result<Task, StepError> {
    let unreadable = || permanent("input_unreadable", "the operation's input cannot be read");
    let input: OwnInput = serde_json::from_value(context.input.clone()).map_err(|_| unreadable())?;
    Ok(Task { tenant: context.tenant_id.ok_or_else(unreadable)?, context, input })
}

/// The address in force: the one that was given last.
async fn url(services: &Provisioning, tenant: TenantId) -> Result<DatabaseUrl, StepError> {
    let mut connection = services.pool.acquire().await.map_err(TenantError::from)?;
    let registered = super::open_registered(&mut connection, &services.master_keys, tenant).await?;
    Ok(registered.ok_or(TenantError::Sealed)?.url)
}

async fn prepare_keys(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    let mut connection = services.pool.acquire().await.map_err(TenantError::from)?;
    let registered = super::open_registered(&mut connection, &services.master_keys, task.tenant).await?;
    let key = SigningKeyId::new();
    // 256 random bits, as RFC 7518 asks of an HS256 key.
    let secret = Zeroizing::new(rand::random::<[u8; 32]>());
    let sealed =
        registered.ok_or(TenantError::Sealed)?.key.seal(&signing_key_location(task.tenant, key), secret.as_slice());
    let now = services.clock.now();
    let stored = store::insert_signing_key(&mut connection, task.tenant, key, sealed.as_bytes(), now).await;
    Ok(stored.map_err(TenantError::from)?)
}

async fn destroy_keys(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    let mut connection = services.pool.acquire().await.map_err(TenantError::from)?;
    Ok(store::delete_signing_keys(&mut connection, task.tenant).await.map_err(TenantError::from)?)
}

async fn claim(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    let url = url(&services, task.tenant).await?;
    Ok(own::claim(&url, task.tenant, task.context.operation_id).await?)
}

async fn migrate(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    let url = url(&services, task.tenant).await?;
    let migrations = services.clusters.migrations();
    let version = own::migrate(&url, task.tenant, migrations).await?;
    let schema = Some((version, migrations.compatible_from(version)));
    Ok(registry_store::set_schema(&services.pool, task.tenant, schema).await.map_err(TenantError::from)?)
}

async fn give_back(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    let url = url(&services, task.tenant).await?;
    own::give_back(&url, task.tenant, task.context.operation_id, services.clusters.migrations()).await?;
    Ok(registry_store::set_schema(&services.pool, task.tenant, None).await.map_err(TenantError::from)?)
}

async fn apply_template(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    let url = url(&services, task.tenant).await?;
    let first = FirstRows {
        template: &task.input.template,
        name: &task.input.name,
        admin_email: &task.input.admin_email,
        invite_id: task.input.invite_id,
        invite_hash: &task.input.invite_hash,
        invite_expires_at: task.input.invite_expires_at,
    };
    // Signing in as the tenant is the proof that its credentials work.
    let (mut client, _) = connect(&url).await.map_err(OwnDatabaseError::from)?;
    first_rows::write(&services, &mut client, &first).await
}

fn settle<'a>(
    connection: &'a mut PgConnection,
    context: &'a StepContext,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> SettleFuture<'a> {
    Box::pin(async move {
        let Some(tenant) = context.tenant_id else { return Ok(()) };
        let state = match outcome {
            Outcome::Started => "provisioning",
            Outcome::Succeeded => {
                // The database is in service: what the client used to give it is used up.
                store::set_token(connection, tenant, None).await?;
                "active"
            }
            Outcome::Failed | Outcome::NeedsOperator => "failed",
        };
        registry_store::set_state(connection, tenant, state, now).await
    })
}
