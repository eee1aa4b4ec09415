//! Which addresses a client's base URL may lead to.
//!
//! A client admin chooses the base URL, so without this guard one could aim the server at the owner's network.
//! Literal hosts are judged when a provider is built; names are judged on the addresses they resolve to, in the
//! resolver the HTTP client itself uses, so that what was checked is what gets connected to. Redirects are never
//! followed and no proxy is used: either would take the connection out of the guard's hands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

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

/// Whether an address is one of the public internet. Addresses that carry an IPv4 address inside are judged by it.
pub(super) fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let special = match ip.octets() {
        // This network, private, loopback; multicast, reserved and broadcast.
        [0 | 10 | 127 | 224..=255, ..] => true,
        // Shared between carriers and their customers (CGNAT).
        [100, 64..=127, ..] => true,
        // Link-local, which is where clouds keep their metadata service.
        [169, 254, ..] => true,
        [172, 16..=31, ..] => true,
        [192, 168, ..] => true,
        // Protocol assignments, documentation, and the retired 6to4 relay.
        [192, 0, 0 | 2, _] | [198, 51, 100, _] | [203, 0, 113, _] | [192, 88, 99, _] => true,
        // Benchmarks of network devices.
        [198, 18 | 19, ..] => true,
        _ => false,
    };
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        // NAT64: the network turns it into the IPv4 address at its end.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0, 0, 0, 0, 0, 0xffff, high, low] => embedded(high, low),
        // 6to4 leads to the IPv4 address in its second and third group.
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, benchmarks and the other protocol assignments; documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // An allow-list: outside 2000::/3 nothing is assigned to the public, so loopback, unspecified, link-local,
        // unique-local, multicast and whatever comes next are refused without being named.
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_not_public() {
        let special = "0.0.0.0 10.1.2.3 127.0.0.1 127.9.9.9 100.64.0.1 100.127.255.255 169.254.169.254 172.16.0.1 \
            172.31.255.255 192.168.1.1 192.0.0.8 192.0.2.1 198.18.0.1 198.19.255.255 198.51.100.7 203.0.113.7 \
            192.88.99.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 \
            :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 \
            64:ff9b::a00:1 64:ff9b:1::808:808 2002:7f00:1:: 2002:a00:1::1 2001::1 2001:2::1 2001:db8::1 3fff::1 \
            fe80::1 febf::1 fec0::1 fc00::1 fd12::1 ff02::1 100::1 5f00::1 4000::1";
        for text in special.split_whitespace() {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_public() {
        let public = "1.1.1.1 8.8.8.8 100.63.0.1 100.128.0.1 172.15.0.1 172.32.0.1 192.0.1.1 223.255.0.1 \
            2606:4700::1111 2001:4860:4860::8888 2001:200::1 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1";
        for text in public.split_whitespace() {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

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
