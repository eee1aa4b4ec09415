//! Images that questions come with: what they may be, where they are kept, and which of them a model is shown.
//!
//! An image comes in the request itself, as a `data:` URL. This server fetches none, and has none fetched: what stands behind an
//! address may be another thing tomorrow, and nobody could say what an answer was about. Nothing here decodes an image: its first bytes
//! say what it is, which is looked at so that nothing else is ever stored as one, or told a browser as one.
//!
//! The bytes go into the tenant's database, in the statement that stores the question. The Base64 goes to the model, in
//! the very text that it came in: it is megabytes, and is not copied.
//!
//! *What a model is shown again.* The images of a question are paid for with every question that shows them. So an
//! assistant that accepts images is shown those of the question, or, if it has none, those of the last question before it
//! that has any, as far back as the history goes. One that does not accept them is told texts only.

pub mod tenant_store;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::FutureExt as _;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::prompt::Spoken;
use super::room::Held;
use super::{Chat, ChatError};
use crate::access::TenantCaller;
use crate::api::images::MOST_IMAGES;
use crate::ids::ImageId;
use crate::providers::{Image, ImageSource};
use crate::tenant_db::Client;

/// The largest image, as the Base64 that providers are sent. Anthropic takes 5 MiB of it, and counts it as Base64 though its
/// documentation speaks of an image's size ("image exceeds 5 MB maximum: 6275800 bytes > 5242880 bytes"); others take more.
const MOST_BASE64: usize = 5 * 1024 * 1024;
/// The same as bytes.
const MOST_BYTES: usize = MOST_BASE64 / 4 * 3;
/// All images of a question together, in bytes. As Base64 they leave room for a conversation in the 20 MB that a request may have at
/// Gemini; at Anthropic it is 32 MB, and OpenAI takes more.
const MOST_BYTES_TOGETHER: usize = 10 * 1024 * 1024;
/// A `data:` URL says within so many bytes what it is.
const HEAD: usize = 64;

/// The formats that models look at. (Gemini takes all but GIF.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageType {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP.
    Webp,
    /// GIF, of which models look at the first picture.
    Gif,
}

impl ImageType {
    const ALL: [Self; 4] = [Self::Png, Self::Jpeg, Self::Webp, Self::Gif];

    /// The media type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
            Self::Gif => "image/gif",
        }
    }

    /// The format of a media type.
    fn named(media_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(media_type))
    }

    /// The format that an image's first bytes say.
    fn of_bytes(content: &[u8]) -> Option<Self> {
        match content {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1A, b'\n', _, ..] => Some(Self::Png),
            [0xFF, 0xD8, 0xFF, _, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', _, ..] => Some(Self::Webp),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', _, ..] => Some(Self::Gif),
            _ => None,
        }
    }
}

/// Why images were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ImageError {
    /// There are too many.
    #[error("at most {MOST_IMAGES} images may come with a question")]
    TooMany,
    /// They are too large together.
    #[error("the images must be at most {} MiB together", MOST_BYTES_TOGETHER / 1024 / 1024)]
    TooLargeTogether,
    /// One of them is refused.
    #[error("{problem}")]
    Refused {
        /// Which one, from 0.
        index: usize,
        /// Why.
        problem: ImageProblem,
    },
}

/// Why an image is refused. The texts are meant for whoever sent it, and quote nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ImageProblem {
    /// It is no `data:` URL of a format that models look at.
    #[error(
        "must be a `data:` URL in Base64, of image/png, image/jpeg, image/webp or image/gif; no image is fetched from elsewhere"
    )]
    NoImage,
    /// Its Base64 cannot be read.
    #[error("is not Base64 as RFC 4648 has it, with padding and nothing else in it")]
    NoBase64,
    /// It is too large.
    #[error("must be at most 3.75 MiB, which is 5 MiB in Base64")]
    TooLarge,
    /// Its bytes are not what its type says.
    #[error("is not what its type says")]
    OtherType,
}

/// An image of a question that has just been asked.
pub struct QuestionImage {
    media_type: ImageType,
    content: Vec<u8>,
    base64: Arc<String>,
    digest: [u8; 32],
}

impl fmt::Debug for QuestionImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuestionImage({}, {} bytes)", self.media_type.as_str(), self.content.len())
    }
}

impl QuestionImage {
    fn read(mut url: String) -> Result<Self, ImageProblem> {
        let comma = url.bytes().take(HEAD).position(|byte| byte == b',').ok_or(ImageProblem::NoImage)?;
        let head = url.get(..comma).unwrap_or_default().to_ascii_lowercase();
        let declared = head.strip_prefix("data:").and_then(|head| head.strip_suffix(";base64"));
        let media_type = declared.and_then(ImageType::named).ok_or(ImageProblem::NoImage)?;
        if url.len() - comma - 1 > MOST_BASE64 {
            return Err(ImageProblem::TooLarge);
        }
        url.drain(..=comma);
        let content = BASE64_STANDARD.decode(&url).map_err(|_| ImageProblem::NoBase64)?;
        if ImageType::of_bytes(&content) != Some(media_type) {
            return Err(ImageProblem::OtherType);
        }
        let digest = Sha256::digest(&content).into();
        Ok(Self { media_type, content, base64: Arc::new(url), digest })
    }

    /// What tells it from any other image.
    pub(super) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// What is stored of it, and what a model is shown.
    pub(super) fn split(self) -> (NewImage, Image) {
        let Self { media_type, content, base64, .. } = self;
        (NewImage { id: ImageId::new(), media_type, content }, image(media_type, base64))
    }
}

fn image(media_type: ImageType, base64: Arc<String>) -> Image {
    Image { source: ImageSource::Data { media_type: media_type.as_str().to_owned(), base64 }, detail: None }
}

/// Reads the images of a question from its `data:` URLs.
///
/// # Errors
/// [`ChatError::Images`].
pub async fn read(urls: Vec<String>) -> Result<Vec<QuestionImage>, ChatError> {
    if urls.is_empty() {
        return Ok(Vec::new());
    }
    // Megabytes take longer than a thread may be kept from everybody else's requests.
    Ok(tokio::task::spawn_blocking(|| decode(urls)).await.map_err(|_| ChatError::TaskLost)??)
}

pub(super) fn decode(urls: Vec<String>) -> Result<Vec<QuestionImage>, ImageError> {
    if urls.len() > MOST_IMAGES {
        return Err(ImageError::TooMany);
    }
    let mut images = Vec::with_capacity(urls.len());
    let mut together = 0;
    for (index, url) in urls.into_iter().enumerate() {
        let image = QuestionImage::read(url).map_err(|problem| ImageError::Refused { index, problem })?;
        together += image.content.len();
        if together > MOST_BYTES_TOGETHER {
            return Err(ImageError::TooLargeTogether);
        }
        images.push(image);
    }
    Ok(images)
}

/// An image that is to be stored.
pub(super) struct NewImage {
    pub(super) id: ImageId,
    pub(super) media_type: ImageType,
    pub(super) content: Vec<u8>,
}

impl fmt::Debug for NewImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NewImage({}, {} bytes)", self.media_type.as_str(), self.content.len())
    }
}

/// An image as it is stored.
pub struct StoredImage {
    /// What it is.
    pub media_type: ImageType,
    /// Its bytes.
    pub content: Vec<u8>,
}

impl fmt::Debug for StoredImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredImage({}, {} bytes)", self.media_type.as_str(), self.content.len())
    }
}

/// What is told of an image in the list of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageImage {
    /// Its id.
    pub id: ImageId,
    /// What it is.
    pub media_type: ImageType,
    /// Its size.
    pub bytes: u64,
}

impl Chat {
    /// One of the images that the caller has sent.
    ///
    /// # Errors
    /// [`ChatError::ImageNotFound`] if it is not the caller's, or a failure.
    pub async fn image(&self, caller: &TenantCaller, id: ImageId) -> Result<StoredImage, ChatError> {
        let client = caller.db.client().await?;
        tenant_store::image(&client, id, caller.user_id).await?.ok_or(ChatError::ImageNotFound)
    }
}

impl Chat {
    /// Puts the images that a model is shown again where they were shown first: those of the last question that has any, among
    /// the last `window` messages. Also returns what they hold of the room for what is large. No connection is kept by whoever
    /// waits for that, so the one that is returned may be another.
    pub(super) async fn recall_images(
        &self,
        caller: &TenantCaller,
        mut client: Client,
        spoken: &mut [Spoken],
        window: usize,
    ) -> Result<(Client, Option<Arc<Held>>), ChatError> {
        let skipped = spoken.len().saturating_sub(window);
        let last =
            spoken.iter_mut().skip(skipped).rev().find_map(|spoken| Some((spoken.with_images?, &mut spoken.images)));
        let Some((message, images)) = last else { return Ok((client, None)) };
        let size = tenant_store::size_of_images(&client, message).await?;
        let (tenant, size) = (caller.db.record().id, base64::encoded_len(size, true).unwrap_or(usize::MAX));
        let held = match self.room.enter(tenant, size).now_or_never() {
            Some(held) => held?,
            None => {
                drop(client);
                let held = self.room.enter(tenant, size).await?;
                client = caller.db.client().await?;
                held
            }
        };
        let stored = tenant_store::images_of(&client, message).await?;
        // Megabytes take longer than a thread may be kept from everybody else's requests.
        *images = tokio::task::spawn_blocking(move || stored.iter().map(shown_again).collect())
            .await
            .map_err(|_| ChatError::TaskLost)?;
        Ok((client, held.map(Arc::new)))
    }
}

fn shown_again(stored: &StoredImage) -> Image {
    image(stored.media_type, Arc::new(BASE64_STANDARD.encode(&stored.content)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and the rest.";

    fn url(media_type: &str, content: &[u8]) -> String {
        format!("data:{media_type};base64,{}", BASE64_STANDARD.encode(content))
    }

    fn problem(url: String) -> Option<ImageProblem> {
        match decode(vec![url]) {
            Ok(_) => None,
            Err(ImageError::Refused { index: 0, problem }) => Some(problem),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_format_is_read_and_its_base64_is_the_text_that_came() {
        let known: [(&str, &[u8]); 5] = [
            ("image/png", PNG),
            ("image/jpeg", b"\xFF\xD8\xFF\xE0..JFIF"),
            ("image/webp", b"RIFF\x10\0\0\0WEBPVP8 "),
            ("image/gif", b"GIF89a\x01\0"),
            ("image/gif", b"GIF87a\x01\0"),
        ];
        for (media_type, content) in known {
            let images = decode(vec![url(media_type, content)]).unwrap();
            let debug = format!("{images:?}");
            let (new, shown) = images.into_iter().next().unwrap().split();
            assert_eq!((new.media_type.as_str(), new.content.as_slice()), (media_type, content));
            let base64 = Arc::new(BASE64_STANDARD.encode(content));
            for told in [debug, format!("{new:?} {shown:?}")] {
                assert!(!told.contains(base64.as_str()) && told.contains(media_type), "{told}");
            }
            assert_eq!(shown.source, ImageSource::Data { media_type: media_type.to_owned(), base64 });
        }
        // Media types have no case.
        let shouted = url("image/png", PNG).replacen("data:image/png;base64", "DATA:Image/PNG;BASE64", 1);
        assert_eq!(problem(shouted), None);
    }

    #[test]
    fn what_is_no_image_or_another_is_refused() {
        use ImageProblem::{NoBase64, NoImage, OtherType};
        let elsewhere =
            ["https://example.com/a.png", "http://127.0.0.1/a.png", "file:///etc/passwd", "//example.com/a.png"];
        let odd = [
            "",
            ",",
            "data:",
            "data:,",
            "data:image/png,AAAA",
            "data:;base64,AAAA",
            "data:image/png;charset=utf-8;base64,AAAA",
            "data:image/svg+xml;base64,PHN2Zz4=",
            "data:text/html;base64,PGI+",
            "data:image/bmp;base64,Qk0=",
            "data:image/pngé;base64,AAAA",
            "image/png;base64,AAAA",
        ];
        for text in elsewhere.into_iter().chain(odd) {
            assert_eq!(problem(text.to_owned()), Some(NoImage), "{text}");
        }
        let good = BASE64_STANDARD.encode(PNG);
        for bad in [
            good.trim_end_matches('=').to_owned(),
            format!(" {good}"),
            format!("{good}\n"),
            good.replacen('B', "%42", 1),
            good.replacen('B', "_", 1),
            format!("{good},"),
            "é".to_owned(),
        ] {
            assert_eq!(problem(format!("data:image/png;base64,{bad}")), Some(NoBase64), "{bad}");
        }
        for (media_type, content) in [
            ("image/jpeg", PNG),
            ("image/png", b"<svg onload=alert(1)>".as_slice()),
            ("image/png", b""),
            ("image/png", b"\x89PNG\r\n\x1a\n"),
            ("image/webp", b"RIFF\x10\0\0\0WAVEfmt "),
            ("image/gif", b"GIF88a\x01"),
        ] {
            assert_eq!(problem(url(media_type, content)), Some(OtherType), "{media_type} {content:?}");
        }
    }

    #[test]
    fn they_are_bounded_each_together_and_in_number() {
        let of_size = |size: usize| {
            let mut content = PNG.to_vec();
            content.resize(size, 7);
            url("image/png", &content)
        };
        assert_eq!(problem(of_size(MOST_BYTES)), None);
        assert_eq!(problem(of_size(MOST_BYTES + 1)), Some(ImageProblem::TooLarge));
        let third = MOST_BYTES_TOGETHER / 3;
        assert_eq!(decode(vec![of_size(third); 3]).unwrap().len(), 3);
        assert_eq!(decode(vec![of_size(third + 1); 3]).unwrap_err(), ImageError::TooLargeTogether);
        assert_eq!(decode(vec![of_size(100); MOST_IMAGES]).unwrap().len(), MOST_IMAGES);
        assert_eq!(decode(vec![of_size(100); MOST_IMAGES + 1]).unwrap_err(), ImageError::TooMany);
        let second = decode(vec![of_size(100), "data:".to_owned()]).unwrap_err();
        assert_eq!(second, ImageError::Refused { index: 1, problem: ImageProblem::NoImage });
        assert!(ImageError::TooMany.to_string().starts_with("at most 4 ") && MOST_BYTES == 3_932_160);
    }

    #[test]
    fn images_are_told_apart_by_their_bytes() {
        let digest = |content: &[u8]| *decode(vec![url("image/png", content)]).unwrap()[0].digest();
        assert_eq!(digest(PNG), digest(PNG));
        assert_ne!(digest(PNG), digest(b"\x89PNG\r\n\x1a\n and the test."));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in any::<String>(), bytes in any::<Vec<u8>>(), kind in 0..4_usize) {
            let _ = decode(vec![text.clone()]);
            let _ = decode(vec![format!("data:image/png;base64,{text}")]);
            let media_type = ImageType::ALL[kind];
            let is_read = decode(vec![url(media_type.as_str(), &bytes)]).is_ok();
            prop_assert!(is_read == (ImageType::of_bytes(&bytes) == Some(media_type)));
        }
    }
}
