//! The sealed file that a tenant's backup is: its bytes, and nothing else.
//!
//! A header in the clear, then chunks of AES-256-GCM in the STREAM construction, in which lie a manifest, the dump that
//! `pg_dump` wrote, and the dump's length and hash. `docs/backup-format.md` has the layout byte for byte. Whatever was
//! cut off, appended, exchanged or changed in any bit is noticed before the byte in question is handed on; a reader
//! that has come to the end has seen the whole of what was written, and nothing else.
//!
//! It knows neither databases nor directories, and keeps one chunk in memory, whatever the file's size.

mod chunks;
mod header;
mod key;
mod manifest;
mod reader;
mod writer;

use thiserror::Error;

pub use header::Header;
pub use key::{ArchiveKey, ArchiveSecret, Derivation, KeyFileError, KeyKind, PassphraseError};
pub use manifest::{KeyBytes, Manifest, ManifestKey, Summary, TableChecksum};
pub use reader::{ArchiveReader, DumpSeen, read_header};
pub use writer::{ArchiveWriter, Written};

/// Why an archive cannot be read or written.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// It does not begin as a backup does.
    #[error("this is not a backup made by Freehold")]
    NotAnArchive,
    /// It was written by a later version.
    #[error(
        "the backup has format {0}, which this version does not read; use the version that wrote it, or a newer one"
    )]
    UnknownFormat(u8),
    /// It wants a key file and got a passphrase, or the other way round.
    #[error("the backup is sealed with a {}", .0.in_words())]
    OtherKeyKind(KeyKind),
    /// The passphrase or key is another one, or the header was changed.
    #[error("the passphrase or key is not the one that the backup was sealed with, or its header was changed")]
    WrongKey,
    /// Something was changed, cut off or appended.
    #[error("the backup is damaged: {0}")]
    Damaged(&'static str),
    /// The key could not be derived.
    #[error("the key could not be derived")]
    Derivation(#[source] argon2::Error),
    /// The file could not be read or written.
    #[error("the backup could not be read or written")]
    Io(#[from] std::io::Error),
}

impl ArchiveError {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAnArchive => "backup_not_an_archive",
            Self::UnknownFormat(_) => "backup_format_unknown",
            Self::OtherKeyKind(_) | Self::WrongKey => "backup_key_wrong",
            Self::Damaged(_) => "backup_damaged",
            Self::Derivation(_) => "backup_key_not_derived",
            Self::Io(_) => "backup_unreadable",
        }
    }
}

#[cfg(test)]
mod tests;
