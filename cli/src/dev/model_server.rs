//! The local model server: a small real model behind an OpenAI-compatible API.
//!
//! This module knows how to start it and when it is ready. What it serves, and how, is the Python script's
//! business.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::hinted;
use super::process::{POLL, StopSignal, Supervised, SupervisedCommand};
use super::project::Project;

/// The name under which the script serves its model.
pub(crate) const MODEL_NAME: &str = "smollm2-135m";

/// Away from common development servers, and below the ports a system hands out for outgoing connections.
const FIRST_PORT: u16 = 18_080;

/// Loading takes about a second; a busy machine may need much longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running model server.
#[derive(Debug)]
pub(crate) struct ModelServer {
    process: Supervised,
    port: u16,
}

impl ModelServer {
    /// Starts it, on the same port as last time if that is free, and waits until the model is loaded.
    pub(crate) async fn start(project: &Project, http: &reqwest::Client, last_port: Option<u16>) -> Result<Self> {
        let python = project.python();
        if !python.exists() {
            return Err(hinted(
                format!("the model server's Python environment, {}, is missing", python.display()),
                "run `make setup`",
            ));
        }
        let port = first_free_port(last_port, FIRST_PORT)?;
        let process = SupervisedCommand::new(&python, project.log("model"))
            .arg(project.model_server())
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .directory(&project.root)
            // Nothing is lost when it is killed, and an answer under way may take long.
            .stop_with(StopSignal::Terminate, Duration::from_secs(3))
            .spawn()?;
        let mut server = Self { process, port };
        server.wait_until_ready(http).await?;
        Ok(server)
    }

    async fn wait_until_ready(&mut self, http: &reqwest::Client) -> Result<()> {
        let started = Instant::now();
        let health = format!("http://127.0.0.1:{}/health", self.port);
        loop {
            if let Some(code) = self.process.exit_code()? {
                bail!("the model server ended with code {code}; {}", self.process.log_tail());
            }
            match http.get(&health).send().await {
                Ok(answer) if answer.status().is_success() => return Ok(()),
                _ if started.elapsed() > PATIENCE => {
                    bail!("the model server does not become ready; {}", self.process.log_tail());
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// The base URL as an OpenAI-compatible client wants it.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn process(&mut self) -> &mut Supervised {
        &mut self.process
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}

/// The preferred port when it is free, else the first free one from `start`.
pub(crate) fn first_free_port(preferred: Option<u16>, start: u16) -> Result<u16> {
    preferred
        .into_iter()
        .chain(start..start.saturating_add(500))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .with_context(|| format!("find a free port from {start} on"))
}
