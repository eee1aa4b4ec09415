//! A user's own conversations: list, read, delete. Those of others do not exist as far as anybody can tell.

use chrono::{DateTime, TimeDelta, Utc};

use super::images::MessageImage;
use super::{Chat, ChatError, tenant_store};
use crate::access::TenantCaller;
use crate::api::tenant::{MessageFeedback, MessageRole, MessageState, Usage};
use crate::ids::{ChatSessionId, MessageId};

/// Longer than any answer may take: one that is not finished by then never will be, its server has died or has given it up.
pub(super) const STALE: TimeDelta = TimeDelta::minutes(10);

/// A conversation.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Its id.
    pub id: ChatSessionId,
    /// The beginning of the first question.
    pub title: String,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When something was last said.
    pub updated_at: DateTime<Utc>,
}

/// One message of a conversation.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Who said it.
    pub role: MessageRole,
    /// What was said.
    pub content: String,
    /// Whether it is whole.
    pub state: MessageState,
    /// Why not, as a stable code.
    pub error_code: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// The assistant that answered; none if it was none in particular.
    pub assistant: Option<String>,
    /// What it cost, for answers.
    pub usage: Option<Usage>,
    /// Whether no model gave it: it is the tenant's own message instead.
    pub degraded: bool,
    /// Whether it was kept from an earlier question, and no model was asked.
    pub from_cache: bool,
    /// When it was said.
    pub created_at: DateTime<Utc>,
    /// What its user thought of it.
    pub feedback: Option<MessageFeedback>,
    /// The images that it came with, in order.
    pub images: Vec<MessageImage>,
}

impl Chat {
    /// At most `limit` of the caller's conversations before one, newest first.
    ///
    /// # Errors
    /// If the tenant's database fails.
    pub async fn conversations(
        &self,
        caller: &TenantCaller,
        before: Option<ChatSessionId>,
        limit: usize,
    ) -> Result<Vec<Conversation>, ChatError> {
        let client = caller.db.client().await?;
        Ok(tenant_store::list_conversations(&client, caller.user_id, before, sql_limit(limit)).await?)
    }

    /// At most `limit` messages after one, oldest first.
    ///
    /// # Errors
    /// [`ChatError::NotFound`] if the conversation is not the caller's, or a failure.
    pub async fn messages(
        &self,
        caller: &TenantCaller,
        session: ChatSessionId,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<Message>, ChatError> {
        let client = caller.db.client().await?;
        let messages = tenant_store::list_messages(&client, session, caller.user_id, after, sql_limit(limit)).await?;
        let now = self.clock.now();
        let mut messages = messages.ok_or(ChatError::NotFound)?;
        for message in &mut messages {
            let running = self.under_way.contains(message.id);
            report_abandoned(message, running, now);
        }
        Ok(messages)
    }

    /// Deletes a conversation and all that was said in it.
    ///
    /// # Errors
    /// [`ChatError::NotFound`] if the conversation is not the caller's, or a failure.
    pub async fn delete_conversation(&self, caller: &TenantCaller, session: ChatSessionId) -> Result<(), ChatError> {
        let client = caller.db.client().await?;
        let deleted = tenant_store::delete_conversation(&client, session, caller.user_id).await?;
        if deleted { Ok(()) } else { Err(ChatError::NotFound) }
    }
}

fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// An answer whose server died is shown as what it is, not as one that still comes.
fn report_abandoned(message: &mut Message, running: bool, now: DateTime<Utc>) {
    if message.state == MessageState::Generating && !running && now - message.created_at > STALE {
        message.state = MessageState::Interrupted;
        message.error_code = Some("server_stopped".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_server_is_interrupted_after_a_while() {
        let message = |state| Message {
            id: MessageId::new(),
            role: MessageRole::Assistant,
            content: String::new(),
            state,
            error_code: None,
            model: None,
            assistant: None,
            usage: None,
            degraded: false,
            from_cache: false,
            created_at: DateTime::UNIX_EPOCH,
            feedback: None,
            images: vec![],
        };
        let shown = |state, running, minutes| {
            let mut message = message(state);
            report_abandoned(&mut message, running, DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes));
            message.state
        };
        assert_eq!(shown(MessageState::Generating, false, 11), MessageState::Interrupted);
        assert_eq!(shown(MessageState::Generating, true, 11), MessageState::Generating);
        assert_eq!(shown(MessageState::Generating, false, 9), MessageState::Generating);
        assert_eq!(shown(MessageState::Complete, false, 11), MessageState::Complete);
    }
}
