//! Room for what is large: questions with images, long conversations of programs, and images that a model is shown again, from the time
//! that they arrive until the model speaks.
//!
//! What is admitted is bounded by plans. But a body is read before that, and whoever has a token may send one, visitors included. So all
//! that is large shares a room, of which one tenant's part is bounded: whoever finds it full waits a moment, and is then told to
//! come again. What is of ordinary length needs none.
//!
//! It knows sizes. It never knows what is in them.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::ids::TenantId;

/// What is no larger needs no room, in bytes: more than any question's text.
pub const SMALL: usize = 256 * 1024;
/// All that is large at once, in bytes. Each is there some four times over for a moment: as it came, in its parts, as bytes of images and
/// in the statement that stores them, and about twice until the model speaks.
const ALL: usize = 128 * 1024 * 1024;
/// The same of one tenant.
const SHARE: usize = ALL / 4;
/// How long somebody waits for room.
const WAIT: Duration = Duration::from_secs(5);
const KIB: usize = 1024;

/// There was no room in time.
#[derive(Debug, Clone, Copy, Error)]
#[error("there is no room for so much at once")]
pub struct Full {
    /// When to come again.
    pub retry_after: Duration,
}

/// Room that is held until this is dropped.
#[derive(Debug)]
pub struct Held {
    _share: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// The room of this server. Cheap to clone.
#[derive(Clone)]
pub struct Room(Arc<Inner>);

struct Inner {
    free: Arc<Semaphore>,
    all: usize,
    share: usize,
    wait: Duration,
    /// What each tenant has left of its share, as long as somebody holds some of it or waits for it.
    shares: DashMap<TenantId, Weak<Semaphore>>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("free_kib", &self.0.free.available_permits()).finish_non_exhaustive()
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new(ALL, SHARE, WAIT)
    }
}

impl Room {
    /// A room of so many bytes, of which one tenant may hold its share.
    pub(crate) fn new(all: usize, share: usize, wait: Duration) -> Self {
        let (all, share) = (all / KIB, share / KIB);
        Self(Arc::new(Inner { free: Arc::new(Semaphore::new(all)), all, share, wait, shares: DashMap::new() }))
    }

    /// Room for so many bytes of a tenant's; `None` if they need none.
    ///
    /// # Errors
    /// [`Full`] if there is none for a while.
    pub async fn enter(&self, tenant: TenantId, bytes: usize) -> Result<Option<Held>, Full> {
        if bytes <= SMALL {
            return Ok(None);
        }
        let Inner { free, wait, .. } = &*self.0;
        let needed = self.needed(bytes);
        let entering = async {
            // Its own share first: whoever waits for that holds nothing of what the others need.
            let share = self.share(tenant).acquire_many_owned(needed).await.ok()?;
            let all = Arc::clone(free).acquire_many_owned(needed).await.ok()?;
            Some(Held { _share: share, _all: all })
        };
        match timeout(*wait, entering).await {
            Ok(Some(held)) => Ok(Some(held)),
            _ => Err(Full { retry_after: *wait }),
        }
    }

    fn needed(&self, bytes: usize) -> u32 {
        let Inner { all, share, .. } = &*self.0;
        u32::try_from(bytes.div_ceil(KIB).min(*share).min(*all)).unwrap_or(u32::MAX)
    }

    fn share(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut share = self.0.shares.entry(tenant).or_default();
        share.upgrade().unwrap_or_else(|| {
            let new = Arc::new(Semaphore::new(self.0.share));
            *share = Arc::downgrade(&new);
            new
        })
    }

    /// A tenant that is gone needs none.
    pub(super) fn forget(&self, tenant: TenantId) {
        self.0.shares.remove(&tenant);
    }

    /// What is free, in bytes.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.0.free.available_permits() * KIB
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[tokio::test]
    async fn a_tenant_holds_its_share_and_no_more() {
        let room = Room::new(4 * MIB, MIB, Duration::from_millis(20));
        let (one, other) = (TenantId::new(), TenantId::new());
        let first = room.enter(one, MIB / 2).await.unwrap().unwrap();
        let second = room.enter(one, MIB / 2).await.unwrap();
        assert!(second.is_some() && room.enter(one, MIB / 2).await.is_err());
        assert!(room.enter(one, SMALL).await.unwrap().is_none(), "what is small needs none");
        // The others have theirs.
        let theirs = room.enter(other, MIB).await.unwrap();
        assert_eq!(room.free(), 2 * MIB);
        drop(first);
        let again = room.enter(one, MIB / 2).await.unwrap();
        // What is larger than a share waits for all of it.
        assert!(room.enter(one, 9 * MIB).await.is_err());
        drop((second, again, theirs));
        drop(room.enter(one, 9 * MIB).await.unwrap());
        assert_eq!(room.free(), 4 * MIB);
    }

    #[tokio::test]
    async fn all_tenants_share_the_room() {
        let room = Room::new(2 * MIB, MIB, Duration::from_millis(20));
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(room.enter(TenantId::new(), MIB).await.unwrap());
        }
        assert_eq!(room.enter(TenantId::new(), MIB).await.unwrap_err().retry_after, Duration::from_millis(20));
        held.pop();
        assert!(room.enter(TenantId::new(), MIB).await.is_ok());
    }
}
