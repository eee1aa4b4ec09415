//! Child processes that cannot outlive us.
//!
//! A `Supervised` process runs under a few lines of `sh` which hold the reading end of a pipe; we hold the
//! writing end. The kernel closes ours when we die, however we die (SIGKILL included), the shell reads
//! end-of-file and stops the process. No `Drop` and no signal handler has to run for that.
//!
//! This module knows processes, signals and log files. It must never know what Postgres, a model server or
//! Freehold is.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a waiting loop looks again: short enough not to be felt, long enough to cost nothing.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// The supervisor. `$1` stop signal, `$2` tenths of a second before SIGKILL, `$3` a directory to delete once
/// the process is gone (or nothing), the rest the command.
///
/// The pipe moves to descriptor 3 because `sh` gives background commands `/dev/null` as their stdin. A line
/// on the pipe is a signal to pass on; end-of-file means "stop". The reader is a process of its own, so that
/// the main shell can sit in `wait` and end together with the command.
const SUPERVISOR: &str = r#"
stop=$1 grace=$2 remove=$3
shift 3
exec 3<&0 </dev/null
"$@" 3<&- &
child=$!
(
  while read -r signal <&3; do kill -"$signal" "$child"; done
  kill -"$stop" "$child"
  while [ "$grace" -gt 0 ] && kill -0 "$child"; do sleep 0.1; grace=$((grace - 1)); done
  kill -KILL "$child"
) 2>/dev/null >/dev/null &
watcher=$!
exec 3<&-
wait "$child"
status=$?
kill "$watcher" 2>/dev/null
if [ -n "$remove" ]; then rm -rf "$remove"; fi
exit "$status"
"#;

/// The signal which asks a process to end in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// What most programs expect.
    Terminate,
    /// What Postgres calls a fast shutdown: it disconnects its clients and ends cleanly.
    Interrupt,
}

impl StopSignal {
    fn name(self) -> &'static str {
        match self {
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
        }
    }
}

/// An account a process runs as when we are root and it must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What to run, and how it is to be stopped.
#[derive(Debug, Clone)]
pub struct SupervisedCommand {
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    unset: Vec<OsString>,
    directory: Option<PathBuf>,
    log: PathBuf,
    stop_signal: StopSignal,
    grace: Duration,
    run_as: Option<RunAs>,
    remove_afterwards: Option<PathBuf>,
}

impl SupervisedCommand {
    /// A command whose output, both kinds, goes to the file `log`.
    pub fn new(program: impl Into<PathBuf>, log: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            envs: Vec::new(),
            unset: Vec::new(),
            directory: None,
            log: log.into(),
            stop_signal: StopSignal::Terminate,
            grace: Duration::from_secs(10),
            run_as: None,
            remove_afterwards: None,
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable; the rest of the environment is inherited.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// Keeps an environment variable of ours from it.
    #[must_use]
    pub fn without_env(mut self, name: impl Into<OsString>) -> Self {
        self.unset.push(name.into());
        self
    }

    /// The directory it starts in.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// The signal that stops it, and how long it may take before it is killed.
    #[must_use]
    pub fn stop_with(mut self, signal: StopSignal, grace: Duration) -> Self {
        self.stop_signal = signal;
        self.grace = grace;
        self
    }

    /// Runs it as another account (only root may).
    #[must_use]
    pub fn run_as(mut self, account: Option<RunAs>) -> Self {
        self.run_as = account;
        self
    }

    /// Deletes a directory once the process is gone. The supervisor does it, so it happens even when we are
    /// killed.
    #[must_use]
    pub fn remove_afterwards(mut self, directory: Option<PathBuf>) -> Self {
        self.remove_afterwards = directory;
        self
    }

    /// Starts it.
    pub fn spawn(&self) -> Result<Supervised> {
        let log = open_log(&self.log)?;
        let log_again = log.try_clone().context("share the log file")?;
        let tenths = u64::try_from(self.grace.as_millis() / 100).unwrap_or(u64::MAX);
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(SUPERVISOR)
            .arg("freehold-supervisor")
            .arg(self.stop_signal.name())
            .arg(tenths.to_string())
            .arg(self.remove_afterwards.as_deref().unwrap_or(Path::new("")))
            .arg(&self.program)
            .args(&self.args)
            .envs(self.envs.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(log_again)
            // A group of its own: Ctrl-C in the terminal reaches us alone, and we stop things in order.
            .process_group(0);
        for name in &self.unset {
            command.env_remove(name);
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        if let Some(account) = self.run_as {
            command.uid(account.uid).gid(account.gid);
        }
        let name = self
            .program
            .file_name()
            .map_or_else(|| self.program.display().to_string(), |name| name.to_string_lossy().into_owned());
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let pipe = child.stdin.take();
        Ok(Supervised { name, child, pipe, grace: self.grace, log: self.log.clone() })
    }

    /// Runs it to its end and fails, with the end of its log, when it does not exit with 0 in time.
    pub async fn run_to_end(&self, limit: Duration) -> Result<()> {
        let mut process = self.spawn()?;
        let started = Instant::now();
        loop {
            match process.exit_code()? {
                Some(0) => return Ok(()),
                Some(code) => bail!("{} ended with code {code}\n{}", process.name, process.log_tail()),
                None if started.elapsed() > limit => {
                    let name = process.name.clone();
                    process.stop().await?;
                    bail!("{name} did not end within {} seconds", limit.as_secs());
                }
                None => tokio::time::sleep(POLL).await,
            }
        }
    }
}

/// A running child that ends with us. Dropping it stops it too, without waiting.
///
/// It is a std process watched by polling, not a tokio one, because a test harness shares it between
/// runtimes that come and go.
#[derive(Debug)]
pub struct Supervised {
    name: String,
    child: Child,
    pipe: Option<ChildStdin>,
    grace: Duration,
    log: PathBuf,
}

impl Supervised {
    /// The program's file name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The exit code once it has ended, `None` while it runs. A death by signal N is 128 + N.
    pub fn exit_code(&mut self) -> Result<Option<i32>> {
        let status = self.child.try_wait().with_context(|| format!("look after {}", self.name))?;
        // A supervisor that is killed itself has no code; -1 still says "ended, and badly".
        Ok(status.map(|status| status.code().unwrap_or(-1)))
    }

    /// Sends the process a signal by its name, such as `KILL`. The process may have ended meanwhile: that is
    /// seen in `exit_code`, it is no error here.
    pub fn signal(&mut self, name: &str) {
        if let Some(pipe) = &mut self.pipe {
            // A broken pipe means that the supervisor is gone, and with it the process.
            let _ = writeln!(pipe, "{name}");
        }
    }

    /// Asks it to stop and waits until it is gone.
    pub async fn stop(mut self) -> Result<()> {
        self.pipe = None;
        let limit = self.grace + Duration::from_secs(10);
        let started = Instant::now();
        while self.exit_code()?.is_none() {
            if started.elapsed() > limit {
                bail!("{} does not stop, and does not die when killed", self.name);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The last lines of its log, indented for an error message.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

/// Opens a fresh log, keeping the previous run's beside it: after a crash that is the one to read.
fn open_log(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    if path.exists() {
        fs::rename(path, path.with_extension("previous.log"))
            .with_context(|| format!("keep the previous {}", path.display()))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// The last lines of a log, and where to read the rest.
pub(crate) fn log_tail(path: &Path) -> String {
    const BYTES: u64 = 3_000;
    const LINES: usize = 15;
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if file.seek(SeekFrom::Start(length.saturating_sub(BYTES))).is_ok() {
            // A log which cannot be read leaves the tail empty; the message still names the file.
            let _ = file.read_to_end(&mut text);
        }
    }
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<&str> = text.lines().rev().take(LINES).collect();
    lines.reverse();
    let mut tail = format!("its log, {}, ends with:", path.display());
    for line in lines {
        tail.push_str("\n    ");
        tail.push_str(line);
    }
    tail
}

/// Whether a process of this id exists. Only `sh` is needed: `kill` is built into it.
pub(crate) fn process_exists(pid: u32) -> bool {
    shell_kill("0", pid)
}

/// Sends a signal to a process that is not our child.
pub(crate) fn send_signal(name: &str, pid: u32) -> Result<()> {
    if shell_kill(name, pid) { Ok(()) } else { bail!("could not send SIG{name} to process {pid}") }
}

fn shell_kill(signal: &str, pid: u32) -> bool {
    Command::new("sh")
        .args(["-c", "kill -\"$1\" \"$2\"", "kill", signal, &pid.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(10), "waited too long until {what}");
            std::thread::sleep(POLL);
        }
    }

    fn sleeper(directory: &Path) -> SupervisedCommand {
        SupervisedCommand::new("sh", directory.join("sleeper.log"))
            .args(["-c", "echo $$ > \"$0\"; exec sleep 600"])
            .arg(directory.join("pid"))
    }

    fn pid_in(directory: &Path) -> u32 {
        let file = directory.join("pid");
        let read = || fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
        wait_until("the process has written its id", || read().is_some());
        read().unwrap()
    }

    #[tokio::test]
    async fn stop_ends_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let process = sleeper(directory.path()).spawn().unwrap();
        let pid = pid_in(directory.path());
        assert!(process_exists(pid));
        process.stop().await.unwrap();
        assert!(!process_exists(pid));
    }

    #[tokio::test]
    async fn a_process_deaf_to_its_stop_signal_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let process = SupervisedCommand::new("sh", directory.path().join("deaf.log"))
            .args(["-c", "trap '' TERM; echo $$ > \"$0\"; while :; do sleep 0.05; done"])
            .arg(directory.path().join("pid"))
            .stop_with(StopSignal::Terminate, Duration::from_millis(300))
            .spawn()
            .unwrap();
        let pid = pid_in(directory.path());
        process.stop().await.unwrap();
        assert!(!process_exists(pid));
    }

    #[test]
    fn its_own_end_is_noticed_with_code_and_log() {
        let directory = tempfile::tempdir().unwrap();
        let mut process = SupervisedCommand::new("sh", directory.path().join("short.log"))
            .args(["-c", "echo last words; exit 7"])
            .spawn()
            .unwrap();
        wait_until("it has ended", || process.exit_code().unwrap().is_some());
        assert_eq!(process.exit_code().unwrap(), Some(7));
        assert!(process.log_tail().contains("last words"));
    }

    #[test]
    fn a_signal_is_passed_on_and_the_directory_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let doomed = directory.path().join("doomed");
        fs::create_dir(&doomed).unwrap();
        let mut process = sleeper(directory.path()).remove_afterwards(Some(doomed.clone())).spawn().unwrap();
        pid_in(directory.path());
        process.signal("KILL");
        wait_until("it has ended", || process.exit_code().unwrap().is_some());
        assert_eq!(process.exit_code().unwrap(), Some(128 + 9));
        assert!(!doomed.exists());
    }

    /// The parent of the next test: this test binary, run once more with a directory in the environment.
    #[test]
    #[ignore = "run by a_killed_parent_takes_its_process_along, in a process of its own"]
    fn parent_to_be_killed() {
        let Some(directory) = std::env::var_os("FREEHOLD_TEST_DIRECTORY") else {
            return;
        };
        let _process = sleeper(Path::new(&directory)).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(60));
    }

    #[test]
    fn a_killed_parent_takes_its_process_along() {
        let directory = tempfile::tempdir().unwrap();
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "dev::process::tests::parent_to_be_killed"])
            .env("FREEHOLD_TEST_DIRECTORY", directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = pid_in(directory.path());
        assert!(process_exists(pid));
        parent.kill().unwrap();
        parent.wait().unwrap();
        wait_until("the orphan is gone", || !process_exists(pid));
    }
}
