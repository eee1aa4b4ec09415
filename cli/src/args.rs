//! The command line: names, options and help. Knows nothing of how a command is carried out.

use crate::commands::rotate::RotateArgs;
use crate::commands::shared_model::SharedModelCommand;
use crate::dev::DevArgs;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use freehold::api::fleet::{Canary, OnError};
use uuid::Uuid;

use crate::env;
use crate::server::Server;

/// The states a tenant can be in, as the API spells them.
pub const TENANT_STATES: [&str; 8] =
    ["requested", "provisioning", "waiting_for_client", "active", "suspended", "deleting", "deleted", "failed"];

/// Whose models a tenant can use, as the API spells it.
pub const AI_MODES: [&str; 3] = ["own", "shared", "own_then_shared"];

/// The states an operation can be in, as the API spells them.
pub const OPERATION_STATES: [&str; 6] = ["queued", "running", "undoing", "succeeded", "failed", "needs_operator"];

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  the request or the operation failed
  2  the command was not understood, or nobody is signed in

Data goes to stdout, progress and errors to stderr. With --json stdout holds exactly one JSON document, also for
an error: {\"error\": {\"code\", \"message\", \"hint\"}}.";

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
    /// Print exactly one JSON document on stdout
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

/// `freehold tenant`.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Create a tenant, write its configuration file and follow its provisioning
    Create(Box<TenantCreateArgs>),
    /// List the tenants
    List(TenantListArgs),
    /// Show a tenant
    Show {
        /// The tenant's slug
        #[arg(value_parser = slug)]
        slug: String,
    },
    /// Change a tenant's name, plan, registered admin, limits, or whose models it uses
    Set(TenantSetArgs),
    /// Make a new one-time invite for a client admin
    Invite(TenantInviteArgs),
    /// Back a tenant up into a file that only a passphrase or a key file opens
    Backup(TenantBackupArgs),
    /// Bring a tenant back from a backup, with all it held and the id it had
    Restore(Box<TenantRestoreArgs>),
    /// Make a new token with which the client gives its own database, or new credentials for it
    DatabaseToken(TenantDatabaseTokenArgs),
    /// Take a tenant out of service at once, on every server
    Suspend(TenantSuspendArgs),
    /// Put a suspended tenant back into service
    Resume(TenantLifeArgs),
    /// Delete a tenant: out of service at once, removed for good when its grace is over
    Delete(TenantDeleteArgs),
    /// Take a deletion back, while its grace lasts
    Undelete(TenantLifeArgs),
}

/// `freehold tenant resume` and `undelete`, and what all of their kind take.
#[derive(Debug, Args)]
pub struct TenantLifeArgs {
    /// The tenant's slug
    #[arg(value_parser = slug)]
    pub slug: String,
    /// Return once the platform has accepted it, without following the operation
    #[arg(long)]
    pub detach: bool,
}

/// `freehold tenant suspend`.
#[derive(Debug, Args)]
pub struct TenantSuspendArgs {
    /// Which tenant
    #[command(flatten)]
    pub life: TenantLifeArgs,
    /// Why, for your own people; the client is not told
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `freehold tenant delete`.
#[derive(Debug, Args)]
pub struct TenantDeleteArgs {
    /// Which tenant
    #[command(flatten)]
    pub life: TenantLifeArgs,
    /// Do not ask for the slug to be typed, for scripts
    #[arg(long)]
    pub yes: bool,
    /// For how many days it can be taken back [default: 30]
    #[arg(long, value_name = "N", conflicts_with = "now")]
    pub grace_days: Option<u32>,
    /// Remove it for good at once
    #[arg(long)]
    pub now: bool,
}

/// A limit that can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitName {
    /// Connections to the tenant's database that each server may hold.
    Connections,
}

/// A limit and its new value; none takes it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Which.
    pub name: LimitName,
    /// Its value.
    pub value: Option<u32>,
}

fn limit(text: &str) -> Result<Limit, String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE, for example connections=4")?;
    let name = match name {
        "connections" => LimitName::Connections,
        _ => return Err("the limits are: connections".into()),
    };
    let value = match value {
        "none" => None,
        number => Some(number.parse().map_err(|_| "a number, or none")?),
    };
    Ok(Limit { name, value })
}

/// A limit of requests as it is set; none for what the plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimit(pub Option<freehold::api::platform::Limit>);

fn request_limit(text: &str) -> Result<RequestLimit, String> {
    use freehold::api::platform::Limit;
    match text {
        "plan" => Ok(RequestLimit(None)),
        "unlimited" => Ok(RequestLimit(Some(Limit::UNLIMITED))),
        number => match number.parse() {
            Ok(number) if number > 0 => Ok(RequestLimit(Some(Limit::Of(number)))),
            _ => Err("a number above 0, unlimited, or plan".into()),
        },
    }
}

fn feature(text: &str) -> Result<(String, Option<bool>), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=on, off or plan, for example vision=on")?;
    let known = freehold::api::platform::FEATURES;
    if !known.contains(&name) {
        return Err(format!("the features are: {}", known.join(", ")));
    }
    let value = match value {
        "on" => Some(true),
        "off" => Some(false),
        "plan" => None,
        _ => return Err("on, off or plan".into()),
    };
    Ok((name.to_owned(), value))
}

/// `freehold tenant create`.
#[derive(Debug, Args)]
pub struct TenantCreateArgs {
    /// The tenant's name in addresses: 3 to 40 of a-z, 0-9 and -, beginning with a letter
    #[arg(value_parser = slug)]
    pub slug: String,
    /// The company's name
    #[arg(long)]
    pub name: String,
    /// The plan: free, pro, premium or enterprise
    #[arg(long, default_value = "free")]
    pub plan: String,
    /// The template it is made from
    #[arg(long, default_value = "general")]
    pub template: String,
    /// Who becomes the first client admin
    #[arg(long, value_name = "EMAIL")]
    pub admin_email: String,
    /// The cluster for its database; may be left out when there is exactly one
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The database is the client's own. Without --database-url-file the tenant waits until the client gives it
    #[arg(long, conflicts_with = "cluster")]
    pub own_database: bool,
    /// A file that holds the URL of the client's own database, or - for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "cluster")]
    pub database_url_file: Option<PathBuf>,
    /// A file with certificates, in PEM format, that are trusted for that database besides the public authorities
    #[arg(long, value_name = "FILE", requires = "database_url_file")]
    pub database_ca_file: Option<PathBuf>,
    /// Where the client's configuration goes
    #[command(flatten)]
    pub config: ConfigFileArgs,
    /// Return once the platform has accepted it, without following the provisioning
    #[arg(long)]
    pub detach: bool,
    /// Makes a repetition safe: the same key creates the same tenant once. Generated when left out
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
}

/// Where a client's configuration, which holds its invite, goes.
#[derive(Debug, Args)]
pub struct ConfigFileArgs {
    /// The client's configuration file, readable by you alone [default: ./SLUG.env, for an invite ./SLUG-invite.env]
    #[arg(long, value_name = "PATH", conflicts_with = "print_config")]
    pub config_file: Option<PathBuf>,
    /// Print the client's configuration, with its secret invite, instead of writing a file
    #[arg(long, visible_alias = "print")]
    pub print_config: bool,
    /// Replace the file if it exists
    #[arg(long)]
    pub force: bool,
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

/// `freehold tenant list`.
#[derive(Debug, Args)]
pub struct TenantListArgs {
    /// Only tenants in this state
    #[arg(long, value_parser = PossibleValuesParser::new(TENANT_STATES))]
    pub state: Option<String>,
    /// How many
    #[command(flatten)]
    pub page: PageArgs,
}

/// `freehold tenant set`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct TenantSetArgs {
    /// The tenant's slug
    #[arg(value_parser = slug)]
    pub slug: String,
    /// The company's name
    #[arg(long, group = "change")]
    pub name: Option<String>,
    /// The plan
    #[arg(long, group = "change")]
    pub plan: Option<String>,
    /// Where to reach the client's admin
    #[arg(long, value_name = "EMAIL", group = "change")]
    pub admin_email: Option<String>,
    /// Whose models answer its questions: own, shared or own_then_shared
    #[arg(long, value_name = "MODE", group = "change", value_parser = PossibleValuesParser::new(AI_MODES))]
    pub ai_mode: Option<String>,
    /// Requests in any minute: a number, unlimited, or plan for what its plan says
    #[arg(long, value_name = "N", group = "change", value_parser = request_limit)]
    pub requests_per_minute: Option<RequestLimit>,
    /// Requests in any minute of each user
    #[arg(long, value_name = "N", group = "change", value_parser = request_limit)]
    pub requests_per_minute_per_user: Option<RequestLimit>,
    /// Requests in any minute of each API key
    #[arg(long, value_name = "N", group = "change", value_parser = request_limit)]
    pub requests_per_minute_per_api_key: Option<RequestLimit>,
    /// Requests in a calendar month, in UTC
    #[arg(long, value_name = "N", group = "change", value_parser = request_limit)]
    pub requests_per_month: Option<RequestLimit>,
    /// A feature it has or has not whatever its plan says, for example vision=on, off or plan; may be repeated
    #[arg(long = "feature", value_name = "NAME=on|off|plan", group = "change", value_parser = feature)]
    pub features: Vec<(String, Option<bool>)>,
    /// What it may use, for example connections=4, or connections=none for the platform's own limit
    #[arg(long = "limit", value_name = "NAME=VALUE", group = "change", value_parser = limit)]
    pub limits: Vec<Limit>,
}

/// `freehold tenant invite`.
#[derive(Debug, Args)]
pub struct TenantInviteArgs {
    /// The tenant's slug
    #[arg(value_parser = slug)]
    pub slug: String,
    /// Who is invited; the tenant's registered admin when left out
    #[arg(long)]
    pub email: Option<String>,
    /// Where the client's configuration goes
    #[command(flatten)]
    pub config: ConfigFileArgs,
}

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

/// `freehold tenant database-token`.
#[derive(Debug, Args)]
pub struct TenantDatabaseTokenArgs {
    /// The tenant's slug
    #[arg(value_parser = slug)]
    pub slug: String,
    /// Where the token goes
    #[command(flatten)]
    pub config: ConfigFileArgs,
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

/// `freehold migrate`. With --json each line of stdout is a document: the operation each time it moves, and at the end
/// a report.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct MigrateArgs {
    /// The tenants
    #[arg(value_name = "SLUG", value_parser = slug, group = "which")]
    pub slugs: Vec<String>,
    /// Every tenant
    #[arg(long, group = "which")]
    pub all: bool,
    /// Show what became of the tenants in a run; the last one when no id is given
    #[arg(long, value_name = "ID", num_args = 0..=1, group = "which")]
    pub status: Option<Option<Uuid>>,
    /// Only show what would be done
    #[arg(long, visible_alias = "dry-run", conflicts_with_all = ["verify", "detach"])]
    pub plan_only: bool,
    /// Change nothing: connect to every database and compare migrations and schema with what they have to be
    #[arg(long)]
    pub verify: bool,
    /// Look at tenants that are up to date by the registry as well
    #[arg(long, conflicts_with = "verify")]
    pub recheck: bool,
    /// So many tenants, or so many percent, go first; if one fails, no other is touched [default: 1]
    #[arg(long, value_name = "N|N%", value_parser = canary, conflicts_with = "verify")]
    pub canary: Option<Canary>,
    /// So many at once, each with one connection [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub parallel: Option<u32>,
    /// Whether a failure after the canaries stops the run [default: stop]
    #[arg(long, value_parser = on_error, value_name = "stop|continue", conflicts_with = "verify")]
    pub on_error: Option<OnError>,
    /// Stop after so many failures
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "verify")]
    pub max_failures: Option<u32>,
    /// The version to migrate to, instead of the server's newest
    #[arg(long, value_name = "VERSION", conflicts_with = "verify")]
    pub target: Option<i64>,
    /// How long a statement may wait for a lock that a tenant's own work holds, in seconds [default: 2]
    #[arg(long, value_name = "SECONDS", conflicts_with = "verify")]
    pub lock_timeout: Option<f64>,
    /// How long a statement may run, in seconds [default: 60]
    #[arg(long, value_name = "SECONDS", conflicts_with = "verify")]
    pub statement_timeout: Option<f64>,
    /// How long an index may be built concurrently, in seconds [default: 3600]
    #[arg(long, value_name = "SECONDS", conflicts_with = "verify")]
    pub concurrent_timeout: Option<f64>,
    /// Return once the platform has accepted it, without following it
    #[arg(long)]
    pub detach: bool,
}

fn canary(text: &str) -> Result<Canary, String> {
    let wrong = "a number of tenants, or a percentage such as 5%";
    match text.strip_suffix('%') {
        Some(percent) => match percent.parse() {
            Ok(percent @ 0..=100) => Ok(Canary::Percent(percent)),
            _ => Err(wrong.into()),
        },
        None => text.parse().map(Canary::Count).map_err(|_| wrong.into()),
    }
}

fn on_error(text: &str) -> Result<OnError, String> {
    match text {
        "stop" => Ok(OnError::Stop),
        "continue" => Ok(OnError::Continue),
        _ => Err("stop or continue".into()),
    }
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
    fn create_has_the_documented_defaults() {
        let line =
            ["freehold", "tenant", "create", "acme", "--name", "Acme", "--admin-email", "a@acme.example", "--json"];
        let cli = Cli::try_parse_from(line).unwrap();
        assert!(cli.global.json);
        let Command::Tenant(TenantCommand::Create(args)) = cli.command else {
            panic!("parsed as something else");
        };
        assert_eq!((args.plan.as_str(), args.template.as_str()), ("free", "general"));
        assert_eq!(args.config.config_file, None);
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

    #[test]
    fn limits_are_named_and_numbers_or_none() {
        let named = |value| Limit { name: LimitName::Connections, value };
        assert_eq!(limit("connections=4"), Ok(named(Some(4))));
        assert_eq!(limit("connections=none"), Ok(named(None)));
        for mistake in ["connections", "connections=", "connections=-1", "speed=1"] {
            assert!(limit(mistake).is_err(), "{mistake}");
        }
        assert!(Cli::try_parse_from(["freehold", "tenant", "delete", "acme", "--now", "--grace-days", "3"]).is_err());
    }

    #[test]
    fn limits_of_requests_are_numbers_or_words() {
        use freehold::api::platform::Limit;
        assert_eq!(request_limit("600"), Ok(RequestLimit(Some(Limit::Of(600)))));
        assert_eq!(request_limit("unlimited"), Ok(RequestLimit(Some(Limit::UNLIMITED))));
        assert_eq!(request_limit("plan"), Ok(RequestLimit(None)));
        assert_eq!(feature("vision=off"), Ok(("vision".to_owned(), Some(false))));
        assert_eq!(feature("api=plan"), Ok(("api".to_owned(), None)));
        assert!(["0", "-1", "many", ""].iter().all(|text| request_limit(text).is_err()));
        assert!(["vision", "vision=1", "telepathy=on"].iter().all(|text| feature(text).is_err()));
        let line = ["freehold", "tenant", "set", "acme", "--requests-per-month", "5", "--feature", "api=on"];
        Cli::try_parse_from(line).unwrap();
    }

    #[test]
    fn migrate_wants_to_be_told_whom() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["freehold", "migrate"], words].concat());
        for refused in
            [&[][..], &["acme", "--all"], &["--all", "--canary", "101%"], &["--all", "--verify", "--canary", "1"]]
        {
            assert!(parse(refused).is_err(), "{refused:?}");
        }
        let cli = parse(&["acme", "zeta", "--dry-run", "--canary", "5%", "--on-error", "continue"]).unwrap();
        let Command::Migrate(args) = cli.command else { panic!("parsed as something else") };
        assert_eq!((args.slugs.len(), args.canary, args.plan_only), (2, Some(Canary::Percent(5)), true));
        let cli = parse(&["--status"]).unwrap();
        let Command::Migrate(args) = cli.command else { panic!("parsed as something else") };
        assert_eq!(args.status, Some(None));
    }

    #[test]
    fn set_takes_several_changes() {
        Cli::try_parse_from(["freehold", "tenant", "set", "acme", "--name", "Acme", "--plan", "pro"]).unwrap();
    }
}
