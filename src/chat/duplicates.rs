//! The same question asked again while its answer is on its way: whoever clicks twice gets one answer, twice.
//!
//! Questions are the same if the same user asks the same words about the same images of the same model and assistant in the same
//! conversation, or in a new one.
//! Whoever comes first asks; the others are told the same events: the same conversation and answer, one row, one call of a
//! model, one of the quota. In one server they meet here, in memory, before anything is stored, so that clicks at once
//! cannot slip through together. Over servers the answer's row carries the key under a unique index while it is being
//! generated, and whoever meets it there follows that answer as a stream that is resumed. An answer that is over, or that
//! its user has stopped, is joined by nobody, nor one whose conversation was deleted, nor a row that only says that it is being
//! generated while nobody is known to work on it: the next question is a new one.

use std::fmt;
use std::sync::Arc;

use dashmap::{DashMap, Entry};
use futures::future;
use tokio::sync::watch;
use tokio_postgres::Error;

use super::conversations::STALE;
use super::fingerprint::Fingerprint;
use super::recovery::YOUNG;
use super::streams::Listener;
use super::streams::event_log::EventLog;
use super::tenant_store::{Begun, Work};
use super::turn::Begin;
use super::under_way::Interruption;
use super::{Chat, ChatError, Question, tenant_store};
use crate::access::TenantCaller;
use crate::ids::{MessageId, TenantId, UserId};
use crate::metering::OpenCall;
use crate::tenant_db::Client;

/// How often a question is asked that meets an answer which is over by the time somebody wants to follow it.
const TRIES: usize = 3;

/// What makes questions the same, as a hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct QuestionKey([u8; 32]);

impl fmt::Debug for QuestionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QuestionKey")
    }
}

impl QuestionKey {
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn new(tenant: TenantId, user: UserId, question: &Question) -> Self {
        let session = question.session_id.map(|session| session.as_uuid());
        let model = question.model.as_deref();
        let mut key = Fingerprint::new("freehold question");
        key.add(tenant.as_uuid().as_bytes());
        key.add(user.as_uuid().as_bytes());
        key.add_optional(session.as_ref().map(|session| session.as_bytes().as_slice()));
        key.add_optional(model.map(str::as_bytes));
        key.add_optional(question.assistant.as_deref().map(str::as_bytes));
        key.add(question.text.as_bytes());
        for image in &question.images {
            key.add(image.digest());
        }
        Self(key.hash())
    }
}

/// The questions whose answers are on their way in this process.
#[derive(Default)]
pub(super) struct Duplicates {
    questions: DashMap<QuestionKey, Arc<InFlight>>,
}

/// A question between its first click and the end of its answer.
struct InFlight {
    state: watch::Sender<State>,
}

enum State {
    /// It is about to be stored.
    Beginning,
    /// It is stored, and this is its answer.
    Begun(Arc<EventLog>, Interruption),
    /// It was not stored after all.
    Gone,
}

impl InFlight {
    fn can_be_joined(&self) -> bool {
        match &*self.state.borrow() {
            State::Beginning => true,
            State::Begun(log, interruption) => !log.has_ended() && !interruption.is_requested(),
            State::Gone => false,
        }
    }
}

/// What somebody who asks finds.
enum Entered {
    /// Nobody else is asking this.
    First(Mark),
    /// Somebody is.
    Later(watch::Receiver<State>),
}

/// Marks a question as being asked by this process, until it is dropped.
pub(super) struct Mark {
    all: Arc<Duplicates>,
    key: QuestionKey,
    question: Arc<InFlight>,
}

impl Mark {
    pub(super) fn key(&self) -> QuestionKey {
        self.key
    }

    /// The question is stored: whoever asks the same is told this answer.
    pub(super) fn begun(&self, log: &Arc<EventLog>, interruption: &Interruption) {
        self.question.state.send_replace(State::Begun(Arc::clone(log), interruption.clone()));
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // Another one may have taken its place.
        self.all.questions.remove_if(&self.key, |_, question| Arc::ptr_eq(question, &self.question));
        // Whoever has waited since before the answer began is told it, however quickly it was over.
        self.question.state.send_if_modified(|state| {
            let begins = matches!(state, State::Beginning);
            if begins {
                *state = State::Gone;
            }
            begins
        });
    }
}

impl Duplicates {
    fn enter(self: &Arc<Self>, key: QuestionKey) -> Entered {
        let new = || Arc::new(InFlight { state: watch::Sender::new(State::Beginning) });
        let question = match self.questions.entry(key) {
            Entry::Occupied(mut entry) => {
                if entry.get().can_be_joined() {
                    return Entered::Later(entry.get().state.subscribe());
                }
                let question = new();
                entry.insert(Arc::clone(&question));
                question
            }
            Entry::Vacant(entry) => Arc::clone(&entry.insert(new())),
        };
        Entered::First(Mark { all: Arc::clone(self), key, question })
    }
}

/// Waits until the question that somebody else asks is stored, and returns its answer; `None` if it was not.
async fn joined(mut question: watch::Receiver<State>) -> Option<(Arc<EventLog>, Interruption)> {
    let state = question.wait_for(|state| !matches!(state, State::Beginning)).await.ok()?;
    let State::Begun(log, interruption) = &*state else { return None };
    Some((Arc::clone(log), interruption.clone()))
}

/// What became of a question that was the first of its kind here.
pub(super) enum FirstAsked {
    /// It is stored, and its answer has begun.
    Begun(Listener),
    /// Another server is answering it already; nothing was stored.
    Elsewhere(MessageId),
}

impl Chat {
    /// Stores a question and starts its answer, which goes on whether or not anybody listens; or listens to the answer that
    /// the same question of the same user is being given already. Returns once the question is stored and before the
    /// model has said anything. Dropping the listener does not stop the answer.
    ///
    /// # Errors
    /// See [`ChatError`]; nothing is stored then.
    pub async fn ask(&self, caller: &TenantCaller, mut question: Question) -> Result<Listener, ChatError> {
        // Postgres stores no NUL in a text.
        question.text = question.text.replace('\0', "");
        if question.text.trim().is_empty() {
            return Err(ChatError::Empty);
        }
        let key = QuestionKey::new(caller.db.record().id, caller.user_id, &question);
        loop {
            let answer = match self.duplicates.enter(key) {
                Entered::First(mark) => {
                    return match self.ask_first(caller, question, mark).await? {
                        FirstAsked::Begun(listener) => Ok(listener),
                        FirstAsked::Elsewhere(message_id) => self.events(caller, message_id, None).await,
                    };
                }
                Entered::Later(answer) => answer,
            };
            // If whoever was first has left, or could not store it, the next in line tries.
            let Some((log, interruption)) = joined(answer).await else { continue };
            let client = caller.db.client().await?;
            let listener = Listener::new(log, None);
            // The first one's account was looked at; this one may have come with another sign-in. And the answer may have
            // been stopped at another server, of which its own hears within a second, or its conversation deleted.
            let (active, wanted) = future::try_join(
                tenant_store::is_active(&client, caller),
                tenant_store::is_still_wanted(&client, listener.message_id()),
            )
            .await?;
            if !active {
                return Err(ChatError::NotInForce);
            }
            if !wanted {
                interruption.stop();
                continue;
            }
            return Ok(listener);
        }
    }
}

/// Whether a question was stored.
pub(super) enum Stored {
    /// It was, with the row of its answer.
    Begun,
    /// The conversation is not the user's any more.
    NoConversation,
    /// It was not: another server is giving it this answer already.
    Elsewhere(MessageId),
}

impl Chat {
    /// Stores a question and the row of its answer, unless another server is answering it.
    pub(super) async fn store_question(
        &self,
        client: &Client,
        key: QuestionKey,
        turn: &Begin,
        call: Option<&OpenCall>,
    ) -> Result<Stored, Error> {
        let mut key = Some(key);
        let mut tries = 0;
        loop {
            match tenant_store::begin(client, turn, key.as_ref(), call).await? {
                Begun::Stored => return Ok(Stored::Begun),
                Begun::NoConversation => return Ok(Stored::NoConversation),
                Begun::Duplicate => {}
            }
            let answering = match &key {
                Some(key) => self.in_flight(client, key, turn.user_id).await?,
                None => None,
            };
            tries += 1;
            match answering {
                // One of this process that may still be joined would have been met in memory. It was stopped, or its reader was
                // told that it cannot be stored.
                Some(message_id) if self.under_way.contains(message_id) => key = None,
                Some(message_id) => return Ok(Stored::Elsewhere(message_id)),
                // It was over by then, or nobody's work, so this is a new question.
                None if tries < TRIES => {}
                None => key = None,
            }
        }
    }

    /// The answer that another server is giving a question that nobody else is asking here, if there is one.
    pub(super) async fn answered_elsewhere(
        &self,
        client: &Client,
        key: QuestionKey,
        user: UserId,
    ) -> Result<Option<MessageId>, Error> {
        let answering = self.in_flight(client, &key, user).await?;
        Ok(answering.filter(|message_id| !self.under_way.contains(*message_id)))
    }

    async fn in_flight(&self, client: &Client, key: &QuestionKey, user: UserId) -> Result<Option<MessageId>, Error> {
        let (now, others) = (self.clock.now(), self.databases.other_servers());
        let (after, young, me) = (now - STALE, now - YOUNG, self.ledger.server_id());
        tenant_store::in_flight(client, key, user, &Work { after, young, me, others: others.as_deref() }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::images;
    use crate::ids::ChatSessionId;
    use crate::limits::Permit;

    fn question(text: &str, session: Option<ChatSessionId>, model: Option<&str>) -> Question {
        let model = model.map(str::to_owned);
        Question {
            text: text.to_owned(),
            session_id: session,
            model,
            assistant: None,
            images: vec![],
            room: None,
            permit: Permit::default(),
            queries_remaining: None,
            allows_kept: true,
        }
    }

    fn first(duplicates: &Arc<Duplicates>, key: QuestionKey) -> Option<Mark> {
        match duplicates.enter(key) {
            Entered::First(mark) => Some(mark),
            Entered::Later(_) => None,
        }
    }

    fn key() -> QuestionKey {
        QuestionKey::new(TenantId::new(), UserId::new(), &question("hello", None, None))
    }

    #[test]
    fn questions_are_the_same_if_all_that_is_asked_is() {
        let (tenant, user, session) = (TenantId::new(), UserId::new(), ChatSessionId::new());
        let same = || QuestionKey::new(tenant, user, &question("hello", Some(session), Some("m")));
        assert!(same() == same());
        let to_an_assistant =
            Question { assistant: Some("a".to_owned()), ..question("hello", Some(session), Some("m")) };
        let about = |base64: &[&str]| {
            let urls = base64.iter().map(|base64| format!("data:image/gif;base64,{base64}")).collect();
            let images = images::decode(urls).unwrap();
            QuestionKey::new(tenant, user, &Question { images, ..question("hello", Some(session), Some("m")) })
        };
        assert!(about(&["R0lGODlhAAAA"]) == about(&["R0lGODlhAAAA"]));
        assert!(about(&["R0lGODlhAAAA"]) != about(&["R0lGODlhAAAB"]));
        let others = [
            about(&["R0lGODlhAAAA"]),
            about(&["R0lGODlhAAAB"]),
            about(&["R0lGODlhAAAA", "R0lGODlhAAAA"]),
            QuestionKey::new(TenantId::new(), user, &question("hello", Some(session), Some("m"))),
            QuestionKey::new(tenant, UserId::new(), &question("hello", Some(session), Some("m"))),
            QuestionKey::new(tenant, user, &question("hello", None, Some("m"))),
            QuestionKey::new(tenant, user, &question("hello", Some(ChatSessionId::new()), Some("m"))),
            QuestionKey::new(tenant, user, &question("hello", Some(session), None)),
            QuestionKey::new(tenant, user, &question("hello", Some(session), Some(""))),
            QuestionKey::new(tenant, user, &question("hello ", Some(session), Some("m"))),
            // The same letters, divided otherwise.
            QuestionKey::new(tenant, user, &question("mhello", Some(session), Some(""))),
            QuestionKey::new(tenant, user, &to_an_assistant),
        ];
        for (number, other) in others.iter().enumerate() {
            assert!(*other != same(), "{number}");
        }
        assert_eq!(format!("{:?}", same()), "QuestionKey");
    }

    #[tokio::test]
    async fn whoever_waits_is_told_the_answer_however_quickly_it_is_over() {
        let (duplicates, key) = (Arc::new(Duplicates::default()), key());
        let mark = first(&duplicates, key).unwrap();
        let Entered::Later(waiting) = duplicates.enter(key) else { panic!("it is being asked") };
        let log = EventLog::new(ChatSessionId::new(), MessageId::new());
        mark.begun(&log, &Interruption::default());
        let Entered::Later(late) = duplicates.enter(key) else { panic!("it is being answered") };
        drop(mark);
        assert!(Arc::ptr_eq(&joined(waiting).await.unwrap().0, &log));
        assert!(Arc::ptr_eq(&joined(late).await.unwrap().0, &log));
        assert!(duplicates.questions.is_empty());
    }

    #[tokio::test]
    async fn if_the_first_fails_the_next_in_line_tries() {
        let (duplicates, key) = (Arc::new(Duplicates::default()), key());
        let mark = first(&duplicates, key).unwrap();
        let Entered::Later(waiting) = duplicates.enter(key) else { panic!("it is being asked") };
        drop(mark);
        assert!(joined(waiting).await.is_none());
        let next = first(&duplicates, key).unwrap();
        assert!(first(&duplicates, key).is_none());
        drop(next);
        assert!(duplicates.questions.is_empty());
    }

    #[test]
    fn what_is_over_or_stopped_is_joined_by_nobody() {
        let (duplicates, key) = (Arc::new(Duplicates::default()), key());
        let (log, stopped) = (EventLog::new(ChatSessionId::new(), MessageId::new()), Interruption::default());
        let mark = first(&duplicates, key).unwrap();
        mark.begun(&log, &stopped);
        assert!(first(&duplicates, key).is_none());
        stopped.stop();
        let next = first(&duplicates, key).unwrap();
        drop(mark);
        assert!(first(&duplicates, key).is_none(), "the later one stays");
        next.begun(&log, &Interruption::default());
        log.end(crate::chat::AnswerEnd::Away);
        let third = first(&duplicates, key).unwrap();
        drop((next, third));
        assert!(duplicates.questions.is_empty());
    }
}
