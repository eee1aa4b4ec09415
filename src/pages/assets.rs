//! The files that all pages share: styles and scripts, as they are, without a build step.
//!
//! Their address holds a hash over all of them, so browsers keep them for ever, and a new version of any is another address.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

macro_rules! files {
    ($($name:literal: $kind:expr,)+) => {
        &[$(($name, $kind, include_bytes!(concat!("../../templates/chat/assets/", $name)))),+]
    };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

const FILES: &[(&str, &str, &[u8])] = files! {
    "chat.css": STYLE,
    "theme.js": SCRIPT,
    "chat.js": SCRIPT,
    "choice.js": SCRIPT,
    "dom.js": SCRIPT,
    "images.js": SCRIPT,
    "list.js": SCRIPT,
    "markdown.js": SCRIPT,
    "messages.js": SCRIPT,
    "session.js": SCRIPT,
    "stream.js": SCRIPT,
};

/// The script for clients' own sites. Its address is part of their pages and never changes.
const WIDGET: &[u8] = include_bytes!("../../templates/chat/assets/widget.js");

/// The modules that the page's script needs, which a browser may fetch at once with it.
pub(super) const MODULES: &[&str] = &[
    "chat.js",
    "choice.js",
    "dom.js",
    "images.js",
    "list.js",
    "messages.js",
    "markdown.js",
    "session.js",
    "stream.js",
];

/// As many digits as tell versions apart.
const VERSION_LENGTH: usize = 16;

/// One file.
#[derive(Debug, Clone)]
pub struct Asset {
    /// Its media type.
    pub content_type: &'static str,
    /// As it is.
    pub plain: Bytes,
    /// Compressed with gzip.
    pub compressed: Bytes,
}

impl Asset {
    fn new(content_type: &'static str, plain: &'static [u8]) -> std::io::Result<Self> {
        Ok(Self { content_type, plain: Bytes::from_static(plain), compressed: compress(plain)? })
    }
}

/// All files.
#[derive(Debug)]
pub struct Assets {
    version: String,
    files: Vec<(&'static str, Asset)>,
    widget: Asset,
}

impl Assets {
    pub(super) fn load() -> std::io::Result<Self> {
        let mut hash = Sha256::new();
        let mut files = Vec::with_capacity(FILES.len());
        for (name, content_type, content) in FILES {
            hash.update(name);
            hash.update([0]);
            hash.update(content);
            files.push((*name, Asset::new(content_type, content)?));
        }
        let version = hex::encode(hash.finalize()).chars().take(VERSION_LENGTH).collect();
        Ok(Self { version, files, widget: Asset::new(SCRIPT, WIDGET)? })
    }

    /// Where the files are.
    pub(super) fn path(&self) -> String {
        format!("/assets/{}", self.version)
    }

    /// A file, and whether it is of this very version. A page that another version of this program rendered, before an upgrade
    /// or beside it, gets the file as it is here: a neighbour's file does, as a rule, and a page without its files does nothing.
    /// Nobody may keep it under that address, though. Nothing for what never was a version.
    #[must_use]
    pub fn file(&self, version: &str, name: &str) -> Option<(&Asset, bool)> {
        let a_version = version.len() == VERSION_LENGTH && version.bytes().all(|byte| byte.is_ascii_hexdigit());
        let found = self.files.iter().find(|(known, _)| *known == name).filter(|_| a_version);
        found.map(|(_, asset)| (asset, version == self.version))
    }

    /// The script for clients' own sites.
    #[must_use]
    pub fn widget(&self) -> &Asset {
        &self.widget
    }
}

/// Compresses with gzip.
pub(super) fn compress(content: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content)?;
    Ok(encoder.finish()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_light() {
        let assets = Assets::load().unwrap();
        let bytes: usize = assets.files.iter().map(|(_, asset)| asset.compressed.len()).sum();
        assert!(bytes < 50_000, "{bytes} bytes");
        assert!(assets.file(&assets.version, "chat.js").is_some_and(|(_, own)| own));
        assert!(assets.file("0000000000000000", "chat.js").is_some_and(|(_, own)| !own));
        assert!(assets.file("000000000000000", "chat.js").is_none() && assets.file("", "chat.js").is_none());
        assert!(assets.file("../../../../x.js", "chat.js").is_none());
        assert!(assets.file(&assets.version, "../page.html").is_none());
    }

    #[test]
    fn the_scripts_make_no_markup_of_texts() {
        for (name, _, content) in FILES.iter().chain(&[("widget.js", SCRIPT, WIDGET)]) {
            let text = std::str::from_utf8(content).unwrap();
            for door in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"]
            {
                assert!(!text.contains(door), "{name} uses {door}");
            }
        }
    }
}
