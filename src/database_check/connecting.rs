//! Connecting, and what it means when that fails.

use std::io;
use std::time::Duration;

use rustls::CertificateError;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Config};

use super::address::unusable_certificates;
use super::{Finding, OwnersServer, Purpose, Question, problem};
use crate::secrets::{CONNECT_TIMEOUT, Connector, DatabaseUrl, Host, ResolveError, SslMode, connector};

/// An open connection, and what opens another to the very same address.
pub(super) struct Session {
    pub(super) client: Client,
    connector: Connector,
    config: Config,
}

impl Session {
    /// Another connection to the same address.
    pub(super) async fn another(&self, limit: Duration) -> Option<Client> {
        let opened = timeout(limit, self.connector.connect_resolved(&self.config)).await;
        opened.ok()?.ok().map(|(client, _)| client)
    }
}

/// Resolves the name, judges where it leads, and connects to exactly that.
pub(super) async fn open(question: &Question<'_>) -> Result<Session, Finding> {
    let url = question.url;
    let owned = url.clone();
    let connector = spawn_blocking(move || connector(&owned)).await.map_err(|_| slow())?;
    let connector = connector.map_err(|error| unusable_certificates(&error))?;
    let resolved = timeout(CONNECT_TIMEOUT, connector.resolve(&url.to_tokio_postgres())).await;
    let config = match resolved {
        Ok(Ok(config)) => config,
        Ok(Err(ResolveError::NotPublic)) => return Err(not_public()),
        Ok(Err(ResolveError::Unresolvable(_))) | Err(_) => return Err(unresolvable(url)),
    };
    if let Some(server) = question.owners_servers.iter().find(|server| leads_to(url, &config, server)) {
        return Err(owners_server(server.platform));
    }
    match timeout(CONNECT_TIMEOUT, connector.connect_resolved(&config)).await {
        Ok(Ok((client, _))) => Ok(Session { client, connector, config }),
        Ok(Err(error)) => Err(explain_failure(&error, url)),
        Err(_elapsed) => Err(timed_out(url)),
    }
}

/// Whether an address is that of a server of the owner's: asked before any credential goes there, so that nobody can
/// have passwords of the platform's database tried by the platform itself.
///
/// Names may share an address, as those of managed services do: then a certificate proves that the server really is
/// what the other name says. Without one, the address decides.
fn leads_to(url: &DatabaseUrl, config: &Config, server: &OwnersServer) -> bool {
    let Host::Tcp(host) = url.host() else { return false };
    if url.port() != server.port {
        return false;
    }
    let same_name = server.host.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(host));
    let proved =
        matches!(url.ssl_mode(), SslMode::Require | SslMode::VerifyFull) && host.parse::<std::net::IpAddr>().is_err();
    let same_address = config.get_hostaddrs().iter().any(|address| server.addresses.contains(address));
    same_name || (same_address && !proved)
}

/// The finding about an address that is the owner's.
pub(super) fn owners_server(platform: bool) -> Finding {
    if platform {
        problem(
            "platform_database",
            "the address leads to the server of the platform's own database",
            "give the address of a database of the client's own, on another server",
        )
    } else {
        problem(
            "managed_cluster",
            "the address leads to a cluster on which the platform keeps its managed tenants",
            "let the platform manage the database (mode `managed`), or give a database on another server",
        )
    }
}

fn place(url: &DatabaseUrl) -> String {
    match url.host() {
        Host::Tcp(host) => format!("{host}:{}", url.port()),
        Host::Socket(path) => path.display().to_string(),
    }
}

fn not_public() -> Finding {
    problem(
        "address_not_public",
        "the host is at a private or local address, to which clients may not send this server",
        "give a host with a public address; the owner may allow private ones (FREEHOLD_ALLOW_PRIVATE_DATABASE_HOSTS)",
    )
}

fn unresolvable(url: &DatabaseUrl) -> Finding {
    problem(
        "host_unresolvable",
        format!("the host of {} has no address", place(url)),
        "check the spelling of the host name, and that it is one of the public DNS and not of a private network",
    )
}

fn timed_out(url: &DatabaseUrl) -> Finding {
    problem(
        "connection_timed_out",
        format!("{} did not answer within {} seconds", place(url), CONNECT_TIMEOUT.as_secs()),
        "check host and port, and that a firewall or an allow-list of the database lets this server's address in",
    )
}

pub(super) fn slow() -> Finding {
    problem(
        "check_timed_out",
        "the database let us in, and then did not answer the check's questions in time",
        "look at the load of the server and at locks on its catalogs, then check again",
    )
}

/// The connection was there and got lost.
pub(super) fn lost(error: &tokio_postgres::Error) -> Finding {
    tracing::debug!(causes = crate::telemetry::causes(error), "ask database");
    problem(
        "check_interrupted",
        "the database let us in, and then refused a question or closed the connection",
        "check that the address leads to PostgreSQL itself, that the role may read the catalogs, and check again",
    )
}

/// It let us in and answered something else than was asked.
pub(super) fn no_answer() -> Finding {
    problem(
        "not_postgres",
        "what answers does not give what PostgreSQL's catalogs hold",
        "give the address of PostgreSQL itself, not of a database that only speaks its protocol",
    )
}

/// What a failed connection means. The server's own words are not repeated.
pub fn explain_failure(error: &tokio_postgres::Error, url: &DatabaseUrl) -> Finding {
    tracing::debug!(causes = crate::telemetry::causes(error), "connect to database");
    if let Some(refusal) = error.as_db_error() {
        return explain_refusal(refusal, url);
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
            return explain_tls(tls, url);
        }
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            if let Some(tls) = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                return explain_tls(tls, url);
            }
            if let Some(finding) = explain_io(io, url) {
                return finding;
            }
        }
        cause = inner.source();
    }
    // The driver tells its other kinds apart in words only; they are its own, and the same everywhere.
    let words = crate::telemetry::causes(error);
    if words.contains("server does not support TLS") {
        return problem(
            "tls_refused",
            format!("{} offers no encryption, and the address demands it", place(url)),
            "switch TLS on at the server (ssl = on); only in a network that nobody else reaches, say sslmode=disable",
        );
    }
    if words.contains("password missing") {
        return problem(
            "password_demanded",
            "the server asks for a password, and the address holds none",
            "write the role's password behind its name: postgres://user:password@host/database",
        );
    }
    if words.contains("TLS handshake") {
        return tls_failed(url);
    }
    if words.contains("authentication") {
        return problem(
            "sign_in_unsupported",
            "the server asks for a way of signing in that is not supported",
            "let the role sign in with a password (scram-sha-256 in pg_hba.conf)",
        );
    }
    not_postgres(url)
}

fn explain_io(error: &io::Error, url: &DatabaseUrl) -> Option<Finding> {
    Some(match error.kind() {
        io::ErrorKind::ConnectionRefused => problem(
            "connection_refused",
            format!("nothing listens at {}", place(url)),
            "check the port, that the server runs, and that it listens on its network address (listen_addresses)",
        ),
        io::ErrorKind::TimedOut => timed_out(url),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => problem(
            "host_unreachable",
            format!("there is no way to the network of {}", place(url)),
            "check the host; an IPv6-only host needs IPv6 on this server, or the provider's address for IPv4",
        ),
        io::ErrorKind::NotFound if matches!(url.host(), Host::Socket(_)) => problem(
            "connection_refused",
            format!("there is no socket in {}", place(url)),
            "check the directory, and that the server runs",
        ),
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput => not_postgres(url),
        _ => return None,
    })
}

fn not_postgres(url: &DatabaseUrl) -> Finding {
    problem(
        "not_postgres",
        format!("what listens at {} closed the connection or does not speak as PostgreSQL does", place(url)),
        "check the port: 5432 is PostgreSQL's own; a web address or an API's port is not it",
    )
}

fn tls_failed(url: &DatabaseUrl) -> Finding {
    problem(
        "tls_failed",
        format!("no encrypted connection to {} came about", place(url)),
        "check that the server speaks TLS 1.2 or 1.3 (ssl_min_protocol_version)",
    )
}

fn explain_tls(error: &rustls::Error, url: &DatabaseUrl) -> Finding {
    let rustls::Error::InvalidCertificate(reason) = error else {
        return match error {
            rustls::Error::AlertReceived(_) => client_certificate(),
            _ => tls_failed(url),
        };
    };
    let host = place(url);
    match reason {
        CertificateError::UnknownIssuer => problem(
            "certificate_unknown_issuer",
            format!("the certificate of {host} is signed by an authority that is not trusted"),
            "give the authority's certificate: `ca`, or --database-ca-file; providers offer it for download",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => problem(
            "certificate_other_name",
            format!("the certificate of {host} is for another name"),
            "use the host name that stands in the certificate rather than an address or an alias",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => problem(
            "certificate_expired",
            format!("the certificate of {host} has expired"),
            "renew the server's certificate",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => problem(
            "certificate_not_yet_valid",
            format!("the certificate of {host} is not valid yet"),
            "check the clocks of both servers, and the certificate's dates",
        ),
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => problem(
            "certificate_self_signed",
            format!("the certificate of {host} signs itself, as an authority's does"),
            "give the server a certificate that an authority signed, and give that authority's certificate here",
        ),
        _ => problem(
            "certificate_invalid",
            format!("the certificate of {host} cannot be used"),
            "give the server a certificate for its host name, signed by an authority, with SHA-256 or better",
        ),
    }
}

fn client_certificate() -> Finding {
    problem(
        "client_certificate_required",
        "the server demands a certificate of the client, and Freehold signs in with a password",
        "let this role in without one: in pg_hba.conf a `hostssl … scram-sha-256` line without clientcert",
    )
}

fn explain_refusal(refusal: &DbError, url: &DatabaseUrl) -> Finding {
    let (role, database) = (url.user(), url.database());
    // The words are the server's and may be in another language; where the code is not enough, the place in its source
    // that speaks helps.
    let words = refusal.message();
    let routine = refusal.routine().unwrap_or_default();
    match refusal.code() {
        &SqlState::INVALID_PASSWORD => problem(
            "password_wrong",
            format!("the server does not accept the password of `{role}`, or does not know the role"),
            "check role and password; behind the provider's pooler the role is often written role.project",
        ),
        &SqlState::INVALID_AUTHORIZATION_SPECIFICATION if words.contains("certificate") => client_certificate(),
        &SqlState::INVALID_AUTHORIZATION_SPECIFICATION if routine == "InitializeSessionUserId" => {
            if words.contains("not permitted") {
                problem(
                    "role_may_not_log_in",
                    format!("the role `{role}` may not sign in"),
                    "run ALTER ROLE … LOGIN, or give the role that signs in",
                )
            } else {
                role_missing(role)
            }
        }
        &SqlState::INVALID_AUTHORIZATION_SPECIFICATION if words.contains("not permitted") => problem(
            "role_may_not_log_in",
            format!("the role `{role}` may not sign in"),
            "run ALTER ROLE … LOGIN, or give the role that signs in",
        ),
        &SqlState::INVALID_AUTHORIZATION_SPECIFICATION if words.contains("does not exist") => role_missing(role),
        &SqlState::INVALID_AUTHORIZATION_SPECIFICATION if url.ssl_mode() == SslMode::Disable => problem(
            "access_rule_rejects",
            "the server's access rules (pg_hba.conf) do not let this role in from here without encryption",
            "say sslmode=verify-full; if that changes nothing, allow this server's address in pg_hba.conf",
        ),
        &SqlState::INVALID_AUTHORIZATION_SPECIFICATION => problem(
            "access_rule_rejects",
            "the server's access rules (pg_hba.conf) do not let this role in from here",
            "add a line for it: hostssl <database> <role> <this server's address> scram-sha-256",
        ),
        &SqlState::INVALID_CATALOG_NAME => problem(
            "database_missing",
            format!("the server has no database `{database}`"),
            "check the name behind the last / of the address, or create the database",
        ),
        &SqlState::INSUFFICIENT_PRIVILEGE => problem(
            "connect_denied",
            format!("the role `{role}` may not connect to `{database}`"),
            "run GRANT CONNECT ON DATABASE … TO the role",
        ),
        &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE => problem(
            "database_closed",
            format!("the database `{database}` accepts no connections"),
            "run ALTER DATABASE … ALLOW_CONNECTIONS true, or give another database",
        ),
        &SqlState::TOO_MANY_CONNECTIONS => problem(
            "connections_exhausted",
            "the server, the database or the role has no connection left",
            "end sessions that are not needed, or raise max_connections or the CONNECTION LIMIT",
        ),
        &SqlState::CANNOT_CONNECT_NOW => problem(
            "server_not_ready",
            "the server is starting, stopping or recovering",
            "wait a minute and check again; a standby that takes no queries is of no use here",
        ),
        &SqlState::PROTOCOL_VIOLATION | &SqlState::INTERNAL_ERROR => problem(
            "pooler_refuses",
            "a pooler or proxy answered, and knows no such role or database",
            "give the direct address of the database, or write the role as the pooler wants it, often role.project",
        ),
        _ => problem(
            "sign_in_refused",
            format!("the server refused the connection (SQLSTATE {})", refusal.code().code()),
            "look for the refusal in the server's log",
        ),
    }
}

fn role_missing(role: &str) -> Finding {
    problem(
        "role_missing",
        format!("the server has no role `{role}`"),
        "check the name before the password, or run CREATE ROLE … LOGIN PASSWORD …",
    )
}

/// What a cluster's URL is refused for and a tenant's is not: kept beside the others so that they read alike.
pub(super) fn wanted_rights(purpose: Purpose, may_provision: bool) -> Option<Finding> {
    (purpose == Purpose::Cluster && !may_provision).then(|| {
        problem(
            "may_not_provision",
            "the role may not create databases and roles",
            "run ALTER ROLE … CREATEDB CREATEROLE",
        )
    })
}
