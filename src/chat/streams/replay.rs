//! Answers listened to again, and stopped, wherever they are made.
//!
//! An answer that this process makes is read from its log. Of any other the database knows what was written down: all
//! of it once it is finished; until then somebody looks every moment for what has come, with a connection only for
//! the look.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::UNFINISHED;
use super::event_log::{AnswerEnd, EventLog, Listener};
use super::tenant_store::{self, StoredAnswer};
use crate::access::TenantCaller;
use crate::api::tenant::{MessageState, Usage};
use crate::chat::conversations::STALE;
use crate::chat::under_way::Found;
use crate::chat::{CLOSED, Chat, ChatError};
use crate::ids::{MessageId, UserId};
use crate::telemetry::causes;
use crate::tenant_db::{TenantDb, TenantDbError};

/// How often an answer is looked for that another server makes.
const PERIOD: Duration = Duration::from_millis(300);
/// After how long without news of an answer it is asked whether its server has died.
const QUIET: Duration = Duration::from_secs(5);
/// How long whoever stops an answer waits at most until that is on record.
const STOPPED: Duration = Duration::from_secs(1);
/// How long the database may be away before whoever listens is told to come again.
const PATIENCE: Duration = Duration::from_secs(30);

impl Chat {
    /// The events of one of the caller's answers that come behind event `after`, or all; those to come included.
    ///
    /// # Errors
    /// [`ChatError::AnswerNotFound`] if it is not the caller's, or a failure.
    pub async fn events(
        &self,
        caller: &TenantCaller,
        message_id: MessageId,
        after: Option<u64>,
    ) -> Result<Listener, ChatError> {
        let (tenant, user_id) = (caller.db.record().id, caller.user_id);
        let place = || self.listeners.place(tenant, user_id);
        match self.under_way.find(message_id, tenant, user_id) {
            Found::Here { log, .. } => return Ok(Listener::new(log, after).at(place())),
            Found::Foreign => return Err(ChatError::AnswerNotFound),
            Found::Nowhere => {}
        }
        if let Some(followed) = self.listeners.followed(tenant, user_id, message_id) {
            return Ok(Listener::following(followed, after).at(place()));
        }
        let answer = look(&caller.db, message_id, caller.user_id, 1).await?.ok_or(ChatError::AnswerNotFound)?;
        let log = EventLog::new(answer.session_id, message_id);
        if self.heard(&log, answer) {
            return Ok(Listener::new(log, after).at(place()));
        }
        let (followed, left) = self.listeners.follow(tenant, user_id, message_id, &log);
        if let Some(left) = left {
            let filler = Filler { chat: self.clone(), db: caller.db.clone(), message_id, user_id, log, left };
            self.tasks.spawn(filler.run().in_current_span());
        }
        Ok(Listener::following(followed, after).at(place()))
    }

    /// Stops one of the caller's answers: what has arrived is kept. Nothing happens to one that is over.
    ///
    /// # Errors
    /// [`ChatError::AnswerNotFound`] if it is not the caller's, or a failure.
    pub async fn stop(&self, caller: &TenantCaller, message_id: MessageId) -> Result<(), ChatError> {
        match self.under_way.find(message_id, caller.db.record().id, caller.user_id) {
            Found::Here { log, interruption } => {
                interruption.stop();
                // Until that is on record, another server would let somebody who asks the same join it.
                let _ = timeout(STOPPED, Listener::new(log, None).whole()).await;
                return Ok(());
            }
            Found::Foreign => return Err(ChatError::AnswerNotFound),
            Found::Nowhere => {}
        }
        let client = caller.db.client().await?;
        let now = self.clock.now();
        let known = tenant_store::request_stop(&client, message_id, caller.user_id, now).await?;
        if known { Ok(()) } else { Err(ChatError::AnswerNotFound) }
    }

    /// Puts what was written down of an answer into a log. Whether the log is at its end.
    fn heard(&self, log: &EventLog, answer: StoredAnswer) -> bool {
        log.fill(&answer.deltas);
        let end = match answer.state {
            MessageState::Generating if self.clock.now() - answer.created_at > STALE => lost(None),
            MessageState::Generating => return false,
            MessageState::Complete | MessageState::Stopped => AnswerEnd::Done {
                model: answer.model.unwrap_or_default(),
                assistant: answer.assistant,
                usage: answer.usage.unwrap_or(Usage { input_tokens: 0, output_tokens: 0, reported: false }),
                stopped: answer.state == MessageState::Stopped,
                degraded: answer.degraded,
                from_cache: answer.from_cache,
                queries_remaining: answer.queries_remaining,
            },
            // Whoever made it always says why; somebody who found it abandoned does not know the tenant's words.
            MessageState::Interrupted | MessageState::Failed => match (answer.error_message, answer.error_code) {
                (Some(message), code) => AnswerEnd::Failed { code: Cow::Owned(code.unwrap_or_default()), message },
                (None, code) => lost(code),
            },
        };
        log.end(end);
        true
    }
}

/// Looks at an answer, with a connection for no longer than that.
async fn look(
    db: &TenantDb,
    message_id: MessageId,
    user_id: UserId,
    from: u64,
) -> Result<Option<StoredAnswer>, ChatError> {
    let client = db.client().await?;
    Ok(tenant_store::answer(&client, message_id, user_id, from).await?)
}

/// Fills the log of those who follow an answer here with what another server writes down.
struct Filler {
    chat: Chat,
    db: TenantDb,
    message_id: MessageId,
    user_id: UserId,
    log: Arc<EventLog>,
    /// Cancelled when all listeners have left.
    left: CancellationToken,
}

impl Filler {
    async fn run(self) {
        let end = tokio::select! {
            end = self.fill() => end,
            // The answer goes on; this server does not.
            () = self.chat.give_up.cancelled() => AnswerEnd::Away,
        };
        self.log.end(end);
    }

    /// Fills the log until there is an end to be put there, unless it has one, or nobody listens.
    async fn fill(&self) -> AnswerEnd {
        let (mut away_since, mut heard_at) = (None, Instant::now());
        loop {
            tokio::select! {
                () = self.left.cancelled() => return AnswerEnd::Away,
                () = tokio::time::sleep(PERIOD) => {}
            }
            // Not given up when the listeners leave: a statement that nobody waits for costs its connection.
            let known = self.log.count();
            let error = match look(&self.db, self.message_id, self.user_id, known + 1).await {
                Ok(Some(answer)) => {
                    away_since = None;
                    if self.chat.heard(&self.log, answer) {
                        return AnswerEnd::Away;
                    }
                    if self.log.count() > known {
                        heard_at = Instant::now();
                    }
                    match heard_at.elapsed() < QUIET {
                        true => continue,
                        // If it has, the row will say so.
                        false => match self.chat.settle_abandoned(&self.db).await {
                            Ok(_) => continue,
                            Err(error) => error,
                        },
                    }
                }
                Ok(None) => return failed("conversation_deleted"),
                Err(error) => error,
            };
            let [suspended, deleting, other] = CLOSED;
            match &error {
                ChatError::TenantDb(TenantDbError::Suspended) => return failed(suspended),
                ChatError::TenantDb(TenantDbError::Deleting) => return failed(deleting),
                ChatError::TenantDb(TenantDbError::NotActive) => return failed(other),
                _ => {}
            }
            let since = *away_since.get_or_insert_with(Instant::now);
            if since.elapsed() > PATIENCE {
                tracing::warn!(message_id = %self.message_id, causes = causes(&error), "follow an answer");
                return AnswerEnd::Away;
            }
        }
    }
}

fn failed(code: &'static str) -> AnswerEnd {
    AnswerEnd::Failed { code: Cow::Borrowed(code), message: UNFINISHED.to_owned() }
}

fn lost(code: Option<String>) -> AnswerEnd {
    AnswerEnd::ServerLost { code: code.map_or(Cow::Borrowed("server_stopped"), Cow::Owned) }
}
