//! Which roles of a tenant may sign in: locked while it is out of service, removed with it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::Client;

use super::{DatabaseNames, ProvisioningError};

/// How long sessions have to end that were told to.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at the sessions that are left.
const PAUSE: Duration = Duration::from_millis(30);
/// So many looks in a row have to find no session: one that was just being let in is not listed yet.
const QUIET_LOOKS: u32 = 3;

/// Every role that a tenant may have on a cluster. Not all of them need be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRoles {
    /// Owns the database; never signs in.
    pub owner: String,
    /// Sign in, by turns.
    pub logins: BTreeSet<String>,
}

impl TenantRoles {
    /// The roles that go by these names, and the login roles that alternate under this owner.
    pub fn new(names: &DatabaseNames) -> Self {
        Self::of_owner(&names.owner_role, [names.login_role.clone()])
    }

    /// The roles of an owner, and further login roles that are known.
    pub fn of_owner(owner: &str, known: impl IntoIterator<Item = String>) -> Self {
        let mut logins: BTreeSet<String> = known.into_iter().collect();
        if let Some(base) = owner.strip_suffix("_owner") {
            logins.extend(["a", "b"].map(|turn| format!("{base}_{turn}")));
        }
        Self { owner: owner.to_owned(), logins }
    }
}

fn literals(names: &BTreeSet<String>) -> String {
    names.iter().map(|name| escape_literal(name)).collect::<Vec<_>>().join(", ")
}

/// Lets none of the roles sign in any more, and ends the sessions they have. When it returns there are none.
pub(super) async fn lock(admin: &Client, logins: &BTreeSet<String>) -> Result<(), ProvisioningError> {
    let sql = format!(
        "DO $do$ DECLARE login name; BEGIN
             FOR login IN SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname = ANY (ARRAY[{}]::name[]) LOOP
                 EXECUTE format('ALTER ROLE %I NOLOGIN', login);
             END LOOP;
         END $do$",
        literals(logins)
    );
    admin.batch_execute(&sql).await?;
    let names: Vec<&str> = logins.iter().map(String::as_str).collect();
    let give_up = Instant::now() + PATIENCE;
    let mut quiet = 0;
    while quiet < QUIET_LOOKS {
        let sql = "SELECT count(*), count(*) FILTER (WHERE pg_terminate_backend(pid))
                   FROM pg_stat_activity WHERE usename = ANY ($1::text[]::name[])";
        let sessions: i64 = admin.query_one(sql, &[&names]).await?.get(0);
        quiet = if sessions == 0 { quiet + 1 } else { 0 };
        if Instant::now() > give_up {
            return Err(ProvisioningError::SessionsLeft);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Lets a role sign in again, with the password it had.
pub(super) async fn unlock(admin: &Client, login: &str) -> Result<(), ProvisioningError> {
    Ok(admin.batch_execute(&format!("ALTER ROLE {} LOGIN", escape_identifier(login))).await?)
}

/// Removes all roles that are there. They own nothing any more once the database is gone.
pub(super) async fn drop_all(admin: &Client, roles: &TenantRoles) -> Result<(), ProvisioningError> {
    let all = roles.logins.iter().chain([&roles.owner]).map(|name| escape_identifier(name)).collect::<Vec<_>>();
    Ok(admin.batch_execute(&format!("DROP ROLE IF EXISTS {}", all.join(", "))).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_turns_and_whatever_else_is_known_are_roles_of_the_tenant() {
        let roles = TenantRoles::of_owner("fh_acme_1_owner", ["fh_acme_1_a".to_owned(), "another".to_owned()]);
        assert_eq!(roles.logins, ["another", "fh_acme_1_a", "fh_acme_1_b"].map(str::to_owned).into());
        assert!(TenantRoles::of_owner("theirs", []).logins.is_empty());
    }
}
