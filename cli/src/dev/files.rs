//! Files only their owner may read, replaced whole or not at all, and generated secrets to put in them.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Writes a file of mode 0600 by renaming a complete one into its place.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        // tempfile creates with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(parent)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Writes a document as JSON, privately.
pub(crate) fn write_json(path: &Path, document: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(document).context("format as JSON")?;
    text.push(b'\n');
    write_private(path, &text)
}

/// Reads a JSON document, `None` when there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| format!("understand {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// A random password of 24 characters which need no quoting in a URL, in JSON or in a shell.
pub(crate) fn random_password() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 18]>())
}

/// A master key as the server reads it: `version:base64 of 32 bytes`.
pub(crate) fn random_master_key() -> String {
    format!("1:{}\n", STANDARD.encode(rand::random::<[u8; 32]>()))
}

/// A short random name, for directories.
pub(crate) fn random_name() -> String {
    format!("{:08x}", rand::random::<u32>())
}
