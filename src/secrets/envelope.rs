//! Sealed values: AES-256-GCM bound to the place where the value is stored.
//!
//! A sealed value copied to another tenant, table, column or row does not open there, so whoever can write to a
//! database but holds no key cannot move secrets about in it. They can still put back an older sealed value of the
//! same place: binding a place does not detect a replay.

use std::fmt;

use aes_gcm::aead::array::Array;
use aes_gcm::aead::{Aead as _, Generate as _, Payload};
use aes_gcm::{Aes256Gcm, Key, KeyInit as _};
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use uuid::Uuid;
use zeroize::{Zeroize as _, Zeroizing};

use crate::ids::TenantId;

/// Length of an AES-256 key in bytes.
pub(super) const KEY_LENGTH: usize = 32;

/// The only layout written so far.
const FORMAT: u8 = 1;
const KEY_VERSION_LENGTH: usize = 4;
const NONCE_LENGTH: usize = 12;
const TAG_LENGTH: usize = 16;
const HEADER_LENGTH: usize = 1 + KEY_VERSION_LENGTH + NONCE_LENGTH;

/// A sealed value could not be opened.
///
/// It says nothing about why: wrong key, wrong place, a changed byte and a value that never was a sealed one all
/// look alike, so that the answer helps nobody who tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed value could not be opened")]
pub struct OpenError;

/// Where a sealed value is stored. It becomes the associated data of the encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Nil for what belongs to the platform rather than to one tenant.
    tenant: Uuid,
    table: &'static str,
    column: &'static str,
    row: String,
}

impl Location {
    /// A place that belongs to one tenant, in whichever database it is. `row` is the row's primary key.
    #[must_use]
    pub fn tenant(tenant: TenantId, table: &'static str, column: &'static str, row: impl fmt::Display) -> Self {
        Self { tenant: tenant.as_uuid(), table, column, row: row.to_string() }
    }

    /// A place that belongs to the platform, such as a cluster's administrative address. `row` is the row's primary
    /// key.
    #[must_use]
    pub fn platform(table: &'static str, column: &'static str, row: impl fmt::Display) -> Self {
        Self { tenant: Uuid::nil(), table, column, row: row.to_string() }
    }

    /// The bytes that are authenticated together with the value. Every part of variable length is preceded by its
    /// length, so no two places give the same bytes.
    fn associated_data(&self, purpose: Purpose, key_version: u32) -> Vec<u8> {
        let mut data = Vec::with_capacity(128);
        let mut part = |bytes: &[u8]| {
            data.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
            data.extend_from_slice(bytes);
        };
        part(b"freehold sealed value");
        part(&[FORMAT, purpose as u8]);
        part(&key_version.to_be_bytes());
        part(self.tenant.as_bytes());
        part(self.table.as_bytes());
        part(self.column.as_bytes());
        part(self.row.as_bytes());
        data
    }
}

/// What a key was used for, so that a wrapped key can never be opened as a stored secret or the other way round.
/// The numbers are part of the format.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    /// A secret under a tenant's data key.
    TenantSecret = 1,
    /// A data key under the master key.
    WrappedKey = 2,
    /// A platform-wide secret under the master key.
    PlatformSecret = 3,
}

/// An encrypted value as it is stored: one byte for the format, four for the key's version (big-endian), twelve for
/// the nonce, then the ciphertext with its tag of sixteen bytes. It is 33 bytes longer than the value.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(Vec<u8>);

impl Sealed {
    /// Takes bytes read from storage.
    ///
    /// # Errors
    /// [`OpenError`] if they are too short to be a sealed value or of an unknown format.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, OpenError> {
        let bytes = bytes.into();
        if bytes.len() < HEADER_LENGTH + TAG_LENGTH || bytes.first() != Some(&FORMAT) {
            return Err(OpenError);
        }
        Ok(Self(bytes))
    }

    /// The bytes to store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes to store, without copying them.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Version of the key that sealed this value, as the header claims. It is authenticated only by opening it.
    #[must_use]
    pub fn key_version(&self) -> u32 {
        self.0.get(1..=KEY_VERSION_LENGTH).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes)
    }
}

impl AsRef<[u8]> for Sealed {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(key_version={}, len={})", self.key_version(), self.0.len())
    }
}

/// The cipher for a key. The key schedule is computed here once.
pub(super) fn cipher(key: &[u8; KEY_LENGTH]) -> Aes256Gcm {
    Aes256Gcm::new(key.into())
}

pub(super) fn seal_with(
    cipher: &Aes256Gcm,
    key_version: u32,
    purpose: Purpose,
    location: &Location,
    plaintext: &[u8],
) -> Sealed {
    // A random nonce may be used for 2^32 values under one key before a repetition becomes likely enough to matter:
    // far above what one tenant stores, and a rotation starts from zero.
    let nonce = Array::<u8, _>::generate();
    #[expect(
        clippy::expect_used,
        reason = "AES-GCM refuses only plaintexts or associated data of 2^36 bytes or more, which do not fit in memory"
    )]
    let ciphertext = cipher
        .encrypt(&nonce, Payload { msg: plaintext, aad: &location.associated_data(purpose, key_version) })
        .expect("a value held in memory is short enough for AES-GCM");
    let mut bytes = Vec::with_capacity(HEADER_LENGTH + ciphertext.len());
    bytes.push(FORMAT);
    bytes.extend_from_slice(&key_version.to_be_bytes());
    bytes.extend_from_slice(&nonce);
    bytes.extend_from_slice(&ciphertext);
    Sealed(bytes)
}

pub(super) fn open_with(
    cipher: &Aes256Gcm,
    key_version: u32,
    purpose: Purpose,
    location: &Location,
    sealed: &Sealed,
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    if sealed.key_version() != key_version {
        return Err(OpenError);
    }
    let (header, ciphertext) = sealed.0.split_at_checked(HEADER_LENGTH).ok_or(OpenError)?;
    let nonce = header
        .get(1 + KEY_VERSION_LENGTH..)
        .and_then(|nonce| <[u8; NONCE_LENGTH]>::try_from(nonce).ok())
        .ok_or(OpenError)?;
    cipher
        .decrypt(&nonce.into(), Payload { msg: ciphertext, aad: &location.associated_data(purpose, key_version) })
        .map(Zeroizing::new)
        .map_err(|_| OpenError)
}

/// One tenant's key, which seals that tenant's secrets. It is wiped from memory when dropped; share it as an `Arc`.
pub struct DataKey {
    version: u32,
    key: SecretBox<[u8; KEY_LENGTH]>,
    cipher: Aes256Gcm,
}

impl DataKey {
    /// A new random key. `version` counts a tenant's keys and belongs to every value the key seals.
    ///
    /// # Panics
    /// If the operating system cannot supply random bytes.
    #[must_use]
    pub fn generate(version: u32) -> Self {
        let mut key = Key::<Aes256Gcm>::generate();
        let data_key = Self::from_key(version, key.as_ref());
        key.zeroize();
        data_key
    }

    pub(super) fn from_key(version: u32, key: &[u8; KEY_LENGTH]) -> Self {
        Self {
            version,
            key: SecretBox::init_with_mut(|stored: &mut [u8; KEY_LENGTH]| {
                stored.copy_from_slice(key);
            }),
            cipher: cipher(key),
        }
    }

    pub(super) fn expose_key(&self) -> &[u8; KEY_LENGTH] {
        self.key.expose_secret()
    }

    /// The key itself, for a sealed backup of its tenant and for nothing else.
    #[must_use]
    pub fn export(&self) -> Zeroizing<[u8; KEY_LENGTH]> {
        Zeroizing::new(*self.expose_key())
    }

    /// A key that a sealed backup held.
    #[must_use]
    pub fn import(version: u32, key: &[u8; KEY_LENGTH]) -> Self {
        Self::from_key(version, key)
    }

    /// Which of the tenant's keys this is.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Seals `plaintext` for `location`. Sealing the same value twice gives different bytes.
    ///
    /// # Panics
    /// If the operating system cannot supply random bytes.
    #[must_use]
    pub fn seal(&self, location: &Location, plaintext: &[u8]) -> Sealed {
        seal_with(&self.cipher, self.version, Purpose::TenantSecret, location, plaintext)
    }

    /// Opens a value that was sealed by this key for `location`. The result is wiped from memory when dropped.
    ///
    /// # Errors
    /// [`OpenError`] if the key or its version, the place or any byte differs.
    pub fn open(&self, location: &Location, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        open_with(&self.cipher, self.version, Purpose::TenantSecret, location, sealed)
    }

    /// Seals a text for `location`, as [`DataKey::seal`] does.
    ///
    /// # Panics
    /// If the operating system cannot supply random bytes.
    #[must_use]
    pub fn seal_str(&self, location: &Location, plaintext: &SecretString) -> Sealed {
        self.seal(location, plaintext.expose_secret().as_bytes())
    }

    /// Opens a text.
    ///
    /// # Errors
    /// [`OpenError`] as for [`DataKey::open`], or if the value is not UTF-8.
    pub fn open_str(&self, location: &Location, sealed: &Sealed) -> Result<SecretString, OpenError> {
        secret_text(&self.open(location, sealed)?)
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey").field("version", &self.version).finish_non_exhaustive()
    }
}

pub(super) fn secret_text(bytes: &[u8]) -> Result<SecretString, OpenError> {
    // The text is copied from a slice rather than taken over, since shrinking the decrypted buffer could leave an
    // unwiped copy behind.
    std::str::from_utf8(bytes).map(SecretString::from).map_err(|_| OpenError)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    fn place(tenant: TenantId) -> Location {
        Location::tenant(tenant, "tenant_databases", "url", "row-1")
    }

    #[test]
    fn a_value_opens_where_it_was_sealed() {
        let (key, tenant) = (DataKey::generate(7), TenantId::new());
        let sealed = key.seal(&place(tenant), b"secret");
        assert_eq!(sealed.key_version(), 7);
        assert_eq!(sealed.as_bytes().len(), b"secret".len() + 33);
        assert_eq!(sealed.as_bytes()[..5], [1, 0, 0, 0, 7]);
        assert_eq!(*key.open(&place(tenant), &sealed).unwrap(), b"secret");
        let stored = Sealed::from_bytes(sealed.clone().into_bytes()).unwrap();
        assert_eq!(stored, sealed);
        assert_eq!(*key.open(&place(tenant), &stored).unwrap(), b"secret");
        assert_eq!(*key.open(&place(tenant), &key.seal(&place(tenant), b"")).unwrap(), b"");
        assert_ne!(key.seal(&place(tenant), b"secret"), sealed);
    }

    #[test]
    fn a_value_opens_nowhere_else() {
        let (key, tenant) = (DataKey::generate(1), TenantId::new());
        let sealed = key.seal(&place(tenant), b"secret");
        for elsewhere in [
            Location::tenant(TenantId::new(), "tenant_databases", "url", "row-1"),
            Location::platform("tenant_databases", "url", "row-1"),
            Location::tenant(tenant, "api_configurations", "url", "row-1"),
            Location::tenant(tenant, "tenant_databases", "key", "row-1"),
            Location::tenant(tenant, "tenant_databases", "url", "row-2"),
            // The same letters, divided otherwise.
            Location::tenant(tenant, "tenant_database", "surl", "row-1"),
            Location::tenant(tenant, "tenant_databases", "urlr", "ow-1"),
            Location::tenant(tenant, "tenant_databases", "url", ""),
        ] {
            assert_eq!(key.open(&elsewhere, &sealed), Err(OpenError), "{elsewhere:?}");
        }
    }

    #[test]
    fn another_key_or_version_does_not_open_it() {
        let (key, tenant) = (DataKey::generate(1), TenantId::new());
        let sealed = key.seal(&place(tenant), b"secret");
        assert_eq!(DataKey::generate(1).open(&place(tenant), &sealed), Err(OpenError));
        // The same key material under another version, with the header left and with it rewritten.
        let renamed = DataKey::from_key(2, key.expose_key());
        assert_eq!(renamed.open(&place(tenant), &sealed), Err(OpenError));
        let mut bytes = sealed.into_bytes();
        bytes[4] = 2;
        let rewritten = Sealed::from_bytes(bytes).unwrap();
        assert_eq!(renamed.open(&place(tenant), &rewritten), Err(OpenError));
        assert_eq!(key.open(&place(tenant), &rewritten), Err(OpenError));
    }

    #[test]
    fn a_purpose_is_bound() {
        let (key, location) = (DataKey::generate(1), place(TenantId::new()));
        let sealed = key.seal(&location, b"secret");
        for purpose in [Purpose::WrappedKey, Purpose::PlatformSecret] {
            assert_eq!(open_with(&key.cipher, 1, purpose, &location, &sealed), Err(OpenError));
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let (key, location) = (DataKey::generate(1), place(TenantId::new()));
        let sealed = key.seal(&location, b"a secret of some length");
        for position in 0..sealed.as_bytes().len() {
            for bit in 0..8 {
                let mut bytes = sealed.as_bytes().to_vec();
                bytes[position] ^= 1 << bit;
                let opened = Sealed::from_bytes(bytes).and_then(|changed| key.open(&location, &changed));
                assert_eq!(opened, Err(OpenError), "byte {position}, bit {bit}");
            }
        }
    }

    #[test]
    fn every_truncation_and_extension_is_noticed() {
        let (key, location) = (DataKey::generate(1), place(TenantId::new()));
        let sealed = key.seal(&location, b"a secret of some length");
        for length in 0..sealed.as_bytes().len() {
            let opened = Sealed::from_bytes(&sealed.as_bytes()[..length]).and_then(|cut| key.open(&location, &cut));
            assert_eq!(opened, Err(OpenError), "{length} bytes");
        }
        let mut longer = sealed.into_bytes();
        longer.push(0);
        assert_eq!(key.open(&location, &Sealed::from_bytes(longer).unwrap()), Err(OpenError));
    }

    #[test]
    fn texts_come_back_as_texts_only() {
        let (key, location) = (DataKey::generate(1), place(TenantId::new()));
        let sealed = key.seal_str(&location, &SecretString::from("pässword"));
        assert_eq!(key.open_str(&location, &sealed).unwrap().expose_secret(), "pässword");
        let binary = key.seal(&location, &[0xff, 0xfe]);
        assert!(matches!(key.open_str(&location, &binary), Err(OpenError)));
    }

    #[test]
    fn printing_reveals_nothing() {
        let canary = [0xC5; KEY_LENGTH];
        let key = DataKey::from_key(3, &canary);
        assert_eq!(format!("{key:?}"), "DataKey { version: 3, .. }");
        let sealed = key.seal(&place(TenantId::new()), b"canary");
        assert_eq!(format!("{sealed:?}"), "Sealed(key_version=3, len=39)");
        assert_eq!(OpenError.to_string(), "the sealed value could not be opened");
    }

    proptest! {
        #[test]
        fn any_value_comes_back(value in any::<Vec<u8>>(), row in ".*") {
            let key = DataKey::generate(1);
            let location = Location::tenant(TenantId::new(), "t", "c", &row);
            prop_assert_eq!(&*key.open(&location, &key.seal(&location, &value)).unwrap(), &value);
        }

        #[test]
        fn different_rows_never_share_associated_data(one in ".*", other in ".*") {
            let data = |row: &str| Location::platform("t", "c", row).associated_data(Purpose::TenantSecret, 1);
            prop_assert_eq!(data(&one) == data(&other), one == other);
        }
    }
}
