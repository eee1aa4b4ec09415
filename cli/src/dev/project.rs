//! Where a clone keeps things, and the lock that lets one stack run in it at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::account::create_directory;
use super::{files, hinted};

/// A clone of Freehold, found from the working directory.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    pub(crate) root: PathBuf,
}

/// Held by the one running stack. The kernel releases it with its holder, so that it is never stale, which
/// a file with a process id can be.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl Project {
    /// The nearest directory, from the working directory upward, which is a clone of Freehold.
    pub(crate) fn find() -> Result<Self> {
        let here = std::env::current_dir().context("find the working directory")?;
        here.ancestors()
            .find(|directory| directory.join(MODEL_SERVER).exists())
            .map(|root| Self { root: root.to_owned() })
            .ok_or_else(|| {
                hinted(
                    format!("{} is not inside a clone of Freehold", here.display()),
                    "`freehold dev` runs the local stack of a clone: change into one first",
                )
            })
    }

    pub(crate) fn own(&self, name: &str) -> PathBuf {
        self.root.join(".freehold").join(name)
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.own("logs").join(format!("{name}.log"))
    }

    pub(crate) fn model_server(&self) -> PathBuf {
        self.root.join(MODEL_SERVER)
    }

    pub(crate) fn python(&self) -> PathBuf {
        self.root.join(".dev/venv/bin/python")
    }

    /// Takes the lock; `None` when a stack is up. Writes our process id beside it, for `--stop`.
    pub(crate) fn lock(&self) -> Result<Option<RunLock>> {
        let Some(file) = self.try_lock()? else {
            return Ok(None);
        };
        let pid = format!("{}\n", std::process::id());
        files::write_private(&self.own("dev.pid"), pid.as_bytes())?;
        Ok(Some(RunLock { _file: file }))
    }

    /// Whether a stack is up here.
    pub(crate) fn is_running(&self) -> Result<bool> {
        Ok(self.own("dev.lock").exists() && self.try_lock()?.is_none())
    }

    /// The process id of the stack that is up.
    pub(crate) fn running_pid(&self) -> Option<u32> {
        fs::read_to_string(self.own("dev.pid")).ok()?.trim().parse().ok()
    }

    fn try_lock(&self) -> Result<Option<File>> {
        create_directory(&self.root.join(".freehold"), 0o700)?;
        let path = self.own("dev.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }
}

const MODEL_SERVER: &str = "scripts/model_server.py";

/// The program `name` beside the one that runs now: they are built together and belong together.
pub(crate) fn sibling_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    // A test binary stands in `deps`, one directory below the programs.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory: &Path| directory.join(name))
        .find(|program| program.exists())
        .ok_or_else(|| {
            hinted(format!("the program {name} is not beside {}", own.display()), "run `cargo build --workspace`")
        })
}
