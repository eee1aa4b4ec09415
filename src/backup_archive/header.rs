//! The part of an archive that is in the clear.

use aes_gcm::{Aes256Gcm, KeyInit as _};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::ArchiveError;
use super::key::{ArchiveKey, Derivation, KEY_LENGTH, mac};

const MAGIC: &[u8; 8] = b"FHBACKUP";
const FORMAT: u8 = 1;
/// Bytes of plaintext in a chunk; only the last one is shorter.
pub(super) const CHUNK: usize = 64 * 1024;
/// What a chunk is longer by once it is sealed.
pub(super) const TAG: usize = 16;
/// The header without the check of the key.
const OPEN: usize = 64;
/// The whole header.
pub(super) const LENGTH: usize = OPEN + KEY_LENGTH;
const FILE_NONCE: usize = 16;
/// Where the parts lie.
const DERIVATION_AT: usize = 9;
const FILE_NONCE_AT: usize = DERIVATION_AT + Derivation::LENGTH;
const CHUNK_AT: usize = FILE_NONCE_AT + FILE_NONCE;

/// The header of an archive. All of it is bound to the key and to every chunk.
#[derive(Debug, Clone)]
pub struct Header {
    pub(super) bytes: [u8; LENGTH],
    derivation: Derivation,
}

impl Header {
    /// The header of a new archive. The nonce of the file is random: no two writings share a key for their chunks, a
    /// repetition of the same backup included.
    pub(super) fn new(derivation: &Derivation, key: &ArchiveKey) -> Self {
        let mut open = Vec::with_capacity(LENGTH);
        open.extend_from_slice(MAGIC);
        open.push(FORMAT);
        open.extend_from_slice(&derivation.to_bytes());
        open.extend_from_slice(&rand::random::<[u8; FILE_NONCE]>());
        open.extend_from_slice(&(CHUNK as u32).to_be_bytes());
        open.resize(OPEN, 0);
        let check = check(key, &open);
        open.extend_from_slice(check.as_slice());
        let mut bytes = [0; LENGTH];
        bytes.copy_from_slice(&open);
        Self { bytes, derivation: derivation.clone() }
    }

    pub(super) fn parse(bytes: [u8; LENGTH]) -> Result<Self, ArchiveError> {
        if bytes.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(ArchiveError::NotAnArchive);
        }
        match bytes.get(MAGIC.len()) {
            Some(&FORMAT) => {}
            other => return Err(ArchiveError::UnknownFormat(other.copied().unwrap_or(0))),
        }
        let derivation = Derivation::from_bytes(bytes.get(DERIVATION_AT..FILE_NONCE_AT).unwrap_or_default())?;
        let rest = bytes.get(CHUNK_AT..OPEN).unwrap_or_default();
        let (chunk, reserved) = rest.split_at_checked(4).unwrap_or_default();
        if chunk != (CHUNK as u32).to_be_bytes() || reserved.iter().any(|byte| *byte != 0) {
            return Err(ArchiveError::Damaged("its header is of another shape"));
        }
        Ok(Self { bytes, derivation })
    }

    /// How the key follows from the owner's secret.
    pub fn derivation(&self) -> &Derivation {
        &self.derivation
    }

    /// The cipher of the chunks and the beginning of their nonces, if the key is the right one. The check also commits
    /// the archive to one key: with AES-GCM alone, a file could be made that opens under two.
    pub(super) fn cipher(&self, key: &ArchiveKey) -> Result<(Aes256Gcm, [u8; 7]), ArchiveError> {
        let (open, stored) = self.bytes.split_at_checked(OPEN).ok_or(ArchiveError::NotAnArchive)?;
        if !bool::from(check(key, open).as_slice().ct_eq(stored)) {
            return Err(ArchiveError::WrongKey);
        }
        let stream_key: Zeroizing<[u8; KEY_LENGTH]> = mac(&key.0, &[b"freehold backup stream key", open]);
        let prefix = open
            .get(FILE_NONCE_AT..FILE_NONCE_AT + 7)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(ArchiveError::NotAnArchive)?;
        Ok((Aes256Gcm::new((&*stream_key).into()), prefix))
    }
}

fn check(key: &ArchiveKey, open: &[u8]) -> Zeroizing<[u8; KEY_LENGTH]> {
    mac(&key.0, &[b"freehold backup key check", open])
}
