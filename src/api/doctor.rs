//! What `doctor` says.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How serious a finding of the doctor's is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoctorLevel {
    /// As it should be.
    Ok,
    /// It works, and should be looked at.
    Warning,
    /// It does not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DoctorFinding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub level: DoctorLevel,
    /// What was seen.
    pub seen: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Everything that was looked at.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    /// Whether nothing failed.
    pub healthy: bool,
    /// In the order of looking.
    pub findings: Vec<DoctorFinding>,
}

impl DoctorReport {
    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let mark = match finding.level {
                DoctorLevel::Ok => "ok     ",
                DoctorLevel::Warning => "warning",
                DoctorLevel::Failure => "FAILED ",
            };
            text.push_str(&format!("{mark}  {}: {}\n", finding.check, finding.seen));
            if let Some(remedy) = &finding.remedy {
                text.push_str(&format!("         hint: {remedy}\n"));
            }
        }
        text.push_str(if self.healthy { "all is well" } else { "something has to be done" });
        text
    }
}
