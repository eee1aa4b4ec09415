//! `freehold-server doctor`: looks at everything the server stands on, and says what to do about what is wrong.
//!
//! It changes nothing, and its report holds no secret.

use std::sync::Arc;

use secrecy::SecretString;
use serde::Serialize;
use sqlx::{PgPool, Row};

use crate::clock::SystemClock;
use crate::config::Config;
use crate::ids::TenantId;
use crate::platform_db;
use crate::provisioning;
use crate::secrets::{DatabaseUrl, Sealed};
use crate::tenants::clusters::ClusterRegistry;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and should be looked at.
    Warning,
    /// It does not work.
    Failure,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// How it is.
    pub level: Level,
    /// What was seen.
    pub seen: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// All findings.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// In the order of looking.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing failed.
    pub fn healthy(&self) -> bool {
        self.findings.iter().all(|finding| finding.level != Level::Failure)
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let mark = match finding.level {
                Level::Ok => "ok     ",
                Level::Warning => "warning",
                Level::Failure => "FAILED ",
            };
            text.push_str(&format!("{mark}  {}: {}\n", finding.check, finding.seen));
            if let Some(remedy) = &finding.remedy {
                text.push_str(&format!("         hint: {remedy}\n"));
            }
        }
        text.push_str(if self.healthy() { "all is well" } else { "something has to be done" });
        text
    }

    /// For programs.
    pub fn to_json(&self) -> String {
        serde_json::json!({ "healthy": self.healthy(), "findings": self.findings }).to_string()
    }

    fn add(&mut self, check: impl Into<String>, level: Level, seen: impl Into<String>, remedy: Option<&str>) {
        self.findings.push(Finding {
            check: check.into(),
            level,
            seen: seen.into(),
            remedy: remedy.map(str::to_owned),
        });
    }
}

/// Looks at everything.
pub async fn examine(config: &Config) -> Report {
    let mut report = Report::default();
    report.add("configuration", Level::Ok, "every setting is valid", None);
    if config.public_url.scheme() == "http" && !config.listen.ip().is_loopback() {
        report.add(
            "public URL",
            Level::Warning,
            "passwords and tokens travel without encryption",
            Some("put a proxy with TLS in front and set FREEHOLD_PUBLIC_URL to its https address"),
        );
    }
    let pool = platform_db::pool(&config.platform_database_url, 2);
    match examine_platform(&pool, &mut report).await {
        Ok(true) => {}
        Ok(false) => return report,
        Err(error) => {
            tracing::debug!(%error, "examine the platform's database");
            report.add(
                "platform database",
                Level::Failure,
                "it cannot be reached with PLATFORM_DATABASE_URL",
                Some("check host, port, password and TLS of the URL, and that the server runs"),
            );
            return report;
        }
    }
    if let Err(error) = examine_keys(config, &pool, &mut report).await {
        report.add("keys", Level::Failure, format!("they could not be read: {error}"), None);
    }
    examine_clusters(config, &pool, &mut report).await;
    report
}

/// Returns whether there is a schema to look at further.
async fn examine_platform(pool: &PgPool, report: &mut Report) -> Result<bool, sqlx::Error> {
    let row = sqlx::query(
        "SELECT current_setting('server_version'), pg_is_in_recovery(),
                has_database_privilege('public', current_database(), 'CONNECT')",
    )
    .fetch_one(pool)
    .await?;
    let (version, replica, public): (String, bool, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    report.add("platform database", Level::Ok, format!("PostgreSQL {version} answers"), None);
    if replica {
        report.add("platform database", Level::Failure, "it is a read replica", Some("give the primary's address"));
    }
    let (schema, required) = (platform_db::schema_version(pool).await?, platform_db::required_schema_version());
    if schema < required {
        let seen = format!("version {schema}, and this server needs {required}");
        report.add("platform schema", Level::Failure, seen, Some("run `freehold-server migrate`"));
        return Ok(false);
    }
    report.add("platform schema", Level::Ok, format!("version {schema}"), None);
    if public {
        report.add(
            "platform isolation",
            Level::Failure,
            "every role of the server may connect to the platform's database",
            Some("run REVOKE CONNECT ON DATABASE <platform database> FROM PUBLIC"),
        );
    } else {
        report.add("platform isolation", Level::Ok, "PUBLIC may not connect to the platform's database", None);
    }
    let (admins, stuck): (i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM super_admins), (SELECT count(*) FROM operations WHERE state = 'needs_operator')",
    )
    .fetch_one(pool)
    .await?;
    if admins == 0 {
        let remedy = "run `freehold-server create-admin --email you@example.com --password-file FILE`";
        report.add("super admins", Level::Failure, "there is none", Some(remedy));
    } else {
        report.add("super admins", Level::Ok, format!("{admins}"), None);
    }
    if stuck > 0 {
        let remedy = "see `freehold operation list --state needs_operator`, remove the cause, then retry";
        report.add("operations", Level::Warning, format!("{stuck} need an operator"), Some(remedy));
    } else {
        report.add("operations", Level::Ok, "none needs an operator", None);
    }
    Ok(true)
}

async fn examine_keys(config: &Config, pool: &PgPool, report: &mut Report) -> Result<(), sqlx::Error> {
    let rows: Vec<(uuid::Uuid, i32, Vec<u8>)> =
        sqlx::query_as("SELECT tenant_id, version, wrapped_key FROM wrapped_keys").fetch_all(pool).await?;
    let opens = |(tenant, version, wrapped): &(uuid::Uuid, i32, Vec<u8>)| {
        let sealed = Sealed::from_bytes(wrapped.clone()).ok();
        let version = u32::try_from(*version).ok();
        sealed.zip(version).is_some_and(|(sealed, version)| {
            config.master_keys.unwrap(TenantId::from_uuid(*tenant), version, &sealed).is_ok()
        })
    };
    let closed = rows.iter().filter(|row| !opens(row)).count();
    if closed > 0 {
        let seen = format!("{closed} of {} tenants' keys do not open", rows.len());
        let remedy = "FREEHOLD_MASTER_KEYS must hold every version in use; put the missing ones back";
        report.add("master keys", Level::Failure, seen, Some(remedy));
    } else {
        report.add("master keys", Level::Ok, format!("all {} tenants' keys open", rows.len()), None);
    }
    Ok(())
}

async fn examine_clusters(config: &Config, pool: &PgPool, report: &mut Report) {
    let keys = Arc::clone(&config.master_keys);
    let registry = ClusterRegistry::new(pool.clone(), keys, SystemClock::shared());
    let clusters = match registry.list().await {
        Ok(clusters) => clusters,
        Err(error) => return report.add("clusters", Level::Failure, error.to_string(), None),
    };
    if clusters.is_empty() {
        let remedy = "register one with `freehold cluster add NAME --admin-url-file FILE`";
        report.add("clusters", Level::Warning, "none is registered; tenants need one", Some(remedy));
    }
    for cluster in clusters {
        let check = format!("cluster {}", cluster.name);
        let url: Option<SecretString> = registry.admin_url(cluster.id).await.ok();
        let Some(url) = url.and_then(|url| DatabaseUrl::parse(&url).ok()) else {
            let remedy = "FREEHOLD_MASTER_KEYS must hold every version in use";
            report.add(check, Level::Failure, "its sealed URL does not open", Some(remedy));
            continue;
        };
        match provisioning::check_cluster(&url).await {
            Err(error) => {
                let remedy = "check that the server runs, and the rights of the role in its admin URL";
                report.add(check, Level::Failure, error.to_string(), Some(remedy));
            }
            Ok(_) if cluster.template_schema_version != Some(registry.migrations().current_version()) => {
                let seen = "its template database is of another version; the next provisioning rebuilds it";
                report.add(check, Level::Warning, seen, None);
            }
            Ok(found) => {
                let seen = format!("PostgreSQL {}, {} tenants", found.server_version / 10_000, cluster.tenants);
                report.add(check, Level::Ok, seen, None);
            }
        }
    }
}
