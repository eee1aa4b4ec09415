//! The answers that this process is working on, and the tenants that went out of service while it did.
//!
//! News of a tenant may be lost, late or outdated, so nothing is concluded from their order: every closing keeps the
//! revision of the record that it comes from, every answer that of the record its credential was verified with, and
//! the higher of the two knows better.

use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use tokio_util::sync::CancellationToken;

use crate::ids::{MessageId, TenantId};

/// The answers under way, and which tenants get none.
#[derive(Default)]
pub(super) struct AnswersUnderWay {
    running: DashMap<MessageId, Running>,
    closed: DashMap<TenantId, Closing>,
}

/// An answer that is being worked on.
struct Running {
    tenant: TenantId,
    revision: u64,
    closed: Closed,
}

/// Why a tenant is out of service, and the revision of the record that says so.
#[derive(Clone, Copy)]
struct Closing {
    code: &'static str,
    revision: u64,
}

/// Tells an answer that its tenant went out of service, and why.
#[derive(Clone, Default)]
pub(super) struct Closed {
    token: CancellationToken,
    code: Arc<OnceLock<&'static str>>,
}

impl Closed {
    fn close(&self, code: &'static str) {
        let _ = self.code.set(code);
        self.token.cancel();
    }

    pub(super) async fn closed(&self) -> &'static str {
        self.token.cancelled().await;
        self.code.get().copied().unwrap_or("tenant_not_active")
    }
}

impl AnswersUnderWay {
    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether this process is working on an answer.
    pub(super) fn contains(&self, id: MessageId) -> bool {
        self.running.contains_key(&id)
    }

    /// A record of this revision is out of service: answers begun with it or with an older one end.
    pub(super) fn close(&self, tenant: TenantId, revision: u64, code: &'static str) {
        let closing = Closing { code, revision };
        self.closed
            .entry(tenant)
            .and_modify(|known| {
                if known.revision <= revision {
                    *known = closing;
                }
            })
            .or_insert(closing);
        for entry in self.running.iter().filter(|entry| entry.tenant == tenant && entry.revision <= revision) {
            entry.closed.close(code);
        }
    }

    /// A record of this revision is in service.
    pub(super) fn reopen(&self, tenant: TenantId, revision: u64) {
        self.closed.remove_if(&tenant, |_, closing| closing.revision < revision);
    }

    /// The tenant is gone: its answers end, and nothing is kept of it.
    pub(super) fn forget(&self, tenant: TenantId, code: &'static str) {
        self.close(tenant, u64::MAX, code);
        self.closed.remove(&tenant);
    }

    /// The mark of an answer, and what is cancelled when the tenant goes out of service. `revision` is that of the
    /// record, in service then, with which the asker's credential was verified: if it is newer than the closing, the
    /// tenant was resumed, and the news of that was missed here.
    pub(super) fn enter(self: &Arc<Self>, id: MessageId, tenant: TenantId, revision: u64) -> (UnderWay, Closed) {
        let closed = Closed::default();
        self.running.insert(id, Running { tenant, revision, closed: closed.clone() });
        // Looked at after it was entered: whoever closes the tenant notes that first and then looks through the
        // entries, so one of the two sees the other.
        self.reopen(tenant, revision);
        let closing = self.closed.get(&tenant).map(|closing| *closing);
        if let Some(closing) = closing.filter(|closing| closing.revision >= revision) {
            closed.close(closing.code);
        }
        (UnderWay { all: Arc::clone(self), id }, closed)
    }
}

/// Marks an answer as this process's work, and takes the mark away even if the work panics.
pub(super) struct UnderWay {
    all: Arc<AnswersUnderWay>,
    id: MessageId,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.running.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether an answer that begins with a record of this revision is closed.
    fn begins_closed(answers: &Arc<AnswersUnderWay>, tenant: TenantId, revision: u64) -> bool {
        let (_mark, closed) = answers.enter(MessageId::new(), tenant, revision);
        closed.token.is_cancelled()
    }

    #[test]
    fn a_resumed_tenant_is_open_again_though_the_news_were_missed() {
        let (answers, tenant) = (Arc::new(AnswersUnderWay::default()), TenantId::new());
        let (_mark, begun) = answers.enter(MessageId::new(), tenant, 1);
        answers.close(tenant, 2, "tenant_suspended");
        assert!(begun.token.is_cancelled());
        assert_eq!(begun.code.get(), Some(&"tenant_suspended"));
        // Whoever was let in with the old record gets nothing; a record read since says that it is in service.
        assert!(begins_closed(&answers, tenant, 1));
        assert!(!begins_closed(&answers, tenant, 3));
        assert!(answers.closed.is_empty());
        assert_eq!(answers.len(), 1);
    }

    #[test]
    fn outdated_news_close_nothing_and_open_nothing() {
        let (answers, tenant) = (Arc::new(AnswersUnderWay::default()), TenantId::new());
        answers.close(tenant, 2, "tenant_suspended");
        let (_mark, resumed) = answers.enter(MessageId::new(), tenant, 3);
        // The registry did not answer at the news of the resumption, and the record of before came instead.
        answers.close(tenant, 2, "tenant_suspended");
        assert!(!resumed.token.is_cancelled());
        assert!(!begins_closed(&answers, tenant, 3));
        // The same the other way round: the active record of before, at the news of the next suspension.
        answers.close(tenant, 4, "tenant_deleting");
        answers.reopen(tenant, 3);
        answers.close(tenant, 2, "tenant_suspended");
        assert!(resumed.token.is_cancelled());
        assert!(begins_closed(&answers, tenant, 3));
        assert_eq!(answers.closed.get(&tenant).map(|closing| closing.code), Some("tenant_deleting"));
        answers.reopen(tenant, 5);
        assert!(!begins_closed(&answers, tenant, 5));
    }

    #[test]
    fn nothing_is_kept_of_a_tenant_that_is_gone() {
        let (answers, tenant) = (Arc::new(AnswersUnderWay::default()), TenantId::new());
        let (_mark, begun) = answers.enter(MessageId::new(), tenant, 7);
        answers.forget(tenant, "tenant_not_active");
        assert!(begun.token.is_cancelled());
        assert!(answers.closed.is_empty());
    }
}
