//! Encrypted connections to Postgres, and one-off connections in general.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_postgres::config::Host as PostgresHost;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::database_url::{DatabaseUrl, SslMode};
use crate::addresses::is_public;

/// How long a connection may take until the server has answered, including encryption and sign-in.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why certificates could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of trusted certificates cannot be read or is not PEM.
    #[error("read the trusted certificates in {}", path.display())]
    RootCertFile {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: pem::Error,
    },
    /// The file of trusted certificates holds none.
    #[error("the file {} holds no certificate", path.display())]
    NoRootCert {
        /// The file.
        path: PathBuf,
    },
    /// The certificates that the address carries are not PEM.
    #[error("read the trusted certificates of the address")]
    CaPem(#[source] pem::Error),
    /// The address carries a text without a certificate in it.
    #[error("the trusted certificates of the address hold none")]
    NoCaPem,
    /// A certificate is malformed, or the library refuses the settings.
    #[error("prepare encrypted connections")]
    Rustls(#[from] rustls::Error),
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Certificates could not be prepared.
    #[error("prepare the connection to the database")]
    Tls(#[from] TlsError),
    /// The thread that read certificates was lost.
    #[error("wait for the trusted certificates")]
    Task(#[source] JoinError),
    /// The host's name has no address.
    #[error("the database's host has no address")]
    Unresolvable(#[source] io::Error),
    /// The address is for public internet addresses only, and its name leads to no such address.
    #[error("the database's address is not a public one")]
    NotPublic,
    /// The server refused, or was not reached, or its certificate is not trusted.
    #[error("connect to the database")]
    Postgres(#[from] tokio_postgres::Error),
    /// The server did not answer within [`CONNECT_TIMEOUT`].
    #[error("the database did not answer within {} seconds", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
}

/// Opens connections as an address demands. Make it once for an address and reuse it: it holds the certificates.
#[derive(Clone)]
pub struct Connector {
    /// With encryption, where the certificate is always verified; `None` goes without.
    tls: Option<MakeRustlsConnect>,
    public_addresses_only: bool,
}

/// Why a name leads to no address that may be connected to.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The name has no address.
    #[error("the host's name has no address")]
    Unresolvable(#[source] io::Error),
    /// Only public addresses may be connected to, and it has none.
    #[error("the host's address is not a public one")]
    NotPublic,
}

impl Connector {
    /// Connects and starts the task that drives the connection. The task ends when the client is dropped.
    ///
    /// `config` must come from the address this connector was made for. Reaching the server is limited by the
    /// configuration's own time-out, but encryption and sign-in are not: put a time-out around this.
    ///
    /// # Errors
    /// If the server refuses, is not reached, or shows a certificate that is not trusted.
    pub async fn connect(&self, config: &Config) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        if !self.public_addresses_only {
            return self.connect_resolved(config).await;
        }
        let bound = self.resolve(config).await.unwrap_or_else(|error| {
            // The driver's error cannot be made here; one without a host says that it leads nowhere.
            tracing::warn!(%error, "resolve database host");
            Config::new()
        });
        self.connect_resolved(&bound).await
    }

    /// Connects to what [`Self::resolve`] gave, without judging addresses again.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_resolved(&self, config: &Config) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        match &self.tls {
            None => drive(config, NoTls).await,
            Some(tls) => drive(config, tls.clone()).await,
        }
    }

    /// What encrypts, for whoever opens the socket itself; nothing where the address goes without.
    #[must_use]
    pub fn tls(&self) -> Option<&MakeRustlsConnect> {
        self.tls.as_ref()
    }

    /// Resolves the configuration's name and binds the configuration to those of its addresses that may be connected
    /// to: what was judged is what is connected to, whatever the name leads to a moment later. The name stays, for
    /// the certificate.
    ///
    /// # Errors
    /// If the name has no address, or none that may be connected to.
    pub async fn resolve(&self, config: &Config) -> Result<Config, ResolveError> {
        let (Some(host), Some(port)) = (config.get_hosts().first(), config.get_ports().first()) else {
            return Ok(config.clone());
        };
        let PostgresHost::Tcp(name) = host else {
            return if self.public_addresses_only { Err(ResolveError::NotPublic) } else { Ok(config.clone()) };
        };
        let found = tokio::net::lookup_host((name.as_str(), *port)).await.map_err(ResolveError::Unresolvable)?;
        let mut addresses: Vec<_> = found.map(|address| address.ip()).collect();
        addresses.dedup();
        addresses.retain(|address| !self.public_addresses_only || is_public(*address));
        if addresses.is_empty() {
            return Err(ResolveError::NotPublic);
        }
        let mut bound = config.clone();
        for (number, address) in addresses.into_iter().enumerate() {
            // The driver wants as many names as addresses.
            if number > 0 {
                bound.host(name);
            }
            bound.hostaddr(address);
        }
        Ok(bound)
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("encrypted", &self.tls.is_some())
            .field("public_addresses_only", &self.public_addresses_only)
            .finish_non_exhaustive()
    }
}

/// Prepares what an address demands. It reads the file of trusted certificates, if there is one, and so may block
/// for a moment.
///
/// Trusted are the public authorities and the certificates of `sslrootcert`, as with sqlx; libpq would trust only
/// the latter. Every mode but `disable` verifies both the issuer and the host name.
///
/// # Errors
/// [`TlsError`] if the file of trusted certificates cannot be used.
pub fn connector(url: &DatabaseUrl) -> Result<Connector, TlsError> {
    let public_addresses_only = url.public_addresses_only();
    if url.ssl_mode() == SslMode::Disable {
        return Ok(Connector { tls: None, public_addresses_only });
    }
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = url.ssl_root_cert() {
        let unreadable = |source| TlsError::RootCertFile { path: path.to_owned(), source };
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            roots.add(certificate.map_err(unreadable)?)?;
        }
        if roots.len() == before {
            return Err(TlsError::NoRootCert { path: path.to_owned() });
        }
    }
    if let Some(pem) = url.ca_pem() {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.map_err(TlsError::CaPem)?)?;
        }
        if roots.len() == before {
            return Err(TlsError::NoCaPem);
        }
    }
    // The provider is named here rather than taken from the process, so that nothing depends on who installed one.
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Connector { tls: Some(MakeRustlsConnect::new(config)), public_addresses_only })
}

/// Opens one connection outside every pool, within [`CONNECT_TIMEOUT`]. The task that drives the connection ends
/// when the client is dropped.
///
/// # Errors
/// [`ConnectError`] if certificates cannot be prepared, or the server refuses, is not reached or does not answer.
pub async fn connect(url: &DatabaseUrl) -> Result<(Client, JoinHandle<()>), ConnectError> {
    connect_within(url, None, CONNECT_TIMEOUT).await
}

/// As [`connect`], for an administrator who has to enter a database that is not its own. Names and operators are looked
/// up in `pg_catalog` alone, whatever the database's or the role's settings say: a function that somebody made in it
/// under the name of a built-in one would run with the administrator's rights.
///
/// # Errors
/// As [`connect`].
pub async fn connect_as_administrator(url: &DatabaseUrl) -> Result<(Client, JoinHandle<()>), ConnectError> {
    connect_within(url, Some("-c search_path=pg_catalog"), CONNECT_TIMEOUT).await
}

/// Whether an address may be connected to, for whoever resolves names by itself. Returns the network address that was
/// judged, for those who can be bound to it; nothing where any may be connected to. For the others, what they resolve a
/// moment later is their own affair, and the certificate then has to be that of the name.
///
/// # Errors
/// [`ConnectError`] if its name leads to no address that may be connected to.
pub async fn judge_address(url: &DatabaseUrl) -> Result<Option<IpAddr>, ConnectError> {
    if !url.public_addresses_only() {
        return Ok(None);
    }
    let connector = Connector { tls: None, public_addresses_only: true };
    match timeout(CONNECT_TIMEOUT, connector.resolve(&url.to_tokio_postgres())).await {
        Ok(Ok(bound)) => Ok(Some(*bound.get_hostaddrs().first().ok_or(ConnectError::NotPublic)?)),
        Ok(Err(error)) => Err(error.into()),
        Err(_elapsed) => Err(ConnectError::TimedOut),
    }
}

impl From<ResolveError> for ConnectError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::NotPublic => Self::NotPublic,
            ResolveError::Unresolvable(error) => Self::Unresolvable(error),
        }
    }
}

async fn connect_within(
    url: &DatabaseUrl,
    options: Option<&str>,
    limit: Duration,
) -> Result<(Client, JoinHandle<()>), ConnectError> {
    let owned = url.clone();
    let connector = spawn_blocking(move || connector(&owned)).await.map_err(ConnectError::Task)??;
    let work = async {
        let mut config = url.to_tokio_postgres();
        if let Some(options) = options {
            config.options(options);
        }
        if url.public_addresses_only() {
            config = connector.resolve(&config).await?;
        }
        Ok(connector.connect_resolved(&config).await?)
    };
    match timeout(limit, work).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(ConnectError::TimedOut),
    }
}

async fn drive<T>(config: &Config, tls: T) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error>
where
    T: MakeTlsConnect<Socket>,
    T::TlsConnect: Send,
    T::Stream: Send + 'static,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let (client, connection) = config.connect(tls).await?;
    let task = tokio::spawn(async move {
        // Whoever uses the client sees the failure too, and knows better what it means.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a database connection ended");
        }
    });
    Ok((client, task))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tokio::net::TcpListener;

    use super::*;

    fn url(text: &str) -> DatabaseUrl {
        text.parse().unwrap()
    }

    #[test]
    fn only_disable_goes_without_encryption() {
        for (mode, encrypted) in
            [("disable", false), ("prefer", true), ("require", true), ("verify-ca", true), ("verify-full", true)]
        {
            let made = connector(&url(&format!("postgres://u:p@h/d?sslmode={mode}"))).unwrap();
            assert_eq!(made.tls.is_some(), encrypted, "{mode}");
        }
    }

    #[test]
    fn a_useless_certificate_file_is_refused() {
        let address = url("postgres://u:p@h/d?sslrootcert=/nonexistent/ca.pem");
        assert!(matches!(connector(&address), Err(TlsError::RootCertFile { .. })));

        let mut file = tempfile::NamedTempFile::new().unwrap();
        let address = url(&format!("postgres://u:p@h/d?sslrootcert={}", file.path().display()));
        assert!(matches!(connector(&address), Err(TlsError::NoRootCert { .. })));

        file.write_all(b"-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n").unwrap();
        assert!(matches!(connector(&address), Err(TlsError::Rustls(_))));
    }

    #[tokio::test]
    async fn a_closed_port_is_an_error_without_the_password() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = connect(&url(&format!("postgres://u:CANARY@127.0.0.1:{port}/d"))).await.unwrap_err();
        assert!(matches!(error, ConnectError::Postgres(_)));
        assert!(!format!("{error} {error:?}").contains("CANARY"));
    }

    /// The rule is part of the address: sealed and opened again, it still holds.
    #[tokio::test]
    async fn an_address_for_the_public_internet_leads_to_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
            let address = url(&format!("postgres://u:p@{host}:{port}/d?sslmode=disable"));
            let address = DatabaseUrl::parse(&address.with_public_addresses_only(true).expose()).unwrap();
            let error = connect(&address).await.unwrap_err();
            assert!(matches!(error, ConnectError::NotPublic), "{host}: {error:?}");
            let pooled = connector(&address).unwrap().connect(&address.to_tokio_postgres()).await;
            assert!(pooled.is_err(), "{host}");
        }
        // Nobody was knocked on.
        assert!(timeout(Duration::from_millis(50), listener.accept()).await.is_err());
    }

    #[test]
    fn an_address_carries_its_own_authority() {
        let authority = rcgen::generate_simple_self_signed(vec!["h".to_owned()]).unwrap().cert.pem();
        let address = url("postgres://u:p@h/d").with_ca_pem(&authority);
        let again = DatabaseUrl::parse(&address.expose()).unwrap();
        assert_eq!(again.ca_pem(), Some(authority.as_str()));
        assert!(connector(&again).is_ok());
        assert!(matches!(connector(&again.with_ca_pem("nothing")), Err(TlsError::NoCaPem)));
    }

    /// A server that speaks no TLS is not talked to in the clear when encryption is demanded.
    #[tokio::test]
    async fn encryption_is_not_given_up() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(b"N").await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            rest
        });
        let address = url(&format!("postgres://u:CANARY@127.0.0.1:{port}/d?sslmode=require"));
        assert!(matches!(connect(&address).await, Err(ConnectError::Postgres(_))));
        assert!(server.await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_on() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = url(&format!("postgres://u:p@127.0.0.1:{port}/d"));
        let error = connect_within(&address, None, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, ConnectError::TimedOut));
    }
}
