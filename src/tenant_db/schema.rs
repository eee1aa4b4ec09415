//! Which schemas of a tenant's database this server speaks.

use super::TenantDbError;
use crate::provisioning;

/// Nothing, if this server speaks the schema of that version, and otherwise why not. A server never guesses: it may
/// meet a database that has not been migrated yet, or one that a newer server has migrated already.
pub(super) fn spoken(version: Option<i64>) -> Result<(), TenantDbError> {
    let current = provisioning::current_schema_version();
    match version {
        Some(version) if version > current => Err(TenantDbError::SchemaTooNew),
        Some(version) if version < current => Err(TenantDbError::SchemaTooOld),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_present_schema_is_spoken() {
        let current = provisioning::current_schema_version();
        assert!(spoken(Some(current)).is_ok());
        assert!(matches!(spoken(Some(current + 1)), Err(TenantDbError::SchemaTooNew)));
        assert!(matches!(spoken(Some(current - 1)), Err(TenantDbError::SchemaTooOld)));
    }
}
