//! From a question to a stored answer.
//!
//! | step | connection | round trips |
//! |---|---|---|
//! | read who asks and the history, and once a second settings and keys | one, all at once | 1 |
//! | where a model routes, look whether another server answers this first question already | the same | 1 |
//! | ask the model for the assistant | none | 2, for its row |
//! | read images of earlier questions, if there are any and they are shown again | the same, or another if a model was asked or there is no room for them yet | 2 |
//! | where answers are kept, look for one | none | - |
//! | store the question and the answer's row | the same, or another if it was given back | 1 |
//! | the model speaks | none | - |
//! | store the answer | another | 1 |
//!
//! What comes before the question is stored is in [`super::prepare`]. From then on it all happens in a task of its own:
//! whoever asked may leave, the answer is finished and stored.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::duplicates::{FirstAsked, Mark, QuestionKey, Stored};
use super::kept_answers::Keeping;
use super::model_call::ModelCall;
use super::prepare::{Prepared, Ready};
use super::streams::event_log::{EventLog, LastWord};
use super::streams::parts::PartedAnswer;
use super::streams::{AnswerEnd, Listener, UNFINISHED};
use super::turn::{Arrived, Begin, Failure, Finished};
use super::under_way::{Cause, Interruption, Owner};
use super::{Chat, ChatError, Question, tenant_store};
use crate::access::TenantCaller;
use crate::api::tenant::Settings;
use crate::clock::SharedClock;
use crate::content_filter::{self, Masking};
use crate::ids::MessageId;
use crate::metering::{CallState, EndedCall, Outcome};
use crate::providers::{ChatEvent, FinishReason, Usage};
use crate::telemetry::causes;
use crate::tenant_db::{Client, TenantDb, TenantDbError, is_outcome_unknown, is_statement_at_fault};

/// The longest an answer may take. Less than the time after which one is taken for abandoned.
const ANSWER_DEADLINE: Duration = Duration::from_secs(9 * 60);
/// The longest answer, in bytes: several times what the largest `max_tokens` makes, so only a provider that ignores
/// it gets there.
const MAX_ANSWER: usize = 512 * 1024;
/// Waits before storing an answer is tried again.
const STORE_WAITS: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// How often it is tried after that, when whoever listens has been told that it failed.
const LATER: Duration = Duration::from_secs(10);
/// How long an answer is kept that cannot be stored: as long as the ledger keeps the end of its call.
const STORE_PATIENCE: Duration = Duration::from_secs(5 * 60);
/// What is told of an answer that could not be stored in time, and stored with it once it can be.
const NOT_STORED: &str = "answer_not_stored";
/// How long one attempt may take. A statement that needs one round trip and takes this long will not come back.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the model's answer used, if it said so, and why it ended.
type Spoken = (Option<Usage>, FinishReason);

/// Whether a question was stored; if not, the answer that another server is giving it, or why not.
pub(super) type NotHere = Result<Option<MessageId>, ChatError>;

/// All that answering a question needs, ready before anything is stored.
pub(super) struct Turn {
    pub(super) chat: Chat,
    pub(super) db: TenantDb,
    pub(super) begin: Begin,
    /// None if every AI key that offers the model is left alone, or the answer is kept already.
    pub(super) call: Option<ModelCall>,
    pub(super) settings: Arc<Settings>,
    /// What the answer goes through before anybody sees it and before it is stored, if anything is to be masked.
    pub(super) masking: Option<Masking>,
    /// How the answer is kept for the next who asks this; none if it is not.
    pub(super) keeping: Option<Keeping>,
}

impl Chat {
    /// Stores a question that nobody else is asking here, and starts its answer; see [`Chat::ask`]. The mark is kept until
    /// the answer is over.
    ///
    /// # Errors
    /// See [`ChatError`]; nothing is stored then, as far as anybody knows.
    pub(super) async fn ask_first(
        &self,
        caller: &TenantCaller,
        question: Question,
        mark: Mark,
    ) -> Result<FirstAsked, ChatError> {
        let Ready { turn, hit, client } = match self.prepare(caller, question, mark.key()).await? {
            Prepared::Ready(ready) => *ready,
            Prepared::Elsewhere(message_id) => return Ok(FirstAsked::Elsewhere(message_id)),
        };
        let log = EventLog::new(turn.begin.session_id, turn.begin.answer_id);
        let listener = Listener::new(Arc::clone(&log), None);
        let (begun, stored) = oneshot::channel();
        match hit {
            Some(hit) => {
                self.tasks.spawn(hit.tell(self.clone(), client, turn.begin, begun, log, mark).in_current_span())
            }
            None => self.tasks.spawn(turn.run(client, begun, log, mark).in_current_span()),
        };
        let elsewhere = stored.await.map_err(|_| ChatError::TaskLost)??;
        Ok(elsewhere.map_or_else(|| FirstAsked::Begun(listener), FirstAsked::Elsewhere))
    }
}

impl Turn {
    async fn run(mut self, client: Client, begun: oneshot::Sender<NotHere>, log: Arc<EventLog>, mark: Mark) {
        let message_id = self.begin.answer_id;
        let record = self.db.record();
        let owner = Owner { tenant: record.id, user: self.begin.user_id, revision: record.revision() };
        let (_running, interruption) = self.chat.under_way.enter(message_id, owner, &log);
        let _last_word = LastWord(Arc::clone(&log));
        let stored = match self.store_question(client, mark.key()).await {
            Ok(Stored::Begun) => Ok(None),
            Ok(Stored::Elsewhere(message_id)) => Ok(Some(message_id)),
            Ok(Stored::NoConversation) => Err(ChatError::NotFound),
            Err(error) => {
                let is_unknown = is_outcome_unknown(&error);
                // Whoever is told of the failure may ask again at once, and is the first then.
                drop(mark);
                let _ = begun.send(Err(refused(error)));
                if is_unknown {
                    self.disown(&log).await;
                }
                return;
            }
        };
        let is_begun = matches!(stored, Ok(None));
        if is_begun {
            mark.begun(&log, &interruption);
        }
        // Whoever asked may have left already: what is stored is answered all the same.
        let _ = begun.send(stored);
        if !is_begun {
            return;
        }
        let started = Instant::now();
        let parted = self.chat.parts.enter(&self.db, message_id, &log, &interruption);
        let end = self.listen(&log, &interruption).await;
        let judged = Judged::new(end, log.count() == 0);
        if let Some(failure) = judged.failure.as_ref().filter(|_| !judged.is_stopped()) {
            tracing::warn!(%message_id, code = failure.code(), causes = causes(failure), "an answer failed");
        }
        self.settle(judged, parted, started, &log).await;
    }

    /// Stores the question and the rows of its answer and of the call, and lets go of what is needed for that only: no connection
    /// is held while the model speaks, nor images that are stored.
    async fn store_question(&mut self, client: Client, key: QuestionKey) -> Result<Stored, tokio_postgres::Error> {
        let call = self.call.as_mut().map(ModelCall::open);
        let stored = self.chat.store_question(&client, key, &self.begin, call).await;
        self.begin.images = Vec::new();
        stored
    }

    /// Whoever asked was told that the question is not stored, and nobody knows whether it is. If it is, its answer and the call
    /// that is not made end here: else they would be in the way of the same question, asked again.
    async fn disown(self, log: &EventLog) {
        let Self { chat, db, call, begin, settings, .. } = self;
        let failure = Failure::NotStarted;
        log.end(failed(failure.code(), &settings));
        let outcome = Outcome::ended(failure.call_state(), failure.code());
        let message = error_message(&settings);
        let none = Arrived::default();
        let mut finished = Finished::new(begin.answer_id, none, None, Some(&failure), message, 0, Duration::ZERO);
        finished.call = call.and_then(|mut call| call.end(&outcome));
        let waits = STORE_WAITS.into_iter().chain(patiently());
        match store(&db, &finished, &chat.clock, waits).await {
            Ok(()) => finished.call.into_iter().for_each(EndedCall::stored),
            // It was not stored, or may still be: the call's row comes alone then, or before it, and keeps it out.
            Err(NotStored::Deleted) => {}
            Err(NotStored::Failed(error)) => {
                tracing::error!(message_id = %finished.message_id, causes = causes(&error), "end an answer that may not have begun");
            }
        }
    }

    /// Lets the model speak into the log.
    async fn listen(&mut self, log: &EventLog, interruption: &Interruption) -> Result<Spoken, Failure> {
        let end = match &mut self.call {
            Some(call) => {
                call.note_written();
                speak(call, (log, &mut self.masking), ANSWER_DEADLINE, (&self.chat.give_up, interruption)).await
            }
            None => Err(Failure::AllDown),
        };
        // However it ended: what was held back is told as far as nothing in it is to be masked.
        if let Some(rest) = self.masking.take().map(|mut masking| masking.finish()).filter(|rest| !rest.is_empty()) {
            log.push(&rest);
        }
        end
    }

    /// Stores what came of the answer together with the end of its call, and tells the end.
    async fn settle(self, judged: Judged, parted: Arc<PartedAnswer>, started: Instant, log: &EventLog) {
        let Self { chat, db, call, settings, begin, keeping, .. } = self;
        let answered_by = call.as_ref().map(|call| Arc::clone(call.target()));
        let (ended, counted) = match call {
            Some(mut call) => (call.end(&judged.outcome()), call.counted()),
            None => (None, None.into()),
        };
        let closed = judged.closed();
        if let Some(code) = closed {
            // Told first: storing may well fail by now, and nobody is to wait for that.
            log.end(failed(code, &settings));
        }
        let (content, delta_lengths) = log.content();
        let arrived = Arrived { content, delta_lengths, parted: parted.close().await };
        let mut finished = judged.finished(begin.answer_id, arrived, ended, &settings, started.elapsed());
        if finished.content.is_empty() && judged.failure.as_ref().is_some_and(Failure::is_outage) {
            log.push(degraded(&settings));
            finished.degrade(log.content());
        }
        if closed.is_some() {
            // Once, while a connection is left. Else somebody takes the row up once the tenant is back.
            if let Ok(client) = db.client().await
                && let Ok(Ok(_)) =
                    timeout(STORE_TIMEOUT, tenant_store::finish(&client, &finished, chat.clock.now())).await
            {
                finished.call.into_iter().for_each(EndedCall::stored);
            }
            return;
        }
        let (mut stored, _) = tokio::join!(store(&db, &finished, &chat.clock, STORE_WAITS), counted);
        if let Err(NotStored::Failed(error)) = &stored
            && is_momentary(error)
        {
            tracing::error!(message_id = %begin.answer_id, causes = causes(error), "store an answer; go on trying");
            // Nobody waits longer for that. It is stored as what was told, so that it reads the same for ever, and its call
            // with it.
            log.end(failed(NOT_STORED, &settings));
            finished.fail(NOT_STORED, error_message(&settings));
            stored = store(&db, &finished, &chat.clock, patiently()).await;
        }
        if matches!(stored, Ok(()) | Err(NotStored::Deleted)) {
            // The call is settled though its conversation may be gone. Otherwise the ledger goes on trying.
            finished.call.take().into_iter().for_each(EndedCall::stored);
        }
        if let (Ok(()), Some(keeping)) = (&stored, keeping.filter(|_| judged.is_whole)) {
            // Before the end is told: whoever asks again after that is given it.
            keeping.keep(&chat, db.record(), answered_by.as_deref(), &finished);
        }
        log.end(told(&stored, &finished, begin, judged.is_stopped(), &settings));
    }
}

/// How an answer ended, and what follows from that.
struct Judged {
    failure: Option<Failure>,
    usage: Option<Usage>,
    /// Whether it is what the next who asks may be given: not if it was cut at its longest, by a provider's filter, or for a
    /// reason that nobody here knows.
    is_whole: bool,
}

impl Judged {
    fn new(end: Result<Spoken, Failure>, is_silent: bool) -> Self {
        match end {
            Ok((usage, reason)) => Self {
                failure: is_silent.then_some(Failure::Empty),
                usage,
                is_whole: matches!(reason, FinishReason::Stop | FinishReason::Unsaid),
            },
            Err(failure) => Self { failure: Some(failure), usage: None, is_whole: false },
        }
    }

    fn is_stopped(&self) -> bool {
        matches!(self.failure, Some(Failure::Stopped))
    }

    /// The code of its tenant's having gone out of service, if that ended it.
    fn closed(&self) -> Option<&'static str> {
        match self.failure {
            Some(Failure::Closed(code)) => Some(code),
            _ => None,
        }
    }

    fn outcome(&self) -> Outcome {
        Outcome {
            state: self.failure.as_ref().map_or(CallState::Succeeded, Failure::call_state),
            error_code: self.failure.as_ref().map(Failure::code),
            usage: self.usage,
        }
    }

    /// What is stored of it.
    fn finished(
        &self,
        message_id: MessageId,
        arrived: Arrived,
        ended: Option<EndedCall>,
        settings: &Settings,
        latency: Duration,
    ) -> Finished {
        // What the ledger says was used. An answer without a word has cost nobody anything, unless the provider says so
        // or its user did not want to wait for it.
        let used = ended.as_ref().and_then(|call| call.end().usage);
        let used = used.filter(|usage| usage.reported || !arrived.content.is_empty() || self.is_stopped());
        let message = error_message(settings);
        let mut finished = Finished::new(message_id, arrived, used, self.failure.as_ref(), message, 0, latency);
        finished.call = ended;
        finished
    }
}

/// What is told of an answer when all that can be done with it was.
fn told(
    stored: &Result<(), NotStored>,
    finished: &Finished,
    begin: Begin,
    stopped: bool,
    settings: &Settings,
) -> AnswerEnd {
    match stored {
        Ok(()) => match (finished.error_code, finished.usage) {
            (code, Some(usage)) if code.is_none() || finished.degraded => AnswerEnd::Done {
                model: begin.model,
                assistant: begin.assistant,
                usage,
                stopped,
                degraded: finished.degraded,
                from_cache: false,
                queries_remaining: begin.queries_remaining,
            },
            (code, _) => failed(code.unwrap_or("answer_empty"), settings),
        },
        Err(NotStored::Deleted) => failed("conversation_deleted", settings),
        Err(NotStored::Failed(error)) => {
            tracing::error!(message_id = %begin.answer_id, causes = causes(error), "store an answer");
            failed(NOT_STORED, settings)
        }
    }
}

/// Waits until an answer is given up that cannot be stored.
fn patiently() -> impl Iterator<Item = Duration> + Send {
    let begun = Instant::now();
    std::iter::repeat(LATER).take_while(move |_| begun.elapsed() < STORE_PATIENCE)
}

/// Why a question could not be stored.
pub(super) fn refused(error: tokio_postgres::Error) -> ChatError {
    // The user was deleted since the look at the account.
    let is_gone = error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION);
    if is_gone { ChatError::NotInForce } else { error.into() }
}

fn failed(code: &'static str, settings: &Settings) -> AnswerEnd {
    AnswerEnd::Failed { code: Cow::Borrowed(code), message: error_message(settings).to_owned() }
}

fn error_message(settings: &Settings) -> &str {
    match settings.error_message.trim() {
        "" => UNFINISHED,
        message => message,
    }
}

/// What is said in the place of an answer while no model answers.
fn degraded(settings: &Settings) -> &str {
    let messages = [settings.degraded_message.trim(), settings.error_message.trim()];
    messages.into_iter().find(|message| !message.is_empty()).unwrap_or("No answer can be given just now.")
}

/// Lets the model speak into the log. Returns how it ended, and what that used.
async fn speak(
    call: &mut ModelCall,
    (log, masking): (&EventLog, &mut Option<Masking>),
    deadline: Duration,
    (give_up, interruption): (&CancellationToken, &Interruption),
) -> Result<Spoken, Failure> {
    tokio::select! {
        end = timeout(deadline, collect(call, log, masking)) => end.unwrap_or(Err(Failure::Deadline)),
        () = give_up.cancelled() => Err(Failure::Stopping),
        cause = interruption.interrupted() => Err(match cause {
            Cause::TenantClosed(code) => Failure::Closed(code),
            Cause::StopRequested => Failure::Stopped,
        }),
    }
}

async fn collect(call: &mut ModelCall, log: &EventLog, masking: &mut Option<Masking>) -> Result<Spoken, Failure> {
    let mut length = 0;
    loop {
        match call.next().await? {
            ChatEvent::Delta(delta) => {
                // Postgres stores no NUL in a text.
                let delta = if delta.contains('\0') { delta.replace('\0', "") } else { delta };
                length += delta.len();
                if length > MAX_ANSWER {
                    return Err(Failure::TooLarge);
                }
                match masking {
                    Some(masking) => mask(&delta, masking, log).await,
                    None if delta.is_empty() => {}
                    None => log.push(&delta),
                }
            }
            // Thinking is no part of the answer, and no tools were offered that could be called.
            ChatEvent::Reasoning(_) | ChatEvent::ToolCall(_) => {}
            ChatEvent::Finished { usage, finish_reason } => return Ok((usage, finish_reason)),
        }
    }
}

/// Masks a delta, and tells what may be told of it. Of a long one others' work comes in between.
async fn mask(delta: &str, masking: &mut Masking, log: &EventLog) {
    for (at, piece) in content_filter::pieces(delta).enumerate() {
        if at > 0 {
            tokio::task::yield_now().await;
        }
        let masked = masking.push(piece);
        if !masked.is_empty() {
            log.push(&masked);
        }
    }
}

#[derive(Debug)]
enum NotStored {
    /// The row is not there any more: the conversation was deleted meanwhile.
    Deleted,
    Failed(ChatError),
}

/// Stores an answer, again and again while the database is away for a moment.
async fn store(
    db: &TenantDb,
    answer: &Finished,
    clock: &SharedClock,
    waits: impl IntoIterator<Item = Duration, IntoIter: Send> + Send,
) -> Result<(), NotStored> {
    let mut waits = waits.into_iter();
    loop {
        let attempt = async {
            let client = db.client().await?;
            match timeout(STORE_TIMEOUT, tenant_store::finish(&client, answer, clock.now())).await {
                Ok(stored) => Ok(stored?),
                Err(elapsed) => {
                    // Not given back: whatever came next on it would wait for the statement that is given up here.
                    client.discard();
                    Err(ChatError::TenantDb(TenantDbError::Unreachable(elapsed.into())))
                }
            }
        };
        let error = match attempt.await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(NotStored::Deleted),
            Err(error) => error,
        };
        match waits.next() {
            Some(wait) if is_momentary(&error) => {
                tracing::warn!(message_id = %answer.message_id, causes = causes(&error), "store an answer; try again");
                tokio::time::sleep(wait).await;
            }
            _ => return Err(NotStored::Failed(error)),
        }
    }
}

/// Whether trying again may help: the server is away, full, starting or stopping, or chose this statement as a victim.
fn is_momentary(error: &ChatError) -> bool {
    match error {
        ChatError::TenantDb(
            TenantDbError::Unreachable(_) | TenantDbError::NoConnectionFree { .. } | TenantDbError::CircuitOpen { .. },
        ) => true,
        ChatError::Database(error) => !is_statement_at_fault(error),
        _ => false,
    }
}
