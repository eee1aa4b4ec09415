//! `freehold-server`: serves the platform and tenant APIs and carries operations out.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::{Parser, Subcommand};
use freehold::access::{AccessError, Created, SuperAdmins};
use freehold::api::doctor::{DoctorFinding, DoctorLevel, DoctorReport};
use freehold::app::{self, AppState};
use freehold::clock::SystemClock;
use freehold::config::{Config, ConfigError, SETTINGS, misspelt};
use freehold::http::router;
use freehold::secrets::PasswordHasher;
use freehold::{doctor, platform_db, telemetry};
use secrecy::SecretString;
use sqlx::migrate::MigrateError;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What to do when the platform's database does not do what is asked: the command tells address, network, TLS and password
/// apart, each with a remedy.
const DOCTOR_HINT: &str = "hint: freehold-server doctor";

/// Serves Freehold's platform and tenant APIs.
#[derive(Debug, Parser)]
#[command(
    name = "freehold-server",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. RUST_LOG says which log lines are written."
)]
struct Arguments {
    /// The configuration file; `./freehold.toml` is used when there is one.
    #[arg(long, global = true, env = "FREEHOLD_CONFIG")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGINT or SIGTERM; answers under way end properly.
    Serve {
        /// Bring the platform's schema up to date first.
        #[arg(long)]
        migrate: bool,
    },
    /// Bring the platform's schema up to date.
    Migrate,
    /// Create a super admin. Changes nothing if the address has one: see set-admin-password.
    CreateAdmin {
        /// The e-mail address.
        #[arg(long)]
        email: String,
        /// A file with the password, `-` for standard input. Never an argument: those are visible to every process.
        #[arg(long)]
        password_file: PathBuf,
    },
    /// Give a super admin another password, and end their sessions.
    SetAdminPassword {
        /// The e-mail address.
        #[arg(long)]
        email: String,
        /// A file with the new password, `-` for standard input.
        #[arg(long)]
        password_file: PathBuf,
    },
    /// Remove a super admin, and end their sessions.
    RemoveAdmin {
        /// The e-mail address.
        #[arg(long)]
        email: String,
        /// Remove the last one, too: nobody can sign in to the platform until another is created.
        #[arg(long)]
        force: bool,
    },
    /// Check the configuration, the platform's database, the keys and the clusters.
    Doctor {
        /// Print one JSON document.
        #[arg(long)]
        json: bool,
        /// Check the clients' own databases too.
        #[arg(long)]
        tenants: bool,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// List every setting with its meaning and default.
    HelpConfig,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.command {
        Command::Openapi => return print(&openapi_text()),
        Command::HelpConfig => return print(&settings_text()),
        _ => {}
    }
    let config = match Config::load(arguments.config.as_deref(), &|name| std::env::var(name).ok()) {
        Ok(config) => config,
        Err(error) => return refuse(&arguments.command, &error),
    };
    telemetry::init(config.log_format);
    let names: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    for (name, meant) in misspelt(names.iter().map(String::as_str)) {
        tracing::warn!(name, meant, "a variable of the environment is no setting");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("the runtime could not be started: {error}")),
    };
    match runtime.block_on(run(arguments.command, config)) {
        Ok(code) => code,
        Err(error) => fail(1, &describe(&error)),
    }
}

/// Says why the configuration is refused: to a program that asked the doctor for a document, in one.
fn refuse(command: &Command, error: &ConfigError) -> ExitCode {
    let text = error.to_string();
    if matches!(command, Command::Doctor { json: true, .. }) {
        let (seen, remedy) = match text.split_once("\n  hint: ") {
            Some((seen, hint)) => (seen.to_owned(), Some(hint.to_owned())),
            None => (text.clone(), Some("`freehold-server help-config` lists the settings".to_owned())),
        };
        let finding = DoctorFinding { check: "configuration".to_owned(), level: DoctorLevel::Failure, seen, remedy };
        let report = DoctorReport { healthy: false, findings: vec![finding] };
        print(&serde_json::to_string(&report).unwrap_or_default());
    }
    fail(2, &text)
}

async fn run(command: Command, config: Config) -> anyhow::Result<ExitCode> {
    // One provider of cryptography in the process. Fails only if one is installed, which is as good.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    match command {
        Command::Serve { migrate } => serve(config, migrate).await?,
        Command::Migrate => {
            let pool = platform_db::pool(&config.platform_database_url, 2);
            platform_db::migrate(&pool).await.context("migrate the platform's database")?;
            tracing::info!(schema_version = platform_db::required_schema_version(), "migrated");
        }
        Command::CreateAdmin { email, password_file } => create_admin(&config, &email, &password_file).await?,
        Command::SetAdminPassword { email, password_file } => {
            let password = read_password(&password_file)?;
            let ended = super_admins(&config)?.set_password(&email, &password).await.map_err(explained)?;
            tracing::info!(sessions_ended = ended, "set super admin's password");
        }
        Command::RemoveAdmin { email, force } => {
            super_admins(&config)?.remove(&email, force).await.map_err(explained)?;
            tracing::info!("remove super admin");
        }
        Command::Doctor { json, tenants } => {
            let state = AppState::build(config, SystemClock::shared(), None)?;
            let report = doctor::examine(&state, doctor::Scope { serving: false, tenants }).await;
            let code = if report.healthy { ExitCode::SUCCESS } else { ExitCode::from(1) };
            print(&if json { serde_json::to_string(&report)? } else { report.to_text() });
            return Ok(code);
        }
        Command::Openapi | Command::HelpConfig => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(config: Config, migrate: bool) -> anyhow::Result<()> {
    let listen = config.listen;
    let state = AppState::build(config, SystemClock::shared(), None)?;
    if migrate {
        platform_db::migrate(&state.pool).await.context("migrate the platform's database")?;
    }
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
    let stop = state.stop.clone();
    tokio::spawn(async move {
        stop_signal().await;
        tracing::info!("stop: accepting nothing new");
        stop.cancel();
    });
    app::serve(state, listener).await
}

async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(error) => {
                tracing::warn!(%error, "SIGTERM cannot be handled");
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        _ = interrupt => {}
        () = terminate => {}
    }
}

fn read_password(password_file: &Path) -> anyhow::Result<SecretString> {
    let mut password = String::new();
    if password_file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut password).context("read the password")?;
    } else {
        password = std::fs::read_to_string(password_file).context("read the password file")?;
    }
    Ok(SecretString::from(password.trim_end_matches(['\r', '\n'])))
}

fn super_admins(config: &Config) -> anyhow::Result<SuperAdmins> {
    let pool = platform_db::pool(&config.platform_database_url, 2);
    let lifetime = chrono::TimeDelta::from_std(config.session_lifetime).context("session_hours")?;
    Ok(SuperAdmins::new(pool, PasswordHasher::new(), SystemClock::shared(), lifetime))
}

async fn create_admin(config: &Config, email: &str, password_file: &Path) -> anyhow::Result<()> {
    let password = read_password(password_file)?;
    match super_admins(config)?.create(email, &password).await.map_err(explained)? {
        Created::New => tracing::info!("super admin created"),
        Created::Exists => tracing::info!("there is a super admin of this address; nothing changed"),
        // Done all the same: it runs at every start of a deployment, and the password may have been changed since.
        Created::ExistsWithAnotherPassword => tracing::warn!(
            hint = "to change it: freehold-server set-admin-password",
            "there is a super admin of this address, whose password is another; nothing changed"
        ),
    }
    Ok(())
}

/// An error about an account, with what to do where that is known.
fn explained(error: AccessError) -> anyhow::Error {
    match &error {
        AccessError::NotFound(_) => anyhow!("there is no super admin of this address"),
        AccessError::LastSuperAdmin => anyhow!(
            "this is the last super admin: without one, nobody can sign in to the platform\nhint: create another first, or \
             add --force"
        ),
        _ => error.into(),
    }
}

/// An error with its causes, for a person at a terminal, each told once: some errors repeat theirs.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let told = match (cause.downcast_ref::<sqlx::Error>(), cause.downcast_ref::<MigrateError>()) {
            (Some(sqlx::Error::PoolTimedOut), _) => "it does not answer".to_owned(),
            // Of a refusal the words; where in the server's source they stand is for those who work on that.
            (Some(sqlx::Error::Database(refusal)), _) => refusal.message().to_owned(),
            (_, Some(MigrateError::Execute(_))) => continue,
            (_, Some(MigrateError::ExecuteMigration(_, version))) => format!("migration {version}"),
            _ => cause.to_string(),
        };
        if !text.contains(&told) {
            text = if text.is_empty() { told } else { format!("{text}: {told}") };
        }
        if cause.is::<sqlx::Error>() {
            return format!("{text}\n{DOCTOR_HINT}");
        }
    }
    text
}

fn openapi_text() -> String {
    router::openapi().to_pretty_json().unwrap_or_default()
}

fn settings_text() -> String {
    let mut text = String::from("Settings, by environment variable (or VARIABLE_FILE) and key in freehold.toml:\n");
    for setting in SETTINGS {
        let default = match setting.default {
            None => "required".to_owned(),
            Some("") => "default: none".to_owned(),
            Some(default) => format!("default: {default}"),
        };
        let range = setting.range.map_or_else(String::new, |(least, most)| format!("; from {least} to {most}"));
        text.push_str(&format!("\n{}  ({})\n    {}{range}; {default}\n", setting.env, setting.key, setting.meaning));
    }
    text.push_str("\nRUST_LOG\n    which log lines are written, for example `debug`; default: warn,freehold=info\n");
    text
}

#[expect(clippy::print_stdout, reason = "the command's result goes to standard output")]
fn print(text: &str) -> ExitCode {
    println!("{text}");
    ExitCode::SUCCESS
}

#[expect(clippy::print_stderr, reason = "errors before logging starts go to standard error")]
fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(code)
}
