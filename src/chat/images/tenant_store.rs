//! SQL of images.

use std::collections::HashMap;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, Row};

use super::{ImageType, MOST_BYTES, MessageImage, StoredImage};
use crate::api::images::MOST_IMAGES;
use crate::chat::turn::Begin;
use crate::ids::{ImageId, MessageId, UserId};
use crate::tenant_db::{Client, GenericClient as _};

/// Stores the images of a question in the statement that stores it: the first is the expression of the question's id, the second where
/// there is a row if it is stored, the others are the parameters of [`NewImages`].
macro_rules! insert_images {
    ($question:literal, $stored:literal, $ids:literal, $media_types:literal, $contents:literal) => {
        concat!(
            "images AS (
        INSERT INTO chat_images (id, message_id, position, media_type, content)
        SELECT i.id, ",
            $question,
            "::uuid, i.position, i.media_type, i.content
        FROM ",
            $stored,
            ", unnest(",
            $ids,
            "::uuid[], ",
            $media_types,
            "::text[], ",
            $contents,
            "::bytea[]) WITH ORDINALITY i (id, media_type, content, position)
    )"
        )
    };
}
pub(in crate::chat) use insert_images;

/// The parameters of `insert_images`.
pub(in crate::chat) struct NewImages<'a> {
    count: i16,
    ids: Vec<ImageId>,
    media_types: Vec<&'static str>,
    contents: Vec<&'a [u8]>,
}

impl<'a> NewImages<'a> {
    /// Those of a question; none if it has none.
    pub(in crate::chat) fn of(turn: &'a Begin) -> Option<Self> {
        let images = &turn.images;
        (!images.is_empty()).then(|| Self {
            count: i16::try_from(images.len()).unwrap_or(i16::MAX),
            ids: images.iter().map(|image| image.id).collect(),
            media_types: images.iter().map(|image| image.media_type.as_str()).collect(),
            contents: images.iter().map(|image| image.content.as_slice()).collect(),
        })
    }

    /// How many there are, and what `insert_images` takes of them, in its order.
    pub(in crate::chat) fn parameters(&self) -> [&(dyn ToSql + Sync); 4] {
        [&self.count, &self.ids, &self.media_types, &self.contents]
    }
}

/// One that a user has sent. A client's own database may hold anything, also what no question could come with: that is nothing.
const IMAGE: &str = "\
    SELECT i.media_type, i.content FROM chat_images i
    JOIN chat_messages m ON m.id = i.message_id JOIN chat_sessions s ON s.id = m.session_id
    WHERE i.id = $1 AND s.user_id = $2 AND octet_length(i.content) <= $3";

/// Those of a message, in order.
const IMAGES_OF: &str = "\
    SELECT media_type, content FROM chat_images WHERE message_id = $1 AND octet_length(content) <= $2
    ORDER BY position LIMIT $3";

/// How large those of a message are together, in bytes.
const SIZE_OF: &str = "\
    SELECT COALESCE(sum(octet_length(content)), 0) FROM chat_images WHERE message_id = $1 AND octet_length(content) <= $2";

/// What is told of those of several messages.
const LIST_IMAGES: &str = "\
    SELECT id, message_id, media_type, octet_length(content) FROM chat_images WHERE message_id = ANY ($1)
    ORDER BY message_id, position";

/// Every statement, for a test that prepares them all against the schema.
pub const STATEMENTS: &[&str] = &[IMAGE, IMAGES_OF, SIZE_OF, LIST_IMAGES];

/// The largest image there can be.
fn largest() -> i32 {
    i32::try_from(MOST_BYTES).unwrap_or(i32::MAX)
}

fn stored(row: &Row) -> Result<Option<StoredImage>, Error> {
    let Some(media_type) = ImageType::named(row.try_get(0)?) else { return Ok(None) };
    Ok(Some(StoredImage { media_type, content: row.try_get(1)? }))
}

/// An image; `None` if it is not the user's.
pub(super) async fn image(client: &Client, id: ImageId, user: UserId) -> Result<Option<StoredImage>, Error> {
    let statement = client.prepare_cached(IMAGE).await?;
    let row = client.query_opt(&statement, &[&id, &user, &largest()]).await?;
    row.as_ref().map_or(Ok(None), stored)
}

/// The images of a message.
pub(super) async fn images_of(client: &Client, message: MessageId) -> Result<Vec<StoredImage>, Error> {
    let statement = client.prepare_cached(IMAGES_OF).await?;
    let most = i64::try_from(MOST_IMAGES).unwrap_or(i64::MAX);
    let rows = client.query(&statement, &[&message, &largest(), &most]).await?;
    rows.iter().filter_map(|row| stored(row).transpose()).collect()
}

/// How large the images of a message are together, in bytes.
pub(super) async fn size_of_images(client: &Client, message: MessageId) -> Result<usize, Error> {
    let statement = client.prepare_cached(SIZE_OF).await?;
    let size: i64 = client.query_one(&statement, &[&message, &largest()]).await?.try_get(0)?;
    Ok(usize::try_from(size).unwrap_or_default())
}

/// What is told of the images of messages.
pub(in crate::chat) async fn list_images(
    client: &Client,
    messages: &[MessageId],
) -> Result<HashMap<MessageId, Vec<MessageImage>>, Error> {
    let statement = client.prepare_cached(LIST_IMAGES).await?;
    let mut found: HashMap<MessageId, Vec<MessageImage>> = HashMap::new();
    for row in client.query(&statement, &[&messages]).await? {
        let Some(media_type) = ImageType::named(row.try_get(2)?) else { continue };
        let bytes = u64::try_from(row.try_get::<_, i32>(3)?).unwrap_or_default();
        found.entry(row.try_get(1)?).or_default().push(MessageImage { id: row.try_get(0)?, media_type, bytes });
    }
    Ok(found)
}
