//! `freehold database`.

use freehold::api::database::DatabaseCheck;
use secrecy::ExposeSecret;
use serde_json::json;

use super::Context;
use crate::args::DatabaseCommand;
use crate::failure::{Exit, Failure, finding_line};
use crate::input;

/// Carries out a command. A database that cannot be used is a result, with the exit code of a failure.
pub async fn run(context: &Context<'_>, command: DatabaseCommand) -> Result<Exit, Failure> {
    let DatabaseCommand::Check { url_file, ca_file } = command;
    let url = input::secret_from_file(&url_file, "database URL")?;
    let ca = ca_file.as_deref().map(input::certificates_from_file).transpose()?;
    let body = json!({ "url": url.expose_secret(), "ca": ca });
    let check: DatabaseCheck = context.client()?.post(&["platform", "v1", "database-checks"], &body).await?;
    context.output.data(&check, || text(&check))?;
    Ok(if check.suitable { Exit::Done } else { Exit::Failed })
}

fn text(check: &DatabaseCheck) -> String {
    let mut lines = Vec::new();
    if let Some(version) = &check.server_version {
        lines.push(format!("PostgreSQL {version}"));
    }
    for finding in &check.findings {
        lines.push(finding_line(finding));
        lines.push(format!("         hint: {}", finding.remedy));
    }
    lines.push(if check.suitable { "the database can be used" } else { "the database cannot be used" }.to_owned());
    lines.join("\n")
}
