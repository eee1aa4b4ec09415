//! Errors in OpenAI's shape. What the rest of the interface answers is translated; what clients of OpenAI act on (the
//! status, `Retry-After`, `x-should-retry`, a few codes) is as they expect it.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::access::AccessError;
use crate::api::api_keys::ApiKeyScope;
use crate::api::openai::{ErrorBody, ErrorObject, RefusedBody};
use crate::chat::{CallError, ChatError};
use crate::http::error::ApiError;
use crate::http::limits::{RETRY_AFTER_MS, SHOULD_RETRY};
use crate::limits::LimitsError;
use crate::providers::ProviderError;

/// An error on its way to a client of OpenAI's API.
#[derive(Debug)]
pub struct OpenAiError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: Cow<'static, str>,
    param: Option<String>,
    retry_after: Option<Duration>,
    /// Whether trying again is said to be useless though the status says otherwise.
    hopeless: bool,
    headers: HeaderMap,
}

impl OpenAiError {
    /// An error with a status, a stable code and a text for people.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        let kind = match status.as_u16() {
            403 => "permission_error",
            429 => "requests",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        let (message, headers) = (message.into(), HeaderMap::new());
        Self(Box::new(Inner { status, kind, code, message, param: None, retry_after: None, hopeless: false, headers }))
    }

    /// 400: a parameter was refused.
    pub fn invalid(param: impl Into<String>, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        let mut error = Self::new(StatusCode::BAD_REQUEST, code, message);
        error.0.param = Some(param.into());
        error
    }

    /// 400: a parameter asks for something that there is not.
    pub fn unsupported(param: impl Into<String>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::invalid(param, "unsupported_parameter", message)
    }

    /// 404: the tenant has no such model, or its users may not use it.
    pub fn model_not_found(model: &str) -> Self {
        let name: String = model.chars().take(200).collect();
        let message = format!("The model `{name}` does not exist or you do not have access to it.");
        let mut error = Self::new(StatusCode::NOT_FOUND, "model_not_found", message);
        error.0.param = Some("model".to_owned());
        error
    }

    /// 404: nothing is at this path.
    pub fn unknown_url() -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown_url", "There is no such endpoint here.")
    }

    /// 405: this path takes another method.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This endpoint takes another method.")
    }

    /// 403: the key is good and may not be used for this.
    pub fn scope_missing(scope: ApiKeyScope) -> Self {
        let message = format!("This API key lacks the scope `{}`.", scope.as_str());
        Self::new(StatusCode::FORBIDDEN, "insufficient_permissions", message)
    }

    /// 413: the body is too large.
    pub fn body_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large.")
    }

    /// 400: the body broke off.
    pub fn body_broken() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", "The body broke off.")
    }

    /// 500: our fault. The cause was logged.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side.")
    }

    /// 502: the answer ended without an end.
    pub fn lost() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "answer_lost", "The answer broke off.")
    }

    /// An error of answering with this model.
    pub fn of_chat(error: ChatError, model: &str) -> Self {
        match error {
            ChatError::ModelNotAllowed => Self::model_not_found(model),
            // Not 409, which OpenAI's clients would repeat at once.
            ChatError::AiKeyMissing | ChatError::NoModel => {
                Self::new(StatusCode::NOT_FOUND, "ai_key_missing", "No AI key that is set offers a model.")
            }
            ChatError::Call(error) => error.into(),
            other => ApiError::from(other).into(),
        }
    }

    fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after = wait;
        self
    }

    fn hopeless(mut self) -> Self {
        self.0.hopeless = true;
        self
    }

    fn kind(mut self, kind: &'static str) -> Self {
        self.0.kind = kind;
        self
    }

    /// The body, also of an error event in a stream.
    pub fn body(&self) -> ErrorBody {
        let Inner { kind, code, message, param, .. } = &*self.0;
        ErrorBody { error: ErrorObject { message: message.clone().into_owned(), kind, param: param.clone(), code } }
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        let mut response = (self.0.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        headers.extend(self.0.headers);
        if self.0.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.0.retry_after {
            // Rounded up: whoever comes back after so many seconds must not be a moment early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
            let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(milliseconds.max(1)));
        }
        if self.0.hopeless {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}

impl From<ApiError> for OpenAiError {
    fn from(error: ApiError) -> Self {
        let retry_after = error.wait();
        let status = error.status();
        if status == StatusCode::UNAUTHORIZED {
            return Self::new(status, "invalid_api_key", "A valid API key is needed: `Authorization: Bearer fh_…`.");
        }
        let message = match error.detail_text() {
            Some(detail) => Cow::Owned(format!("{}: {detail}.", error.title())),
            None => Cow::Owned(format!("{}.", error.title())),
        };
        // OpenAI's clients repeat conflicts at once, which mends none of ours.
        let conflict = status == StatusCode::CONFLICT;
        let mut translated = Self::new(status, error.code(), message).retry_after(retry_after);
        translated.0.headers = error.more_headers().clone();
        if conflict { translated.hopeless() } else { translated }
    }
}

impl From<LimitsError> for OpenAiError {
    fn from(error: LimitsError) -> Self {
        let is_quota = matches!(error, LimitsError::QuotaExceeded { .. });
        let translated = Self::from(ApiError::from(error));
        // What OpenAI says of an account that is used up.
        if is_quota { translated.kind("insufficient_quota") } else { translated }
    }
}

impl From<AccessError> for OpenAiError {
    fn from(error: AccessError) -> Self {
        ApiError::from(error).into()
    }
}

impl From<RefusedBody> for OpenAiError {
    fn from(refused: RefusedBody) -> Self {
        match refused {
            RefusedBody::TooManyElements => Self::new(
                StatusCode::BAD_REQUEST,
                "too_many_elements",
                "The body has more elements than a request can have. Embeddings take texts, not tokens.",
            ),
            RefusedBody::NotJson => Self::new(StatusCode::BAD_REQUEST, "invalid_json", "The body is not JSON."),
            RefusedBody::NotAnObject => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_json", "The body is not a JSON object.")
            }
            RefusedBody::WrongType(field) => {
                let field: String = field.chars().take(100).collect();
                let message = format!("`{field}` has the wrong type or value.");
                Self::invalid(field, "invalid_type", message)
            }
        }
    }
}

impl From<CallError> for OpenAiError {
    fn from(error: CallError) -> Self {
        let code = error.code();
        match error {
            CallError::Provider(error) => error.into(),
            CallError::AllDown { retry_after } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, code, "No model provider answers right now.")
                    .retry_after(Some(retry_after))
            }
            CallError::Closed(_) => Self::new(StatusCode::FORBIDDEN, code, "This service is not active."),
            CallError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, code, "The server is stopping; ask again.")
                    .retry_after(Some(Duration::from_secs(1)))
            }
            CallError::Deadline => Self::new(StatusCode::GATEWAY_TIMEOUT, code, "The answer took too long.").hopeless(),
        }
    }
}

impl From<ProviderError> for OpenAiError {
    fn from(error: ProviderError) -> Self {
        let code = error.code();
        if error.quota_exhausted() {
            let text = "The quota of the tenant's AI key is used up.";
            let exhausted = Self::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", text);
            return exhausted.kind("insufficient_quota").hopeless();
        }
        match error {
            // Not 401: the caller's own key is good, and only the tenant's admin can mend the AI key.
            ProviderError::InvalidKey(_) => {
                Self::new(StatusCode::BAD_GATEWAY, code, "The model provider refused the tenant's AI key.").hopeless()
            }
            ProviderError::RefusedAddress(_) => {
                Self::new(StatusCode::BAD_GATEWAY, code, "The model provider's address is not allowed.").hopeless()
            }
            ProviderError::RateLimited { retry_after, .. } => {
                let text = "The model provider is limiting requests.";
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", text).retry_after(retry_after)
            }
            ProviderError::ModelNotFound(_) => {
                Self::new(StatusCode::NOT_FOUND, "model_not_found", "The model provider does not know this model.")
            }
            ProviderError::BadRequest(_) => {
                Self::new(StatusCode::BAD_REQUEST, code, "The model provider rejected the request.")
            }
            ProviderError::Unsupported(_) => {
                Self::new(StatusCode::BAD_REQUEST, code, "The model provider cannot do what is asked.")
            }
            ProviderError::Unavailable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, code, "The model provider is unavailable.")
            }
            ProviderError::Timeout(_) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, code, "The model provider did not answer in time.")
            }
            ProviderError::Interrupted(_) => {
                Self::new(StatusCode::BAD_GATEWAY, code, "The model provider's answer was interrupted.")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{Rate, RateRefusal};

    #[test]
    fn an_error_has_openais_shape() {
        let error = OpenAiError::invalid("n", "unsupported_value", "Only one.");
        assert_eq!(
            serde_json::to_value(error.body()).unwrap(),
            serde_json::json!({ "error": {
                "message": "Only one.", "type": "invalid_request_error", "param": "n", "code": "unsupported_value"
            } })
        );
    }

    #[test]
    fn clients_repeat_what_may_pass_and_nothing_else() {
        assert_eq!(OpenAiError::from(LimitsError::QuotaExceeded { limit: 1 }).body().error.kind, "insufficient_quota");
        let facts = |error: OpenAiError| {
            let response = error.into_response();
            let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            (response.status().as_u16(), header("x-should-retry"), header("retry-after"), header("retry-after-ms"))
        };
        let limited = |retry_after| ProviderError::RateLimited { retry_after, source: "slow down".into() };
        let no = || Some("false".to_owned());
        assert_eq!(facts(ProviderError::InvalidKey("x".into()).into()), (502, no(), None, None));
        assert_eq!(facts(limited(None).into()), (429, None, None, None));
        assert_eq!(
            facts(limited(Some(Duration::from_millis(1500))).into()),
            (429, None, Some("2".to_owned()), Some("1500".to_owned()))
        );
        assert_eq!(facts(ProviderError::BadRequest("x".into()).into()), (400, None, None, None));
        assert_eq!(facts(ProviderError::Unavailable("x".into()).into()), (503, None, None, None));
        assert_eq!(facts(ApiError::conflict("a", "b").into()), (409, no(), None, None));
        assert_eq!(facts(ApiError::unauthenticated().into()).0, 401);
        assert_eq!(facts(LimitsError::QuotaExceeded { limit: 1 }.into()), (429, no(), None, None));
        let rate = Rate { limit: 10, remaining: 0, resets_in: Duration::ZERO };
        let refusal = RateRefusal { rate, retry_after: Duration::from_millis(1500) };
        assert_eq!(
            facts(LimitsError::RateLimited(refusal).into()),
            (429, None, Some("2".to_owned()), Some("1500".to_owned()))
        );
    }
}
