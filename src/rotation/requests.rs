//! Asking for rotations: one operation a tenant, all in one group and in a few statements.

use uuid::Uuid;

use super::store::Candidate;
use super::{
    Requested, RotationError, Rotations, SkipReason, Skipped, data_key, database, master_key, signing_key, store,
};
use crate::api::platform::TenantState;
use crate::api::rotation::RotationKind;
use crate::audit::{self, Actor, Event};
use crate::ids::{OperationId, SigningKeyId, SuperAdminId, TenantId};
use crate::operations::{self, Definition, NewOperation, OperationError};

/// Whose credentials or keys are to be replaced.
#[derive(Debug, Clone)]
pub enum Targets {
    /// Those of these tenants, by slug.
    Tenants(Vec<String>),
    /// Those of all tenants.
    All,
    /// The platform's own.
    Platform,
}

impl Targets {
    /// From a request that names tenants or says "all".
    ///
    /// # Errors
    /// [`RotationError::Targets`] if it says both or neither, or some for the platform's own key.
    pub fn new(kind: RotationKind, tenants: Option<Vec<String>>, all: bool) -> Result<Self, RotationError> {
        match (kind, tenants, all) {
            (RotationKind::MasterKey, None, false) => Ok(Self::Platform),
            (RotationKind::MasterKey, ..) => {
                Err(RotationError::Targets("the master key is the platform's, not a tenant's"))
            }
            (_, Some(tenants), false) => Ok(Self::Tenants(tenants)),
            (_, None, true) => Ok(Self::All),
            _ => Err(RotationError::Targets("give either `tenants` or `all`")),
        }
    }
}

impl Rotations {
    /// Queues rotations: all of them, or none if a named tenant does not exist.
    ///
    /// # Errors
    /// For one single tenant whatever is in its way; of many, those that cannot be are among the skipped.
    pub async fn request(
        &self,
        kind: RotationKind,
        targets: &Targets,
        by: Option<SuperAdminId>,
    ) -> Result<Requested, RotationError> {
        match targets {
            Targets::Platform => self.request_master_key(by).await,
            Targets::All => self.request_for_tenants(kind, None, by).await,
            Targets::Tenants(slugs) => self.request_for_tenants(kind, Some(slugs), by).await,
        }
    }

    async fn request_for_tenants(
        &self,
        kind: RotationKind,
        slugs: Option<&[String]>,
        by: Option<SuperAdminId>,
    ) -> Result<Requested, RotationError> {
        let now = self.clock.now();
        let mut transaction = self.pool.begin().await?;
        let candidates = store::candidates(&mut transaction, slugs).await?;
        if let Some(unknown) =
            slugs.and_then(|slugs| slugs.iter().find(|slug| !candidates.iter().any(|found| found.slug == **slug)))
        {
            return Err(RotationError::UnknownTenant(unknown.clone()));
        }
        let group_id = Uuid::now_v7();
        let (mut skipped, mut wanted) = (Vec::new(), Vec::new());
        for candidate in candidates {
            match refusal(kind, &candidate) {
                Some(reason) => skipped.push(Skipped { slug: candidate.slug, reason }),
                None => wanted.push(candidate),
            }
        }
        let (kind_name, steps) = definition(kind);
        let new: Vec<NewOperation<'_>> = wanted
            .iter()
            .map(|candidate| NewOperation {
                id: OperationId::new(),
                kind: kind_name,
                tenant_id: Some(candidate.id),
                input: input(kind, candidate),
                steps: &steps,
                created_by: by.map(|admin| admin.as_uuid()),
                group_id: Some(group_id),
            })
            .collect();
        let created = operations::store::create_many(&mut transaction, &new, now).await?;
        let late: Vec<TenantId> =
            new.iter().filter(|new| !created.contains(&new.id)).filter_map(|new| new.tenant_id).collect();
        if !late.is_empty() {
            // Somebody else was faster just now; who, is told as if it had been seen at once.
            for candidate in store::candidates(&mut transaction, slugs).await? {
                if late.contains(&candidate.id)
                    && let Some(reason) = refusal(kind, &candidate)
                {
                    skipped.push(Skipped { slug: candidate.slug, reason });
                }
            }
        }
        if let (Some([_]), [Skipped { reason, .. }]) = (slugs, skipped.as_slice()) {
            return Err(reason.clone().into());
        }
        let event = Event {
            actor: by.map_or(Actor::System, Actor::SuperAdmin),
            action: "rotation.request",
            tenant_id: None,
            detail: serde_json::json!({ "kind": kind, "group_id": group_id, "operations": created.len() }),
        };
        if !created.is_empty() {
            audit::record(&mut transaction, &event, now).await?;
        }
        transaction.commit().await?;
        Ok(Requested { group_id, operations: created, skipped })
    }

    async fn request_master_key(&self, by: Option<SuperAdminId>) -> Result<Requested, RotationError> {
        let now = self.clock.now();
        let primary = self.master_keys.primary_version();
        let in_use = self.master_keys_in_use().await?;
        if let Some((missing, _)) =
            in_use.iter().find(|(used, _)| !self.master_keys.versions().any(|held| held == *used))
        {
            return Err(RotationError::MasterKeyMissing(*missing));
        }
        if in_use.iter().all(|(version, _)| *version == primary) {
            return Err(RotationError::NothingToRotate(primary));
        }
        let (kind, steps) = definition(RotationKind::MasterKey);
        let group_id = Uuid::now_v7();
        let operation = NewOperation {
            id: OperationId::new(),
            kind,
            tenant_id: None,
            input: serde_json::json!(master_key::Input { version: primary }),
            steps: &steps,
            created_by: by.map(|admin| admin.as_uuid()),
            group_id: Some(group_id),
        };
        let mut transaction = self.pool.begin().await?;
        operations::store::create(&mut transaction, &operation, now).await?;
        let event = Event {
            actor: by.map_or(Actor::System, Actor::SuperAdmin),
            action: "rotation.request",
            tenant_id: None,
            detail: serde_json::json!({ "kind": RotationKind::MasterKey, "version": primary }),
        };
        audit::record(&mut transaction, &event, now).await?;
        transaction.commit().await?;
        Ok(Requested { group_id, operations: vec![operation.id], skipped: Vec::new() })
    }
}

impl From<SkipReason> for RotationError {
    fn from(reason: SkipReason) -> Self {
        match reason {
            SkipReason::NotActive => Self::NotActive,
            SkipReason::NotManaged => Self::NotManaged,
            SkipReason::Held { holder, kind } => OperationError::Conflict { holder, kind }.into(),
        }
    }
}

/// The operation's kind and the names of its steps.
fn definition(kind: RotationKind) -> (&'static str, Vec<&'static str>) {
    fn of<S>(definition: &Definition<S>) -> (&'static str, Vec<&'static str>) {
        (definition.kind, definition.steps.iter().map(|step| step.name).collect())
    }
    match kind {
        RotationKind::Database => of(&database::DEFINITION),
        RotationKind::DataKey => of(&data_key::DEFINITION),
        RotationKind::SigningKey => of(&signing_key::DEFINITION),
        RotationKind::MasterKey => of(&master_key::DEFINITION),
    }
}

/// Ids and numbers; never a secret, for it is stored.
fn input(kind: RotationKind, candidate: &Candidate) -> serde_json::Value {
    match kind {
        RotationKind::DataKey => {
            let version = candidate.data_key_version.unwrap_or(0).cast_unsigned() + 1;
            serde_json::json!(data_key::Input { version })
        }
        RotationKind::SigningKey => serde_json::json!(signing_key::Input { signing_key_id: SigningKeyId::new() }),
        RotationKind::Database | RotationKind::MasterKey => serde_json::json!({}),
    }
}

fn refusal(kind: RotationKind, candidate: &Candidate) -> Option<SkipReason> {
    // A suspended tenant's database lets nobody in, and must not be opened by a role whose turn it would be.
    let in_reach = match TenantState::parse(&candidate.state) {
        TenantState::Active => true,
        TenantState::Suspended => !matches!(kind, RotationKind::Database | RotationKind::DataKey),
        _ => false,
    };
    if !in_reach {
        return Some(SkipReason::NotActive);
    }
    if kind == RotationKind::Database && candidate.database_mode != "managed" {
        return Some(SkipReason::NotManaged);
    }
    candidate.holder.map(|holder| SkipReason::Held {
        holder: OperationId::from_uuid(holder),
        kind: candidate.holder_kind.clone().unwrap_or_default(),
    })
}
