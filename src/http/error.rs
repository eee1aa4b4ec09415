//! The only table from errors to answers: status, stable code and a text that is safe to show. Its rows stand beside this
//! file, as the routes do: in `tenant` and in `platform`.
//!
//! Causes are logged here, once, with the request's id; they never reach the client.

mod platform;
mod tenant;

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio_postgres::error::SqlState;

use super::context::request_id;
use crate::api::database::DatabaseFinding;
use crate::api::{FieldProblem, Problem};
use crate::ids::OperationId;
use crate::telemetry::causes;

/// An error on its way to the client.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    /// Boxed, because an error travels by value, mostly in the `Err` that is not taken.
    more: Box<More>,
}

/// What is said beyond the code.
#[derive(Debug, Default)]
struct More {
    stored_code: Option<Cow<'static, str>>,
    detail: Option<String>,
    errors: Vec<FieldProblem>,
    findings: Vec<DatabaseFinding>,
    operation_id: Option<OperationId>,
    retry_after: Option<Duration>,
    headers: HeaderMap,
}

/// What handlers return.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with a status, a stable code and a title that does not vary.
    pub fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self { status, code, title, more: Box::default() }
    }

    /// A code that is known from what was stored, told in the place of the one it was made with.
    #[must_use]
    pub fn stored_code(mut self, code: Cow<'static, str>) -> Self {
        self.more.stored_code = Some(code);
        self
    }

    /// Says what happened this time and what to do about it.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.more.detail = Some(detail.into());
        self
    }

    /// Names a field that was refused.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.more.errors.push(FieldProblem { field: field.into(), message: message.into() });
        self
    }

    /// Names a field that was refused as the route's own body does.
    #[must_use]
    pub fn rename_field(mut self, from: &str, to: &str) -> Self {
        for problem in self.more.errors.iter_mut().filter(|problem| problem.field == from) {
            to.clone_into(&mut problem.field);
        }
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.more.retry_after = Some(wait);
        self
    }

    /// Headers beside the usual ones.
    #[must_use]
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        self.more.headers = headers;
        self
    }

    /// 401: no credential, or one that proves nothing. It never says which.
    pub fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "A valid credential is needed")
    }

    /// 403: the credential is good, but does not allow this.
    pub fn forbidden(permission: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "This is not allowed to you")
            .detail(format!("the permission `{permission}` is needed"))
    }

    /// 404: there is nothing here that the caller may know of.
    pub fn not_found(what: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is no such thing").detail(format!("no such {what}"))
    }

    /// 422: a field was refused.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "The request was refused").field(field, message)
    }

    /// 413: the body is larger than this route takes.
    pub fn body_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large")
    }

    /// 409: it does not fit what is there.
    pub fn conflict(code: &'static str, title: &'static str) -> Self {
        Self::new(StatusCode::CONFLICT, code, title)
    }

    /// 503: something we need does not answer; the cause is logged.
    pub fn unavailable(code: &'static str, title: &'static str, cause: &(dyn std::error::Error + 'static)) -> Self {
        log(code, cause);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, title).retry_after(Duration::from_secs(2))
    }

    /// 500: our fault; the cause is logged.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        log("internal", cause);
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side")
    }

    /// A tenant's database refused a statement, or went away while it was at it.
    fn tenant_database(error: &tokio_postgres::Error) -> Self {
        // It also says goodbye: somebody ended the session, or the server stops or starts.
        let leaving = [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW];
        if error.code().is_none_or(|code| leaving.contains(&code)) {
            return Self::unavailable("tenant_database_unavailable", "The database does not answer", error);
        }
        Self::internal(error)
    }

    /// 422: the fields that a report names were refused.
    pub fn from_report(report: &garde::Report) -> Self {
        let refused = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "The request was refused");
        report.iter().fold(refused, |error, (path, message)| error.field(path.to_string(), message.to_string()))
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What happened, in words that do not vary.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// What happened this time.
    pub fn detail_text(&self) -> Option<&str> {
        self.more.detail.as_deref()
    }

    /// Headers beyond those that every error has.
    pub fn more_headers(&self) -> &HeaderMap {
        &self.more.headers
    }

    /// When to try again.
    pub fn wait(&self) -> Option<Duration> {
        self.more.retry_after
    }
}

fn log(code: &'static str, error: &(dyn std::error::Error + 'static)) {
    tracing::error!(code, causes = causes(error), "request failed");
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            code: self.more.stored_code.map_or_else(|| self.code.to_owned(), Cow::into_owned),
            detail: self.more.detail,
            errors: self.more.errors,
            findings: self.more.findings,
            operation_id: self.more.operation_id.map(|id| id.as_uuid()),
            request_id: request_id(),
        };
        let mut response = (self.status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.extend(self.more.headers);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.more.retry_after {
            // Rounded up: whoever comes back after so many seconds must not be a moment early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::unavailable("platform_unavailable", "The platform's database does not answer", &error)
    }
}
