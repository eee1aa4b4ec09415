//! Which addresses a client's base URL may lead to.
//!
//! A client admin chooses the base URL, so without this guard one could aim the server at the owner's network.
//! Literal hosts are judged when a provider is built; names are judged on the addresses they resolve to, in the
//! resolver the HTTP client itself uses, so that what was checked is what gets connected to. Redirects are never
//! followed and no proxy is used: either would take the connection out of the guard's hands.

use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::addresses::is_public;

/// Why an address is not used. The text names no address, so that it tells nobody what the owner's DNS answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an absolute URL with a host.
    #[error("the base URL is not a valid URL")]
    NotAUrl,
    /// Neither `https` nor (where allowed) `http`.
    #[error("the base URL must start with https://")]
    Scheme,
    /// A user name or password in the URL, which would be stored and shown in clear.
    #[error("the base URL must not contain a user name or password")]
    Userinfo,
    /// A query or fragment, which appending a path would misplace.
    #[error("the base URL must not contain a query or a fragment")]
    QueryOrFragment,
    /// A private, local or otherwise special address.
    #[error("the base URL leads to an address that is not public")]
    NotPublic,
}

/// The owner's rule for outgoing addresses.
#[derive(Debug, Clone, Default)]
pub struct AddressPolicy {
    allow_private_hosts: bool,
    allowed_hosts: Vec<String>,
}

impl AddressPolicy {
    /// `allow_private_hosts` lifts the guard; `allowed_hosts` lifts it for these host names or literals only
    /// (no port, compared without case).
    #[must_use]
    pub fn new(allow_private_hosts: bool, allowed_hosts: &[String]) -> Self {
        let allowed_hosts = allowed_hosts.iter().map(|host| normal(host)).collect();
        Self { allow_private_hosts, allowed_hosts }
    }

    /// Checks all of a URL that can be checked without DNS.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn check(&self, url: &Url) -> Result<(), AddressError> {
        let host = url.host().ok_or(AddressError::NotAUrl)?;
        let trusted = self.trusts(url.host_str().unwrap_or_default());
        match url.scheme() {
            "https" => {}
            "http" if trusted => {}
            _ => return Err(AddressError::Scheme),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(AddressError::Userinfo);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(AddressError::QueryOrFragment);
        }
        let public = match host {
            Host::Ipv4(ip) => is_public(ip.into()),
            Host::Ipv6(ip) => is_public(ip.into()),
            Host::Domain(_) => true,
        };
        if public || trusted { Ok(()) } else { Err(AddressError::NotPublic) }
    }

    fn trusts(&self, host: &str) -> bool {
        self.allow_private_hosts || self.allowed_hosts.contains(&normal(host))
    }
}

/// Parses and checks the base URL a client admin wants to save. Names are not resolved here: what they resolve to
/// can change later, and is checked at every new connection.
///
/// # Errors
/// The first thing found wrong, in words fit for the admin.
pub fn validate_base_url(text: &str, policy: &AddressPolicy) -> Result<Url, AddressError> {
    let url = Url::parse(text.trim()).map_err(|_| AddressError::NotAUrl)?;
    policy.check(&url)?;
    Ok(url)
}

fn normal(host: &str) -> String {
    host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase()
}

/// The DNS resolver of the HTTP client: drops every address the policy does not allow.
pub(super) struct GuardedResolver(pub(super) Arc<AddressPolicy>);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let trusted = policy.trusts(name.as_str());
            let allowed: Vec<SocketAddr> = found.filter(|address| trusted || is_public(address.ip())).collect();
            if allowed.is_empty() {
                return Err(AddressError::NotPublic.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_checked_without_dns() {
        let strict = AddressPolicy::default();
        let check = |text: &str| validate_base_url(text, &strict).map(String::from);
        assert_eq!(check(" https://api.openai.com/v1 "), Ok("https://api.openai.com/v1".to_owned()));
        assert_eq!(check("api.openai.com/v1"), Err(AddressError::NotAUrl));
        assert_eq!(check("http://api.openai.com/v1"), Err(AddressError::Scheme));
        assert_eq!(check("file:///etc/passwd"), Err(AddressError::NotAUrl));
        assert_eq!(check("gopher://host/1"), Err(AddressError::Scheme));
        assert_eq!(check("https://me@host/v1"), Err(AddressError::Userinfo));
        assert_eq!(check("https://me:secret@host/v1"), Err(AddressError::Userinfo));
        assert_eq!(check("https://host/v1?key=1"), Err(AddressError::QueryOrFragment));
        assert_eq!(check("https://host/v1#a"), Err(AddressError::QueryOrFragment));
        // Every way a browser spells 127.0.0.1.
        for text in
            ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "[::ffff:7f00:1]", "１２７.0.0.1"]
        {
            assert_eq!(check(&format!("https://{text}/v1")), Err(AddressError::NotPublic), "{text}");
        }
    }

    #[test]
    fn the_owner_may_allow_one_host_or_all() {
        let one = AddressPolicy::new(false, &["LLM.internal".to_owned(), "10.0.0.7".to_owned(), "[::1]".to_owned()]);
        for text in ["http://llm.internal:8000/v1", "http://10.0.0.7/v1", "http://[::1]:1/v1", "http://llm.internal./"]
        {
            assert!(validate_base_url(text, &one).is_ok(), "{text}");
        }
        assert_eq!(validate_base_url("http://10.0.0.8/v1", &one).unwrap_err(), AddressError::Scheme);
        assert_eq!(validate_base_url("https://10.0.0.8/v1", &one).unwrap_err(), AddressError::NotPublic);
        let all = AddressPolicy::new(true, &[]);
        assert!(validate_base_url("http://127.0.0.1:9/v1", &all).is_ok());
        assert!(validate_base_url("ftp://127.0.0.1/v1", &all).is_err());
    }
}
