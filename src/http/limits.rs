//! Limits at the edge: whom a request is counted for, and how a limit is told: headers as OpenAI's clients know them, and
//! refusals that say when to come back, or that there is no use in that.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::error::ApiError;
use crate::app::AppState;
use crate::ids::{ApiKeyId, UserId};
use crate::limits::{Admission, LimitsError, Rate, Subject, Terms};
use crate::telemetry::causes;
use crate::tenant_db::TenantRecord;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
/// As `Retry-After`, in milliseconds; OpenAI's clients prefer it.
pub(super) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// Tells OpenAI's clients whether to try again, whatever the status.
pub(super) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Who asks, beside the tenant.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asker {
    /// A user.
    User(UserId),
    /// A program with an API key.
    ApiKey(ApiKeyId),
}

/// What the tenant may do.
pub(super) fn terms<'a>(state: &'a AppState, record: &'a TenantRecord) -> Terms<'a> {
    state.limits.plans().terms(&record.plan, &record.limits)
}

/// Admits a request of a tenant with these terms, or says why not.
pub(super) async fn admit(
    state: &AppState,
    record: &TenantRecord,
    terms: &Terms<'_>,
    asker: Asker,
) -> Result<Admission, LimitsError> {
    let (user, api_key) = match asker {
        Asker::User(id) => (Some(id), None),
        Asker::ApiKey(id) => (None, Some(id)),
    };
    state.limits.admit(&Subject { tenant: record.id, user, api_key }, terms).await
}

/// How a limit stands, for the headers of an answer.
pub(super) fn tell(headers: &mut HeaderMap, rate: Option<Rate>) {
    let Some(rate) = rate else { return };
    headers.insert(LIMIT, HeaderValue::from(rate.limit));
    headers.insert(REMAINING, HeaderValue::from(rate.remaining));
    if let Ok(value) = HeaderValue::from_str(&duration(rate.resets_in)) {
        headers.insert(RESET, value);
    }
}

/// A refusal for somebody who is not to know how much the tenant may ask.
pub(super) fn without_numbers(error: LimitsError) -> ApiError {
    let error = ApiError::from(error);
    let mut headers = error.more_headers().clone();
    for name in [LIMIT, REMAINING, RESET] {
        headers.remove(name);
    }
    error.detail("no more can be asked here right now").headers(headers)
}

/// A duration as OpenAI writes it: `250ms`, `7.5s`, `1m0s`.
fn duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match (milliseconds / 60_000, milliseconds % 60_000) {
        (0, rest) if rest < 1000 => format!("{rest}ms"),
        (0, rest) => format!("{}s", seconds(rest)),
        (minutes, rest) => format!("{minutes}m{}s", seconds(rest)),
    }
}

fn seconds(milliseconds: u128) -> String {
    let text = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The headers of a refusal, beside `Retry-After`.
fn refusal_headers(error: &LimitsError) -> HeaderMap {
    let mut headers = HeaderMap::new();
    match error {
        LimitsError::RateLimited(refusal) => {
            tell(&mut headers, Some(refusal.rate));
            let milliseconds = u64::try_from(refusal.retry_after.as_millis()).unwrap_or(u64::MAX);
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(milliseconds.max(1)));
        }
        LimitsError::QuotaExceeded { .. } => drop(headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"))),
        _ => {}
    }
    headers
}

/// Part of the table in [`super::error`].
impl From<LimitsError> for ApiError {
    fn from(error: LimitsError) -> Self {
        let headers = refusal_headers(&error);
        let too_many = StatusCode::TOO_MANY_REQUESTS;
        match error {
            LimitsError::RateLimited(refusal) => Self::new(too_many, "rate_limit_exceeded", "Too many requests")
                .detail(format!("at most {} within a minute", refusal.rate.limit))
                .retry_after(refusal.retry_after)
                .headers(headers),
            LimitsError::QuotaExceeded { limit } => {
                Self::new(too_many, "quota_exceeded", "The month's quota is used up")
                    .detail(format!("{limit} requests a month; it begins anew with the next month, in UTC"))
                    .headers(headers)
            }
            LimitsError::FeatureNotInPlan { feature, plan } => {
                Self::new(StatusCode::FORBIDDEN, "feature_not_in_plan", "The plan does not have this")
                    .detail(format!("the plan `{plan}` does not have the feature `{feature}`"))
            }
            LimitsError::Unavailable { retry_after } => {
                tracing::debug!(causes = causes(&error), "admit a request");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "limits_unavailable", "The limits cannot be looked at")
                    .retry_after(retry_after)
            }
            LimitsError::Timeout
            | LimitsError::Contended
            | LimitsError::Unreadable
            | LimitsError::Database(_)
            | LimitsError::Redis(_) => {
                Self::unavailable("limits_unavailable", "The limits cannot be looked at", &error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openais() {
        let written = |milliseconds| duration(Duration::from_millis(milliseconds));
        let cases = [(0, "0ms"), (250, "250ms"), (1000, "1s"), (7500, "7.5s"), (60_000, "1m0s"), (60_301, "1m0.301s")];
        for (milliseconds, text) in cases {
            assert_eq!(written(milliseconds), text);
        }
    }
}
