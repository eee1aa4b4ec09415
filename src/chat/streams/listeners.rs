//! Who listens to answers again: one reader of the database for all in this process who follow the same answer of
//! another server's, and a bound on how many listen for one user.
//!
//! What one of them reads, the others are told: they share its log. It is a user's own answer, so it is found by tenant,
//! user and message alone, and somebody else's is not found at all.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use dashmap::{DashMap, Entry};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::event_log::EventLog;
use crate::ids::{MessageId, TenantId, UserId};

/// How many listen again for one user at once, at most. Many windows need fewer, and so do connections that a phone has
/// lost and this server has not noticed yet. Whoever comes then takes the place of the one who came first: that may
/// well be a connection that nobody is at any more, and a user who reloads a page must never be locked out by those.
const MOST: usize = 32;

/// Whose a place is.
type Owner = (TenantId, UserId);

/// The listeners of this process, without those who asked: an answer has one of them.
#[derive(Default)]
pub(in crate::chat) struct Listeners {
    followed: DashMap<(TenantId, UserId, MessageId), Weak<Followed>>,
    /// Oldest first.
    places: DashMap<Owner, VecDeque<Arc<CancellationToken>>>,
}

/// An answer that another server makes, read for all who listen here. The reading ends when nobody holds it.
pub(in crate::chat) struct Followed {
    pub(super) log: Arc<EventLog>,
    key: (TenantId, UserId, MessageId),
    listeners: Arc<Listeners>,
    _reader: DropGuard,
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Another one may have taken its place.
        self.listeners.followed.remove_if(&self.key, |_, followed| followed.strong_count() == 0);
    }
}

/// A listener's place among those of a user. Given up when dropped.
pub(in crate::chat) struct Place {
    taken: Arc<CancellationToken>,
    owner: Owner,
    listeners: Arc<Listeners>,
}

impl Place {
    /// Whether somebody else has it.
    pub(super) fn is_taken(&self) -> bool {
        self.taken.is_cancelled()
    }

    /// Waits until somebody else has it.
    pub(super) async fn taken(&self) {
        self.taken.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Entry::Occupied(mut places) = self.listeners.places.entry(self.owner) {
            places.get_mut().retain(|place| !Arc::ptr_eq(place, &self.taken));
            if places.get().is_empty() {
                places.remove();
            }
        }
    }
}

impl Listeners {
    /// A place for one more listener. If the user has too many, the one who came first loses its own.
    pub(super) fn place(self: &Arc<Self>, tenant: TenantId, user: UserId) -> Place {
        let taken = Arc::new(CancellationToken::new());
        let owner = (tenant, user);
        let mut places = self.places.entry(owner).or_default();
        places.push_back(Arc::clone(&taken));
        if places.len() > MOST
            && let Some(first) = places.pop_front()
        {
            first.cancel();
        }
        drop(places);
        Place { taken, owner, listeners: Arc::clone(self) }
    }

    /// What is being read of an answer already, for somebody who listens as well.
    pub(super) fn followed(&self, tenant: TenantId, user: UserId, message: MessageId) -> Option<Arc<Followed>> {
        let followed = self.followed.get(&(tenant, user, message))?.upgrade()?;
        // One that has come to its end may say no more than that nothing can be read here just now.
        (!followed.log.has_ended()).then_some(followed)
    }

    /// What is read of an answer, and, for whoever is to read it into this log, when to end: none if somebody was quicker.
    pub(super) fn follow(
        self: &Arc<Self>,
        tenant: TenantId,
        user: UserId,
        message: MessageId,
        log: &Arc<EventLog>,
    ) -> (Arc<Followed>, Option<CancellationToken>) {
        let key = (tenant, user, message);
        let left = CancellationToken::new();
        let mut entry = self.followed.entry(key).or_default();
        // Kept until the entry is let go: the last one to let go of it looks for its entry.
        let present = entry.upgrade();
        if let Some(followed) = present.as_ref().filter(|followed| !followed.log.has_ended()).map(Arc::clone) {
            drop(entry);
            return (followed, None);
        }
        let (log, listeners, reader) = (Arc::clone(log), Arc::clone(self), left.clone().drop_guard());
        let followed = Arc::new(Followed { log, key, listeners, _reader: reader });
        *entry = Arc::downgrade(&followed);
        drop(entry);
        drop(present);
        (followed, Some(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::streams::AnswerEnd;
    use crate::ids::ChatSessionId;

    #[test]
    fn all_who_follow_an_answer_share_one_reader_until_the_last_has_left() {
        let listeners = Arc::new(Listeners::default());
        let (tenant, user, message) = (TenantId::new(), UserId::new(), MessageId::new());
        let log = || EventLog::new(ChatSessionId::new(), message);
        let (first, reader) = listeners.follow(tenant, user, message, &log());
        let reader = reader.unwrap();
        let second = listeners.followed(tenant, user, message).unwrap();
        let (third, none) = listeners.follow(tenant, user, message, &log());
        assert!(none.is_none() && Arc::ptr_eq(&second.log, &third.log));
        assert!(listeners.followed(tenant, UserId::new(), message).is_none());
        assert!(listeners.followed(TenantId::new(), user, message).is_none());
        drop((first, second));
        assert!(!reader.is_cancelled());
        drop(third);
        assert!(reader.is_cancelled() && listeners.followed.is_empty());
    }

    #[test]
    fn nobody_joins_a_log_that_has_ended() {
        let listeners = Arc::new(Listeners::default());
        let (tenant, user, message) = (TenantId::new(), UserId::new(), MessageId::new());
        let log = || EventLog::new(ChatSessionId::new(), message);
        let (first, _) = listeners.follow(tenant, user, message, &log());
        first.log.end(AnswerEnd::Away);
        assert!(listeners.followed(tenant, user, message).is_none());
        let (second, reader) = listeners.follow(tenant, user, message, &log());
        assert!(reader.is_some());
        drop(first);
        assert!(listeners.followed(tenant, user, message).is_some(), "the later one stays");
        drop(second);
        assert!(listeners.followed.is_empty());
    }

    #[test]
    fn a_user_has_so_many_places_and_the_first_one_makes_room() {
        let listeners = Arc::new(Listeners::default());
        let (tenant, user) = (TenantId::new(), UserId::new());
        let mut places: Vec<_> = (0..MOST).map(|_| listeners.place(tenant, user)).collect();
        places.push(listeners.place(tenant, UserId::new()));
        assert!(places.iter().all(|place| !place.is_taken()));
        drop(places.remove(1));
        places.push(listeners.place(tenant, user));
        assert!(places.iter().all(|place| !place.is_taken()), "one had left");
        places.push(listeners.place(tenant, user));
        let taken: Vec<_> = places.iter().map(Place::is_taken).collect();
        assert_eq!((taken[0], taken.iter().filter(|taken| **taken).count()), (true, 1));
        drop(places);
        assert!(listeners.places.is_empty());
    }
}
