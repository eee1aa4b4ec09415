//! `/platform/v1/tenants`.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;

use super::operations;
use crate::access::InviteRequest;
use crate::api::Problem;
use crate::api::platform::{
    AdminInvite, AiMode, CreateInviteRequest, CreateTenantRequest, CreateTenantResponse, DatabaseMode, DatabaseRequest,
    DatabaseToken, Tenant, TenantDatabase, TenantMonth, TenantPage, TenantState, UpdateTenantRequest,
};
use crate::api::tenant::Role;
use crate::app::AppState;
use crate::audit::{self, Actor};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Page, Path, Query, SuperAdmin, Valid, next_cursor};
use crate::ids::{Slug, TenantId};
use crate::tenants::database_checks::GivenDatabase;
use crate::tenants::own_database;
use crate::tenants::registry::{self, Changes, NewTenant, TenantRow};

/// Registers a tenant and begins to provision it. Sent again with the same `Idempotency-Key`, it gives the first
/// answer, invite included.
#[utoipa::path(
    post,
    path = "/platform/v1/tenants",
    tag = "tenants",
    security(("super_admin" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 200 characters, chosen by the client")),
    request_body = CreateTenantRequest,
    responses(
        (status = 202, body = CreateTenantResponse),
        (status = 409, body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn create(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    headers: HeaderMap,
    Valid(request): Valid<CreateTenantRequest>,
) -> ApiResult<(StatusCode, Json<CreateTenantResponse>)> {
    let key = idempotency_key(&headers)?;
    let slug: Slug =
        request.slug.parse().map_err(|error: crate::ids::SlugError| ApiError::invalid("slug", error.to_string()))?;
    let (cluster, own) = match request.database {
        DatabaseRequest::Managed { cluster } => (cluster, None),
        DatabaseRequest::Own { url, ca } => (None, Some(url.map(|url| GivenDatabase { url, ca }))),
    };
    let tenant = NewTenant {
        slug: slug.clone(),
        name: request.name,
        plan: request.plan,
        template: request.template,
        admin_email: request.admin_email.to_lowercase(),
        cluster,
    };
    let admin = admin.super_admin_id;
    let requested = match own {
        Some(given) => state.own_databases.request(&tenant, given.as_ref(), admin, key).await?,
        None => {
            let requested = state.registry.request(&tenant, admin, key).await?;
            own_database::Requested {
                tenant_id: requested.tenant_id,
                operation_id: Some(requested.operation_id),
                invite_token: requested.invite_token,
                invite_expires_at: requested.invite_expires_at,
                database_token: None,
                check: None,
            }
        }
    };
    let operation = match requested.operation_id {
        Some(id) => Some(operations::find(&state, id).await?),
        None => None,
    };
    let response = CreateTenantResponse {
        tenant: body(state.registry.find(slug.as_str()).await?),
        operation,
        admin_invite: AdminInvite {
            email: tenant.admin_email,
            token: requested.invite_token,
            expires_at: requested.invite_expires_at,
            server_url: server_url(&state),
        },
        database_token: requested.database_token.map(|token| database_token(&state, token)),
        database_check: requested.check,
    };
    Ok((StatusCode::ACCEPTED, Json(response)))
}

/// A database token as it is shown, this once.
pub(super) fn database_token(state: &AppState, token: own_database::NewToken) -> DatabaseToken {
    DatabaseToken { token: token.token, expires_at: token.expires_at, server_url: server_url(state) }
}

fn idempotency_key(headers: &HeaderMap) -> ApiResult<Option<&str>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=200).contains(&key.len()) => Ok(Some(key)),
        _ => Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_idempotency_key", "The Idempotency-Key was refused")
            .detail("it has 1 to 200 visible ASCII characters")),
    }
}

/// Which tenants to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only in this state.
    state: Option<TenantState>,
    /// How many at most, 1 to 100; 50 when left out.
    limit: Option<u16>,
    /// Where to go on: the `next_cursor` of the page before.
    cursor: Option<uuid::Uuid>,
}

/// Tenants, oldest first.
#[utoipa::path(
    get,
    path = "/platform/v1/tenants",
    tag = "tenants",
    security(("super_admin" = [])),
    params(Filter),
    responses((status = 200, body = TenantPage))
)]
pub async fn list(
    _: SuperAdmin,
    State(state): State<AppState>,
    Query(filter): Query<Filter>,
) -> ApiResult<Json<TenantPage>> {
    let page = Page { limit: filter.limit, cursor: filter.cursor };
    let wanted = registry::Filter {
        slug: None,
        state: filter.state.map(|state| state.as_str().to_owned()),
        after: page.cursor,
        limit: page.limit() as i64 + 1,
    };
    let mut items: Vec<_> = state.registry.list(&wanted).await?.into_iter().map(body).collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |tenant| tenant.id);
    Ok(Json(TenantPage { items, next_cursor }))
}

/// One tenant.
#[utoipa::path(
    get,
    path = "/platform/v1/tenants/{slug}",
    tag = "tenants",
    security(("super_admin" = [])),
    params(("slug" = String, Path, description = "the tenant's slug")),
    responses((status = 200, body = Tenant), (status = 404, body = Problem))
)]
pub async fn show(_: SuperAdmin, State(state): State<AppState>, Path(slug): Path<String>) -> ApiResult<Json<Tenant>> {
    let row = state.registry.find(&slug).await?;
    let rotations = state.rotations.of_tenant(row.id).await?;
    let terms = state.limits.plans().terms(&row.plan, &row.limits.0);
    // The tenant can be looked at though its limits cannot.
    let month = state.limits.quota(TenantId::from_uuid(row.id), &terms).await.ok();
    let requests_this_month =
        month.map(|month| TenantMonth { limit: month.limit, used: month.used, resets_at: month.resets_at });
    Ok(Json(Tenant { rotations, requests_this_month, ..body(row) }))
}

/// Changes a tenant's name, plan, registered address, limits, or whose models it uses.
#[utoipa::path(
    patch,
    path = "/platform/v1/tenants/{slug}",
    tag = "tenants",
    security(("super_admin" = [])),
    params(("slug" = String, Path, description = "the tenant's slug")),
    request_body = UpdateTenantRequest,
    responses((status = 200, body = Tenant), (status = 404, body = Problem), (status = 422, body = Problem))
)]
pub async fn update(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(slug): Path<String>,
    Valid(request): Valid<UpdateTenantRequest>,
) -> ApiResult<Json<Tenant>> {
    let changes = Changes {
        name: request.name,
        plan: request.plan,
        admin_email: request.admin_email.map(|email| email.to_lowercase()),
        limits: request.limits,
        ai_mode: request.ai_mode,
    };
    Ok(Json(body(state.registry.update(&slug, &changes, admin.super_admin_id).await?)))
}

/// Makes a new one-time invite for a client admin. For somebody who is a user already it sets a new password.
#[utoipa::path(
    post,
    path = "/platform/v1/tenants/{slug}/invites",
    tag = "tenants",
    security(("super_admin" = [])),
    params(("slug" = String, Path, description = "the tenant's slug")),
    request_body = CreateInviteRequest,
    responses(
        (status = 201, body = AdminInvite),
        (status = 403, body = Problem),
        (status = 404, body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn invite(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(slug): Path<String>,
    Valid(request): Valid<CreateInviteRequest>,
) -> ApiResult<(StatusCode, Json<AdminInvite>)> {
    let tenant = state.registry.find(&slug).await?;
    let tenant_id = TenantId::from_uuid(tenant.id);
    let record = state.directory.by_id(tenant_id).await?.ok_or_else(|| ApiError::not_found("tenant"))?;
    let db = state.databases.open(record)?;
    let email = request.email.unwrap_or(tenant.admin_email).to_lowercase();
    // Audited first: an invite without a record would be worse than a record without an invite.
    let mut transaction = state.pool.begin().await?;
    let event = audit::Event {
        actor: Actor::SuperAdmin(admin.super_admin_id),
        action: "tenant.invite",
        tenant_id: Some(tenant_id),
        detail: serde_json::json!({ "role": "admin" }),
    };
    audit::record(&mut transaction, &event, state.clock.now()).await?;
    transaction.commit().await?;
    let invite = state.users.invite(&db, &InviteRequest { email: email.clone(), role: Role::Admin }).await?;
    let answer = AdminInvite {
        email,
        token: invite.token.expose().to_owned(),
        expires_at: invite.expires_at,
        server_url: server_url(&state),
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Without the slash that `Url` puts behind a bare host: paths are appended to it.
fn server_url(state: &AppState) -> String {
    state.config.public_url.as_str().trim_end_matches('/').to_owned()
}

pub(super) fn body(row: TenantRow) -> Tenant {
    Tenant {
        id: row.id,
        slug: row.slug,
        name: row.name,
        plan: row.plan,
        template: row.template,
        admin_email: row.admin_email,
        state: TenantState::parse(&row.state),
        database: TenantDatabase {
            mode: DatabaseMode::parse(&row.database_mode),
            cluster: row.cluster,
            name: row.database_name,
        },
        schema_version: row.schema_version,
        limits: row.limits.0,
        ai_mode: AiMode::parse(&row.ai_mode),
        rotations: Vec::new(),
        requests_this_month: None,
        created_at: row.created_at,
        updated_at: row.updated_at,
        activated_at: row.activated_at,
        suspended_at: row.suspended_at,
        suspend_reason: row.suspend_reason,
        delete_after: row.delete_after,
        deleted_at: row.deleted_at,
    }
}
