//! One turn of a conversation as data: what is stored before the model is called, and after.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::images::NewImage;
use super::model_call::{CallError, another_may_help};
use crate::api::tenant::{MessageState, Usage};
use crate::ids::{ChatSessionId, MessageId, UserId};
use crate::metering::{CallState, EndedCall};
use crate::providers::{self, ProviderError};

/// A question and the row of its answer.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) session_id: ChatSessionId,
    /// Given if the conversation is new.
    pub(super) new_title: Option<String>,
    pub(super) user_id: UserId,
    pub(super) question_id: MessageId,
    pub(super) question: String,
    /// The images that came with it. They are let go of once they are stored.
    pub(super) images: Vec<NewImage>,
    pub(super) answer_id: MessageId,
    pub(super) model: String,
    /// The assistant that answers; none if it is none in particular.
    pub(super) assistant: Option<String>,
    /// What is left of the tenant's quota; none if there is no limit.
    pub(super) queries_remaining: Option<u64>,
    pub(super) now: DateTime<Utc>,
}

/// Why an answer ended before it was whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the model provider failed")]
    Provider(#[from] ProviderError),
    #[error("every AI key that offers the model is left alone for a moment")]
    AllDown,
    #[error("the answer took too long")]
    Deadline,
    #[error("the answer is larger than allowed")]
    TooLarge,
    #[error("the answer is empty")]
    Empty,
    #[error("the server is stopping")]
    Stopping,
    #[error("the tenant went out of service")]
    Closed(&'static str),
    #[error("its user had the answer stopped")]
    Stopped,
    #[error("nobody knows whether the question was stored")]
    NotStarted,
}

impl Failure {
    /// A stable code.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Provider(error) => error.code(),
            Self::AllDown => "models_unavailable",
            Self::Deadline => "answer_timeout",
            Self::TooLarge => "answer_too_large",
            Self::Empty => "answer_empty",
            Self::Stopping => "server_stopped",
            Self::Closed(code) => code,
            Self::Stopped => "stopped",
            Self::NotStarted => "not_started",
        }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Provider(error) => Self::Provider(error),
            CallError::AllDown { .. } => Self::AllDown,
            CallError::Closed(code) => Self::Closed(code),
            CallError::Stopping => Self::Stopping,
            CallError::Deadline => Self::Deadline,
        }
    }
}

impl Failure {
    /// How the call of the model ended.
    pub(super) fn call_state(&self) -> CallState {
        match self {
            // The provider has done its part, and counted.
            Self::Empty => CallState::Succeeded,
            Self::Provider(_) | Self::AllDown | Self::NotStarted => CallState::Failed,
            Self::Deadline | Self::TooLarge | Self::Stopped => CallState::Cancelled,
            Self::Stopping | Self::Closed(_) => CallState::Interrupted,
        }
    }

    /// Whether no model was there to answer, rather than something being wrong with the question.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Provider(error) => another_may_help(error),
            Self::AllDown => true,
            _ => false,
        }
    }
}

/// The end of an answer.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) message_id: MessageId,
    pub(super) content: String,
    /// The lengths of its deltas; see [`super::streams`].
    pub(super) delta_lengths: Vec<u8>,
    pub(super) state: MessageState,
    pub(super) error_code: Option<&'static str>,
    /// What is told with the code.
    pub(super) error_message: Option<String>,
    pub(super) usage: Option<Usage>,
    pub(super) latency: Duration,
    /// Whether any part of it may have been written down before.
    pub(super) parted: bool,
    /// Whether it is the tenant's own message, for no model answered.
    pub(super) degraded: bool,
    /// The call that gave it, which is settled in the same statement.
    pub(super) call: Option<EndedCall>,
}

/// What arrived of an answer.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) content: String,
    pub(super) delta_lengths: Vec<u8>,
    /// Whether any part of it may have been written down.
    pub(super) parted: bool,
}

impl Finished {
    /// Judges what arrived and how it ended. What the provider reported counts as it is, zero included; without a
    /// report the tokens are estimated, as long as anything arrived or the user ended it. `error_message` is what is
    /// told if it failed.
    pub(super) fn new(
        message_id: MessageId,
        arrived: Arrived,
        reported: Option<providers::Usage>,
        failure: Option<&Failure>,
        error_message: &str,
        prompt_length: usize,
        latency: Duration,
    ) -> Self {
        let Arrived { content, delta_lengths, parted } = arrived;
        let stopped = matches!(failure, Some(Failure::Stopped));
        let state = match failure {
            None => MessageState::Complete,
            Some(Failure::Stopped) => MessageState::Stopped,
            Some(_) if content.is_empty() => MessageState::Failed,
            Some(_) => MessageState::Interrupted,
        };
        let usage = match reported {
            Some(usage) => Some(convert(usage)),
            None if content.is_empty() && !stopped => None,
            None => Some(estimate(prompt_length, content.chars().count())),
        };
        let failure = failure.filter(|_| !stopped);
        Self {
            message_id,
            content,
            delta_lengths,
            state,
            error_code: failure.map(Failure::code),
            error_message: failure.map(|_| error_message.to_owned()),
            usage,
            latency,
            parted,
            degraded: false,
            call: None,
        }
    }

    /// It could not be stored while somebody waited: that is what its reader was told. What arrived is kept.
    pub(super) fn fail(&mut self, code: &'static str, error_message: &str) {
        self.state = if self.content.is_empty() { MessageState::Failed } else { MessageState::Interrupted };
        self.error_code = Some(code);
        self.error_message = Some(error_message.to_owned());
    }

    /// The tenant's own message in the place of an answer that no model gave. It is told as one delta.
    pub(super) fn degrade(&mut self, (message, delta_lengths): (String, Vec<u8>)) {
        self.content = message;
        self.delta_lengths = delta_lengths;
        self.error_message = None;
        self.state = MessageState::Complete;
        self.usage = Some(Usage { input_tokens: 0, output_tokens: 0, reported: false });
        self.degraded = true;
    }
}

fn convert(usage: providers::Usage) -> Usage {
    let tokens = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    Usage {
        input_tokens: tokens(usage.input_tokens),
        output_tokens: tokens(usage.output_tokens),
        reported: usage.reported,
    }
}

/// About four characters make a token; some make one at least.
fn estimate(prompt: usize, answer: usize) -> Usage {
    let tokens = |characters: usize| u32::try_from(characters / 4).unwrap_or(u32::MAX).max(u32::from(characters > 0));
    Usage { input_tokens: tokens(prompt), output_tokens: tokens(answer), reported: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(content: &str, reported: Option<providers::Usage>, failure: Option<&Failure>) -> Finished {
        let arrived = Arrived { content: content.to_owned(), ..Arrived::default() };
        Finished::new(MessageId::new(), arrived, reported, failure, "Sorry.", 10, Duration::ZERO)
    }

    #[test]
    fn what_is_reported_counts_and_zero_is_a_number() {
        let zero = providers::Usage { input_tokens: 0, output_tokens: 0, cached_input_tokens: 0, reported: true };
        let answer = finished("Hello", Some(zero), None);
        assert_eq!(answer.usage, Some(Usage { input_tokens: 0, output_tokens: 0, reported: true }));
        assert_eq!((answer.state, answer.error_code), (MessageState::Complete, None));
        let huge = providers::Usage { input_tokens: u64::MAX, ..zero };
        assert_eq!(finished("x", Some(huge), None).usage.unwrap().input_tokens, u32::MAX);
    }

    #[test]
    fn without_a_report_tokens_are_estimated_and_marked() {
        let usage = finished("Zwölf Zeichen", None, None).usage;
        assert_eq!(usage, Some(Usage { input_tokens: 2, output_tokens: 3, reported: false }));
        assert_eq!(finished("x", None, None).usage.unwrap().output_tokens, 1);
    }

    #[test]
    fn a_degraded_answer_is_whole_and_says_what_was_wrong() {
        let down = Failure::Provider(ProviderError::Unavailable("down".into()));
        let mut answer = finished("", None, Some(&down));
        answer.degrade(("Call us.".to_owned(), vec![8]));
        assert_eq!((answer.state, answer.error_code), (MessageState::Complete, Some("provider_unavailable")));
        assert!(answer.degraded && answer.content == "Call us." && down.is_outage());
        assert!(!Failure::Provider(ProviderError::BadRequest("no".into())).is_outage());
    }

    #[test]
    fn what_arrived_is_kept_and_marked() {
        let lost = Failure::Provider(ProviderError::Interrupted("cut".into()));
        let some = finished("Hel", None, Some(&lost));
        assert_eq!((some.state, some.error_code), (MessageState::Interrupted, Some("provider_interrupted")));
        assert!(some.usage.is_some_and(|usage| !usage.reported));
        assert_eq!(some.error_message.as_deref(), Some("Sorry."));
        let none = finished("", None, Some(&Failure::Deadline));
        assert_eq!((none.state, none.error_code, none.usage), (MessageState::Failed, Some("answer_timeout"), None));
    }

    #[test]
    fn a_stopped_answer_has_not_failed_and_has_a_price() {
        for (content, tokens) in [("Hello you", 2), ("", 0)] {
            let stopped = finished(content, None, Some(&Failure::Stopped));
            assert_eq!((stopped.state, stopped.error_code, stopped.error_message), (MessageState::Stopped, None, None));
            assert_eq!(stopped.usage, Some(Usage { input_tokens: 2, output_tokens: tokens, reported: false }));
        }
    }
}
