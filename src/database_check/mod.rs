//! Looks at a Postgres database that somebody wants to use, and says what is wrong with it and what to do about it.
//!
//! It changes nothing, stores nothing, and asks only the catalogs. It knows how connections fail and what Freehold needs
//! of a database; it knows nothing of requests, of the registry, or of what becomes of its findings. No finding holds a
//! password, and none repeats what a server answered: whoever may name an address must not read along there.
//!
//! Everything is asked with simple queries, which work through any pooler: the check has to get far enough to say that
//! the pooler is the problem.

mod address;
mod connecting;
mod facts;
mod judgement;
mod pooler;

use std::net::IpAddr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

pub use crate::api::database::{DatabaseFinding as Finding, FindingSeverity as Severity};
pub use address::{UrlOrigin, encryption_required, parse};
pub use connecting::explain_failure;
pub use facts::Facts;
pub use judgement::CODES;

use crate::clock::SharedClock;
use crate::ids::TenantId;
use crate::secrets::DatabaseUrl;

/// How long all questions together may take once a connection is there.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the database is to be used for: more is asked of a client's own than of one that the platform manages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client's own database.
    Tenant,
    /// A cluster on which the platform makes databases.
    Cluster,
    /// The platform's own database.
    Platform,
}

/// A server that belongs to the owner, on which no client's own database may be.
#[derive(Debug, Clone)]
pub struct OwnersServer {
    /// Whether it holds the platform's database; otherwise it is a managed cluster.
    pub platform: bool,
    /// Its address, if it is one on the network.
    pub host: Option<String>,
    /// Its port.
    pub port: u16,
    /// What its name resolves to now.
    pub addresses: Vec<IpAddr>,
    /// What Postgres calls the server's data directory, whatever name leads there.
    pub system_identifier: Option<String>,
}

/// What is asked.
#[derive(Debug)]
pub struct Question<'a> {
    /// The database.
    pub url: &'a DatabaseUrl,
    /// What it is for.
    pub purpose: Purpose,
    /// The tenant whose database it may be already.
    pub tenant: Option<TenantId>,
    /// Where it must not be.
    pub owners_servers: &'a [OwnersServer],
    /// How many connections would be used.
    pub connections_wanted: u32,
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Report {
    /// Problems first, then warnings, then notes.
    pub findings: Vec<Finding>,
    /// What the server said of itself, if it got that far.
    pub facts: Option<Facts>,
}

impl Report {
    /// A report of one finding that ends the check.
    pub fn ended_by(finding: Finding) -> Self {
        Self { findings: vec![finding], facts: None }
    }

    /// Whether the database can be used.
    pub fn suitable(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity != Severity::Problem)
    }

    /// The version of the server, for example `17.5`.
    pub fn server_version(&self) -> Option<String> {
        self.facts.as_ref().map(|facts| format!("{}.{}", facts.version_number / 10_000, facts.version_number % 10_000))
    }

    fn sorted(mut findings: Vec<Finding>, facts: Option<Facts>) -> Self {
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Self { findings, facts }
    }
}

/// Something that has to be put right first.
pub fn problem(code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(Severity::Problem, code, message, remedy)
}

fn warning(code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(Severity::Warning, code, message, remedy)
}

fn note(code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(Severity::Note, code, message, remedy)
}

fn finding(severity: Severity, code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { code: code.to_owned(), severity, message: message.into(), remedy: remedy.into() }
}

/// Looks at a database.
pub async fn check(question: &Question<'_>, clock: &SharedClock) -> Report {
    let mut findings = address::judge(question.url, question.purpose);
    if findings.iter().any(|finding| finding.severity == Severity::Problem) {
        return Report::sorted(findings, None);
    }
    let session = match connecting::open(question).await {
        Ok(session) => session,
        Err(finding) => {
            findings.push(finding);
            return Report::sorted(findings, None);
        }
    };
    let (inspected, found) = match timeout(PATIENCE, inspect(&session, question, clock)).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => (None, vec![connecting::lost(&error)]),
        Err(_elapsed) => (None, vec![connecting::slow()]),
    };
    findings.extend(found);
    Report::sorted(findings, inspected)
}

async fn inspect(
    session: &connecting::Session,
    question: &Question<'_>,
    clock: &SharedClock,
) -> Result<(Option<Facts>, Vec<Finding>), tokio_postgres::Error> {
    let client = &session.client;
    let pooled = question.purpose == Purpose::Tenant && pooler::shares_sessions(session).await?;
    let latency = facts::latency(client).await?;
    let Some(facts) = facts::ask(client).await? else {
        return Ok((None, vec![connecting::no_answer()]));
    };
    let received: DateTime<Utc> = clock.now();
    let marker = if facts.has_marker { facts::marker(client).await? } else { facts::Marker::None };
    let identifier = system_identifier(client).await?;
    let mut findings = judgement::judge(&facts, question, latency, received);
    findings.extend(judgement::judge_place(&facts, &marker, identifier.as_deref(), question));
    if pooled {
        findings.push(pooler::finding(question.url));
    }
    Ok((Some(facts), findings))
}

/// What Postgres calls a server's data directory. A managed service may keep it to itself.
pub async fn system_identifier(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    match facts::text(client, "SELECT system_identifier::text FROM pg_control_system()").await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(None),
        other => other,
    }
}
