//! Gemini models on Google Cloud's Vertex AI: the Gemini API's bodies and events, in a region of the client's choice,
//! with a service account instead of a key.

mod account;
mod embeddings;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use reqwest::Response;
use secrecy::ExposeSecret as _;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

pub(super) use self::account::ServiceAccount;
use self::account::{Signer, Token};
use super::client::ProviderClient;
use super::error::ProviderError;
use super::gemini::events::GenerateContent;
use super::gemini::request;
use super::spec::{ProviderSpec, Unusable, append, headers, segments};
use super::stream;
use super::{ChatRequest, ChatStream, EmbeddingRequest, Embeddings, ModelProvider};

/// For how long those who waited for a token share the failure to get one, instead of failing one after the other.
const FAILURE_SHARED: Duration = Duration::from_secs(1);

pub(super) struct Vertex {
    client: ProviderClient,
    target: Result<Target, Unusable>,
    /// One token for all calls. Whoever finds it missing gets one while the others wait.
    token: Mutex<Held>,
}

/// Everything about a call that its request does not change, made once.
pub(super) struct Target {
    /// Up to and including the location.
    base: Url,
    headers: HeaderMap,
    signer: Signer,
}

#[derive(Default)]
struct Held {
    token: Option<Token>,
    failed: Option<(Instant, bool)>,
}

impl Vertex {
    pub(super) fn new(spec: &ProviderSpec, client: &ProviderClient) -> Self {
        Self { client: client.clone(), target: Target::new(spec, client), token: Mutex::default() }
    }

    fn target(&self) -> Result<&Target, ProviderError> {
        self.target.as_ref().map_err(|&unusable| unusable.into())
    }

    async fn start(&self, request: &ChatRequest) -> Result<ChatStream, ProviderError> {
        let target = self.target()?;
        let body = request::body(request)?;
        let body = serde_json::to_vec(&body).map_err(|error| ProviderError::BadRequest(error.into()))?;
        let mut url = target.method(&request.model, "streamGenerateContent")?;
        url.set_query(Some("alt=sse"));
        let response = self.post(target, &url, Bytes::from(body)).await?;
        stream::events(&self.client, response, GenerateContent::default()).await
    }

    /// Posts with the token there is. One that was revoked before its time is replaced once.
    async fn post(&self, target: &Target, url: &Url, body: Bytes) -> Result<Response, ProviderError> {
        let (token, fresh) = self.token(target, None).await?;
        let mut headers = target.headers.clone();
        headers.insert(AUTHORIZATION, token.header().clone());
        match self.client.post(url, &headers, body.clone()).await {
            Err(ProviderError::InvalidKey(_)) if !fresh => {}
            answer => return answer,
        }
        let (token, _) = self.token(target, Some(&token)).await?;
        headers.insert(AUTHORIZATION, token.header().clone());
        self.client.post(url, &headers, body).await
    }

    /// A token that is not `refused`, and whether it was just made.
    async fn token(&self, target: &Target, refused: Option<&Token>) -> Result<(Token, bool), ProviderError> {
        let mut held = self.token.lock().await;
        let now = Instant::now();
        if let Some(token) = held.token.as_ref().filter(|token| token.holds(now) && !token.is(refused)) {
            return Ok((token.clone(), false));
        }
        if let Some((at, of_the_key)) = held.failed
            && now.duration_since(at) < FAILURE_SHARED
        {
            let cause = "getting an access token failed a moment ago".into();
            return Err(if of_the_key { ProviderError::InvalidKey(cause) } else { ProviderError::Unavailable(cause) });
        }
        match target.signer.token(&self.client).await {
            Ok(token) => {
                *held = Held { token: Some(token.clone()), failed: None };
                Ok((token, true))
            }
            Err(error) => {
                held.failed = Some((Instant::now(), matches!(error, ProviderError::InvalidKey(_))));
                Err(error)
            }
        }
    }
}

impl ModelProvider for Vertex {
    fn chat(&self, request: ChatRequest) -> BoxFuture<'_, Result<ChatStream, ProviderError>> {
        Box::pin(async move { self.start(&request).await })
    }

    fn most_texts(&self, model: &str) -> usize {
        embeddings::most_texts(model)
    }

    fn embed(&self, request: EmbeddingRequest) -> BoxFuture<'_, Result<Embeddings, ProviderError>> {
        Box::pin(async move { embeddings::embed(self, self.target()?, &request).await })
    }
}

impl Target {
    pub(super) fn new(spec: &ProviderSpec, client: &ProviderClient) -> Result<Self, Unusable> {
        client.policy().check(&spec.base_url)?;
        let account = ServiceAccount::parse(spec.api_key.expose_secret())?;
        let base = base(&spec.base_url, account.project())?;
        let signer = Signer::new(&account, client)?;
        Ok(Self { base, headers: headers(), signer })
    }

    /// The address of a model's method. Google's own models may be named alone.
    fn method(&self, model: &str, method: &str) -> Result<Url, Unusable> {
        let named: Vec<&str> = model.split('/').collect();
        match named.as_slice() {
            ["publishers", publisher, "models", name] => {
                append(&self.base, ["publishers", publisher, "models", &format!("{name}:{method}")])
            }
            // A tuned model.
            ["endpoints", id] => append(&self.base, ["endpoints", &format!("{id}:{method}")]),
            _ => append(&self.base, ["publishers", "google", "models", &format!("{model}:{method}")]),
        }
    }
}

/// The address of a location. The project is the service account's unless the address names one; the location is in
/// the name of the host.
fn base(base_url: &Url, project: &str) -> Result<Url, Unusable> {
    let path = segments(base_url);
    if matches!(path.as_slice(), [.., "projects", _, "locations", _]) {
        return append(base_url, []);
    }
    let host = base_url.host_str().unwrap_or_default();
    let location = if host == "aiplatform.googleapis.com" {
        Some("global")
    } else {
        let multi_region = host.strip_prefix("aiplatform.").and_then(|rest| rest.strip_suffix(".rep.googleapis.com"));
        host.strip_suffix("-aiplatform.googleapis.com").or(multi_region)
    };
    let location = location.filter(|location| !location.is_empty()).ok_or(Unusable::BaseUrl(
        "must name the region, as in https://europe-west4-aiplatform.googleapis.com, or end in \
         /v1/projects/PROJECT/locations/LOCATION",
    ))?;
    let version = match path.as_slice() {
        [] => Some("v1"),
        [version] if version.starts_with("v1") => None,
        _ => return Err(Unusable::BaseUrl("must have no path, or end in /v1/projects/PROJECT/locations/LOCATION")),
    };
    append(base_url, version.into_iter().chain(["projects", project, "locations", location]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn based(text: &str) -> Result<String, Unusable> {
        base(&text.parse().unwrap(), "acme").map(|url| url.to_string())
    }

    #[test]
    fn the_region_is_in_the_name_of_the_host() {
        let host = "https://europe-west4-aiplatform.googleapis.com";
        let expected = format!("{host}/v1/projects/acme/locations/europe-west4");
        for base in
            [host.to_owned(), format!("{host}/"), format!("{host}/v1"), expected.clone(), format!("{expected}/")]
        {
            assert_eq!(based(&base).unwrap(), expected, "{base}");
        }
        assert_eq!(
            based("https://aiplatform.googleapis.com/v1beta1").unwrap(),
            "https://aiplatform.googleapis.com/v1beta1/projects/acme/locations/global"
        );
        assert_eq!(
            based("https://aiplatform.eu.rep.googleapis.com").unwrap(),
            "https://aiplatform.eu.rep.googleapis.com/v1/projects/acme/locations/eu"
        );
        let elsewhere = "https://proxy.example.com/vertex/v1/projects/p/locations/l";
        assert_eq!(based(elsewhere).unwrap(), elsewhere);
        for odd in ["https://proxy.example.com", "https://-aiplatform.googleapis.com", &format!("{host}/v1/projects")] {
            assert!(matches!(based(odd), Err(Unusable::BaseUrl(_))), "{odd}");
        }
    }
}
