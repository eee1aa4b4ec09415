//! Calls and answers whose server died, or gave up, before it could settle them.
//!
//! Mostly an answer is found by its call, which names its server and is settled together with it. An answer may also be
//! left without an open call: no model was there to call, or the call was settled apart because the answer could not be
//! stored, or because nobody knew whether it had begun. While somebody works on an answer it has an open call, but for moments,
//! so without one it is taken up soon; if its server stores it all the same, that is the last word.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use dashmap::DashMap;
use tracing::Instrument as _;

use super::{Chat, ChatError, tenant_store};
use crate::ids::{MessageId, TenantId};
use crate::metering::abandoned::Abandoned;
use crate::telemetry::causes;
use crate::tenant_db::{Client, TenantDb};

/// How old an answer without an open call is before it is nobody's, and one with a call before nothing is concluded from its
/// server's not having been heard of. Longer than a server may be silent before it is taken for dead.
pub(super) const YOUNG: TimeDelta = TimeDelta::seconds(30);
/// How long nobody looks again who has a reason to.
const SOONEST: Duration = Duration::from_secs(5);
/// How often somebody looks while a tenant is used.
const PERIOD: Duration = Duration::from_secs(60);

/// Answers without a call that are settled at once, at most. What is left is found the next time.
const MOST: i64 = 1_000;

/// When each tenant was last looked at, and when somebody last had a reason to because a call was made for it.
#[derive(Default)]
pub(super) struct Looks {
    looked: Times,
    used: Times,
}

impl Looks {
    pub(super) fn forget(&self, tenant: TenantId) {
        self.looked.0.remove(&tenant);
        self.used.0.remove(&tenant);
    }
}

#[derive(Default)]
struct Times(DashMap<TenantId, Instant>);

impl Times {
    /// Whether it is time to look again. Of several who ask at once, one is told so.
    fn are_due(&self, tenant: TenantId, period: Duration) -> bool {
        let now = Instant::now();
        // The usual case needs no exclusive access.
        if self.0.get(&tenant).is_some_and(|last| now.duration_since(*last) < period) {
            return false;
        }
        let mut due = false;
        self.0
            .entry(tenant)
            .and_modify(|last| {
                due = now.duration_since(*last) >= period;
                if due {
                    *last = now;
                }
            })
            .or_insert_with(|| {
                due = true;
                now
            });
        due
    }
}

impl Chat {
    /// Settles what dead servers left in this tenant's database, calls and their messages in one transaction. Returns how
    /// many calls there were. Cheap if asked often: within a few seconds nobody looks again.
    ///
    /// # Errors
    /// If the tenant's database fails.
    pub async fn settle_abandoned(&self, db: &TenantDb) -> Result<usize, ChatError> {
        if self.looks.looked.are_due(db.record().id, SOONEST) {
            Ok(self.look(&mut db.client().await?, db).await?)
        } else {
            Ok(0)
        }
    }

    /// The same for a tenant that nobody may be using: its connection is not kept for anybody.
    ///
    /// # Errors
    /// If the tenant's database fails.
    pub async fn settle_abandoned_unused(&self, db: &TenantDb) -> Result<usize, ChatError> {
        if !self.looks.looked.are_due(db.record().id, PERIOD) {
            return Ok(0);
        }
        let mut client = db.client().await?;
        let looked = self.look(&mut client, db).await;
        client.discard();
        looked
    }

    /// The same beside whatever is going on, now and then while calls are made for a tenant, which is noted.
    pub(super) fn settle_abandoned_soon(&self, db: &TenantDb) {
        let tenant = db.record().id;
        // By itself: that somebody has looked just now, for whatever reason, says nothing of what is left from now on.
        if !self.looks.used.are_due(tenant, PERIOD) {
            return;
        }
        self.databases.note_use(tenant);
        if !self.looks.looked.are_due(tenant, SOONEST) {
            return;
        }
        let (chat, db) = (self.clone(), db.clone());
        let look = async move {
            let looked = async { chat.look(&mut db.client().await?, &db).await };
            if let Err(error) = looked.await {
                tracing::warn!(tenant_id = %db.record().id, causes = causes(&error), "settle calls of dead servers");
            }
        };
        self.tasks.spawn(look.in_current_span());
    }

    async fn look(&self, client: &mut Client, db: &TenantDb) -> Result<usize, ChatError> {
        let transaction = client.transaction().await?;
        let (now, others) = (self.clock.now(), self.databases.other_servers());
        let calls = self.ledger.abandoned(&transaction, others.as_deref(), now).await?;
        let mut messages = tenant_store::orphaned(&transaction, now - YOUNG, MOST).await?;
        messages.retain(|message| !self.under_way.contains(*message));
        let orphans = messages.len();
        if calls.is_empty() && messages.is_empty() {
            transaction.rollback().await?;
            return Ok(0);
        }
        messages.extend(calls.iter().filter_map(|call| call.message_id));
        let kept: HashMap<MessageId, usize> =
            tenant_store::interrupt_messages(&transaction, &messages, now).await?.into_iter().collect();
        let with_kept = |call: Abandoned| {
            let kept = call.message_id.and_then(|id| kept.get(&id)).copied().unwrap_or_default();
            (call, kept)
        };
        let calls: Vec<_> = calls.into_iter().map(with_kept).collect();
        let settled = self.ledger.interrupt(&transaction, &calls, now).await?;
        transaction.commit().await?;
        tracing::info!(tenant_id = %db.record().id, settled, orphans, "settle calls and answers of dead servers");
        Ok(usize::try_from(settled).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_looked_at_once_a_period() {
        let (looks, tenant) = (Looks::default(), TenantId::new());
        assert!(looks.looked.are_due(tenant, PERIOD));
        assert!(!looks.looked.are_due(tenant, PERIOD));
        assert!(looks.looked.are_due(TenantId::new(), PERIOD));
        assert!(looks.looked.are_due(tenant, Duration::ZERO));
        assert!(looks.used.are_due(tenant, PERIOD), "it was not used");
        looks.forget(tenant);
        assert!(looks.looked.are_due(tenant, PERIOD));
    }
}
