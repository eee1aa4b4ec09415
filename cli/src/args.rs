//! The command line: names, options and help. Knows nothing of how a command is carried out.

pub mod backup;
pub mod migrate;
pub mod tenant;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

use backup::BackupCommand;
use migrate::MigrateArgs;
use tenant::TenantCommand;

use crate::commands::rotate::RotateArgs;
use crate::commands::shared_model::SharedModelCommand;
use crate::dev::DevArgs;
use crate::env;
use crate::server::Server;

/// The states an operation can be in, as the API spells them.
pub const OPERATION_STATES: [&str; 6] = ["queued", "running", "undoing", "succeeded", "failed", "needs_operator"];

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  the request or the operation failed
  2  the command was not understood, or nobody is signed in

Data goes to stdout, progress and errors to stderr. With --json stdout holds one JSON document, also for an error:
{\"error\": {\"code\", \"message\", \"hint\"}}. Only `migrate`, which may take hours, writes one a line while it goes:
each has an \"event\", and the last is \"report\".";

/// Super administration of a Freehold platform.
#[derive(Debug, Parser)]
#[command(name = "freehold", version, about, after_help = AFTER_HELP, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true, propagate_version = true)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Print JSON on stdout: one document, or one a line while `migrate` goes on
    #[arg(long, global = true)]
    pub json: bool,
    /// Show neither progress nor notes
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// The platform to speak to, instead of the one of the last login
    #[arg(long, global = true, value_name = "URL", env = env::SERVER)]
    pub server: Option<Server>,
    /// Where sessions are kept, instead of the user's configuration directory
    #[arg(long, global = true, value_name = "DIR", env = env::CONFIG_DIR)]
    pub config_dir: Option<PathBuf>,
    /// Send credentials over plain http:// to another machine, readable for everybody on the way
    #[arg(long, global = true)]
    pub insecure_http: bool,
}

/// What the command can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sign in to a platform
    Login(LoginArgs),
    /// Sign out: revoke the session and forget it
    Logout,
    /// The super admin's sessions
    #[command(subcommand)]
    Session(SessionCommand),
    /// Client companies
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Sealed backups of tenants
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Models that are lent to tenants
    #[command(subcommand)]
    SharedModel(SharedModelCommand),
    /// Durable operations, such as the provisioning of a tenant
    #[command(subcommand)]
    Operation(OperationCommand),
    /// Compare what is registered with what is there
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Postgres servers on which managed tenants get their databases
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Show the connections to tenants' databases, and how their budgets are used
    Connections,
    /// Bring the databases of tenants up to date, or verify them
    Migrate(Box<MigrateArgs>),
    /// Databases that clients bring
    #[command(subcommand)]
    Database(DatabaseCommand),
    /// Look at everything the platform stands on, and say what to do about what is wrong
    Doctor(DoctorArgs),
    /// Replace credentials and keys by new ones, while everybody goes on working
    Rotate(RotateArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Run the whole platform on this machine, with two demo clients
    Dev(DevArgs),
}

/// `freehold login`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// The platform's address; the one of the last login when left out
    pub url: Option<Server>,
    /// The super admin's e-mail address; asked for at a terminal when left out
    #[arg(long)]
    pub email: Option<String>,
    /// A file that holds the password, or - for stdin; asked for at a terminal when left out
    #[arg(long, value_name = "FILE", env = env::PASSWORD_FILE)]
    pub password_file: Option<PathBuf>,
}

/// `freehold session`.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// List the sessions in force
    List,
    /// End a session
    Revoke {
        /// The session's id
        id: Uuid,
    },
}

/// How much of a list to show.
#[derive(Debug, Args)]
pub struct PageArgs {
    /// Show at most so many
    #[arg(long, value_name = "N", default_value = "50", conflicts_with = "all")]
    pub limit: NonZeroUsize,
    /// Show all
    #[arg(long)]
    pub all: bool,
}

impl PageArgs {
    /// All of it.
    pub fn all() -> Self {
        Self { limit: NonZeroUsize::MIN, all: true }
    }
}

/// `freehold operation`.
#[derive(Debug, Subcommand)]
pub enum OperationCommand {
    /// List the operations, newest first
    List(OperationListArgs),
    /// Show an operation and its steps
    Show {
        /// The operation's id
        id: Uuid,
    },
    /// Follow an operation until it is settled
    Follow {
        /// The operation's id
        id: Uuid,
    },
    /// Try a failed operation again, and follow it
    Retry {
        /// The operation's id
        id: Uuid,
        /// Return once the platform has accepted it, without following it
        #[arg(long)]
        detach: bool,
    },
}

/// `freehold operation list`.
#[derive(Debug, Args)]
pub struct OperationListArgs {
    /// Only operations on this tenant
    #[arg(long, value_name = "SLUG", value_parser = slug)]
    pub tenant: Option<String>,
    /// Only operations in this state
    #[arg(long, value_parser = PossibleValuesParser::new(OPERATION_STATES))]
    pub state: Option<String>,
    /// Only operations that were asked for together
    #[arg(long, value_name = "ID")]
    pub group: Option<Uuid>,
    /// How many
    #[command(flatten)]
    pub page: PageArgs,
}

/// `freehold cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Register a Postgres server
    Add {
        /// The cluster's name: 1 to 40 of a-z, 0-9 and -
        name: String,
        /// A file that holds the URL of a role that may create databases and roles, or - for stdin
        #[arg(long, value_name = "FILE")]
        admin_url_file: PathBuf,
    },
    /// Give a cluster another admin URL of the same server, as after a change of its password
    Set {
        /// The cluster's name
        name: String,
        /// A file that holds the URL, or - for stdin
        #[arg(long, value_name = "FILE")]
        admin_url_file: PathBuf,
    },
    /// List the clusters
    List,
}

/// `freehold audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Compare registry, databases, roles and keys, and report orphans and strangers; exit code 1 if there are problems
    Fleet {
        /// Show what the last audit found, without running one
        #[arg(long)]
        last: bool,
    },
}

/// `freehold database`.
#[derive(Debug, Subcommand)]
pub enum DatabaseCommand {
    /// Check from the server whether a database can be a client's own. Nothing is stored
    Check {
        /// A file that holds the database's URL, or - for stdin
        #[arg(long, value_name = "FILE")]
        url_file: PathBuf,
        /// A file with certificates, in PEM format, that are trusted besides the public authorities
        #[arg(long, value_name = "FILE")]
        ca_file: Option<PathBuf>,
    },
}

/// `freehold doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Check the clients' own databases too
    #[arg(long)]
    pub tenants: bool,
}

/// `freehold completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// A slug goes into a path and into a file's name: nothing else may get there.
pub(crate) fn slug(text: &str) -> Result<String, String> {
    let begins_well = text.starts_with(|c: char| c.is_ascii_lowercase());
    let is_plain = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if begins_well && is_plain && (3..=40).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err("3 to 40 of a-z, 0-9 and -, beginning with a letter".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::tenant::TENANT_STATES;
    use clap::CommandFactory;
    use freehold::api::platform::{OperationState, TenantState};

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn states_are_spelled_as_the_api_does() {
        for state in TENANT_STATES {
            serde_json::from_value::<TenantState>(state.into()).unwrap();
        }
        for state in OPERATION_STATES {
            serde_json::from_value::<OperationState>(state.into()).unwrap();
        }
    }

    #[test]
    fn mistakes_are_refused() {
        let mistakes: [&[&str]; 6] = [
            &["freehold", "tenant", "show", "../acme"],
            &["freehold", "tenant", "set", "acme"],
            &["freehold", "tenant", "list", "--all", "--limit", "3"],
            &["freehold", "tenant", "list", "--state", "sleeping"],
            &["freehold", "login", "https://a.example", "--password", "secret"],
            &["freehold", "operation", "show", "not-an-id"],
        ];
        for line in mistakes {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
        }
    }
}
