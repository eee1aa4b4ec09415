//! `pg_dump` and `pg_restore`: finding them, checking their version, running them with an address.
//!
//! A credential reaches them neither as an argument nor through the environment, which other programs could look at, nor
//! through a file with a name, which a killed server would leave behind: it is in a file that has no name any more,
//! handed over as the one standard stream that the program does not use.
//!
//! A program under way is killed when its [`Dump`] or [`Restore`] is dropped. If this process is killed, the pipe to it
//! closes: `pg_dump` dies of it at its next write, and `pg_restore` meets the end of its input and, being in one
//! transaction, leaves nothing.

use std::fs::{File, OpenOptions};
use std::io::{Seek, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use bytes::Bytes;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::secrets::DatabaseUrl;

/// How much is read at once.
const PIECE: usize = 64 * 1024;
/// How much of what a program says is kept.
const MOST_SAID: u64 = 64 * 1024;
/// How long of that one line may be.
const LONGEST_LINE: usize = 300;

/// Why a program did not do its work.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It is not there.
    #[error(
        "{program} cannot be run{}: install the PostgreSQL client programs, and set FREEHOLD_POSTGRES_CLIENT_DIR to \
         their directory if they are not in the PATH", place(.directory)
    )]
    Missing {
        /// Which one.
        program: &'static str,
        /// Where it was looked for.
        directory: Option<PathBuf>,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is older than the server.
    #[error(
        "{program} is version {found}, and the database server is version {server}: install PostgreSQL client programs \
         of version {server}, and set FREEHOLD_POSTGRES_CLIENT_DIR to their directory"
    )]
    Unsuitable {
        /// Which one.
        program: &'static str,
        /// Its major version.
        found: u32,
        /// The server's.
        server: u32,
    },
    /// It ended badly. The lines are what it said, without what may hold data.
    #[error("{program} ended badly")]
    Failed {
        /// Which one.
        program: &'static str,
        /// What it said, for the log.
        #[source]
        said: Said,
    },
    /// A pipe or the handing over of the credential failed.
    #[error("{program} could not be spoken to")]
    Io {
        /// Which one.
        program: &'static str,
        /// What failed.
        #[source]
        source: std::io::Error,
    },
}

/// What a program said on its way to a bad end.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Said(String);

fn place(directory: &Option<PathBuf>) -> String {
    match directory {
        Some(directory) => format!(" in {}", directory.display()),
        None => String::new(),
    }
}

/// The PostgreSQL client programs of this machine.
#[derive(Debug, Clone)]
pub struct PostgresPrograms {
    directory: Option<PathBuf>,
    scratch: PathBuf,
}

const DUMP: &str = "pg_dump";
const RESTORE: &str = "pg_restore";

impl PostgresPrograms {
    /// The programs in a directory, or in the PATH without one. `scratch` is a directory that this process may write
    /// to; nothing stays there.
    pub fn new(directory: Option<PathBuf>, scratch: &Path) -> Self {
        Self { directory, scratch: scratch.to_owned() }
    }

    fn path(&self, program: &'static str) -> PathBuf {
        match &self.directory {
            Some(directory) => directory.join(program),
            None => PathBuf::from(program),
        }
    }

    /// Whether `pg_dump` suits a server, whose version is for example 180006. It refuses a newer server by itself, but
    /// in words of its own.
    pub async fn check_dump(&self, server: i32) -> Result<(), ProgramError> {
        let (found, server) = (self.version(DUMP).await?, major(server));
        if found < server { Err(ProgramError::Unsuitable { program: DUMP, found, server }) } else { Ok(()) }
    }

    /// Whether `pg_restore` suits a server. From version 17 on it sets a parameter that older servers do not know.
    pub async fn check_restore(&self, server: i32) -> Result<(), ProgramError> {
        let (found, server) = (self.version(RESTORE).await?, major(server));
        let unsuitable = found < server || (found >= 17 && server < 17);
        if unsuitable { Err(ProgramError::Unsuitable { program: RESTORE, found, server }) } else { Ok(()) }
    }

    /// Whether both are there.
    pub async fn check_present(&self) -> Result<(), ProgramError> {
        self.version(DUMP).await?;
        self.version(RESTORE).await.map(drop)
    }

    /// The major version a program gives itself: `pg_dump (PostgreSQL) 18.1 (Debian …)`.
    async fn version(&self, program: &'static str) -> Result<u32, ProgramError> {
        let missing = |source| ProgramError::Missing { program, directory: self.directory.clone(), source };
        let output = Command::new(self.path(program))
            .arg("--version")
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(missing)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let digits = |word: &str| word.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
        text.split_whitespace()
            .find_map(digits)
            .ok_or_else(|| missing(std::io::Error::other("it does not say its version")))
    }

    fn command(&self, program: &'static str, url: &DatabaseUrl) -> Command {
        let mut command = Command::new(self.path(program));
        command.env_clear().current_dir("/").kill_on_drop(true).stderr(Stdio::piped());
        for kept in ["PATH", "LD_LIBRARY_PATH"] {
            if let Some(value) = std::env::var_os(kept) {
                command.env(kept, value);
            }
        }
        // Messages are read for the word that marks an error.
        command.env("LC_ALL", "C").env("PGCONNECT_TIMEOUT", "10").env("PGCLIENTENCODING", "UTF8");
        command.envs(url.libpq_environment()).arg("--no-password");
        command
    }

    /// The password as a file without a name.
    fn password_file(&self, program: &'static str, url: &DatabaseUrl) -> Result<File, ProgramError> {
        let failed = |source| ProgramError::Io { program, source };
        let path = self.scratch.join(format!(".pgpass-{:032x}", rand::random::<u128>()));
        let mut file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        // Unnamed before anything is written to it.
        std::fs::remove_file(&path).map_err(failed)?;
        file.write_all(url.libpq_password_line().as_bytes()).map_err(failed)?;
        file.rewind().map_err(failed)?;
        Ok(file)
    }

    /// Begins to dump a database as of a snapshot that another session exported. Of what is in it, the schemas and the
    /// table of the schema `public` that are named are left out. With an address, that one is connected to, whatever the
    /// URL's name leads to; the certificate is still that of the name.
    pub fn dump(
        &self,
        url: &DatabaseUrl,
        address: Option<IpAddr>,
        snapshot: &str,
        schemas: &[String],
        table: &str,
    ) -> Result<Dump, ProgramError> {
        let mut command = self.command(DUMP, url);
        if let Some(address) = address {
            command.env("PGHOSTADDR", address.to_string());
        }
        command.args(["--format=custom", "--no-owner", "--no-acl", "--no-comments", "--lock-wait-timeout=60000"]);
        command.args(["--no-publications", "--no-subscriptions", "--no-security-labels", "--extension=plpgsql"]);
        command.arg(format!("--snapshot={snapshot}"));
        // Patterns; in double quotes they mean themselves.
        command.arg(format!("--exclude-table=public.\"{table}\""));
        for schema in schemas {
            command.arg(format!("--exclude-schema=\"{}\"", schema.replace('"', "\"\"")));
        }
        command.env("PGPASSFILE", "/dev/stdin").stdin(self.password_file(DUMP, url)?).stdout(Stdio::piped());
        let mut child = spawn(&mut command, DUMP, self.directory.as_ref())?;
        let output = child.stdout.take().ok_or_else(|| closed(DUMP))?;
        Ok(Dump { said: listen(&mut child), child, output })
    }

    /// Begins to restore a dump into an empty database, in one transaction, everything belonging to `owner`.
    pub fn restore(&self, url: &DatabaseUrl, owner: &str) -> Result<Restore, ProgramError> {
        let mut command = self.command(RESTORE, url);
        command.args(["--format=custom", "--single-transaction", "--exit-on-error", "--no-owner", "--no-acl"]);
        command.arg(format!("--role={owner}")).arg(format!("--dbname={}", url.database()));
        // It prints nothing when it restores into a database, so that stream is free.
        command.env("PGPASSFILE", "/dev/stdout").stdin(Stdio::piped()).stdout(self.password_file(RESTORE, url)?);
        let mut child = spawn(&mut command, RESTORE, self.directory.as_ref())?;
        let input = child.stdin.take().ok_or_else(|| closed(RESTORE))?;
        Ok(Restore { said: listen(&mut child), child, input: Some(input) })
    }
}

fn major(version: i32) -> u32 {
    u32::try_from(version / 10_000).unwrap_or(0)
}

fn spawn(command: &mut Command, program: &'static str, directory: Option<&PathBuf>) -> Result<Child, ProgramError> {
    command.spawn().map_err(|source| ProgramError::Missing { program, directory: directory.cloned(), source })
}

fn closed(program: &'static str) -> ProgramError {
    ProgramError::Io { program, source: std::io::ErrorKind::BrokenPipe.into() }
}

/// Collects what a program says, so that it never waits for somebody to listen.
fn listen(child: &mut Child) -> JoinHandle<String> {
    let stderr = child.stderr.take();
    tokio::spawn(async move {
        let Some(mut stderr) = stderr else { return String::new() };
        let mut said = Vec::new();
        let _ = (&mut stderr).take(MOST_SAID).read_to_end(&mut said).await;
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        errors_of(&String::from_utf8_lossy(&said))
    })
}

/// The lines that name an error. Those after them (DETAIL, CONTEXT, the command) quote rows.
fn errors_of(said: &str) -> String {
    let lines = said.lines().filter(|line| line.contains(": error: ") || line.contains("FATAL:"));
    let cut = |line: &str| line.chars().take(LONGEST_LINE).collect::<String>();
    lines.take(5).map(cut).collect::<Vec<_>>().join(" / ")
}

async fn ended(mut child: Child, said: JoinHandle<String>, program: &'static str) -> Result<(), ProgramError> {
    let status = child.wait().await.map_err(|source| ProgramError::Io { program, source })?;
    let said = said.await.unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    let said = if said.is_empty() { status.to_string() } else { said };
    Err(ProgramError::Failed { program, said: Said(said) })
}

/// A dump under way.
#[derive(Debug)]
pub struct Dump {
    child: Child,
    output: ChildStdout,
    said: JoinHandle<String>,
}

impl Dump {
    /// The next piece; `None` at its end, which says nothing yet of how it ended.
    pub async fn next_piece(&mut self) -> Result<Option<Bytes>, ProgramError> {
        let mut piece = Vec::with_capacity(PIECE);
        let read = self.output.read_buf(&mut piece).await;
        match read.map_err(|source| ProgramError::Io { program: DUMP, source })? {
            0 => Ok(None),
            _ => Ok(Some(piece.into())),
        }
    }

    /// Whether it ended well. A dump that did not is worth nothing.
    pub async fn finish(self) -> Result<(), ProgramError> {
        drop(self.output);
        ended(self.child, self.said, DUMP).await
    }
}

/// A restore under way.
#[derive(Debug)]
pub struct Restore {
    child: Child,
    input: Option<ChildStdin>,
    said: JoinHandle<String>,
}

impl Restore {
    /// Hands a piece of the dump over. `false` means that it listens no more, and [`Restore::finish`] says why.
    pub async fn write(&mut self, piece: &[u8]) -> bool {
        match &mut self.input {
            Some(input) => input.write_all(piece).await.is_ok(),
            None => false,
        }
    }

    /// Ends the input and waits until everything is committed.
    pub async fn finish(mut self) -> Result<(), ProgramError> {
        if let Some(mut input) = self.input.take() {
            let _ = input.shutdown().await;
        }
        ended(self.child, self.said, RESTORE).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_is_said_only_errors_are_kept_and_no_rows() {
        let said = "pg_restore: connecting\n\
                    pg_restore: error: could not execute query: ERROR:  duplicate key value\n\
                    DETAIL:  Key (email)=(canary@acme.example) already exists.\n\
                    Command was: COPY canary";
        assert_eq!(errors_of(said), "pg_restore: error: could not execute query: ERROR:  duplicate key value");
    }

    #[tokio::test]
    async fn a_missing_program_says_what_to_install() {
        let programs = PostgresPrograms::new(Some(PathBuf::from("/nowhere")), Path::new("/tmp"));
        let error = programs.check_present().await.unwrap_err().to_string();
        assert!(error.contains("pg_dump cannot be run in /nowhere") && error.contains("FREEHOLD_POSTGRES_CLIENT_DIR"));
    }
}
