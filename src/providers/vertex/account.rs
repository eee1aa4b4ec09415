//! A service account, and the access tokens it gets: a statement signed with its key, exchanged for a token that is
//! good for an hour.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroize as _;

use crate::providers::client::{ProviderClient, read_body};
use crate::providers::error::ProviderError;
use crate::providers::spec::{Unusable, secret_header};

/// What the token is good for.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// How long the signed statement holds, in seconds; no longer is allowed.
const STATEMENT_LIFETIME: i64 = 3600;
/// How far this machine's clock may be ahead of Google's, in seconds: a statement of the future is refused.
const CLOCK_AHEAD: i64 = 30;
/// How long before its end a token is not used any more. The longest answer has begun by then.
const MARGIN: Duration = Duration::from_secs(120);
/// The largest answer with a token.
const MAX_TOKEN_ANSWER: usize = 64 * 1024;

/// The file that Google gives out for a service account, as far as it is needed. Nothing prints its key.
#[derive(Serialize, Deserialize)]
pub(in crate::providers) struct ServiceAccount {
    r#type: String,
    project_id: String,
    #[serde(default)]
    private_key_id: String,
    private_key: String,
    client_email: String,
    token_uri: String,
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccount").field("key_id", &self.private_key_id).finish_non_exhaustive()
    }
}

impl Drop for ServiceAccount {
    fn drop(&mut self) {
        self.private_key.zeroize();
    }
}

impl ServiceAccount {
    /// Reads the file.
    pub(in crate::providers) fn parse(json: &str) -> Result<Self, Unusable> {
        let not_one = Unusable::Key("is not the JSON file of a service account");
        let account: Self = serde_json::from_str(json).map_err(|_| not_one)?;
        if account.r#type != "service_account" || account.project_id.is_empty() || account.client_email.is_empty() {
            return Err(not_one);
        }
        Ok(account)
    }

    /// The id of its key, which is no secret.
    pub(in crate::providers) fn key_id(&self) -> &str {
        &self.private_key_id
    }

    pub(super) fn project(&self) -> &str {
        &self.project_id
    }
}

/// Signs as a service account.
pub(super) struct Signer {
    key: Box<dyn rustls::sign::Signer>,
    key_id: String,
    email: String,
    token_uri: String,
    token_url: Url,
    headers: HeaderMap,
}

#[derive(Serialize)]
struct JoseHeader<'a> {
    alg: &'static str,
    typ: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    kid: &'a str,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'static str,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    expires_in: u64,
}

/// An access token, as the header that shows it.
#[derive(Clone)]
pub(super) struct Token {
    header: HeaderValue,
    until: Instant,
}

impl Token {
    pub(super) fn header(&self) -> &HeaderValue {
        &self.header
    }

    pub(super) fn holds(&self, now: Instant) -> bool {
        now < self.until
    }

    pub(super) fn is(&self, other: Option<&Self>) -> bool {
        other.is_some_and(|other| other.header == self.header)
    }
}

impl Signer {
    pub(super) fn new(account: &ServiceAccount, client: &ProviderClient) -> Result<Self, Unusable> {
        let bad = Unusable::Key("the service account's private key cannot be read");
        let der = PrivateKeyDer::from_pem_slice(account.private_key.as_bytes()).map_err(|_| bad)?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der).map_err(|_| bad)?;
        let key = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).ok_or(bad)?;
        // The client wrote this address too, so that it is judged like any other.
        let token_url = Url::parse(&account.token_uri).ok();
        let token_url = token_url.filter(|url| client.policy().check(url).is_ok());
        let token_url = token_url.ok_or(Unusable::Key("the service account's `token_uri` is not an address to use"))?;
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        Ok(Self {
            key,
            key_id: account.private_key_id.clone(),
            email: account.client_email.clone(),
            token_uri: account.token_uri.clone(),
            token_url,
            headers,
        })
    }

    /// Gets a new token.
    ///
    /// # Errors
    /// `InvalidKey` if the account or its key is not known any more, and whatever a call reports.
    pub(super) async fn token(&self, client: &ProviderClient) -> Result<Token, ProviderError> {
        let statement = self.statement(client.clock().now().timestamp())?;
        let body = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={statement}");
        let asked = Instant::now();
        let answer = client.post(&self.token_url, &self.headers, Bytes::from(body)).await;
        let answer = answer.map_err(|error| match error {
            // Nothing but the statement can be wrong about the request.
            ProviderError::BadRequest(cause) | ProviderError::ModelNotFound(cause) => ProviderError::InvalidKey(cause),
            other => other,
        })?;
        let body = read_body(answer, MAX_TOKEN_ANSWER, client.timeouts().between_tokens).await?;
        // The error would quote what was read.
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| ProviderError::Unavailable("the answer with the access token cannot be read".into()))?;
        let lifetime = Duration::from_secs(answer.expires_in).saturating_sub(MARGIN).min(Duration::from_secs(86_400));
        Ok(Token { header: secret_header(&format!("Bearer {}", answer.access_token))?, until: asked + lifetime })
    }

    /// The signed statement (a JWT, RS256).
    fn statement(&self, now: i64) -> Result<String, ProviderError> {
        let header = JoseHeader { alg: "RS256", typ: "JWT", kid: &self.key_id };
        let iat = now - CLOCK_AHEAD;
        let claims =
            Claims { iss: &self.email, scope: SCOPE, aud: &self.token_uri, iat, exp: iat + STATEMENT_LIFETIME };
        let mut statement = String::new();
        for part in [serde_json::to_vec(&header), serde_json::to_vec(&claims)] {
            let part = part.map_err(|error| ProviderError::InvalidKey(error.into()))?;
            if !statement.is_empty() {
                statement.push('.');
            }
            BASE64_URL_SAFE_NO_PAD.encode_string(part, &mut statement);
        }
        let signature = self.key.sign(statement.as_bytes()).map_err(|error| ProviderError::InvalidKey(error.into()))?;
        statement.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut statement);
        Ok(statement)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::providers::spec::tests::client;

    fn file(private_key: &str, token_uri: &str) -> Value {
        json!({
            "type": "service_account", "project_id": "acme", "private_key_id": "0123456789abcdef",
            "private_key": private_key, "client_email": "bot@acme.iam.gserviceaccount.com", "client_id": "1",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth", "token_uri": token_uri,
            "universe_domain": "googleapis.com",
        })
    }

    const TOKEN_URI: &str = "https://oauth2.googleapis.com/token";

    #[test]
    fn the_statement_is_signed_as_google_checks_it() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let account = ServiceAccount::parse(&file(&key.serialize_pem(), TOKEN_URI).to_string()).unwrap();
        let statement = Signer::new(&account, &client()).unwrap().statement(1_000_000).unwrap();
        let decoding = jsonwebtoken::DecodingKey::from_rsa_der(key.public_key_raw());
        let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
        validation.set_audience(&[TOKEN_URI]);
        validation.validate_exp = false;
        let read = jsonwebtoken::decode::<Value>(&statement, &decoding, &validation).unwrap();
        assert_eq!(read.header.kid.as_deref(), Some("0123456789abcdef"));
        let expected = json!({
            "iss": "bot@acme.iam.gserviceaccount.com", "scope": SCOPE, "aud": TOKEN_URI,
            "iat": 999_970, "exp": 1_003_570,
        });
        assert_eq!(read.claims, expected);
    }

    #[test]
    fn what_is_no_service_account_is_refused_without_quoting_it() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().serialize_pem();
        let refused = |json: &Value| {
            let made = ServiceAccount::parse(&json.to_string()).and_then(|account| Signer::new(&account, &client()));
            made.map(drop).unwrap_err().to_string()
        };
        let mut user = file("k", TOKEN_URI);
        user["type"] = json!("authorized_user");
        for json in [user, json!({}), json!("sk-secret"), file("sk-secret", TOKEN_URI), file(&key, TOKEN_URI)] {
            let told = refused(&json);
            assert!(!told.contains("sk-secret") && !told.contains("PRIVATE"), "{told}");
        }
        let account = ServiceAccount::parse(&file("sk-secret", TOKEN_URI).to_string()).unwrap();
        assert!(!format!("{account:?}").contains("sk-secret"));
    }

    #[test]
    fn a_token_is_not_asked_for_at_inner_addresses() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap().serialize_pem();
        for uri in ["https://169.254.169.254/token", "http://oauth2.googleapis.com/token", "https://u@x.com", "x"] {
            let account = ServiceAccount::parse(&file(&key, uri).to_string()).unwrap();
            assert!(Signer::new(&account, &client()).is_err(), "{uri}");
        }
    }
}
