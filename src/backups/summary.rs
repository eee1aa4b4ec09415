//! What an archive says of its tenant, judged before the registry takes it over.

use garde::Validate;

use super::BackupError;
use crate::api::platform::{TenantLimits, TenantLimitsChange};
use crate::backup_archive::{ArchiveError, Summary};

/// The limits of the fields that the registry takes over; the same as where a tenant is asked for.
#[derive(Debug, Validate)]
struct Judged<'a> {
    #[garde(length(chars, min = 1, max = 200))]
    name: &'a str,
    #[garde(length(chars, min = 1, max = 50))]
    plan: &'a str,
    #[garde(length(chars, min = 1, max = 50))]
    template: &'a str,
    #[garde(email, length(max = 254))]
    admin_email: &'a str,
    #[garde(dive)]
    limits: TenantLimitsChange,
}

/// Whether what an archive says of its tenant could have been said of one here; returns the limits. Whoever has a key may
/// have written the archive, and the registry takes over what it says.
pub(super) fn judge(about: &Summary) -> Result<TenantLimits, BackupError> {
    let damaged = || ArchiveError::Damaged("it says of its tenant what cannot be");
    let limits: TenantLimits = serde_json::from_value(about.limits.clone()).map_err(|_| damaged())?;
    let judged = Judged {
        name: &about.name,
        plan: &about.plan,
        template: &about.template,
        admin_email: &about.admin_email,
        limits: TenantLimitsChange {
            connections: limits.connections.map(Some),
            requests_per_minute: limits.requests_per_minute.map(Some),
            requests_per_minute_per_user: limits.requests_per_minute_per_user.map(Some),
            requests_per_minute_per_api_key: limits.requests_per_minute_per_api_key.map(Some),
            requests_per_month: limits.requests_per_month.map(Some),
            features: Some(limits.features.iter().map(|(name, on)| (name.clone(), Some(*on))).collect()),
        },
    };
    judged.validate().map_err(|_| damaged())?;
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_be_said_of_a_tenant_here_is_taken_over() {
        let about = |name: &str, limits: serde_json::Value| -> Summary {
            serde_json::from_value(serde_json::json!({
                "created_at": "2026-01-01T00:00:00Z", "freehold_version": "1", "tenant_id": uuid::Uuid::nil(),
                "slug": "acme", "name": name, "plan": "pro", "template": "standard", "admin_email": "a@acme.example",
                "limits": limits, "database_mode": "managed", "schema_version": 1, "postgres_version": 180_000,
                "tables": []
            }))
            .unwrap()
        };
        let judged = judge(&about("Acme", serde_json::json!({ "connections": 7, "other": [1] }))).unwrap();
        assert_eq!(judged, TenantLimits { connections: Some(7), ..TenantLimits::default() });
        assert!(judge(&about("Acme", serde_json::json!({}))).is_ok());
        for limits in [
            serde_json::json!({ "connections": "many" }),
            serde_json::json!({ "connections": 0 }),
            serde_json::json!(7),
        ] {
            assert!(judge(&about("Acme", limits.clone())).is_err(), "{limits}");
        }
        assert!(judge(&about(&"a".repeat(201), serde_json::json!({}))).is_err());
    }
}
