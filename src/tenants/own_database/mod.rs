//! Tenants with a database of the client's own: who may give one, what becomes of it, and how its credentials change.
//!
//! A database is looked at before anything about it is stored. What is stored is its address, sealed with the tenant's
//! data key. A client that has no account yet gives it with a *database token*, which the owner hands over and which
//! serves for nothing else; later its admin does, or the owner makes another token.

pub mod provision;
mod store;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

use super::TenantError;
use super::database_checks::{DatabaseChecks, GivenDatabase, shown};
use super::registry::{NewTenant, Registry};
use crate::api::database::{DatabaseCheck, OwnDatabase};
use crate::api::platform::{OperationState, TenantState};
use crate::audit::{self, Actor, Event};
use crate::clock::SharedClock;
use crate::database_check::{Report, UrlOrigin, problem};
use crate::idempotency::Request;
use crate::ids::{InviteId, OperationId, SuperAdminId, TenantId};
use crate::operations::{self, NewOperation, OperationError};
use crate::provisioning::own;
use crate::secrets::{DataKey, DatabaseUrl, Host, MasterKeyring, PlainToken, Sealed, TokenPrefix};
use crate::tenant_db::database_url_location;
use provision::OwnInput;

/// Databases that are looked at together.
const CHECKS_AT_ONCE: usize = 8;

/// What asking for a tenant with a database of its own gave. Kept, sealed, for a request that is sent again.
#[derive(Serialize, Deserialize)]
pub struct Requested {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The operation that sets its database up, if that was given.
    pub operation_id: Option<OperationId>,
    /// The first client admin's one-time invite.
    pub invite_token: String,
    /// When the invite stops working.
    pub invite_expires_at: DateTime<Utc>,
    /// What the client gives its database with, if it has to.
    pub database_token: Option<NewToken>,
    /// What the check of the given database found.
    pub check: Option<DatabaseCheck>,
}

/// A database token, shown this once.
#[derive(Serialize, Deserialize)]
pub struct NewToken {
    /// The token.
    pub token: String,
    /// When it stops working.
    pub expires_at: DateTime<Utc>,
}

/// Who gives a database.
#[derive(Debug, Clone, Copy)]
pub struct Giver {
    /// For the record.
    pub actor: Actor,
    /// What the address may lead to.
    pub origin: UrlOrigin,
}

/// What giving a database did.
#[derive(Debug)]
pub struct Accepted {
    /// What the check found; no problem.
    pub check: DatabaseCheck,
    /// The operation that sets the database up, unless only the credentials changed.
    pub operation_id: Option<OperationId>,
}

/// What is registered of a client's database, opened.
pub(super) struct Opened {
    pub(super) url: DatabaseUrl,
    /// The data key that it is sealed with.
    pub(super) key: DataKey,
}

/// Clients' own databases.
#[derive(Debug, Clone)]
pub struct OwnDatabases {
    pool: PgPool,
    master_keys: Arc<MasterKeyring>,
    registry: Registry,
    checks: DatabaseChecks,
    clock: SharedClock,
    invite_lifetime: TimeDelta,
}

impl OwnDatabases {
    /// Over the platform's database.
    pub fn new(
        pool: PgPool,
        master_keys: Arc<MasterKeyring>,
        registry: Registry,
        checks: DatabaseChecks,
        clock: SharedClock,
        invite_lifetime: TimeDelta,
    ) -> Self {
        Self { pool, master_keys, registry, checks, clock, invite_lifetime }
    }

    /// Registers a tenant with a database of the client's own. With one given, it is checked and its setting up is
    /// queued; without, the tenant waits for its client.
    pub async fn request(
        &self,
        tenant: &NewTenant,
        given: Option<&GivenDatabase>,
        admin: SuperAdminId,
        idempotency_key: Option<&str>,
    ) -> Result<Requested, TenantError> {
        self.registry.check_choices(tenant)?;
        let request = idempotency_key.map(|key| Request::new(admin, key, &(tenant, given))).transpose()?;
        if let Some(request) = &request {
            // Before the check: a database that was given already is taken by now, by this very tenant.
            let mut transaction = self.pool.begin().await?;
            if let Some(answer) = request.find(&mut transaction, &self.master_keys).await? {
                return Ok(answer);
            }
        }
        let checked = match given {
            Some(given) => {
                let url = self.checks.read(given, UrlOrigin::Owner, None).await?;
                let report = self.checks.check(&url, None).await?;
                if !report.suitable() {
                    return Err(TenantError::UnsuitableDatabase(Box::new(report)));
                }
                Some((url, shown(&report)))
            }
            None => None,
        };
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        if let Some(request) = &request
            && let Some(answer) = request.find(&mut transaction, &self.master_keys).await?
        {
            return Ok(answer);
        }
        let id = TenantId::new();
        let state = if checked.is_some() { TenantState::Requested } else { TenantState::WaitingForClient };
        if !store::insert_tenant(&mut transaction, id, tenant, state, now).await? {
            return Err(TenantError::SlugTaken);
        }
        let invite = PlainToken::generate(TokenPrefix::Invite).map_err(|_| TenantError::Random)?;
        let input = OwnInput {
            slug: tenant.slug.clone(),
            name: tenant.name.clone(),
            template: tenant.template.clone(),
            admin_email: tenant.admin_email.clone(),
            invite_id: InviteId::new(),
            invite_hash: hex::encode(invite.hash().as_bytes()),
            invite_expires_at: now + self.invite_lifetime,
        };
        let stored = serde_json::to_value(&input).map_err(|_| TenantError::Sealed)?;
        store::insert_request(&mut transaction, id, &stored, now).await?;
        let (operation_id, database_token) = match &checked {
            Some((url, check)) => {
                self.register(&mut transaction, id, url, check).await?;
                let operation = self.begin(&mut transaction, id, stored, Some(admin)).await?;
                (Some(operation), None)
            }
            None => (None, Some(self.put_token(&mut transaction, id).await?)),
        };
        let requested = Requested {
            tenant_id: id,
            operation_id,
            invite_token: invite.expose().to_owned(),
            invite_expires_at: input.invite_expires_at,
            database_token,
            check: checked.map(|(_, check)| check),
        };
        let event = Event {
            actor: Actor::SuperAdmin(admin),
            action: "tenant.create",
            tenant_id: Some(id),
            detail: serde_json::json!({
                "slug": tenant.slug, "plan": tenant.plan, "template": tenant.template, "database": "own",
                "waits_for_client": operation_id.is_none()
            }),
        };
        audit::record(&mut transaction, &event, now).await?;
        if let Some(request) = &request {
            request.keep(&mut transaction, &self.master_keys, &requested, id.as_uuid(), now).await?;
        }
        transaction.commit().await?;
        Ok(requested)
    }

    /// Makes a new database token, in the place of any that is in force: the first was lost or has expired, or the
    /// credentials changed at the provider and nobody of the client's can sign in any more.
    pub async fn issue_token(&self, slug: &str, admin: SuperAdminId) -> Result<NewToken, TenantError> {
        let mut transaction = self.pool.begin().await?;
        let (id, own) = store::find_slug(&mut transaction, slug).await?.ok_or(TenantError::NotFound)?;
        if !own {
            return Err(TenantError::NotOwnDatabase);
        }
        let token = self.put_token(&mut transaction, id).await?;
        let event = Event {
            actor: Actor::SuperAdmin(admin),
            action: "tenant.database_token",
            tenant_id: Some(id),
            detail: serde_json::json!({}),
        };
        audit::record(&mut transaction, &event, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(token)
    }

    async fn put_token(&self, connection: &mut PgConnection, tenant: TenantId) -> Result<NewToken, TenantError> {
        let token = PlainToken::generate(TokenPrefix::Database).map_err(|_| TenantError::Random)?;
        let expires_at = self.clock.now() + self.invite_lifetime;
        store::set_token(connection, tenant, Some((token.hash().as_bytes(), expires_at))).await?;
        Ok(NewToken { token: token.expose().to_owned(), expires_at })
    }

    /// The tenant whose database a token lets its holder give, and its slug.
    pub async fn authenticate(&self, token: &str) -> Result<Option<(TenantId, String)>, TenantError> {
        let Ok(token) = PlainToken::parse(TokenPrefix::Database, token) else { return Ok(None) };
        Ok(store::find_by_token(&self.pool, token.hash().as_bytes(), self.clock.now()).await?)
    }

    /// Looks at a database that a client might give, and stores nothing.
    pub async fn try_out(
        &self,
        tenant: TenantId,
        given: &GivenDatabase,
        origin: UrlOrigin,
    ) -> Result<DatabaseCheck, TenantError> {
        let mut connection = self.pool.acquire().await?;
        store::find(&mut connection, tenant).await?.ok_or(TenantError::NotOwnDatabase)?;
        let in_use = open_registered(&mut connection, &self.master_keys, tenant).await?;
        drop(connection);
        let in_use = in_use.as_ref().map(|opened| &opened.url);
        Ok(shown(&self.checks.try_out(given, origin, Some(tenant), in_use).await?))
    }

    /// Takes the database of a tenant that waits for it, or new credentials for the one in service.
    pub async fn give(&self, tenant: TenantId, given: &GivenDatabase, giver: Giver) -> Result<Accepted, TenantError> {
        let mut connection = self.pool.acquire().await?;
        let row = store::find(&mut connection, tenant).await?.ok_or(TenantError::NotOwnDatabase)?;
        let in_use = open_registered(&mut connection, &self.master_keys, tenant).await?;
        drop(connection);
        let in_service = matches!(row.state, TenantState::Active | TenantState::Suspended);
        let url = self.checks.read(given, giver.origin, in_use.as_ref().map(|opened| &opened.url)).await?;
        let mut report = self.checks.check(&url, Some(tenant)).await?;
        if report.suitable() && in_service {
            let in_use = in_use.ok_or(TenantError::Sealed)?;
            report.findings.extend(same_database(&in_use.url, &url, tenant, &report).await);
        }
        if !report.suitable() {
            return Err(TenantError::UnsuitableDatabase(Box::new(report)));
        }
        let check = shown(&report);
        let operation_id = match self.store_given(tenant, &url, &check, in_service, giver).await {
            // Once more: whoever went first is done by now, and is found.
            Err(error) if OperationError::is_deadlock(&error) => {
                self.store_given(tenant, &url, &check, in_service, giver).await?
            }
            other => other?,
        };
        Ok(Accepted { check, operation_id })
    }

    /// Registers a database that was found good, and sees to its being set up unless it is in service. Returns the
    /// operation that does.
    async fn store_given(
        &self,
        tenant: TenantId,
        url: &DatabaseUrl,
        check: &DatabaseCheck,
        in_service: bool,
        giver: Giver,
    ) -> Result<Option<OperationId>, TenantError> {
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        // Held until the end: no operation on the tenant begins meanwhile.
        let state = store::lock(&mut transaction, tenant).await?.ok_or(TenantError::NotFound)?;
        let begun = store::provisioning(&mut transaction, tenant).await?;
        let holder = store::unsettled(&mut transaction, tenant).await?;
        let again = begun.filter(|(_, state)| matches!(state, OperationState::Failed | OperationState::NeedsOperator));
        if let Some((holder, kind)) = holder
            && again.is_none_or(|(id, _)| id != holder)
        {
            return Err(OperationError::Conflict { holder, kind }.into());
        }
        let operation_id = match state {
            TenantState::Active | TenantState::Suspended if in_service => {
                self.register(&mut transaction, tenant, url, check).await?;
                store::set_token(&mut transaction, tenant, None).await?;
                None
            }
            TenantState::WaitingForClient | TenantState::Failed => {
                self.register(&mut transaction, tenant, url, check).await?;
                Some(match again {
                    Some((id, _)) => {
                        operations::store::retry(&mut transaction, id).await?;
                        id
                    }
                    None => {
                        let input = store::find_input(&mut transaction, tenant).await?.ok_or(TenantError::NotFound)?;
                        let mut input: OwnInput = serde_json::from_value(input).map_err(|_| TenantError::Sealed)?;
                        // The client took its time; the invite begins to count when it can be used.
                        input.invite_expires_at = now + self.invite_lifetime;
                        let input = serde_json::to_value(&input).map_err(|_| TenantError::Sealed)?;
                        self.begin(&mut transaction, tenant, input, None).await?
                    }
                })
            }
            _ => return Err(TenantError::NotWaiting),
        };
        let event = Event {
            actor: giver.actor,
            action: "tenant.database_given",
            tenant_id: Some(tenant),
            detail: serde_json::json!({ "host": host(url), "database": url.database(), "role": url.user() }),
        };
        audit::record(&mut transaction, &event, now).await?;
        transaction.commit().await?;
        Ok(operation_id)
    }

    /// What is registered, without any credential.
    pub async fn show(&self, tenant: TenantId) -> Result<OwnDatabase, TenantError> {
        let mut connection = self.pool.acquire().await?;
        let row = store::find(&mut connection, tenant).await?.ok_or(TenantError::NotOwnDatabase)?;
        let opened = open_registered(&mut connection, &self.master_keys, tenant).await?;
        let url = opened.as_ref().map(|opened| &opened.url);
        Ok(OwnDatabase {
            state: row.state,
            host: url.map(host),
            port: url.map(DatabaseUrl::port),
            name: url.map(|url| url.database().to_owned()),
            role: url.map(|url| url.user().to_owned()),
            sslmode: url.map(|url| url.ssl_mode().as_str().to_owned()),
            has_ca: url.is_some_and(|url| url.ca_pem().is_some()),
            last_check: row.last_check.and_then(|check| serde_json::from_value(check).ok()),
            checked_at: row.checked_at,
        })
    }

    /// Checks every client's own database that is in service; each with its tenant's slug. Several at once: one that
    /// does not answer takes its time.
    pub async fn check_all(&self) -> Result<Vec<(String, Report)>, TenantError> {
        let tenants = store::in_service(&self.pool).await?;
        let checks = tenants.into_iter().map(async |(tenant, slug)| {
            let mut connection = self.pool.acquire().await?;
            let opened = open_registered(&mut connection, &self.master_keys, tenant).await?;
            drop(connection);
            let url = opened.ok_or(TenantError::Sealed)?.url;
            Ok((slug, self.checks.check(&url, Some(tenant)).await?))
        });
        futures::stream::iter(checks).buffered(CHECKS_AT_ONCE).try_collect().await
    }

    /// Seals an address and registers it, with what was found.
    async fn register(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        url: &DatabaseUrl,
        check: &DatabaseCheck,
    ) -> Result<(), TenantError> {
        let now = self.clock.now();
        let key = match open_registered(connection, &self.master_keys, tenant).await? {
            Some(opened) => opened.key,
            None => {
                let key = DataKey::generate(1);
                let wrapped = self.master_keys.wrap(tenant, &key);
                let version = wrapped.key_version().cast_signed();
                store::insert_key(connection, tenant, wrapped.as_bytes(), version, now).await?;
                key
            }
        };
        let sealed = key.seal_str(&database_url_location(tenant), &url.expose());
        let registered = store::Registered {
            tenant,
            database_name: url.database(),
            login_role: url.user(),
            url_sealed: sealed.as_bytes(),
            check: &serde_json::to_value(check).map_err(|_| TenantError::Sealed)?,
            now,
        };
        Ok(store::register(connection, &registered).await?)
    }

    async fn begin(
        &self,
        connection: &mut PgConnection,
        tenant: TenantId,
        input: serde_json::Value,
        admin: Option<SuperAdminId>,
    ) -> Result<OperationId, TenantError> {
        let operation = NewOperation {
            id: OperationId::new(),
            kind: provision::DEFINITION.kind,
            tenant_id: Some(tenant),
            input,
            steps: &provision::DEFINITION.steps.iter().map(|step| step.name).collect::<Vec<_>>(),
            created_by: admin.map(|id| id.as_uuid()),
            group_id: None,
        };
        operations::store::create(connection, &operation, self.clock.now()).await?;
        Ok(operation.id)
    }
}

fn host(url: &DatabaseUrl) -> String {
    match url.host() {
        Host::Tcp(name) => name.clone(),
        Host::Socket(path) => path.display().to_string(),
    }
}

/// Whether new credentials lead to the database that is in service. Both are tried: as long as the old ones work, the new
/// ones have to lead to the very same database, for a copy of it would lose what is written meanwhile. When they work no
/// more, the marker decides: the provider may have moved the database.
async fn same_database(
    in_use: &DatabaseUrl,
    new: &DatabaseUrl,
    tenant: TenantId,
    report: &Report,
) -> Option<crate::database_check::Finding> {
    if !report.facts.as_ref().is_some_and(crate::database_check::Facts::holds_an_instance) {
        return Some(problem(
            "different_database",
            "the address leads to a database that does not hold this tenant's data",
            "give new credentials for the same database; moving the data to another one is a matter for the owner",
        ));
    }
    match (own::identity(in_use).await, own::identity(new).await) {
        (Ok(old), Ok(new)) if old != new => Some(problem(
            "different_database",
            "the address leads to a copy, and the database in use still answers: what is written meanwhile would be lost",
            "give an address of the database in use, or shut that one off first",
        )),
        (Err(error), _) => {
            tracing::info!(tenant_id = %tenant, %error, "the credentials in use do not work any more");
            None
        }
        _ => None,
    }
}

/// Opens the address that is registered, with the key that sealed it.
pub(super) async fn open_registered(
    connection: &mut PgConnection,
    master_keys: &MasterKeyring,
    tenant: TenantId,
) -> Result<Option<Opened>, TenantError> {
    let Some(sealed) = store::find(connection, tenant).await?.and_then(|row| row.url_sealed) else { return Ok(None) };
    let sealed = Sealed::from_bytes(sealed).map_err(|_| TenantError::Sealed)?;
    for (version, wrapped) in store::wrapped_keys(connection, tenant).await? {
        let version = u32::try_from(version).map_err(|_| TenantError::Sealed)?;
        if version != sealed.key_version() {
            continue;
        }
        let wrapped = Sealed::from_bytes(wrapped).map_err(|_| TenantError::Sealed)?;
        let key = master_keys.unwrap(tenant, version, &wrapped).map_err(|_| TenantError::Sealed)?;
        let text: SecretString =
            key.open_str(&database_url_location(tenant), &sealed).map_err(|_| TenantError::Sealed)?;
        let url = DatabaseUrl::parse(&text).map_err(|_| TenantError::Sealed)?;
        return Ok(Some(Opened { url, key }));
    }
    Err(TenantError::Sealed)
}

/// Leaves a client's database to the client, when its tenant is removed for good: our marker goes, the data stays. An
/// address that works no more leaves nothing to do, for the keys and the address are destroyed here in any case.
pub async fn release(pool: &PgPool, master_keys: &MasterKeyring, tenant: TenantId) -> Result<(), TenantError> {
    let mut connection = pool.acquire().await?;
    let opened = open_registered(&mut connection, master_keys, tenant).await?;
    drop(connection);
    if let Some(opened) = opened
        && let Err(error) = own::release(&opened.url, tenant).await
    {
        tracing::warn!(tenant_id = %tenant, %error, "take the marker out of a client's database");
    }
    Ok(())
}
