//! `/platform/v1/clusters`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use crate::api::Problem;
use crate::api::platform::{Cluster, ClusterList, CreateClusterRequest, UpdateClusterRequest};
use crate::app::AppState;
use crate::audit::Actor;
use crate::http::error::ApiResult;
use crate::http::extract::{SuperAdmin, Valid};
use crate::tenants::clusters::ClusterRecord;

/// Registers a cluster: checks the URL, shuts PUBLIC out, builds the template database.
#[utoipa::path(
    post,
    path = "/platform/v1/clusters",
    tag = "clusters",
    security(("super_admin" = [])),
    request_body = CreateClusterRequest,
    responses(
        (status = 201, body = Cluster),
        (status = 409, description = "The name is taken, or the server is registered already.", body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn create(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Valid(request): Valid<CreateClusterRequest>,
) -> ApiResult<(StatusCode, Json<Cluster>)> {
    let actor = Actor::SuperAdmin(admin.super_admin_id);
    let cluster = state.clusters.add(&request.name, &request.admin_url, actor).await?;
    Ok((StatusCode::CREATED, Json(body(cluster))))
}

/// Gives a cluster another admin URL: another password, role or address of the same server. It is tried before it is stored.
#[utoipa::path(
    put,
    path = "/platform/v1/clusters/{name}",
    tag = "clusters",
    security(("super_admin" = [])),
    params(("name" = String, Path, description = "The cluster's name.")),
    request_body = UpdateClusterRequest,
    responses(
        (status = 200, body = Cluster),
        (status = 404, body = Problem),
        (status = 409, description = "The URL leads to another server.", body = Problem),
        (status = 422, body = Problem)
    )
)]
pub async fn update(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(name): Path<String>,
    Valid(request): Valid<UpdateClusterRequest>,
) -> ApiResult<Json<Cluster>> {
    let actor = Actor::SuperAdmin(admin.super_admin_id);
    Ok(Json(body(state.clusters.set_admin_url(&name, &request.admin_url, actor).await?)))
}

/// All clusters, by name.
#[utoipa::path(
    get,
    path = "/platform/v1/clusters",
    tag = "clusters",
    security(("super_admin" = [])),
    responses((status = 200, body = ClusterList))
)]
pub async fn list(_: SuperAdmin, State(state): State<AppState>) -> ApiResult<Json<ClusterList>> {
    Ok(Json(ClusterList { items: state.clusters.list().await?.into_iter().map(body).collect() }))
}

fn body(cluster: ClusterRecord) -> Cluster {
    Cluster {
        id: cluster.id.as_uuid(),
        name: cluster.name,
        host: cluster.host,
        port: u16::try_from(cluster.port).unwrap_or_default(),
        tenants: cluster.tenants,
        template_schema_version: cluster.template_schema_version,
        created_at: cluster.created_at,
    }
}
