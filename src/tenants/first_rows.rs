//! The first rows of a tenant's database: its settings and its first admin's invite. The same wherever it is.

use chrono::{DateTime, Utc};
use tokio_postgres::Client;

use super::provision::{Provisioning, permanent};
use crate::ids::InviteId;
use crate::operations::StepError;
use crate::secrets::HashedToken;
use crate::{access, configuration};

/// What they are made from.
pub(super) struct FirstRows<'a> {
    pub(super) template: &'a str,
    pub(super) name: &'a str,
    pub(super) admin_email: &'a str,
    pub(super) invite_id: InviteId,
    pub(super) invite_hash: &'a str,
    pub(super) invite_expires_at: DateTime<Utc>,
}

/// Writes them as the tenant itself, in one transaction. Safe to repeat.
pub(super) async fn write(
    services: &Provisioning,
    client: &mut Client,
    first: &FirstRows<'_>,
) -> Result<(), StepError> {
    let settings = services
        .templates
        .settings(first.template, first.name)
        .ok_or_else(|| permanent("template_not_found", "the template is not there any more"))?;
    let hash = hex::decode(first.invite_hash).ok().and_then(|bytes| HashedToken::try_from(&*bytes).ok());
    let hash = hash.ok_or_else(|| permanent("input_unreadable", "the operation's input cannot be read"))?;
    let refused = |error: anyhow::Error| StepError::Transient("the tenant's database refused a statement", error);
    let transaction = client.transaction().await.map_err(|error| refused(error.into()))?;
    configuration::insert_first(&transaction, &settings, services.clock.now())
        .await
        .map_err(|error| refused(error.into()))?;
    let invite = access::NewInvite {
        id: first.invite_id,
        email: first.admin_email,
        role: crate::api::tenant::Role::Admin,
        token_hash: hash,
        created_at: services.clock.now(),
        expires_at: first.invite_expires_at,
    };
    access::insert_invite(&transaction, &invite).await.map_err(|error| refused(error.into()))?;
    transaction.commit().await.map_err(|error| refused(error.into()))
}
