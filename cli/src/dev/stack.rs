//! The local stack: Postgres, a model server and Freehold's server, started in order and stopped in order.
//!
//! It knows what runs and with which settings. What is set up in the platform afterwards is `demo`'s, what
//! the user reads is `guide`'s.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use freehold::api::{Health, HealthStatus};

use super::account::create_directory;
use super::api::Api;
use super::binaries::client_programs;
use super::demo::{Model, SetUp};
use super::model_server::{ModelServer, first_free_port};
use super::postgres::{EmbeddedPostgres, EmbeddedPostgresOptions};
use super::process::{POLL, StopSignal, Supervised, SupervisedCommand};
use super::progress::Progress;
use super::project::{Project, sibling_program};
use super::state::DevState;
use super::{files, hinted};

const PLATFORM_DATABASE: &str = "freehold_platform";
const DEFAULT_PORT: u16 = 8080;

/// A server that needs longer than this is not coming.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that runs. What the user brings along (a database, a model) is not in here.
#[derive(Debug, Default)]
pub(crate) struct Stack {
    postgres: Option<EmbeddedPostgres>,
    model: Option<ModelServer>,
    server: Option<Supervised>,
}

/// Where the platform's database is, and with which URL clients' databases are made.
struct Databases {
    platform: String,
    cluster_admin: String,
}

impl Stack {
    /// Starts everything. What has been started is in `self` also when a later step fails or the future is
    /// dropped, so that the caller can stop it in order.
    pub(crate) async fn start(
        &mut self,
        project: &Project,
        progress: &Progress,
        wanted_port: Option<u16>,
    ) -> Result<DevState> {
        let mut state = DevState::load_or_new(project)?;
        let keys = master_keys(project, &state)?;
        // Saved before anything uses a password of it.
        state.save(project)?;
        let http = reqwest::Client::builder()
            // A proxy has no business between a machine and itself.
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(60))
            .build()
            .context("make an HTTP client")?;

        let Self { postgres, model, server } = self;
        let (databases, model) = tokio::try_join!(
            databases(postgres, project, progress),
            serving_model(model, project, progress, &http, state.model_port),
        )?;
        state.use_database(&databases.platform);
        let (model, model_port) = model;
        state.model_port = model_port.or(state.model_port);
        state.model_url = Some(model.url.clone());

        let port = server_port(wanted_port, state.server_port)?;
        state.server_port = Some(port);
        state.server_url = format!("http://127.0.0.1:{port}");
        state.save(project)?;

        let program = sibling_program("freehold-server")?;
        let settings = ServerSettings { program: &program, project, databases: &databases, keys: &keys, port };
        progress
            .step("Migrate the platform database", async {
                settings.command("migrate").arg("migrate").run_to_end(PATIENCE).await
            })
            .await?;
        progress.step("Create the super admin", create_admin(&settings, &state)).await?;
        progress
            .step(&format!("Start Freehold on {}", state.server_url), async {
                let running = server.insert(settings.command("server").arg("serve").spawn()?);
                wait_until_healthy(running, &http, &state.server_url).await
            })
            .await?;

        if !state.is_complete(&model.url) {
            set_up(project, progress, &http, &mut state, &databases, &model).await?;
        }
        Ok(state)
    }

    /// The name and the last words of a process which should be running and is not.
    pub(crate) fn fallen(&mut self) -> Result<Option<String>> {
        let processes = [
            self.server.as_mut(),
            self.model.as_mut().map(ModelServer::process),
            self.postgres.as_mut().map(EmbeddedPostgres::process),
        ];
        for process in processes.into_iter().flatten() {
            if let Some(code) = process.exit_code()? {
                let name = process.name();
                return Ok(Some(format!("{name} ended with code {code}; {}", process.log_tail())));
            }
        }
        Ok(None)
    }

    /// Stops everything: the server first, while it can still write down what it was doing.
    pub(crate) async fn stop(self) -> Result<()> {
        let mut outcome = Ok(());
        if let Some(server) = self.server {
            outcome = outcome.and(server.stop().await);
        }
        if let Some(model) = self.model {
            outcome = outcome.and(model.stop().await);
        }
        if let Some(postgres) = self.postgres {
            outcome = outcome.and(postgres.stop().await);
        }
        outcome
    }
}

/// The user's own Postgres, or the embedded one.
async fn databases(place: &mut Option<EmbeddedPostgres>, project: &Project, progress: &Progress) -> Result<Databases> {
    if let Some(url) = variable("PLATFORM_DATABASE_URL") {
        progress.note("Using the Postgres of PLATFORM_DATABASE_URL");
        return Ok(Databases { platform: url.clone(), cluster_admin: url });
    }
    progress
        .step("Start Postgres", async {
            let options = EmbeddedPostgresOptions::for_development(&project.root);
            let postgres = place.insert(EmbeddedPostgres::start(options).await?);
            postgres.create_database(PLATFORM_DATABASE).await?;
            Ok(Databases { platform: postgres.url(PLATFORM_DATABASE), cluster_admin: postgres.url("postgres") })
        })
        .await
}

/// The user's own model, or the local one with its port.
async fn serving_model(
    place: &mut Option<ModelServer>,
    project: &Project,
    progress: &Progress,
    http: &reqwest::Client,
    last_port: Option<u16>,
) -> Result<(Model, Option<u16>)> {
    if let Some(url) = variable("FREEHOLD_MODEL_URL") {
        let Some(name) = variable("FREEHOLD_MODEL_NAME") else {
            return Err(hinted(
                "FREEHOLD_MODEL_URL is set and FREEHOLD_MODEL_NAME is not",
                "set it to the name under which that server knows its model",
            ));
        };
        progress.note(&format!("Using the model {name} at {url}"));
        let api_key = variable("FREEHOLD_MODEL_API_KEY").unwrap_or_else(|| "none".to_owned());
        return Ok((Model { url, name, api_key }, None));
    }
    progress
        .step("Start the local model", async {
            let server = place.insert(ModelServer::start(project, http, last_port).await?);
            Ok((Model::local(server.url()), Some(server.port())))
        })
        .await
}

/// The file with the keys that wrap every client's data key, made at the very first start.
fn master_keys(project: &Project, state: &DevState) -> Result<std::path::PathBuf> {
    let path = project.own("master-keys");
    if !path.exists() {
        if state.platform_database_url.is_some() {
            return Err(hinted(
                format!("{} is gone, and with it every secret in the databases", path.display()),
                "put it back, or start over with `freehold dev --reset`",
            ));
        }
        files::write_private(&path, files::random_master_key().as_bytes())?;
    }
    Ok(path)
}

fn server_port(wanted: Option<u16>, last: Option<u16>) -> Result<u16> {
    let Some(wanted) = wanted else {
        return first_free_port(last, DEFAULT_PORT);
    };
    let port = first_free_port(Some(wanted), wanted)?;
    if port == wanted {
        return Ok(port);
    }
    Err(hinted(format!("port {wanted} is taken by another program"), format!("`freehold dev --port {port}` is free")))
}

/// How `freehold-server` is run here, whatever the subcommand.
struct ServerSettings<'a> {
    program: &'a Path,
    project: &'a Project,
    databases: &'a Databases,
    keys: &'a Path,
    port: u16,
}

impl ServerSettings<'_> {
    fn command(&self, log: &str) -> SupervisedCommand {
        let level = variable("RUST_LOG").unwrap_or_else(|| "info".to_owned());
        let backups = self.project.own("backups");
        let mut command = SupervisedCommand::new(self.program, self.project.log(log));
        if create_directory(&backups, 0o700).is_ok() {
            command = command.env("FREEHOLD_BACKUP_DIR", &backups);
        }
        if variable("FREEHOLD_POSTGRES_CLIENT_DIR").is_none()
            && let Some(programs) = client_programs(&self.project.root)
        {
            command = command.env("FREEHOLD_POSTGRES_CLIENT_DIR", programs);
        }
        command
            .env("PLATFORM_DATABASE_URL", self.databases.platform.as_str())
            .env("FREEHOLD_MASTER_KEYS_FILE", self.keys)
            .env("FREEHOLD_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("FREEHOLD_PUBLIC_URL", format!("http://127.0.0.1:{}", self.port))
            // The local model stands on a loopback address, where clients' keys may not point otherwise.
            .env("FREEHOLD_ALLOW_PRIVATE_MODEL_HOSTS", "true")
            .env("FREEHOLD_LOG_FORMAT", "text")
            .env("RUST_LOG", level)
            // Keys of another platform in the user's shell would contradict the file.
            .without_env("FREEHOLD_MASTER_KEYS")
            .directory(&self.project.root)
            // Streams in flight may end properly, but nobody waits long for a local stack.
            .env("FREEHOLD_SHUTDOWN_SECONDS", "5")
            .stop_with(StopSignal::Terminate, Duration::from_secs(15))
    }
}

async fn create_admin(settings: &ServerSettings<'_>, state: &DevState) -> Result<()> {
    let admin = &state.super_admin;
    let file = settings.project.own("admin-password");
    files::write_private(&file, admin.password.as_bytes())?;
    let created = settings
        .command("create-admin")
        .args(["create-admin", "--email", &admin.email, "--password-file"])
        .arg(&file)
        .run_to_end(PATIENCE)
        .await;
    fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    created
}

async fn wait_until_healthy(server: &mut Supervised, http: &reqwest::Client, url: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        if let Some(code) = server.exit_code()? {
            bail!("freehold-server ended with code {code}; {}", server.log_tail());
        }
        let last = match http.get(format!("{url}/api/health")).send().await {
            // `degraded` will not do: the demo clients are set up by the worker.
            Ok(answer) => match answer.json::<Health>().await {
                Ok(health) if health.status == HealthStatus::Ok => return Ok(()),
                Ok(health) => format!("{:?}", health.checks),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        if started.elapsed() > PATIENCE {
            bail!("freehold-server does not become healthy ({last}); {}", server.log_tail());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn set_up(
    project: &Project,
    progress: &Progress,
    http: &reqwest::Client,
    state: &mut DevState,
    databases: &Databases,
    model: &Model,
) -> Result<()> {
    let api = Api::new(http, &state.server_url);
    let platform = SetUp::sign_in(&api, &state.super_admin).await?;
    progress.step("Register the local cluster", platform.cluster(&databases.cluster_admin)).await?;
    for index in 0..state.tenants.len() {
        let slug = state.tenants.get(index).map(|tenant| tenant.slug.clone()).unwrap_or_default();
        progress.step(&format!("Provision {slug}"), platform.tenant(project, state, index, model)).await?;
    }
    platform.sign_out().await
}

/// An environment variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
