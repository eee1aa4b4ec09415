//! `freehold doctor`.

use freehold::api::doctor::DoctorReport;

use super::Context;
use crate::args::DoctorArgs;
use crate::failure::{Exit, Failure};

/// Asks the platform how it is. What is wrong is a result, with the exit code of a failure.
pub async fn run(context: &Context<'_>, args: &DoctorArgs) -> Result<Exit, Failure> {
    let query = [("tenants", args.tenants.to_string())];
    let report: DoctorReport = context.client()?.get(&["platform", "v1", "doctor"], &query).await?;
    context.output.data(&report, || report.to_text())?;
    Ok(if report.healthy { Exit::Done } else { Exit::Failed })
}
