//! HTTP to a platform: one request in, one typed answer or a complete [`Failure`] out.
//!
//! The client refuses to be made where it would expose credentials, follows no redirect (a redirect would carry a
//! password elsewhere), and keeps its token out of every message.

use std::error::Error as _;
use std::time::Duration;

use freehold::api::Problem;
use futures::{Stream, StreamExt, future};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Method, RequestBuilder, Response, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sse_stream::SseByteStream;

use crate::failure::Failure;
use crate::output::Output;
use crate::server::Server;

/// The header that makes a repeated POST harmless.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The code of a failure to connect at all.
const UNREACHABLE: &str = "unreachable";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// An event stream may live long, but the server sends a sign of life at least every quarter of a minute.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Pauses before a request with an idempotency key is sent again.
const RETRY_PAUSES: [Duration; 3] = [Duration::from_millis(200), Duration::from_millis(500), Duration::from_secs(1)];

/// A connection to one platform, signed in or not.
pub struct Client {
    http: reqwest::Client,
    server: Server,
    authorization: Option<HeaderValue>,
}

impl Client {
    /// A client for a platform. `insecure_http` permits credentials in the clear.
    pub fn new(server: Server, token: Option<&SecretString>, insecure_http: bool) -> Result<Self, Failure> {
        if server.exposes_credentials() && !insecure_http {
            return Err(Failure::usage(
                "insecure_http",
                format!("{server} is not encrypted: anybody on the way could read your credentials"),
            )
            .hint("use https://, or --insecure-http if you trust the network"));
        }
        let authorization = token.map(bearer).transpose()?;
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("freehold-cli/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE_TIMEOUT);
        if server.is_loopback() {
            http = http.no_proxy();
        }
        let http = http.build().map_err(|error| {
            Failure::failed("client_failed", format!("cannot make an HTTP client: {}", chain(error)))
        })?;
        Ok(Self { http, server, authorization })
    }

    /// The platform it speaks to.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// `GET`.
    pub async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, String)]) -> Result<T, Failure> {
        self.read(self.send(self.request(Method::GET, path, query)).await?).await
    }

    /// `POST` with a body.
    pub async fn post<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Failure> {
        self.read(self.send(self.request(Method::POST, path, &[]).json(body)).await?).await
    }

    /// `PATCH` with a body.
    pub async fn patch<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Failure> {
        self.read(self.send(self.request(Method::PATCH, path, &[]).json(body)).await?).await
    }

    /// `POST` with a file as its body, however long that takes.
    pub async fn post_file<T: DeserializeOwned>(&self, path: &[&str], file: tokio::fs::File) -> Result<T, Failure> {
        let request = self.request(Method::POST, path, &[]).header(CONTENT_TYPE, "application/octet-stream").body(file);
        self.read(self.send_as(request, None).await?).await
    }

    /// `GET` of something that is no JSON, piece by piece, however long that takes.
    pub async fn download(
        &self,
        path: &[&str],
    ) -> Result<impl Stream<Item = Result<Vec<u8>, Failure>> + use<>, Failure> {
        let response = self.send_as(self.request(Method::GET, path, &[]), None).await?;
        let server = self.server.clone();
        Ok(response
            .bytes_stream()
            .map(move |piece| piece.map(|piece| piece.to_vec()).map_err(|error| unreachable(&server, error))))
    }

    /// `PUT` with a body.
    pub async fn put<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Failure> {
        self.read(self.send(self.request(Method::PUT, path, &[]).json(body)).await?).await
    }

    /// `DELETE`, whose answer has no body.
    pub async fn delete(&self, path: &[&str]) -> Result<(), Failure> {
        self.send(self.request(Method::DELETE, path, &[])).await.map(drop)
    }

    /// `DELETE`, whose answer says what becomes of it.
    pub async fn delete_for<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, String)]) -> Result<T, Failure> {
        self.read(self.send(self.request(Method::DELETE, path, query)).await?).await
    }

    /// `POST` with a body and an idempotency key: sent again when the connection breaks or a gateway answers for
    /// the server, because the server does a thing once for each key.
    pub async fn post_once<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
        key: &str,
        output: &Output,
    ) -> Result<T, Failure> {
        let mut pauses = RETRY_PAUSES.iter();
        let mut is_doubtful = false;
        loop {
            let request = self.request(Method::POST, path, &[]).header(IDEMPOTENCY_KEY, key).json(body);
            let outcome = match self.send(request).await {
                Ok(response) => self.read(response).await,
                Err(failure) => Err(failure),
            };
            let failure = match outcome {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if !is_transient(&failure) {
                return Err(failure);
            }
            // Where no connection came about, nothing can have been carried out.
            is_doubtful |= failure.code() != UNREACHABLE;
            match pauses.next() {
                Some(pause) => {
                    output.note("The platform cannot be reached; trying again.");
                    tokio::time::sleep(*pause).await;
                }
                None if !is_doubtful => return Err(failure),
                None => {
                    return Err(failure.detail(format!(
                        "Whether it was carried out is not known. Run it again with --idempotency-key {key}: \
                         it happens once."
                    )));
                }
            }
        }
    }

    /// The `data:` of each event of a stream. It ends when the stream does; an error is its last item.
    pub async fn events(&self, path: &[&str]) -> Result<impl Stream<Item = Result<String, Failure>> + use<>, Failure> {
        let request = self.http.get(self.server.endpoint(path, &[])).header(ACCEPT, "text/event-stream");
        let response = self.send_as(request, None).await?;
        let is_stream =
            response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream {
            return Err(unexpected(&self.server, response.status()));
        }
        let server = self.server.clone();
        Ok(SseByteStream::new(response.bytes_stream()).filter_map(move |event| {
            future::ready(match event {
                Ok(event) => event.data.map(Ok),
                Err(error) => {
                    Some(Err(Failure::failed("stream_broken", format!("the events of {server} broke off: {error}"))))
                }
            })
        }))
    }

    fn request(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> RequestBuilder {
        self.http.request(method, self.server.endpoint(path, query))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        self.send_as(request, Some(REQUEST_TIMEOUT)).await
    }

    /// Sends a request and turns every answer but a success into a failure.
    async fn send_as(&self, mut request: RequestBuilder, limit: Option<Duration>) -> Result<Response, Failure> {
        if let Some(limit) = limit {
            request = request.timeout(limit);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let response = request.send().await.map_err(|error| unreachable(&self.server, error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status.is_redirection() {
            let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let failure = unexpected(&self.server, status);
            return Err(match target {
                Some(target) => failure.detail(format!("It points to {target}, and credentials do not follow.")),
                None => failure,
            });
        }
        let body = response.bytes().await.map_err(|error| unreachable(&self.server, error))?;
        Err(match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Failure::problem(problem, &self.server),
            Err(_) => unexpected(&self.server, status),
        })
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let status = response.status();
        let body = response.bytes().await.map_err(|error| unreachable(&self.server, error))?;
        // The parser's message could quote a token, so it is left out.
        serde_json::from_slice(&body).map_err(|_| unexpected(&self.server, status))
    }
}

/// Whether the same request may succeed a moment later.
pub fn is_transient(failure: &Failure) -> bool {
    match failure.status() {
        Some(status) => matches!(status, 502..=504),
        None => matches!(failure.code(), UNREACHABLE | "timed_out" | "broken_off" | "gateway_failed" | "stream_broken"),
    }
}

fn bearer(token: &SecretString) -> Result<HeaderValue, Failure> {
    // The error says nothing of the token but that it is not one.
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret())).map_err(|_| {
        Failure::failed("credentials_unreadable", "the stored session is damaged").hint("freehold login")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// An answer that no platform gives.
fn unexpected(server: &Server, status: StatusCode) -> Failure {
    let code = match status.as_u16() {
        502..=504 => "gateway_failed",
        _ => "unexpected_answer",
    };
    let failure = Failure::failed(code, format!("{server} gave an answer that is not a Freehold platform's"))
        .detail(format!("Its status was {status}."));
    match status {
        StatusCode::UNAUTHORIZED => {
            failure.exiting(crate::failure::Exit::Usage).hint(format!("freehold login {server}"))
        }
        _ => failure.hint(format!("is it one? curl {server}/api/health")),
    }
}

/// No answer at all.
fn unreachable(server: &Server, error: reqwest::Error) -> Failure {
    let (is_refused, is_connect) = (is_refused(&error), error.is_connect());
    let (code, message) = if is_connect {
        (UNREACHABLE, format!("cannot reach {server}"))
    } else if error.is_timeout() {
        ("timed_out", format!("{server} did not answer in time"))
    } else {
        ("broken_off", format!("the connection to {server} broke"))
    };
    let failure = Failure::failed(code, message).detail(chain(error));
    match (is_refused && server.is_loopback(), is_connect) {
        (true, _) => failure.hint("is the server running? make run"),
        (false, true) => failure.hint("is the server running, and the address right?"),
        (false, false) => failure,
    }
}

fn is_refused(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// An error and its causes in one line, without the address, which the message names already.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;
    use crate::output::Sinks;
    use crate::testing::{Scripted, answer, problem};
    use serde_json::{Value, json};

    fn client(server: &Server) -> Client {
        crate::install_crypto();
        Client::new(server.clone(), Some(&SecretString::from("canary")), false).unwrap()
    }

    async fn create(server: &Server) -> Result<Value, Failure> {
        let (sinks, _) = Sinks::captured();
        let output = Output::new(sinks, false, false);
        client(server).post_once(&["v1", "tenants"], &json!({}), "key-1", &output).await
    }

    #[test]
    fn credentials_do_not_travel_in_the_clear_unasked() {
        crate::install_crypto();
        let exposed: Server = "http://a.example".parse().unwrap();
        let failure = Client::new(exposed.clone(), None, false).err().unwrap();
        assert_eq!((failure.exit(), failure.code()), (Exit::Usage, "insecure_http"));
        assert!(Client::new(exposed, None, true).is_ok());
    }

    #[tokio::test]
    async fn a_broken_request_is_repeated_with_its_key() {
        let server = Scripted::start(vec![String::new(), problem(503), answer("application/json", "{\"a\": 1}")]).await;
        assert_eq!(create(server.address()).await.unwrap(), json!({"a": 1}));
        let requests = server.requests();
        assert_eq!(requests.len(), 3);
        assert!(requests.iter().all(|request| request.contains("idempotency-key: key-1")));
        assert!(requests.iter().all(|request| request.contains("authorization: Bearer canary")));
    }

    #[tokio::test]
    async fn a_refusal_is_not_repeated() {
        let server = Scripted::start(vec![problem(409)]).await;
        let failure = create(server.address()).await.unwrap_err();
        assert_eq!((failure.status(), failure.exit()), (Some(409), Exit::Failed));
    }

    #[tokio::test]
    async fn after_a_doubtful_end_the_key_is_told() {
        let server = Scripted::start(vec![String::new(); 4]).await;
        let failure = create(server.address()).await.unwrap_err();
        assert!(failure.document().to_string().contains("--idempotency-key key-1"));
    }

    #[tokio::test]
    async fn a_server_that_is_not_running_gets_a_hint() {
        let server = Scripted::start(vec![]).await;
        let address = server.address().clone();
        server.stop().await;
        let failure = client(&address).get::<Value>(&["v1"], &[]).await.unwrap_err();
        assert_eq!(failure.lines().last().unwrap(), "hint: is the server running? make run");
    }

    #[tokio::test]
    async fn an_answer_of_something_else_is_a_failure_without_the_token() {
        let redirect =
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: https://evil.example/\r\ncontent-length: 0\r\n\r\n";
        let server = Scripted::start(vec![answer("text/html", "<canary>"), redirect.into()]).await;
        for _ in 0..2 {
            let failure = client(server.address()).get::<Value>(&["v1"], &[]).await.unwrap_err();
            assert_eq!(failure.code(), "unexpected_answer");
            assert!(!format!("{failure:?}").contains("canary"));
        }
    }
}
