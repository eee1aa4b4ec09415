//! What opens an archive: a passphrase or a key file, and the key that follows from it.

use std::fmt;

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;
use zeroize::{Zeroize as _, Zeroizing};

use super::ArchiveError;

/// Length of every key here in bytes.
pub(super) const KEY_LENGTH: usize = 32;
/// Length of a salt in bytes.
pub(super) const SALT_LENGTH: usize = 16;

/// RFC 9106's second recommended choice. An archive is attacked at leisure, wherever a copy of it got to, and it is
/// opened seldom: so more than a sign-in pays.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// The most a header may ask for: it is read before anything proves it.
const MOST_MEMORY_KIB: u32 = 256 * 1024;
const MOST_PASSES: u32 = 10;
const MOST_LANES: u32 = 8;

/// Fewest characters of a passphrase.
const SHORTEST: usize = 12;
/// Most characters of a passphrase.
const LONGEST: usize = 1000;

/// What kind of secret an archive is sealed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// Words that a person remembers.
    Passphrase,
    /// 32 random bytes.
    KeyFile,
}

impl KeyKind {
    /// The name in JSON and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passphrase => "passphrase",
            Self::KeyFile => "key_file",
        }
    }

    /// The name for people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Passphrase => "passphrase",
            Self::KeyFile => "key file",
        }
    }

    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Passphrase => 1,
            Self::KeyFile => 2,
        }
    }

    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Passphrase),
            2 => Some(Self::KeyFile),
            _ => None,
        }
    }
}

/// Why a passphrase is not accepted for a new archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PassphraseError {
    /// Fewer than twelve characters.
    #[error("a passphrase has at least 12 characters")]
    TooShort,
    /// More than a thousand characters.
    #[error("a passphrase has at most 1000 characters")]
    TooLong,
    /// One character again and again, or a few of them.
    #[error("a passphrase has at least 5 different characters")]
    Monotonous,
}

/// A text is no key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key file holds 32 random bytes in base64; make one with `freehold backup key generate FILE`")]
pub struct KeyFileError;

/// What its owner opens an archive with. Wiped when dropped.
pub enum ArchiveSecret {
    /// A passphrase.
    Passphrase(SecretString),
    /// The content of a key file.
    Key(Zeroizing<[u8; KEY_LENGTH]>),
}

impl ArchiveSecret {
    /// A passphrase for a new archive, if it is good enough. One that opens an old archive is taken as it is.
    pub fn new_passphrase(passphrase: SecretString) -> Result<Self, PassphraseError> {
        let text = passphrase.expose_secret();
        let length = text.chars().take(LONGEST + 1).count();
        if length < SHORTEST {
            return Err(PassphraseError::TooShort);
        }
        if length > LONGEST {
            return Err(PassphraseError::TooLong);
        }
        let mut different: Vec<char> = Vec::new();
        for character in text.chars() {
            if !different.contains(&character) {
                different.push(character);
            }
            if different.len() >= 5 {
                return Ok(Self::Passphrase(passphrase));
            }
        }
        Err(PassphraseError::Monotonous)
    }

    /// The content of a key file: base64 of 32 bytes.
    pub fn key(text: &SecretString) -> Result<Self, KeyFileError> {
        let bytes = STANDARD.decode(text.expose_secret().trim()).map(Zeroizing::new).map_err(|_| KeyFileError)?;
        let key: [u8; KEY_LENGTH] = bytes.as_slice().try_into().map_err(|_| KeyFileError)?;
        // The first byte everywhere: nothing random, and what an empty file would be padded to.
        if key.iter().all(|byte| Some(byte) == key.first()) {
            return Err(KeyFileError);
        }
        Ok(Self::Key(Zeroizing::new(key)))
    }

    /// The content of a new key file.
    pub fn generate_key() -> SecretString {
        let mut bytes = Zeroizing::new(rand::random::<[u8; KEY_LENGTH]>());
        let text = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
        bytes.zeroize();
        SecretString::from(text.as_str())
    }

    /// Which kind it is.
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Passphrase(_) => KeyKind::Passphrase,
            Self::Key(_) => KeyKind::KeyFile,
        }
    }

    /// The archive's key. For a passphrase this takes 64 MiB and a good part of a second: call it on a thread that may
    /// block.
    pub fn derive(&self, derivation: &Derivation) -> Result<ArchiveKey, ArchiveError> {
        if self.kind() != derivation.kind {
            return Err(ArchiveError::OtherKeyKind(derivation.kind));
        }
        let mut key = Zeroizing::new([0; KEY_LENGTH]);
        match self {
            Self::Passphrase(passphrase) => {
                let params = Params::new(derivation.memory_kib, derivation.passes, derivation.lanes, Some(KEY_LENGTH))
                    .map_err(ArchiveError::Derivation)?;
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into(passphrase.expose_secret().as_bytes(), &derivation.salt, key.as_mut_slice())
                    .map_err(ArchiveError::Derivation)?;
            }
            Self::Key(file) => *key = *mac(file, &[b"freehold backup archive key", &derivation.salt]),
        }
        Ok(ArchiveKey(key))
    }
}

impl fmt::Debug for ArchiveSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArchiveSecret({})", self.kind().as_str())
    }
}

/// How an archive's key follows from its owner's secret. Part of the header; nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derivation {
    pub(super) kind: KeyKind,
    pub(super) memory_kib: u32,
    pub(super) passes: u32,
    pub(super) lanes: u32,
    pub(super) salt: [u8; SALT_LENGTH],
}

impl Derivation {
    /// Length as bytes.
    pub(super) const LENGTH: usize = 1 + 3 * 4 + SALT_LENGTH;

    /// How a new archive's key is to follow, with a salt of its own.
    pub fn new(kind: KeyKind) -> Self {
        let (memory_kib, passes, lanes) = match kind {
            KeyKind::Passphrase => (MEMORY_KIB, PASSES, LANES),
            KeyKind::KeyFile => (0, 0, 0),
        };
        Self { kind, memory_kib, passes, lanes, salt: rand::random() }
    }

    /// Which kind of secret it takes.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// As bytes, to be kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::LENGTH);
        bytes.push(self.kind.to_byte());
        for number in [self.memory_kib, self.passes, self.lanes] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&self.salt);
        bytes
    }

    /// From bytes. Parameters that would take the machine's memory or time are refused.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ArchiveError> {
        let damaged = ArchiveError::Damaged("its header says nothing sensible about the key");
        let read = || -> Option<Self> {
            let (kind, rest) = bytes.split_first()?;
            let (numbers, salt) = rest.split_at_checked(12)?;
            let mut numbers = numbers.chunks_exact(4).map(|part| part.try_into().map(u32::from_be_bytes));
            let mut number = || numbers.next()?.ok();
            Some(Self {
                kind: KeyKind::from_byte(*kind)?,
                memory_kib: number()?,
                passes: number()?,
                lanes: number()?,
                salt: salt.try_into().ok()?,
            })
        };
        let derivation = read().ok_or(ArchiveError::Damaged("its header is cut off or of another shape"))?;
        let sensible = match derivation.kind {
            KeyKind::Passphrase => {
                (1..=MOST_LANES).contains(&derivation.lanes)
                    && (1..=MOST_PASSES).contains(&derivation.passes)
                    && (8 * derivation.lanes..=MOST_MEMORY_KIB).contains(&derivation.memory_kib)
            }
            KeyKind::KeyFile => (derivation.memory_kib, derivation.passes, derivation.lanes) == (0, 0, 0),
        };
        if sensible { Ok(derivation) } else { Err(damaged) }
    }
}

/// The key of one archive. Wiped when dropped.
#[derive(Clone)]
pub struct ArchiveKey(pub(super) Zeroizing<[u8; KEY_LENGTH]>);

impl ArchiveKey {
    /// As text, to be sealed while an operation needs it.
    pub fn expose(&self) -> SecretString {
        let text = Zeroizing::new(STANDARD.encode(self.0.as_slice()));
        SecretString::from(text.as_str())
    }

    /// From the text that [`ArchiveKey::expose`] gave.
    pub fn parse(text: &SecretString) -> Option<Self> {
        let bytes = STANDARD.decode(text.expose_secret()).map(Zeroizing::new).ok()?;
        bytes.as_slice().try_into().ok().map(|key| Self(Zeroizing::new(key)))
    }
}

impl fmt::Debug for ArchiveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArchiveKey([REDACTED])")
    }
}

/// HMAC-SHA-256 over the parts, none of which varies in length.
pub(super) fn mac(key: &[u8; KEY_LENGTH], parts: &[&[u8]]) -> Zeroizing<[u8; KEY_LENGTH]> {
    // HMAC fills a key that is shorter than a block of the hash up with zeros; done here, it cannot fail.
    let mut block = Zeroizing::new([0; 64]);
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mut mac = Hmac::<Sha256>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}
