//! Clusters: the Postgres servers on which managed tenants get their databases.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use secrecy::SecretString;
use sqlx::PgPool;

use super::{TenantError, store};
use crate::audit::{self, Actor, Event};
use crate::clock::SharedClock;
use crate::database_check::{self, Purpose, Question, Report, UrlOrigin};
use crate::ids::ClusterId;
use crate::provisioning::{Cluster, Clusters, ProvisioningError, TenantMigrations};
use crate::secrets::{DatabaseUrl, Host, Location, MasterKeyring, Sealed};
use crate::telemetry::causes;

/// A cluster as registered, without its credential.
#[derive(Debug, Clone)]
pub struct ClusterRecord {
    /// Its id.
    pub id: ClusterId,
    /// Its name.
    pub name: String,
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: i32,
    /// How many tenants' databases are registered there.
    pub tenants: i64,
    /// The schema version of its template database.
    pub template_schema_version: Option<i64>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// A cluster about to be registered. Unless that comes about, its connections are closed again.
struct Unregistered {
    clusters: Arc<Clusters>,
    id: Option<ClusterId>,
}

impl Drop for Unregistered {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.clusters.forget(id);
        }
    }
}

/// The registered clusters.
#[derive(Debug, Clone)]
pub struct ClusterRegistry {
    pool: PgPool,
    master_keys: Arc<MasterKeyring>,
    clusters: Arc<Clusters>,
    clock: SharedClock,
}

impl ClusterRegistry {
    /// The registry over the platform's database.
    pub fn new(pool: PgPool, master_keys: Arc<MasterKeyring>, clock: SharedClock) -> Self {
        Self { pool, master_keys, clusters: Arc::default(), clock }
    }

    /// The same, with template databases of another set of migrations than the program's own.
    #[must_use]
    pub fn with_migrations(self, migrations: Arc<TenantMigrations>) -> Self {
        Self { clusters: Arc::new(Clusters::new(migrations)), ..self }
    }

    /// The migrations of the tenants' databases.
    pub fn migrations(&self) -> &Arc<TenantMigrations> {
        self.clusters.migrations()
    }

    /// Registers a cluster: checks the URL, shuts PUBLIC out of what every server has, builds the template database.
    pub async fn add(&self, name: &str, admin_url: &SecretString, actor: Actor) -> Result<ClusterRecord, TenantError> {
        let url = database_check::parse(admin_url, None, UrlOrigin::Owner)
            .map_err(|finding| TenantError::UnsuitableDatabase(Box::new(Report::ended_by(finding))))?;
        if store::list_clusters(&self.pool).await?.iter().any(|cluster| cluster.name == name) {
            return Err(TenantError::ClusterNameTaken);
        }
        let question =
            Question { url: &url, purpose: Purpose::Cluster, tenant: None, owners_servers: &[], connections_wanted: 8 };
        let report = database_check::check(&question, &self.clock).await;
        if !report.suitable() {
            return Err(TenantError::UnsuitableDatabase(Box::new(report)));
        }
        let suitable = |error: ProvisioningError| match error {
            ProvisioningError::Unsuitable(reason) => TenantError::UnsuitableCluster(reason),
            other => other.into(),
        };
        let id = ClusterId::new();
        let mut unregistered = Unregistered { clusters: Arc::clone(&self.clusters), id: Some(id) };
        let cluster = self.clusters.open(id, &url).map_err(suitable)?;
        cluster.shut_public_out().await?;
        let record = ClusterRecord {
            id,
            name: name.to_owned(),
            host: match url.host() {
                Host::Tcp(host) => host.clone(),
                Host::Socket(path) => path.display().to_string(),
            },
            port: i32::from(url.port()),
            tenants: 0,
            template_schema_version: Some(cluster.ensure_template().await.map_err(suitable)?),
            created_at: self.clock.now(),
        };
        let sealed = self.master_keys.seal_platform(&admin_url_location(id), &url.expose());
        let mut transaction = self.pool.begin().await?;
        if !store::insert_cluster(&mut transaction, &record, sealed.as_bytes()).await? {
            return Err(TenantError::ClusterNameTaken);
        }
        let detail = serde_json::json!({ "cluster": name, "host": record.host });
        let event = Event { actor, action: "cluster.add", tenant_id: None, detail };
        audit::record(&mut transaction, &event, record.created_at).await?;
        transaction.commit().await?;
        unregistered.id = None;
        Ok(record)
    }

    /// Host, port and system identifier of every cluster. An identifier that is not known yet is asked for.
    pub async fn servers(&self) -> Result<Vec<(String, u16, Option<String>)>, TenantError> {
        let mut servers = Vec::new();
        for (id, host, port, mut identifier) in store::cluster_servers(&self.pool).await? {
            if identifier.is_none() {
                identifier = self.ask_identifier(id).await;
                if let Some(identifier) = &identifier {
                    store::set_system_identifier(&self.pool, id, identifier).await?;
                }
            }
            servers.push((host, u16::try_from(port).unwrap_or_default(), identifier));
        }
        Ok(servers)
    }

    /// `None` if the cluster does not answer, or keeps it to itself: its address is known in any case.
    async fn ask_identifier(&self, id: ClusterId) -> Option<String> {
        let asked = async { Ok::<_, TenantError>(self.open(id).await?.system_identifier().await?) };
        match asked.await {
            Ok(identifier) => identifier,
            Err(error) => {
                tracing::warn!(cluster_id = %id, causes = causes(&error), "ask cluster for its identifier");
                None
            }
        }
    }

    /// All clusters, by name.
    pub async fn list(&self) -> Result<Vec<ClusterRecord>, TenantError> {
        Ok(store::list_clusters(&self.pool).await?)
    }

    /// A cluster's admin URL, opened.
    pub async fn admin_url(&self, id: ClusterId) -> Result<SecretString, TenantError> {
        let sealed = store::cluster_admin_url(&self.pool, id).await?.ok_or(TenantError::UnknownCluster)?;
        let sealed = Sealed::from_bytes(sealed).map_err(|_| TenantError::Sealed)?;
        self.master_keys.open_platform(&admin_url_location(id), &sealed).map_err(|_| TenantError::Sealed)
    }

    /// The administration of a cluster.
    pub async fn open(&self, id: ClusterId) -> Result<Cluster, TenantError> {
        let url = DatabaseUrl::parse(&self.admin_url(id).await?).map_err(|_| TenantError::Sealed)?;
        Ok(self.clusters.open(id, &url)?)
    }

    /// Makes sure that the cluster's template holds the current schema, and notes its version.
    pub async fn ensure_template(&self, id: ClusterId, cluster: &Cluster) -> Result<(), TenantError> {
        let version = cluster.ensure_template().await?;
        Ok(store::set_template_version(&self.pool, id, version).await?)
    }
}

/// Where a cluster's admin URL is sealed.
pub fn admin_url_location(id: ClusterId) -> Location {
    Location::platform("clusters", "admin_url_sealed", id)
}
