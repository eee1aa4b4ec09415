//! The answers that this process is working on, what ends them early, and the tenants that went out of service while
//! it did.
//!
//! News of a tenant may be lost, late or outdated, so nothing is concluded from their order: every closing keeps the
//! revision of the record that it comes from, every answer that of the record its credential was verified with, and
//! the higher of the two knows better.

use std::pin::pin;
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::streams::event_log::EventLog;
use crate::ids::{MessageId, ModelCallId, TenantId, UserId};

/// The answers under way, and which tenants get none.
#[derive(Default)]
pub(super) struct AnswersUnderWay {
    running: DashMap<MessageId, Running>,
    closed: DashMap<TenantId, Closing>,
    left: Notify,
}

/// An answer that is being worked on, or a call that no message is about.
struct Running {
    tenant: TenantId,
    revision: u64,
    interruption: Interruption,
    /// Whose answer it is, and its events.
    answer: Option<(UserId, Arc<EventLog>)>,
}

/// Whose an answer is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) tenant: TenantId,
    pub(super) user: UserId,
    /// That of the record, in service then, with which the asker's credential was verified.
    pub(super) revision: u64,
}

/// What is known here of an answer that somebody asks for.
pub(super) enum Found {
    /// It is being worked on.
    Here { log: Arc<EventLog>, interruption: Interruption },
    /// It is, and somebody else's.
    Foreign,
    /// Not here.
    Nowhere,
}

/// Why a tenant is out of service, and the revision of the record that says so.
#[derive(Clone, Copy)]
struct Closing {
    code: &'static str,
    revision: u64,
}

/// Why an answer ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its tenant went out of service, with this code.
    TenantClosed(&'static str),
    /// Its user does not want more of it.
    StopRequested,
}

/// Tells an answer to end early, and why.
#[derive(Clone, Default)]
pub(super) struct Interruption {
    token: CancellationToken,
    cause: Arc<OnceLock<Cause>>,
}

impl Interruption {
    /// Waits until the tenant goes out of service, for what nobody stops.
    pub(super) async fn closed(&self) -> &'static str {
        match self.interrupted().await {
            Cause::TenantClosed(code) => code,
            Cause::StopRequested => "stopped",
        }
    }

    fn close(&self, code: &'static str) {
        self.interrupt(Cause::TenantClosed(code));
    }

    /// Its user does not want more of it.
    pub(super) fn stop(&self) {
        self.interrupt(Cause::StopRequested);
    }

    /// Whether it is to end early.
    pub(super) fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    fn interrupt(&self, cause: Cause) {
        let _ = self.cause.set(cause);
        self.token.cancel();
    }

    pub(super) async fn interrupted(&self) -> Cause {
        self.token.cancelled().await;
        self.cause.get().copied().unwrap_or(Cause::TenantClosed("tenant_not_active"))
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
            entry.interruption.close(code);
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

    /// Waits until nothing of a tenant's is being worked on.
    pub(super) async fn idle(&self, tenant: TenantId) {
        loop {
            // From here on nobody leaves unheard.
            let left = pin!(self.left.notified());
            if !self.running.iter().any(|entry| entry.tenant == tenant) {
                return;
            }
            left.await;
        }
    }

    /// An answer that somebody asks for, as far as this process works on it.
    pub(super) fn find(&self, id: MessageId, tenant: TenantId, user: UserId) -> Found {
        let Some(running) = self.running.get(&id) else { return Found::Nowhere };
        match &running.answer {
            Some((owner, log)) if *owner == user && running.tenant == tenant => {
                Found::Here { log: Arc::clone(log), interruption: running.interruption.clone() }
            }
            _ => Found::Foreign,
        }
    }

    /// The mark of an answer, and what tells it to end early. If the owner's record is newer than the closing of the
    /// tenant, that was resumed, and the news of it was missed here.
    pub(super) fn enter(
        self: &Arc<Self>,
        id: MessageId,
        owner: Owner,
        log: &Arc<EventLog>,
    ) -> (UnderWay, Interruption) {
        let answer = Some((owner.user, Arc::clone(log)));
        self.enter_any(id, owner.tenant, owner.revision, answer)
    }

    /// The same for a call of a program's, which is found by nobody. Calls and messages have ids of one kind, and none
    /// has another's.
    pub(super) fn enter_call(
        self: &Arc<Self>,
        id: ModelCallId,
        tenant: TenantId,
        revision: u64,
    ) -> (UnderWay, Interruption) {
        self.enter_any(MessageId::from_uuid(id.as_uuid()), tenant, revision, None)
    }

    fn enter_any(
        self: &Arc<Self>,
        id: MessageId,
        tenant: TenantId,
        revision: u64,
        answer: Option<(UserId, Arc<EventLog>)>,
    ) -> (UnderWay, Interruption) {
        let interruption = Interruption::default();
        self.running.insert(id, Running { tenant, revision, interruption: interruption.clone(), answer });
        // Looked at after it was entered: whoever closes the tenant notes that first and then looks through the
        // entries, so one of the two sees the other.
        self.reopen(tenant, revision);
        let closing = self.closed.get(&tenant).map(|closing| *closing);
        if let Some(closing) = closing.filter(|closing| closing.revision >= revision) {
            interruption.close(closing.code);
        }
        (UnderWay { all: Arc::clone(self), id }, interruption)
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
        self.all.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChatSessionId;

    fn enter(answers: &Arc<AnswersUnderWay>, tenant: TenantId, revision: u64) -> (UnderWay, Interruption) {
        let id = MessageId::new();
        let log = EventLog::new(ChatSessionId::new(), id);
        answers.enter(id, Owner { tenant, user: UserId::new(), revision }, &log)
    }

    /// Whether an answer that begins with a record of this revision is closed.
    fn begins_closed(answers: &Arc<AnswersUnderWay>, tenant: TenantId, revision: u64) -> bool {
        let (_mark, interruption) = enter(answers, tenant, revision);
        interruption.token.is_cancelled()
    }

    #[test]
    fn a_resumed_tenant_is_open_again_though_the_news_were_missed() {
        let (answers, tenant) = (Arc::new(AnswersUnderWay::default()), TenantId::new());
        let (_mark, begun) = enter(&answers, tenant, 1);
        answers.close(tenant, 2, "tenant_suspended");
        assert!(begun.token.is_cancelled());
        assert_eq!(begun.cause.get(), Some(&Cause::TenantClosed("tenant_suspended")));
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
        let (_mark, resumed) = enter(&answers, tenant, 3);
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
        let (_mark, begun) = enter(&answers, tenant, 7);
        answers.forget(tenant, "tenant_not_active");
        assert!(begun.token.is_cancelled());
        assert!(answers.closed.is_empty());
    }

    #[tokio::test]
    async fn an_answer_is_found_by_its_own_user_only_and_stopped_once() {
        let (answers, tenant, user, id) =
            (Arc::new(AnswersUnderWay::default()), TenantId::new(), UserId::new(), MessageId::new());
        let log = EventLog::new(ChatSessionId::new(), id);
        let (mark, _) = answers.enter(id, Owner { tenant, user, revision: 1 }, &log);
        assert!(matches!(answers.find(id, tenant, UserId::new()), Found::Foreign));
        assert!(matches!(answers.find(id, TenantId::new(), user), Found::Foreign));
        let Found::Here { interruption, .. } = answers.find(id, tenant, user) else { panic!("it is here") };
        interruption.stop();
        answers.close(tenant, 2, "tenant_suspended");
        assert_eq!(interruption.interrupted().await, Cause::StopRequested);
        drop(mark);
        assert!(matches!(answers.find(id, tenant, user), Found::Nowhere));
    }

    #[tokio::test]
    async fn a_tenant_is_idle_once_its_own_answers_have_ended() {
        let (answers, tenant) = (Arc::new(AnswersUnderWay::default()), TenantId::new());
        answers.idle(tenant).await;
        let (first, second) = (enter(&answers, tenant, 1).0, enter(&answers, tenant, 1).0);
        let _others = enter(&answers, TenantId::new(), 1).0;
        let ending = async {
            drop(first);
            tokio::task::yield_now().await;
            drop(second);
        };
        let ((), ()) = tokio::join!(answers.idle(tenant), ending);
        assert_eq!(answers.len(), 1);
    }
}
