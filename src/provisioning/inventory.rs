//! What a cluster has of ours: databases, roles and who may connect where. It only looks.
//!
//! A fixed number of statements a cluster, however many tenants it has.

use tokio_postgres::Client;

use super::{ProvisioningError, template};

/// What a cluster's catalogs say.
#[derive(Debug, Clone)]
pub struct Inventory {
    /// The role of the admin URL.
    pub admin: String,
    /// Databases whose names are ours, and those that every server has.
    pub databases: Vec<DatabaseEntry>,
    /// Roles whose names are ours.
    pub roles: Vec<RoleEntry>,
    /// The name of the template database that this server clones.
    pub current_template: String,
    /// Whether a server is building a template right now.
    pub building: bool,
    /// What Postgres calls the server's data directory; a managed service may keep it to itself.
    pub system_identifier: Option<String>,
}

/// A database.
#[derive(Debug, Clone)]
pub struct DatabaseEntry {
    /// Its name.
    pub name: String,
    /// The role that owns it.
    pub owner: String,
    /// Whether anybody may connect at all.
    pub open: bool,
    /// Whether PUBLIC may connect.
    pub public: bool,
    /// The roles, PUBLIC aside, that were given CONNECT.
    pub admitted: Vec<String>,
}

/// A role.
#[derive(Debug, Clone)]
pub struct RoleEntry {
    /// Its name.
    pub name: String,
    /// Whether it may sign in.
    pub can_login: bool,
    /// The attributes it has and none of ours may have, by their names in SQL.
    pub powers: Vec<String>,
    /// The roles it may act as.
    pub member_of: Vec<String>,
    /// The roles that may act as it.
    pub members: Vec<String>,
}

const DATABASES: &str = "\
    SELECT d.datname::text, pg_get_userbyid(d.datdba)::text, d.datallowconn,
           has_database_privilege('public', d.oid, 'CONNECT'),
           ARRAY(SELECT DISTINCT pg_get_userbyid(a.grantee)::text
                 FROM aclexplode(COALESCE(d.datacl, acldefault('d', d.datdba))) a
                 WHERE a.privilege_type = 'CONNECT' AND a.grantee <> 0 ORDER BY 1)
    FROM pg_database d
    WHERE d.datname LIKE 'fh\\_%' OR d.datname LIKE 'freehold\\_template\\_%' OR d.datname IN ('postgres', 'template1')
    ORDER BY 1";

const ROLES: &str = "\
    SELECT r.rolname::text, r.rolcanlogin,
           array_remove(ARRAY[CASE WHEN r.rolsuper THEN 'SUPERUSER' END, CASE WHEN r.rolcreatedb THEN 'CREATEDB' END,
               CASE WHEN r.rolcreaterole THEN 'CREATEROLE' END, CASE WHEN r.rolreplication THEN 'REPLICATION' END,
               CASE WHEN r.rolbypassrls THEN 'BYPASSRLS' END], NULL),
           ARRAY(SELECT DISTINCT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                 WHERE m.member = r.oid ORDER BY 1),
           ARRAY(SELECT DISTINCT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.member
                 WHERE m.roleid = r.oid ORDER BY 1)
    FROM pg_roles r WHERE r.rolname LIKE 'fh\\_%' ORDER BY 1";

/// The two halves of an advisory lock's key are what `pg_locks` shows of it.
const BUILDING: &str = "\
    SELECT current_user::text, EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1
           AND classid::bigint = ($1::bigint >> 32) AND objid::bigint = ($1::bigint & 4294967295))";

pub(super) async fn take(admin: &Client, current_template: String) -> Result<Inventory, ProvisioningError> {
    let row = admin.query_one(BUILDING, &[&template::LOCK]).await?;
    let (role, building) = (row.get(0), row.get(1));
    let databases = admin.query(DATABASES, &[]).await?;
    let roles = admin.query(ROLES, &[]).await?;
    let system_identifier = crate::database_check::system_identifier(admin).await?;
    let database = |row: &tokio_postgres::Row| DatabaseEntry {
        name: row.get(0),
        owner: row.get(1),
        open: row.get(2),
        public: row.get(3),
        admitted: row.get(4),
    };
    let entry = |row: &tokio_postgres::Row| RoleEntry {
        name: row.get(0),
        can_login: row.get(1),
        powers: row.get(2),
        member_of: row.get(3),
        members: row.get(4),
    };
    Ok(Inventory {
        admin: role,
        databases: databases.iter().map(database).collect(),
        roles: roles.iter().map(entry).collect(),
        current_template,
        building,
        system_identifier,
    })
}
