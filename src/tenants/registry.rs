//! The registry of tenants: asking for one, looking them up, changing what the owner may change.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use sqlx::types::Json;
use uuid::Uuid;

use super::provision::{self, ProvisionInput};
use super::templates::Templates;
use super::{TenantError, store};
use crate::api::platform::{AiMode, TenantLimits, TenantLimitsChange};
use crate::audit::{self, Actor, Event};
use crate::clock::SharedClock;
use crate::idempotency::Request;
use crate::ids::{InviteId, OperationId, Slug, SuperAdminId, TenantId};
use crate::operations::{self, NewOperation};
use crate::secrets::{MasterKeyring, PlainToken, TokenPrefix};

/// A tenant to be made.
#[derive(Debug, Clone, Serialize)]
pub struct NewTenant {
    /// Its name in addresses.
    pub slug: Slug,
    /// The company's name.
    pub name: String,
    /// Its plan.
    pub plan: String,
    /// The template it starts from.
    pub template: String,
    /// Who becomes the first client admin, in lower case.
    pub admin_email: String,
    /// The cluster's name, if one was asked for.
    pub cluster: Option<String>,
}

/// What asking for a tenant gave. Kept, sealed, for a request that is sent again.
#[derive(Serialize, Deserialize)]
pub struct Requested {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The operation that provisions it.
    pub operation_id: OperationId,
    /// The first client admin's one-time invite.
    pub invite_token: String,
    /// When the invite stops working.
    pub invite_expires_at: DateTime<Utc>,
}

/// A tenant's row.
#[derive(Debug, Clone)]
pub struct TenantRow {
    /// Its id.
    pub id: Uuid,
    /// Its name in addresses.
    pub slug: String,
    /// The company's name.
    pub name: String,
    /// Its plan.
    pub plan: String,
    /// The template it was made from.
    pub template: String,
    /// The registered client admin's address.
    pub admin_email: String,
    /// The state of its life.
    pub state: String,
    /// The version of its database's schema.
    pub schema_version: Option<i64>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When the row last changed.
    pub updated_at: DateTime<Utc>,
    /// When it went into service.
    pub activated_at: Option<DateTime<Utc>>,
    /// Since when it is suspended.
    pub suspended_at: Option<DateTime<Utc>>,
    /// Why.
    pub suspend_reason: Option<String>,
    /// When it is removed for good, while it is being deleted.
    pub delete_after: Option<DateTime<Utc>>,
    /// When it was removed for good.
    pub deleted_at: Option<DateTime<Utc>>,
    /// Whose server its database is on: `managed` or `own`.
    pub database_mode: String,
    /// Its cluster's name, if it is on a cluster of the owner's.
    pub cluster: Option<String>,
    /// What it may use, where that differs from the platform's settings.
    pub limits: Json<TenantLimits>,
    /// Whose models answer its questions: `own`, `shared` or `own_then_shared`.
    pub ai_mode: String,
    /// Its database's name, once decided.
    pub database_name: Option<String>,
}

/// Which tenants to list.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this one.
    pub slug: Option<String>,
    /// Only in this state.
    pub state: Option<String>,
    /// Only after this one.
    pub after: Option<Uuid>,
    /// At most so many.
    pub limit: i64,
}

/// What the owner may change of a tenant.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// The company's name.
    pub name: Option<String>,
    /// The plan.
    pub plan: Option<String>,
    /// The client admin's address.
    pub admin_email: Option<String>,
    /// What it may use.
    pub limits: Option<TenantLimitsChange>,
    /// Whose models answer its questions.
    pub ai_mode: Option<AiMode>,
}

/// The registry.
#[derive(Debug, Clone)]
pub struct Registry {
    pool: PgPool,
    master_keys: Arc<MasterKeyring>,
    templates: Arc<Templates>,
    clock: SharedClock,
    invite_lifetime: TimeDelta,
}

impl Registry {
    /// The registry over the platform's database.
    pub fn new(
        pool: PgPool,
        master_keys: Arc<MasterKeyring>,
        templates: Arc<Templates>,
        clock: SharedClock,
        invite_lifetime: TimeDelta,
    ) -> Self {
        Self { pool, master_keys, templates, clock, invite_lifetime }
    }

    /// Whether there is such a plan and such a template.
    pub fn check_choices(&self, tenant: &NewTenant) -> Result<(), TenantError> {
        if !self.templates.plans().contains(&tenant.plan) {
            return Err(TenantError::UnknownPlan { known: self.templates.plans() });
        }
        if !self.templates.names().contains(&tenant.template) {
            return Err(TenantError::UnknownTemplate { known: self.templates.names() });
        }
        Ok(())
    }

    /// Registers a tenant and queues its provisioning: both or neither. The same idempotency key gives the same
    /// answer, invite included.
    pub async fn request(
        &self,
        tenant: &NewTenant,
        admin: SuperAdminId,
        idempotency_key: Option<&str>,
    ) -> Result<Requested, TenantError> {
        self.check_choices(tenant)?;
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let request = idempotency_key.map(|key| Request::new(admin, key, tenant)).transpose()?;
        if let Some(request) = &request
            && let Some(answer) = request.find(&mut transaction, &self.master_keys).await?
        {
            return Ok(answer);
        }
        let clusters = store::cluster_names(&mut transaction).await?;
        let names = || clusters.iter().map(|(_, name)| name.clone()).collect();
        let cluster = match (&tenant.cluster, clusters.as_slice()) {
            (Some(wanted), clusters) => {
                clusters.iter().find(|(_, name)| name == wanted).ok_or(TenantError::UnknownCluster)?.0
            }
            (None, [(only, _)]) => *only,
            (None, _) => return Err(TenantError::ClusterNeeded { known: names() }),
        };
        let id = TenantId::new();
        if !store::insert_tenant(&mut transaction, id, cluster, tenant, now).await? {
            return Err(TenantError::SlugTaken);
        }
        let invite = PlainToken::generate(TokenPrefix::Invite).map_err(|_| TenantError::Random)?;
        let requested = Requested {
            tenant_id: id,
            operation_id: OperationId::new(),
            invite_token: invite.expose().to_owned(),
            invite_expires_at: now + self.invite_lifetime,
        };
        let input = ProvisionInput {
            cluster_id: cluster,
            slug: tenant.slug.clone(),
            name: tenant.name.clone(),
            template: tenant.template.clone(),
            admin_email: tenant.admin_email.clone(),
            invite_id: InviteId::new(),
            invite_hash: hex::encode(invite.hash().as_bytes()),
            invite_expires_at: requested.invite_expires_at,
        };
        let operation = NewOperation {
            id: requested.operation_id,
            kind: provision::DEFINITION.kind,
            tenant_id: Some(id),
            input: serde_json::to_value(&input).map_err(|_| TenantError::Sealed)?,
            steps: &provision::DEFINITION.steps.iter().map(|step| step.name).collect::<Vec<_>>(),
            created_by: Some(admin.as_uuid()),
            group_id: None,
        };
        operations::store::create(&mut transaction, &operation, now).await?;
        let event = Event {
            actor: Actor::SuperAdmin(admin),
            action: "tenant.create",
            tenant_id: Some(id),
            detail: serde_json::json!({ "slug": tenant.slug, "plan": tenant.plan, "template": tenant.template }),
        };
        audit::record(&mut transaction, &event, now).await?;
        if let Some(request) = &request {
            request.keep(&mut transaction, &self.master_keys, &requested, id.as_uuid(), now).await?;
        }
        transaction.commit().await?;
        Ok(requested)
    }

    /// Tenants, oldest first.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<TenantRow>, TenantError> {
        let mut connection = self.pool.acquire().await?;
        Ok(store::list_tenants(&mut connection, filter).await?)
    }

    /// One tenant.
    pub async fn find(&self, slug: &str) -> Result<TenantRow, TenantError> {
        let filter = Filter { slug: Some(slug.to_owned()), limit: 1, ..Filter::default() };
        self.list(&filter).await?.pop().ok_or(TenantError::NotFound)
    }

    /// Changes what is given and leaves the rest.
    pub async fn update(&self, slug: &str, changes: &Changes, admin: SuperAdminId) -> Result<TenantRow, TenantError> {
        if let Some(plan) = &changes.plan
            && !self.templates.plans().contains(plan)
        {
            return Err(TenantError::UnknownPlan { known: self.templates.plans() });
        }
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let id = store::update_tenant(&mut transaction, slug, changes, now).await?.ok_or(TenantError::NotFound)?;
        let event = Event {
            actor: Actor::SuperAdmin(admin),
            action: "tenant.update",
            tenant_id: Some(TenantId::from_uuid(id)),
            detail: serde_json::json!({
                "name": changes.name, "plan": changes.plan, "admin_email": changes.admin_email.is_some(),
                "limits": changes.limits, "ai_mode": changes.ai_mode
            }),
        };
        audit::record(&mut transaction, &event, now).await?;
        transaction.commit().await?;
        self.find(slug).await
    }
}
