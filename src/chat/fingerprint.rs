//! Hashes of several parts, for keys.

use sha2::{Digest as _, Sha256};

/// Parts that are hashed, each behind its length, so that no two lists of parts give the same bytes.
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    /// `purpose` tells hashes of different things apart.
    pub(super) fn new(purpose: &str) -> Self {
        let mut fingerprint = Self(Sha256::new());
        fingerprint.add(purpose.as_bytes());
        fingerprint
    }

    pub(super) fn add(&mut self, part: &[u8]) {
        self.add_count(part.len());
        self.0.update(part);
    }

    /// One that may not be there, which is not the same as an empty one.
    pub(super) fn add_optional(&mut self, part: Option<&[u8]>) {
        self.0.update([u8::from(part.is_some())]);
        self.add(part.unwrap_or_default());
    }

    /// How many parts come.
    pub(super) fn add_count(&mut self, count: usize) {
        self.add_number(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// A number that is a part itself.
    pub(super) fn add_number(&mut self, number: u64) {
        self.0.update(number.to_be_bytes());
    }

    pub(super) fn hash(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}
