//! One call of a model: its row in the ledger, its provider, and the next candidate while nothing was delivered.
//!
//! A row is there before a provider is asked, one for each attempt. Another candidate is asked only as long as nothing
//! of an answer was passed on, and only if the failure is one that another provider may not have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, OptionFuture};
use futures::{FutureExt as _, StreamExt as _};
use thiserror::Error;

use super::breaker::Leave;
use super::candidates::Candidate;
use super::room::Held;
use crate::ids::{ApiKeyId, MessageId, UserId};
use crate::limits::Permit;
use crate::metering::{BilledTo, CallKind, CallStart, CallState, EndedCall, Ledger, OpenCall, Outcome, Target};
use crate::providers::{ChatEvent, ChatRequest, ChatStream, ProviderError};
use crate::telemetry::causes;
use crate::tenant_db::{TenantDb, TenantDbError};

/// Parameters beyond the usual ones that a tenant may send to a model that is lent to it. Others could choose another
/// model, a dearer service, or an address that the owner's key is sent to.
const LENT_PARAMETERS: [&str; 9] = [
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "reasoning_effort",
    "verbosity",
    "top_k",
    "min_p",
    "max_completion_tokens",
];

/// Why a call was not made, or has no whole answer.
#[derive(Debug, Error)]
pub enum CallError {
    /// The provider failed; of several that were asked, the last one.
    #[error("the model provider failed")]
    Provider(#[from] ProviderError),
    /// Every key that offers the model has failed again and again, and is left alone for a moment.
    #[error("every AI key that offers the model is left alone for a moment")]
    AllDown {
        /// When one is tried again.
        retry_after: Duration,
    },
    /// The tenant went out of service.
    #[error("the tenant went out of service")]
    Closed(&'static str),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The answer takes longer than an answer may.
    #[error("the answer took too long")]
    Deadline,
}

impl CallError {
    /// A stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Provider(error) => error.code(),
            Self::AllDown { .. } => "models_unavailable",
            Self::Closed(code) => code,
            Self::Stopping => "server_stopped",
            Self::Deadline => "answer_timeout",
        }
    }

    /// What the ledger says of a call that ends so.
    pub(super) fn outcome(&self) -> Outcome {
        let state = match self {
            Self::Provider(_) | Self::AllDown { .. } => CallState::Failed,
            Self::Closed(_) | Self::Stopping => CallState::Interrupted,
            Self::Deadline => CallState::Cancelled,
        };
        Outcome::ended(state, self.code())
    }
}

/// For whom a call is made.
#[derive(Debug, Clone)]
pub(super) struct Purpose {
    pub(super) kind: CallKind,
    pub(super) user_id: Option<UserId>,
    pub(super) api_key_id: Option<ApiKeyId>,
    pub(super) message_id: Option<MessageId>,
    /// The name of the model that was asked for.
    pub(super) model: Arc<str>,
    /// The length of the prompt in characters.
    pub(super) prompt_characters: usize,
}

/// A call, from the choice of its first candidate on. Dropped, it ends upstream, and is settled as cancelled.
pub(super) struct ModelCall {
    ledger: Ledger,
    db: TenantDb,
    purpose: Purpose,
    candidates: Arc<[Candidate]>,
    /// The candidate that is called, and how many have been considered.
    candidate: Candidate,
    considered: usize,
    /// Says how the candidate did; none once that is known.
    leave: Option<Leave>,
    request: Option<ChatRequest>,
    open: Option<OpenCall>,
    stream: Option<ChatStream>,
    delivered: bool,
    /// What it has reserved of the tenant's quota; none once that is settled.
    permit: Option<Permit>,
    /// Ends when it is on record that it counts.
    counted: Counted,
    /// What the request holds of the room for what is large, as long as it is kept.
    room: Option<Arc<Held>>,
}

/// Ends when it is on record that a call counts, at once if it does not.
pub(super) type Counted = OptionFuture<BoxFuture<'static, ()>>;

impl ModelCall {
    /// Chooses the first candidate that is not left alone.
    ///
    /// # Errors
    /// [`CallError::AllDown`] if all of them are; no row is written then.
    pub(super) fn new(
        ledger: &Ledger,
        db: &TenantDb,
        purpose: Purpose,
        candidates: Arc<[Candidate]>,
        request: Option<ChatRequest>,
    ) -> Result<Self, CallError> {
        let (index, leave) = admitted(&candidates, 0).map_err(|retry_after| CallError::AllDown { retry_after })?;
        let Some(candidate) = candidates.get(index).cloned() else {
            return Err(CallError::AllDown { retry_after: Duration::ZERO });
        };
        Ok(Self {
            ledger: ledger.clone(),
            db: db.clone(),
            purpose,
            candidates,
            candidate,
            considered: index + 1,
            leave: Some(leave),
            request,
            open: None,
            stream: None,
            delivered: false,
            permit: None,
            counted: None.into(),
            room: None,
        })
    }

    /// With what is reserved of the tenant's quota for it: used if anything is delivered, else given back.
    #[must_use]
    pub(super) fn with_permit(mut self, permit: Permit) -> Self {
        self.permit = Some(permit);
        self
    }

    /// With what the request holds of the room for what is large.
    #[must_use]
    pub(super) fn with_room(mut self, room: Option<Arc<Held>>) -> Self {
        self.room = room;
        self
    }

    fn start(&self) -> CallStart {
        let Purpose { kind, user_id, api_key_id, message_id, ref model, prompt_characters } = self.purpose;
        let (model, target) = (Arc::clone(model), Arc::clone(&self.candidate.target));
        CallStart { kind, user_id, api_key_id, message_id, model, target, prompt_characters }
    }

    /// Writes the row of the first attempt.
    ///
    /// # Errors
    /// If the tenant's database does not take it.
    pub(super) async fn begin(&mut self) -> Result<(), TenantDbError> {
        self.open = Some(self.ledger.begin(&self.db, self.start()).await?);
        Ok(())
    }

    /// The first attempt, for whoever writes its row in a statement of their own: [`Self::note_written`] says that it is
    /// there.
    pub(super) fn open(&mut self) -> &OpenCall {
        let start = self.start();
        self.open.get_or_insert_with(|| self.ledger.open(&self.db, start))
    }

    /// The provider is about to be asked.
    pub(super) fn note_asked(&mut self) {
        if let Some(open) = &mut self.open {
            open.note_asked();
        }
    }

    pub(super) fn note_written(&mut self) {
        if let Some(open) = &mut self.open {
            open.note_written();
        }
    }

    /// The tenant's database.
    pub(super) fn db(&self) -> &TenantDb {
        &self.db
    }

    /// The name of the model that was asked for.
    pub(super) fn model(&self) -> &Arc<str> {
        &self.purpose.model
    }

    /// What is called just now.
    pub(super) fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    pub(super) fn target(&self) -> &Arc<Target> {
        &self.candidate.target
    }

    /// The attempt that is under way.
    pub(super) fn current(&self) -> Option<&OpenCall> {
        self.open.as_ref()
    }

    /// What the model does next. The last is [`ChatEvent::Finished`] or an error. Nothing is lost if this is given up;
    /// but given up before the first event, it is not asked again.
    ///
    /// # Errors
    /// [`CallError::Provider`]. If nothing was delivered, no candidate is left.
    pub(super) async fn next(&mut self) -> Result<ChatEvent, CallError> {
        loop {
            let event = match &mut self.stream {
                Some(stream) => stream.next().await.unwrap_or_else(ended_early),
                None => match self.connect().await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match event {
                Ok(event) => {
                    self.note(&event);
                    return Ok(event);
                }
                Err(error) => {
                    self.stream = None;
                    self.fall_back(error).await?;
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<ChatStream, ProviderError> {
        // Kept only as long as another candidate may need it.
        let request = if self.considered < self.candidates.len() { self.request.clone() } else { self.request.take() };
        let mut request = request.ok_or_else(|| ProviderError::Unavailable("the request was sent before".into()))?;
        request.model.clear();
        request.model.push_str(&self.candidate.target.upstream_model);
        if self.candidate.target.billed_to == BilledTo::Shared {
            request.extra.retain(|name, _| LENT_PARAMETERS.contains(&name.as_str()));
        }
        self.note_asked();
        self.candidate.provider.chat(request).await
    }

    /// Polls the stream once it has begun: what comes after the first event needs no candidates.
    pub(super) fn stream(&mut self) -> Option<&mut ChatStream> {
        self.stream.as_mut()
    }

    /// Notes what is passed on.
    pub(super) fn note(&mut self, event: &ChatEvent) {
        if let Some(leave) = self.leave.take() {
            leave.works();
        }
        let characters = match event {
            ChatEvent::Delta(text) | ChatEvent::Reasoning(text) => text.chars().count(),
            ChatEvent::ToolCall(delta) => delta.arguments.len() + delta.name.as_ref().map_or(0, String::len),
            ChatEvent::Finished { .. } => return,
        };
        self.delivered = true;
        // Nobody else is asked from here on.
        self.forget_request();
        if let Some(open) = &mut self.open {
            open.delivered(characters);
        }
    }

    /// The request is not needed any more, nor the room for it.
    fn forget_request(&mut self) {
        self.request = None;
        self.room = None;
    }

    /// The call works, without a stream of events.
    pub(super) fn note_works(&mut self) {
        if let Some(leave) = self.leave.take() {
            leave.works();
        }
    }

    /// Goes on to the next candidate, if there is one and it may do better.
    ///
    /// # Errors
    /// The failure, if it is the last word.
    pub(super) async fn fall_back(&mut self, error: ProviderError) -> Result<(), CallError> {
        if let Some(leave) = self.leave.take() {
            leave.fails(&error, Instant::now());
        }
        if self.delivered || !another_may_help(&error) {
            return Err(error.into());
        }
        let Ok((index, leave)) = admitted(&self.candidates, self.considered) else { return Err(error.into()) };
        let (Some(candidate), Some(open)) = (self.candidates.get(index).cloned(), self.open.take()) else {
            return Err(error.into());
        };
        tracing::warn!(
            call_id = %open.id(), code = error.code(), causes = causes(&error), ai_key = %self.candidate.target.configuration,
            next = %candidate.target.configuration, "a model call failed; the next AI key is tried"
        );
        self.candidate = candidate;
        self.considered = index + 1;
        let outcome = Outcome::ended(CallState::Failed, error.code());
        match self.ledger.replace(open, &outcome, self.start()).await {
            Ok(open) => {
                self.open = Some(open);
                self.leave = Some(leave);
                Ok(())
            }
            Err(refused) => {
                // Without a row nobody is called.
                tracing::warn!(causes = causes(&refused), "begin the call of the next AI key");
                Err(error.into())
            }
        }
    }

    /// Ends the attempt that is under way, for whoever stores its end together with something else.
    pub(super) fn end(&mut self, outcome: &Outcome) -> Option<EndedCall> {
        self.stream = None;
        self.forget_request();
        // An answer without a word counts where it was told as one.
        let counts = self.delivered || (outcome.state == CallState::Succeeded && outcome.error_code.is_none());
        // A permit that is dropped is given back.
        self.counted = self.permit.take().filter(|_| counts).map(|permit| permit.settle().boxed()).into();
        self.open.take().map(|open| open.end(outcome))
    }

    /// For whoever tells the end: it is told once this is over, so that nothing that was told is missing in the quota.
    pub(super) fn counted(&mut self) -> Counted {
        std::mem::replace(&mut self.counted, None.into())
    }
}

impl Drop for ModelCall {
    fn drop(&mut self) {
        if self.delivered
            && let Some(permit) = self.permit.take()
        {
            // It is settled, whether or not anybody waits for that.
            drop(permit.settle());
        }
    }
}

/// The first candidate from an index on that is not left alone, or when the first of them is tried again.
fn admitted(candidates: &[Candidate], from: usize) -> Result<(usize, Leave), Duration> {
    let now = Instant::now();
    let mut soonest = None;
    for (index, candidate) in candidates.iter().enumerate().skip(from) {
        match candidate.breaker.admit(now) {
            Ok(leave) => return Ok((index, leave)),
            Err(wait) => soonest = Some(soonest.map_or(wait, |soonest: Duration| soonest.min(wait))),
        }
    }
    Err(soonest.unwrap_or_default())
}

/// Whether another provider may do what this one did not. What is wrong with the request stays wrong.
pub(super) fn another_may_help(error: &ProviderError) -> bool {
    !matches!(error, ProviderError::BadRequest(_) | ProviderError::Unsupported(_) | ProviderError::RefusedAddress(_))
}

/// A provider ends its stream with an event of its own; one that does not has broken off.
pub(super) fn ended_early() -> Result<ChatEvent, ProviderError> {
    Err(ProviderError::Interrupted("the stream ended early".into()))
}

/// The number of characters of a request, for estimating its tokens.
pub(super) fn length(request: &ChatRequest) -> usize {
    let tools = request.tools.iter().filter_map(|tool| tool.description.as_ref()).map(|text| text.chars().count());
    let calls = request.messages.iter().flat_map(|message| &message.tool_calls).map(|call| call.arguments.len());
    super::prompt::length(&request.messages) + tools.sum::<usize>() + calls.sum::<usize>()
}
