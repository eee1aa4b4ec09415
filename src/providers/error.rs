//! What can go wrong with a model provider, in the few kinds a caller can act on.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// The cause kept behind a [`ProviderError`]. It never holds an upstream body: those repeat keys and prompts.
pub type Cause = Box<dyn Error + Send + Sync>;

/// A failed model call.
///
/// `Display` is fixed text a client may see; the cause is for the operator's log only.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The provider refused the key, or the account behind it.
    #[error("the model provider refused the API key")]
    InvalidKey(#[source] Cause),
    /// The provider refuses for now: too many requests, or the quota is used up.
    #[error("the model provider is limiting requests")]
    RateLimited {
        /// How long the provider asked to wait, if it said.
        retry_after: Option<Duration>,
        /// What the provider answered.
        source: Cause,
    },
    /// The provider does not know the model, or nothing is served at the base URL.
    #[error("the model provider does not know this model")]
    ModelNotFound(#[source] Cause),
    /// The provider understood the call and refuses it as it stands.
    #[error("the model provider rejected the request")]
    BadRequest(#[source] Cause),
    /// The provider cannot be reached or failed before any text was delivered.
    #[error("the model provider is unavailable")]
    Unavailable(#[source] Cause),
    /// Nothing came within the time allowed for connecting, the first byte or the next token. Text may have been
    /// delivered before.
    #[error("the model provider did not answer in time")]
    Timeout(#[source] Cause),
    /// The answer was cut after some of its text had been delivered.
    #[error("the model provider's answer was interrupted")]
    Interrupted(#[source] Cause),
    /// The address is one this server does not connect to, or the provider redirected to another.
    #[error("the model provider's address is not allowed")]
    RefusedAddress(#[source] Cause),
    /// The request asks for something that this provider's interface cannot express. Asking again does not help.
    #[error("the model provider cannot do what is asked")]
    Unsupported(#[source] Cause),
}

impl ProviderError {
    /// A stable word for the kind, for API answers, metrics and the ledger.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidKey(_) => "provider_invalid_key",
            Self::RateLimited { .. } => "provider_rate_limited",
            Self::ModelNotFound(_) => "provider_model_not_found",
            Self::BadRequest(_) => "provider_bad_request",
            Self::Unavailable(_) => "provider_unavailable",
            Self::Timeout(_) => "provider_timeout",
            Self::Interrupted(_) => "provider_interrupted",
            Self::RefusedAddress(_) => "provider_address_refused",
            Self::Unsupported(_) => "provider_unsupported",
        }
    }

    /// Whether the provider refuses for a quota that is used up: asking again is pointless until somebody pays.
    #[must_use]
    pub fn quota_exhausted(&self) -> bool {
        match self {
            Self::RateLimited { source, .. } => {
                source.downcast_ref::<UpstreamRefusal>().is_some_and(UpstreamRefusal::quota_exhausted)
            }
            _ => false,
        }
    }

    /// A stream that broke: `Interrupted` if the reader already has text, else `Unavailable`, after which another
    /// provider may still be asked.
    pub(super) fn broken(delivered: bool, cause: impl Into<Cause>) -> Self {
        if delivered { Self::Interrupted(cause.into()) } else { Self::Unavailable(cause.into()) }
    }
}

/// What of an upstream's error answer may be kept: its status and its error words, never its message.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct UpstreamRefusal {
    /// HTTP status, or the number an error object inside a stream carries in its place.
    pub(super) status: Option<u16>,
    /// `error.type`, such as `invalid_request_error`.
    pub(super) kind: Option<String>,
    /// `error.code`, such as `model_not_found`, or the more precise reason that Google adds.
    pub(super) code: Option<String>,
    /// How long the body asks to wait. Google says it there and not in a header.
    pub(super) retry_after: Option<Duration>,
    /// The parameter that this model does not have, if that is what is wrong.
    pub(super) unfit: Option<Unfit>,
}

/// A parameter of the interface that not every model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    /// `temperature`.
    Temperature,
    /// `top_p`.
    TopP,
    /// The name under which the limit of tokens was sent.
    Limit,
}

impl fmt::Display for UpstreamRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("upstream error")?;
        if let Some(status) = self.status {
            write!(f, ", status {status}")?;
        }
        if let Some(kind) = &self.kind {
            write!(f, ", type {kind}")?;
        }
        if let Some(code) = &self.code {
            write!(f, ", code {code}")?;
        }
        Ok(())
    }
}

impl Error for UpstreamRefusal {}

impl UpstreamRefusal {
    /// Reads the usual shapes: `{"error": {..}}`, `{"error": ".."}`, a bare `{"type": .., "code": ..}`, or a list
    /// of one of these. Anything else leaves only the status.
    pub(super) fn parse(status: Option<u16>, body: &[u8]) -> Self {
        let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let top = value.get(0).unwrap_or(&value);
        let object = top.get("error").unwrap_or(top);
        let number = object.get("code").and_then(serde_json::Value::as_u64);
        // OAuth's errors are one word.
        let code = object.get("code").and_then(word).or_else(|| word(object));
        // Where words and fields do not tell, the sentence does. It is looked at and not kept.
        let message = object.get("message").and_then(serde_json::Value::as_str).unwrap_or_default();
        // Anthropic answers 400 `invalid_request_error`.
        let out_of_credit = message.contains("credit balance is too low");
        let unfit = unfit(object.get("param").and_then(serde_json::Value::as_str), code.as_deref(), message);
        Self {
            status: status.or_else(|| number.and_then(|number| u16::try_from(number).ok())),
            kind: if out_of_credit {
                Some("billing_error".to_owned())
            } else {
                object.get("type").or_else(|| object.get("status")).and_then(word)
            },
            code: code.or_else(|| details(object, "reason").and_then(word)),
            retry_after: details(object, "retryDelay").and_then(seconds),
            unfit,
        }
    }

    /// Whether asking again is pointless for now although the status says "later".
    pub(super) fn quota_exhausted(&self) -> bool {
        self.says("insufficient_quota") || self.says("billing_hard_limit_reached")
    }

    fn says(&self, word: &str) -> bool {
        self.kind.as_deref() == Some(word) || self.code.as_deref() == Some(word)
    }

    /// The kind of this refusal. Words come before the status, because several servers answer 400 to everything.
    pub(super) fn into_error(self, retry_after: Option<Duration>) -> ProviderError {
        if self.says_any(KEY_REFUSED) {
            return ProviderError::InvalidKey(self.into());
        }
        if self.says_any(NO_SUCH_MODEL) {
            return ProviderError::ModelNotFound(self.into());
        }
        if self.quota_exhausted() || self.says_any(LIMITED) {
            let retry_after = retry_after.or(self.retry_after);
            return ProviderError::RateLimited { retry_after, source: self.into() };
        }
        match self.status {
            // 402: the key is right and its account has no credit. Only the client's admin can mend either.
            Some(401..=403) => ProviderError::InvalidKey(self.into()),
            Some(404) => ProviderError::ModelNotFound(self.into()),
            Some(408 | 504) => ProviderError::Timeout(self.into()),
            Some(429) => ProviderError::RateLimited { retry_after, source: self.into() },
            Some(300..=399) => ProviderError::RefusedAddress(self.into()),
            Some(400..=499) => ProviderError::BadRequest(self.into()),
            None if self.says_any(REFUSED_AS_IT_STANDS) => ProviderError::BadRequest(self.into()),
            None if self.says_any(TOO_LATE) => ProviderError::Timeout(self.into()),
            _ => ProviderError::Unavailable(self.into()),
        }
    }

    fn says_any(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.says(word))
    }
}

/// Words of OpenAI, of Anthropic, of Google and of OAuth, for what each kind means.
const KEY_REFUSED: &[&str] = &[
    "invalid_api_key",
    "authentication_error",
    "permission_error",
    "billing_error",
    "API_KEY_INVALID",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "invalid_grant",
    "invalid_client",
    "unauthorized_client",
];
const NO_SUCH_MODEL: &[&str] = &["model_not_found", "not_found_error", "NOT_FOUND", "DeploymentNotFound"];
const LIMITED: &[&str] = &["rate_limit_exceeded", "rate_limit_error", "RESOURCE_EXHAUSTED"];
/// Needed only inside a stream, where there is no status.
const REFUSED_AS_IT_STANDS: &[&str] =
    &["invalid_request_error", "request_too_large", "INVALID_ARGUMENT", "FAILED_PRECONDITION"];
const TOO_LATE: &[&str] = &["timeout_error", "DEADLINE_EXCEEDED"];

/// The first of Google's `details` that has this field.
fn details<'a>(object: &'a serde_json::Value, field: &str) -> Option<&'a serde_json::Value> {
    object.get("details")?.as_array()?.iter().find_map(|detail| detail.get(field))
}

/// The parameter that a model does not have. OpenAI names it; Anthropic and older versions of Azure only say so.
fn unfit(parameter: Option<&str>, code: Option<&str>, message: &str) -> Option<Unfit> {
    let named = |name: &str| match name {
        "temperature" => Some(Unfit::Temperature),
        "top_p" => Some(Unfit::TopP),
        "max_tokens" | "max_completion_tokens" => Some(Unfit::Limit),
        _ => None,
    };
    if matches!(code, Some("unsupported_value" | "unsupported_parameter")) {
        return named(parameter?);
    }
    if let Some(name) = message.strip_prefix("Unrecognized request argument supplied: ") {
        return named(name.trim());
    }
    let refused =
        ["is deprecated", "is not supported", "not supported for"].iter().any(|words| message.contains(words));
    let name = message.split('`').nth(1).filter(|_| refused)?;
    named(name).filter(|unfit| *unfit != Unfit::Limit)
}

/// A duration as Google writes it: `36s`, `0.5s`.
fn seconds(value: &serde_json::Value) -> Option<Duration> {
    let seconds: f64 = value.as_str()?.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// An error word worth keeping. Letters and underscores only: a key has digits, a prompt has spaces, so neither
/// gets into a log this way.
fn word(value: &serde_json::Value) -> Option<String> {
    let text = value.as_str()?;
    let fits = !text.is_empty() && text.len() <= 64;
    (fits && text.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_')).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_words_and_drops_messages() {
        let body = br#"{"error":{"message":"bad key sk-1","type":"invalid_request_error","code":"invalid_api_key"}}"#;
        let refusal = UpstreamRefusal::parse(Some(400), body);
        assert_eq!(refusal.to_string(), "upstream error, status 400, type invalid_request_error, code invalid_api_key");
        assert_eq!(refusal.into_error(None).code(), "provider_invalid_key");
        let sly = UpstreamRefusal::parse(Some(400), br#"{"error":{"type":"sk-proj-1234","code":"my prompt"}}"#);
        assert_eq!(sly, UpstreamRefusal { status: Some(400), ..UpstreamRefusal::default() });
    }

    #[test]
    fn reads_every_usual_shape() {
        let code = |status, body: &str| UpstreamRefusal::parse(status, body.as_bytes()).into_error(None).code();
        assert_eq!(code(Some(400), r#"[{"error":{"code":400,"status":"INVALID_ARGUMENT"}}]"#), "provider_bad_request");
        assert_eq!(code(Some(404), r#"{"error":"model 'x' not found"}"#), "provider_model_not_found");
        assert_eq!(code(None, r#"{"object":"error","type":"NotFoundError","code":404}"#), "provider_model_not_found");
        assert_eq!(code(None, r#"{"error":{"code":429,"message":"slow down"}}"#), "provider_rate_limited");
        assert_eq!(code(None, r#"{"error":{"type":"server_error"}}"#), "provider_unavailable");
        assert_eq!(code(Some(429), r#"{"error":{"code":"insufficient_quota"}}"#), "provider_rate_limited");
        assert_eq!(code(Some(402), "pay"), "provider_invalid_key");
        assert_eq!(code(Some(422), ""), "provider_bad_request");
        assert_eq!(code(Some(302), ""), "provider_address_refused");
        assert_eq!(code(Some(500), "<html>"), "provider_unavailable");
    }

    #[test]
    fn reads_anthropics_words() {
        let code = |status, kind: &str| {
            let body = format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"m"}},"request_id":"req_1"}}"#);
            UpstreamRefusal::parse(status, body.as_bytes()).into_error(None).code()
        };
        assert_eq!(code(Some(529), "overloaded_error"), "provider_unavailable");
        assert_eq!(code(None, "overloaded_error"), "provider_unavailable");
        assert_eq!(code(None, "authentication_error"), "provider_invalid_key");
        assert_eq!(code(None, "permission_error"), "provider_invalid_key");
        assert_eq!(code(None, "not_found_error"), "provider_model_not_found");
        assert_eq!(code(None, "rate_limit_error"), "provider_rate_limited");
        assert_eq!(code(None, "timeout_error"), "provider_timeout");
        assert_eq!(code(None, "invalid_request_error"), "provider_bad_request");
        assert_eq!(code(Some(413), "request_too_large"), "provider_bad_request");
        let poor = br#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the API."}}"#;
        assert_eq!(UpstreamRefusal::parse(Some(400), poor).into_error(None).code(), "provider_invalid_key");
    }

    #[test]
    fn reads_googles_words() {
        let key = br#"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}]}}"#;
        assert_eq!(UpstreamRefusal::parse(Some(400), key).into_error(None).code(), "provider_invalid_key");
        let quota = br#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"violations":[]},{"retryDelay":"36.5s"}]}}"#;
        let error = UpstreamRefusal::parse(Some(429), quota).into_error(None);
        let wait = Some(Duration::from_millis(36_500));
        assert!(matches!(error, ProviderError::RateLimited { retry_after, .. } if retry_after == wait));
        let grant = br#"{"error":"invalid_grant","error_description":"Invalid JWT Signature."}"#;
        assert_eq!(UpstreamRefusal::parse(Some(400), grant).into_error(None).code(), "provider_invalid_key");
    }

    #[test]
    fn knows_which_parameter_a_model_does_not_have() {
        let unfit = |body: &str| UpstreamRefusal::parse(Some(400), body.as_bytes()).unfit;
        let openai = r#"{"error":{"message":"Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.","type":"invalid_request_error","param":"max_tokens","code":"unsupported_parameter"}}"#;
        assert_eq!(unfit(openai), Some(Unfit::Limit));
        let value = r#"{"error":{"message":"Unsupported value: 'temperature' does not support 0.3 with this model.","type":"invalid_request_error","param":"temperature","code":"unsupported_value"}}"#;
        assert_eq!(unfit(value), Some(Unfit::Temperature));
        let azure = r#"{"error":{"message":"Unrecognized request argument supplied: max_completion_tokens","type":"invalid_request_error","param":null,"code":null}}"#;
        assert_eq!(unfit(azure), Some(Unfit::Limit));
        let anthropic = r#"{"type":"error","error":{"type":"invalid_request_error","message":"`temperature` is deprecated for this model."}}"#;
        assert_eq!(unfit(anthropic), Some(Unfit::Temperature));
        for other in [
            r#"{"error":{"message":"temperature: range 0..1","param":"temperature","code":"invalid_value"}}"#,
            r#"{"error":{"message":"`messages` is not supported","type":"invalid_request_error"}}"#,
            r#"{"error":{"code":"unsupported_value","param":"messages[0].role"}}"#,
        ] {
            assert_eq!(unfit(other), None, "{other}");
        }
    }
}
