//! `/api/v1/quota`: what the tenant may ask, and how much of that is left; to a visitor, what it may ask itself.

use axum::Json;
use axum::extract::State;

use crate::access::ConversationsOwn;
use crate::api::Problem;
use crate::api::tenant::Role;
use crate::api::usage::{Quota, QuotaMinute, QuotaPeriod};
use crate::app::AppState;
use crate::http::error::ApiResult;
use crate::http::extract::Caller;
use crate::http::limits::terms;

/// How many requests the tenant may make, and how many are left of them. Numbers are null where there is no limit; the
/// minute's is what this server knows. A visitor is told how many questions it may ask today, and nothing of the tenant's.
#[utoipa::path(
    get,
    path = "/api/v1/quota",
    tag = "usage",
    security(("tenant_user" = [])),
    responses(
        (status = 200, body = Quota),
        (status = 403, description = "visitors may not ask any more", body = Problem),
        (status = 503, body = Problem)
    )
)]
// Every role may see its own conversations, and asks for them.
pub async fn show(
    Caller { caller, .. }: Caller<ConversationsOwn>,
    State(state): State<AppState>,
) -> ApiResult<Json<Quota>> {
    let record = caller.db.record();
    if caller.role == Role::Visitor {
        let limits = state.pages.visitor_limits(record.slug.as_str()).await?;
        let today = state.tokens.questions_today(&caller, limits).await?;
        let questions_today = Some(QuotaPeriod {
            limit: Some(today.limit.into()),
            used: Some(today.used.into()),
            remaining: Some(today.limit.saturating_sub(today.used).into()),
            resets_at: today.resets_at,
        });
        return Ok(Json(Quota { questions_today, ..Quota::default() }));
    }
    let terms = terms(&state, record);
    let rate = state.limits.rate(record.id, &terms);
    let month = state.limits.quota(record.id, &terms).await?;
    Ok(Json(Quota {
        plan: Some(record.plan.clone()),
        requests_per_minute: Some(QuotaMinute {
            limit: rate.map(|rate| rate.limit),
            remaining: rate.map(|rate| rate.remaining),
        }),
        requests_this_month: Some(QuotaPeriod {
            limit: month.limit,
            used: month.used,
            remaining: month.remaining,
            resets_at: month.resets_at,
        }),
        questions_today: None,
    }))
}
