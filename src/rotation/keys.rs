//! A tenant's data keys, opened for a step of a rotation.

use secrecy::SecretString;

use super::{Rotator, platform_failed, sealed_value, store};
use crate::ids::TenantId;
use crate::operations::StepError;
use crate::secrets::{DataKey, Location, Sealed};

/// A tenant's data keys, lowest version first, with whether each is in force.
pub(super) struct DataKeys(Vec<(DataKey, bool)>);

impl DataKeys {
    pub(super) async fn open(services: &Rotator, tenant: TenantId) -> Result<Self, StepError> {
        let rows = store::data_keys(&services.pool, tenant).await.map_err(platform_failed)?;
        let open = |row: &store::DataKeyRow| {
            let version = u32::try_from(row.version).ok()?;
            let wrapped = Sealed::from_bytes(row.wrapped_key.as_slice()).ok()?;
            Some((services.master_keys.unwrap(tenant, version, &wrapped).ok()?, row.activated_at.is_some()))
        };
        Ok(Self(rows.iter().map(open).collect::<Option<_>>().ok_or_else(sealed_value)?))
    }

    /// The key that seals from now on.
    pub(super) fn sealing(&self) -> Result<&DataKey, StepError> {
        self.0.iter().rev().find(|(_, active)| *active).map(|(key, _)| key).ok_or_else(sealed_value)
    }

    pub(super) fn version(&self, version: u32) -> Option<&DataKey> {
        self.0.iter().map(|(key, _)| key).find(|key| key.version() == version)
    }

    /// Opens a text that any of the keys sealed.
    pub(super) fn open_text(&self, location: &Location, bytes: &[u8]) -> Result<SecretString, StepError> {
        let sealed = Sealed::from_bytes(bytes).map_err(|_| sealed_value())?;
        let key = self.version(sealed.key_version()).ok_or_else(sealed_value)?;
        key.open_str(location, &sealed).map_err(|_| sealed_value())
    }

    /// The same value under the key of a version; nothing if it is under that key already.
    pub(super) fn reseal(&self, location: &Location, bytes: &[u8], to: u32) -> Result<Option<Vec<u8>>, StepError> {
        let sealed = Sealed::from_bytes(bytes).map_err(|_| sealed_value())?;
        if sealed.key_version() == to {
            return Ok(None);
        }
        let old = self.version(sealed.key_version()).ok_or_else(sealed_value)?;
        let new = self.version(to).ok_or_else(sealed_value)?;
        let value = old.open(location, &sealed).map_err(|_| sealed_value())?;
        Ok(Some(new.seal(location, &value).into_bytes()))
    }
}
