//! From a question to a stored answer.
//!
//! | step | connection | round trips |
//! |---|---|---|
//! | read who asks, settings, keys and history | one, all at once | 1 |
//! | store the question and the answer's row | the same | 1 |
//! | the model speaks | none | - |
//! | store the answer | another | 1 |
//!
//! From the second step on it all happens in a task of its own: whoever asked may leave, the answer is finished and
//! stored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::model_call::{self, ModelCall, Purpose};
use super::prompt::{self, Spoken};
use super::turn::{Begin, Failure, Finished};
use super::under_way::Closed;
use super::{Answer, AnswerEvent, Chat, ChatError, Question, tenant_store};
use crate::access::TenantCaller;
use crate::api::tenant::Settings;
use crate::clock::SharedClock;
use crate::configuration::ConfigurationError;
use crate::configuration::tenant_store as configuration_store;
use crate::ids::{ChatSessionId, MessageId};
use crate::metering::{CallKind, CallState, EndedCall, Outcome};
use crate::providers::{ChatEvent, ChatRequest, Usage};
use crate::telemetry::causes;
use crate::tenant_db::{Client, TenantDb, TenantDbError};

/// Events that wait for a listener who is slower than the model.
const BUFFERED_EVENTS: usize = 64;
/// How long the model waits for such a listener; then it goes on without.
const LISTENER_PATIENCE: Duration = Duration::from_secs(15);
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
/// How long one attempt may take. A statement that needs one round trip and takes this long will not come back.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

/// All that answering a question needs, ready before anything is stored.
struct Turn {
    chat: Chat,
    db: TenantDb,
    begin: Begin,
    /// None if every AI key that offers the model is left alone.
    call: Option<ModelCall>,
    settings: Arc<Settings>,
}

impl Chat {
    /// Stores a question and starts its answer, which goes on whether or not anybody listens. Returns once the
    /// question is stored and before the model has said anything.
    ///
    /// # Errors
    /// See [`ChatError`]; nothing is stored then.
    pub async fn ask(&self, caller: &TenantCaller, question: Question) -> Result<Answer, ChatError> {
        let (turn, client) = self.prepare(caller, question).await?;
        let (sender, events) = mpsc::channel(BUFFERED_EVENTS);
        let (session_id, message_id) = (turn.begin.session_id, turn.begin.answer_id);
        let answer = Answer { session_id, message_id, model: turn.begin.model.clone(), events };
        let (begun, stored) = oneshot::channel();
        self.tasks.spawn(turn.run(client, begun, Listener(Some(sender))).in_current_span());
        stored.await.map_err(|_| ChatError::TaskLost)??;
        Ok(answer)
    }

    async fn prepare(&self, caller: &TenantCaller, question: Question) -> Result<(Turn, Client), ChatError> {
        // Postgres stores no NUL in a text.
        let text = question.text.replace('\0', "");
        if text.trim().is_empty() {
            return Err(ChatError::Empty);
        }
        let client = caller.db.client().await?;
        let history = async {
            match question.session_id {
                Some(session) => tenant_store::history(&client, session, caller.user_id).await,
                None => Ok(Some(Vec::<Spoken>::new())),
            }
        };
        // Polled together on one connection, so all four are on their way before the first is answered.
        let (active, stored, keys, history) = future::try_join4(
            tenant_store::is_active(&client, caller),
            configuration_store::current_settings(&client),
            configuration_store::list_ai_keys(&client),
            history,
        )
        .await?;
        if !active {
            return Err(ChatError::NotInForce);
        }
        let record = caller.db.record();
        let context = self.cache.context(record, &stored.ok_or(ConfigurationError::Unreadable)?, keys)?;
        let settings = Arc::clone(&context.settings);
        if text.chars().count() > settings.max_message_length as usize {
            return Err(ChatError::TooLong { limit: settings.max_message_length });
        }
        let history = history.ok_or(ChatError::NotFound)?;
        let (model, candidates) = context.choose(question.model.as_deref())?;
        self.settle_abandoned_soon(&caller.db);
        let request = ChatRequest {
            messages: prompt::build(&settings, history, &text),
            temperature: settings.temperature,
            max_tokens: Some(settings.max_tokens),
            ..ChatRequest::default()
        };
        let begin = Begin {
            session_id: question.session_id.unwrap_or_else(ChatSessionId::new),
            new_title: question.session_id.is_none().then(|| prompt::title(&text)),
            user_id: caller.user_id,
            question_id: MessageId::new(),
            question: text,
            answer_id: MessageId::new(),
            model: model.to_string(),
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
        let call = ModelCall::new(&self.ledger, &caller.db, purpose, candidates, Some(request)).ok();
        let turn = Turn { chat: self.clone(), db: caller.db.clone(), begin, call, settings };
        Ok((turn, client))
    }
}

impl Turn {
    async fn run(mut self, client: Client, begun: oneshot::Sender<Result<(), ChatError>>, mut listener: Listener) {
        let message_id = self.begin.answer_id;
        let record = self.db.record();
        let (_running, closed) = self.chat.under_way.enter(message_id, record.id, record.revision());
        let stored = tenant_store::begin(&client, &self.begin, self.call.as_mut().map(ModelCall::open)).await;
        // No connection is held while the model speaks.
        drop(client);
        let stored = match stored {
            Ok(true) => Ok(()),
            Ok(false) => Err(ChatError::NotFound),
            // The user was deleted since the look at the account.
            Err(error) if error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION) => Err(ChatError::NotInForce),
            Err(error) => Err(error.into()),
        };
        let refused = stored.is_err();
        // Whoever asked may have left already: what is stored is answered all the same.
        let _ = begun.send(stored);
        if refused {
            return;
        }
        let Self { chat, db, mut call, settings, .. } = self;
        let started = Instant::now();
        let (content, end) = match &mut call {
            Some(call) => {
                call.note_written();
                speak(call, &mut listener, ANSWER_DEADLINE, (&chat.give_up, &closed)).await
            }
            None => (String::new(), Err(Failure::AllDown)),
        };
        let (usage, failure) = match end {
            Ok(usage) if content.is_empty() => (usage, Some(Failure::Empty)),
            Ok(usage) => (usage, None),
            Err(failure) => (None, Some(failure)),
        };
        if let Some(failure) = &failure {
            tracing::warn!(%message_id, code = failure.code(), causes = causes(failure), "an answer failed");
        }
        let outcome = Outcome {
            state: failure.as_ref().map_or(CallState::Succeeded, Failure::call_state),
            error_code: failure.as_ref().map(Failure::code),
            usage,
        };
        let ended = call.and_then(|mut call| call.end(&outcome));
        let is_closed = if let Some(Failure::Closed(code)) = &failure {
            // Told first: storing may well fail by now, and nobody is to wait for that.
            listener.tell(failed(code, &settings)).await;
            true
        } else {
            false
        };
        // What the ledger says was used. An answer without a word has cost nobody anything, unless the provider says so.
        let used = ended.as_ref().and_then(|call| call.end().usage);
        let used = used.filter(|usage| usage.reported || !content.is_empty());
        let latency = started.elapsed();
        let mut finished = Finished::new(message_id, content, used, failure.as_ref(), 0, latency);
        finished.call = ended;
        if finished.content.is_empty() && failure.as_ref().is_some_and(Failure::is_outage) {
            finished.degrade(degraded(&settings));
            listener.tell(AnswerEvent::Delta(finished.content.clone())).await;
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
        let stored = store(&db, &finished, &chat.clock).await;
        if matches!(stored, Ok(()) | Err(NotStored::Deleted)) {
            // The call is settled though its conversation may be gone. Otherwise the ledger goes on trying.
            finished.call.take().into_iter().for_each(EndedCall::stored);
        }
        let event = match stored {
            Ok(()) => match (finished.error_code, finished.usage) {
                (None, Some(usage)) => AnswerEvent::Done { usage, degraded: false },
                (_, Some(usage)) if finished.degraded => AnswerEvent::Done { usage, degraded: true },
                (code, _) => failed(code.unwrap_or("answer_empty"), &settings),
            },
            Err(NotStored::Deleted) => failed("conversation_deleted", &settings),
            Err(NotStored::Failed(error)) => {
                tracing::error!(%message_id, causes = causes(&error), "store an answer");
                failed("answer_not_stored", &settings)
            }
        };
        listener.tell(event).await;
    }
}

fn failed(code: &'static str, settings: &Settings) -> AnswerEvent {
    let message = match settings.error_message.trim() {
        "" => "The answer could not be finished.",
        message => message,
    };
    AnswerEvent::Failed { code, message: message.to_owned() }
}

/// What is said in the place of an answer while no model answers.
fn degraded(settings: &Settings) -> &str {
    let messages = [settings.degraded_message.trim(), settings.error_message.trim()];
    messages.into_iter().find(|message| !message.is_empty()).unwrap_or("No answer can be given just now.")
}

/// Lets the model speak. Returns what it said, and how it ended.
async fn speak(
    call: &mut ModelCall,
    listener: &mut Listener,
    deadline: Duration,
    (give_up, closed): (&CancellationToken, &Closed),
) -> (String, Result<Option<Usage>, Failure>) {
    let mut content = String::new();
    let end = tokio::select! {
        end = timeout(deadline, collect(call, &mut content, listener)) => {
            end.unwrap_or(Err(Failure::Deadline))
        }
        () = give_up.cancelled() => Err(Failure::Stopping),
        code = closed.closed() => Err(Failure::Closed(code)),
    };
    (content, end)
}

async fn collect(
    call: &mut ModelCall,
    content: &mut String,
    listener: &mut Listener,
) -> Result<Option<Usage>, Failure> {
    loop {
        match call.next().await? {
            ChatEvent::Delta(delta) => {
                // Postgres stores no NUL in a text.
                let delta = if delta.contains('\0') { delta.replace('\0', "") } else { delta };
                if content.len() + delta.len() > MAX_ANSWER {
                    return Err(Failure::TooLarge);
                }
                if delta.is_empty() {
                    continue;
                }
                content.push_str(&delta);
                listener.tell(AnswerEvent::Delta(delta)).await;
            }
            // Thinking is no part of the answer, and no tools were offered that could be called.
            ChatEvent::Reasoning(_) | ChatEvent::ToolCall(_) => {}
            ChatEvent::Finished { usage, .. } => return Ok(usage),
        }
    }
}

/// Whoever listens to an answer, for as long as they do.
struct Listener(Option<mpsc::Sender<AnswerEvent>>);

impl Listener {
    /// Tells the listener, and forgets one who has left or takes nothing any more.
    async fn tell(&mut self, event: AnswerEvent) {
        if let Some(sender) = &self.0
            && sender.send_timeout(event, LISTENER_PATIENCE).await.is_err()
        {
            self.0 = None;
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
async fn store(db: &TenantDb, answer: &Finished, clock: &SharedClock) -> Result<(), NotStored> {
    let mut waits = STORE_WAITS.into_iter();
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
        ChatError::Database(error) => {
            error.code().is_none_or(|code| ["08", "40", "53", "57"].iter().any(|class| code.code().starts_with(class)))
        }
        _ => false,
    }
}
