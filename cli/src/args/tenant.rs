//! `freehold tenant`: a client company from its creation to its end.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use super::backup::{TenantBackupArgs, TenantRestoreArgs};
use super::{PageArgs, slug};

/// The states a tenant can be in, as the API spells them.
pub const TENANT_STATES: [&str; 8] =
    ["requested", "provisioning", "waiting_for_client", "active", "suspended", "deleting", "deleted", "failed"];

/// Whose models a tenant can use, as the API spells it.
pub const AI_MODES: [&str; 3] = ["own", "shared", "own_then_shared"];

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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

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
    fn set_takes_several_changes() {
        Cli::try_parse_from(["freehold", "tenant", "set", "acme", "--name", "Acme", "--plan", "pro"]).unwrap();
    }
}
