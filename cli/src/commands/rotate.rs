//! `freehold rotate`: credentials and keys are replaced by new ones, now or by a schedule.

use clap::{Args, ValueEnum};
use freehold::api::platform::{OperationGroup, OperationState};
use freehold::api::rotation::{
    MasterKeyList, RotationKind, RotationRequest, RotationResponse, RotationScheduleList, RotationScheduleRequest,
    ScheduleSetting, SkippedTenant,
};
use serde_json::{Value, json};

use super::Context;
use crate::args::slug;
use crate::client::Client;
use crate::failure::Failure;
use crate::follow;
use crate::output::{fields, instant, optional, table, wire};

/// `freehold rotate`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("targets").args(["slugs", "all"]))]
pub struct RotateArgs {
    /// What to replace
    #[arg(value_enum)]
    pub kind: Kind,
    /// For these tenants
    #[arg(value_name = "SLUG", value_parser = slug)]
    pub slugs: Vec<String>,
    /// For all tenants
    #[arg(long)]
    pub all: bool,
    /// Replace it by itself instead, every so often: 90d, off, or for single tenants default
    #[arg(long, value_name = "PERIOD", value_parser = schedule, conflicts_with = "detach")]
    pub schedule: Option<ScheduleSetting>,
    /// Return once the platform has accepted it, without following it
    #[arg(long)]
    pub detach: bool,
}

/// What can be replaced, as it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The password of a tenant's managed database
    Database,
    /// The key that seals a tenant's secrets
    DataKey,
    /// The key that signs a tenant's access tokens
    SigningKey,
    /// The platform's key: everything under an older one is wrapped again under the newest
    MasterKey,
}

impl From<Kind> for RotationKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Database => Self::Database,
            Kind::DataKey => Self::DataKey,
            Kind::SigningKey => Self::SigningKey,
            Kind::MasterKey => Self::MasterKey,
        }
    }
}

fn schedule(text: &str) -> Result<ScheduleSetting, String> {
    match text {
        "off" => Ok(ScheduleSetting::Off),
        "default" => Ok(ScheduleSetting::Default),
        period => period
            .strip_suffix('d')
            .and_then(|days| days.parse().ok())
            .filter(|days| (1..=3650).contains(days))
            .map(ScheduleSetting::EveryDays)
            .ok_or_else(|| "write days as 90d, from 1d to 3650d, or off, or default".to_owned()),
    }
}

/// Carries out the command.
pub async fn run(context: &Context<'_>, args: RotateArgs) -> Result<(), Failure> {
    match (args.kind, args.slugs.is_empty() && !args.all) {
        (Kind::MasterKey, false) => {
            return Err(Failure::usage("no_tenants", "the master key is the platform's: name no tenants"));
        }
        (Kind::Database | Kind::DataKey | Kind::SigningKey, true) => {
            return Err(Failure::usage("tenants_needed", "whose?").hint("name tenants by their slugs, or give --all"));
        }
        _ => {}
    }
    let client = context.client()?;
    let kind = RotationKind::from(args.kind);
    let tenants = (!args.slugs.is_empty()).then_some(args.slugs);
    if let Some(schedule) = args.schedule {
        let request = RotationScheduleRequest { kind, tenants, all: args.all, schedule };
        let list: RotationScheduleList = client.put(&["platform", "v1", "rotation-schedules"], &request).await?;
        return context.output.data(&list, || schedules(&list));
    }
    let request = RotationRequest { kind, tenants, all: args.all };
    let answer: RotationResponse = client.post(&["platform", "v1", "rotations"], &request).await?;
    if args.detach || answer.operations.is_empty() {
        if !answer.operations.is_empty() {
            context.output.note(format!("hint: freehold operation list --group {}", answer.group_id));
        }
        return context
            .output
            .data(&answer, || format!("{} queued{}", answer.operations.len(), skipped(&answer.skipped)));
    }
    match (kind, answer.operations.as_slice()) {
        (RotationKind::MasterKey, [operation]) => {
            let settled = follow::follow(&client, context.output, *operation).await?;
            follow::outcome(&settled).map_err(|failure| failure.with_result(json!({ "operation": settled })))?;
            master_keys(context, &client).await
        }
        (_, [operation]) if answer.skipped.is_empty() => {
            let settled = follow::follow(&client, context.output, *operation).await?;
            follow::outcome(&settled).map_err(|failure| failure.with_result(json!({ "operation": settled })))?;
            context.output.data(&json!({ "operation": settled, "skipped": [] }), || {
                fields(&[
                    ("rotated", wire(&kind)),
                    ("tenant", optional(settled.tenant.as_ref())),
                    ("finished", optional(settled.finished_at.map(instant))),
                ])
            })
        }
        _ => many(context, &client, &answer).await,
    }
}

async fn many(context: &Context<'_>, client: &Client, answer: &RotationResponse) -> Result<(), Failure> {
    let group: OperationGroup = follow::follow_group(client, context.output, answer.group_id).await?;
    let document: Value = json!({ "group": group, "skipped": answer.skipped });
    let failed = group.failed + group.needs_operator;
    if failed > 0 {
        return Err(Failure::failed("rotations_failed", format!("{failed} of {} rotations failed", group.total))
            .hint(format!(
                "freehold operation list --group {} --state {}",
                group.id,
                wire(if group.failed > 0 { &OperationState::Failed } else { &OperationState::NeedsOperator })
            ))
            .with_result(document));
    }
    context.output.data(&document, || format!("{} rotated{}", group.succeeded, skipped(&answer.skipped)))
}

fn skipped(tenants: &[SkippedTenant]) -> String {
    if tenants.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = tenants
        .iter()
        .map(|skipped| vec![skipped.tenant.clone(), skipped.code.clone(), optional(skipped.operation_id)])
        .collect();
    format!(", {} left out\n{}", tenants.len(), table(&["tenant", "why", "operation"], &rows, ""))
}

fn schedules(list: &RotationScheduleList) -> String {
    let rows: Vec<Vec<String>> = list
        .items
        .iter()
        .map(|schedule| {
            vec![
                wire(&schedule.kind),
                schedule.tenant.clone().unwrap_or_else(|| "all".to_owned()),
                schedule.every_days.map_or_else(|| "off".to_owned(), |days| format!("every {days} days")),
                instant(schedule.set_at),
            ]
        })
        .collect();
    table(&["kind", "tenant", "schedule", "since"], &rows, "No schedules.")
}

async fn master_keys(context: &Context<'_>, client: &Client) -> Result<(), Failure> {
    let keys: MasterKeyList = client.get(&["platform", "v1", "master-keys"], &[]).await?;
    context.output.data(&keys, || {
        let rows: Vec<Vec<String>> = keys
            .items
            .iter()
            .map(|key| {
                let advice = match (key.version == keys.primary, key.values) {
                    (true, _) => "in use",
                    (false, 0) => "not in use: drop it from FREEHOLD_MASTER_KEYS on every server",
                    (false, _) => "still in use",
                };
                vec![key.version.to_string(), key.values.to_string(), advice.to_owned()]
            })
            .collect();
        table(&["master key", "values", ""], &rows, "")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_whole_days() {
        assert_eq!(schedule("90d"), Ok(ScheduleSetting::EveryDays(90)));
        assert_eq!(schedule("off"), Ok(ScheduleSetting::Off));
        assert_eq!(schedule("default"), Ok(ScheduleSetting::Default));
        for wrong in ["", "90", "0d", "3651d", "-1d", "1.5d", "90h", "d"] {
            assert!(schedule(wrong).is_err(), "{wrong}");
        }
    }
}
