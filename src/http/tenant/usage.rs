//! `/api/v1/usage`: what the tenant's model calls have used, for its admin.

use axum::Json;
use axum::extract::State;
use chrono::TimeDelta;

use crate::access;
use crate::api::Problem;
use crate::api::usage::{ModelCall, ModelCallPage, UsageGroup, UsageGroupBy, UsageQuery, UsageReport, UsageSums};
use crate::app::AppState;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Active, Page, Query, next_cursor};
use crate::ids::ModelCallId;
use crate::metering::{self, GroupBy, ModelCallRow, UsageReader};

/// How long a time is summed up if nobody says otherwise, and at most.
const USUAL: TimeDelta = TimeDelta::days(30);
const LONGEST: TimeDelta = TimeDelta::days(400);

/// Sums of the tenant's model calls.
#[utoipa::path(
    get,
    path = "/api/v1/usage",
    tag = "usage",
    security(("tenant_user" = [])),
    params(UsageQuery),
    responses((status = 200, body = UsageReport), (status = 403, body = Problem), (status = 422, body = Problem))
)]
pub async fn show(
    Active { caller, .. }: Active<access::UsageRead>,
    State(state): State<AppState>,
    Query(query): Query<UsageQuery>,
) -> ApiResult<Json<UsageReport>> {
    let to = query.to.unwrap_or_else(|| state.clock.now());
    let from = query.from.or_else(|| to.checked_sub_signed(USUAL)).unwrap_or(to);
    if from > to {
        return Err(ApiError::invalid("from", "must not be after `to`"));
    }
    if to - from > LONGEST {
        return Err(ApiError::invalid("from", "must be at most 400 days before `to`"));
    }
    let group_by = match query.group_by {
        UsageGroupBy::Day => GroupBy::Day,
        UsageGroupBy::Model => GroupBy::Model,
        UsageGroupBy::User => GroupBy::User,
        UsageGroupBy::ApiKey => GroupBy::ApiKey,
        UsageGroupBy::Kind => GroupBy::Kind,
    };
    state.chat.settle_abandoned(&caller.db).await?;
    let report = UsageReader.report(&caller.db, from, to, group_by).await?;
    let group = |group: metering::UsageGroup| UsageGroup { key: group.key.clone(), sums: sums(group) };
    let items = report.groups.into_iter().map(group).collect();
    Ok(Json(UsageReport { from, to, group_by: query.group_by, items, total: sums(report.total) }))
}

/// The tenant's model calls one by one, newest first. Each attempt is a call of its own.
#[utoipa::path(
    get,
    path = "/api/v1/usage/calls",
    tag = "usage",
    security(("tenant_user" = [])),
    params(Page),
    responses((status = 200, body = ModelCallPage), (status = 403, body = Problem))
)]
pub async fn calls(
    Active { caller, .. }: Active<access::UsageRead>,
    State(state): State<AppState>,
    Query(page): Query<Page>,
) -> ApiResult<Json<ModelCallPage>> {
    state.chat.settle_abandoned(&caller.db).await?;
    let before = page.cursor.map(ModelCallId::from_uuid);
    let calls = UsageReader.calls(&caller.db, before, page.limit() + 1).await?;
    let mut items: Vec<_> = calls.into_iter().map(call).collect();
    let next_cursor = next_cursor(&mut items, page.limit(), |call| call.id);
    Ok(Json(ModelCallPage { items, next_cursor }))
}

fn sums(group: metering::UsageGroup) -> UsageSums {
    UsageSums {
        calls: group.calls,
        started: group.started,
        succeeded: group.succeeded,
        failed: group.failed,
        cancelled: group.cancelled,
        interrupted: group.interrupted,
        estimated: group.estimated,
        unpriced: group.unpriced,
        input_tokens: group.input_tokens,
        output_tokens: group.output_tokens,
        cached_input_tokens: group.cached_input_tokens,
        cost_micros: group.cost_micros,
    }
}

fn call(call: ModelCallRow) -> ModelCall {
    ModelCall {
        id: call.id.as_uuid(),
        kind: call.kind,
        user_id: call.user_id,
        api_key_id: call.api_key_id,
        message_id: call.message_id,
        provider: call.provider,
        ai_key: call.configuration,
        model: call.model,
        upstream_model: call.upstream_model,
        billed_to: call.billed_to,
        state: call.state,
        error_code: call.error_code,
        input_tokens: call.input_tokens,
        output_tokens: call.output_tokens,
        cached_input_tokens: call.cached_input_tokens,
        usage_reported: call.usage_reported,
        cost_micros: call.cost_micros,
        currency: call.currency,
        cached: call.cached,
        started_at: call.started_at,
        first_token_ms: call.first_token_ms,
        latency_ms: call.latency_ms,
    }
}
