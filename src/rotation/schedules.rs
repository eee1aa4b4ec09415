//! Rotations that come by themselves.

use uuid::Uuid;

use super::requests::Targets;
use super::{RotationError, Rotations, Rotator, signing_key, store};
use crate::api::rotation::{RotationKind, RotationSchedule, ScheduleSetting, TenantRotation};
use crate::audit::{self, Actor, Event};
use crate::ids::SuperAdminId;

/// Rotations of one kind begun at a time, at most: a fleet that is due in one minute is spread over several.
const AT_ONCE: i64 = 100;

impl Rotations {
    /// Sets how often something is replaced, for single tenants or for all that have no schedule of their own.
    ///
    /// # Errors
    /// If the master key or an unknown tenant is named, or the period is no good.
    pub async fn set_schedule(
        &self,
        kind: RotationKind,
        targets: &Targets,
        schedule: ScheduleSetting,
        by: SuperAdminId,
    ) -> Result<(), RotationError> {
        let slugs = match targets {
            Targets::Platform => {
                return Err(RotationError::Targets("a new master key is made by hand; it has no schedule"));
            }
            Targets::All => None,
            Targets::Tenants(slugs) => Some(slugs),
        };
        if matches!(schedule, ScheduleSetting::EveryDays(days) if !(1..=3650).contains(&days)) {
            return Err(RotationError::Period);
        }
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let tenants: Option<Vec<Uuid>> = match slugs {
            None => None,
            Some(slugs) => {
                let found = store::candidates(&mut transaction, Some(slugs)).await?;
                if let Some(unknown) = slugs.iter().find(|slug| !found.iter().any(|found| found.slug == **slug)) {
                    return Err(RotationError::UnknownTenant(unknown.clone()));
                }
                Some(found.iter().map(|found| found.id.as_uuid()).collect())
            }
        };
        let name = kind.as_str();
        match schedule {
            ScheduleSetting::EveryDays(days) => {
                let days = Some(i32::from(days));
                store::set_schedules(&mut transaction, name, tenants.as_deref(), days, now).await?;
            }
            // For one tenant it is a decision of its own; for all there is simply none.
            ScheduleSetting::Off if tenants.is_some() => {
                store::set_schedules(&mut transaction, name, tenants.as_deref(), None, now).await?;
            }
            ScheduleSetting::Off | ScheduleSetting::Default => {
                store::delete_schedules(&mut transaction, name, tenants.as_deref()).await?;
            }
        }
        let event = Event {
            actor: Actor::SuperAdmin(by),
            action: "rotation.schedule",
            tenant_id: None,
            detail: serde_json::json!({ "kind": kind, "schedule": schedule, "tenants": slugs }),
        };
        audit::record(&mut transaction, &event, now).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// All schedules, those for all tenants first.
    ///
    /// # Errors
    /// If the platform's database fails.
    pub async fn schedules(&self) -> Result<Vec<RotationSchedule>, RotationError> {
        let rows = store::schedules(&self.pool).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                Some(RotationSchedule {
                    kind: RotationKind::parse(&row.kind)?,
                    tenant: row.slug,
                    every_days: row.every_days,
                    set_at: row.set_at,
                })
            })
            .collect())
    }

    /// When each thing of a tenant was replaced last, and will be next.
    ///
    /// # Errors
    /// If the platform's database fails.
    pub async fn of_tenant(&self, tenant: Uuid) -> Result<Vec<TenantRotation>, RotationError> {
        let rows = store::plan(&self.pool, tenant).await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                Some(TenantRotation {
                    kind: RotationKind::parse(&row.kind)?,
                    last_at: row.last_at,
                    next_at: row.next_at,
                    every_days: row.every_days,
                })
            })
            .collect())
    }

    /// Begins the rotations whose time has come. Returns how many.
    ///
    /// # Errors
    /// If the platform's database fails.
    pub async fn begin_due(&self) -> Result<usize, RotationError> {
        let mut begun = 0;
        for kind in RotationKind::OF_TENANTS {
            let mut connection = self.pool.acquire().await?;
            let due = store::due(&mut connection, kind.as_str(), self.clock.now(), AT_ONCE).await?;
            drop(connection);
            if due.is_empty() {
                continue;
            }
            // A tenant that is due for two things has the second when the first is done.
            match self.request(kind, &Targets::Tenants(due), None).await {
                Ok(requested) => begun += requested.operations.len(),
                // One single tenant that somebody else holds by now, or that has just gone: next time.
                Err(RotationError::Database(error)) => return Err(error.into()),
                Err(error) => tracing::debug!(%error, ?kind, "begin scheduled rotation"),
            }
        }
        Ok(begun)
    }
}

impl Rotator {
    /// Deletes signing keys that no token in force can be signed with, whatever became of their rotations.
    ///
    /// # Errors
    /// If the platform's database fails.
    pub async fn forget_retired_signing_keys(&self) -> Result<u64, RotationError> {
        let before = self.clock.now() - signing_key::verifies_for(self);
        Ok(store::delete_retired_signing_keys(&self.pool, None, before).await?)
    }
}
