//! The one pooled HTTP client all providers share: addresses, time-outs, retries and the reading of refusals.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{DATE, RETRY_AFTER};
use http::{HeaderMap, Method};
use reqwest::{Client, Request, Response};
use url::Url;

use super::address::{AddressError, AddressPolicy, GuardedResolver};
use super::error::{ProviderError, UpstreamRefusal};
use crate::clock::{SharedClock, SystemClock};

/// Bytes of an upstream's error body that are read for its error words.
const MAX_ERROR_BODY: usize = 64 * 1024;
/// Time allowed to read an error body, whose status already tells the most.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// Anthropic's status for "overloaded", which is in no list of statuses.
const OVERLOADED: u16 = 529;

/// How long to wait for a provider.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// To resolve, connect and finish the TLS handshake.
    pub connect: Duration,
    /// From sending a call to its response headers, for each attempt, connecting included.
    pub first_byte: Duration,
    /// The same for an answer that comes in one piece: its headers come with it, once all of it is there.
    pub whole_answer: Duration,
    /// Between two events of an answer. Comments do not count: a server can send those for ever.
    pub between_tokens: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            // Models that think say nothing for a minute or two, and some servers begin to answer only then.
            first_byte: Duration::from_secs(180),
            // As long as the clients of OpenAI's API wait.
            whole_answer: Duration::from_secs(600),
            between_tokens: Duration::from_secs(180),
        }
    }
}

/// How often and how soon a call is tried again. Only calls of which nothing was delivered are.
#[derive(Debug, Clone, Copy)]
pub struct Retries {
    /// Attempts after the first.
    pub max: u32,
    /// Wait before the first of them; doubled for each further one, and shortened by up to half at random.
    pub base_delay: Duration,
    /// Longest wait. A provider that asks for more gets no second attempt: its wish is passed to the caller.
    pub max_delay: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { max: 2, base_delay: Duration::from_millis(250), max_delay: Duration::from_secs(5) }
    }
}

/// What the owner of the installation decides about outgoing calls.
#[derive(Debug, Clone, Default)]
pub struct ProviderClientOptions {
    /// Connect to private and local addresses too, and speak plain HTTP.
    pub allow_private_hosts: bool,
    /// Hosts for which the same holds although it does not for the others.
    pub allowed_hosts: Vec<String>,
    /// Time-outs.
    pub timeouts: Timeouts,
    /// Retries.
    pub retries: Retries,
}

/// The HTTP client could not be set up, which only happens where TLS roots cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("set up the HTTP client for model providers")]
pub struct ProviderClientError(#[from] reqwest::Error);

/// The shared HTTP client. Cloning is cheap and shares the connections.
#[derive(Clone)]
pub struct ProviderClient {
    http: Client,
    policy: Arc<AddressPolicy>,
    timeouts: Timeouts,
    retries: Retries,
    clock: SharedClock,
}

impl ProviderClient {
    /// Builds the client. One for the process: each has its own connections.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(options: &ProviderClientOptions) -> Result<Self, ProviderClientError> {
        let policy = Arc::new(AddressPolicy::new(options.allow_private_hosts, &options.allowed_hosts));
        let http = Client::builder()
            .user_agent(concat!("freehold/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(GuardedResolver(Arc::clone(&policy)))
            .redirect(reqwest::redirect::Policy::none())
            // A proxy from the environment would resolve names itself, past the guard.
            .no_proxy()
            // Retrying is ours to count: see `Retries`.
            .retry(reqwest::retry::never())
            .connect_timeout(options.timeouts.connect)
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            // Shorter than the minute after which many load balancers silently drop an idle connection.
            .pool_idle_timeout(Duration::from_secs(50))
            .build()?;
        let clock = SystemClock::shared();
        Ok(Self { http, policy, timeouts: options.timeouts, retries: options.retries, clock })
    }

    /// Takes the time from `clock` instead of the computer's own. It is needed where a key signs something dated.
    #[must_use]
    pub fn with_clock(self, clock: SharedClock) -> Self {
        Self { clock, ..self }
    }

    pub(super) fn policy(&self) -> &AddressPolicy {
        &self.policy
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    pub(super) fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// Posts `body` and returns the answer once it is a success, its body not yet read. The address must have
    /// passed [`AddressPolicy::check`]; names are checked on connecting.
    ///
    /// # Errors
    /// The kind of the last attempt's failure.
    pub(super) async fn post(&self, url: &Url, headers: &HeaderMap, body: Bytes) -> Result<Response, ProviderError> {
        self.post_within(self.timeouts.first_byte, url, headers, body).await
    }

    /// The same with so long from sending to the response headers, for each attempt.
    ///
    /// # Errors
    /// The same.
    pub(super) async fn post_within(
        &self,
        limit: Duration,
        url: &Url,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Response, ProviderError> {
        let mut attempt = 0;
        loop {
            let failure = match self.attempt(limit, url, headers, body.clone()).await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            let Some(delay) = failure.again.filter(|_| attempt < self.retries.max) else {
                return Err(failure.error);
            };
            let Some(delay) = self.retries.delay(attempt, delay) else {
                return Err(failure.error);
            };
            tracing::debug!(code = failure.error.code(), attempt, ?delay, "model call is tried again");
            tokio::time::sleep(delay).await;
            attempt += 1;
        }
    }

    async fn attempt(&self, limit: Duration, url: &Url, headers: &HeaderMap, body: Bytes) -> Result<Response, Failure> {
        let mut request = Request::new(Method::POST, url.clone());
        *request.headers_mut() = headers.clone();
        *request.body_mut() = Some(body.into());
        let response = match tokio::time::timeout(limit, self.http.execute(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Failure::transport(error)),
            Err(elapsed) => return Err(Failure { error: ProviderError::Timeout(elapsed.into()), again: None }),
        };
        if response.status().is_success() { Ok(response) } else { Err(Failure::status(response).await) }
    }
}

/// A failed attempt, and whether another may follow.
struct Failure {
    error: ProviderError,
    /// `None`: must not be repeated. Otherwise how long the provider asked to wait, if it said.
    again: Option<Option<Duration>>,
}

impl Failure {
    fn transport(error: reqwest::Error) -> Self {
        // The URL is the client's own business and adds nothing to the cause.
        let error = error.without_url();
        if chain_has_address_error(&error) {
            return Self { error: ProviderError::RefusedAddress(error.into()), again: None };
        }
        // Once the request may have reached the provider it may also have been billed: only a connection that
        // never came about is tried again.
        let again = error.is_connect().then_some(None);
        let timeout = error.is_timeout();
        let error =
            if timeout { ProviderError::Timeout(error.into()) } else { ProviderError::Unavailable(error.into()) };
        Self { error, again }
    }

    async fn status(response: Response) -> Self {
        let status = response.status();
        let wait = retry_after(response.headers());
        let told_not_to = response.headers().get("x-should-retry").is_some_and(|value| value == "false");
        let body = error_body(response).await;
        let refusal = UpstreamRefusal::parse(Some(status.as_u16()), &body);
        let wait = wait.or(refusal.retry_after);
        let passing = matches!(status.as_u16(), 429 | 502 | 503 | OVERLOADED);
        let again = (passing && !told_not_to && !refusal.quota_exhausted()).then_some(wait);
        Self { error: refusal.into_error(wait), again }
    }
}

fn chain_has_address_error(error: &reqwest::Error) -> bool {
    std::iter::successors(error.source(), |&error| error.source()).any(|error| error.is::<AddressError>())
}

/// The start of an error body; what could be read if it breaks off.
async fn error_body(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ERROR_BODY {
                break;
            }
        }
    };
    // A late body changes nothing: the status decides, and the words only refine.
    let _ = tokio::time::timeout(ERROR_BODY_TIMEOUT, read).await;
    body
}

/// Reads a body that is not a stream, of at most `limit` bytes.
///
/// # Errors
/// `Timeout` if nothing more comes within `between`, `Unavailable` if it breaks off or is too large.
pub(super) async fn read_body(
    mut response: Response,
    limit: usize,
    between: Duration,
) -> Result<Vec<u8>, ProviderError> {
    let mut body = Vec::new();
    loop {
        let chunk = tokio::time::timeout(between, response.chunk())
            .await
            .map_err(|elapsed| ProviderError::Timeout(elapsed.into()))?
            .map_err(|error| ProviderError::Unavailable(error.without_url().into()))?;
        let Some(chunk) = chunk else { return Ok(body) };
        if body.len() + chunk.len() > limit {
            return Err(ProviderError::Unavailable("the answer is larger than allowed".into()));
        }
        body.extend_from_slice(&chunk);
    }
}

impl Retries {
    /// The wait before attempt `attempt + 1`, or `None` if the provider asked for more than `max_delay`.
    fn delay(&self, attempt: u32, asked: Option<Duration>) -> Option<Duration> {
        if let Some(asked) = asked {
            // Spread upward only: earlier than asked is a sure refusal.
            let spread = self.base_delay.mul_f64(rand::random::<f64>());
            return (asked <= self.max_delay).then(|| asked + spread);
        }
        let full = self.base_delay.saturating_mul(1 << attempt.min(16)).min(self.max_delay);
        Some(full.mul_f64(1.0 - rand::random::<f64>() / 2.0))
    }
}

/// `retry-after-ms`, or `Retry-After` as seconds or as a date. A date is measured against the answer's own `Date`:
/// the difference is what the provider means, whatever this machine's clock says.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(milliseconds) = text("retry-after-ms").and_then(|value| value.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(milliseconds / 1000.0).ok();
    }
    let value = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = chrono::DateTime::parse_from_rfc2822(value).ok()?;
    let now = chrono::DateTime::parse_from_rfc2822(text(DATE.as_str())?).ok()?;
    Some((until - now).to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn wait(headers: &[(&'static str, &'static str)]) -> Option<Duration> {
        let pairs = headers.iter().map(|&(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        retry_after(&pairs.collect())
    }

    #[test]
    fn retry_after_is_read_in_every_form() {
        assert_eq!(wait(&[("retry-after", "3")]), Some(Duration::from_secs(3)));
        assert_eq!(wait(&[("retry-after", "0.5")]), Some(Duration::from_millis(500)));
        assert_eq!(wait(&[("retry-after", "9"), ("retry-after-ms", "20")]), Some(Duration::from_millis(20)));
        let date = ("date", "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(wait(&[("retry-after", "Wed, 21 Oct 2015 07:28:07 GMT"), date]), Some(Duration::from_secs(7)));
        assert_eq!(wait(&[("retry-after", "Wed, 21 Oct 2015 07:27:00 GMT"), date]), Some(Duration::ZERO));
        for odd in ["-1", "soon", "NaN", "inf", ""] {
            assert_eq!(wait(&[("retry-after", odd)]), None, "{odd}");
        }
    }

    #[test]
    fn delays_grow_stay_bounded_and_honour_the_provider() {
        let retries = Retries::default();
        for _ in 0..100 {
            let first = retries.delay(0, None).unwrap();
            assert!((Duration::from_millis(125)..=Duration::from_millis(250)).contains(&first));
            assert!(retries.delay(30, None).unwrap() <= retries.max_delay);
            let asked = retries.delay(0, Some(Duration::from_secs(1))).unwrap();
            assert!((Duration::from_secs(1)..=Duration::from_millis(1250)).contains(&asked));
        }
        assert_eq!(retries.delay(0, Some(Duration::from_secs(6))), None);
    }
}
