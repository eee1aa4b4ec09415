//! Images of questions, as they are sent and told.

use std::fmt;

use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// How many images a question may have.
pub const MOST_IMAGES: usize = 4;
/// So many are read of a list; one that is longer is refused, however long it is, and must not take memory for that.
const MOST_READ: usize = MOST_IMAGES + 1;

/// The `data:` URLs of a question's images, as they were sent, and one more than there may be at most.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ImageUrls(pub Vec<String>);

/// What an image shows is nobody's business.
impl fmt::Debug for ImageUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageUrls({})", self.0.len())
    }
}

impl<'de> Deserialize<'de> for ImageUrls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = ImageUrls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of `data:` URLs")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ImageUrls, A::Error> {
                let mut urls = Vec::new();
                while urls.len() < MOST_READ {
                    let Some(url) = list.next_element()? else { return Ok(ImageUrls(urls)) };
                    urls.push(url);
                }
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(ImageUrls(urls))
            }

            fn visit_unit<E>(self) -> Result<ImageUrls, E> {
                Ok(ImageUrls::default())
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// An image that came with a question.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatImage {
    /// Its id: `GET /api/v1/images/{id}` gives its bytes.
    pub id: Uuid,
    /// `image/png`, `image/jpeg`, `image/webp` or `image/gif`.
    pub media_type: String,
    /// Its size in bytes.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_read_and_of_one_that_is_too_long_no_more_than_tells_it() {
        let read = |value| serde_json::from_value::<ImageUrls>(value).map(|urls| urls.0);
        assert_eq!(read(json!(["a", "b"])).unwrap(), ["a", "b"]);
        assert!(read(json!([])).unwrap().is_empty() && read(json!(null)).unwrap().is_empty());
        assert_eq!(read(json!(vec!["a"; 100_000])).unwrap().len(), MOST_READ);
        for odd in [json!("a"), json!({ "a": 1 }), json!(["a", 1]), json!([["a"]]), json!(1)] {
            assert!(read(odd).is_err());
        }
        let urls = ImageUrls(vec!["data:image/png;base64,c2VjcmV0".to_owned()]);
        assert_eq!(format!("{urls:?}"), "ImageUrls(1)");
    }
}
