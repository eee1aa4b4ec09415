//! Bodies that may hold megabytes: questions with images, and conversations of programs.
//!
//! A body takes room once more of it has come than an ordinary one has, so that nobody takes any by saying how much is to come. One
//! that takes too long to arrive is given up, with the room that it holds.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use tokio::time::timeout;

use crate::chat::{Full, Held, ROOM_SMALL, Room};
use crate::ids::TenantId;

/// How long a body may take to arrive.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// Why a body was not read.
#[derive(Debug)]
pub(super) enum Unread<E> {
    /// It is larger than it may be.
    TooLarge,
    /// It broke off.
    Broken,
    /// It took too long.
    TooSlow,
    /// There is no room for it.
    Full(Full),
    /// A large one is not allowed at all.
    Refused(E),
}

/// What bounds a body.
#[derive(Debug)]
pub(super) struct Bounds<'a> {
    pub(super) room: &'a Room,
    pub(super) tenant: TenantId,
    /// The largest there may be.
    pub(super) most: usize,
    pub(super) patience: Duration,
}

/// Reads a body. What is held with it is held by everybody who still needs it. `allowed` is asked before a large one gets room.
pub(super) async fn read<E>(
    request: Request,
    bounds: Bounds<'_>,
    allowed: impl FnOnce() -> Result<(), E>,
) -> Result<(Parts, Bytes, Option<Arc<Held>>), Unread<E>> {
    let Bounds { room, tenant, most, patience } = bounds;
    let (parts, body) = request.into_parts();
    let declared = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let reading = async {
        let mut chunks = Body::into_data_stream(body);
        let (mut read, mut held, mut allowed, mut length) = (BytesMut::new(), None, Some(allowed), 0);
        // Whoever is refused in the middle of sending would not hear why, so what still comes is taken and thrown away.
        let mut refused = declared.filter(|declared: &usize| *declared > most).map(|_| Unread::TooLarge);
        while let Some(chunk) = chunks.next().await {
            let Ok(chunk) = chunk else { return Err(Unread::Broken) };
            length += chunk.len();
            if length > most {
                return Err(refused.unwrap_or(Unread::TooLarge));
            }
            if refused.is_none()
                && length > ROOM_SMALL
                && let Some(allowed) = allowed.take()
            {
                // Of how large it becomes if nobody says so, only the most is known.
                let whole = declared.unwrap_or(most).max(length);
                let entered = match allowed() {
                    Ok(()) => room.enter(tenant, whole).await.map_err(Unread::Full),
                    Err(error) => Err(Unread::Refused(error)),
                };
                match entered {
                    Ok(room) => {
                        held = room;
                        read.reserve(declared.unwrap_or_default().saturating_sub(read.len()));
                    }
                    Err(error) => {
                        refused = Some(error);
                        read = BytesMut::new();
                    }
                }
            }
            if refused.is_none() {
                read.extend_from_slice(&chunk);
            }
        }
        match refused {
            Some(refused) => Err(refused),
            None => Ok((read.freeze(), held.map(Arc::new))),
        }
    };
    match timeout(patience, reading).await {
        Ok(read) => read.map(|(read, held)| (parts, read, held)),
        Err(_) => Err(Unread::TooSlow),
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    const MIB: usize = 1024 * 1024;

    type Chunk = Result<Bytes, std::io::Error>;
    type Read = Result<(Bytes, Option<Arc<Held>>), Unread<&'static str>>;

    fn room() -> Room {
        Room::new(4 * MIB, 2 * MIB, Duration::from_millis(50))
    }

    async fn read_as(room: &Room, tenant: TenantId, body: Body, declared: Option<usize>, allowed: bool) -> Read {
        let request = declared
            .into_iter()
            .fold(Request::builder(), |request, declared| request.header(header::CONTENT_LENGTH, declared));
        let bounds = Bounds { room, tenant, most: 2 * MIB, patience: Duration::from_millis(500) };
        let allowed = || if allowed { Ok(()) } else { Err("no") };
        let (_, read, held) = read(request.body(body).unwrap(), bounds, allowed).await?;
        Ok((read, held))
    }

    /// So much of a body in pieces, and whether nothing comes after that.
    fn body(size: usize, stalls: bool) -> Body {
        let chunk: fn(usize) -> Chunk = |size| Ok(Bytes::from(vec![b'x'; size]));
        let chunks = stream::iter((0..size / 1024).map(move |_| chunk(1024)).chain([chunk(size % 1024)]));
        match stalls {
            true => Body::from_stream(chunks.chain(stream::pending())),
            false => Body::from_stream(chunks),
        }
    }

    #[tokio::test]
    async fn large_bodies_hold_room_and_small_ones_need_none() {
        let (room, tenant) = (room(), TenantId::new());
        let small = read_as(&room, tenant, body(ROOM_SMALL, false), None, false).await.unwrap();
        assert!(small.1.is_none() && small.0.len() == ROOM_SMALL);
        let (read, first) = read_as(&room, tenant, body(MIB, false), Some(MIB), true).await.unwrap();
        assert_eq!((read.len(), room.free()), (MIB, 3 * MIB));
        // One that does not say how large it is counts as the largest.
        let refused = read_as(&room, tenant, body(MIB, false), None, true).await;
        assert!(matches!(refused, Err(Unread::Full(_))), "{refused:?}");
        drop(first);
        assert!(read_as(&room, tenant, body(MIB, false), None, true).await.is_ok());
        assert_eq!(room.free(), 4 * MIB);
    }

    #[tokio::test]
    async fn what_is_only_announced_takes_no_room() {
        let (room, tenant) = (room(), TenantId::new());
        let announced: Vec<_> =
            (0..20).map(|_| read_as(&room, tenant, body(1024, true), Some(2 * MIB), true)).collect();
        let announced = futures::future::join_all(announced);
        let asks = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(room.free(), 4 * MIB);
            read_as(&room, tenant, body(MIB, false), Some(MIB), true).await
        };
        let (announced, asked) = futures::future::join(announced, asks).await;
        assert!(asked.is_ok());
        assert!(announced.iter().all(|one| matches!(one, Err(Unread::TooSlow))));
    }

    #[tokio::test]
    async fn one_that_stalls_loses_its_room_and_what_is_not_allowed_gets_none() {
        let (room, tenant) = (room(), TenantId::new());
        let stalled = read_as(&room, tenant, body(MIB, true), Some(2 * MIB), true).await;
        assert!(matches!(stalled, Err(Unread::TooSlow)) && room.free() == 4 * MIB);
        let refused = read_as(&room, tenant, body(MIB, false), Some(MIB), false).await;
        assert!(matches!(refused, Err(Unread::Refused("no"))) && room.free() == 4 * MIB);
        for declared in [None, Some(MIB), Some(3 * MIB)] {
            let refused = read_as(&room, tenant, body(3 * MIB, false), declared, true).await;
            assert!(matches!(refused, Err(Unread::TooLarge)) && room.free() == 4 * MIB, "{refused:?}");
        }
        let broken = stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("cut"))]);
        let refused = read_as(&room, tenant, Body::from_stream(broken), None, true).await;
        assert!(matches!(refused, Err(Unread::Broken)), "{refused:?}");
    }
}
