//! What an archive says about itself. It lies sealed inside; the tenant's keys are written here and nowhere else.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;
use zeroize::Zeroizing;

/// The rows of one table and a checksum over all of them, whatever their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChecksum {
    /// The table.
    pub table: String,
    /// How many rows it has.
    pub rows: i64,
    /// The sum of a hash of each row.
    pub checksum: String,
}

/// All of a manifest that may be shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// When the backup was asked for.
    pub created_at: DateTime<Utc>,
    /// The version of Freehold that wrote it.
    pub freehold_version: String,
    /// The tenant.
    pub tenant_id: Uuid,
    /// Its name in addresses.
    pub slug: String,
    /// The company's name.
    pub name: String,
    /// Its plan.
    pub plan: String,
    /// The template it was made from.
    pub template: String,
    /// The registered client admin's address.
    pub admin_email: String,
    /// Its limits, as the registry has them.
    pub limits: serde_json::Value,
    /// Whose server its database was on: `managed` or `own`.
    pub database_mode: String,
    /// The version of its database's schema.
    pub schema_version: i64,
    /// The server's version, for example 180006.
    pub postgres_version: i32,
    /// Its tables.
    pub tables: Vec<TableChecksum>,
}

/// What an archive says about itself.
#[derive(Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// All that may be shown.
    pub about: Summary,
    /// The tenant's data keys, every version.
    pub data_keys: Vec<ManifestKey>,
}

/// One version of the tenant's data key.
#[derive(Debug, Serialize, Deserialize)]
pub struct ManifestKey {
    /// Which one.
    pub version: u32,
    /// The key itself.
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    pub key: KeyBytes,
}

/// Thirty-two bytes that do not print and are wiped when dropped.
pub struct KeyBytes(Zeroizing<[u8; 32]>);

impl KeyBytes {
    /// Takes a key.
    pub fn new(key: Zeroizing<[u8; 32]>) -> Self {
        Self(key)
    }

    /// The key.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

fn write_key<S: Serializer>(key: &KeyBytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&Zeroizing::new(STANDARD.encode(key.0.as_slice())))
}

fn read_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyBytes, D::Error> {
    // Borrowed from the buffer, which is wiped: base64 has no escapes that would make a copy necessary.
    let refused = || serde::de::Error::custom("a key is not 32 bytes of base64");
    let text = <&str>::deserialize(deserializer).map_err(|_| refused())?;
    let bytes = STANDARD.decode(text).map(Zeroizing::new).map_err(|_| refused())?;
    let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| refused())?;
    Ok(KeyBytes(Zeroizing::new(key)))
}

impl Manifest {
    /// As JSON, in a buffer that is wiped and does not move while it grows.
    pub(super) fn to_json(&self) -> Option<Zeroizing<Vec<u8>>> {
        let open = serde_json::to_vec(&self.about).ok()?.len();
        let mut json = Zeroizing::new(Vec::with_capacity(open + 128 * (self.data_keys.len() + 1)));
        serde_json::to_writer(&mut *json, self).ok()?;
        Some(json)
    }
}
