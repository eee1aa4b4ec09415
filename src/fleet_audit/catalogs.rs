//! What a cluster has, next to what the registry says it has.

use std::collections::{BTreeMap, BTreeSet};

use super::store::{Beside, TenantEntry};
use super::{Finding, Seen, Severity};
use crate::api::platform::DatabaseMode;
use crate::ids::{ClusterId, Slug, TenantId};
use crate::provisioning::{DatabaseEntry, DatabaseNames, Inventory, RoleEntry, TenantRoles};
use crate::tenants::TenantError;

/// A server. Names of databases and roles are its own, under however many names it is registered as a cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Server {
    /// By what Postgres calls its data directory.
    Identified(String),
    /// One that keeps that to itself.
    OfCluster(ClusterId),
}

impl Server {
    fn of(cluster: ClusterId, clusters: &BTreeMap<ClusterId, Seen>) -> Self {
        let identifier = clusters.get(&cluster).and_then(|seen| seen.system_identifier.clone());
        identifier.map_or(Self::OfCluster(cluster), Self::Identified)
    }
}

/// The names that a tenant goes by on its cluster; nothing for a database of the client's own.
struct Names {
    cluster: ClusterId,
    database: String,
    roles: TenantRoles,
}

impl Names {
    fn of(entry: &TenantEntry) -> Option<Self> {
        if DatabaseMode::parse(&entry.database_mode) == DatabaseMode::Own {
            return None;
        }
        let others = [&entry.login_role, &entry.next_login_role, &entry.retiring_login_role];
        Some(Self {
            cluster: ClusterId::from_uuid(entry.cluster_id?),
            database: entry.database_name.clone()?,
            roles: TenantRoles::of_owner(entry.owner_role.as_deref()?, others.into_iter().flatten().cloned()),
        })
    }

    /// The names that a tenant without any on record would have got: a provisioning that begins next to the audit.
    fn usual(entry: &TenantEntry) -> Option<Self> {
        let slug: Slug = entry.slug.parse().ok()?;
        let names = DatabaseNames::new(&slug, TenantId::from_uuid(entry.id));
        let roles = TenantRoles::new(&names);
        Some(Self { cluster: ClusterId::from_uuid(entry.cluster_id?), database: names.database, roles })
    }
}

/// Compares every cluster that could be asked. `registered` are the tenants that were registered at any time while the
/// clusters were looked at; `still` those that can be held to what they should be; `beside` what operations made beside
/// a tenant's own.
pub(super) fn compare<'a>(
    clusters: &BTreeMap<ClusterId, Seen>,
    still: &[&TenantEntry],
    registered: impl Iterator<Item = &'a TenantEntry>,
    beside: &[Beside],
    findings: &mut Vec<Finding>,
) {
    let mut databases: BTreeSet<(Server, String)> = BTreeSet::new();
    let mut roles: BTreeSet<(Server, String)> = BTreeSet::new();
    for entry in registered {
        let usual = if entry.moving { Names::usual(entry) } else { None };
        for names in Names::of(entry).into_iter().chain(usual) {
            let server = Server::of(names.cluster, clusters);
            roles.extend(names.roles.logins.into_iter().chain([names.roles.owner]).map(|role| (server.clone(), role)));
            databases.insert((server, names.database));
        }
    }
    for made in beside {
        let server = Server::of(ClusterId::from_uuid(made.cluster_id), clusters);
        let names = TenantRoles::of_owner(&made.owner_role, []);
        roles.extend(names.logins.into_iter().chain([names.owner]).map(|role| (server.clone(), role)));
        databases.insert((server, made.database_name.clone()));
    }
    let mut first_of: BTreeMap<Server, &str> = BTreeMap::new();
    for (id, seen) in clusters {
        let cluster = Cluster { id: *id, name: &seen.name, server: Server::of(*id, clusters) };
        match first_of.get(&cluster.server) {
            Some(first) => findings.push(cluster.registered_twice(first)),
            None => {
                first_of.insert(cluster.server.clone(), &seen.name);
            }
        }
        let inventory = match &seen.inventory {
            Ok(inventory) => inventory,
            Err(error) => {
                findings.push(cluster.unreachable(error));
                continue;
            }
        };
        cluster.strangers(inventory, &databases, &roles, findings);
        let there: BTreeMap<&str, &DatabaseEntry> =
            inventory.databases.iter().map(|entry| (entry.name.as_str(), entry)).collect();
        let role_entries: BTreeMap<&str, &RoleEntry> =
            inventory.roles.iter().map(|entry| (entry.name.as_str(), entry)).collect();
        for entry in still {
            if let Some(names) = Names::of(entry).filter(|names| names.cluster == *id) {
                let tenant = Tenant { entry, names: &names, admin: &inventory.admin };
                tenant.database(there.get(names.database.as_str()).copied(), findings);
                tenant.roles(&role_entries, findings);
            }
        }
    }
}

struct Cluster<'a> {
    id: ClusterId,
    name: &'a str,
    server: Server,
}

impl Cluster<'_> {
    fn finding(&self, code: &'static str, severity: Severity, what: &str, detail: impl Into<String>) -> Finding {
        let subject = format!("{what} on cluster {}", self.name);
        Finding { code, severity, subject, tenant: None, cluster: Some(self.id), detail: detail.into() }
    }

    fn registered_twice(&self, first: &str) -> Finding {
        Finding {
            code: "cluster_registered_twice",
            severity: Severity::Warning,
            subject: format!("cluster {}", self.name),
            tenant: None,
            cluster: Some(self.id),
            detail: format!(
                "it is the same server as cluster {first}, which so gets the connections of two: create new tenants on one of \
                 them only"
            ),
        }
    }

    fn unreachable(&self, error: &TenantError) -> Finding {
        let subject = format!("cluster {}", self.name);
        let (code, detail) = match error {
            TenantError::Sealed => {
                ("sealed_value_unreadable", "its admin URL does not open: check FREEHOLD_MASTER_KEYS".to_owned())
            }
            error => ("cluster_unreachable", format!("it could not be looked at: {error}")),
        };
        Finding { code, severity: Severity::Problem, subject, tenant: None, cluster: Some(self.id), detail }
    }

    /// What is there and belongs to nobody, and what every server has.
    fn strangers(
        &self,
        inventory: &Inventory,
        databases: &BTreeSet<(Server, String)>,
        roles: &BTreeSet<(Server, String)>,
        findings: &mut Vec<Finding>,
    ) {
        for entry in &inventory.databases {
            let what = format!("database {}", entry.name);
            if let Some(version) = entry.name.strip_prefix("freehold_template_") {
                findings.extend(self.template(inventory, &entry.name, version));
            } else if !entry.name.starts_with("fh_") {
                if entry.public {
                    let detail =
                        "PUBLIC may connect, and so may every tenant's role: REVOKE CONNECT ON DATABASE … FROM PUBLIC";
                    findings.push(self.finding("public_may_connect", Severity::Problem, &what, detail));
                }
            } else if !databases.contains(&(self.server.clone(), entry.name.clone())) {
                let detail = "no tenant is registered with it; if nobody needs it, drop it by hand";
                findings.push(self.finding("orphan_database", Severity::Problem, &what, detail));
            }
        }
        for entry in &inventory.roles {
            let what = format!("role {}", entry.name);
            if !entry.powers.is_empty() {
                let detail = format!("it has {}, which none of ours may have", entry.powers.join(", "));
                findings.push(self.finding("role_powers", Severity::Problem, &what, detail));
            }
            if !roles.contains(&(self.server.clone(), entry.name.clone())) {
                let detail = "no tenant is registered with it; if nobody needs it, drop it by hand";
                findings.push(self.finding("orphan_role", Severity::Problem, &what, detail));
            }
        }
    }

    fn template(&self, inventory: &Inventory, name: &str, version: &str) -> Option<Finding> {
        let what = format!("database {name}");
        let current = inventory.current_template.strip_prefix("freehold_template_").and_then(|n| n.parse::<i64>().ok());
        let (code, detail) = match (version, version.parse::<i64>().ok()) {
            ("building" | "reading", _) if !inventory.building => {
                ("template_leftover", "a server died while it worked with it; the next one that does replaces it")
            }
            (_, Some(version)) if current.is_some_and(|current| version < current) => {
                ("template_old", "new tenants are cloned from a newer one; drop it when no older server runs any more")
            }
            _ => return None,
        };
        Some(self.finding(code, Severity::Warning, &what, detail))
    }
}

/// A tenant that stood still, next to what its cluster has.
struct Tenant<'a> {
    entry: &'a TenantEntry,
    names: &'a Names,
    admin: &'a str,
}

impl Tenant<'_> {
    fn problem(&self, code: &'static str, detail: impl Into<String>) -> Finding {
        self.entry.finding(code, Severity::Problem, detail)
    }

    /// Whether its database and roles have to be there. One whose purge failed may have lost some of them.
    fn is_there(&self) -> bool {
        match self.entry.state.as_str() {
            "active" | "suspended" => true,
            "deleting" => self.entry.deleted_from.is_some(),
            _ => false,
        }
    }

    fn database(&self, found: Option<&DatabaseEntry>, findings: &mut Vec<Finding>) {
        let Some(found) = found else {
            if self.is_there() {
                let detail = format!("its database {} is not there; restore it from a backup", self.names.database);
                findings.push(self.problem("database_missing", detail));
            }
            return;
        };
        let owner = &self.names.roles.owner;
        if found.owner != *owner {
            let detail = format!("its database {} belongs to {}, not to {owner}", found.name, found.owner);
            findings.push(self.problem("database_owner", detail));
        }
        if !found.open && self.entry.state == "active" {
            let detail = format!("nobody may connect to its database {}", found.name);
            findings.push(self.problem("database_closed", detail));
        }
        let expected = |role: &&String| {
            self.names.roles.logins.contains(*role) || *role == owner || **role == found.owner || *role == self.admin
        };
        let mut strangers: Vec<&str> =
            found.admitted.iter().filter(|role| !expected(role)).map(String::as_str).collect();
        if found.public {
            strangers.push("PUBLIC");
        }
        if !strangers.is_empty() {
            let detail = format!("{} may connect to its database {}: revoke that", strangers.join(", "), found.name);
            findings.push(self.problem("strangers_may_connect", detail));
        }
    }

    fn roles(&self, there: &BTreeMap<&str, &RoleEntry>, findings: &mut Vec<Finding>) {
        let (owner, logins) = (&self.names.roles.owner, &self.names.roles.logins);
        let in_use = self.entry.login_role.as_ref();
        let missing: Vec<&str> = [Some(owner), in_use]
            .into_iter()
            .flatten()
            .filter(|role| !there.contains_key(role.as_str()))
            .map(String::as_str)
            .collect();
        if self.is_there() && !missing.is_empty() {
            findings.push(self.problem("role_missing", format!("it lacks {}", missing.join(", "))));
        }
        let mut memberships = Vec::new();
        if let Some(role) = there.get(owner.as_str()) {
            if role.can_login {
                let detail = format!("{owner} owns everything and may sign in: ALTER ROLE {owner} NOLOGIN");
                findings.push(self.problem("owner_may_login", detail));
            }
            memberships.extend(role.member_of.iter().map(|other| format!("{owner} may act as {other}")));
            let strangers = role.members.iter().filter(|member| !logins.contains(*member) && *member != self.admin);
            memberships.extend(strangers.map(|stranger| format!("{stranger} may act as {owner}")));
        }
        for login in logins {
            let Some(role) = there.get(login.as_str()) else { continue };
            memberships.extend(
                role.member_of
                    .iter()
                    .filter(|other| *other != owner)
                    .map(|other| format!("{login} may act as {other}")),
            );
            let strangers = role.members.iter().filter(|member| *member != self.admin);
            memberships.extend(strangers.map(|stranger| format!("{stranger} may act as {login}")));
            findings.extend(self.login(login, role.can_login));
        }
        if !memberships.is_empty() {
            findings.push(self.problem("role_memberships", memberships.join("; ")));
        }
    }

    fn login(&self, login: &String, can_login: bool) -> Option<Finding> {
        let known = [&self.entry.login_role, &self.entry.next_login_role, &self.entry.retiring_login_role];
        let is_known = known.into_iter().flatten().any(|role| role == login);
        match (self.entry.state.as_str(), can_login) {
            ("active", false) if self.entry.login_role.as_ref() == Some(login) => {
                Some(self.problem(
                    "login_locked",
                    format!("it is active, and {login} may not sign in: suspend and resume it"),
                ))
            }
            ("active", true) if !is_known => Some(self.problem(
                "login_enabled",
                format!("{login} may sign in, and is not one of the roles in use: ALTER ROLE {login} NOLOGIN"),
            )),
            ("suspended" | "deleting", true) => Some(self.problem(
                "login_enabled",
                format!("it is {}, and {login} may sign in: ALTER ROLE {login} NOLOGIN", self.entry.state),
            )),
            _ => None,
        }
    }
}
