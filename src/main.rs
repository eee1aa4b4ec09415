//! `freehold-server`: serves the platform and tenant APIs and carries operations out.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use freehold::access::{Created, SuperAdmins};
use freehold::app::{self, AppState};
use freehold::clock::SystemClock;
use freehold::config::{Config, SETTINGS};
use freehold::http::router;
use freehold::secrets::PasswordHasher;
use freehold::{doctor, platform_db, telemetry};
use secrecy::SecretString;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serves Freehold's platform and tenant APIs.
#[derive(Debug, Parser)]
#[command(
    name = "freehold-server",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration."
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
    /// Create a super admin. Does nothing if the address has one.
    CreateAdmin {
        /// The e-mail address.
        #[arg(long)]
        email: String,
        /// A file with the password, `-` for standard input. Never an argument: those are visible to every process.
        #[arg(long)]
        password_file: PathBuf,
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
        Err(error) => return fail(2, &error.to_string()),
    };
    telemetry::init(config.log_format);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &format!("the runtime could not be started: {error}")),
    };
    match runtime.block_on(run(arguments.command, config)) {
        Ok(code) => code,
        Err(error) => fail(1, &format!("{error:#}")),
    }
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

async fn create_admin(config: &Config, email: &str, password_file: &PathBuf) -> anyhow::Result<()> {
    let mut password = String::new();
    if password_file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut password).context("read the password")?;
    } else {
        password = std::fs::read_to_string(password_file).context("read the password file")?;
    }
    let password = SecretString::from(password.trim_end_matches(['\r', '\n']));
    let pool = platform_db::pool(&config.platform_database_url, 2);
    let lifetime = chrono::TimeDelta::from_std(config.session_lifetime).context("session_hours")?;
    let admins = SuperAdmins::new(pool, PasswordHasher::new(), SystemClock::shared(), lifetime);
    match admins.create(email, &password).await {
        Ok(Created::New) => tracing::info!("super admin created"),
        Ok(Created::Exists) => tracing::info!("there is a super admin of this address; nothing changed"),
        Err(error) => bail!("{}", describe(&error)),
    }
    Ok(())
}

/// An error with its causes, for a person at a terminal.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
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
        text.push_str(&format!("\n{}  ({})\n    {}; {default}\n", setting.env, setting.key, setting.meaning));
    }
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
