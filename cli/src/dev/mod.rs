//! `freehold dev`: the whole platform on one machine, for a newcomer's first minutes and for every day's work.
//!
//! It starts Postgres, a model server and `freehold-server`, and sets up two demo clients through the public
//! API. The pieces below it (`process`, `postgres`) are also what the integration tests stand on. Nothing in
//! here is ever part of a production server.

pub mod account;
mod api;
mod binaries;
mod browser;
mod demo;
mod detached;
mod files;
mod guide;
mod model_server;
pub mod postgres;
pub mod process;
mod progress;
mod project;
mod stack;
mod state;

use std::fs;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use self::binaries::client_programs;
use self::progress::{Progress, line, result_line};
use self::project::Project;
use self::stack::Stack;
use self::state::DevState;

/// Runs the whole platform on this machine: Postgres, a model, the server and two demo clients.
///
/// Without an option it starts and stays in the foreground; Ctrl-C stops every process. A second start keeps
/// all data. PLATFORM_DATABASE_URL puts your own Postgres in place of the embedded one; FREEHOLD_MODEL_URL,
/// FREEHOLD_MODEL_NAME and FREEHOLD_MODEL_API_KEY your own model in place of the local one.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DevArgs {
    /// Start in the background and return when it is ready.
    #[arg(long, conflicts_with_all = ["stop", "status", "reset"])]
    detach: bool,
    /// Stop what runs.
    #[arg(long, conflicts_with_all = ["status", "reset"])]
    stop: bool,
    /// Say whether it runs, and where. Exits with 1 when it does not.
    #[arg(long, conflicts_with = "reset")]
    status: bool,
    /// Delete all local data and secrets, after asking.
    #[arg(long)]
    reset: bool,
    /// Do not ask before a reset.
    #[arg(long, requires = "reset")]
    yes: bool,
    /// Open a demo client's chat page in the browser once it is up: of the first one, or of the one named.
    #[arg(long, value_name = "CLIENT", num_args = 0..=1, default_missing_value = "",
        conflicts_with_all = ["stop", "status", "reset"])]
    open: Option<String>,
    /// The server's port [default: the last one, else 8080 or the next free one].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Marks the background process of `--detach`.
    #[arg(long, hide = true)]
    background: bool,
}

/// Runs the command. `json` asks for one JSON document on stdout in place of text.
pub async fn run(args: DevArgs, json: bool) -> Result<ExitCode> {
    let project = Project::find()?;
    if args.status {
        return detached::status(&project, json).await;
    }
    if args.stop {
        return stop(&project).await;
    }
    if args.reset {
        return reset(&project, args.yes).await;
    }
    if args.detach {
        let code = detached::start(&project, args.port, json).await?;
        open_page(&project, args.open.as_deref()).await?;
        return Ok(code);
    }
    let Some(_lock) = project.lock()? else {
        let code = already_up(&project, json)?;
        open_page(&project, args.open.as_deref()).await?;
        return Ok(code);
    };
    run_stack(&project, &args, json).await
}

/// An error with a line that says what to do about it.
fn hinted(problem: impl std::fmt::Display, hint: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("{problem}\nhint: {hint}")
}

/// Starts everything and stays until a signal or a fallen process ends it.
async fn run_stack(project: &Project, args: &DevArgs, json: bool) -> Result<ExitCode> {
    let mut signals = Signals::new(args.background)?;
    let progress = Progress::new();
    let mut stack = Stack::default();
    let started = tokio::select! {
        started = stack.start(project, &progress, args.port) => Some(started),
        () = signals.stop() => None,
    };
    let outcome = match started {
        None => Ok(ExitCode::SUCCESS),
        // When a process died under a step, its own last words say more than the step's "connection refused".
        Some(Err(error)) => Err(match stack.fallen() {
            Ok(Some(what)) => error.context(what),
            _ => error,
        }),
        Some(Ok(state)) => {
            if args.background {
                detached::announce(project)?;
            } else {
                print_ready(project, &state, json)?;
                open_page(project, args.open.as_deref()).await?;
                line("\nCtrl-C stops every process.");
            }
            tokio::select! {
                () = signals.stop() => Ok(ExitCode::SUCCESS),
                fallen = watch(&mut stack) => Err(fallen),
            }
        }
    };
    progress.step("Stop every process", stack.stop()).await?;
    detached::retract(project)?;
    outcome
}

/// Waits until a process that should run does not, and says which.
async fn watch(stack: &mut Stack) -> anyhow::Error {
    loop {
        match stack.fallen() {
            Ok(None) => tokio::time::sleep(Duration::from_millis(500)).await,
            Ok(Some(what)) => return anyhow!(what),
            Err(error) => return error,
        }
    }
}

fn print_ready(project: &Project, state: &DevState, json: bool) -> Result<()> {
    if json {
        result_line(&serde_json::to_string(state).context("format as JSON")?);
    } else {
        result_line(&guide::guide(project, state));
    }
    Ok(())
}

/// Opens the chat page of a demo client: of the first one if the name is empty.
async fn open_page(project: &Project, client: Option<&str>) -> Result<()> {
    let (Some(client), Some(state)) = (client, DevState::load(project)?) else { return Ok(()) };
    let mut tenants = state.tenants.iter();
    match tenants.find(|tenant| client.is_empty() || tenant.slug == client) {
        Some(tenant) => browser::open(&tenant.page(&state.server_url)).await,
        None => line(&format!("There is no demo client `{client}`.")),
    }
    Ok(())
}

fn already_up(project: &Project, json: bool) -> Result<ExitCode> {
    if let Some(state) = DevState::load(project)? {
        print_ready(project, &state, json)?;
    }
    let pid = project.running_pid().map_or_else(String::new, |pid| format!(" (process {pid})"));
    line(&format!("Freehold already runs here{pid}.\nhint: `freehold dev --stop` stops it"));
    Ok(ExitCode::SUCCESS)
}

async fn stop(project: &Project) -> Result<ExitCode> {
    if !project.is_running()? {
        line("Nothing runs here.");
        return Ok(ExitCode::SUCCESS);
    }
    Progress::new().step("Stop Freehold", detached::stop(project)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Deletes what `.freehold` holds. The lock file stays: another start may just be waiting for it. So do the
/// secrets for docker compose, which belong to databases that are not in here.
async fn reset(project: &Project, yes: bool) -> Result<ExitCode> {
    if !yes {
        let question =
            format!("Delete all databases, secrets and logs in {}?", project.root.join(".freehold").display());
        if !std::io::stderr().is_terminal() || !std::io::stdin().is_terminal() {
            return Err(hinted("a reset deletes all local data", "confirm with `freehold dev --reset --yes`"));
        }
        let confirmed = dialoguer::Confirm::new()
            .with_prompt(question)
            .default(false)
            .interact()
            .context("ask for confirmation")?;
        if !confirmed {
            line("Nothing was deleted.");
            return Ok(ExitCode::FAILURE);
        }
    }
    if project.is_running()? {
        Progress::new().step("Stop Freehold", detached::stop(project)).await?;
    }
    let Some(_lock) = project.lock()? else {
        return Err(hinted("Freehold was started again meanwhile", "`freehold dev --stop`, then reset"));
    };
    postgres::delete_project_home(&project.root)?;
    let own = project.root.join(".freehold");
    for entry in fs::read_dir(&own).with_context(|| format!("list {}", own.display()))? {
        let path = entry.with_context(|| format!("list {}", own.display()))?.path();
        if path.ends_with("dev.lock") || path.ends_with("compose") {
            continue;
        }
        let deleted = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        deleted.with_context(|| format!("delete {}", path.display()))?;
    }
    line("All local data is deleted; the next start begins anew.");
    Ok(ExitCode::SUCCESS)
}

/// The signals that ask us to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    background: bool,
}

impl Signals {
    fn new(background: bool) -> Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
            background,
        })
    }

    /// Waits for one. A terminal that closes ends a stack in the foreground; one in the background was
    /// started to outlive it.
    async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => return,
                _ = self.hang_up.recv() => if !self.background { return },
            }
        }
    }
}
