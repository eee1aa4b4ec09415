//! A few calls to the server's own HTTP API, in untyped JSON.
//!
//! The stack is a client like any other: it uses the public API and nothing beside it.

use anyhow::{Context, Result, anyhow};
use reqwest::{Method, StatusCode};
use serde_json::Value;

/// The API of one server.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: String,
}

/// Status and body of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    what: String,
    pub(crate) status: StatusCode,
    body: Value,
}

impl Api {
    pub(crate) fn new(http: &reqwest::Client, base: &str) -> Self {
        Self { http: http.clone(), base: base.to_owned() }
    }

    pub(crate) async fn get(&self, path: &str, token: &str) -> Result<Answer> {
        self.send(Method::GET, path, Some(token), &[], None).await
    }

    pub(crate) async fn delete(&self, path: &str, token: &str) -> Result<Answer> {
        self.send(Method::DELETE, path, Some(token), &[], None).await
    }

    pub(crate) async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Result<Answer> {
        self.send(Method::POST, path, token, &[], Some(body)).await
    }

    pub(crate) async fn post_once(&self, path: &str, token: &str, key: &str, body: &Value) -> Result<Answer> {
        self.send(Method::POST, path, Some(token), &[("Idempotency-Key", key)], Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, token: &str, body: &Value) -> Result<Answer> {
        self.send(Method::PUT, path, Some(token), &[], Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, token: &str, body: &Value) -> Result<Answer> {
        self.send(Method::PATCH, path, Some(token), &[], Some(body)).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer> {
        let what = format!("{method} {path}");
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| what.clone())?;
        let status = answer.status();
        let text = answer.text().await.with_context(|| format!("read the answer to {what}"))?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { what, status, body })
    }
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        self.status.is_success()
    }

    /// The body of a success, or an error that says what the server said.
    pub(crate) fn success(self) -> Result<Value> {
        if self.is_success() { Ok(self.body) } else { Err(self.refusal()) }
    }

    /// The refusal as an error.
    pub(crate) fn refusal(&self) -> anyhow::Error {
        let said = match (text(&self.body, "/title"), text(&self.body, "/detail")) {
            (Ok(title), Ok(detail)) => format!("{title}: {detail}"),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => one,
            _ => self.body.to_string(),
        };
        anyhow!("{} answered {}: {said}", self.what, self.status.as_u16())
    }
}

/// A text in a JSON document.
pub(crate) fn text(document: &Value, pointer: &str) -> Result<String> {
    document
        .pointer(pointer)
        .and_then(Value::as_str)
        .map(str::to_owned)
        .with_context(|| format!("the server's answer lacks {pointer}"))
}
