//! `/platform/v1/fleet/audits` and `/platform/v1/fleet/findings`: the standing audit.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::operations;
use crate::api::fleet_audit::{AuditFinding, AuditFindingPage};
use crate::api::platform::Operation;
use crate::app::AppState;
use crate::fleet_audit::{self, Stored};
use crate::http::error::ApiResult;
use crate::http::extract::{Page, Query, SuperAdmin, next_cursor};

/// Compares registry, catalogs, roles and keys, and changes nothing. If an audit is under way, that is the answer.
#[utoipa::path(
    post,
    path = "/platform/v1/fleet/audits",
    tag = "fleet",
    security(("super_admin" = [])),
    responses((status = 202, body = Operation))
)]
pub async fn create(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
) -> ApiResult<(StatusCode, Json<Operation>)> {
    let id = state.fleet_audit.begin(Some(admin.super_admin_id)).await?;
    Ok((StatusCode::ACCEPTED, Json(operations::find(&state, id).await?)))
}

/// Which findings to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Those that were resolved, too.
    #[serde(default)]
    resolved: bool,
    /// How many at most, 1 to 100; 50 when left out.
    limit: Option<u16>,
    /// Where to go on: the `next_cursor` of the page before.
    cursor: Option<uuid::Uuid>,
}

/// What the last audits found, oldest first.
#[utoipa::path(
    get,
    path = "/platform/v1/fleet/findings",
    tag = "fleet",
    security(("super_admin" = [])),
    params(Filter),
    responses((status = 200, body = AuditFindingPage))
)]
pub async fn findings(
    _: SuperAdmin,
    State(state): State<AppState>,
    Query(filter): Query<Filter>,
) -> ApiResult<Json<AuditFindingPage>> {
    let page = Page { limit: filter.limit, cursor: filter.cursor };
    let wanted = fleet_audit::Filter { resolved: filter.resolved, after: page.cursor, limit: page.limit() as i64 + 1 };
    let mut items: Vec<_> = state.fleet_audit.findings(&wanted).await?.into_iter().map(body).collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |finding| finding.id);
    Ok(Json(AuditFindingPage { items, next_cursor }))
}

fn body(finding: Stored) -> AuditFinding {
    AuditFinding {
        id: finding.id,
        code: finding.code,
        severity: finding.severity,
        subject: finding.subject,
        tenant: finding.tenant,
        cluster: finding.cluster,
        detail: finding.detail,
        first_seen: finding.first_seen,
        last_seen: finding.last_seen,
        resolved_at: finding.resolved_at,
    }
}
