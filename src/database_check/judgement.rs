//! What is good and bad about what a server says of itself.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::connecting::{owners_server, wanted_rights};
use super::facts::{Facts, Marker};
use super::{Finding, Purpose, Question, note, problem, warning};

/// The oldest and the newest major version that is known to work.
const VERSIONS: std::ops::RangeInclusive<u32> = 14..=18;
/// A chat turn makes a handful of round trips; from here on they are felt.
const SLOW: Duration = Duration::from_millis(50);
/// No decision hangs on the server's clock, but backups, logs and certificates do.
const SKEW_SECONDS: f64 = 30.0;
/// A statement that is cut off sooner than this also cuts off migrations.
const SHORT_STATEMENT_TIMEOUT_MS: i64 = 10_000;
/// With fewer, one chat and one administrator already wait for each other.
const FEWEST_CONNECTIONS: i64 = 2;

/// Judges what holds for every database.
pub(super) fn judge(facts: &Facts, question: &Question<'_>, latency: Duration, now: DateTime<Utc>) -> Vec<Finding> {
    let tenant = question.purpose == Purpose::Tenant;
    let mut findings = Vec::new();
    let major = facts.version_number / 10_000;
    if major < *VERSIONS.start() {
        findings.push(problem(
            "version_too_old",
            format!("the server is PostgreSQL {major}, and 14 is the oldest that works"),
            "upgrade the server to PostgreSQL 14 or newer",
        ));
    } else if major > *VERSIONS.end() {
        findings.push(warning(
            "version_unknown",
            format!("the server is PostgreSQL {major}, newer than any that was tested (18)"),
            "look for a newer Freehold; if there is none, try it with a database that you can spare",
        ));
    }
    if facts.in_recovery {
        findings.push(problem(
            "read_replica",
            "the server is a read replica (in recovery)",
            "give the primary's address; providers name it the writer or read-write endpoint",
        ));
    } else if facts.read_only {
        findings.push(problem(
            "read_only",
            "transactions are read-only here (default_transaction_read_only)",
            "see why: providers set it when the disk is full; then ALTER DATABASE … RESET default_transaction_read_only",
        ));
    }
    if facts.encoding != "UTF8" {
        findings.push(problem(
            "encoding_not_utf8",
            format!("the database's encoding is {}", facts.encoding),
            "create a database with ENCODING 'UTF8' (TEMPLATE template0) and give that",
        ));
    }
    findings.extend(wanted_rights(question.purpose, facts.may_provision));
    findings.extend(connections(facts, question));
    findings.push(if latency > SLOW {
        warning(
            "latency_high",
            format!("a question to the database takes {} ms, and every chat turn asks several", latency.as_millis()),
            "put database and server into the same region, best the same data centre",
        )
    } else {
        note(
            "latency",
            format!("a question to the database takes {:.1} ms", latency.as_secs_f64() * 1000.0),
            "nothing has to be done",
        )
    });
    let skew = facts.clock - now.timestamp_millis() as f64 / 1000.0;
    if skew.abs() > SKEW_SECONDS {
        let direction = if skew > 0.0 { "ahead" } else { "behind" };
        findings.push(warning(
            "clock_skew",
            format!("the database's clock is {:.0} seconds {direction} of this server's", skew.abs()),
            "set both clocks by NTP",
        ));
    }
    if (1..SHORT_STATEMENT_TIMEOUT_MS).contains(&facts.statement_timeout) {
        findings.push(warning(
            "statement_timeout_short",
            format!("statements are cut off after {} ms", facts.statement_timeout),
            "run ALTER ROLE … SET statement_timeout = '60s', or more, for this role",
        ));
    }
    if tenant {
        findings.extend(judge_tenants(facts));
    }
    findings
}

/// Judges what a client's own database needs besides.
fn judge_tenants(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !facts.create_on_schema {
        findings.push(problem(
            "no_create_on_schema",
            "the role may not create tables in the schema public, or there is no such schema",
            "run CREATE SCHEMA IF NOT EXISTS public; GRANT USAGE, CREATE ON SCHEMA public TO the role",
        ));
    } else if facts.current_schema.as_deref() != Some("public") {
        findings.push(problem(
            "search_path_odd",
            "the role's search_path does not begin with public, so that tables would get into another schema",
            "run ALTER ROLE … IN DATABASE … SET search_path = public",
        ));
    }
    if !facts.create_on_database {
        findings.push(warning(
            "no_create_on_database",
            "the role may not create extensions and schemas in the database; a later version may need to",
            "run GRANT CREATE ON DATABASE … TO the role",
        ));
    }
    if facts.superuser {
        findings.push(warning(
            "superuser",
            "the role is a superuser: whoever gets hold of its password gets the whole server",
            "create a role for Freehold that owns this one database, and give that",
        ));
    }
    if !facts.vector_available {
        findings.push(note(
            "vector_missing",
            "the server does not offer pgvector: everything works but searching documents by meaning",
            "install pgvector at the server when documents are to be searched",
        ));
    } else if !facts.vector_installed {
        findings.push(note(
            "vector_not_installed",
            "pgvector is offered but not installed in this database",
            "run CREATE EXTENSION vector when documents are to be searched",
        ));
    }
    if facts.event_triggers {
        findings.push(warning(
            "event_triggers",
            "event triggers run when tables are created, and may change or refuse what Freehold creates",
            "see that they leave Freehold's tables alone: SELECT evtname, evtfoid::regproc FROM pg_event_trigger",
        ));
    }
    if !facts.tables_with_row_security.is_empty() {
        findings.push(warning(
            "row_security_on",
            format!("row security is on for {}, and may hide rows", list(&facts.tables_with_row_security)),
            "run ALTER TABLE … DISABLE ROW LEVEL SECURITY for them, and look for what switched it on",
        ));
    }
    findings
}

/// How many connections are left beside the one that asks.
fn connections(facts: &Facts, question: &Question<'_>) -> Option<Finding> {
    let limited = |limit: i64, used: i64| if limit < 0 { i64::MAX } else { limit - used };
    let server = facts.max_connections - facts.reserved_connections - facts.used_connections;
    let role = limited(facts.role_limit, facts.role_used);
    let database = limited(facts.database_limit, facts.database_used);
    let free = server.min(role).min(database);
    let (whose, remedy) = if free == server {
        ("server", "raise max_connections, or end sessions that are not needed")
    } else if free == role {
        ("role", "run ALTER ROLE … CONNECTION LIMIT with a higher number, or -1 for none")
    } else {
        ("database", "run ALTER DATABASE … CONNECTION LIMIT with a higher number, or -1 for none")
    };
    // The connection that asks is counted as used, and will be free.
    let free = free.saturating_add(1).max(0);
    if free < FEWEST_CONNECTIONS {
        Some(problem("connections_too_few", format!("the {whose} has {free} connections left"), remedy))
    } else if free < i64::from(question.connections_wanted) {
        let wanted = question.connections_wanted;
        let seen = format!("the {whose} has {free} connections left, and Freehold would use up to {wanted}");
        Some(warning("connections_few", seen, remedy))
    } else {
        None
    }
}

/// Judges whose database it is already.
pub(super) fn judge_place(
    facts: &Facts,
    marker: &Marker,
    identifier: Option<&str>,
    question: &Question<'_>,
) -> Vec<Finding> {
    if question.purpose != Purpose::Tenant {
        return Vec::new();
    }
    let same_server = |server: &&super::OwnersServer| {
        identifier.is_some_and(|identifier| server.system_identifier.as_deref() == Some(identifier))
    };
    if facts.platform_tables {
        return vec![owners_server(true)];
    }
    // A cluster may be on the platform's server: the graver of the two is said.
    let mut servers: Vec<_> = question.owners_servers.iter().filter(same_server).collect();
    servers.sort_by_key(|server| !server.platform);
    if let Some(server) = servers.first() {
        return vec![owners_server(server.platform)];
    }
    match (marker, question.tenant) {
        (Marker::Tenant(found), Some(tenant)) if *found == tenant => {
            if facts.tables_of_others.is_empty() {
                return Vec::new();
            }
            vec![problem(
                "tables_not_owned",
                format!("the role may not change {}, which belong to another role", list(&facts.tables_of_others)),
                "run GRANT the old role TO the new one, or REASSIGN OWNED BY the old role TO the new one",
            )]
        }
        (Marker::Tenant(_), _) => vec![problem(
            "database_of_another_tenant",
            "the database belongs to another tenant of a Freehold platform already",
            "give a database of its own to each tenant",
        )],
        (Marker::None | Marker::Unreadable, _) if facts.has_marker || !facts.tables.is_empty() => {
            let mut tables = facts.tables.clone();
            if facts.has_marker {
                tables.push(crate::provisioning::INSTANCE_TABLE.to_owned());
            }
            vec![problem(
                "foreign_tables",
                format!("the schema public holds tables with names that Freehold uses: {}", list(&tables)),
                "give an empty database; a second one on the same server will do",
            )]
        }
        _ => Vec::new(),
    }
}

fn list(names: &[String]) -> String {
    names.join(", ")
}

/// The code of every finding that a check of a client's own database can have.
pub const CODES: &[&str] = &[
    "url_scheme",
    "url_user_missing",
    "url_database_missing",
    "url_host",
    "url_port",
    "url_sslmode",
    "url_parameter",
    "url_malformed",
    "url_socket",
    "url_certificate_file",
    "url_password_missing",
    "ca_unusable",
    "ca_without_encryption",
    "certificate_file_unusable",
    "encryption_not_demanded",
    "encryption_required",
    "password_obvious",
    "host_unresolvable",
    "address_not_public",
    "connection_refused",
    "host_unreachable",
    "connection_timed_out",
    "not_postgres",
    "tls_refused",
    "tls_failed",
    "certificate_unknown_issuer",
    "certificate_other_name",
    "certificate_expired",
    "certificate_not_yet_valid",
    "certificate_self_signed",
    "certificate_invalid",
    "client_certificate_required",
    "password_wrong",
    "password_demanded",
    "sign_in_unsupported",
    "role_missing",
    "role_may_not_log_in",
    "access_rule_rejects",
    "database_missing",
    "connect_denied",
    "database_closed",
    "connections_exhausted",
    "server_not_ready",
    "pooler_refuses",
    "sign_in_refused",
    "check_timed_out",
    "check_interrupted",
    "version_too_old",
    "version_unknown",
    "read_replica",
    "read_only",
    "encoding_not_utf8",
    "may_not_provision",
    "connections_too_few",
    "connections_few",
    "latency",
    "latency_high",
    "clock_skew",
    "statement_timeout_short",
    "no_create_on_schema",
    "search_path_odd",
    "no_create_on_database",
    "superuser",
    "vector_missing",
    "vector_not_installed",
    "event_triggers",
    "row_security_on",
    "transaction_pooler",
    "platform_database",
    "managed_cluster",
    "tables_not_owned",
    "database_of_another_tenant",
    "foreign_tables",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;

    fn codes(change: impl Fn(&mut Facts), marker: Marker, tenant: Option<TenantId>) -> Vec<String> {
        let mut facts = Facts::faultless();
        change(&mut facts);
        let url = "postgres://u:p@h/d".parse().unwrap();
        let question =
            Question { url: &url, purpose: Purpose::Tenant, tenant, owners_servers: &[], connections_wanted: 8 };
        let now = DateTime::from_timestamp(1_790_000_000, 0).unwrap();
        let mut findings = judge(&facts, &question, Duration::from_millis(1), now);
        findings.extend(judge_place(&facts, &marker, None, &question));
        findings.into_iter().map(|finding| finding.code).filter(|code| code != "latency").collect()
    }

    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        assert_eq!(codes(|_| {}, Marker::None, None), Vec::<String>::new());
    }

    #[test]
    fn versions_from_14_to_18_are_known() {
        for (version, code) in [(130_022, Some("version_too_old")), (140_000, None), (180_006, None)] {
            assert_eq!(
                codes(|facts| facts.version_number = version, Marker::None, None).first().map(String::as_str),
                code
            );
        }
        assert_eq!(codes(|facts| facts.version_number = 190_000, Marker::None, None), ["version_unknown"]);
    }

    #[test]
    fn the_narrowest_limit_of_connections_counts() {
        let with = |used: i64, role: i64, database: i64| {
            codes(
                |facts| (facts.used_connections, facts.role_limit, facts.database_limit) = (used, role, database),
                Marker::None,
                None,
            )
        };
        assert_eq!(with(97, -1, -1), ["connections_too_few"]);
        assert_eq!(with(94, -1, -1), ["connections_few"]);
        assert_eq!(with(5, 1, -1), ["connections_too_few"]);
        assert_eq!(with(5, -1, 4), ["connections_few"]);
        assert_eq!(with(5, 8, 8), Vec::<String>::new());
    }

    #[test]
    fn a_database_is_taken_only_by_the_tenant_that_it_names() {
        let (ours, other) = (TenantId::new(), TenantId::new());
        let full = |facts: &mut Facts| {
            facts.has_marker = true;
            facts.tables = vec!["chat_sessions".to_owned()];
        };
        assert_eq!(codes(full, Marker::Tenant(ours), Some(ours)), Vec::<String>::new());
        assert_eq!(codes(full, Marker::Tenant(other), Some(ours)), ["database_of_another_tenant"]);
        assert_eq!(codes(full, Marker::Tenant(other), None), ["database_of_another_tenant"]);
        assert_eq!(codes(full, Marker::Unreadable, Some(ours)), ["foreign_tables"]);
        let tables = |facts: &mut Facts| facts.tables = vec!["client_users".to_owned()];
        assert_eq!(codes(tables, Marker::None, Some(ours)), ["foreign_tables"]);
    }
}
