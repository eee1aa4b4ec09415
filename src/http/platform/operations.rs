//! `/platform/v1/operations`.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::Problem;
use crate::api::platform::{Operation, OperationError, OperationGroup, OperationPage, OperationState, OperationStep};
use crate::app::AppState;
use crate::audit::{self, Actor};
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Page, Path, Query, SuperAdmin, next_cursor};
use crate::ids::{OperationId, PlatformSessionId};
use crate::operations::{OperationRecord, store};
use crate::platform_db::Notification;

/// Which operations to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only this tenant's, by slug.
    tenant: Option<String>,
    /// Only in this state.
    state: Option<OperationState>,
    /// Only of this group.
    group_id: Option<uuid::Uuid>,
    /// How many at most, 1 to 100; 50 when left out.
    limit: Option<u16>,
    /// Where to go on: the `next_cursor` of the page before.
    cursor: Option<uuid::Uuid>,
}

/// Operations, newest first.
#[utoipa::path(
    get,
    path = "/platform/v1/operations",
    tag = "operations",
    security(("super_admin" = [])),
    params(Filter),
    responses((status = 200, body = OperationPage))
)]
pub async fn list(
    _: SuperAdmin,
    State(state): State<AppState>,
    Query(filter): Query<Filter>,
) -> ApiResult<Json<OperationPage>> {
    let page = Page { limit: filter.limit, cursor: filter.cursor };
    let wanted = store::Filter {
        id: None,
        tenant_slug: filter.tenant,
        state: filter.state,
        group_id: filter.group_id,
        before: page.cursor.map(OperationId::from_uuid),
        limit: page.limit() as i64 + 1,
    };
    let mut items: Vec<_> = store::list(&state.pool, &wanted).await?.into_iter().map(body).collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |operation| operation.id);
    Ok(Json(OperationPage { items, next_cursor }))
}

/// One operation.
#[utoipa::path(
    get,
    path = "/platform/v1/operations/{id}",
    tag = "operations",
    security(("super_admin" = [])),
    params(("id" = uuid::Uuid, Path, description = "the operation's id")),
    responses((status = 200, body = Operation), (status = 404, body = Problem))
)]
pub async fn show(
    _: SuperAdmin,
    State(state): State<AppState>,
    Path(id): Path<OperationId>,
) -> ApiResult<Json<Operation>> {
    Ok(Json(find(&state, id).await?))
}

/// Operations that were asked for together, counted by state.
#[utoipa::path(
    get,
    path = "/platform/v1/operation-groups/{id}",
    tag = "operations",
    security(("super_admin" = [])),
    params(("id" = uuid::Uuid, Path, description = "the group's id")),
    responses((status = 200, body = OperationGroup), (status = 404, body = Problem))
)]
pub async fn group(
    _: SuperAdmin,
    State(state): State<AppState>,
    Path(id): Path<uuid::Uuid>,
) -> ApiResult<Json<OperationGroup>> {
    let group = store::group(&state.pool, id).await?;
    Ok(Json(group.ok_or_else(|| ApiError::not_found("operation group"))?))
}

/// Queues an operation that failed again, or goes on undoing one that needs an operator.
#[utoipa::path(
    post,
    path = "/platform/v1/operations/{id}/retry",
    tag = "operations",
    security(("super_admin" = [])),
    params(("id" = uuid::Uuid, Path, description = "the operation's id")),
    responses((status = 202, body = Operation), (status = 404, body = Problem), (status = 409, body = Problem))
)]
pub async fn retry(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(id): Path<OperationId>,
) -> ApiResult<(StatusCode, Json<Operation>)> {
    let mut transaction = state.pool.begin().await?;
    let tenant_id = store::retry(&mut transaction, id).await?;
    let event = audit::Event {
        actor: Actor::SuperAdmin(admin.super_admin_id),
        action: "operation.retry",
        tenant_id,
        detail: serde_json::json!({ "operation_id": id }),
    };
    audit::record(&mut transaction, &event, state.clock.now()).await?;
    transaction.commit().await?;
    Ok((StatusCode::ACCEPTED, Json(find(&state, id).await?)))
}

/// The operation each time it moves, as server-sent events, until it is settled.
#[utoipa::path(
    get,
    path = "/platform/v1/operations/{id}/events",
    tag = "operations",
    security(("super_admin" = [])),
    params(("id" = uuid::Uuid, Path, description = "the operation's id")),
    responses(
        (status = 200, description = "each event's data is the operation as JSON", body = Operation, content_type = "text/event-stream"),
        (status = 404, body = Problem)
    )
)]
pub async fn events(
    SuperAdmin(admin): SuperAdmin,
    State(state): State<AppState>,
    Path(id): Path<OperationId>,
) -> ApiResult<Response> {
    // Subscribed before the first look, so that no move in between is missed.
    let moves = state.notifications.subscribe();
    find(&state, id).await?;
    let stream = progress(state, admin.session_id, id, moves).map(|operation| {
        let event = Event::default().json_data(operation).unwrap_or_else(|_| Event::default().comment("unreadable"));
        Ok::<_, Infallible>(event)
    });
    let mut response = Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(5))).into_response();
    // Proxies that buffer would show all progress at its end.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

fn progress(
    state: AppState,
    session: PlatformSessionId,
    id: OperationId,
    moves: tokio::sync::broadcast::Receiver<Notification>,
) -> impl Stream<Item = Operation> + Send {
    futures::stream::unfold(Some((state, moves, None)), move |following| async move {
        let (state, mut moves, last) = following?;
        loop {
            // A look now and then besides, for moves while the listener's connection was down.
            if last.is_some() {
                tokio::select! {
                    () = state.stop.cancelled() => return None,
                    () = tokio::time::sleep(Duration::from_secs(2)) => {}
                    () = moved(&mut moves, id) => {}
                }
                // Whoever signed out, or was signed out, watches no longer.
                if !state.super_admins.is_in_force(session).await.unwrap_or(false) {
                    return None;
                }
            }
            let Ok(operation) = find(&state, id).await else { return None };
            let seen = serde_json::to_string(&operation).ok();
            if seen == last {
                continue;
            }
            let settled = operation.state.is_settled();
            return Some((operation, (!settled).then_some((state, moves, seen))));
        }
    })
}

async fn moved(moves: &mut tokio::sync::broadcast::Receiver<Notification>, id: OperationId) {
    loop {
        match moves.recv().await {
            Ok(Notification::Operation(moved)) if moved != id => {}
            Ok(Notification::Registry(_) | Notification::Limits(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return std::future::pending().await,
            _ => return,
        }
    }
}

pub(super) async fn find(state: &AppState, id: OperationId) -> ApiResult<Operation> {
    let operation = store::find(&state.pool, id).await?.ok_or_else(|| ApiError::not_found("operation"))?;
    Ok(body(operation))
}

fn body(operation: OperationRecord) -> Operation {
    let error =
        operation.error_code.zip(operation.error_message).map(|(code, message)| OperationError { code, message });
    Operation {
        id: operation.id.as_uuid(),
        kind: operation.kind,
        tenant: operation.tenant_slug,
        state: operation.state,
        progress: operation.progress,
        group_id: operation.group_id,
        steps: operation
            .steps
            .into_iter()
            .map(|step| OperationStep {
                name: step.name,
                state: step.state,
                tries: step.tries,
                started_at: step.started_at,
                finished_at: step.finished_at,
            })
            .collect(),
        error,
        created_at: operation.created_at,
        started_at: operation.started_at,
        finished_at: operation.finished_at,
    }
}
