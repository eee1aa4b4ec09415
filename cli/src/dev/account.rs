//! The account Postgres runs as: ours, or an ordinary one when we are root, which Postgres refuses.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::hinted;
use super::process::RunAs;

/// The account to give to Postgres, `None` when our own will do.
pub fn ordinary_account() -> Result<Option<RunAs>> {
    if id(&["-u"])? != Some(0) {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let (Some(uid), Some(gid)) = (id(&["-u", name])?, id(&["-g", name])?) {
            return Ok(Some(RunAs { uid, gid }));
        }
    }
    Err(hinted(
        "Postgres refuses to run as root, and this machine has neither an account `postgres` nor `nobody`",
        "create one (`useradd --system postgres`), or run as an ordinary user",
    ))
}

fn id(args: &[&str]) -> Result<Option<u32>> {
    let output = Command::new("id").args(args).output().context("run `id`")?;
    if !output.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(Some(text.trim().parse().context("understand what `id` answers")?))
}

/// Gives a path to the account; nothing to do when it is our own.
pub fn give(path: &Path, account: Option<RunAs>) -> Result<()> {
    if let Some(account) = account {
        chown(path, Some(account.uid), Some(account.gid))
            .with_context(|| format!("give {} to the account Postgres runs as", path.display()))?;
    }
    Ok(())
}

/// Creates a directory with exactly these permissions, whatever the umask says.
pub fn create_directory(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the permissions of {}", path.display()))
}
