//! The operation `drop_replaced_database`: what a restore has put out of service goes, after the registry has turned.
//!
//! It is asked for in the transaction that turns the registry. There is no way back from it, and no need for one: what
//! it removes serves nobody. While its cluster is away it fails and holds nothing, so that the tenant can go on; a
//! periodic task asks for it again until it succeeds, and the purge of the tenant drops what it names in any case.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::backup::{boxed, nothing};
use super::store::Replaced;
use super::{BackupError, BackupServices, store};
use crate::ids::{ClusterId, OperationId, TenantId};
use crate::operations::{self, Definition, NewOperation, OperationError, Outcome, SettleFuture, Step, StepContext};
use crate::provisioning::DatabaseNames;

#[derive(Debug, Serialize, Deserialize)]
struct DropInput {
    cluster_id: ClusterId,
    database: String,
    owner_role: String,
    login_roles: Vec<String>,
}

/// The operation.
pub static DEFINITION: Definition<BackupServices> = Definition {
    kind: "drop_replaced_database",
    steps: &[Step { name: "drop_database", run: |s, c| boxed(drop_database(s, c)), undo: |_, _| boxed(nothing()) }],
    settle,
};

/// Asks for it, in the transaction that settles the restore.
pub(super) async fn request(
    connection: &mut PgConnection,
    replaced: Replaced,
    restore: OperationId,
    now: DateTime<Utc>,
) -> Result<(), OperationError> {
    let input = DropInput {
        cluster_id: ClusterId::from_uuid(replaced.cluster_id),
        database: replaced.database_name,
        owner_role: replaced.owner_role,
        login_roles: replaced.login_roles,
    };
    let operation = NewOperation {
        id: OperationId::new(),
        kind: DEFINITION.kind,
        tenant_id: Some(TenantId::from_uuid(replaced.tenant_id)),
        input: serde_json::to_value(&input).map_err(|error| OperationError::Queue(Box::new(error)))?,
        steps: &DEFINITION.steps.iter().map(|step| step.name).collect::<Vec<_>>(),
        created_by: None,
        group_id: Some(restore.as_uuid()),
    };
    operations::store::create(connection, &operation, now).await
}

async fn drop_database(services: Arc<BackupServices>, context: StepContext) -> Result<(), BackupError> {
    let input: DropInput = serde_json::from_value(context.input).map_err(|_| BackupError::Unreadable)?;
    // A record of this kind that were wrong would cost a tenant its data: the registry has the last word.
    if store::in_force(&services.pool, input.cluster_id, &input.database).await? {
        return Err(BackupError::Unreadable);
    }
    let cluster = services.clusters.open(input.cluster_id).await?;
    let names = |login_role: String| DatabaseNames {
        database: input.database.clone(),
        owner_role: input.owner_role.clone(),
        login_role,
    };
    cluster.drop_database(&names(String::new())).await?;
    // Two login roles alternate, and the one that is not in use may lie there still.
    let base = input.owner_role.strip_suffix("_owner").unwrap_or(&input.owner_role);
    let mut logins = input.login_roles.clone();
    logins.extend([format!("{base}_a"), format!("{base}_b")]);
    for login in logins {
        cluster.drop_login_role(&login).await?;
    }
    let owner = names(format!("{base}_a"));
    Ok(cluster.drop_roles(&owner).await?)
}

fn settle<'a>(_: &'a mut PgConnection, _: &'a StepContext, _: Outcome, _: DateTime<Utc>) -> SettleFuture<'a> {
    Box::pin(async { Ok(()) })
}
