//! `/api/v1/quota`: what the tenant may ask, and how much of that is left.

use axum::Json;
use axum::extract::State;

use crate::access::ConversationsOwn;
use crate::api::Problem;
use crate::api::usage::{Quota, QuotaMinute, QuotaMonth};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::Caller;
use crate::http::limits::terms;

/// How many requests the tenant may make, and how many are left of them. Numbers are null where there is no limit; the
/// minute's is what this server knows.
#[utoipa::path(
    get,
    path = "/api/v1/quota",
    tag = "usage",
    security(("tenant_user" = [])),
    responses((status = 200, body = Quota), (status = 503, body = Problem))
)]
// Every role may see its own conversations, and asks for them.
pub async fn show(
    Caller { caller, .. }: Caller<ConversationsOwn>,
    State(state): State<AppState>,
) -> ApiResult<Json<Quota>> {
    let record = caller.db.record();
    let terms = terms(&state, record);
    let rate = state.limits.rate(record.id, &terms);
    let month = state.limits.quota(record.id, &terms).await?;
    Ok(Json(Quota {
        plan: record.plan.clone(),
        requests_per_minute: QuotaMinute {
            limit: rate.map(|rate| rate.limit),
            remaining: rate.map(|rate| rate.remaining),
        },
        requests_this_month: QuotaMonth {
            limit: month.limit,
            used: month.used,
            remaining: month.remaining,
            resets_at: month.resets_at,
        },
    }))
}
