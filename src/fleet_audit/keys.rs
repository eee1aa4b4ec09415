//! Whether the keys are there, and open what they have to.

use super::store::TenantEntry;
use super::{Finding, Severity};
use crate::ids::{SigningKeyId, TenantId};
use crate::secrets::{DataKey, Location, MasterKeyring, Sealed};
use crate::tenant_db::{database_url_location, next_database_url_location, signing_key_location};

pub(super) fn compare(master_keys: &MasterKeyring, still: &[TenantEntry]) -> Vec<Finding> {
    still.iter().flat_map(|entry| of_tenant(master_keys, entry)).collect()
}

fn of_tenant(master_keys: &MasterKeyring, entry: &TenantEntry) -> Vec<Finding> {
    let problem = |code, detail: String| entry.finding(code, Severity::Problem, detail);
    let mut findings = Vec::new();
    let is_there = ["active", "suspended"].contains(&entry.state.as_str())
        || (entry.state == "deleting" && entry.deleted_from.is_some());
    if entry.state == "deleted" {
        findings.push(problem("keys_left", "it is deleted, and keys or credentials of it are left".to_owned()));
    }
    if !is_there {
        return findings;
    }
    if entry.key_versions.is_empty() {
        findings.push(problem(
            "data_key_missing",
            "it has no data key: nothing that was sealed for it opens. Restore it from a backup of its own".to_owned(),
        ));
    }
    if !entry.signing_key_in_use {
        let detail = "it has no key that signs tokens: nobody can sign in. Rotate its signing key";
        findings.push(problem("signing_key_missing", detail.to_owned()));
    }
    let id = TenantId::from_uuid(entry.id);
    let mut keys: Vec<DataKey> = Vec::new();
    for (version, wrapped) in entry.key_versions.iter().zip(&entry.wrapped_keys) {
        let Ok(wrapped) = Sealed::from_bytes(wrapped.clone()) else {
            findings.push(problem("sealed_value_unreadable", format!("its data key {version} is damaged")));
            continue;
        };
        if !master_keys.versions().any(|known| known == wrapped.key_version()) {
            findings.push(problem(
                "master_key_unknown",
                format!(
                    "its data key {version} is wrapped by master key {}, which this server does not have",
                    wrapped.key_version()
                ),
            ));
            continue;
        }
        match u32::try_from(*version).map(|version| master_keys.unwrap(id, version, &wrapped)) {
            Ok(Ok(key)) => keys.push(key),
            _ => findings.push(problem("sealed_value_unreadable", format!("its data key {version} does not open"))),
        }
    }
    if keys.is_empty() {
        return findings;
    }
    let mut values: Vec<(&'static str, Location, &Vec<u8>)> = Vec::new();
    if let Some(url) = &entry.url_sealed {
        values.push(("database URL", database_url_location(id), url));
    }
    if let Some(url) = &entry.next_url_sealed {
        values.push(("next database URL", next_database_url_location(id), url));
    }
    for (key, secret) in entry.signing_key_ids.iter().zip(&entry.signing_secrets) {
        values.push(("signing key", signing_key_location(id, SigningKeyId::from_uuid(*key)), secret));
    }
    let opens = |location: &Location, value: &[u8]| {
        let Ok(sealed) = Sealed::from_bytes(value.to_vec()) else { return false };
        keys.iter().any(|key| key.version() == sealed.key_version() && key.open(location, &sealed).is_ok())
    };
    let closed: Vec<&str> =
        values.iter().filter(|(_, location, value)| !opens(location, value)).map(|(what, ..)| *what).collect();
    if !closed.is_empty() {
        let detail = format!("what was sealed for it does not open: {}", closed.join(", "));
        findings.push(problem("sealed_value_unreadable", detail));
    }
    findings
}
