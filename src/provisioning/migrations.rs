//! The migrations of the tenants' databases, as a value: which there are, and which versions of the schema a program
//! and a database can speak with each other in.
//!
//! A database and a program may be of different versions while a fleet is moved. Two numbers say when that works. The
//! *program's* `oldest_spoken`: it speaks databases from that version up to its own. The *database's* `compatible_from`:
//! programs from that version on speak it, though it is newer than they are. Most migrations only add, and change
//! neither; one that takes something away says so in its text with a line `-- oldest-program: VERSION`.

use sha2::{Digest, Sha256};
use sqlx::migrate::{Migration, Migrator};

use crate::tenant_db::SpokenSchemas;

/// The migrations of every tenant's database.
pub static TENANT_MIGRATOR: Migrator = sqlx::migrate!("./tenant-migrations");

/// The oldest tenant schema that this program speaks. Raise it with the code that can no longer do without a later
/// migration; until every tenant is migrated that far, those behind are answered with 503.
pub const OLDEST_SPOKEN_SCHEMA: i64 = 19;

/// The line in a migration that takes something away from older programs.
const OLDEST_PROGRAM: &str = "-- oldest-program:";

/// A set of tenant migrations and what follows from it.
#[derive(Debug, Clone)]
pub struct TenantMigrations {
    migrations: Vec<Migration>,
    oldest_spoken: i64,
    /// Distinguishes the template of a set that is not the program's own.
    label: String,
}

impl TenantMigrations {
    /// The program's own.
    pub fn embedded() -> Self {
        let migrations = TENANT_MIGRATOR.iter().filter(|migration| !migration.migration_type.is_down_migration());
        Self { migrations: migrations.cloned().collect(), oldest_spoken: OLDEST_SPOKEN_SCHEMA, label: String::new() }
    }

    /// The same with more behind them. For tests and benchmarks, which migrate a fleet to a version that the program
    /// does not have yet. The template gets a name of its own, so that nobody clones it by mistake.
    #[must_use]
    pub fn with_more(mut self, more: impl IntoIterator<Item = Migration>) -> Self {
        self.migrations.extend(more);
        self.migrations.sort();
        let mut digest = Sha256::new();
        for migration in &self.migrations {
            digest.update(&migration.checksum);
        }
        self.label = format!("_{}", hex::encode(digest.finalize()).get(..8).unwrap_or_default());
        self
    }

    /// The same for a program that speaks no schema older than `oldest`.
    #[must_use]
    pub fn speaking_from(mut self, oldest: i64) -> Self {
        self.oldest_spoken = oldest;
        self
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Migration> {
        self.migrations.iter()
    }

    /// One of them.
    pub fn get(&self, version: i64) -> Option<&Migration> {
        self.migrations.iter().find(|migration| migration.version == version)
    }

    /// The version of the schema after all of them.
    pub fn current_version(&self) -> i64 {
        self.migrations.iter().map(|migration| migration.version).max().unwrap_or(0)
    }

    /// The versions a program with these migrations speaks.
    pub fn spoken(&self) -> SpokenSchemas {
        SpokenSchemas { oldest: self.oldest_spoken, current: self.current_version() }
    }

    /// The oldest program that can speak a database of this version.
    pub fn compatible_from(&self, version: i64) -> i64 {
        let declared =
            self.migrations.iter().filter(|migration| migration.version <= version).filter_map(|migration| {
                let line = migration.sql.as_str().lines().find_map(|line| line.trim().strip_prefix(OLDEST_PROGRAM))?;
                line.trim().parse::<i64>().ok()
            });
        declared.max().unwrap_or(0)
    }

    /// The name of the template database that holds this schema.
    pub(super) fn template_name(&self) -> String {
        format!("freehold_template_{}{}", self.current_version(), self.label)
    }
}

impl Default for TenantMigrations {
    fn default() -> Self {
        Self::embedded()
    }
}

#[cfg(test)]
mod tests {
    use sqlx::SqlSafeStr;
    use sqlx::migrate::MigrationType;

    use super::*;

    fn migration(version: i64, sql: &'static str) -> Migration {
        Migration::new(version, "test".into(), MigrationType::Simple, sql.into_sql_str(), false)
    }

    #[test]
    fn the_programs_own_schema_is_spoken() {
        let own = TenantMigrations::embedded();
        assert!(own.spoken().oldest <= own.current_version());
        assert_eq!(own.template_name(), format!("freehold_template_{}", own.current_version()));
    }

    #[test]
    fn what_a_migration_takes_away_is_declared_in_it() {
        let more = [
            migration(9001, "CREATE TABLE a ()"),
            migration(9002, "-- The last reader of b is gone.\n-- oldest-program: 9001\nDROP TABLE b"),
            migration(9003, "CREATE TABLE c ()"),
        ];
        let set = TenantMigrations::embedded().with_more(more);
        assert_eq!((set.compatible_from(9001), set.compatible_from(9002), set.compatible_from(9003)), (0, 9001, 9001));
        assert_ne!(set.template_name(), TenantMigrations::embedded().template_name());
    }

    /// A build outside a transaction may have happened without having been noted: it has to be repeatable, and can only
    /// be one statement, for several sent at once are a transaction.
    #[test]
    fn migrations_without_a_transaction_can_be_repeated() {
        for migration in TenantMigrations::embedded().iter().filter(|migration| migration.no_tx) {
            let sql = migration.sql.as_str();
            let code: String = sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
            assert_eq!(code.trim().trim_end_matches(';').matches(';').count(), 0, "{sql}");
            assert!(code.contains("IF NOT EXISTS") || code.contains("IF EXISTS"), "{sql}");
        }
    }
}
