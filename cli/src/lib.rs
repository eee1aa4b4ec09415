//! The `freehold` command as a library, so that tests run it in their own process.
//!
//! [`run`] is the whole command: arguments in, an exit code out, everything written to the given [`output::Sinks`].
//! The command knows the platform only through its HTTP interface (`freehold::api`): it opens no database and
//! reads no server's files.

pub mod args;
pub mod client;
pub mod commands;
pub mod config_file;
pub mod credentials;
pub mod dev;
pub mod env;
pub mod failure;
pub mod follow;
pub mod input;
pub mod output;
pub mod progress;
pub mod server;
#[cfg(test)]
mod testing;

use std::ffi::OsString;

use clap::Parser;

use args::{Cli, Command};
use commands::{
    Context, audit, backup, cluster, completions, connections, database, doctor, migrate, operation, rotate, session,
    shared_model, tenant,
};
use failure::{Exit, Failure};
use output::{Output, Sinks};

/// Makes aws-lc the process's cryptography. Has to come before the first connection; a second call changes nothing.
pub fn install_crypto() {
    // It fails only if a provider is there already, which is then as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Runs the command. The first argument is the program's name.
pub async fn run(arguments: impl IntoIterator<Item = OsString>, sinks: Sinks) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // What was not understood cannot say how to show it, so the option is looked for by hand.
            let json = arguments.iter().any(|argument| argument == "--json");
            Output::new(sinks, json, false).clap(&error);
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    let output = Output::new(sinks, cli.global.json, cli.global.quiet);
    match dispatch(cli, &output).await {
        Ok(exit) => exit,
        Err(failure) => {
            output.failure(&failure);
            failure.exit()
        }
    }
}

async fn dispatch(cli: Cli, output: &Output) -> Result<Exit, Failure> {
    let Cli { global, command } = cli;
    let json = global.json;
    let context = Context::new(global, output);
    match command {
        Command::Login(args) => session::login(&context, args).await?,
        Command::Logout => session::logout(&context).await?,
        Command::Session(command) => session::run(&context, command).await?,
        Command::Tenant(command) => tenant::run(&context, command).await?,
        Command::Backup(command) => backup::run(&context, command).await?,
        Command::SharedModel(command) => shared_model::run(&context, command).await?,
        Command::Operation(command) => operation::run(&context, command).await?,
        Command::Audit(command) => audit::run(&context, command).await?,
        Command::Cluster(command) => cluster::run(&context, command).await?,
        Command::Connections => connections::run(&context).await?,
        Command::Migrate(args) => return migrate::run(&context, *args).await,
        Command::Database(command) => return database::run(&context, command).await,
        Command::Doctor(args) => return doctor::run(&context, &args).await,
        Command::Rotate(args) => rotate::run(&context, args).await?,
        Command::Completions(args) => completions::run(&context, &args)?,
        Command::Dev(args) => {
            let code = dev::run(args, json).await?;
            return Ok(if code == std::process::ExitCode::SUCCESS { Exit::Done } else { Exit::Failed });
        }
    }
    Ok(Exit::Done)
}
