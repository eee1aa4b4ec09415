//! The text of a database address: its parameters, its host, and percent-encoding.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;

use tokio_postgres::config::ChannelBinding;
use zeroize::Zeroizing;

use super::{DatabaseUrlError, Host, SslMode};

const DEFAULT_PORT: u16 = 5432;

/// Parameters that other programs understand and this one does not. Only these are named in an error: an unknown
/// word in that place may be a piece of a password that was not percent-encoded.
const FOREIGN_PARAMETERS: &[&str] = &[
    "connect_timeout",
    "connection_limit",
    "dbname",
    "gssencmode",
    "hostaddr",
    "keepalives",
    "load_balance_hosts",
    "options",
    "passfile",
    "password",
    "pgbouncer",
    "pool_timeout",
    "port",
    "schema",
    "service",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslnegotiation",
    "sslpassword",
    "target_session_attrs",
    "user",
];

/// The parameters after the question mark.
#[derive(Default)]
pub(super) struct Parameters {
    pub(super) host: Option<String>,
    pub(super) ssl_mode: Option<SslMode>,
    pub(super) ssl_root_cert: Option<PathBuf>,
    pub(super) ca_pem: Option<String>,
    pub(super) public_addresses_only: bool,
    pub(super) channel_binding: Option<ChannelBinding>,
    pub(super) application_name: Option<String>,
}

impl Parameters {
    pub(super) fn parse(query: &str) -> Result<Self, DatabaseUrlError> {
        let mut parameters = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            let repeated = match name {
                "host" => parameters.host.replace(value).is_some(),
                "sslmode" => parameters.ssl_mode.replace(SslMode::parse(&value)?).is_some(),
                // libpq's word for the public authorities, which are trusted here in any case.
                "sslrootcert" if value == "system" => false,
                "sslrootcert" => parameters.ssl_root_cert.replace(PathBuf::from(value)).is_some(),
                "ca_pem" => parameters.ca_pem.replace(value).is_some(),
                "addresses" if value == "public" => std::mem::replace(&mut parameters.public_addresses_only, true),
                "addresses" => return Err(DatabaseUrlError::Addresses),
                "channel_binding" => parameters.channel_binding.replace(parse_channel_binding(&value)?).is_some(),
                "application_name" => parameters.application_name.replace(value).is_some(),
                other => {
                    return Err(FOREIGN_PARAMETERS
                        .iter()
                        .find(|name| **name == other)
                        .map_or(DatabaseUrlError::UnknownParameter, |name| DatabaseUrlError::Unsupported { name }));
                }
            };
            if repeated {
                return Err(DatabaseUrlError::Repeated);
            }
        }
        Ok(parameters)
    }
}

fn parse_channel_binding(text: &str) -> Result<ChannelBinding, DatabaseUrlError> {
    match text {
        "disable" => Ok(ChannelBinding::Disable),
        "prefer" => Ok(ChannelBinding::Prefer),
        "require" => Ok(ChannelBinding::Require),
        _ => Err(DatabaseUrlError::ChannelBinding),
    }
}

/// The driver's type may grow; what it does not know yet cannot have been parsed here.
pub(super) fn channel_binding_name(binding: ChannelBinding) -> &'static str {
    match binding {
        ChannelBinding::Disable => "disable",
        ChannelBinding::Require => "require",
        _ => "prefer",
    }
}

/// The host, unless it is left out, and the port of `host:port`.
pub(super) fn parse_host_and_port(text: &str) -> Result<(Option<Host>, u16), DatabaseUrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(bracketed) => {
            let (address, after) = bracketed.split_once(']').ok_or(DatabaseUrlError::Host)?;
            let address: Ipv6Addr = address.parse().map_err(|_| DatabaseUrlError::Host)?;
            let port = match after.strip_prefix(':') {
                Some(port) => Some(port),
                None if after.is_empty() => None,
                None => return Err(DatabaseUrlError::Host),
            };
            (Some(Host::Tcp(address.to_string())), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            let host = match decode(host)? {
                host if host.is_empty() => None,
                host => Some(parse_host(&host)?),
            };
            (host, port)
        }
    };
    let port = match port {
        None | Some("") => DEFAULT_PORT,
        Some(text) if !text.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(DatabaseUrlError::Port);
        }
        Some(text) => match text.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err(DatabaseUrlError::Port),
        },
    };
    Ok((host, port))
}

/// A host that is decoded already: a directory, an IP address or a name.
pub(super) fn parse_host(text: &str) -> Result<Host, DatabaseUrlError> {
    if text.starts_with('/') {
        return Ok(Host::Socket(PathBuf::from(text)));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Host::Tcp(address.to_string()));
    }
    let is_name =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if is_name { Ok(Host::Tcp(text.to_owned())) } else { Err(DatabaseUrlError::Host) }
}

/// Resolves percent-encoding. Unlike most decoders it refuses a stray `%` instead of keeping it, since a password
/// with one would otherwise mean different things to different programs.
pub(super) fn decode(text: &str) -> Result<String, DatabaseUrlError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(DatabaseUrlError::Encoding);
        };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| DatabaseUrlError::Encoding)?);
    }
    if bytes.contains(&0) {
        return Err(DatabaseUrlError::Nul);
    }
    std::str::from_utf8(&bytes).map(str::to_owned).map_err(|_| DatabaseUrlError::Encoding)
}

/// Percent-encodes everything but letters, digits and `-._~`.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
