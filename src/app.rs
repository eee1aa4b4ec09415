//! Builds every dependency once, and serves until told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::serve::ListenerExt;
use chrono::TimeDelta;
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{ApiKeys, SuperAdmins, Tokens, Users};
use crate::answer_cache::AnswerCache;
use crate::backups::{BackupServices, Backups};
use crate::chat::{Chat, ChatServices};
use crate::clock::SharedClock;
use crate::config::Config;
use crate::configuration::AiKeys;
use crate::fleet::Fleet;
use crate::fleet_audit::FleetAudit;
use crate::http::patience::Patient;
use crate::http::router;
use crate::ids::TenantId;
use crate::limits::{self, Limits, Plans};
use crate::metering::{Ledger, Prices};
use crate::operations::{self, Engine, Probe};
use crate::pages::Pages;
use crate::platform_db::{self, Notification};
use crate::providers::{ProviderClient, ProviderClientOptions};
use crate::provisioning::TenantMigrations;
use crate::rotation::{Rotations, Rotator};
use crate::schedule;
use crate::scheduled;
use crate::secrets::PasswordHasher;
use crate::shared_models::SharedModels;
use crate::telemetry::causes;
use crate::tenant_db::{Directory, PoolSettings, Shares, TenantDatabases, TenantRecord};
use crate::tenants::clusters::ClusterRegistry;
use crate::tenants::database_checks::DatabaseChecks;
use crate::tenants::life::Life;
use crate::tenants::own_database::OwnDatabases;
use crate::tenants::provision::Provisioning;
use crate::tenants::registry::Registry;
use crate::tenants::templates::Templates;
use crate::worker;

/// How long answers have to be stored once they were told to end.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a client's machine may be silent to what was sent to it. One that answers and takes nothing is given up
/// earlier; see the setting `client_stall_seconds`.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// How long the connections of a tenant that goes out of service are kept for the ends of its answers. Others' news wait for it.
const LAST_ANSWERS: Duration = Duration::from_millis(300);
/// How long a worker whose database does not answer waits before it tries again.
const WORKER_PAUSE: Duration = Duration::from_secs(1);
/// How long a tenant's connection may lie unused.
const IDLE: Duration = Duration::from_secs(60);
/// How often that is looked at.
const IDLE_CHECK: Duration = Duration::from_secs(5);

/// Everything that handlers and jobs need. Cheap to clone, which the router does several times a request.
#[derive(Clone)]
pub struct AppState(Arc<Dependencies>);

impl std::ops::Deref for AppState {
    type Target = Dependencies;

    fn deref(&self) -> &Dependencies {
        &self.0
    }
}

/// What an [`AppState`] holds.
pub struct Dependencies {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// The platform's database.
    pub pool: PgPool,
    /// The time.
    pub clock: SharedClock,
    /// Super admins and their sessions.
    pub super_admins: SuperAdmins,
    /// Tenants' users: sign-in and access tokens.
    pub tokens: Tokens,
    /// Tenants' users: their administration.
    pub users: Users,
    /// Tenants' API keys.
    pub api_keys: ApiKeys,
    /// The registry of tenants.
    pub registry: Registry,
    /// Suspends, resumes, deletes and takes back.
    pub life: Arc<Life>,
    /// Checks of databases that somebody wants to use.
    pub database_checks: DatabaseChecks,
    /// Clients' own databases.
    pub own_databases: OwnDatabases,
    /// The registered clusters.
    pub clusters: ClusterRegistry,
    /// Backups of tenants, and bringing them back.
    pub backups: Backups,
    /// Asks for rotations of credentials and keys.
    pub rotations: Rotations,
    /// Carries them out.
    pub rotator: Arc<Rotator>,
    /// Runs over all tenants.
    pub fleet: Fleet,
    /// Compares the registry with what is there.
    pub fleet_audit: Arc<FleetAudit>,
    /// The cached registry.
    pub directory: Arc<Directory>,
    /// The tenants' pools.
    pub databases: Arc<TenantDatabases>,
    /// Tenants' AI keys.
    pub ai_keys: AiKeys,
    /// Models that the owner lends.
    pub shared_models: SharedModels,
    /// How many requests a minute and a month.
    pub limits: Limits,
    /// Conversations and answers.
    pub chat: Chat,
    /// The chat pages that anybody may open.
    pub pages: Pages,
    /// Carries operations out.
    pub engine: Arc<Engine>,
    /// What the platform's database tells.
    pub notifications: broadcast::Sender<Notification>,
    /// Work that outlives its request.
    pub tasks: TaskTracker,
    /// Cancelled when the server has to stop.
    pub stop: CancellationToken,
    /// Cancelled when answers under way have had their time; they end with what has arrived.
    pub give_up: CancellationToken,
    /// Whether the worker takes operations.
    pub worker_runs: Arc<AtomicBool>,
}

impl AppState {
    /// Builds everything. Opens no connection.
    pub fn build(config: Config, clock: SharedClock, probe: Option<Probe>) -> anyhow::Result<Self> {
        Self::build_with(config, clock, probe, Arc::new(TenantMigrations::embedded()))
    }

    /// The same with other tenant migrations than the program's own: tests and benchmarks move a fleet to a version
    /// that the program does not have yet.
    pub fn build_with(
        config: Config,
        clock: SharedClock,
        probe: Option<Probe>,
        migrations: Arc<TenantMigrations>,
    ) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let master_keys = Arc::clone(&config.master_keys);
        let pool = platform_db::pool(&config.platform_database_url, config.platform_pool_size);
        let templates = Arc::new(Templates::load(config.templates_dir.as_deref())?);
        let passwords = PasswordHasher::new();
        let directory = Directory::new(pool.clone(), Arc::clone(&master_keys));
        let directory = Arc::new(directory.speaking(migrations.spoken()));
        let settings = PoolSettings {
            tenant_connections: config.tenant_connections,
            own_database_connections: config.own_database_connections,
            tenant_pool_size: config.tenant_pool_size,
            wait: config.tenant_connection_wait,
        };
        let shares = Shares::new(pool.clone());
        let databases = Arc::new(TenantDatabases::new(settings, Arc::clone(&directory), shares));
        let clusters = ClusterRegistry::new(pool.clone(), Arc::clone(&master_keys), Arc::clone(&clock))
            .with_migrations(migrations);
        let provider_client = ProviderClient::new(&ProviderClientOptions {
            allow_private_hosts: config.allow_private_model_hosts,
            ..ProviderClientOptions::default()
        })
        .context("prepare the client for model providers")?
        .with_clock(Arc::clone(&clock));
        // Where shared models are is the owner's word, so any address will do.
        let any_address = ProviderClientOptions { allow_private_hosts: true, ..ProviderClientOptions::default() };
        let shared_models = SharedModels::new(
            pool.clone(),
            Arc::clone(&master_keys),
            ProviderClient::new(&any_address)
                .context("prepare the client for shared models")?
                .with_clock(Arc::clone(&clock)),
            Arc::clone(&clock),
        );
        let plans = Arc::new(Plans::load(config.templates_dir.as_deref())?);
        let limits_pool = limits::pool(&config.platform_database_url);
        let limits = Limits::new(limits_pool, config.redis_url.as_ref(), Arc::clone(&plans), Arc::clone(&clock))
            .context("REDIS_URL cannot be used")?;
        let answers_url = config.answer_cache_redis_url.as_ref();
        let answers = AnswerCache::new(config.answer_cache_bytes, answers_url, Arc::clone(&clock))
            .context("FREEHOLD_ANSWER_CACHE_REDIS_URL cannot be used")?;
        let tasks = TaskTracker::new();
        let prices = Prices::load(config.templates_dir.as_deref())?;
        let ledger = Ledger::new(databases.server_id(), prices, Arc::clone(&clock), tasks.clone());
        let give_up = CancellationToken::new();
        let provisioning = Arc::new(Provisioning {
            pool: pool.clone(),
            master_keys: Arc::clone(&master_keys),
            clusters: clusters.clone(),
            templates: Arc::clone(&templates),
            clock: Arc::clone(&clock),
        });
        let delta = |duration: Duration| TimeDelta::from_std(duration).context("a duration is too long");
        let rotator = Arc::new(Rotator {
            pool: pool.clone(),
            master_keys: Arc::clone(&master_keys),
            clusters: clusters.clone(),
            clock: Arc::clone(&clock),
            grace: delta(config.rotation_grace)?,
            token_lifetime: delta(config.access_token_lifetime)?,
        });
        let backup_services = Arc::new(BackupServices {
            pool: pool.clone(),
            master_keys: Arc::clone(&master_keys),
            clusters: clusters.clone(),
            clock: Arc::clone(&clock),
            directory: config.backup_dir.clone(),
            postgres_client_dir: config.postgres_client_dir.clone(),
        });
        let backups = Backups::new(Arc::clone(&backup_services), config.backup_upload_gib);
        let fleet = Fleet::new(pool.clone(), Arc::clone(&master_keys), clusters.clone(), Arc::clone(&clock));
        // For each operation a connection that holds its lock, and some for the queue itself.
        let worker_connections = u32::try_from(config.worker_concurrency).unwrap_or(u32::MAX).saturating_mul(2) + 4;
        let worker_pool = platform_db::pool(&config.platform_database_url, worker_connections);
        let life = Arc::new(Life::new(pool.clone(), Arc::clone(&master_keys), clusters.clone(), Arc::clone(&clock)));
        let fleet_audit =
            Arc::new(FleetAudit::new(pool.clone(), Arc::clone(&master_keys), clusters.clone(), Arc::clone(&clock)));
        let services = worker::Services {
            provisioning,
            fleet: Arc::new(fleet.clone()),
            fleet_audit: Arc::clone(&fleet_audit),
            backups: backup_services,
            rotator: Arc::clone(&rotator),
            life: Arc::clone(&life),
        };
        let mut engine = worker::engine(worker_pool, Arc::clone(&clock), &services);
        if let Some(probe) = probe {
            engine = engine.with_probe(probe);
        }
        let database_checks = DatabaseChecks::new(
            pool.clone(),
            config.platform_database_url.clone(),
            clusters.clone(),
            Arc::clone(&clock),
            config.allow_private_database_hosts,
            u32::try_from(config.tenant_pool_size).unwrap_or(u32::MAX),
        );
        let registry = Registry::new(
            pool.clone(),
            Arc::clone(&master_keys),
            templates,
            Arc::clone(&clock),
            delta(config.invite_lifetime)?,
        );
        Ok(Self(Arc::new(Dependencies {
            super_admins: SuperAdmins::new(
                pool.clone(),
                passwords.clone(),
                Arc::clone(&clock),
                delta(config.session_lifetime)?,
            ),
            tokens: Tokens::new(
                pool.clone(),
                Arc::clone(&directory),
                Arc::clone(&databases),
                passwords.clone(),
                Arc::clone(&clock),
                delta(config.access_token_lifetime)?,
                delta(config.refresh_token_lifetime)?,
            ),
            users: Users::new(passwords, Arc::clone(&clock), delta(config.invite_lifetime)?),
            api_keys: ApiKeys::new(
                pool.clone(),
                Arc::clone(&directory),
                Arc::clone(&databases),
                Arc::clone(&clock),
                tasks.clone(),
            ),
            rotations: Rotations::new(pool.clone(), Arc::clone(&master_keys), Arc::clone(&clock)),
            rotator,
            own_databases: OwnDatabases::new(
                pool.clone(),
                master_keys,
                registry.clone(),
                database_checks.clone(),
                Arc::clone(&clock),
                delta(config.invite_lifetime)?,
            ),
            registry,
            database_checks,
            ai_keys: AiKeys::new(provider_client.clone(), Arc::clone(&clock), Arc::clone(&directory)),
            chat: Chat::new(
                ChatServices {
                    providers: provider_client,
                    shared: shared_models.clone(),
                    ledger,
                    plans,
                    databases: Arc::clone(&databases),
                    answers,
                },
                Arc::clone(&clock),
                tasks.clone(),
                give_up.clone(),
            ),
            pages: Pages::new(Arc::clone(&directory), Arc::clone(&databases)).context("prepare the chat pages")?,
            engine: Arc::new(engine),
            limits,
            shared_models,
            backups,
            notifications: broadcast::Sender::new(1024),
            stop: CancellationToken::new(),
            give_up,
            worker_runs: Arc::default(),
            config,
            pool,
            clock,
            life,
            clusters,
            fleet,
            fleet_audit,
            directory,
            databases,
            tasks,
        })))
    }
}

/// Serves on `listener` until `state.stop` is cancelled; then accepts nothing new and lets answers under way end.
pub async fn serve(state: AppState, listener: TcpListener) -> anyhow::Result<()> {
    let schema = platform_db::schema_version(&state.pool).await.context("reach the platform's database")?;
    let required = platform_db::required_schema_version();
    anyhow::ensure!(
        schema >= required,
        "the platform's database has schema version {schema}, and this server needs {required}\n  \
         hint: run `freehold-server migrate` first"
    );
    state.shared_models.read_again().await.context("read the shared models")?;
    tokio::spawn(platform_db::listen(state.pool.clone(), state.notifications.clone(), state.stop.clone()));
    tokio::spawn(follow_registry(state.clone()));
    let place = place(listener.local_addr()?);
    state.databases.serve_at(place.clone());
    state.limits.begin(place).await;
    let let_go = CancellationToken::new();
    tokio::spawn({
        let (limits, heard, let_go) = (state.limits.clone(), state.notifications.subscribe(), let_go.clone());
        async move { limits.run(heard, let_go).await }
    });
    let shares = tokio::spawn({
        let (databases, let_go) = (Arc::clone(&state.databases), let_go.clone());
        async move { databases.keep_shares(let_go).await }
    });
    let grace = state.config.shutdown_grace;
    let jobs = (state.config.worker_concurrency > 0).then(|| tokio::spawn(work(state.clone(), grace)));
    tokio::spawn(close_idle_connections(state.clone()));
    tokio::spawn(schedule::run_periodically(
        scheduled::TASKS,
        state.clone(),
        state.pool.clone(),
        Arc::clone(&state.clock),
        state.stop.clone(),
    ));
    tracing::info!(address = %listener.local_addr()?, "serve");
    // Without it, the second small write of a streamed answer waits some 40 ms for the first one's acknowledgement.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "set TCP_NODELAY");
        }
        // A client that is gone without a word must not keep its call, and the model's, for ever.
        if let Err(error) = socket2::SockRef::from(&*connection).set_tcp_user_timeout(Some(CLIENT_PATIENCE)) {
            tracing::debug!(%error, "set TCP_USER_TIMEOUT");
        }
    });
    let listener = Patient::new(listener, state.config.client_stall);
    let stop = state.stop.clone();
    let server = axum::serve(listener, router::router(state.clone()))
        .with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::spawn({
        let (stop, give_up, limits) = (state.stop.clone(), state.give_up.clone(), state.limits.clone());
        async move {
            stop.cancelled().await;
            tokio::join!(limits.leaving(), tokio::time::sleep(grace));
            give_up.cancel();
        }
    });
    // A token, and not the wait itself: it is looked at twice, also when it was over the first time.
    let last_words = CancellationToken::new();
    tokio::spawn({
        let (give_up, last_words) = (state.give_up.clone(), last_words.clone());
        async move {
            give_up.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
            last_words.cancel();
        }
    });
    tokio::select! {
        result = server.into_future() => result.context("serve")?,
        () = last_words.cancelled() => tracing::warn!("requests did not end in time; closing them"),
    }
    // Answers whose listener has left are still being finished.
    state.tasks.close();
    tokio::select! {
        () = state.tasks.wait() => {}
        () = last_words.cancelled() => tracing::warn!("answers did not end in time"),
    }
    if let Some(jobs) = jobs {
        jobs.await.context("end the worker")?;
    }
    state.limits.leave().await;
    // Nobody needs a tenant's connection any more. Others may want them at once.
    let_go.cancel();
    shares.await.context("give the connections back")?;
    state.pool.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// Where this server serves, as no other one can at the same time: the machine since it was started, the name it has
/// there (each container has one), and the address that it has bound.
fn place(address: std::net::SocketAddr) -> String {
    let read = |file: &str| std::fs::read_to_string(file).map(|text| text.trim().to_owned()).ok();
    match (read("/proc/sys/kernel/random/boot_id"), read("/proc/sys/kernel/hostname")) {
        (Some(boot), Some(host)) => format!("{host} {address} {boot}"),
        // Nothing tells this machine from others, so nobody's place is taken.
        _ => uuid::Uuid::now_v7().to_string(),
    }
}

/// Carries operations out until the server stops. The queue's library ends when its database does not answer; then it
/// is started again, and whatever was under way goes on.
async fn work(state: AppState, grace: Duration) {
    while !state.stop.is_cancelled() {
        let turn = async {
            let recovered = operations::recover(&state.pool).await?;
            if recovered > 0 {
                tracing::info!(recovered, "queue unsettled operations again");
            }
            state.worker_runs.store(true, Ordering::Release);
            let (engine, stop) = (Arc::clone(&state.engine), state.stop.clone());
            operations::start_worker(engine, state.config.worker_concurrency, stop, grace).await
        };
        if let Err(error) = turn.await {
            tracing::error!(error = format!("{error:#}"), "the worker ended; it is started again");
        }
        state.worker_runs.store(false, Ordering::Release);
        tokio::select! {
            () = state.stop.cancelled() => {}
            () = tokio::time::sleep(WORKER_PAUSE) => {}
        }
    }
}

/// Gives connections back that tenants no longer use.
async fn close_idle_connections(state: AppState) {
    loop {
        tokio::select! {
            () = state.stop.cancelled() => return,
            () = tokio::time::sleep(IDLE_CHECK) => state.databases.close_idle(IDLE),
        }
    }
}

/// Keeps the cached registry and the tenants' pools in step with the platform's database.
async fn follow_registry(state: AppState) {
    let mut notifications = state.notifications.subscribe();
    loop {
        let notification = tokio::select! {
            () = state.stop.cancelled() => return,
            notification = notifications.recv() => notification,
        };
        match notification {
            Ok(Notification::Registry(id)) => {
                let known = state.directory.knows_tenant(id);
                let record = state.directory.refresh(id).await;
                if known {
                    follow_life(&state, id, record.as_deref());
                }
                follow_connections(&state, id, record.as_ref()).await;
            }
            Ok(Notification::Operation(_) | Notification::Limits(_)) => {}
            Ok(Notification::SharedModels) => drop(tokio::spawn(read_shared_models(state.clone()))),
            Ok(Notification::Shares) => state.databases.look_at_shares(),
            Ok(Notification::Missed) | Err(broadcast::error::RecvError::Lagged(_)) => {
                state.directory.mark_all_stale();
                drop(tokio::spawn(read_shared_models(state.clone())));
                for id in state.databases.tenants() {
                    let record = state.directory.refresh(id).await;
                    follow_life(&state, id, record.as_deref());
                    follow_connections(&state, id, record.as_ref()).await;
                }
                forget_gone(&state).await;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Reads what the owner lends again, until that succeeds.
async fn read_shared_models(state: AppState) {
    while let Err(error) = state.shared_models.read_again().await {
        tracing::warn!(error = causes(&error), "read shared models");
        tokio::select! {
            () = state.stop.cancelled() => return,
            () = tokio::time::sleep(WORKER_PAUSE) => {}
        }
    }
}

/// What follows from a tenant's life beside its connections: answers under way end when it goes out of service, and
/// nothing opened is kept of one that is gone.
fn follow_life(state: &AppState, id: TenantId, record: Option<&TenantRecord>) {
    state.chat.follow(id, record);
    if record.is_none() {
        state.directory.forget(id);
        state.api_keys.forget_tenant(id);
        state.limits.forget_tenant(id);
    }
}

/// What follows for its connections. Answers of one that goes out of service end first, and how they end is written while
/// there are connections. What is not written by then is taken up later.
async fn follow_connections(state: &AppState, id: TenantId, record: Option<&Arc<TenantRecord>>) {
    if record.is_none_or(|record| !record.is_active()) {
        let _ = tokio::time::timeout(LAST_ANSWERS, state.chat.idle(id)).await;
    }
    state.databases.follow(id, record);
}

/// Forgets the tenants that were deleted while nobody listened.
async fn forget_gone(state: &AppState) {
    match state.directory.gone().await {
        Ok(gone) => gone.into_iter().for_each(|id| follow_life(state, id, None)),
        Err(error) => tracing::warn!(%error, "look for deleted tenants"),
    }
}
