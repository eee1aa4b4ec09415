//! `freehold backup`, and the backup and restoring of a tenant.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::{PageArgs, slug};

/// What a backup is sealed with: one of the two, or a passphrase that is asked for at a terminal.
#[derive(Debug, Args)]
pub struct ArchiveSecretArgs {
    /// A file that holds the passphrase, or - for stdin; asked for at a terminal when left out
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    pub passphrase_file: Option<PathBuf>,
    /// A key file, as `freehold backup key generate` makes one
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
}

/// `freehold tenant backup`.
#[derive(Debug, Args)]
pub struct TenantBackupArgs {
    /// The tenant's slug
    #[arg(value_parser = slug)]
    pub slug: String,
    /// What to seal it with
    #[command(flatten)]
    pub secret: ArchiveSecretArgs,
    /// Also fetch the sealed file, readable by you alone; - for stdout
    #[arg(long, value_name = "FILE", conflicts_with = "detach")]
    pub output: Option<PathBuf>,
    /// Return once the platform has accepted it, without following it
    #[arg(long)]
    pub detach: bool,
}

/// `freehold tenant restore`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("from").required(true).args(["file", "backup"]))]
pub struct TenantRestoreArgs {
    /// A sealed file on this machine; it is checked here before it is sent
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A backup that the platform keeps
    #[arg(long, value_name = "ID")]
    pub backup: Option<Uuid>,
    /// What it is sealed with
    #[command(flatten)]
    pub secret: ArchiveSecretArgs,
    /// Bring it back under another slug
    #[arg(long, value_name = "NEW", value_parser = slug, conflicts_with = "replace")]
    pub slug: Option<String>,
    /// Replace this tenant, which is in service, by what it was: all it holds now is lost
    #[arg(long, value_name = "SLUG", value_parser = slug)]
    pub replace: Option<String>,
    /// The cluster for its database; the one it was on when left out
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Do not ask before a tenant in service is replaced
    #[arg(long)]
    pub yes: bool,
    /// Return once the platform has accepted it, without following it
    #[arg(long)]
    pub detach: bool,
}

/// `freehold backup`.
#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// List the backups that the platform keeps, newest first
    List {
        /// Only of this tenant; a deleted one's are listed too
        #[arg(long, value_name = "SLUG", value_parser = slug)]
        tenant: Option<String>,
        /// How many
        #[command(flatten)]
        page: PageArgs,
    },
    /// Fetch a backup's sealed file
    Download {
        /// The backup's id
        id: Uuid,
        /// Where it goes, readable by you alone; - for stdout
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Remove a backup for good
    Delete {
        /// The backup's id
        id: Uuid,
    },
    /// Open a sealed file on this machine, check all of it, and show what it says of itself
    Verify {
        /// The file
        file: PathBuf,
        /// What it is sealed with
        #[command(flatten)]
        secret: ArchiveSecretArgs,
    },
    /// Key files
    #[command(subcommand)]
    Key(BackupKeyCommand),
}

/// `freehold backup key`.
#[derive(Debug, Subcommand)]
pub enum BackupKeyCommand {
    /// Make a new key file, readable by you alone
    Generate {
        /// Where it goes
        file: PathBuf,
    },
}
