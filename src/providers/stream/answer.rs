//! What has been learned of one answer, and the promises every answer keeps whatever the upstream said.

use std::collections::VecDeque;

use super::tool_calls::{CallPiece, ToolCalls};
use super::{Broken, MAX_ANSWER_BYTES};
use crate::json;
use crate::providers::error::{Cause, ProviderError, UpstreamRefusal};
use crate::providers::{ChatEvent, FinishReason, Usage};

/// An answer on its way: a wire format tells it what it reads, and events come out in order.
#[derive(Default)]
pub(in crate::providers) struct Answer {
    ready: VecDeque<ChatEvent>,
    calls: ToolCalls,
    bytes: usize,
    begun: bool,
    delivered: bool,
    finish_reason: Option<FinishReason>,
    usage: Option<Usage>,
}

impl Answer {
    /// The upstream has begun to answer, even if it has not said anything yet.
    pub(in crate::providers) fn begin(&mut self) {
        self.begun = true;
    }

    /// Text of the answer.
    pub(in crate::providers) fn text(&mut self, text: String) -> Result<(), ProviderError> {
        self.say(text, ChatEvent::Delta)
    }

    /// What the model says of its thinking.
    pub(in crate::providers) fn reasoning(&mut self, text: String) -> Result<(), ProviderError> {
        self.say(text, ChatEvent::Reasoning)
    }

    /// A piece of a tool call.
    pub(in crate::providers) fn call(&mut self, piece: CallPiece) -> Result<(), ProviderError> {
        self.count(piece.arguments.len() + piece.name.as_ref().map_or(0, String::len))?;
        let told = self.calls.take_in(piece, &mut self.ready);
        self.delivered |= !self.ready.is_empty();
        told.map_err(|cause| self.broken(cause))
    }

    /// Why the answer ends. More may follow: usage, for instance.
    pub(in crate::providers) fn finish(&mut self, reason: FinishReason) {
        self.finish_reason = Some(reason);
    }

    /// Tokens used so far. Every form is a running total, so that the latest is the whole.
    pub(in crate::providers) fn usage(&mut self, usage: Usage) {
        self.usage = Some(Usage { cached_input_tokens: usage.cached_input_tokens.min(usage.input_tokens), ..usage });
    }

    pub(in crate::providers) fn begun(&self) -> bool {
        self.begun
    }

    pub(super) fn has_finish_reason(&self) -> bool {
        self.finish_reason.is_some()
    }

    pub(super) fn next(&mut self) -> Option<ChatEvent> {
        self.ready.pop_front()
    }

    /// Puts the end of a whole answer behind its events.
    pub(super) fn conclude(&mut self) -> Result<(), ProviderError> {
        self.calls.finish(&mut self.ready).map_err(|cause| self.broken(cause))?;
        let finish_reason = match self.finish_reason.unwrap_or(FinishReason::Unsaid) {
            // Several servers end every answer this way, calls or none.
            FinishReason::Stop | FinishReason::Unsaid | FinishReason::Other if self.calls.any() => {
                FinishReason::ToolCalls
            }
            reason => reason,
        };
        self.ready.push_back(ChatEvent::Finished { usage: self.usage, finish_reason });
        Ok(())
    }

    /// An answer that broke off.
    pub(in crate::providers) fn broken(&self, cause: impl Into<Cause>) -> ProviderError {
        ProviderError::broken(self.delivered, cause)
    }

    /// What came is not of the wire format.
    pub(in crate::providers) fn malformed(&self, error: &serde_json::Error) -> ProviderError {
        self.broken(Broken::Malformed(json::place(error)))
    }

    /// An error object: its own kind while another attempt is still possible, else an interruption.
    pub(in crate::providers) fn refused(&self, json: &str) -> ProviderError {
        let refusal = UpstreamRefusal::parse(None, json.as_bytes());
        if self.delivered { ProviderError::Interrupted(refusal.into()) } else { refusal.into_error(None) }
    }

    fn say(&mut self, text: String, event: impl FnOnce(String) -> ChatEvent) -> Result<(), ProviderError> {
        if text.is_empty() {
            return Ok(());
        }
        self.count(text.len())?;
        self.delivered = true;
        self.ready.push_back(event(text));
        Ok(())
    }

    fn count(&mut self, bytes: usize) -> Result<(), ProviderError> {
        self.bytes += bytes;
        if self.bytes > MAX_ANSWER_BYTES { Err(self.broken(Broken::AnswerTooLarge)) } else { Ok(()) }
    }
}
