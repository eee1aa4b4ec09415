//! Clusters: the Postgres servers on which managed tenants get their databases.
//!
//! One server is one cluster: its connections are budgeted by the cluster, and what is on it is held against the
//! tenants of that cluster. A server is known by what Postgres calls its data directory, whatever name leads there, and
//! by its address where it keeps that to itself.

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
    /// What Postgres calls the server's data directory, if that was ever told.
    pub system_identifier: Option<String>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// An administration that is being tried out. Unless its cluster gets registered, its connections are closed again.
struct Trial {
    clusters: Arc<Clusters>,
    id: Option<ClusterId>,
}

impl Drop for Trial {
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
        if store::list_clusters(&self.pool).await?.iter().any(|cluster| cluster.name == name) {
            return Err(TenantError::ClusterNameTaken);
        }
        let url = self.examine(admin_url).await?;
        let id = ClusterId::new();
        let mut trial = Trial { clusters: Arc::clone(&self.clusters), id: Some(id) };
        let cluster = self.clusters.open(id, &url).map_err(unsuitable)?;
        let mut record = ClusterRecord {
            id,
            name: name.to_owned(),
            host: host_name(&url),
            port: i32::from(url.port()),
            tenants: 0,
            template_schema_version: None,
            system_identifier: cluster.system_identifier().await?,
            created_at: self.clock.now(),
        };
        // Every other cluster is asked who it is, if that is not known: the comparison needs both.
        self.servers().await?;
        let mut connection = self.pool.acquire().await?;
        if let Some(other) = store::cluster_on_server(&mut connection, &record).await? {
            return Err(TenantError::ClusterRegisteredAs(other));
        }
        drop(connection);
        cluster.shut_public_out().await?;
        record.template_schema_version = Some(cluster.ensure_template().await.map_err(unsuitable)?);
        let sealed = self.master_keys.seal_platform(&admin_url_location(id), &url.expose());
        let mut transaction = self.pool.begin().await?;
        // Of two who register one server at once, the second sees what the first has registered.
        store::lock_clusters(&mut transaction).await?;
        if let Some(other) = store::cluster_on_server(&mut transaction, &record).await? {
            return Err(TenantError::ClusterRegisteredAs(other));
        }
        if !store::insert_cluster(&mut transaction, &record, sealed.as_bytes()).await? {
            return Err(TenantError::ClusterNameTaken);
        }
        let detail = serde_json::json!({ "cluster": name, "host": record.host });
        let event = Event { actor, action: "cluster.add", tenant_id: None, detail };
        audit::record(&mut transaction, &event, record.created_at).await?;
        transaction.commit().await?;
        trial.id = None;
        Ok(record)
    }

    /// Gives a cluster another admin URL: another password, role or address of the very same server. Whatever opens the
    /// cluster from then on, on any server, opens it by the new one. Tenants go on with the address that they have until
    /// their own credential is replaced.
    pub async fn set_admin_url(
        &self,
        name: &str,
        admin_url: &SecretString,
        actor: Actor,
    ) -> Result<ClusterRecord, TenantError> {
        let registered = store::list_clusters(&self.pool).await?.into_iter().find(|cluster| cluster.name == name);
        let mut record = registered.ok_or(TenantError::ClusterNotFound)?;
        let url = self.examine(admin_url).await?;
        let tried_as = ClusterId::new();
        let _trial = Trial { clusters: Arc::clone(&self.clusters), id: Some(tried_as) };
        let cluster = self.clusters.open(tried_as, &url).map_err(unsuitable)?;
        let identifier = cluster.system_identifier().await?;
        if record.system_identifier.is_none() {
            record.system_identifier = self.ask_identifier(record.id).await;
        }
        let same_server = match (&record.system_identifier, &identifier) {
            (Some(known), Some(found)) => known == found,
            _ => record.host == host_name(&url) && record.port == i32::from(url.port()),
        };
        if !same_server {
            return Err(TenantError::OtherServer);
        }
        cluster.shut_public_out().await?;
        record.template_schema_version = Some(cluster.ensure_template().await.map_err(unsuitable)?);
        cluster.check_acts_for_tenants().await.map_err(unsuitable)?;
        record.host = host_name(&url);
        record.port = i32::from(url.port());
        record.system_identifier = identifier.or(record.system_identifier);
        let sealed = self.master_keys.seal_platform(&admin_url_location(record.id), &url.expose());
        let mut transaction = self.pool.begin().await?;
        store::set_admin_url(&mut transaction, &record, sealed.as_bytes()).await?;
        let detail = serde_json::json!({ "cluster": name, "host": record.host });
        let event = Event { actor, action: "cluster.set", tenant_id: None, detail };
        audit::record(&mut transaction, &event, self.clock.now()).await?;
        transaction.commit().await?;
        Ok(record)
    }

    /// Reads an admin URL, and looks at the server that it leads to.
    async fn examine(&self, admin_url: &SecretString) -> Result<DatabaseUrl, TenantError> {
        let url = database_check::parse(admin_url, None, UrlOrigin::Owner)
            .map_err(|finding| TenantError::UnsuitableDatabase(Box::new(Report::ended_by(finding))))?;
        let question =
            Question { url: &url, purpose: Purpose::Cluster, tenant: None, owners_servers: &[], connections_wanted: 8 };
        let report = database_check::check(&question, &self.clock).await;
        if report.suitable() { Ok(url) } else { Err(TenantError::UnsuitableDatabase(Box::new(report))) }
    }

    /// Host, port and system identifier of every cluster. An identifier that is not known yet is asked for.
    pub async fn servers(&self) -> Result<Vec<(String, u16, Option<String>)>, TenantError> {
        let mut servers = Vec::new();
        for cluster in store::list_clusters(&self.pool).await? {
            let mut identifier = cluster.system_identifier;
            if identifier.is_none() {
                identifier = self.ask_identifier(cluster.id).await;
                if let Some(identifier) = &identifier {
                    store::set_system_identifier(&self.pool, cluster.id, identifier).await?;
                }
            }
            servers.push((cluster.host, u16::try_from(cluster.port).unwrap_or_default(), identifier));
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

fn unsuitable(error: ProvisioningError) -> TenantError {
    match error {
        ProvisioningError::Unsuitable(reason) => TenantError::UnsuitableCluster(reason),
        other => other.into(),
    }
}

fn host_name(url: &DatabaseUrl) -> String {
    match url.host() {
        Host::Tcp(host) => host.clone(),
        Host::Socket(path) => path.display().to_string(),
    }
}

/// Where a cluster's admin URL is sealed.
pub fn admin_url_location(id: ClusterId) -> Location {
    Location::platform("clusters", "admin_url_sealed", id)
}
