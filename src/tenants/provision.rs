//! The operation `provision_tenant`: from a row in the registry to a database that answers.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `prepare_keys` | data key wrapped, password and signing key sealed: the intent is written first | keys destroyed |
//! | `create_roles` | owner and login role, with that password | roles dropped |
//! | `create_database` | cloned from the template, PUBLIC shut out | dropped |
//! | `assign_ownership` | everything in it given to the owner role; isolation checked | - |
//! | `apply_template` | as the tenant itself: a schema cloned from an older template brought up to date, first configuration, first admin's invite | - |

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use zeroize::Zeroizing;

use super::TenantError;
use super::clusters::ClusterRegistry;
use super::first_rows::{self, FirstRows};
use super::store::{self, NewCredentials};
use super::templates::Templates;
use crate::clock::SharedClock;
use crate::ids::{ClusterId, InviteId, SigningKeyId, Slug, TenantId};
use crate::operations::{Definition, Outcome, SettleFuture, Step, StepContext, StepError, StepFuture};
use crate::provisioning::{self, Cluster, DatabaseNames, MigrateError, MigrateLimits, ProvisioningError};
use crate::secrets::{DataKey, DatabaseUrl, MasterKeyring, Sealed, connect, generate_password};
use crate::tenant_db::{database_url_location, signing_key_location};

/// How long bringing a fresh clone up to date may take.
const MIGRATION_PATIENCE: Duration = Duration::from_secs(60);

/// What the steps need.
#[derive(Debug)]
pub struct Provisioning {
    /// The platform's database.
    pub pool: PgPool,
    /// Wraps the new tenant's data key.
    pub master_keys: Arc<MasterKeyring>,
    /// Where databases are made.
    pub clusters: ClusterRegistry,
    /// What a tenant starts with.
    pub templates: Arc<Templates>,
    /// The time.
    pub clock: SharedClock,
}

/// What was asked for. Only the hash of the invite: the input is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ProvisionInput {
    pub(super) cluster_id: ClusterId,
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
    kind: "provision_tenant",
    steps: &[
        Step { name: "prepare_keys", run: |s, c| boxed(prepare_keys(s, c)), undo: |s, c| boxed(destroy_keys(s, c)) },
        Step { name: "create_roles", run: |s, c| boxed(create_roles(s, c)), undo: |s, c| boxed(drop_roles(s, c)) },
        Step {
            name: "create_database",
            run: |s, c| boxed(create_database(s, c)),
            undo: |s, c| boxed(drop_database(s, c)),
        },
        // The last two leave nothing outside the database, which goes as a whole, but the note of its version.
        Step { name: "assign_ownership", run: |s, c| boxed(assign_ownership(s, c)), undo: |_, _| boxed(nothing()) },
        Step {
            name: "apply_template",
            run: |s, c| boxed(apply_template(s, c)),
            undo: |s, c| boxed(forget_schema(s, c)),
        },
    ],
    settle,
};

pub(super) fn boxed(work: impl Future<Output = Result<(), StepError>> + Send + 'static) -> StepFuture<'static> {
    Box::pin(work)
}

pub(super) async fn nothing() -> Result<(), StepError> {
    Ok(())
}

impl From<TenantError> for StepError {
    fn from(error: TenantError) -> Self {
        match error {
            TenantError::Provisioning(error) => error.into(),
            TenantError::Sealed => permanent(
                "sealed_value",
                "a sealed value did not open; check that FREEHOLD_MASTER_KEYS holds every key in use",
            ),
            TenantError::NotFound => permanent("tenant_not_found", "the tenant is not registered any more"),
            TenantError::UnknownCluster => permanent("cluster_not_found", "the cluster is not registered any more"),
            other => Self::Transient("the platform database failed", other.into()),
        }
    }
}

impl From<ProvisioningError> for StepError {
    fn from(error: ProvisioningError) -> Self {
        match &error {
            ProvisioningError::Unreachable(_) => Self::Transient("the cluster cannot be reached", error.into()),
            ProvisioningError::Statement(_) => Self::Transient("the cluster refused a statement", error.into()),
            ProvisioningError::Migration(_) => {
                Self::Transient("the cluster's template database could not be built", error.into())
            }
            ProvisioningError::SessionsLeft => {
                Self::Transient("sessions of the tenant's roles do not end", error.into())
            }
            ProvisioningError::NotIsolated(_) => permanent("not_isolated", &error.to_string()),
            ProvisioningError::Unsuitable(reason) => permanent("cluster_unsuitable", reason),
        }
    }
}

pub(super) fn permanent(code: &'static str, message: &str) -> StepError {
    StepError::Permanent { code, message: message.to_owned() }
}

/// The input and what follows from it.
struct Task {
    tenant: TenantId,
    input: ProvisionInput,
    names: DatabaseNames,
}

fn task(context: StepContext) -> Result<Task, StepError> {
    let unreadable = || permanent("input_unreadable", "the operation's input cannot be read");
    let input: ProvisionInput = serde_json::from_value(context.input).map_err(|_| unreadable())?;
    let tenant = context.tenant_id.ok_or_else(unreadable)?;
    Ok(Task { tenant, names: DatabaseNames::new(&input.slug, tenant), input })
}

async fn open_cluster(services: &Provisioning, task: &Task) -> Result<Cluster, StepError> {
    Ok(services.clusters.open(task.input.cluster_id).await?)
}

/// The credentials that `prepare_keys` wrote down.
async fn credentials(services: &Provisioning, task: &Task) -> Result<DatabaseUrl, StepError> {
    let sealed = store::find_credentials(&services.pool, task.tenant).await.map_err(TenantError::from)?;
    let open = || -> Option<DatabaseUrl> {
        let sealed = sealed?;
        let wrapped = Sealed::from_bytes(sealed.wrapped_key).ok()?;
        let key = services.master_keys.unwrap(task.tenant, u32::try_from(sealed.key_version).ok()?, &wrapped).ok()?;
        let url = Sealed::from_bytes(sealed.url_sealed).ok()?;
        DatabaseUrl::parse(&key.open_str(&database_url_location(task.tenant), &url).ok()?).ok()
    };
    open().ok_or_else(|| TenantError::Sealed.into())
}

async fn prepare_keys(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    if store::is_ending(&services.pool, task.tenant).await.map_err(TenantError::from)? {
        return Err(permanent("wrong_tenant_state", "the tenant was deleted meanwhile; create it anew"));
    }
    let cluster = open_cluster(&services, &task).await?;
    let data_key = DataKey::generate(1);
    let wrapped = services.master_keys.wrap(task.tenant, &data_key);
    let url = cluster.tenant_url(&task.names, generate_password());
    let url_sealed = data_key.seal_str(&database_url_location(task.tenant), &url.expose());
    let signing_key = SigningKeyId::new();
    // 256 random bits, as RFC 7518 asks of an HS256 key.
    let secret = Zeroizing::new(rand::random::<[u8; 32]>());
    let secret_sealed = data_key.seal(&signing_key_location(task.tenant, signing_key), secret.as_slice());
    let new = NewCredentials {
        tenant: task.tenant,
        cluster: task.input.cluster_id,
        master_key_version: wrapped.key_version().cast_signed(),
        wrapped_key: wrapped.as_bytes(),
        names: &task.names,
        url_sealed: url_sealed.as_bytes(),
        signing_key: signing_key.as_uuid(),
        signing_secret_sealed: secret_sealed.as_bytes(),
        now: services.clock.now(),
    };
    Ok(store::insert_credentials(&services.pool, &new).await.map_err(TenantError::from)?)
}

async fn destroy_keys(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    Ok(store::delete_credentials(&services.pool, task.tenant).await.map_err(TenantError::from)?)
}

async fn create_roles(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    let url = credentials(&services, &task).await?;
    let password = url.password().cloned().ok_or(TenantError::Sealed)?;
    // Hashing takes 4,096 rounds; the runtime's threads have better things to do meanwhile.
    let verifier = tokio::task::spawn_blocking(move || provisioning::hash_password(&password))
        .await
        .map_err(|error| StepError::Transient("the password could not be hashed", anyhow!(error)))?;
    Ok(open_cluster(&services, &task).await?.create_roles(&task.names, &verifier).await?)
}

async fn drop_roles(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    Ok(open_cluster(&services, &task).await?.drop_roles(&task.names).await?)
}

async fn create_database(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    let cluster = open_cluster(&services, &task).await?;
    services.clusters.ensure_template(task.input.cluster_id, &cluster).await?;
    Ok(cluster.create_database(&task.names).await?)
}

async fn drop_database(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    Ok(open_cluster(&services, &task).await?.drop_database(&task.names).await?)
}

async fn assign_ownership(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    Ok(open_cluster(&services, &task).await?.assign_ownership(&task.names).await?)
}

async fn apply_template(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    let url = credentials(&services, &task).await?;
    // Signing in as the tenant is the proof that its credentials work.
    let (mut client, _) = connect(&url)
        .await
        .map_err(|error| StepError::Transient("the tenant cannot sign in to its database", error.into()))?;
    let refused = |error: anyhow::Error| StepError::Transient("the tenant's database refused a statement", error);
    let found = provisioning::found_schema_version(&client).await.map_err(|error| refused(error.into()))?;
    note_schema(&services, &task, &url, found).await?;
    let first = FirstRows {
        template: &task.input.template,
        name: &task.input.name,
        admin_email: &task.input.admin_email,
        invite_id: task.input.invite_id,
        invite_hash: &task.input.invite_hash,
        invite_expires_at: task.input.invite_expires_at,
    };
    first_rows::write(&services, &mut client, &first).await
}

/// Notes which schema the database has. A server of another version may have made the clone and died, or the fleet may
/// have been migrated since: then it is brought up to date first.
async fn note_schema(
    services: &Provisioning,
    task: &Task,
    url: &DatabaseUrl,
    found: Option<i64>,
) -> Result<(), StepError> {
    let migrations = services.clusters.migrations();
    let target = migrations.current_version();
    if found != Some(target) {
        // Nobody uses it yet, so nothing needs protection but ourselves.
        let limits = MigrateLimits {
            lock_timeout: MIGRATION_PATIENCE,
            statement_timeout: MIGRATION_PATIENCE,
            concurrent_timeout: MIGRATION_PATIENCE,
            tries: 1,
        };
        provisioning::migrate_database(url, migrations, target, &limits).await.map_err(|failure| {
            match failure.error {
                MigrateError::Unknown { version } => permanent(
                    "tenant_schema_too_new",
                    &format!("a newer server cloned the database (migration {version}); let one of that version retry"),
                ),
                error @ (MigrateError::Altered { .. } | MigrateError::Refused { .. }) => {
                    permanent("migration_failed", &error.to_string())
                }
                error => StepError::Transient("the new database could not be brought up to date", error.into()),
            }
        })?;
    }
    let schema = Some((target, migrations.compatible_from(target)));
    Ok(store::set_schema(&services.pool, task.tenant, schema).await.map_err(TenantError::from)?)
}

async fn forget_schema(services: Arc<Provisioning>, context: StepContext) -> Result<(), StepError> {
    let task = task(context)?;
    Ok(store::set_schema(&services.pool, task.tenant, None).await.map_err(TenantError::from)?)
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
            Outcome::Succeeded => "active",
            Outcome::Failed | Outcome::NeedsOperator => "failed",
        };
        store::set_state(connection, tenant, state, now).await
    })
}
