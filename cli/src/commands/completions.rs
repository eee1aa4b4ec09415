//! `freehold completions`.

use clap::CommandFactory;
use serde_json::json;

use super::Context;
use crate::args::{Cli, CompletionsArgs};
use crate::failure::Failure;

/// Prints a completion script.
pub fn run(context: &Context<'_>, args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "freehold", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let document = json!({ "shell": args.shell.to_string(), "script": script });
    context.output.data(&document, || script)
}
