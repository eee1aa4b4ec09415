//! The administrator's SQL. The only place that puts identifiers into SQL text, and it quotes every one.

use postgres_protocol::escape::{escape_identifier, escape_literal};
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::{Client, error::SqlState};

use super::ProvisioningError;
use super::template;
use crate::ids::{OperationId, Slug, TenantId};

/// The names of a tenant's database and roles. They carry the slug for the people who look at the server, and part
/// of the tenant's id, so that a slug used again never meets what an earlier tenant left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseNames {
    /// The database.
    pub database: String,
    /// Owns the database and everything in it; nobody signs in as this role.
    pub owner_role: String,
    /// Signs in.
    pub login_role: String,
}

impl DatabaseNames {
    /// Names have at most 63 bytes in Postgres: 3 of prefix, 40 of slug, 13 of id and 6 of suffix fit.
    pub fn new(slug: &Slug, id: TenantId) -> Self {
        let id = id.as_uuid().simple().to_string();
        let random_end = id.get(20..).unwrap_or(&id);
        let base = format!("fh_{}_{random_end}", slug.as_str().replace('-', "_"));
        Self::from_base(base)
    }

    /// Names for a database that an operation makes beside one that the tenant may have. They carry part of the
    /// operation's id too, so that no two of them ever meet. The slug is cut to 33 bytes for it.
    pub fn beside(slug: &Slug, id: TenantId, operation: OperationId) -> Self {
        let (id, operation) = (id.as_uuid().simple().to_string(), operation.as_uuid().simple().to_string());
        let end = |id: &str, length: usize| id.get(id.len().saturating_sub(length)..).unwrap_or(id).to_owned();
        let slug: String = slug.as_str().replace('-', "_").chars().take(33).collect();
        Self::from_base(format!("fh_{slug}_{}_{}", end(&id, 12), end(&operation, 6)))
    }

    fn from_base(base: String) -> Self {
        Self { owner_role: format!("{base}_owner"), login_role: format!("{base}_a"), database: base }
    }
}

/// The SCRAM-SHA-256 verifier of a password, as Postgres stores it. Computed here rather than by the server.
pub fn hash_password(password: &SecretString) -> String {
    postgres_protocol::password::scram_sha_256(password.expose_secret().as_bytes())
}

/// PUBLIC may connect to every new server's `postgres` and `template1`; tenants' roles must not.
pub(super) async fn shut_public_out(admin: &Client) -> Result<(), ProvisioningError> {
    for database in open_to_public(admin).await? {
        let sql = format!("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC", escape_identifier(&database));
        admin.batch_execute(&sql).await?;
    }
    Ok(())
}

/// Only those that need it are named: a role that does not own them may not revoke, not even what is revoked already.
pub(super) async fn open_to_public(admin: &Client) -> Result<Vec<String>, ProvisioningError> {
    let sql = "SELECT datname::text FROM pg_database WHERE datname IN ('postgres', 'template1')
               AND has_database_privilege('public', oid, 'CONNECT') ORDER BY datname";
    Ok(admin.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// An administrator that is no superuser has to be a member of tenants' roles, as the one that made them is.
pub(super) async fn check_acts_for_tenants(admin: &Client) -> Result<(), ProvisioningError> {
    let sql = "SELECT count(*), min(rolname::text), current_user::text FROM pg_roles
               WHERE rolname LIKE 'fh\\_%' AND NOT pg_has_role(current_user, oid, 'MEMBER')";
    let row = admin.query_one(sql, &[]).await?;
    let (roles, example, user): (i64, Option<String>, String) = (row.get(0), row.get(1), row.get(2));
    match example {
        None => Ok(()),
        Some(example) => Err(ProvisioningError::Unsuitable(format!(
            "the role may not act for {roles} roles of tenants, for example {example}; let the former administrator or a \
             superuser run GRANT <the former administrator> TO {}",
            escape_identifier(&user)
        ))),
    }
}

pub(super) async fn create_roles(
    admin: &Client,
    names: &DatabaseNames,
    verifier: &str,
) -> Result<(), ProvisioningError> {
    let owner = escape_identifier(&names.owner_role);
    let login = escape_identifier(&names.login_role);
    let (owner_name, login_name) = (escape_literal(&names.owner_role), escape_literal(&names.login_role));
    let verifier = escape_literal(verifier);
    // One batch is one implicit transaction: both roles are there or none. What the login role creates belongs to the
    // owner role, because its sessions act as that role from the start; so logins can be replaced without a trace.
    // An administrator that is no superuser must be a member of a role to give it a database, and of another to end
    // its sessions when the database is dropped.
    let sql = format!(
        "DO $do$ BEGIN
             IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {owner_name}) THEN CREATE ROLE {owner} NOLOGIN; END IF;
             IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {login_name}) THEN CREATE ROLE {login} NOLOGIN; END IF;
             IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                 GRANT {owner}, {login} TO CURRENT_USER;
             END IF;
         END $do$;
         ALTER ROLE {login} LOGIN PASSWORD {verifier};
         GRANT {owner} TO {login};
         ALTER ROLE {login} SET role = {owner_name};"
    );
    // The verifier travels once a tenant; with the server's default log settings a statement is logged only when it
    // fails, and the verifier is no password.
    Ok(admin.batch_execute(&sql).await?)
}

pub(super) async fn drop_roles(admin: &Client, names: &DatabaseNames) -> Result<(), ProvisioningError> {
    // Whichever of the two login roles there is: a credential may have been replaced since.
    let [a, b] = names.login_roles().map(|role| escape_identifier(&role));
    let owner = escape_identifier(&names.owner_role);
    let sql = format!("DROP ROLE IF EXISTS {a}; DROP ROLE IF EXISTS {b}; DROP ROLE IF EXISTS {owner};");
    Ok(admin.batch_execute(&sql).await?)
}

pub(super) async fn drop_role(admin: &Client, role: &str) -> Result<(), ProvisioningError> {
    Ok(admin.batch_execute(&format!("DROP ROLE IF EXISTS {}", escape_identifier(role))).await?)
}

pub(super) async fn create_database(
    admin: &Client,
    names: &DatabaseNames,
    template: &str,
) -> Result<(), ProvisioningError> {
    let database = escape_identifier(&names.database);
    // Nobody can connect before PUBLIC is shut out: a new database lets PUBLIC in by default.
    let create = format!(
        "CREATE DATABASE {database} TEMPLATE {} OWNER {} ALLOW_CONNECTIONS false",
        escape_identifier(template),
        escape_identifier(&names.owner_role)
    );
    match admin.batch_execute(&create).await {
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_DATABASE) => {}
        other => other?,
    }
    admit(admin, names).await
}

/// A database without anything in it. One that is there is removed first, whoever is connected: a restore that a dead
/// server left under way must not go on in it.
pub(super) async fn recreate_empty_database(admin: &Client, names: &DatabaseNames) -> Result<(), ProvisioningError> {
    drop_database(admin, names).await?;
    let create = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' OWNER {} ALLOW_CONNECTIONS false",
        escape_identifier(&names.database),
        escape_identifier(&names.owner_role)
    );
    admin.batch_execute(&create).await?;
    admit(admin, names).await
}

/// In an empty database, only the owner makes anything: up to version 14 of Postgres, everybody may.
pub(super) async fn reserve_schema(database: &Client, names: &DatabaseNames) -> Result<(), ProvisioningError> {
    let owner = escape_identifier(&names.owner_role);
    let sql = format!("REVOKE CREATE ON SCHEMA public FROM PUBLIC; GRANT ALL ON SCHEMA public TO {owner}");
    Ok(database.batch_execute(&sql).await?)
}

/// Shuts PUBLIC out, lets the login role in, and opens the database.
async fn admit(admin: &Client, names: &DatabaseNames) -> Result<(), ProvisioningError> {
    let database = escape_identifier(&names.database);
    let admit = format!(
        "REVOKE ALL ON DATABASE {database} FROM PUBLIC;
         GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {};
         ALTER DATABASE {database} ALLOW_CONNECTIONS true;",
        escape_identifier(&names.login_role)
    );
    Ok(admin.batch_execute(&admit).await?)
}

pub(super) async fn drop_database(admin: &Client, names: &DatabaseNames) -> Result<(), ProvisioningError> {
    let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", escape_identifier(&names.database));
    Ok(admin.batch_execute(&sql).await?)
}

/// `REASSIGN OWNED` also moves whole databases that the role owns; the template's role owns none.
pub(super) async fn assign_ownership(database: &Client, names: &DatabaseNames) -> Result<(), ProvisioningError> {
    let sql = format!(
        "REASSIGN OWNED BY {} TO {}",
        escape_identifier(template::OWNER_ROLE),
        escape_identifier(&names.owner_role)
    );
    database.batch_execute(&sql).await?;
    // From version 15 on a database's owner may create in it anyway; before that, only whom PUBLIC's right was left to.
    let may_create = "SELECT pg_catalog.has_schema_privilege($1::name, 'public', 'CREATE')";
    if !database.query_one(may_create, &[&names.owner_role]).await?.get::<_, bool>(0) {
        let grant = format!("GRANT ALL ON SCHEMA public TO {}", escape_identifier(&names.owner_role));
        database.batch_execute(&grant).await?;
    }
    Ok(())
}

/// Checks that the login role may connect to no other tenant's database. Everything asked is in the catalogs that all
/// databases share, so `admin` is in the maintenance database: in the tenant's own, which may hold anything by now, a
/// function of the tenant's could answer, with the administrator's rights.
pub(super) async fn check_isolation(admin: &Client, names: &DatabaseNames) -> Result<(), ProvisioningError> {
    let reachable: Option<String> = admin
        .query_one(
            "SELECT pg_catalog.string_agg(datname::text, ', ') FROM pg_catalog.pg_database
             WHERE datallowconn AND datname LIKE 'fh\\_%' AND datname <> $2::name
               AND pg_catalog.has_database_privilege($1::name, oid, 'CONNECT')",
            &[&names.login_role, &names.database],
        )
        .await?
        .get(0);
    match reachable {
        None => Ok(()),
        Some(databases) => Err(ProvisioningError::NotIsolated(databases)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_postgres_and_differ_for_a_slug_used_again() {
        let slug: Slug = "a234567890123456789012345678901234567890".parse().unwrap();
        let first = DatabaseNames::new(&slug, TenantId::new());
        let second = DatabaseNames::new(&slug, TenantId::new());
        assert!(first.owner_role.len() <= 63, "{}", first.owner_role);
        assert_ne!(first, second);
        let id = TenantId::new();
        let beside = DatabaseNames::beside(&slug, id, OperationId::new());
        assert!(beside.owner_role.len() <= 63, "{}", beside.owner_role);
        assert_ne!(beside, DatabaseNames::new(&slug, id));
        assert_ne!(beside, DatabaseNames::beside(&slug, id, OperationId::new()));
    }
}
