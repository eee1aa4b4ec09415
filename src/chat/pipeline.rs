//! From a question to a stored answer.
//!
//! | step | connection | round trips |
//! |---|---|---|
//! | read who asks and the history, and once a second settings and keys | one, all at once | 1 |
//! | where a model routes, it is asked for the assistant of a first question | none | 2, for its row |
//! | read images of earlier questions, if there are any and they are shown again | the same, or another if a model was asked or there is no room for them yet | 2 |
//! | store the question and the answer's row | the same, or another if a model was asked | 1 |
//! | the model speaks | none | - |
//! | store the answer | another | 1 |
//!
//! From the second step on it all happens in a task of its own: whoever asked may leave, the answer is finished and
//! stored.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{TryFutureExt as _, future};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::assistants::{Asked, Assigned};
use super::duplicates::{self, FirstAsked, Mark, Stored};
use super::images::QuestionImage;
use super::kept_answers::{Hit, Keeping};
use super::model_call::{self, ModelCall, Purpose};
use super::prompt;
use super::streams::event_log::{EventLog, LastWord};
use super::streams::{AnswerEnd, Listener, UNFINISHED};
use super::tenant_store::History;
use super::turn::{Arrived, Begin, Failure, Finished};
use super::under_way::{Cause, Interruption, Owner};
use super::{Chat, ChatError, Question, tenant_store};
use crate::access::TenantCaller;
use crate::api::tenant::Settings;
use crate::clock::SharedClock;
use crate::content_filter::{self, Masking};
use crate::ids::{ChatSessionId, MessageId};
use crate::metering::{CallKind, CallState, EndedCall, Outcome};
use crate::providers::{ChatEvent, ChatRequest, FinishReason, Usage};
use crate::telemetry::causes;
use crate::tenant_db::{Client, TenantDb, TenantDbError, is_statement_at_fault};

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
struct Turn {
    chat: Chat,
    db: TenantDb,
    begin: Begin,
    /// None if every AI key that offers the model is left alone, or the answer is kept already.
    call: Option<ModelCall>,
    settings: Arc<Settings>,
    /// What the answer goes through before anybody sees it and before it is stored, if anything is to be masked.
    masking: Option<Masking>,
    /// How the answer is kept for the next who asks this; none if it is not.
    keeping: Option<Keeping>,
}

impl Chat {
    /// Stores a question that nobody else is asking here, and starts its answer; see [`Chat::ask`]. The mark is kept until
    /// the answer is over.
    ///
    /// # Errors
    /// See [`ChatError`]; nothing is stored then.
    pub(super) async fn ask_first(
        &self,
        caller: &TenantCaller,
        question: Question,
        mark: Mark,
    ) -> Result<FirstAsked, ChatError> {
        let (turn, hit, client) = self.prepare(caller, question).await?;
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

    /// What a question needs, and the answer that is kept of it, if there is one: then no model is called.
    async fn prepare(
        &self,
        caller: &TenantCaller,
        question: Question,
    ) -> Result<(Turn, Option<Hit>, Client), ChatError> {
        let text = question.text;
        let client = caller.db.client().await?;
        let history = async {
            match question.session_id {
                Some(session) => tenant_store::history(&client, session, caller.user_id).await,
                None => Ok(Some(History::default())),
            }
        };
        // Polled together on one connection, so all are on their way before the first is answered.
        let (active, history, context) = future::try_join3(
            tenant_store::is_active(&client, caller).map_err(ChatError::from),
            history.map_err(ChatError::from),
            self.context_on(&client, caller.db.record()),
        )
        .await?;
        if !active {
            return Err(ChatError::NotInForce);
        }
        let settings = Arc::clone(&context.settings);
        if text.chars().count() > settings.max_message_length as usize {
            return Err(ChatError::TooLong { limit: settings.max_message_length });
        }
        let mut history = history.ok_or(ChatError::NotFound)?;
        let with_images = !question.images.is_empty();
        let asked = Asked {
            text: &text,
            named: question.assistant.as_deref(),
            last: history.assistant.as_deref(),
            with_images,
        };
        let mut recalled = None;
        let (assistant, mut client) = match context.assistants.assign(asked)? {
            Assigned::To(assistant) => (assistant, client),
            Assigned::AskModel(otherwise) => {
                // No connection is held while a model speaks.
                drop(client);
                let said = self.ask_router(caller, &context, &text, with_images).await;
                (said.or(otherwise), caller.db.client().await?)
            }
        };
        self.admit_assistant(assistant, caller.db.record())?;
        let (model, candidates) = context.choose_for(question.model.as_deref(), assistant)?;
        if !with_images && self.shows_images(assistant, caller.db.record()) {
            let window = settings.history_length.into();
            (client, recalled) = self.recall_images(caller, client, &mut history.spoken, window).await?;
        }
        let (new_images, shown): (Vec<_>, Vec<_>) = question.images.into_iter().map(QuestionImage::split).unzip();
        self.settle_abandoned_soon(&caller.db);
        let request = ChatRequest {
            messages: prompt::build(&settings, assistant, history.spoken, &text, shown),
            temperature: assistant.and_then(|one| one.temperature).or(settings.temperature),
            max_tokens: Some(assistant.and_then(|one| one.max_tokens).unwrap_or(settings.max_tokens)),
            ..ChatRequest::default()
        };
        let begin = Begin {
            session_id: question.session_id.unwrap_or_else(ChatSessionId::new),
            new_title: question.session_id.is_none().then(|| prompt::title(&text)),
            user_id: caller.user_id,
            question_id: MessageId::new(),
            question: text,
            images: new_images,
            answer_id: MessageId::new(),
            model: model.to_string(),
            assistant: assistant.map(|assistant| assistant.name.clone()),
            queries_remaining: question.queries_remaining,
            now: self.clock.now(),
        };
        let purpose = Purpose {
            kind: CallKind::Chat,
            user_id: Some(caller.user_id),
            api_key_id: None,
            message_id: Some(begin.answer_id),
            model,
            prompt_characters: model_call::length(&request),
        };
        let keeping = Keeping::new(&context, caller, begin.assistant.as_deref(), &candidates, &request);
        let found = match &keeping {
            Some(keeping) => keeping.find(self, caller.db.record(), question.permit).await,
            None => Err(question.permit),
        };
        let (hit, call) = match found {
            Ok(hit) => (Some(hit), None),
            Err(permit) => {
                let call = ModelCall::new(&self.ledger, &caller.db, purpose, candidates, Some(request)).ok();
                (None, call.map(|call| call.with_permit(permit).with_room(recalled.or(question.room))))
            }
        };
        let masking = context.masking();
        let turn = Turn { chat: self.clone(), db: caller.db.clone(), begin, call, settings, masking, keeping };
        Ok((turn, hit, client))
    }
}

impl Turn {
    async fn run(mut self, client: Client, begun: oneshot::Sender<NotHere>, log: Arc<EventLog>, mark: Mark) {
        let message_id = self.begin.answer_id;
        let record = self.db.record();
        let owner = Owner { tenant: record.id, user: self.begin.user_id, revision: record.revision() };
        let (_running, interruption) = self.chat.under_way.enter(message_id, owner, &log);
        let _last_word = LastWord(Arc::clone(&log));
        let call = self.call.as_mut().map(ModelCall::open);
        let stored = duplicates::store(&client, &self.chat.under_way, mark.key(), &self.begin, call).await;
        // No connection is held while the model speaks, nor images that are stored.
        drop(client);
        self.begin.images = Vec::new();
        let stored = match stored {
            Ok(Stored::Begun) => Ok(None),
            Ok(Stored::Elsewhere(message_id)) => Ok(Some(message_id)),
            Ok(Stored::NoConversation) => Err(ChatError::NotFound),
            Err(error) => {
                // Nobody knows whether the call's row is there, and the call will not be made.
                if error.code().is_none()
                    && let Some(call) = &mut self.call
                {
                    drop(call.end(&Outcome::ended(CallState::Failed, "not_started")));
                }
                Err(refused(error))
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
        let Self { chat, db, mut call, settings, begin, mut masking, keeping } = self;
        let started = Instant::now();
        let parted = chat.parts.enter(&db, message_id, &log, &interruption);
        let end = match &mut call {
            Some(call) => {
                call.note_written();
                speak(call, (&*log, &mut masking), ANSWER_DEADLINE, (&chat.give_up, &interruption)).await
            }
            None => Err(Failure::AllDown),
        };
        // However it ended: what was held back is told as far as nothing in it is to be masked.
        if let Some(rest) = masking.map(|mut masking| masking.finish()).filter(|rest| !rest.is_empty()) {
            log.push(&rest);
        }
        let (content, delta_lengths) = log.content();
        // One that was cut at its longest, or by a provider's filter, is not what the next who asks is to be given.
        let is_whole = matches!(&end, Ok((_, FinishReason::Stop | FinishReason::Other)));
        let (usage, failure) = match end {
            Ok((usage, _)) if content.is_empty() => (usage, Some(Failure::Empty)),
            Ok((usage, _)) => (usage, None),
            Err(failure) => (None, Some(failure)),
        };
        let stopped = matches!(failure, Some(Failure::Stopped));
        if let Some(failure) = &failure
            && !stopped
        {
            tracing::warn!(%message_id, code = failure.code(), causes = causes(failure), "an answer failed");
        }
        let outcome = Outcome {
            state: failure.as_ref().map_or(CallState::Succeeded, Failure::call_state),
            error_code: failure.as_ref().map(Failure::code),
            usage,
        };
        let answered_by = call.as_ref().map(|call| Arc::clone(call.target()));
        let (ended, counted) = match call {
            Some(mut call) => (call.end(&outcome), call.counted()),
            None => (None, None.into()),
        };
        let is_closed = if let Some(Failure::Closed(code)) = &failure {
            // Told first: storing may well fail by now, and nobody is to wait for that.
            log.end(failed(code, &settings));
            true
        } else {
            false
        };
        // What the ledger says was used. An answer without a word has cost nobody anything, unless the provider says so
        // or its user did not want to wait for it.
        let used = ended.as_ref().and_then(|call| call.end().usage);
        let used = used.filter(|usage| usage.reported || !content.is_empty() || stopped);
        let arrived = Arrived { content, delta_lengths, parted: parted.close().await };
        let (message, latency) = (error_message(&settings), started.elapsed());
        let mut finished = Finished::new(message_id, arrived, used, failure.as_ref(), message, 0, latency);
        finished.call = ended;
        if finished.content.is_empty() && failure.as_ref().is_some_and(Failure::is_outage) {
            log.push(degraded(&settings));
            finished.degrade(log.content());
        }
        if is_closed {
            // Once, while a connection is left. Else the row stays as it is, and is shown as interrupted later.
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
            tracing::error!(%message_id, causes = causes(error), "store an answer; go on trying");
            // Nobody waits longer for that. It is stored as what was told, so that it reads the same for ever, and its call
            // with it.
            log.end(failed(NOT_STORED, &settings));
            finished.fail(NOT_STORED, message);
            let begun = Instant::now();
            let waits = std::iter::repeat(LATER).take_while(move |_| begun.elapsed() < STORE_PATIENCE);
            stored = store(&db, &finished, &chat.clock, waits).await;
        }
        if matches!(stored, Ok(()) | Err(NotStored::Deleted)) {
            // The call is settled though its conversation may be gone. Otherwise the ledger goes on trying.
            finished.call.take().into_iter().for_each(EndedCall::stored);
        }
        if let (Ok(()), Some(keeping)) = (&stored, keeping.filter(|_| is_whole)) {
            // Before the end is told: whoever asks again after that is given it.
            keeping.keep(&chat, db.record(), answered_by.as_deref(), &finished);
        }
        let end = match stored {
            Ok(()) => match (finished.error_code, finished.usage) {
                (code, Some(usage)) if code.is_none() || finished.degraded => {
                    let queries_remaining = begin.queries_remaining;
                    AnswerEnd::Done {
                        model: begin.model,
                        assistant: begin.assistant,
                        usage,
                        stopped,
                        degraded: finished.degraded,
                        from_cache: false,
                        queries_remaining,
                    }
                }
                (code, _) => failed(code.unwrap_or("answer_empty"), &settings),
            },
            Err(NotStored::Deleted) => failed("conversation_deleted", &settings),
            Err(NotStored::Failed(error)) => {
                tracing::error!(%message_id, causes = causes(&error), "store an answer");
                failed(NOT_STORED, &settings)
            }
        };
        log.end(end);
    }
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
