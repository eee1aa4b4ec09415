//! Archives as files in the backup directory, read and written on threads that may block, a piece at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::BackupError;
use crate::backup_archive::{
    ArchiveError, ArchiveKey, ArchiveReader, ArchiveWriter, Derivation, DumpSeen, Header, Manifest, Written,
    read_header,
};

/// An upload that was not written to for so long was given up.
const ABANDONED: std::time::Duration = std::time::Duration::from_secs(86_400);
/// How many pieces wait between the two sides: enough to keep both busy, and nothing to speak of in memory.
const PIECES: usize = 8;

/// What a file is called until it is whole.
pub(super) fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

/// A new file that only this account reads. One of the same name, left by a server that died, gives way; a writer of
/// old that still lives goes on in a file without a name, and never in this one.
pub(super) fn create(path: &Path) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Gives a whole file its name, and makes sure that both survive a power cut. A file whose unfinished name another
/// writer has taken gets none: it would be the other one's half of a file.
pub(super) fn keep(file: &File, from: &Path, to: &Path) -> std::io::Result<()> {
    file.sync_all()?;
    let (ours, named) = (file.metadata()?, fs::metadata(from)?);
    if (ours.dev(), ours.ino()) != (named.dev(), named.ino()) {
        return Err(ErrorKind::NotFound.into());
    }
    fs::rename(from, to)?;
    match to.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes a file and its unfinished form, if they are there.
pub(super) async fn remove(path: PathBuf) -> Result<(), BackupError> {
    spawn_blocking(move || {
        for path in [partial(&path), path] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    })
    .await??;
    Ok(())
}

/// An archive being written. Dropped before [`Writing::finish`], it leaves an unfinished file.
pub(super) struct Writing {
    pieces: mpsc::Sender<Option<Bytes>>,
    writer: JoinHandle<Result<Written<()>, ArchiveError>>,
}

impl Writing {
    pub(super) fn begin(path: PathBuf, derivation: Derivation, key: ArchiveKey, manifest: Manifest) -> Self {
        let (pieces, mut received) = mpsc::channel::<Option<Bytes>>(PIECES);
        let writer = spawn_blocking(move || {
            let unfinished = partial(&path);
            let sink = BufWriter::with_capacity(256 * 1024, create(&unfinished)?);
            let mut writer = ArchiveWriter::begin(sink, &derivation, &key, &manifest)?;
            drop(manifest);
            loop {
                match received.blocking_recv() {
                    Some(Some(piece)) => writer.write_dump(&piece)?,
                    Some(None) => break,
                    // Whoever dumped gave up: what there is must never look whole.
                    None => return Err(std::io::Error::from(ErrorKind::BrokenPipe).into()),
                }
            }
            let Written { sink, size, sha256 } = writer.finish()?;
            let file = sink.into_inner().map_err(|error| error.into_error())?;
            keep(&file, &unfinished, &path)?;
            Ok(Written { sink: (), size, sha256 })
        });
        Self { pieces, writer }
    }

    /// Adds a piece. `false` means that writing has failed, and [`Writing::finish`] says why.
    pub(super) async fn write(&self, piece: Bytes) -> bool {
        self.pieces.send(Some(piece)).await.is_ok()
    }

    /// Ends the archive and gives the file its name.
    pub(super) async fn finish(self) -> Result<Written<()>, BackupError> {
        // If nobody listens any more, the writer's own error says why.
        let _ = self.pieces.send(None).await;
        drop(self.pieces);
        Ok(self.writer.await??)
    }
}

fn open(path: &Path) -> Result<(Header, BufReader<File>), BackupError> {
    let file = File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => BackupError::FileMissing,
        _ => error.into(),
    })?;
    let mut source = BufReader::with_capacity(256 * 1024, file);
    Ok((read_header(&mut source)?, source))
}

/// The header of a file.
pub(super) async fn header(path: PathBuf) -> Result<Header, BackupError> {
    spawn_blocking(move || open(&path).map(|(header, _)| header)).await?
}

/// The manifest of a file, which proves the key and itself, and nothing of what follows.
pub(super) async fn manifest(path: PathBuf, key: ArchiveKey) -> Result<Manifest, BackupError> {
    spawn_blocking(move || {
        let (header, source) = open(&path)?;
        Ok(ArchiveReader::open(source, header, &key)?.0)
    })
    .await?
}

/// Reads a file to its end, which proves all of it.
pub(super) async fn verify(path: PathBuf, key: ArchiveKey) -> Result<(Manifest, DumpSeen), BackupError> {
    spawn_blocking(move || {
        let (header, source) = open(&path)?;
        let (manifest, reader) = ArchiveReader::open(source, header, &key)?;
        Ok((manifest, reader.verify()?))
    })
    .await?
}

/// A file's dump, piece by piece. The last item is an error if the file turned out to be damaged; a channel that just
/// ends has given all.
pub(super) fn dump(path: PathBuf, key: ArchiveKey) -> mpsc::Receiver<Result<Vec<u8>, BackupError>> {
    let (sender, receiver) = mpsc::channel(PIECES);
    spawn_blocking(move || {
        let read = || -> Result<(), BackupError> {
            let (header, source) = open(&path)?;
            let (_, mut reader) = ArchiveReader::open(source, header, &key)?;
            while let Some(piece) = reader.next_piece()? {
                if sender.blocking_send(Ok(piece)).is_err() {
                    return Ok(());
                }
            }
            Ok(())
        };
        if let Err(error) = read() {
            let _ = sender.blocking_send(Err(error));
        }
    });
    receiver
}

/// Removes unfinished uploads that nobody has written to for a day. Their servers died: a request ends earlier.
pub(super) fn remove_broken_off_uploads(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let unfinished = name.to_str().is_some_and(|name| name.starts_with("upload-") && name.ends_with(".partial"));
        let age = entry.metadata().and_then(|file| file.modified()).ok().and_then(|time| time.elapsed().ok());
        if unfinished && age.is_some_and(|age| age > ABANDONED) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
