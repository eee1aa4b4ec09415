//! One connection to a tenant's database: opened within a time, watched while it is used, and closed for certain.
//!
//! Knows nothing of tenants and budgets.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::config::Host;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{CancelToken, Config, NoTls};

use super::client::Session;
use crate::secrets::{Connector, DatabaseUrl, ResolveError, connector};
use crate::telemetry::causes;

/// How long a connection may be in use without a break. Everything a request does between two waits for something
/// else takes milliseconds, so whatever takes this long is stuck, and would keep its slot from the others for ever.
const LONGEST_USE: Duration = Duration::from_secs(45);
/// How often that is looked at.
const CHECK: Duration = Duration::from_secs(5);
/// How long the server itself lets a statement, or a transaction at rest, take. Less than the longest use, so that a
/// server that is reachable ends it in good order.
const STATEMENT_MILLISECONDS: u32 = 30_000;
/// How long the server may take to end a connection that was closed.
const CLOSE: Duration = Duration::from_secs(3);
/// How long asking the server to stop a statement may take.
const CANCEL: Duration = Duration::from_secs(2);
/// When the kernel asks a silent peer whether it is still there, and how often.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);
/// How long the kernel waits for what it sent to be acknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);

/// Why no connection came about. Holds no credential.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the database did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the host was not reached")]
    Unreached(#[from] io::Error),
    #[error("the host's address cannot be connected to")]
    Address(#[from] ResolveError),
    #[error("prepare the connection")]
    Prepare(#[source] anyhow::Error),
    #[error("the database refused the connection")]
    Postgres(#[from] tokio_postgres::Error),
}

impl OpenError {
    /// Whether the database refused the credentials.
    pub(super) fn is_authentication(&self) -> bool {
        let codes = [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION];
        matches!(self, Self::Postgres(error) if error.code().is_some_and(|code| codes.contains(code)))
    }

    /// Whether the database server has no connection left to give.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Postgres(error) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS))
    }
}

/// Where to connect to, ready to be used again and again.
pub(super) struct Target {
    config: Config,
    connector: Connector,
    pub(super) generation: u64,
}

impl Target {
    /// Prepares an address. `managed` says that the server is a cluster of the owner's: only then is it known not to
    /// be a pooler, which would refuse settings at the start of a connection. `generation` marks the connections.
    pub(super) async fn prepare(url: &DatabaseUrl, managed: bool, generation: u64) -> Result<Self, OpenError> {
        let owned = url.clone();
        let prepared = spawn_blocking(move || connector(&owned)).await;
        let connector = prepared
            .map_err(|error| OpenError::Prepare(error.into()))?
            .map_err(|error| OpenError::Prepare(error.into()))?;
        let mut config = url.to_tokio_postgres();
        if managed {
            config.options(format!(
                "-c statement_timeout={STATEMENT_MILLISECONDS} \
                 -c idle_in_transaction_session_timeout={STATEMENT_MILLISECONDS}"
            ));
        }
        Ok(Self { config, connector, generation })
    }

    /// Opens a connection within `limit`.
    pub(super) async fn open(self: &Arc<Self>, limit: Duration) -> Result<Connection, OpenError> {
        let opening = async {
            let line = self.dial().await?;
            match self.connector.tls() {
                None => self.start(line, NoTls).await,
                Some(tls) => {
                    let tls = MakeTlsConnect::<Line>::make_tls_connect(&mut tls.clone(), self.server_name());
                    let tls = tls.map_err(|never| OpenError::Prepare(anyhow::Error::new(never)))?;
                    self.start(line, tls).await
                }
            }
        };
        timeout(limit, opening).await.unwrap_or(Err(OpenError::TimedOut(limit)))
    }

    fn server_name(&self) -> &str {
        match self.config.get_hosts().first() {
            Some(Host::Tcp(name)) => name,
            _ => "",
        }
    }

    async fn dial(&self) -> Result<Line, OpenError> {
        // What was judged is what is connected to, whatever the name leads to a moment later.
        let bound = self.connector.resolve(&self.config).await?;
        let port = bound.get_ports().first().copied().unwrap_or(5432);
        let stream = match bound.get_hosts().first() {
            Some(Host::Tcp(_)) => {
                let addresses: Vec<_> =
                    bound.get_hostaddrs().iter().map(|address| SocketAddr::new(*address, port)).collect();
                TcpStream::connect(addresses.as_slice()).await?
            }
            Some(Host::Unix(directory)) => {
                let stream = UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?;
                return Ok(Line { wire: Wire::Unix(stream), half_closed: false });
            }
            None => return Err(io::Error::from(io::ErrorKind::AddrNotAvailable).into()),
        };
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        socket.set_tcp_keepalive(&KEEPALIVE)?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        Ok(Line { wire: Wire::Tcp(stream), half_closed: false })
    }

    async fn start<T>(self: &Arc<Self>, line: Line, tls: T) -> Result<Connection, OpenError>
    where
        T: TlsConnect<Line, Stream: Send + 'static>,
    {
        let (client, connection) = self.config.connect_raw(line, tls).await?;
        let cancel = client.cancel_token();
        let in_use = Arc::new(InUse::default());
        let driver = tokio::spawn(drive(connection, Arc::clone(&in_use), cancel.clone(), Arc::clone(self)));
        Ok(Connection { session: Session::new(client), driver, in_use, cancel, target: Arc::clone(self) })
    }

    /// Asks the server to stop what a connection is at. It answers nothing, and it need not work.
    async fn cancel(&self, token: &CancelToken) {
        let cancelling = async {
            let line = self.dial().await.ok()?;
            match self.connector.tls() {
                None => token.cancel_query_raw(line, NoTls).await.ok(),
                Some(tls) => {
                    let tls = MakeTlsConnect::<Line>::make_tls_connect(&mut tls.clone(), self.server_name()).ok()?;
                    token.cancel_query_raw(line, tls).await.ok()
                }
            }
        };
        drop(timeout(CANCEL, cancelling).await);
    }
}

/// An open connection.
pub(super) struct Connection {
    /// What requests use.
    pub(super) session: Session,
    driver: JoinHandle<()>,
    in_use: Arc<InUse>,
    cancel: CancelToken,
    target: Arc<Target>,
}

impl Connection {
    /// The generation of the address it was opened with.
    pub(super) fn generation(&self) -> u64 {
        self.target.generation
    }

    /// Somebody begins to use it.
    pub(super) fn begin_use(&self) {
        self.in_use.begin();
    }

    /// Nobody uses it for now.
    pub(super) fn end_use(&self) {
        self.in_use.end();
    }

    /// Closes it, and returns once the server has ended its side: Postgres leaves its socket open until the process
    /// behind it is gone. A server that does not answer any more is not waited for long.
    pub(super) async fn close(self) {
        let Self { session, mut driver, cancel, target, .. } = self;
        let cut = session.is_cut();
        drop(session);
        if cut && !driver.is_finished() {
            // A statement nobody waits for is still running. The end of the connection would wait for its result.
            target.cancel(&cancel).await;
        }
        if timeout(CLOSE, &mut driver).await.is_err() {
            tracing::warn!("close a tenant's connection; its server did not end it in time");
            driver.abort();
        }
    }
}

/// Since when a connection is in use.
#[derive(Debug)]
struct InUse {
    base: Instant,
    /// Milliseconds after `base`; 0 while nobody uses it.
    since: AtomicU64,
}

impl Default for InUse {
    fn default() -> Self {
        Self { base: Instant::now(), since: AtomicU64::new(0) }
    }
}

impl InUse {
    fn begin(&self) {
        let now = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since.store(now.max(1), Ordering::Relaxed);
    }

    fn end(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn is_overdue(&self) -> bool {
        match self.since.load(Ordering::Relaxed) {
            0 => false,
            since => self.base.elapsed() > Duration::from_millis(since) + LONGEST_USE,
        }
    }
}

/// Carries a connection's messages until it ends, or until somebody has used it for too long.
async fn drive<S, T>(
    connection: tokio_postgres::Connection<S, T>,
    in_use: Arc<InUse>,
    cancel: CancelToken,
    target: Arc<Target>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    tokio::pin!(connection);
    let mut checks = interval(CHECK);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(causes = causes(&error), "a tenant's connection ended");
                }
                return;
            }
            _ = checks.tick() => {
                if in_use.is_overdue() {
                    tracing::warn!("a tenant's connection was in use for too long; it is closed");
                    target.cancel(&cancel).await;
                    return;
                }
            }
        }
    }
}

enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The bytes of a connection. Shutting it down waits until the other side has closed as well.
struct Line {
    wire: Wire,
    half_closed: bool,
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Wire::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.half_closed {
            let closed = match &mut self.wire {
                Wire::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
                Wire::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            };
            ready!(closed)?;
            self.half_closed = true;
        }
        let mut rest = [0; 512];
        loop {
            let mut buffer = ReadBuf::new(&mut rest);
            match ready!(self.as_mut().poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // Its end, or an error: either way the other side is gone.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
