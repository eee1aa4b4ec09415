//! Reads an archive from its beginning to its end.

use std::io::Read;

use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::chunks::ChunkReader;
use super::header::{CHUNK, Header, LENGTH};
use super::key::ArchiveKey;
use super::{ArchiveError, Manifest};

/// The longest manifest: room for some hundred thousand tables.
const LONGEST_MANIFEST: u32 = 32 * 1024 * 1024;

/// An archive that is being read: the manifest first, then the dump.
pub struct ArchiveReader<R> {
    chunks: ChunkReader<R>,
    dump_hash: Sha256,
    dump_length: u64,
    ended: bool,
}

/// What was found at the end of a dump that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DumpSeen {
    /// Its length in bytes.
    pub length: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

/// Reads the header, which says what kind of key the archive wants.
pub fn read_header(source: &mut impl Read) -> Result<Header, ArchiveError> {
    let mut bytes = [0; LENGTH];
    match source.read_exact(&mut bytes) {
        Ok(()) => Header::parse(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(ArchiveError::NotAnArchive),
        Err(error) => Err(error.into()),
    }
}

impl<R: Read> ArchiveReader<R> {
    /// Opens what follows a header that was read already.
    pub fn open(source: R, header: Header, key: &ArchiveKey) -> Result<(Manifest, Self), ArchiveError> {
        let mut chunks = ChunkReader::new(source, header, key)?;
        let mut length = [0; 4];
        chunks.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > LONGEST_MANIFEST {
            return Err(ArchiveError::Damaged("its manifest is too long"));
        }
        let mut json = Zeroizing::new(vec![0; length as usize]);
        chunks.read_exact(&mut json)?;
        // The parser's message could quote a value, so it is left out.
        let manifest =
            serde_json::from_slice(&json).map_err(|_| ArchiveError::Damaged("its manifest is of another shape"))?;
        Ok((manifest, Self { chunks, dump_hash: Sha256::new(), dump_length: 0, ended: false }))
    }

    /// The next piece of the dump. `None` comes after the last one, and only when length, hash and the end of the file
    /// were found as they were written.
    pub fn next_piece(&mut self) -> Result<Option<Vec<u8>>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.chunks.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > CHUNK {
            return Err(ArchiveError::Damaged("a part of the dump is too long"));
        }
        if length > 0 {
            let mut piece = vec![0; length];
            self.chunks.read_exact(&mut piece)?;
            self.dump_hash.update(&piece);
            self.dump_length += length as u64;
            return Ok(Some(piece));
        }
        let (mut stated, mut hash) = ([0; 8], [0; 32]);
        self.chunks.read_exact(&mut stated)?;
        self.chunks.read_exact(&mut hash)?;
        self.chunks.expect_end()?;
        let found: [u8; 32] = self.dump_hash.finalize_reset().into();
        if u64::from_be_bytes(stated) != self.dump_length || hash != found {
            return Err(ArchiveError::Damaged("the dump is not the one that was written"));
        }
        self.ended = true;
        Ok(None)
    }

    /// Reads to the end without keeping anything: proves that the archive is whole.
    pub fn verify(mut self) -> Result<DumpSeen, ArchiveError> {
        let mut hash = Sha256::new();
        while let Some(piece) = self.next_piece()? {
            hash.update(&piece);
        }
        Ok(DumpSeen { length: self.dump_length, sha256: hash.finalize().into() })
    }
}
