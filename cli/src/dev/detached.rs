//! A stack in the background: started, found and stopped from other runs of the command.
//!
//! The background process is this same program, run again. It owns every other process, exactly as one in
//! the foreground does.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::process::{POLL, send_signal};
use super::progress::{line, result_line};
use super::project::Project;
use super::state::DevState;
use super::{already_up, hinted, print_ready};

/// Present while the stack is ready, as against merely started.
const READY: &str = "dev.ready";

/// Stopping takes as long as the slowest process's grace, three of them in a row.
const PATIENCE: Duration = Duration::from_secs(90);

/// Starts the background process, shows its progress and returns when it is ready.
pub(crate) async fn start(project: &Project, port: Option<u16>, json: bool) -> Result<ExitCode> {
    if project.is_running()? {
        return already_up(project, json);
    }
    retract(project)?;
    let log = project.log("dev");
    let logs = project.own("logs");
    fs::create_dir_all(&logs).with_context(|| format!("create {}", logs.display()))?;
    let output = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&log)
        .with_context(|| format!("open {}", log.display()))?;
    let errors = output.try_clone().context("share the log file")?;
    let program = std::env::current_exe().context("find the running program")?;
    let mut command = Command::new(program);
    command
        .args(["dev", "--background"])
        .current_dir(&project.root)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        // Not the terminal's group: Ctrl-C there is not meant for it.
        .process_group(0);
    if let Some(port) = port {
        command.args(["--port", &port.to_string()]);
    }
    let mut child = command.spawn().context("start the background process")?;

    let mut log = File::open(&log).with_context(|| format!("read {}", log.display()))?;
    let mut shown = 0;
    loop {
        // Looked at before the log is read, so that its last lines are shown too.
        let ready = project.own(READY).exists();
        let ended = child.try_wait().context("look after the background process")?;
        shown += show_from(&mut log, shown)?;
        if let Some(status) = ended {
            bail!("the background process ended ({status})");
        }
        if ready {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    let state = DevState::load(project)?.context("read .freehold/dev.json")?;
    print_ready(project, &state, json)?;
    line("It runs in the background; `freehold dev --stop` stops it.");
    Ok(ExitCode::SUCCESS)
}

/// Copies what is new in the log to stderr and says how much that was.
fn show_from(log: &mut File, position: u64) -> Result<u64> {
    let mut text = String::new();
    log.seek(SeekFrom::Start(position)).context("read the log")?;
    let length = log.read_to_string(&mut text).context("read the log")?;
    if length > 0 {
        line(text.trim_end_matches('\n'));
    }
    Ok(length as u64)
}

/// Says that the stack is ready.
pub(crate) fn announce(project: &Project) -> Result<()> {
    let path = project.own(READY);
    fs::write(&path, "").with_context(|| format!("write {}", path.display()))
}

/// Takes that back.
pub(crate) fn retract(project: &Project) -> Result<()> {
    let path = project.own(READY);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Stops the running stack, wherever it was started, and waits until it is gone.
pub(crate) async fn stop(project: &Project) -> Result<()> {
    let pid = project.running_pid().context("read .freehold/dev.pid")?;
    send_signal("TERM", pid)?;
    let started = Instant::now();
    while project.is_running()? {
        if started.elapsed() > PATIENCE {
            return Err(hinted(
                format!("process {pid} does not end"),
                format!("`kill -KILL {pid}` ends it and every process it started"),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Says whether a stack is up.
pub(crate) async fn status(project: &Project, json: bool) -> Result<ExitCode> {
    let running = project.is_running()?;
    let state = DevState::load(project)?.filter(|_| running);
    let pid = project.running_pid().filter(|_| running);
    let healthy = match &state {
        Some(state) => is_healthy(&state.server_url).await,
        None => false,
    };
    let word = match (running, healthy) {
        (true, true) => "running",
        (true, false) => "not healthy, or still starting",
        (false, _) => "stopped",
    };
    if json {
        let slugs = state.iter().flat_map(|state| &state.tenants).map(|tenant| &tenant.slug);
        let document = serde_json::json!({
            "running": running,
            "healthy": healthy,
            "pid": pid,
            "server_url": state.as_ref().map(|state| &state.server_url),
            "tenants": slugs.collect::<Vec<_>>(),
            "accounts_file": project.own("dev.json"),
        });
        result_line(&document.to_string());
    } else {
        let mut text = format!("Freehold is {word}.");
        if let Some(state) = &state {
            text.push_str(&format!("\n  server    {}", state.server_url));
            for tenant in &state.tenants {
                text.push_str(&format!("\n  client    {} ({})", tenant.slug, tenant.name));
            }
            text.push_str(&format!("\n  accounts  {}", project.own("dev.json").display()));
            text.push_str(&format!("\n  logs      {}", project.own("logs").display()));
        }
        result_line(&text);
    }
    Ok(if running { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn is_healthy(url: &str) -> bool {
    let Ok(http) = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(3)).build() else {
        return false;
    };
    http.get(format!("{url}/api/health")).send().await.is_ok_and(|answer| answer.status().is_success())
}
