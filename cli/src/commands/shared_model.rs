//! `freehold shared-model`: models that the owner lends to tenants.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use freehold::api::shared_models::{SharedModel, SharedModelList};
use freehold::api::tenant::AiKeyTest;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::Context;
use crate::failure::Failure;
use crate::input;
use crate::output::{fields, instant, table};

const SHARED_MODELS: [&str; 3] = ["platform", "v1", "shared-models"];

/// `freehold shared-model`.
#[derive(Debug, Subcommand)]
pub enum SharedModelCommand {
    /// Lend models, or change how. Tenants use them if `tenant set --ai-mode` says so
    Set(Box<SetArgs>),
    /// List the shared models, in the order in which they answer
    List,
    /// Lend them no more
    Remove {
        /// Its name
        name: String,
    },
    /// Try one with a cheap real call
    Test {
        /// Its name
        name: String,
    },
}

/// `freehold shared-model set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Its name: 1 to 50 of a-z, 0-9, - and _
    pub name: String,
    /// Who serves the models: openai_compatible, anthropic, gemini, vertex or azure_openai
    #[arg(long, default_value = "openai_compatible")]
    pub provider: String,
    /// The server's address; the provider's own, or the one that is there, when left out
    #[arg(long, value_name = "URL")]
    pub base_url: Option<String>,
    /// A file that holds the key, or - for stdin; the key that is there stays when left out
    #[arg(long, value_name = "FILE", conflicts_with = "no_api_key")]
    pub api_key_file: Option<PathBuf>,
    /// The server asks for no key
    #[arg(long)]
    pub no_api_key: bool,
    /// A model to lend; may be given several times
    #[arg(long = "model", value_name = "MODEL", required = true)]
    pub models: Vec<String>,
    /// Another name for one of them; may be given several times
    #[arg(long = "alias", value_name = "NAME=MODEL", value_parser = alias)]
    pub aliases: Vec<(String, String)>,
    /// The model that answers when none is asked for; the first one when left out
    #[arg(long, value_name = "MODEL")]
    pub default_model: Option<String>,
    /// Its place: the lowest answers first
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub position: Option<i32>,
    /// Do not lend it for now
    #[arg(long, conflicts_with = "enable")]
    pub disable: bool,
    /// Lend it again
    #[arg(long)]
    pub enable: bool,
}

fn alias(text: &str) -> Result<(String, String), String> {
    let (name, model) = text.split_once('=').ok_or("NAME=MODEL, for example fast=gpt-4.1-mini")?;
    Ok((name.to_owned(), model.to_owned()))
}

/// Carries out a command.
pub async fn run(context: &Context<'_>, command: SharedModelCommand) -> Result<(), Failure> {
    let client = context.client()?;
    let of = |name: &str| ["platform", "v1", "shared-models", name].map(str::to_owned);
    match command {
        SharedModelCommand::Set(args) => {
            let body = body(&args)?;
            let path = of(&args.name);
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let model: SharedModel = client.put(&path, &body).await?;
            context.output.data(&model, || listed(std::slice::from_ref(&model)))
        }
        SharedModelCommand::List => {
            let list: SharedModelList = client.get(&SHARED_MODELS, &[]).await?;
            context.output.data(&list, || listed(&list.items))
        }
        SharedModelCommand::Remove { name } => {
            client.delete(&["platform", "v1", "shared-models", &name]).await?;
            context.output.data(&json!({ "removed": name }), || format!("{name} is lent no more."))
        }
        SharedModelCommand::Test { name } => {
            let test: AiKeyTest = client.post(&["platform", "v1", "shared-models", &name, "test"], &json!({})).await?;
            if !test.ok {
                let failure = Failure::failed("shared_model_failed", test.message.clone());
                return Err(failure.with_result(json!(test)));
            }
            context.output.data(&test, || {
                fields(&[("model", test.model.clone()), ("answered in", format!("{} ms", test.latency_ms))])
            })
        }
    }
}

/// The request. The key is in it, so it is made to be sent and never shown.
fn body(args: &SetArgs) -> Result<Value, Failure> {
    let default_model = args.default_model.as_ref().or(args.models.first());
    let aliases: BTreeMap<&String, &String> = args.aliases.iter().map(|(name, model)| (name, model)).collect();
    let mut body = json!({
        "provider": args.provider, "models": args.models, "model_aliases": aliases, "default_model": default_model,
    });
    if let Value::Object(fields) = &mut body {
        if let Some(url) = &args.base_url {
            fields.insert("base_url".into(), json!(url));
        }
        if let Some(file) = &args.api_key_file {
            let key = input::secret_from_file(file, "API key")?;
            fields.insert("api_key".into(), json!(key.expose_secret()));
        }
        if args.no_api_key {
            fields.insert("api_key".into(), json!(""));
        }
        if let Some(position) = args.position {
            fields.insert("position".into(), json!(position));
        }
        if args.disable || args.enable {
            fields.insert("enabled".into(), json!(args.enable));
        }
    }
    Ok(body)
}

fn listed(models: &[SharedModel]) -> String {
    let rows: Vec<Vec<String>> = models
        .iter()
        .map(|model| {
            let aliases = model.model_aliases.iter().map(|(name, model)| format!("{name}={model}"));
            let names: Vec<String> = model.models.iter().cloned().chain(aliases).collect();
            vec![
                model.position.to_string(),
                model.name.clone(),
                model.provider.clone(),
                model.base_url.clone(),
                model.api_key.clone(),
                names.join(", "),
                model.default_model.clone(),
                if model.enabled { "yes" } else { "no" }.to_owned(),
                instant(model.updated_at),
            ]
        })
        .collect();
    table(
        &["place", "name", "provider", "address", "key", "models", "default", "lent", "set"],
        &rows,
        "No models are shared: freehold shared-model set NAME --api-key-file FILE --model MODEL",
    )
}
