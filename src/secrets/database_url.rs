//! Addresses of databases, with the password inside.
//!
//! Two drivers read them, and they disagree: tokio-postgres knows neither `sslmode=verify-full` nor `sslrootcert`,
//! sqlx does not verify certificates under `require`. So an address is parsed once into a structure of our own, and
//! both drivers' options are built from that.

mod libpq;

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use subtle::ConstantTimeEq as _;
use tokio_postgres::config::{ChannelBinding, SslMode as DriverSslMode};
use zeroize::Zeroizing;

use super::tls::CONNECT_TIMEOUT;
use text::{Parameters, channel_binding_name, decode, encode, parse_host, parse_host_and_port};

mod text;

const DEFAULT_APPLICATION_NAME: &str = "freehold";

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A host name or an IP address, without brackets.
    Tcp(String),
    /// The directory that holds the server's Unix socket.
    Socket(PathBuf),
}

impl Host {
    /// Whether the connection cannot leave this machine: a socket, `localhost` or a loopback address.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Tcp(name) => {
                name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
        }
    }
}

/// Whether the connection is encrypted, and what is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypted. The default for local hosts.
    Disable,
    /// Encrypted if the server offers it. tokio-postgres verifies the certificate then, sqlx does not; in neither
    /// case does it protect against somebody who can change traffic.
    Prefer,
    /// Always encrypted. Elsewhere this mode checks no certificate, which protects against nobody who can redirect
    /// traffic; here it is carried out as [`SslMode::VerifyFull`].
    Require,
    /// Always encrypted, with a certificate that is valid for the host name. The default for all other hosts.
    VerifyFull,
}

impl SslMode {
    /// The mode as it is written in an address.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyFull => "verify-full",
        }
    }

    fn parse(text: &str) -> Result<Self, DatabaseUrlError> {
        match text {
            "disable" => Ok(Self::Disable),
            "prefer" => Ok(Self::Prefer),
            "require" => Ok(Self::Require),
            // Checking the issuer but not the name is of use only with a private authority, and then the name can
            // be checked as well.
            "verify-ca" | "verify-full" => Ok(Self::VerifyFull),
            _ => Err(DatabaseUrlError::SslMode),
        }
    }
}

/// Why a text is not the address of a database. No message quotes the text, which may hold a password anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// Another scheme, or none.
    #[error("a database address starts with postgres:// or postgresql://")]
    Scheme,
    /// White space or a control character.
    #[error("a database address holds no spaces or control characters; write a space as %20")]
    Character,
    /// A hash sign in the clear.
    #[error("a # in a database address must be written %23")]
    Fragment,
    /// No @, several, or one in the wrong place.
    #[error(
        "a database address holds exactly one @, between the user and the host; write @ as %40, / as %2F, ? as %3F \
         and # as %23 where they belong to a user name or password"
    )]
    UserInfo,
    /// The user's name is missing.
    #[error("the database address names no user")]
    User,
    /// A percent sign without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("a % in the database address does not start an encoded character; write % itself as %25")]
    Encoding,
    /// An encoded NUL, which the protocol cannot carry.
    #[error("a database address cannot hold %00")]
    Nul,
    /// The host is missing, malformed, given twice, or one of several.
    #[error("the database address does not name one host: a name, an IP address, or ?host= with a socket directory")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("the port of the database address is not a number from 1 to 65535")]
    Port,
    /// The database's name is missing or holds a slash.
    #[error("the database address does not end with /, and the name of one database")]
    Database,
    /// An unknown `sslmode`.
    #[error("sslmode is one of disable, prefer, require, verify-ca and verify-full")]
    SslMode,
    /// An unknown `channel_binding`.
    #[error("channel_binding is one of disable, prefer and require")]
    ChannelBinding,
    /// An unknown rule for addresses.
    #[error("addresses is public, or left out")]
    Addresses,
    /// A parameter given twice.
    #[error("a parameter of the database address is given twice")]
    Repeated,
    /// A parameter that other programs know.
    #[error("the parameter {name} of the database address is not supported")]
    Unsupported {
        /// Its name.
        name: &'static str,
    },
    /// Any other parameter. Its name is not repeated, since it may be a piece of a password.
    #[error(
        "the database address has an unknown parameter; known are host, sslmode, sslrootcert, channel_binding and \
         application_name"
    )]
    UnknownParameter,
}

/// The address of one database, with credentials.
///
/// ```text
/// postgres://user:password@host:port/database?sslmode=…&sslrootcert=…&channel_binding=…&application_name=…
/// postgres://user:password@/database?host=/socket/directory
/// ```
///
/// `sslmode` is `verify-full` unless the host is local, then `disable`; on a Unix socket it is ignored, as
/// elsewhere. `sslrootcert` is a file of certificates in PEM format that are trusted besides the public authorities.
/// A `+` is a plus, not a space. Printing shows `***` for the password; there is no way to serialise it but
/// [`DatabaseUrl::expose`].
#[derive(Clone)]
pub struct DatabaseUrl {
    host: Host,
    port: u16,
    user: String,
    password: Option<SecretString>,
    database: String,
    ssl_mode: SslMode,
    ssl_root_cert: Option<PathBuf>,
    ca_pem: Option<String>,
    public_addresses_only: bool,
    channel_binding: Option<ChannelBinding>,
    application_name: Option<String>,
}

impl DatabaseUrl {
    /// Parses an address.
    ///
    /// # Errors
    /// [`DatabaseUrlError`] with the first thing that is wrong. It never quotes the text.
    pub fn parse(text: &SecretString) -> Result<Self, DatabaseUrlError> {
        text.expose_secret().parse()
    }

    /// Where the server listens.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The server's port. For a Unix socket it is part of the socket's file name.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The role to sign in as.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The role's password, if there is one.
    #[must_use]
    pub fn password(&self) -> Option<&SecretString> {
        self.password.as_ref()
    }

    /// The name of the database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Whether the connection is encrypted. Always [`SslMode::Disable`] for a Unix socket.
    #[must_use]
    pub fn ssl_mode(&self) -> SslMode {
        self.ssl_mode
    }

    /// A file of certificates in PEM format that are trusted besides the public authorities.
    #[must_use]
    pub fn ssl_root_cert(&self) -> Option<&Path> {
        self.ssl_root_cert.as_deref()
    }

    /// Certificates in PEM format that are trusted besides the public authorities, carried by the address itself: a
    /// client's authority, which is in no file of ours.
    #[must_use]
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Whether connections to this address are made to public internet addresses only, whatever its name resolves to.
    #[must_use]
    pub fn public_addresses_only(&self) -> bool {
        self.public_addresses_only
    }

    /// The same address, trusting these certificates too. The address keeps them when it is sealed.
    #[must_use]
    pub fn with_ca_pem(&self, pem: &str) -> Self {
        Self { ca_pem: Some(pem.to_owned()), ..self.clone() }
    }

    /// The same address, for public internet addresses only or for any. The address keeps the rule when it is sealed,
    /// so that it holds for every connection that is ever made with it: a name may lead elsewhere tomorrow.
    #[must_use]
    pub fn with_public_addresses_only(&self, only: bool) -> Self {
        Self { public_addresses_only: only, ..self.clone() }
    }

    /// The name under which connections appear in the server's activity view, if the address sets one.
    #[must_use]
    pub fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    /// The same server and credentials with another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    /// The same database with another role.
    #[must_use]
    pub fn with_credentials(&self, user: &str, password: SecretString) -> Self {
        Self { user: user.to_owned(), password: Some(password), ..self.clone() }
    }

    /// The same address under another name in the server's activity view.
    #[must_use]
    pub fn with_application_name(&self, name: &str) -> Self {
        Self { application_name: Some(name.to_owned()), ..self.clone() }
    }

    /// The whole address with its password, for sealing it. Parsing it gives the same address again.
    #[must_use]
    pub fn expose(&self) -> SecretString {
        let password = self.password.as_ref().map(|password| Zeroizing::new(encode(password.expose_secret())));
        let text = Zeroizing::new(self.render(password.as_ref().map(|text| text.as_str())));
        SecretString::from(text.as_str())
    }

    /// Options for tokio-postgres. Connect with a [`super::Connector`] made from the same address, which carries
    /// what these options cannot say about certificates.
    #[must_use]
    pub fn to_tokio_postgres(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        match &self.host {
            Host::Tcp(name) => config.host(name),
            Host::Socket(directory) => config.host_path(directory),
        };
        config
            .port(self.port)
            .user(&self.user)
            .dbname(&self.database)
            .application_name(self.application_name.as_deref().unwrap_or(DEFAULT_APPLICATION_NAME))
            .connect_timeout(CONNECT_TIMEOUT)
            .ssl_mode(match self.ssl_mode {
                SslMode::Disable => DriverSslMode::Disable,
                SslMode::Prefer => DriverSslMode::Prefer,
                SslMode::Require | SslMode::VerifyFull => DriverSslMode::Require,
            });
        if let Some(password) = &self.password {
            config.password(password.expose_secret());
        }
        if let Some(binding) = self.channel_binding {
            config.channel_binding(binding);
        }
        config
    }

    /// Options for sqlx. sqlx does not know channel binding, and its options print their password: never log them.
    /// It resolves names by itself: an address for public internet addresses only must not be used with it.
    ///
    /// Everything an address can say is set here, so that the environment variables sqlx would read (`PGPASSWORD`,
    /// `PGHOST` and so on) do not decide it. `PGOPTIONS`, `PGSSLCERT`, `PGSSLKEY` and, if the address names no
    /// `sslrootcert`, `PGSSLROOTCERT` still have an effect: sqlx has no way to refuse them.
    #[must_use]
    pub fn to_sqlx(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .port(self.port)
            .username(&self.user)
            // Without a password, an empty one is offered rather than the operator's PGPASSWORD.
            .password(self.password.as_ref().map_or("", |password| password.expose_secret()))
            .database(&self.database)
            .application_name(self.application_name.as_deref().unwrap_or(DEFAULT_APPLICATION_NAME))
            .ssl_mode(match self.ssl_mode {
                SslMode::Disable => PgSslMode::Disable,
                SslMode::Prefer => PgSslMode::Prefer,
                SslMode::Require | SslMode::VerifyFull => PgSslMode::VerifyFull,
            });
        let options = match &self.host {
            Host::Tcp(name) => options.host(name),
            Host::Socket(directory) => options.host("localhost").socket(directory),
        };
        match (&self.ca_pem, &self.ssl_root_cert) {
            (Some(pem), _) => options.ssl_root_cert_from_pem(pem.clone().into_bytes()),
            (None, Some(file)) => options.ssl_root_cert(file),
            (None, None) => options,
        }
    }

    /// Writes the address with `password`, which is percent-encoded already, in the password's place.
    fn render(&self, password: Option<&str>) -> String {
        // Enough for any address, so that the text is not moved while it grows and no copy stays behind unwiped.
        let mut text = String::with_capacity(
            512 + password.map_or(0, str::len)
                + 3 * (self.user.len() + self.database.len())
                + 3 * self.ca_pem.as_ref().map_or(0, String::len)
                + 3 * self.application_name.as_ref().map_or(0, String::len)
                + 3 * self.ssl_root_cert.as_ref().map_or(0, |path| path.as_os_str().len())
                + 3 * match &self.host {
                    Host::Tcp(name) => name.len(),
                    Host::Socket(path) => path.as_os_str().len(),
                },
        );
        text.push_str("postgres://");
        text.push_str(&encode(&self.user));
        if let Some(password) = password {
            text.push(':');
            text.push_str(password);
        }
        text.push('@');
        match &self.host {
            Host::Tcp(name) if name.contains(':') => {
                text.push('[');
                text.push_str(name);
                text.push(']');
            }
            Host::Tcp(name) => text.push_str(name),
            Host::Socket(_) => {}
        }
        // Writing to a String cannot fail.
        let _ = write!(text, ":{}/{}", self.port, encode(&self.database));
        let mut separator = '?';
        let mut parameter = |name: &str, value: &str| {
            text.push(separator);
            text.push_str(name);
            text.push('=');
            text.push_str(&encode(value));
            separator = '&';
        };
        if let Host::Socket(directory) = &self.host {
            parameter("host", &directory.to_string_lossy());
        }
        parameter("sslmode", self.ssl_mode.as_str());
        if let Some(file) = &self.ssl_root_cert {
            parameter("sslrootcert", &file.to_string_lossy());
        }
        if let Some(pem) = &self.ca_pem {
            parameter("ca_pem", pem);
        }
        if self.public_addresses_only {
            parameter("addresses", "public");
        }
        if let Some(binding) = self.channel_binding {
            parameter("channel_binding", channel_binding_name(binding));
        }
        if let Some(name) = &self.application_name {
            parameter("application_name", name);
        }
        text
    }
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, DatabaseUrlError> {
        let text = text.trim();
        let rest = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or(DatabaseUrlError::Scheme)?;
        if rest.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(DatabaseUrlError::Character);
        }
        if rest.contains('#') {
            return Err(DatabaseUrlError::Fragment);
        }
        // One @ in all makes the division certain. With a second one, or with a / before it, part of a password
        // would be taken for the host or the database, and shown.
        let (user_info, rest) = rest.split_once('@').ok_or(DatabaseUrlError::UserInfo)?;
        if rest.contains('@') || user_info.contains(['/', '?']) {
            return Err(DatabaseUrlError::UserInfo);
        }
        let (user, password) = match user_info.split_once(':') {
            Some((user, password)) => (user, Some(Zeroizing::new(decode(password)?))),
            None => (user_info, None),
        };
        let user = decode(user)?;
        if user.is_empty() {
            return Err(DatabaseUrlError::User);
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, database) = rest.split_once('/').ok_or(DatabaseUrlError::Database)?;
        let database = match decode(database)? {
            name if name.is_empty() || database.contains('/') => {
                return Err(DatabaseUrlError::Database);
            }
            name => name,
        };
        let (host, port) = parse_host_and_port(host)?;
        let parameters = Parameters::parse(query)?;
        let host = match (host, parameters.host) {
            (Some(host), None) => host,
            (None, Some(host)) => parse_host(&host)?,
            _ => return Err(DatabaseUrlError::Host),
        };
        let ssl_mode = match (&host, parameters.ssl_mode) {
            (Host::Socket(_), _) => SslMode::Disable,
            (_, Some(mode)) => mode,
            (host, None) if host.is_local() => SslMode::Disable,
            (_, None) => SslMode::VerifyFull,
        };
        Ok(Self {
            host,
            port,
            user,
            password: password.filter(|text| !text.is_empty()).map(|text| SecretString::from(text.as_str())),
            database,
            ssl_mode,
            ssl_root_cert: parameters.ssl_root_cert,
            ca_pem: parameters.ca_pem,
            public_addresses_only: parameters.public_addresses_only,
            channel_binding: parameters.channel_binding,
            application_name: parameters.application_name,
        })
    }
}

impl PartialEq for DatabaseUrl {
    fn eq(&self, other: &Self) -> bool {
        let bytes = |url: &Self| url.password.clone().unwrap_or_default();
        let same_password: bool =
            bytes(self).expose_secret().as_bytes().ct_eq(bytes(other).expose_secret().as_bytes()).into();
        same_password && self.render(None) == other.render(None)
    }
}

impl Eq for DatabaseUrl {}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(self.password.as_ref().map(|_| "***")))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

#[cfg(test)]
mod tests;
