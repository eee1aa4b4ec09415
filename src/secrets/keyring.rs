//! The master keys: they live outside every database and wrap each tenant's data key.

use std::collections::BTreeMap;
use std::fmt;

use aes_gcm::Aes256Gcm;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use super::envelope::{
    DataKey, KEY_LENGTH, Location, OpenError, Purpose, Sealed, cipher, open_with, seal_with, secret_text,
};
use crate::ids::TenantId;

/// SHA-256 of keys that are known to everybody, in hexadecimal: printed in documentation, in standards, or what one
/// gets by hashing an obvious word. Only the hashes are kept, so that nothing here is itself usable as a key.
const WELL_KNOWN_KEYS: &[&str] = &[
    // SHA-256 of: the empty text, freehold, freehold-example-master-key, "freehold example key 1" and "2" (the two
    // that documentation may print), password, secret, test, changeme, example, admin, master, key.
    "5df6e0e2761359d30a8275058e299fcc0381534545f55cf43e41983f5d4c9456",
    "2ae5602e4fe0a86496c3981658efdc44e05f2d8b68afc7774bc3ba53a8a4be42",
    "d6784ec9d8ebb0278bd42fa91d95024418a2d5839b8e50fc5c81f1efd3d3a423",
    "65d213ee90125bf1ec853c83636140d4b760ecc9f098d865434a473e07f78284",
    "a71d016c000919c998d6356a6c18ca0c86556f8272ba90c03c52b98214e007bb",
    "73641c99f7719f57d8f4beb11a303afcd190243a51ced8782ca6d3dbe014d146",
    "3881219d087dd9c634373fd33dfa33a2cb6bfc6c520b64b8bb60ef2ceb534ae7",
    "954d5a49fd70d9b8bcdb35d252267829957f7ef7fa6c74f88419bdc5e82209f4",
    "f7591748145d61c0159027eaef0a0e147e9c6b15a49758365df155c70fbbed99",
    "f0a7447cc7c8ab136c4c253e224377ac108af790d55cd9a9dd372bf2a7a3e737",
    "dd474e450473186ec733689b549a94a54a96f276dba76b29138c57b6afe15bf7",
    "ed6dc3428087a7d306813a79b8b04c17c9fd257ec20308e0cbd17221fc5fb399",
    "d77580ab1c1a2a9897b80e3a824100b1682a1bdbd6d73694979e7e1635cb760d",
    // AES-256 example keys of NIST SP 800-38A, the GCM specification, RFC 8452 and RFC 8032.
    "b93c72b74bc8487d29827005f80d635918f91bc22b14d7ed05714d58f96702dd",
    "7f70dfd819c3c5826700c209d1633eb5af014210decb7d7ff6d6ebadfa9bad27",
    "8c8b570f4b9a31c3f92b11a1931e4f52502bed6c8b2fe9a3d22235f3901a0353",
    "644d50ab64864c20a12b3c4656d46b4a48f69ef7c47ecdc8415cd28316b22ef5",
];

/// What is wrong with the text of a keyring. No message holds anything of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// The text names no key at all.
    #[error("the keyring holds no key; write `1:` and the output of `openssl rand -base64 32`")]
    Empty,
    /// An entry has no colon. Entries are counted from one.
    #[error(
        "entry {entry} of the keyring has no version; write it as `version:key`, for example `1:` and the output of \
         `openssl rand -base64 32`"
    )]
    MissingVersion {
        /// Which entry, counted from one.
        entry: usize,
    },
    /// What stands before the colon is no usable version.
    #[error("the version of entry {entry} of the keyring is not a whole number from 1 to 2147483647")]
    Version {
        /// Which entry, counted from one.
        entry: usize,
    },
    /// Two entries have the same version.
    #[error("version {version} appears twice in the keyring; give each key a version of its own")]
    DuplicateVersion {
        /// The version.
        version: u32,
    },
    /// Two versions have the same key, which is no rotation.
    #[error(
        "versions {earlier} and {version} of the keyring are the same key; make a new one with \
         `openssl rand -base64 32`"
    )]
    DuplicateKey {
        /// The version that came first.
        earlier: u32,
        /// The version that repeats its key.
        version: u32,
    },
    /// The key is not base64.
    #[error("key {version} of the keyring is not base64; make one with `openssl rand -base64 32`")]
    NotBase64 {
        /// The key's version.
        version: u32,
    },
    /// The key is too short or too long.
    #[error("key {version} of the keyring has {length} bytes instead of 32; make one with `openssl rand -base64 32`")]
    Length {
        /// The key's version.
        version: u32,
        /// The key's length in bytes.
        length: usize,
    },
    /// The key was not made by a random generator.
    #[error("key {version} of the keyring is not random: {reason}; make one with `openssl rand -base64 32`")]
    Weak {
        /// The key's version.
        version: u32,
        /// What gave it away.
        reason: &'static str,
    },
    /// The key is printed somewhere for all to read.
    #[error("key {version} of the keyring is a published example; make one with `openssl rand -base64 32`")]
    WellKnown {
        /// The key's version.
        version: u32,
    },
}

/// The master keys by version. The highest version wraps; all of them open.
///
/// To rotate, add a key with a higher version, wrap every data key again, then remove the old one.
pub struct MasterKeyring {
    ciphers: BTreeMap<u32, Aes256Gcm>,
    primary: u32,
}

impl MasterKeyring {
    /// Reads `version:key` entries, divided by commas or line breaks, with keys in padded base64. `#` starts a
    /// comment that reaches to the end of the line.
    ///
    /// # Errors
    /// [`KeyringError`] for the first entry that is malformed, repeated, weak or publicly known.
    pub fn parse(text: &SecretString) -> Result<Self, KeyringError> {
        let mut ciphers = BTreeMap::new();
        let mut seen: Vec<(u32, Zeroizing<[u8; KEY_LENGTH]>)> = Vec::new();
        let entries = text
            .expose_secret()
            .lines()
            .map(|line| line.split_once('#').map_or(line, |(before, _comment)| before))
            .flat_map(|line| line.split(','))
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        for (index, text) in entries.enumerate() {
            let entry = index + 1;
            let (version, key) = text.split_once(':').ok_or(KeyringError::MissingVersion { entry })?;
            let version = match version.trim().parse::<u32>() {
                // Postgres stores the version as a signed integer.
                Ok(version) if version > 0 && i32::try_from(version).is_ok() => version,
                _ => return Err(KeyringError::Version { entry }),
            };
            if ciphers.contains_key(&version) {
                return Err(KeyringError::DuplicateVersion { version });
            }
            let key = decode(version, key.trim())?;
            refuse_guessable(version, &key)?;
            if let Some((earlier, _)) = seen.iter().find(|(_, other)| **other == *key) {
                return Err(KeyringError::DuplicateKey { earlier: *earlier, version });
            }
            ciphers.insert(version, cipher(&key));
            seen.push((version, key));
        }
        let primary = *ciphers.keys().next_back().ok_or(KeyringError::Empty)?;
        Ok(Self { ciphers, primary })
    }

    /// The version that wraps and seals from now on.
    #[must_use]
    pub fn primary_version(&self) -> u32 {
        self.primary
    }

    /// All versions that can still open, lowest first.
    pub fn versions(&self) -> impl Iterator<Item = u32> {
        self.ciphers.keys().copied()
    }

    /// Whether the value was sealed by an older master key and should be wrapped or sealed again.
    #[must_use]
    pub fn is_outdated(&self, sealed: &Sealed) -> bool {
        sealed.key_version() != self.primary
    }

    /// Wraps a tenant's data key with the primary master key, for storage in the platform's database.
    ///
    /// # Panics
    /// If the operating system cannot supply random bytes.
    #[must_use]
    pub fn wrap(&self, tenant: TenantId, key: &DataKey) -> Sealed {
        self.seal(Purpose::WrappedKey, &wrapped_key_location(tenant, key.version()), key.expose_key())
    }

    /// Unwraps a tenant's data key. `version` is the data key's own version, as its row says.
    ///
    /// # Errors
    /// [`OpenError`] if the keyring lacks the master key, or the tenant, the version or any byte differs.
    pub fn unwrap(&self, tenant: TenantId, version: u32, wrapped: &Sealed) -> Result<DataKey, OpenError> {
        let bytes = self.open(Purpose::WrappedKey, &wrapped_key_location(tenant, version), wrapped)?;
        let key = bytes.as_slice().try_into().map_err(|_| OpenError)?;
        Ok(DataKey::from_key(version, key))
    }

    /// Seals a secret of the platform itself, such as a cluster's administrative address.
    ///
    /// # Panics
    /// If the operating system cannot supply random bytes.
    #[must_use]
    pub fn seal_platform(&self, location: &Location, secret: &SecretString) -> Sealed {
        self.seal(Purpose::PlatformSecret, location, secret.expose_secret().as_bytes())
    }

    /// Opens a secret of the platform itself.
    ///
    /// # Errors
    /// [`OpenError`] if the keyring lacks the master key, the place or any byte differs, or it is not UTF-8.
    pub fn open_platform(&self, location: &Location, sealed: &Sealed) -> Result<SecretString, OpenError> {
        secret_text(&self.open(Purpose::PlatformSecret, location, sealed)?)
    }

    fn seal(&self, purpose: Purpose, location: &Location, plaintext: &[u8]) -> Sealed {
        #[expect(
            clippy::expect_used,
            reason = "parse takes the primary version from the map's keys, and the map never changes afterwards"
        )]
        let cipher = self.ciphers.get(&self.primary).expect("the keyring holds its primary key");
        seal_with(cipher, self.primary, purpose, location, plaintext)
    }

    fn open(&self, purpose: Purpose, location: &Location, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let version = sealed.key_version();
        let cipher = self.ciphers.get(&version).ok_or(OpenError)?;
        open_with(cipher, version, purpose, location, sealed)
    }
}

impl fmt::Debug for MasterKeyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKeyring")
            .field("primary", &self.primary)
            .field("versions", &self.ciphers.keys())
            .finish_non_exhaustive()
    }
}

/// The row is the data key's version, so that an older wrapped key put in a newer one's row does not open.
fn wrapped_key_location(tenant: TenantId, version: u32) -> Location {
    Location::tenant(tenant, "wrapped_keys", "wrapped_key", version)
}

fn decode(version: u32, text: &str) -> Result<Zeroizing<[u8; KEY_LENGTH]>, KeyringError> {
    let bytes = STANDARD.decode(text).map(Zeroizing::new).map_err(|_| KeyringError::NotBase64 { version })?;
    let mut key = Zeroizing::new([0; KEY_LENGTH]);
    if bytes.len() != KEY_LENGTH {
        return Err(KeyringError::Length { version, length: bytes.len() });
    }
    key.copy_from_slice(&bytes);
    Ok(key)
}

/// Refuses keys that no random generator makes. Each test has a chance far below 2^-60 of refusing a random key.
fn refuse_guessable(version: u32, key: &[u8; KEY_LENGTH]) -> Result<(), KeyringError> {
    let weak = |reason| Err(KeyringError::Weak { version, reason });
    let mut steps = key.iter().zip(key.iter().skip(1)).map(|(a, b)| b.wrapping_sub(*a));
    let first_step = steps.next();
    if first_step == Some(0) && steps.clone().all(|step| step == 0) {
        return weak("all its bytes are the same");
    }
    if steps.all(|step| Some(step) == first_step) {
        return weak("its bytes count up or down");
    }
    let mut sorted = Zeroizing::new(*key);
    sorted.sort_unstable();
    let distinct = 1 + sorted.iter().zip(sorted.iter().skip(1)).filter(|(a, b)| a != b).count();
    if distinct < 16 {
        return weak("it has fewer than 16 different bytes");
    }
    if key.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
        return weak("it is readable text");
    }
    let (front, back) = key.split_at(KEY_LENGTH / 2);
    if front == back {
        return weak("its second half repeats the first");
    }
    let mut digest = Sha256::digest(key);
    let known = WELL_KNOWN_KEYS.contains(&hex::encode(digest).as_str());
    digest.zeroize();
    if known {
        return Err(KeyringError::WellKnown { version });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random_key() -> String {
        STANDARD.encode(DataKey::generate(1).expose_key())
    }

    fn parse(text: &str) -> Result<MasterKeyring, KeyringError> {
        MasterKeyring::parse(&SecretString::from(text))
    }

    fn refusal(bytes: &[u8]) -> KeyringError {
        parse(&format!("1:{}", STANDARD.encode(bytes))).unwrap_err()
    }

    #[test]
    fn the_highest_version_wraps_and_all_open() {
        let (one, two) = (random_key(), random_key());
        let old = parse(&format!("1:{one}")).unwrap();
        let new = parse(&format!("# rotated in spring\n 2:{two} , # the new one\n\n1 : {one}\n")).unwrap();
        assert_eq!(new.primary_version(), 2);
        assert_eq!(new.versions().collect::<Vec<_>>(), [1, 2]);

        let (tenant, key) = (TenantId::new(), DataKey::generate(5));
        let wrapped = old.wrap(tenant, &key);
        assert_eq!(wrapped.key_version(), 1);
        assert!(new.is_outdated(&wrapped));
        let unwrapped = new.unwrap(tenant, 5, &wrapped).unwrap();
        assert_eq!(unwrapped.version(), 5);
        assert_eq!(unwrapped.expose_key(), key.expose_key());

        let rewrapped = new.wrap(tenant, &unwrapped);
        assert!(!new.is_outdated(&rewrapped));
        assert!(old.unwrap(tenant, 5, &rewrapped).is_err());
    }

    #[test]
    fn a_wrapped_key_belongs_to_one_tenant_and_version() {
        let keyring = parse(&format!("1:{}", random_key())).unwrap();
        let tenant = TenantId::new();
        let wrapped = keyring.wrap(tenant, &DataKey::generate(1));
        assert!(keyring.unwrap(TenantId::new(), 1, &wrapped).is_err());
        assert!(keyring.unwrap(tenant, 2, &wrapped).is_err());
        assert!(keyring.open_platform(&wrapped_key_location(tenant, 1), &wrapped).is_err());
        let other = parse(&format!("1:{}", random_key())).unwrap();
        assert!(other.unwrap(tenant, 1, &wrapped).is_err());
        for position in 0..wrapped.as_bytes().len() {
            let mut bytes = wrapped.as_bytes().to_vec();
            bytes[position] ^= 1;
            let opened = Sealed::from_bytes(bytes).and_then(|changed| keyring.unwrap(tenant, 1, &changed));
            assert!(opened.is_err(), "byte {position}");
        }
    }

    #[test]
    fn platform_secrets_are_bound_to_their_place() {
        let keyring = parse(&format!("1:{}", random_key())).unwrap();
        let place = Location::platform("clusters", "admin_url", "c1");
        let sealed = keyring.seal_platform(&place, &SecretString::from("postgres://x"));
        assert_eq!(keyring.open_platform(&place, &sealed).unwrap().expose_secret(), "postgres://x");
        for elsewhere in [
            Location::platform("clusters", "admin_url", "c2"),
            Location::platform("clusters", "note", "c1"),
            Location::platform("tenants", "admin_url", "c1"),
            Location::tenant(TenantId::new(), "clusters", "admin_url", "c1"),
        ] {
            assert!(keyring.open_platform(&elsewhere, &sealed).is_err(), "{elsewhere:?}");
        }
    }

    #[test]
    fn malformed_keyrings_are_refused() {
        let key = random_key();
        for (text, error) in [
            (String::new(), KeyringError::Empty),
            (" \n# nothing\n,".to_owned(), KeyringError::Empty),
            (key.clone(), KeyringError::MissingVersion { entry: 1 }),
            (format!("0:{key}"), KeyringError::Version { entry: 1 }),
            (format!("-1:{key}"), KeyringError::Version { entry: 1 }),
            (format!("one:{key}"), KeyringError::Version { entry: 1 }),
            (format!("2147483648:{key}"), KeyringError::Version { entry: 1 }),
            (format!("1:{key},1:{}", random_key()), KeyringError::DuplicateVersion { version: 1 }),
            (format!("1:{key},2:{key}"), KeyringError::DuplicateKey { earlier: 1, version: 2 }),
            ("3:not base64!".to_owned(), KeyringError::NotBase64 { version: 3 }),
            ("1:".to_owned(), KeyringError::Length { version: 1, length: 0 }),
            ("1:YWJj".to_owned(), KeyringError::Length { version: 1, length: 3 }),
            (format!("1:{}", STANDARD.encode([7; 33])), KeyringError::Length { version: 1, length: 33 }),
        ] {
            assert_eq!(parse(&text).unwrap_err(), error);
        }
    }

    #[test]
    fn guessable_keys_are_refused() {
        let counting = |step: u8| std::array::from_fn::<u8, 32, _>(|i| (i as u8).wrapping_mul(step).wrapping_add(200));
        let mut few = [0_u8; 32];
        for (index, byte) in few.iter_mut().enumerate() {
            *byte = [200, 3, 77, 150][index * 7 % 4] ^ (index as u8 / 16);
        }
        let half: [u8; 16] = std::array::from_fn(|i| (i * i * 7 + 131) as u8 ^ 0x5a);
        for bytes in [
            [0; 32].as_slice(),
            &[0xff; 32],
            &counting(1),
            &counting(255),
            &counting(3),
            &few,
            b"correct horse battery staple 123",
            b"freehold-example-master-key-0001",
            &[half, half].concat(),
        ] {
            assert!(matches!(refusal(bytes), KeyringError::Weak { version: 1, .. }), "{bytes:?}");
        }
    }

    #[test]
    fn published_keys_are_refused() {
        for word in ["", "freehold", "password", "freehold example key 1", "freehold example key 2"] {
            assert_eq!(refusal(&Sha256::digest(word)), KeyringError::WellKnown { version: 1 }, "{word}");
        }
        let nist = hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
        assert_eq!(refusal(&nist), KeyringError::WellKnown { version: 1 });
    }

    #[test]
    fn random_keys_are_accepted() {
        for _ in 0..2000 {
            refuse_guessable(1, DataKey::generate(1).expose_key()).unwrap();
        }
    }

    #[test]
    fn printing_reveals_nothing() {
        let key = random_key();
        let keyring = parse(&format!("4:{key}")).unwrap();
        assert_eq!(format!("{keyring:?}"), "MasterKeyring { primary: 4, versions: [4], .. }");
        let canary = "CANARYcanary";
        for text in [canary.to_owned(), format!("{canary}:x"), format!("1:{canary}!"), format!("1:{key},2:{key}")] {
            let error = parse(&text).unwrap_err();
            for shown in [error.to_string(), format!("{error:?}")] {
                assert!(!shown.contains(canary) && !shown.contains(&key), "{shown}");
            }
        }
    }
}
