//! Encrypted connections to Postgres, and one-off connections in general.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::database_url::{DatabaseUrl, SslMode};

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
    /// The server refused, or was not reached, or its certificate is not trusted.
    #[error("connect to the database")]
    Postgres(#[from] tokio_postgres::Error),
    /// The server did not answer within [`CONNECT_TIMEOUT`].
    #[error("the database did not answer within {} seconds", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
}

/// Opens connections as an address demands. Make it once for an address and reuse it: it holds the certificates.
#[derive(Clone)]
pub enum Connector {
    /// Without encryption.
    Plain,
    /// With encryption, where the certificate is always verified.
    Tls(MakeRustlsConnect),
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
        match self {
            Self::Plain => drive(config, NoTls).await,
            Self::Tls(tls) => drive(config, tls.clone()).await,
        }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "Connector::Plain",
            Self::Tls(_) => "Connector::Tls",
        })
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
    if url.ssl_mode() == SslMode::Disable {
        return Ok(Connector::Plain);
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
    // The provider is named here rather than taken from the process, so that nothing depends on who installed one.
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Connector::Tls(MakeRustlsConnect::new(config)))
}

/// Opens one connection outside every pool, within [`CONNECT_TIMEOUT`]. The task that drives the connection ends
/// when the client is dropped.
///
/// # Errors
/// [`ConnectError`] if certificates cannot be prepared, or the server refuses, is not reached or does not answer.
pub async fn connect(url: &DatabaseUrl) -> Result<(Client, JoinHandle<()>), ConnectError> {
    connect_within(url, CONNECT_TIMEOUT).await
}

async fn connect_within(url: &DatabaseUrl, limit: Duration) -> Result<(Client, JoinHandle<()>), ConnectError> {
    let owned = url.clone();
    let connector = spawn_blocking(move || connector(&owned)).await.map_err(ConnectError::Task)??;
    let config = url.to_tokio_postgres();
    match timeout(limit, connector.connect(&config)).await {
        Ok(connected) => Ok(connected?),
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
            assert_eq!(matches!(made, Connector::Tls(_)), encrypted, "{mode}");
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
        let error = connect_within(&address, Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, ConnectError::TimedOut));
    }
}
