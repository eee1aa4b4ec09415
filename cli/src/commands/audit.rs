//! `freehold audit`.

use freehold::api::fleet_audit::{AuditFinding, AuditFindingPage, Severity};
use freehold::api::platform::Operation;
use serde_json::json;

use super::{Context, pages};
use crate::args::{AuditCommand, PageArgs};
use crate::failure::Failure;
use crate::follow;
use crate::output::{instant, table, wire};

/// Carries out a command.
pub async fn run(context: &Context<'_>, command: AuditCommand) -> Result<(), Failure> {
    let AuditCommand::Fleet { last } = command;
    let client = context.client()?;
    let operation = if last {
        None
    } else {
        let begun: Operation = client.post(&["platform", "v1", "fleet", "audits"], &json!({})).await?;
        let settled = follow::follow(&client, context.output, begun.id).await?;
        follow::outcome(&settled).map_err(|failure| failure.with_result(json!({ "operation": settled })))?;
        Some(settled)
    };
    let listed = pages(&PageArgs::all(), &[], async |query| {
        let page: AuditFindingPage = client.get(&["platform", "v1", "fleet", "findings"], &query).await?;
        Ok((page.items, page.next_cursor))
    })
    .await?;
    let problems = listed.items.iter().filter(|finding| finding.severity == Severity::Problem).count();
    let document = json!({ "operation": operation, "items": listed.items, "problems": problems });
    if problems == 0 {
        return context.output.data(&document, || shown(&listed.items));
    }
    if !context.global.json {
        context.output.data(&document, || shown(&listed.items))?;
    }
    let found = format!("the audit found {problems} problem{}", if problems == 1 { "" } else { "s" });
    Err(Failure::failed("problems_found", found).detail("Nothing was changed.").with_result(document))
}

fn shown(findings: &[AuditFinding]) -> String {
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| {
            vec![
                wire(&finding.severity),
                finding.code.clone(),
                finding.subject.clone(),
                finding.detail.clone(),
                instant(finding.first_seen),
            ]
        })
        .collect();
    table(
        &["severity", "code", "about", "what is wrong", "first seen"],
        &rows,
        "Nothing found: all is as it has to be.",
    )
}
