//! Checks of databases that somebody wants to use: it knows which servers are the owner's, and who may give what.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use secrecy::{ExposeSecret, SecretString};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tokio::sync::{Mutex, Semaphore};

use super::clusters::ClusterRegistry;
use super::{TenantError, store};
use crate::addresses::is_public;
use crate::api::database::DatabaseCheck;
use crate::clock::SharedClock;
use crate::database_check::{self, OwnersServer, Purpose, Question, Report, UrlOrigin};
use crate::ids::TenantId;
use crate::secrets::{DatabaseUrl, Host};

/// Checks that run at once: each may wait for a server that never answers.
const AT_ONCE: usize = 8;
/// How long a name of the owner's may take to be looked up.
const LOOKUP: Duration = Duration::from_secs(2);

/// A database as somebody gave it.
pub struct GivenDatabase {
    /// Its address, with the password.
    pub url: SecretString,
    /// Certificates that are trusted besides the public authorities, in PEM format.
    pub ca: Option<String>,
}

impl std::fmt::Debug for GivenDatabase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GivenDatabase").field("ca", &self.ca.is_some()).finish_non_exhaustive()
    }
}

/// Written down as a digest, to tell one request from another.
impl Serialize for GivenDatabase {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut digest = Sha256::new();
        digest.update(self.url.expose_secret());
        digest.update([0]);
        digest.update(self.ca.as_deref().unwrap_or_default());
        serializer.serialize_str(&hex::encode(digest.finalize()))
    }
}

/// Checks databases.
#[derive(Debug, Clone)]
pub struct DatabaseChecks {
    pool: PgPool,
    platform_url: DatabaseUrl,
    clusters: ClusterRegistry,
    clock: SharedClock,
    allow_private_hosts: bool,
    connections_wanted: u32,
    permits: Arc<Semaphore>,
    /// Who is being checked: each tenant has one check at a time, so that no client takes the permits of all.
    turns: Arc<DashMap<TenantId, Arc<Mutex<()>>>>,
}

impl DatabaseChecks {
    /// Checks over the platform's database. `allow_private_hosts` lets clients give private addresses.
    pub fn new(
        pool: PgPool,
        platform_url: DatabaseUrl,
        clusters: ClusterRegistry,
        clock: SharedClock,
        allow_private_hosts: bool,
        connections_wanted: u32,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        Self {
            pool,
            platform_url,
            clusters,
            clock,
            allow_private_hosts,
            connections_wanted,
            permits,
            turns: Arc::default(),
        }
    }

    /// Reads what somebody gave. A client's address is bound to the public internet, unless the owner allows more, or
    /// it is the very host and port that are in use, which the owner gave. An owner's is bound to it where it leads
    /// nowhere else now: whoever controls the name, which may be the client, does not get to send us elsewhere later.
    pub async fn read(
        &self,
        given: &GivenDatabase,
        origin: UrlOrigin,
        in_use: Option<&DatabaseUrl>,
    ) -> Result<DatabaseUrl, TenantError> {
        let url = database_check::parse(&given.url, given.ca.as_deref(), origin)
            .map_err(|finding| TenantError::UnsuitableDatabase(Box::new(Report::ended_by(finding))))?;
        let known = in_use.is_some_and(|in_use| {
            !in_use.public_addresses_only() && in_use.host() == url.host() && in_use.port() == url.port()
        });
        if self.allow_private_hosts || known {
            return Ok(url.with_public_addresses_only(false));
        }
        if origin == UrlOrigin::Owner {
            let host = network_host(url.host());
            // One that is not found in time is bound as well: it will be found, or refused, with the rule in force.
            let public = resolve(host.as_deref(), url.port()).await.into_iter().all(is_public);
            return Ok(url.with_public_addresses_only(public && host.is_some()));
        }
        match database_check::encryption_required(&url) {
            Some(finding) => Err(TenantError::UnsuitableDatabase(Box::new(Report::ended_by(finding)))),
            None => Ok(url),
        }
    }

    /// Looks at a database that is to be, or is, a tenant's own.
    pub async fn check(&self, url: &DatabaseUrl, tenant: Option<TenantId>) -> Result<Report, TenantError> {
        let turn = tenant.map(|tenant| Arc::clone(&self.turns.entry(tenant).or_default()));
        let _turn = match &turn {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        let _permit = self.permits.acquire().await.map_err(|_| TenantError::Random)?;
        let servers = self.owners_servers().await?;
        let question = Question {
            url,
            purpose: Purpose::Tenant,
            tenant,
            owners_servers: &servers,
            connections_wanted: self.connections_wanted,
        };
        Ok(database_check::check(&question, &self.clock).await)
    }

    /// Reads and looks at what somebody gave, for telling them and nothing else.
    pub async fn try_out(
        &self,
        given: &GivenDatabase,
        origin: UrlOrigin,
        tenant: Option<TenantId>,
        in_use: Option<&DatabaseUrl>,
    ) -> Result<Report, TenantError> {
        match self.read(given, origin, in_use).await {
            Ok(url) => self.check(&url, tenant).await,
            Err(TenantError::UnsuitableDatabase(report)) => Ok(*report),
            Err(error) => Err(error),
        }
    }

    /// The platform's server and every cluster.
    async fn owners_servers(&self) -> Result<Vec<OwnersServer>, TenantError> {
        let mut servers = vec![OwnersServer {
            platform: true,
            host: network_host(self.platform_url.host()),
            port: self.platform_url.port(),
            addresses: Vec::new(),
            system_identifier: store::platform_system_identifier(&self.pool).await?,
        }];
        for (host, port, system_identifier) in self.clusters.servers().await? {
            servers.push(OwnersServer {
                platform: false,
                host: Some(host),
                port,
                addresses: Vec::new(),
                system_identifier,
            });
        }
        for server in &mut servers {
            server.addresses = resolve(server.host.as_deref(), server.port).await;
        }
        Ok(servers)
    }
}

fn network_host(host: &Host) -> Option<String> {
    match host {
        Host::Tcp(name) => Some(name.clone()),
        Host::Socket(_) => None,
    }
}

async fn resolve(host: Option<&str>, port: u16) -> Vec<IpAddr> {
    let Some(host) = host else { return Vec::new() };
    let found = tokio::time::timeout(LOOKUP, tokio::net::lookup_host((host, port))).await;
    // The same server is also known by its identifier, once a connection is there.
    found.ok().and_then(Result::ok).map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
}

/// A report as it is shown and kept.
pub fn shown(report: &Report) -> DatabaseCheck {
    DatabaseCheck {
        suitable: report.suitable(),
        server_version: report.server_version(),
        findings: report.findings.clone(),
    }
}
