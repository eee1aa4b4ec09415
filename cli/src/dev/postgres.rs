//! An embedded Postgres: a real server with a data directory, a port and a password of its own.
//!
//! The local stack and the tests stand on it. It listens on the loopback address only and on no socket, it
//! is never the machine's own Postgres, and it ends with the process that started it. This module knows
//! nothing of Freehold's databases and tables.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio_postgres::NoTls;

use super::account::{create_directory, give, ordinary_account};
use super::binaries::{self, SHARED_HOME};
use super::process::{POLL, RunAs, StopSignal, Supervised, SupervisedCommand, log_tail, process_exists};
use super::{files, hinted};

const SUPERUSER: &str = "postgres";

/// Away from 5432 and its neighbours, and below the ports a system hands out for outgoing connections, which
/// would otherwise take ours while we are stopped.
const FIRST_PORT: u16 = 15_432;
const LAST_PORT: u16 = 19_999;

/// A server that needs longer than this is not coming.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the data lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostgresHome {
    /// `.freehold/postgres` in the project: kept, with its port and password, from one start to the next.
    Project,
    /// A fresh directory, deleted when the server ends.
    Temporary,
}

/// What kind of server to start.
#[derive(Debug, Clone)]
pub struct EmbeddedPostgresOptions {
    /// The project's directory, in which `.dev` and `.freehold` are.
    pub project: PathBuf,
    /// Where the data lives.
    pub home: PostgresHome,
    /// Whether a commit survives a power cut. Off is much faster, and enough for data nobody keeps.
    pub durable: bool,
    /// How many connections it takes.
    pub max_connections: u32,
    /// Where its log goes.
    pub log: PathBuf,
}

impl EmbeddedPostgresOptions {
    /// A durable server whose data stays in the project.
    pub fn for_development(project: impl Into<PathBuf>) -> Self {
        let project = project.into();
        let log = project.join(".freehold/logs/postgres.log");
        Self { project, home: PostgresHome::Project, durable: true, max_connections: 200, log }
    }

    /// A fast throw-away server with room for many connections.
    pub fn for_tests(project: impl Into<PathBuf>) -> Self {
        let project = project.into();
        let log = project.join(format!("target/test-postgres/{}.log", files::random_name()));
        Self { project, home: PostgresHome::Temporary, durable: false, max_connections: 400, log }
    }
}

/// What a kept server remembers between two starts. It stands beside the data, so that both come and go
/// together.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Remembered {
    port: u16,
    password: String,
}

/// A running server. It stops when this value is dropped or its process dies; `stop` also waits for that.
#[derive(Debug)]
pub struct EmbeddedPostgres {
    process: Supervised,
    port: u16,
    password: String,
}

impl EmbeddedPostgres {
    /// Starts the server, making its data directory if there is none, and waits until it accepts connections.
    pub async fn start(options: EmbeddedPostgresOptions) -> Result<Self> {
        for _ in 0..5 {
            if let Some(running) = Self::attempt(&options).await? {
                return Ok(running);
            }
        }
        bail!("found no port for Postgres: each was taken by another program in the last moment")
    }

    /// `None` when a new server's port was taken between our look at it and the server's.
    async fn attempt(options: &EmbeddedPostgresOptions) -> Result<Option<Self>> {
        let mut account = ordinary_account()?;
        let base = match options.home {
            PostgresHome::Project => project_home(&options.project, account)?,
            PostgresHome::Temporary => temporary_home(account)?,
        };
        let data = base.join("data");
        if account.is_some()
            && let Ok(metadata) = fs::metadata(&data)
            && metadata.uid() != 0
        {
            // A project first started by an ordinary user and now by root: its data still is that user's.
            account = Some(RunAs { uid: metadata.uid(), gid: metadata.gid() });
        }
        let bin = binaries::find(&options.project, account)?;
        let memory = base.join("state.json");
        let initialised = data.join("PG_VERSION").exists();
        let Remembered { port, password } = match files::read_json(&memory)? {
            Some(remembered) => remembered,
            None if initialised => {
                return Err(hinted(
                    format!("the database in {} has lost its password file", base.display()),
                    "`freehold dev --reset` starts over with empty databases",
                ));
            }
            None => Remembered { port: free_port()?, password: files::random_password() },
        };
        if initialised {
            end_of_previous(&data).await?;
            wait_for_port(port).await?;
        } else {
            // Before the data: without its password a database is worth nothing.
            files::write_json(&memory, &Remembered { port, password: password.clone() })?;
            initialise(&bin, &base, options, account, &password).await?;
        }

        let mut process = serve(&bin, &base, options, account, port)?;
        match wait_until_accepting(&mut process, port, &password).await {
            Ok(()) => Ok(Some(Self { process, port, password })),
            Err(error) => {
                let taken = !initialised && log_tail(&options.log).contains("Address already in use");
                process.stop().await?;
                if !taken {
                    return Err(error);
                }
                if options.home == PostgresHome::Project {
                    // It is a minute old and empty; the next attempt chooses another port.
                    delete_project_home(&options.project)?;
                }
                Ok(None)
            }
        }
    }

    /// A URL of the superuser's for one database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{SUPERUSER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The password of the superuser, `postgres`.
    pub fn superuser_password(&self) -> &str {
        &self.password
    }

    /// Creates a database unless it is there.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let (client, connection) =
            tokio_postgres::connect(&self.url("postgres"), NoTls).await.context("connect to Postgres")?;
        let connection = tokio::spawn(connection);
        let work = async {
            let there = client.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await?;
            if there.is_none() {
                let quoted = name.replace('"', "\"\"");
                client.batch_execute(&format!("CREATE DATABASE \"{quoted}\"")).await?;
            }
            Ok::<_, tokio_postgres::Error>(())
        };
        let done = work.await.with_context(|| format!("create the database {name}"));
        drop(client);
        connection.await.context("end the connection to Postgres")?.context("close the connection")?;
        done
    }

    /// The process, to see whether it still runs.
    pub fn process(&mut self) -> &mut Supervised {
        &mut self.process
    }

    /// Shuts it down in good order and waits for that. A temporary data directory is deleted.
    pub async fn stop(self) -> Result<()> {
        self.process.stop().await
    }
}

/// `.freehold/postgres`: a directory, or, when another account must reach it, a link to one outside.
fn project_home(project: &Path, account: Option<RunAs>) -> Result<PathBuf> {
    let own = project.join(".freehold");
    create_directory(&own, 0o700)?;
    let base = own.join("postgres");
    if base.exists() {
        return base.canonicalize().with_context(|| format!("follow {}", base.display()));
    }
    if account.is_none() {
        create_directory(&base, 0o700)?;
        return Ok(base);
    }
    if base.is_symlink() {
        // The directory behind it was deleted by hand: begin anew.
        fs::remove_file(&base).with_context(|| format!("remove {}", base.display()))?;
    }
    let name = project.file_name().map_or_else(|| "project".into(), |name| name.to_string_lossy());
    let outside = Path::new(SHARED_HOME).join(format!("{name}-{}", files::random_name()));
    open_for(&outside, account)?;
    let note = format!("The databases of the Freehold clone in {}\n", project.display());
    fs::write(outside.join("README"), note).with_context(|| format!("write into {}", outside.display()))?;
    symlink(&outside, &base).with_context(|| format!("link {} to {}", base.display(), outside.display()))?;
    Ok(outside)
}

fn temporary_home(account: Option<RunAs>) -> Result<PathBuf> {
    let name = format!("freehold-postgres-{}", files::random_name());
    if account.is_none() {
        let base = std::env::temp_dir().join(name);
        create_directory(&base, 0o700)?;
        return Ok(base);
    }
    // The temporary directory may be closed to others. The parent is the account's: its supervisor deletes.
    let parent = Path::new(SHARED_HOME).join("temporary");
    open_for(&parent, account)?;
    let base = parent.join(name);
    open_for(&base, account)?;
    Ok(base)
}

fn open_for(directory: &Path, account: Option<RunAs>) -> Result<()> {
    create_directory(Path::new(SHARED_HOME), 0o755)?;
    create_directory(directory, 0o700)?;
    give(directory, account)
}

/// Deletes a project's databases. The server must be stopped.
pub(crate) fn delete_project_home(project: &Path) -> Result<()> {
    let base = project.join(".freehold/postgres");
    if base.is_symlink()
        && let Ok(outside) = base.canonicalize()
    {
        fs::remove_dir_all(&outside).with_context(|| format!("delete {}", outside.display()))?;
        fs::remove_file(&base).with_context(|| format!("delete {}", base.display()))?;
    } else if base.exists() {
        fs::remove_dir_all(&base).with_context(|| format!("delete {}", base.display()))?;
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    // Not always the first: two programs that look at the same time should not both find the same port.
    let span = LAST_PORT - FIRST_PORT;
    let offset = rand::random::<u16>() % span;
    (0..span)
        .map(|step| FIRST_PORT + (offset + step) % span)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .context("find a free port for Postgres")
}

/// The clients' databases are registered under the port of the first start: another one would lose them.
async fn wait_for_port(port: u16) -> Result<()> {
    let started = Instant::now();
    while TcpListener::bind(("127.0.0.1", port)).is_err() {
        if started.elapsed() > Duration::from_secs(10) {
            return Err(hinted(
                format!("port {port}, under which this platform's databases are registered, is taken"),
                format!("`lsof -i :{port}` names the program; stop it, or start over with `freehold dev --reset`"),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Waits for a previous server of this directory that is still shutting down, and clears up after one that
/// was cut off with its machine: its process id may by now belong to some other program, which Postgres
/// would take for a running server.
async fn end_of_previous(data: &Path) -> Result<()> {
    let lock = data.join("postmaster.pid");
    let started = Instant::now();
    while let Ok(text) = fs::read_to_string(&lock) {
        let pid: Option<u32> = text.lines().next().and_then(|line| line.trim().parse().ok());
        let Some(pid) = pid.filter(|pid| process_exists(*pid) && is_server_of(*pid, data)) else {
            // Gone since we read it, or left behind: in both cases nobody uses the directory.
            if fs::read_to_string(&lock).is_ok_and(|now| now == text) {
                fs::remove_file(&lock).with_context(|| format!("remove the stale {}", lock.display()))?;
            }
            return Ok(());
        };
        if started.elapsed() > Duration::from_secs(30) {
            return Err(hinted(
                format!("a Postgres server of an earlier run, process {pid}, still uses {}", data.display()),
                format!("`freehold dev --stop`, or `kill -INT {pid}` if no run is up"),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Whether a process is the server of this very directory: its command line names it.
fn is_server_of(pid: u32, data: &Path) -> bool {
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).or_else(|_| {
        std::process::Command::new("ps")
            .args(["-o", "args=", "-p", &pid.to_string()])
            .output()
            .map(|output| output.stdout)
    });
    // When nobody can tell, it is safer to believe the lock.
    command_line.map_or(true, |text| String::from_utf8_lossy(&text).contains(&*data.to_string_lossy()))
}

/// Makes the data directory, beside its place and then renamed: a cut-off `initdb` leaves nothing behind
/// that looks like a database.
async fn initialise(
    bin: &Path,
    base: &Path,
    options: &EmbeddedPostgresOptions,
    account: Option<RunAs>,
    password: &str,
) -> Result<()> {
    let unfinished = base.join("data.unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).with_context(|| format!("delete {}", unfinished.display()))?;
    }
    let password_file = base.join("password");
    files::write_private(&password_file, password.as_bytes())?;
    give(&password_file, account)?;
    let initdb = SupervisedCommand::new(bin.join("initdb"), options.log.with_extension("initdb.log"))
        .arg("--pgdata")
        .arg(&unfinished)
        .arg("--pwfile")
        .arg(&password_file)
        .args(["--username", SUPERUSER, "--auth", "scram-sha-256", "--encoding", "UTF8"])
        // Postgres's own C.UTF-8: the same order of text on every machine, whatever its libc knows.
        .args(["--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"])
        .args(["--no-instructions"])
        .args((!options.durable).then_some("--no-sync"))
        // Passwords are long and random, and a client's every connection would begin with 4096 rounds.
        .args((!options.durable).then_some("--set=scram_iterations=1"))
        .env("LC_ALL", "C")
        .directory(base)
        .run_as(account)
        .run_to_end(PATIENCE * 2)
        .await;
    fs::remove_file(&password_file).with_context(|| format!("remove {}", password_file.display()))?;
    initdb.context("make the database directory")?;
    let data = base.join("data");
    fs::rename(&unfinished, &data).with_context(|| format!("put {} into its place", data.display()))
}

fn serve(
    bin: &Path,
    base: &Path,
    options: &EmbeddedPostgresOptions,
    account: Option<RunAs>,
    port: u16,
) -> Result<Supervised> {
    let mut settings = vec![
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        // No socket: nothing to clash with another server, and no way in without a password.
        "unix_socket_directories=".to_owned(),
        format!("max_connections={}", options.max_connections),
        "log_line_prefix=%m [%p] %d ".to_owned(),
    ];
    if !options.durable {
        // Its databases live for minutes, and there may be hundreds: none of them is worth vacuuming, and no log of
        // what is written is ever read again.
        settings.extend(["fsync=off", "full_page_writes=off", "synchronous_commit=off"].map(str::to_owned));
        settings.extend(["autovacuum=off", "wal_level=minimal", "max_wal_senders=0"].map(str::to_owned));
    }
    SupervisedCommand::new(bin.join("postgres"), &options.log)
        .arg("-D")
        .arg(base.join("data"))
        .args(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]))
        .env("LC_ALL", "C")
        .directory(base)
        .stop_with(StopSignal::Interrupt, Duration::from_secs(15))
        .run_as(account)
        .remove_afterwards((options.home == PostgresHome::Temporary).then(|| base.to_owned()))
        .spawn()
}

async fn wait_until_accepting(process: &mut Supervised, port: u16, password: &str) -> Result<()> {
    let started = Instant::now();
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user(SUPERUSER)
        .password(password)
        .dbname("postgres")
        .connect_timeout(Duration::from_secs(5));
    loop {
        if let Some(code) = process.exit_code()? {
            bail!("Postgres ended at once, with code {code}; {}", process.log_tail());
        }
        match config.connect(NoTls).await {
            Ok((client, connection)) => {
                drop(client);
                // With its client gone the connection says goodbye and ends; how does not matter.
                let _ = connection.await;
                return Ok(());
            }
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("Postgres accepts no connection; {}", process.log_tail()));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    #[tokio::test]
    async fn a_temporary_server_serves_and_leaves_nothing() {
        let postgres = EmbeddedPostgres::start(EmbeddedPostgresOptions::for_tests(project())).await.unwrap();
        postgres.create_database("one \"quoted\" name").await.unwrap();
        postgres.create_database("again").await.unwrap();
        postgres.create_database("again").await.unwrap();
        let (client, connection) = tokio_postgres::connect(&postgres.url("again"), NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let ask = async |sql: &str| client.query_one(sql, &[]).await.unwrap().get::<_, String>(0);
        assert_eq!(ask("SHOW max_connections").await, "400");
        assert_eq!(ask("SHOW server_encoding").await, "UTF8");
        assert_eq!(ask("SELECT datlocale FROM pg_database WHERE datname = 'again'").await, "C.UTF-8");
        let data = PathBuf::from(ask("SHOW data_directory").await);
        assert!(data.exists());
        drop(client);
        connection.await.unwrap().unwrap();

        let wrong = postgres.url("again").replace(postgres.superuser_password(), "guess");
        assert!(tokio_postgres::connect(&wrong, NoTls).await.is_err(), "a password is asked for");
        postgres.stop().await.unwrap();
        assert!(!data.exists(), "the temporary directory is deleted");
    }
}
