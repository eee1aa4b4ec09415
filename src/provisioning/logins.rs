//! The two login roles of a tenant's database, which take turns: SQL that lets one in, proves it, and shuts one out.

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Client;

use super::{DatabaseNames, ProvisioningError};
use crate::secrets::{DatabaseUrl, connect};

/// How long a session that is ended may take to go, in milliseconds.
const FAREWELL: i64 = 5_000;

impl DatabaseNames {
    /// The two login roles; at most one of them may sign in, but for a moment while a credential is replaced.
    pub fn login_roles(&self) -> [String; 2] {
        ["a", "b"].map(|suffix| format!("{}_{suffix}", self.database))
    }

    /// The same database with the login role whose turn is next.
    #[must_use]
    pub fn alternate(&self) -> Self {
        let [a, b] = self.login_roles();
        Self { login_role: if self.login_role == a { b } else { a }, ..self.clone() }
    }
}

/// Lets the login role of `names` sign in with a password, and makes the role first if need be. The other login role
/// stays as it is.
pub(super) async fn enable(admin: &Client, names: &DatabaseNames, verifier: &str) -> Result<(), ProvisioningError> {
    let database = escape_identifier(&names.database);
    let owner = escape_identifier(&names.owner_role);
    let login = escape_identifier(&names.login_role);
    let (owner_name, login_name) = (escape_literal(&names.owner_role), escape_literal(&names.login_role));
    let verifier = escape_literal(verifier);
    // One batch is one implicit transaction: the role is there with all of it, or as it was before.
    let sql = format!(
        "DO $do$ BEGIN
             IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {login_name}) THEN CREATE ROLE {login} NOLOGIN; END IF;
             IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
                 GRANT {login} TO CURRENT_USER;
             END IF;
         END $do$;
         GRANT {owner} TO {login};
         ALTER ROLE {login} SET role = {owner_name};
         GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {login};
         ALTER ROLE {login} LOGIN PASSWORD {verifier};"
    );
    Ok(admin.batch_execute(&sql).await?)
}

/// Shuts the login role of `names` out for good: it signs in no more, its password is gone, its sessions end. Accepts
/// a role or a database that is not there.
pub(super) async fn disable(admin: &Client, names: &DatabaseNames) -> Result<(), ProvisioningError> {
    let database = escape_identifier(&names.database);
    let login = escape_identifier(&names.login_role);
    let (database_name, login_name) = (escape_literal(&names.database), escape_literal(&names.login_role));
    let (owner, owner_name) = (escape_identifier(&names.owner_role), escape_literal(&names.owner_role));
    // What the role may do it may as a member of the owner's: that goes as well.
    let sql = format!(
        "DO $do$ BEGIN
             IF EXISTS (SELECT FROM pg_roles WHERE rolname = {login_name}) THEN
                 ALTER ROLE {login} NOLOGIN PASSWORD NULL;
                 IF EXISTS (SELECT FROM pg_roles WHERE rolname = {owner_name}) THEN REVOKE {owner} FROM {login}; END IF;
                 IF EXISTS (SELECT FROM pg_database WHERE datname = {database_name}) THEN
                     REVOKE CONNECT, TEMPORARY ON DATABASE {database} FROM {login};
                 END IF;
             END IF;
         END $do$"
    );
    admin.batch_execute(&sql).await?;
    // Only now: a session that began before the role was shut out is seen here, and none begins any more.
    let sql = "SELECT count(*) FILTER (WHERE NOT pg_terminate_backend(pid, $2))
               FROM pg_stat_activity WHERE usename = $1";
    let left: i64 = admin.query_one(sql, &[&names.login_role, &FAREWELL]).await?.get(0);
    if left > 0 {
        return Err(ProvisioningError::Unreachable(anyhow::anyhow!("{left} sessions did not end")));
    }
    Ok(())
}

/// Signs in with a new credential, and checks that it acts as the owner and reaches no other tenant's database.
///
/// # Errors
/// [`ProvisioningError::NotIsolated`] with what it reaches, [`ProvisioningError::Unsuitable`] if it is somebody else.
pub async fn check_login(url: &DatabaseUrl, names: &DatabaseNames) -> Result<(), ProvisioningError> {
    let (client, _) = connect(url).await.map_err(|error| ProvisioningError::Unreachable(error.into()))?;
    let sql = "SELECT current_user = $1 AND session_user = $2 AND current_database() = $3,
                      (SELECT string_agg(datname, ', ') FROM pg_database
                       WHERE datallowconn AND datname LIKE 'fh\\_%' AND datname <> current_database()
                         AND has_database_privilege($2, oid, 'CONNECT'))";
    let row = client.query_one(sql, &[&names.owner_role, &names.login_role, &names.database]).await?;
    let (itself, reachable): (bool, Option<String>) = (row.get(0), row.get(1));
    match reachable {
        Some(databases) => Err(ProvisioningError::NotIsolated(databases)),
        None if itself => Ok(()),
        None => Err(ProvisioningError::Unsuitable(
            "the new credential does not act as the owner of the tenant's database".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Slug, TenantId};

    #[test]
    fn login_roles_take_turns() {
        let slug: Slug = "acme".parse().unwrap();
        let first = DatabaseNames::new(&slug, TenantId::new());
        let second = first.alternate();
        assert_ne!(first.login_role, second.login_role);
        assert_eq!(first.login_roles(), [first.login_role.clone(), second.login_role.clone()]);
        assert_eq!(second.alternate(), first);
    }
}
