//! What users think of the answers they were given: a thumb, and perhaps a few words. One for each answer; another one
//! takes its place.

pub mod tenant_store;

use super::{Chat, ChatError};
use crate::access::TenantCaller;
use crate::api::tenant::MessageFeedback;
use crate::ids::MessageId;

impl Chat {
    /// Stores what the caller thinks of one of its answers.
    ///
    /// # Errors
    /// [`ChatError::AnswerNotFound`] if the answer is not the caller's, or a failure.
    pub async fn rate(
        &self,
        caller: &TenantCaller,
        message: MessageId,
        feedback: &MessageFeedback,
    ) -> Result<(), ChatError> {
        let client = caller.db.client().await?;
        let stored = tenant_store::put(&client, message, caller.user_id, feedback, self.clock.now()).await?;
        if stored { Ok(()) } else { Err(ChatError::AnswerNotFound) }
    }

    /// Takes it back. There may be none.
    ///
    /// # Errors
    /// [`ChatError::AnswerNotFound`] if the answer is not the caller's, or a failure.
    pub async fn unrate(&self, caller: &TenantCaller, message: MessageId) -> Result<(), ChatError> {
        let client = caller.db.client().await?;
        let there = tenant_store::delete(&client, message, caller.user_id).await?;
        if there { Ok(()) } else { Err(ChatError::AnswerNotFound) }
    }
}
