//! The standing audit of the fleet: what differs between the registry and what is there.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something is not as it has to be: somebody has to look.
    Problem,
    /// Something is left over or takes long, and harms nobody.
    Warning,
}

impl Severity {
    /// The name in the database, the same as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Warning => "warning",
        }
    }

    /// Reads the name in the database; the column's CHECK knows the same names.
    pub fn parse(text: &str) -> Self {
        if text == "warning" { Self::Warning } else { Self::Problem }
    }
}

/// Something the audit found. Nothing is changed or deleted for it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditFinding {
    /// Its id.
    pub id: Uuid,
    /// A stable code, for example `orphan_database`.
    pub code: String,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// The tenant it is about.
    pub tenant: Option<String>,
    /// The cluster it was found on.
    pub cluster: Option<String>,
    /// What is wrong, and what to do.
    pub detail: String,
    /// When it was first seen.
    pub first_seen: DateTime<Utc>,
    /// When it was last seen.
    pub last_seen: DateTime<Utc>,
    /// When it was seen no more.
    pub resolved_at: Option<DateTime<Utc>>,
}

/// A page of findings.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditFindingPage {
    /// Oldest first.
    pub items: Vec<AuditFinding>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
