//! What a client sets for a provider: which kinds there are, what each of them needs, and what may be shown of it.

use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;
use zeroize::Zeroizing;

use super::address::{AddressError, validate_base_url};
use super::client::ProviderClient;
use super::error::ProviderError;
use super::{ModelProvider, anthropic, azure_openai, gemini, openai_compatible, vertex};

/// The longest key; the longest known are a few hundred characters.
const MAX_KEY_LENGTH: usize = 4_000;
/// The longest file of a service account; they have about 2,400 bytes.
const MAX_SERVICE_ACCOUNT_LENGTH: usize = 16_000;
/// How many characters of a key are shown, so that its owner recognises it.
const HINT_LENGTH: usize = 4;
/// Of shorter keys nothing is shown: four characters would be too large a part of them.
const MIN_LENGTH_FOR_HINT: usize = 12;

/// The wire formats there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProviderKind {
    /// OpenAI, and every server that speaks its chat completions (vLLM, llama.cpp, Ollama and many more).
    OpenaiCompatible,
    /// Anthropic's Messages API.
    Anthropic,
    /// Google's Gemini API, with an API key.
    Gemini,
    /// Gemini models on Google Cloud's Vertex AI, with a service account.
    Vertex,
    /// OpenAI's models on Azure.
    AzureOpenai,
}

impl ProviderKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::OpenaiCompatible, Self::Anthropic, Self::Gemini, Self::Vertex, Self::AzureOpenai];

    /// The word that is stored and sent, as serde writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenaiCompatible => "openai_compatible",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Vertex => "vertex",
            Self::AzureOpenai => "azure_openai",
        }
    }

    /// The kind of this word.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Where it is if nobody says otherwise. Where that depends on the client it has to be said.
    fn default_base_url(self) -> Option<&'static str> {
        match self {
            Self::OpenaiCompatible => Some("https://api.openai.com/v1"),
            Self::Anthropic => Some("https://api.anthropic.com"),
            Self::Gemini => Some("https://generativelanguage.googleapis.com"),
            Self::Vertex | Self::AzureOpenai => None,
        }
    }
}

/// A client's settings for one provider. Its `Debug` hides the key.
#[derive(Debug, Clone)]
pub struct ProviderSpec {
    /// Which wire format.
    pub provider: ProviderKind,
    /// Where, such as `https://api.openai.com/v1`.
    pub base_url: Url,
    /// The client's own key. An empty one sends none at all, for local servers. Of Vertex it is the service account's
    /// JSON.
    pub api_key: SecretString,
}

impl ProviderSpec {
    /// What may be shown of the key, so that its owner recognises it: its last four characters, `…abcd`, or less. Of a
    /// service account it is the end of its key's id, which is no secret.
    #[must_use]
    pub fn hint(&self) -> String {
        match self.provider {
            ProviderKind::Vertex => {
                vertex::ServiceAccount::parse(self.api_key.expose_secret()).map(|account| hint(account.key_id()))
            }
            _ => Ok(hint(self.api_key.expose_secret())),
        }
        .unwrap_or_default()
    }
}

fn hint(key: &str) -> String {
    match key.len() {
        0 => String::new(),
        length if length < MIN_LENGTH_FOR_HINT => "…".to_owned(),
        length => format!("…{}", key.get(length - HINT_LENGTH..).unwrap_or_default()),
    }
}

/// A setting that cannot be used, in words fit for the admin. It never repeats the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SpecError {
    /// `base_url` or `api_key`.
    pub field: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// Why no call can be made with a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The base URL leads somewhere allowed, but is not one of this kind.
    #[error("{0}")]
    BaseUrl(&'static str),
    #[error("{0}")]
    Key(&'static str),
}

impl From<Unusable> for ProviderError {
    fn from(unusable: Unusable) -> Self {
        match unusable {
            Unusable::Address(_) => Self::RefusedAddress(unusable.into()),
            Unusable::BaseUrl(_) => Self::ModelNotFound(unusable.into()),
            Unusable::Key(_) => Self::InvalidKey(unusable.into()),
        }
    }
}

impl From<Unusable> for SpecError {
    fn from(unusable: Unusable) -> Self {
        let field = match unusable {
            Unusable::Address(_) | Unusable::BaseUrl(_) => "base_url",
            Unusable::Key(_) => "api_key",
        };
        Self { field, message: unusable.to_string() }
    }
}

/// Builds a provider. Cheap beside a call but not free: keep the result for as long as the settings hold.
///
/// A refused address or an impossible key is reported by each call rather than here, as the same kinds a call
/// reports anyway.
#[must_use]
pub fn build(spec: &ProviderSpec, client: &ProviderClient) -> Arc<dyn ModelProvider> {
    match spec.provider {
        ProviderKind::OpenaiCompatible => Arc::new(openai_compatible::OpenAiCompatible::new(spec, client)),
        ProviderKind::AzureOpenai => Arc::new(azure_openai::provider(spec, client)),
        ProviderKind::Anthropic => Arc::new(anthropic::Anthropic::new(spec, client)),
        ProviderKind::Gemini => Arc::new(gemini::Gemini::new(spec, client)),
        ProviderKind::Vertex => Arc::new(vertex::Vertex::new(spec, client)),
    }
}

impl ProviderClient {
    /// Checks what an admin wants to save, and puts in what was left out. Names are not resolved here: what they
    /// resolve to can change later, and is checked at every new connection.
    ///
    /// # Errors
    /// The first thing found wrong, in words fit for the admin.
    pub fn check_spec(
        &self,
        provider: ProviderKind,
        base_url: Option<&str>,
        api_key: &SecretString,
    ) -> Result<ProviderSpec, SpecError> {
        let base_url = base_url.map(str::trim).filter(|text| !text.is_empty()).or_else(|| provider.default_base_url());
        let base_url = base_url.ok_or_else(|| SpecError {
            field: "base_url",
            message: match provider {
                ProviderKind::Vertex => {
                    "is needed: it names the region, as in https://europe-west4-aiplatform.googleapis.com"
                }
                _ => "is needed: it names the resource, as in https://my-resource.openai.azure.com",
            }
            .to_owned(),
        })?;
        let base_url = match provider {
            // It may say which version of the interface to speak, in a query.
            ProviderKind::AzureOpenai => Url::parse(base_url).map_err(|_| AddressError::NotAUrl),
            _ => validate_base_url(base_url, self.policy()),
        }
        .map_err(Unusable::Address)?;
        let api_key = match provider {
            ProviderKind::Vertex => service_account(api_key)?,
            _ => plain_key(provider, api_key)?,
        };
        let spec = ProviderSpec { provider, base_url, api_key };
        match provider {
            ProviderKind::OpenaiCompatible => openai_compatible::Target::new(&spec, self).map(drop),
            ProviderKind::AzureOpenai => azure_openai::target(&spec, self).map(drop),
            ProviderKind::Anthropic => anthropic::Target::new(&spec, self).map(drop),
            ProviderKind::Gemini => gemini::Target::new(&spec, self).map(drop),
            ProviderKind::Vertex => vertex::Target::new(&spec, self).map(drop),
        }?;
        Ok(spec)
    }
}

/// The key without the white space that comes along when one is pasted.
fn plain_key(provider: ProviderKind, key: &SecretString) -> Result<SecretString, SpecError> {
    let refused = |message: String| SpecError { field: "api_key", message };
    let key = key.expose_secret().trim();
    if key.len() > MAX_KEY_LENGTH {
        return Err(refused(format!("at most {MAX_KEY_LENGTH} characters")));
    }
    // It becomes an HTTP header, which holds nothing else.
    if !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(refused("must be printable ASCII without spaces".to_owned()));
    }
    if key.is_empty() && provider != ProviderKind::OpenaiCompatible {
        return Err(refused("must not be empty".to_owned()));
    }
    Ok(SecretString::from(key))
}

/// What of a service account's file is needed, on one line.
fn service_account(key: &SecretString) -> Result<SecretString, SpecError> {
    if key.expose_secret().len() > MAX_SERVICE_ACCOUNT_LENGTH {
        let message = format!("at most {MAX_SERVICE_ACCOUNT_LENGTH} characters");
        return Err(SpecError { field: "api_key", message });
    }
    let account = vertex::ServiceAccount::parse(key.expose_secret())?;
    let compact = serde_json::to_string(&account).map(Zeroizing::new);
    let compact = compact.map_err(|_| Unusable::Key("is not the JSON file of a service account"))?;
    Ok(SecretString::from(compact.as_str()))
}

/// The headers of every call.
pub(super) fn headers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(5);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
    headers
}

/// A header's value that is never printed.
pub(super) fn secret_header(value: &str) -> Result<HeaderValue, Unusable> {
    let mut value =
        HeaderValue::try_from(value).map_err(|_| Unusable::Key("the API key has characters that cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Appends to a URL's path, with or without a slash at its end.
pub(super) fn append<'a>(base: &Url, segments: impl IntoIterator<Item = &'a str>) -> Result<Url, Unusable> {
    let mut url = base.clone();
    url.path_segments_mut().map_err(|()| AddressError::NotAUrl)?.pop_if_empty().extend(segments);
    Ok(url)
}

/// The segments of a URL's path, without the empty ones that slashes leave.
pub(super) fn segments(url: &Url) -> Vec<&str> {
    url.path_segments().into_iter().flatten().filter(|segment| !segment.is_empty()).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::providers::ProviderClientOptions;

    pub(in crate::providers) fn client() -> ProviderClient {
        ProviderClient::new(&ProviderClientOptions::default()).unwrap()
    }

    pub(in crate::providers) fn spec(provider: ProviderKind, base_url: &str, key: &str) -> ProviderSpec {
        ProviderSpec { provider, base_url: base_url.parse().unwrap(), api_key: key.to_owned().into() }
    }

    fn checked(kind: ProviderKind, base_url: Option<&str>, key: &str) -> Result<String, &'static str> {
        let spec = client().check_spec(kind, base_url, &SecretString::from(key));
        spec.map(|spec| format!("{} {}", spec.base_url, spec.hint())).map_err(|error| error.field)
    }

    #[test]
    fn kinds_are_stored_as_serde_writes_them() {
        for kind in ProviderKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(ProviderKind::from_name(kind.as_str()), Some(kind));
        }
        assert_eq!(ProviderKind::from_name("openai"), None);
    }

    #[test]
    fn a_spec_does_not_show_its_key() {
        let spec = spec(ProviderKind::OpenaiCompatible, "https://api.example.com/v1", "sk-secret");
        assert!(!format!("{spec:?}").contains("sk-secret"));
    }

    #[test]
    fn a_hint_gives_little_away() {
        assert_eq!(hint(""), "");
        assert_eq!(hint("sk-12345678"), "…");
        assert_eq!(hint("sk-123456789"), "…6789");
    }

    #[test]
    fn each_kind_says_what_it_needs() {
        use ProviderKind::{Anthropic, AzureOpenai, Gemini, OpenaiCompatible, Vertex};
        let key = " sk-0123456789ab\n";
        assert_eq!(checked(OpenaiCompatible, None, key).unwrap(), "https://api.openai.com/v1 …89ab");
        assert_eq!(checked(OpenaiCompatible, Some("https://example.com/v1"), "").unwrap(), "https://example.com/v1 ");
        assert_eq!(checked(Anthropic, None, key).unwrap(), "https://api.anthropic.com/ …89ab");
        assert_eq!(checked(Gemini, Some(" "), key).unwrap(), "https://generativelanguage.googleapis.com/ …89ab");
        for kind in [Anthropic, Gemini] {
            assert_eq!(checked(kind, None, ""), Err("api_key"), "{kind:?}");
        }
        for key in ["a b", "a\nb", "schlüssel", &"x".repeat(MAX_KEY_LENGTH + 1)] {
            assert_eq!(checked(OpenaiCompatible, None, key), Err("api_key"), "{key}");
        }
        assert_eq!(checked(OpenaiCompatible, Some("http://example.com"), key), Err("base_url"));
        assert_eq!(checked(Anthropic, Some("https://10.0.0.1"), key), Err("base_url"));
        assert_eq!(checked(AzureOpenai, None, key), Err("base_url"));
        assert_eq!(checked(AzureOpenai, Some("https://127.0.0.1"), key), Err("base_url"));
        assert_eq!(checked(Vertex, None, "{}"), Err("base_url"));
        let vertex = Some("https://europe-west4-aiplatform.googleapis.com");
        for key in ["{}", "sk-1", "", &"x".repeat(MAX_SERVICE_ACCOUNT_LENGTH + 1)] {
            assert_eq!(checked(Vertex, vertex, key), Err("api_key"), "{key}");
        }
    }
}
