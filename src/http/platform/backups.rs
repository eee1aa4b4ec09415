//! `/platform/v1/backups`, and asking for a tenant's backup.

use axum::Json;
use axum::body::Body as RawBody;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::operations;
use crate::api::Problem;
use crate::api::backup::{
    Backup, BackupKeyKind, BackupOrigin, BackupPage, BackupState, CreateBackupRequest, CreateBackupResponse,
    RestoreBackupRequest, RestoreBackupResponse,
};
use crate::app::AppState;
use crate::backups::{self, BackupRecord, RestoreOrder, Secret};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Page, Path, Query, SuperAdmin, Valid, next_cursor};
use crate::ids::{BackupId, OperationId, Slug};

/// Begins a backup of a tenant: a file that only the passphrase or key opens.
#[utoipa::path(
    post,
    path = "/platform/v1/tenants/{slug}/backups",
    tag = "backups",
    security(("super_admin" = [])),
    params(("slug" = String, Path, description = "the tenant's slug")),
    request_body = CreateBackupRequest,
    responses(
        (status = 202, body = CreateBackupResponse),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn create(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(slug): Path<String>,
    Valid(request): Valid<CreateBackupRequest>,
) -> ApiResult<(StatusCode, Json<CreateBackupResponse>)> {
    let secret = Secret { passphrase: request.passphrase, key: request.key };
    let backup = state.backups.request(&slug, secret, admin.super_admin_id).await?;
    let operation = backup.operation_id.map(OperationId::from_uuid).ok_or_else(|| ApiError::not_found("operation"))?;
    let operation = operations::find(&state, operation).await?;
    Ok((StatusCode::ACCEPTED, Json(CreateBackupResponse { backup: body(backup), operation })))
}

/// Which backups to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only this tenant's, by slug; a deleted one's too.
    tenant: Option<String>,
    /// How many at most, 1 to 100; 50 when left out.
    limit: Option<u16>,
    /// Where to go on: the `next_cursor` of the page before.
    cursor: Option<uuid::Uuid>,
}

/// Backups, newest first.
#[utoipa::path(
    get,
    path = "/platform/v1/backups",
    tag = "backups",
    security(("super_admin" = [])),
    params(Filter),
    responses((status = 200, body = BackupPage))
)]
pub async fn list(
    _: SuperAdmin,
    State(state): State<AppState>,
    Query(filter): Query<Filter>,
) -> ApiResult<Json<BackupPage>> {
    let page = Page { limit: filter.limit, cursor: filter.cursor };
    let wanted = backups::Filter {
        id: None,
        tenant_slug: filter.tenant,
        before: page.cursor.map(BackupId::from_uuid),
        limit: page.limit() as i64 + 1,
    };
    let mut items: Vec<_> = state.backups.list(&wanted).await?.into_iter().map(body).collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |backup| backup.id);
    Ok(Json(BackupPage { items, next_cursor }))
}

/// Takes a sealed file in, to restore from. The body is the file; it is removed again after a day.
#[utoipa::path(
    post,
    path = "/platform/v1/backups",
    tag = "backups",
    security(("super_admin" = [])),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, body = Backup),
        (status = 409, body = Problem),
        (status = 413, body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn upload(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    file: RawBody,
) -> ApiResult<(StatusCode, Json<Backup>)> {
    let backup = state.backups.upload(file.into_data_stream(), admin.super_admin_id).await?;
    Ok((StatusCode::CREATED, Json(body(backup))))
}

/// One backup.
#[utoipa::path(
    get,
    path = "/platform/v1/backups/{id}",
    tag = "backups",
    security(("super_admin" = [])),
    params(("id" = uuid::Uuid, Path, description = "the backup's id")),
    responses((status = 200, body = Backup), (status = 404, body = Problem))
)]
pub async fn show(_: SuperAdmin, State(state): State<AppState>, Path(id): Path<BackupId>) -> ApiResult<Json<Backup>> {
    Ok(Json(body(state.backups.find(id).await?)))
}

/// The sealed file of a backup.
#[utoipa::path(
    get,
    path = "/platform/v1/backups/{id}/content",
    tag = "backups",
    security(("super_admin" = [])),
    params(("id" = uuid::Uuid, Path, description = "the backup's id")),
    responses(
        (status = 200, description = "the sealed file", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, body = Problem),
        (status = 409, body = Problem)
    )
)]
pub async fn content(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(id): Path<BackupId>,
) -> ApiResult<Response> {
    let (backup, pieces) = state.backups.content(id, admin.super_admin_id).await?;
    let mut response = RawBody::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(size) = backup.size_bytes {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    }
    // The name is made of a slug, a time and an id.
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"{}\"", backup.file_name)) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

/// Removes a backup for good, file and record.
#[utoipa::path(
    delete,
    path = "/platform/v1/backups/{id}",
    tag = "backups",
    security(("super_admin" = [])),
    params(("id" = uuid::Uuid, Path, description = "the backup's id")),
    responses((status = 204), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub async fn delete(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(id): Path<BackupId>,
) -> ApiResult<StatusCode> {
    state.backups.delete(id, admin.super_admin_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Begins to bring a tenant back from a backup, with the id it had.
#[utoipa::path(
    post,
    path = "/platform/v1/backups/{id}/restore",
    tag = "backups",
    security(("super_admin" = [])),
    params(("id" = uuid::Uuid, Path, description = "the backup's id")),
    request_body = RestoreBackupRequest,
    responses(
        (status = 202, body = RestoreBackupResponse),
        (status = 404, body = Problem),
        (status = 409, body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn restore(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(id): Path<BackupId>,
    Valid(request): Valid<RestoreBackupRequest>,
) -> ApiResult<(StatusCode, Json<RestoreBackupResponse>)> {
    let slug = request.slug.map(|slug| slug.parse::<Slug>()).transpose();
    let order = RestoreOrder {
        secret: Secret { passphrase: request.passphrase, key: request.key },
        slug: slug.map_err(|error| ApiError::invalid("slug", error.to_string()))?,
        replace: request.replace,
        cluster: request.cluster,
    };
    let restoring = state.backups.restore(id, order, admin.super_admin_id).await?;
    let response = RestoreBackupResponse {
        tenant_id: restoring.about.tenant_id,
        backup_of: restoring.about.created_at,
        operation: operations::find(&state, restoring.operation_id).await?,
    };
    Ok((StatusCode::ACCEPTED, Json(response)))
}

fn body(backup: BackupRecord) -> Backup {
    Backup {
        id: backup.id,
        tenant: backup.slug,
        tenant_id: backup.tenant_id,
        origin: if backup.origin == "upload" { BackupOrigin::Upload } else { BackupOrigin::Backup },
        state: match backup.state.as_str() {
            "pending" => BackupState::Pending,
            "complete" => BackupState::Complete,
            _ => BackupState::Failed,
        },
        operation_id: backup.operation_id,
        file_name: backup.file_name,
        key_kind: match backup.key_kind.as_str() {
            "passphrase" => BackupKeyKind::Passphrase,
            _ => BackupKeyKind::KeyFile,
        },
        size_bytes: backup.size_bytes,
        sha256: backup.sha256.map(hex::encode),
        schema_version: backup.schema_version,
        created_at: backup.created_at,
        finished_at: backup.finished_at,
    }
}
