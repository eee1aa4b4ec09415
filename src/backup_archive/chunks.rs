//! The sealed chunks: STREAM with AES-256-GCM, a counter of 32 bits and a flag on the last one.

use std::io::{Read, Write};

use aead_stream::{DecryptorBE32, EncryptorBE32};
use aes_gcm::Aes256Gcm;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::ArchiveError;
use super::header::{CHUNK, Header, TAG};
use super::key::ArchiveKey;

/// Seals what is written to it, chunk by chunk.
pub(super) struct ChunkWriter<W> {
    sink: W,
    header: Header,
    encryptor: EncryptorBE32<Aes256Gcm>,
    buffer: Zeroizing<Vec<u8>>,
    hash: Sha256,
    size: u64,
}

impl<W: Write> ChunkWriter<W> {
    pub(super) fn new(mut sink: W, header: Header, key: &ArchiveKey) -> Result<Self, ArchiveError> {
        let (cipher, prefix) = header.cipher(key)?;
        sink.write_all(&header.bytes)?;
        let mut hash = Sha256::new();
        hash.update(header.bytes);
        Ok(Self {
            sink,
            size: header.bytes.len() as u64,
            header,
            encryptor: EncryptorBE32::from_aead(cipher, &prefix.into()),
            // Never grown, so that no copy of its content stays behind unwiped.
            buffer: Zeroizing::new(Vec::with_capacity(CHUNK + TAG)),
            hash,
        })
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), ArchiveError> {
        while !bytes.is_empty() {
            if self.buffer.len() == CHUNK {
                // There is more to come, so this is not the last one.
                self.encryptor
                    .encrypt_next_in_place(&self.header.bytes, &mut *self.buffer)
                    .map_err(|_| ArchiveError::Damaged("it would be longer than the format allows"))?;
                Self::put(&mut self.sink, &mut self.hash, &mut self.size, &self.buffer)?;
                self.buffer.clear();
            }
            let room = (CHUNK - self.buffer.len()).min(bytes.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn put(sink: &mut W, hash: &mut Sha256, size: &mut u64, sealed: &[u8]) -> Result<(), ArchiveError> {
        sink.write_all(sealed)?;
        hash.update(sealed);
        *size += sealed.len() as u64;
        Ok(())
    }

    /// Seals the last chunk. Returns the sink, and the size and hash of all that went there.
    pub(super) fn finish(mut self) -> Result<(W, u64, [u8; 32]), ArchiveError> {
        self.encryptor
            .encrypt_last_in_place(&self.header.bytes, &mut *self.buffer)
            .map_err(|_| ArchiveError::Damaged("it would be longer than the format allows"))?;
        Self::put(&mut self.sink, &mut self.hash, &mut self.size, &self.buffer)?;
        self.sink.flush()?;
        Ok((self.sink, self.size, self.hash.finalize().into()))
    }
}

/// Opens chunks, and hands on only what was proved.
pub(super) struct ChunkReader<R> {
    source: R,
    header: Header,
    /// None once the last chunk is open.
    decryptor: Option<DecryptorBE32<Aes256Gcm>>,
    buffer: Zeroizing<Vec<u8>>,
    at: usize,
    /// The first byte behind the chunk in the buffer: without one, it was the last.
    ahead: Option<u8>,
}

impl<R: Read> ChunkReader<R> {
    pub(super) fn new(source: R, header: Header, key: &ArchiveKey) -> Result<Self, ArchiveError> {
        let (cipher, prefix) = header.cipher(key)?;
        Ok(Self {
            source,
            header,
            decryptor: Some(DecryptorBE32::from_aead(cipher, &prefix.into())),
            buffer: Zeroizing::new(Vec::with_capacity(CHUNK + TAG + 1)),
            at: 0,
            ahead: None,
        })
    }

    /// Opens the next chunk. Returns whether there was one.
    fn refill(&mut self) -> Result<bool, ArchiveError> {
        let Some(mut decryptor) = self.decryptor.take() else { return Ok(false) };
        self.buffer.clear();
        self.at = 0;
        self.buffer.extend(self.ahead.take());
        // One byte more than a chunk: whether there is any says whether this chunk is the last.
        let missing = (CHUNK + TAG + 1).saturating_sub(self.buffer.len());
        self.source.by_ref().take(missing as u64).read_to_end(&mut self.buffer)?;
        let more = self.buffer.len() > CHUNK + TAG;
        if more {
            self.ahead = self.buffer.pop();
            decryptor
                .decrypt_next_in_place(&self.header.bytes, &mut *self.buffer)
                .map_err(|_| ArchiveError::Damaged("a part of it was changed, moved or taken out"))?;
            self.decryptor = Some(decryptor);
        } else {
            decryptor
                .decrypt_last_in_place(&self.header.bytes, &mut *self.buffer)
                .map_err(|_| ArchiveError::Damaged("its end was changed or is missing, or something was appended"))?;
        }
        Ok(true)
    }

    /// Fills the target.
    pub(super) fn read_exact(&mut self, target: &mut [u8]) -> Result<(), ArchiveError> {
        let mut filled = 0;
        while let Some(rest) = target.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let ready = self.buffer.get(self.at..).unwrap_or_default();
            if ready.is_empty() {
                if !self.refill()? {
                    return Err(ArchiveError::Damaged("it ends too early"));
                }
                continue;
            }
            let length = ready.len().min(rest.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..length), ready.get(..length)) {
                to.copy_from_slice(from);
            }
            self.at += length;
            filled += length;
        }
        Ok(())
    }

    /// Makes sure that nothing follows.
    pub(super) fn expect_end(&mut self) -> Result<(), ArchiveError> {
        let rest = self.buffer.len() > self.at || (self.refill()? && !self.buffer.is_empty());
        if rest { Err(ArchiveError::Damaged("something follows its end")) } else { Ok(()) }
    }
}
