//! How to sign in to a tenant's database as the tenant, read for one moment and never kept: a run over thousands of
//! tenants must not fill the memory with their keys.

use crate::ids::TenantId;
use crate::secrets::{DataKey, DatabaseUrl, Location, MasterKeyring, Sealed};
use crate::tenant_db::{database_url_location, next_database_url_location};

/// A tenant's credentials as stored.
#[derive(Default)]
pub(super) struct SealedCredentials {
    pub(super) url: Option<Vec<u8>>,
    pub(super) next_url: Option<Vec<u8>>,
    pub(super) wrapped_keys: Vec<(i32, Vec<u8>)>,
}

/// A value did not open.
#[derive(Debug)]
pub(super) struct Unreadable;

/// The credential in use, and behind it one that is being brought in: after a crash either may be the one that works.
pub(super) fn open(
    master_keys: &MasterKeyring,
    tenant: TenantId,
    sealed: SealedCredentials,
) -> Result<Vec<DatabaseUrl>, Unreadable> {
    let mut data_keys = Vec::new();
    for (version, wrapped) in sealed.wrapped_keys {
        let wrapped = Sealed::from_bytes(wrapped).map_err(|_| Unreadable)?;
        let version = u32::try_from(version).map_err(|_| Unreadable)?;
        data_keys.push(master_keys.unwrap(tenant, version, &wrapped).map_err(|_| Unreadable)?);
    }
    let places = [database_url_location(tenant), next_database_url_location(tenant)];
    let values = [sealed.url, sealed.next_url].into_iter().zip(places);
    values.filter_map(|(value, place)| Some(open_url(&data_keys, value?, &place))).collect()
}

fn open_url(data_keys: &[DataKey], value: Vec<u8>, place: &Location) -> Result<DatabaseUrl, Unreadable> {
    let value = Sealed::from_bytes(value).map_err(|_| Unreadable)?;
    let key = data_keys.iter().find(|key| key.version() == value.key_version()).ok_or(Unreadable)?;
    let text = key.open_str(place, &value).map_err(|_| Unreadable)?;
    DatabaseUrl::parse(&text).map_err(|_| Unreadable)
}
