//! `freehold migrate`: which tenants, and how carefully.

use clap::Args;
use freehold::api::fleet::{Canary, OnError};
use uuid::Uuid;

use super::slug;

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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

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
}
