//! OpenAI's models on Azure: the same bodies and events at other addresses, with another header.
//!
//! A model's name is that of its deployment. The base URL is the resource's (`https://NAME.openai.azure.com`), and may
//! end in `?api-version=…`; one that ends in `/openai/v1` speaks Azure's newer interface, which has no versions.

use secrecy::ExposeSecret as _;
use url::Url;

use super::client::ProviderClient;
use super::openai_compatible::{OpenAiCompatible, Places, Target};
use super::spec::{ProviderSpec, Unusable, append, headers, secret_header, segments};

/// The version that is spoken if nobody says otherwise: the latest that is not a preview.
const API_VERSION: &str = "2024-10-21";

pub(super) fn provider(spec: &ProviderSpec, client: &ProviderClient) -> OpenAiCompatible {
    OpenAiCompatible::with_target(target(spec, client), client)
}

pub(super) fn target(spec: &ProviderSpec, client: &ProviderClient) -> Result<Target, Unusable> {
    let (base, api_version) = split(&spec.base_url)?;
    client.policy().check(&base)?;
    let path = segments(&base);
    if path.contains(&"deployments") {
        return Err(Unusable::BaseUrl(
            "leave out `/openai/deployments/…`: the deployment is the model's name, and the rest is added to it",
        ));
    }
    let places = match path.as_slice() {
        [.., "openai", "v1"] if api_version.is_some() => {
            return Err(Unusable::BaseUrl("an address that ends in `/openai/v1` has no `api-version`"));
        }
        [.., "openai", "v1"] => Places::fixed(&base)?,
        [.., "openai"] => Places::deployments(&base, &["deployments"], api_version)?,
        _ => Places::deployments(&base, &["openai", "deployments"], api_version)?,
    };
    let mut headers = headers();
    headers.insert("api-key", secret_header(spec.api_key.expose_secret().trim())?);
    // Every model there is today knows the newer name, and the newer ones refuse the older.
    Ok(Target { places, headers, completion_limit: true })
}

impl Places {
    fn deployments(base: &Url, path: &[&str], api_version: Option<String>) -> Result<Self, Unusable> {
        let api_version = api_version.unwrap_or_else(|| API_VERSION.to_owned());
        Ok(Self::Deployments { base: append(base, path.iter().copied())?, api_version })
    }
}

/// The base URL without its query, and the version that was in it.
fn split(base_url: &Url) -> Result<(Url, Option<String>), Unusable> {
    let mut api_version = None;
    for (name, value) in base_url.query_pairs() {
        if name != "api-version" || api_version.is_some() {
            return Err(Unusable::BaseUrl("must have no query but `api-version`"));
        }
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
            return Err(Unusable::BaseUrl(
                "the `api-version` is a date such as 2024-10-21, or with `-preview` behind it",
            ));
        }
        api_version = Some(value.into_owned());
    }
    let mut base = base_url.clone();
    base.set_query(None);
    Ok((base, api_version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::ProviderKind;
    use crate::providers::spec::tests::{client, spec};

    fn url(base: &str) -> Result<String, Unusable> {
        let target = target(&spec(ProviderKind::AzureOpenai, base, "k"), &client())?;
        assert_eq!(target.headers["api-key"], "k");
        assert!(target.headers["api-key"].is_sensitive() && !target.headers.contains_key("authorization"));
        Ok(target.chat("my gpt/4")?.to_string())
    }

    #[test]
    fn the_deployment_is_in_the_address() {
        let expected = "https://r.openai.azure.com/openai/deployments/my%20gpt%2F4/chat/completions?api-version=";
        for base in ["https://r.openai.azure.com", "https://r.openai.azure.com/", "https://r.openai.azure.com/openai"] {
            assert_eq!(url(base).unwrap(), format!("{expected}2024-10-21"), "{base}");
        }
        let preview = url("https://r.openai.azure.com/?api-version=2025-01-01-preview").unwrap();
        assert_eq!(preview, format!("{expected}2025-01-01-preview"));
        let v1 = "https://r.openai.azure.com/openai/v1/chat/completions";
        assert_eq!(url("https://r.openai.azure.com/openai/v1/").unwrap(), v1);
    }

    #[test]
    fn what_was_pasted_wrongly_is_explained() {
        for base in [
            "https://r.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=2024-10-21",
            "https://r.openai.azure.com/?code=1",
            "https://r.openai.azure.com/?api-version=1&api-version=2",
            "https://r.openai.azure.com/?api-version=1%2F2",
            "https://r.openai.azure.com/openai/v1?api-version=2024-10-21",
        ] {
            assert!(matches!(url(base), Err(Unusable::BaseUrl(_))), "{base}");
        }
        for base in ["http://r.openai.azure.com", "https://10.0.0.1", "https://me@r.openai.azure.com", "https://r/#a"] {
            assert!(matches!(url(base), Err(Unusable::Address(_))), "{base}");
        }
    }
}
