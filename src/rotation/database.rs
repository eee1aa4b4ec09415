//! The operation `rotate_database_credential`: the two login roles of a managed tenant's database change places.
//!
//! | step | does | undo |
//! |---|---|---|
//! | `write_intent` | the other role's name and a new password, sealed: the intent is on record first | forgotten |
//! | `set_password` | the other role may sign in with it, beside the one in use | shut out again |
//! | `test_connection` | signs in as the other role; isolation checked | - |
//! | `switch` | the record leads to the other role, in one statement; every server hears of it | finished, as `retire` |
//! | `grace` | waits until nobody uses the old one | - |
//! | `retire` | the old role is shut out, its password gone, its sessions ended | - |
//!
//! Before `switch` the credential in use is untouched, and from `set_password` to `retire` both work: at every instant
//! the record holds one that does. After `switch` the new one is in use and proved, and the old one's password is on
//! record no more; so undoing goes forward, and shuts the old one out.
//!
//! Nothing is brought in for a tenant that is not active: a rotation that failed may be retried long after the tenant
//! was suspended or deleted, and would let a role sign in again that was locked. Shutting out is always allowed.

use std::sync::Arc;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::keys::DataKeys;
use super::store::{self, Credential};
use super::{Rotator, permanent, platform_failed, record_success, sealed_value, tenant_of};
use crate::api::platform::TenantState;
use crate::api::rotation::RotationKind;
use crate::ids::TenantId;
use crate::operations::{Definition, Outcome, SettleFuture, Step, StepContext, StepError, StepFuture};
use crate::provisioning::{self, Cluster, DatabaseNames};
use crate::secrets::{DatabaseUrl, generate_password};
use crate::tenant_db::{database_url_location, next_database_url_location};

/// The operation.
pub static DEFINITION: Definition<Rotator> = Definition {
    kind: "rotate_database_credential",
    steps: &[
        Step { name: "write_intent", run: |s, c| boxed(write_intent(s, c)), undo: |s, c| boxed(forget_intent(s, c)) },
        Step { name: "set_password", run: |s, c| boxed(set_password(s, c)), undo: |s, c| boxed(unset_password(s, c)) },
        Step { name: "test_connection", run: |s, c| boxed(test_connection(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "switch", run: |s, c| boxed(switch(s, c)), undo: |s, c| boxed(retire(s, c)) },
        Step { name: "grace", run: |s, c| boxed(grace(s, c)), undo: |_, _| boxed(nothing()) },
        Step { name: "retire", run: |s, c| boxed(retire(s, c)), undo: |_, _| boxed(nothing()) },
    ],
    settle,
};

fn boxed(work: impl Future<Output = Result<(), StepError>> + Send + 'static) -> StepFuture<'static> {
    Box::pin(work)
}

async fn nothing() -> Result<(), StepError> {
    Ok(())
}

/// The credential as registered, and the names on its cluster.
struct Task {
    tenant: TenantId,
    credential: Credential,
    names: DatabaseNames,
    cluster: Cluster,
}

async fn task(services: &Rotator, context: &StepContext) -> Result<Task, StepError> {
    let tenant = tenant_of(context)?;
    let credential = store::credential(&services.pool, tenant).await.map_err(platform_failed)?;
    let credential = credential.ok_or_else(|| permanent("tenant_gone", "the tenant has no database any more"))?;
    let (Some(cluster), Some(owner_role)) = (credential.cluster_id, credential.owner_role.clone()) else {
        return Err(permanent("database_not_managed", "the client keeps this database, and its password, itself"));
    };
    let cluster = services.clusters.open(cluster).await?;
    let names = DatabaseNames {
        database: credential.database_name.clone(),
        owner_role,
        login_role: credential.login_role.clone(),
    };
    Ok(Task { tenant, credential, names, cluster })
}

/// The task, of a tenant that is in service. No operation can take it out of service while this one is not settled.
async fn active_task(services: &Rotator, context: &StepContext) -> Result<Task, StepError> {
    let task = task(services, context).await?;
    match TenantState::parse(&task.credential.state) {
        TenantState::Active => Ok(task),
        state => {
            let message = format!("the tenant is `{}`, and its logins stay locked", state.as_str());
            Err(permanent("wrong_tenant_state", &message))
        }
    }
}

impl Task {
    /// The names with the login role that is being brought in.
    fn next_names(&self) -> Option<DatabaseNames> {
        let login_role = self.credential.next_login_role.clone()?;
        Some(DatabaseNames { login_role, ..self.names.clone() })
    }

    /// The credential that is being brought in.
    async fn next_url(&self, services: &Rotator) -> Result<DatabaseUrl, StepError> {
        let sealed = self.credential.next_url_sealed.as_deref().ok_or_else(intent_missing)?;
        let keys = DataKeys::open(services, self.tenant).await?;
        let text = keys.open_text(&next_database_url_location(self.tenant), sealed)?;
        DatabaseUrl::parse(&text).map_err(|_| sealed_value())
    }
}

fn intent_missing() -> StepError {
    permanent("intent_missing", "the new credential is not on record any more; ask for the rotation again")
}

async fn write_intent(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let task = active_task(&services, &context).await?;
    // What an earlier rotation could not end is ended first: its old role is the one whose turn it is.
    retire_of(&services, &task).await?;
    if task.credential.next_url_sealed.is_some() {
        // A password that may be in force already is never replaced by another.
        return Ok(());
    }
    let keys = DataKeys::open(&services, task.tenant).await?;
    let next = task.names.alternate();
    // By the cluster's address of today, which may be another than when the tenant was made.
    let url = task.cluster.tenant_url(&next, generate_password());
    let sealed = keys.sealing()?.seal_str(&next_database_url_location(task.tenant), &url.expose());
    store::write_next_credential(&services.pool, task.tenant, &next.login_role, sealed.as_bytes())
        .await
        .map_err(platform_failed)
}

async fn forget_intent(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    // Undone last: the role of this credential is shut out by now.
    store::forget_next_credential(&services.pool, tenant_of(&context)?).await.map_err(platform_failed)
}

async fn set_password(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let task = active_task(&services, &context).await?;
    let Some(names) = task.next_names() else { return Err(intent_missing()) };
    let password = task.next_url(&services).await?.password().cloned().ok_or_else(sealed_value)?;
    // Hashing takes 4,096 rounds; the runtime's threads have better things to do meanwhile.
    let verifier = tokio::task::spawn_blocking(move || provisioning::hash_password(&password))
        .await
        .map_err(|error| StepError::Transient("the password could not be hashed", anyhow!(error)))?;
    Ok(task.cluster.enable_login(&names, &verifier).await?)
}

async fn unset_password(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let task = match task(&services, &context).await {
        // Never begun: there is nothing to take back where there is no managed database.
        Err(StepError::Permanent { code: "database_not_managed" | "tenant_gone", .. }) => return Ok(()),
        other => other?,
    };
    match task.next_names() {
        Some(names) if names.login_role != task.credential.login_role => Ok(task.cluster.disable_login(&names).await?),
        _ => Ok(()),
    }
}

async fn test_connection(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let task = task(&services, &context).await?;
    let Some(names) = task.next_names() else { return Err(intent_missing()) };
    let url = task.next_url(&services).await?;
    Ok(provisioning::check_login(&url, &names).await?)
}

async fn switch(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let task = active_task(&services, &context).await?;
    let Some(next_sealed) = task.credential.next_url_sealed.as_deref() else {
        // Done already, if an old role waits to be retired.
        return if task.credential.retiring_login_role.is_some() { Ok(()) } else { Err(intent_missing()) };
    };
    let url = task.next_url(&services).await?;
    let keys = DataKeys::open(&services, task.tenant).await?;
    let sealed = keys.sealing()?.seal_str(&database_url_location(task.tenant), &url.expose());
    let now = services.clock.now();
    let switched = store::switch_credential(&services.pool, task.tenant, next_sealed, sealed.as_bytes(), now)
        .await
        .map_err(platform_failed)?;
    if switched {
        Ok(())
    } else {
        Err(StepError::Transient("the new credential changed meanwhile", anyhow!("another writer")))
    }
}

async fn grace(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let credential = store::credential(&services.pool, tenant_of(&context)?).await.map_err(platform_failed)?;
    match credential.and_then(|credential| credential.rotated_at) {
        Some(rotated_at) => services.wait_until(rotated_at + services.grace),
        None => Ok(()),
    }
}

async fn retire(services: Arc<Rotator>, context: StepContext) -> Result<(), StepError> {
    let task = match task(&services, &context).await {
        Err(StepError::Permanent { code: "database_not_managed" | "tenant_gone", .. }) => return Ok(()),
        other => other?,
    };
    retire_of(&services, &task).await
}

/// Shuts the replaced role out, once requests that use it have had their time.
async fn retire_of(services: &Rotator, task: &Task) -> Result<(), StepError> {
    let Some(retiring) = task.credential.retiring_login_role.clone() else { return Ok(()) };
    if let Some(rotated_at) = task.credential.rotated_at {
        services.wait_until(rotated_at + services.grace)?;
    }
    // Never the one in use, whatever the record says.
    if retiring != task.credential.login_role {
        let names = DatabaseNames { login_role: retiring.clone(), ..task.names.clone() };
        task.cluster.disable_login(&names).await?;
    }
    store::credential_retired(&services.pool, task.tenant, &retiring).await.map_err(platform_failed)
}

fn settle<'a>(
    connection: &'a mut PgConnection,
    context: &'a StepContext,
    outcome: Outcome,
    now: DateTime<Utc>,
) -> SettleFuture<'a> {
    Box::pin(record_success(connection, RotationKind::Database, context, outcome, now))
}
