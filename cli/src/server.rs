//! A platform's address: how it is written, and whether credentials may travel to it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// The address of a platform, in one spelling: it is the key under which a session is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Server(Url);

impl Server {
    /// The address of an endpoint. Every segment and value is escaped.
    pub fn endpoint(&self, path: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.0.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Whether it is this very machine: a proxy has no business in between, and nobody listens on the way.
    pub fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
    }

    /// Whether anybody on the way could read a password sent there.
    pub fn exposes_credentials(&self) -> bool {
        self.0.scheme() == "http" && !self.is_loopback()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // `freehold.example` and `localhost:8080` are what people type. The first `:` of the latter would make a
        // scheme of the host.
        let parsed = if text.contains("://") {
            Url::parse(text)
        } else {
            let secure = Url::parse(&format!("https://{text}"));
            match secure {
                Ok(url) if Self(url.clone()).is_loopback() => Url::parse(&format!("http://{text}")),
                other => other,
            }
        };
        let mut url = parsed.map_err(|error| format!("not a URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("the URL has to begin with https:// or http://".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("leave the user and password out of the URL: freehold login asks for them".into());
        }
        url.set_query(None);
        url.set_fragment(None);
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self(url))
    }
}

impl TryFrom<String> for Server {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Server> for String {
    fn from(server: Server) -> Self {
        server.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Server {
        text.parse().unwrap()
    }

    #[test]
    fn spellings_of_one_platform_are_one_key() {
        for text in ["freehold.example", "https://freehold.example/", "HTTPS://Freehold.Example:443/?a#b"] {
            assert_eq!(server(text).to_string(), "https://freehold.example");
        }
        assert_eq!(server("localhost:8080").to_string(), "http://localhost:8080");
        assert_eq!(server("https://a.example/base/").to_string(), "https://a.example/base");
    }

    #[test]
    fn endpoints_are_escaped_and_keep_the_base_path() {
        let url = server("https://a.example/base").endpoint(&["v1", "a/b"], &[("state", "x&y".into())]);
        assert_eq!(url.as_str(), "https://a.example/base/v1/a%2Fb?state=x%26y");
        let root = server("https://a.example").endpoint(&["v1"], &[]);
        assert_eq!(root.as_str(), "https://a.example/v1");
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for safe in ["http://localhost:1", "http://127.0.0.2", "http://[::1]:1", "https://a.example"] {
            assert!(!server(safe).exposes_credentials(), "{safe}");
        }
        for exposed in ["http://a.example", "http://10.0.0.1", "http://localhost.a.example"] {
            assert!(server(exposed).exposes_credentials(), "{exposed}");
        }
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "ftp://a.example", "https://me:secret@a.example", "https://"] {
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }
}
