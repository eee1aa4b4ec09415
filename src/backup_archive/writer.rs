//! Writes an archive from its beginning to its end.

use std::io::Write;

use sha2::{Digest as _, Sha256};

use super::chunks::ChunkWriter;
use super::header::{CHUNK, Header};
use super::key::{ArchiveKey, Derivation};
use super::{ArchiveError, Manifest};

/// An archive under way. One that is dropped before [`ArchiveWriter::finish`] is cut off, and is refused as such.
pub struct ArchiveWriter<W> {
    chunks: ChunkWriter<W>,
    dump_hash: Sha256,
    dump_length: u64,
}

/// An archive that is whole.
#[derive(Debug)]
pub struct Written<W> {
    /// Where it was written to.
    pub sink: W,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of all its bytes, as they lie in the file.
    pub sha256: [u8; 32],
}

impl<W: Write> ArchiveWriter<W> {
    /// Begins an archive: its header and its manifest.
    pub fn begin(
        sink: W,
        derivation: &Derivation,
        key: &ArchiveKey,
        manifest: &Manifest,
    ) -> Result<Self, ArchiveError> {
        let mut chunks = ChunkWriter::new(sink, Header::new(derivation, key), key)?;
        let json = manifest.to_json().ok_or(ArchiveError::Damaged("its manifest cannot be written"))?;
        let length = u32::try_from(json.len()).map_err(|_| ArchiveError::Damaged("its manifest is too long"))?;
        chunks.write(&length.to_be_bytes())?;
        chunks.write(&json)?;
        Ok(Self { chunks, dump_hash: Sha256::new(), dump_length: 0 })
    }

    /// Adds a piece of the dump.
    pub fn write_dump(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        for frame in bytes.chunks(CHUNK) {
            self.chunks.write(&(frame.len() as u32).to_be_bytes())?;
            self.chunks.write(frame)?;
            self.dump_hash.update(frame);
            self.dump_length += frame.len() as u64;
        }
        Ok(())
    }

    /// How long the dump is so far.
    pub fn dump_length(&self) -> u64 {
        self.dump_length
    }

    /// Ends the archive with the dump's length and hash.
    pub fn finish(mut self) -> Result<Written<W>, ArchiveError> {
        self.chunks.write(&0_u32.to_be_bytes())?;
        self.chunks.write(&self.dump_length.to_be_bytes())?;
        self.chunks.write(&self.dump_hash.finalize())?;
        let (sink, size, sha256) = self.chunks.finish()?;
        Ok(Written { sink, size, sha256 })
    }
}
