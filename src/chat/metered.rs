//! Calls for programs: nothing is kept of them but their rows in the ledger.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{self, BoxFuture, Join};
use futures::{FutureExt as _, Stream, StreamExt as _};

use super::candidates::Candidate;
use super::model_call::{self, CallError, Counted, ModelCall, Purpose};
use super::room::Held;
use super::under_way::UnderWay;
use super::{Chat, ChatError};
use crate::content_filter::{self, ContentFilter, Masking};
use crate::ids::{ApiKeyId, ModelCallId, UserId};
use crate::limits::Permit;
use crate::metering::{CallKind, OpenCall, Outcome, Settling};
use crate::providers::{ChatEvent, ChatRequest, EmbeddingRequest, Embeddings, Usage};
use crate::tenant_db::TenantDb;

/// The longest an answer may take.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// Calls that are made at once for embeddings that one call is too few for.
const AT_ONCE: usize = 4;

/// The name of a model and who offers it, in order.
type Chosen = (Arc<str>, Arc<[Candidate]>);

/// For whom and what a call is made.
#[derive(Debug)]
pub struct CallContext {
    /// The tenant's database, proved by a credential.
    pub db: TenantDb,
    /// The user it is made for.
    pub user_id: Option<UserId>,
    /// The API key it is made with.
    pub api_key_id: Option<ApiKeyId>,
    /// What kind of call it is.
    pub kind: CallKind,
    /// The name of the model that is asked for.
    pub model: String,
    /// What it has reserved of the tenant's quota: used if anything is delivered, else given back.
    pub permit: Permit,
    /// What its request holds of the room for what is large.
    pub room: Option<Arc<Held>>,
}

/// An answer as it comes. The last item is [`ChatEvent::Finished`], always with a usage, or an error; the call is
/// settled before, unless its database is away. Dropped earlier, the call ends upstream and is settled as cancelled.
pub struct MeteredStream {
    /// The call that answers.
    pub call_id: ModelCallId,
    /// The name of the model that was asked for.
    pub model: Arc<str>,
    /// The provider's own name of the model that answers.
    pub upstream_model: Arc<str>,
    /// The AI key that answers.
    pub configuration: Arc<str>,
    // The call first: dropped, it ends before its mark is taken away.
    call: ModelCall,
    first: Option<ChatEvent>,
    stop: BoxFuture<'static, CallError>,
    phase: Phase,
    masked: Option<Masked>,
    _mark: UnderWay,
}

enum Phase {
    Speaking,
    Settling(Join<Settling, Counted>, Result<ChatEvent, CallError>),
    Over,
}

/// What is told of an answer, in its order, on its way through the tenant's filter. Text and thinking are texts of their own,
/// and so is what comes when a model goes on with one of them after something else: what the filter holds of one text is
/// told before the next begins, for whoever reads is to be told everything in its order. What a program's tools are called with is not
/// for reading, and goes through unaltered.
struct Masked {
    filter: Arc<ContentFilter>,
    /// The text that has begun, and of what kind it is.
    begun: Option<(Kind, Masking)>,
    /// What of a long event is still to be masked: one piece of it each time that the stream is polled.
    pieces: VecDeque<(Kind, String)>,
    /// Whether the thread was given back since the last piece.
    yielded: bool,
    /// What may be passed on.
    ready: VecDeque<ChatEvent>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Reasoning,
}

impl Kind {
    fn event(self, text: String) -> ChatEvent {
        match self {
            Self::Text => ChatEvent::Delta(text),
            Self::Reasoning => ChatEvent::Reasoning(text),
        }
    }
}

impl Masked {
    fn new(filter: Arc<ContentFilter>) -> Self {
        Self { filter, begun: None, pieces: VecDeque::new(), yielded: true, ready: VecDeque::new() }
    }

    /// Takes the next event, when all pieces of the one before it are masked.
    fn take(&mut self, event: ChatEvent) {
        let (kind, text) = match event {
            ChatEvent::Delta(text) => (Kind::Text, text),
            ChatEvent::Reasoning(text) => (Kind::Reasoning, text),
            ChatEvent::ToolCall(_) | ChatEvent::Finished { .. } => {
                self.end_text();
                return self.ready.push_back(event);
            }
        };
        self.yielded = true;
        self.pieces.extend(content_filter::pieces(&text).map(|piece| (kind, piece.to_owned())));
    }

    /// Masks the next piece, if there is one.
    fn mask_piece(&mut self) {
        let Some((kind, piece)) = self.pieces.pop_front() else { return };
        if self.begun.as_ref().is_some_and(|(begun, _)| *begun != kind) {
            self.end_text();
        }
        let filter = &self.filter;
        let (_, masking) = self.begun.get_or_insert_with(|| (kind, Masking::new(Arc::clone(filter))));
        let masked = masking.push(&piece);
        if !masked.is_empty() {
            self.ready.push_back(kind.event(masked));
        }
    }

    fn end_text(&mut self) {
        if let Some((kind, mut masking)) = self.begun.take() {
            let rest = masking.finish();
            if !rest.is_empty() {
                self.ready.push_back(kind.event(rest));
            }
        }
    }

    /// The answer is over, well or not. What is not masked by now was not to be told any more.
    fn finish(&mut self) {
        self.pieces.clear();
        self.end_text();
    }
}

impl fmt::Debug for MeteredStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeteredStream").field("call_id", &self.call_id).finish_non_exhaustive()
    }
}

/// The vectors of a call, always with a usage.
#[derive(Debug)]
pub struct MeteredEmbeddings {
    /// The call.
    pub call_id: ModelCallId,
    /// The name of the model that was asked for.
    pub model: Arc<str>,
    /// The vectors.
    pub embeddings: Embeddings,
}

impl Chat {
    /// Asks a model. Resolves with the first thing it says: until then, if one AI key fails, the next one is asked.
    /// `request.model` is set for each. May be given up anywhere; the call is settled as cancelled then.
    ///
    /// # Errors
    /// See [`ChatError`]; nothing was delivered then.
    pub async fn complete(&self, context: CallContext, request: ChatRequest) -> Result<MeteredStream, ChatError> {
        let prompt_characters = model_call::length(&request);
        let configured = self.context(&context.db).await?;
        let chosen = configured.choose(Some(&context.model))?;
        let masked = configured.filter.clone().map(Masked::new);
        drop(configured);
        let mut call = self.metered(context, chosen, prompt_characters, Some(request)).await?;
        let (mark, mut stop) = self.watch(&call);
        let first = tokio::select! {
            biased;
            error = &mut stop => Err(error),
            first = call.next() => first,
        };
        let first = match first {
            Ok(first) => first,
            Err(error) => return Err(self.settle_failed(call, error).await),
        };
        let target = call.target();
        Ok(MeteredStream {
            call_id: call.current().map_or_else(ModelCallId::new, OpenCall::id),
            model: Arc::clone(call.model()),
            upstream_model: Arc::clone(&target.upstream_model),
            configuration: Arc::clone(&target.configuration),
            call,
            first: Some(first),
            stop,
            phase: Phase::Speaking,
            masked,
            _mark: mark,
        })
    }

    /// Turns texts into vectors. If one AI key fails, the next one is asked. More texts than a provider takes at once are
    /// several calls, each with its row; those behind the first are made with its key, for vectors of different models do
    /// not go together. If one of them fails, the request has failed: those that were answered keep what they used in their
    /// rows, and those under way are given up.
    ///
    /// # Errors
    /// See [`ChatError`].
    pub async fn embed(
        &self,
        context: CallContext,
        mut request: EmbeddingRequest,
    ) -> Result<MeteredEmbeddings, ChatError> {
        let chosen = self.context(&context.db).await?.choose(Some(&context.model))?;
        let most_texts = |one: &Candidate| one.provider.most_texts(&one.target.upstream_model).max(1);
        // So few that whoever answers takes them.
        let first = chosen.1.iter().map(most_texts).min().unwrap_or(usize::MAX);
        let rest = request.input.split_off(first.min(request.input.len()));
        let EmbeddingRequest { dimensions, .. } = request;
        let (db, user_id, api_key_id, kind) = (context.db.clone(), context.user_id, context.api_key_id, context.kind);
        let room = context.room.clone();
        let (mut made, answered) = self.embed_at_once(context, chosen, request).await?;
        if rest.is_empty() {
            return Ok(made);
        }
        let parts: Vec<Vec<String>> = rest.chunks(most_texts(&answered)).map(<[String]>::to_vec).collect();
        let candidates: Arc<[Candidate]> = [answered].into();
        let calls = parts.into_iter().map(|input| {
            let chosen = (Arc::clone(&made.model), Arc::clone(&candidates));
            let request = EmbeddingRequest { input, dimensions, ..EmbeddingRequest::default() };
            let (db, model) = (db.clone(), made.model.to_string());
            // The request was counted with its first call.
            let (permit, room) = (Permit::default(), room.clone());
            let context = CallContext { db, user_id, api_key_id, kind, model, permit, room };
            self.embed_at_once(context, chosen, request)
        });
        let calls: Vec<_> = calls.collect();
        let mut calls = futures::stream::iter(calls).buffered(AT_ONCE);
        while let Some(more) = calls.next().await {
            made.embeddings.append(more?.0.embeddings).map_err(CallError::from)?;
        }
        Ok(made)
    }

    /// The same for so many texts that one call will do. Also returns who answered.
    async fn embed_at_once(
        &self,
        context: CallContext,
        chosen: Chosen,
        request: EmbeddingRequest,
    ) -> Result<(MeteredEmbeddings, Candidate), ChatError> {
        let prompt_characters = request.input.iter().map(|text| text.chars().count()).sum();
        let mut call = self.metered(context, chosen, prompt_characters, None).await?;
        let (_mark, mut stop) = self.watch(&call);
        let embedding = async {
            loop {
                let model = call.target().upstream_model.to_string();
                let provider = Arc::clone(&call.candidate().provider);
                call.note_asked();
                match provider.embed(EmbeddingRequest { model, ..request.clone() }).await {
                    Ok(embeddings) => return Ok(embeddings),
                    Err(error) => call.fall_back(error).await?,
                }
            }
        };
        let embedded = tokio::select! {
            biased;
            error = &mut stop => Err(error),
            embedded = embedding => embedded,
        };
        let mut embeddings = match embedded {
            Ok(embeddings) => embeddings,
            Err(error) => return Err(self.settle_failed(call, error).await),
        };
        call.note_works();
        let answered = call.candidate().clone();
        let (model, call_id) = (Arc::clone(call.model()), call.current().map_or_else(ModelCallId::new, OpenCall::id));
        if let Some(ended) = call.end(&Outcome::succeeded(embeddings.usage)) {
            embeddings.usage = ended.end().usage;
            future::join(ended.settle(), call.counted()).await;
        }
        Ok((MeteredEmbeddings { call_id, model, embeddings }, answered))
    }

    /// A call whose first row is written.
    async fn metered(
        &self,
        context: CallContext,
        (model, candidates): Chosen,
        prompt_characters: usize,
        request: Option<ChatRequest>,
    ) -> Result<ModelCall, ChatError> {
        let CallContext { db, user_id, api_key_id, kind, permit, room, .. } = context;
        self.settle_abandoned_soon(&db);
        let purpose = Purpose { kind, user_id, api_key_id, message_id: None, model, prompt_characters };
        let mut call =
            ModelCall::new(&self.ledger, &db, purpose, candidates, request)?.with_permit(permit).with_room(room);
        call.begin().await?;
        Ok(call)
    }

    /// Marks a call as under way, and says when and why it has to end.
    fn watch(&self, call: &ModelCall) -> (UnderWay, BoxFuture<'static, CallError>) {
        let record = call.db().record();
        let id = call.current().map_or_else(ModelCallId::new, OpenCall::id);
        let (mark, interruption) = self.under_way.enter_call(id, record.id, record.revision());
        let give_up = self.give_up.clone();
        let stop = async move {
            tokio::select! {
                code = interruption.closed() => CallError::Closed(code),
                () = give_up.cancelled() => CallError::Stopping,
                () = tokio::time::sleep(DEADLINE) => CallError::Deadline,
            }
        };
        (mark, stop.boxed())
    }

    async fn settle_failed(&self, mut call: ModelCall, error: CallError) -> ChatError {
        if let Some(ended) = call.end(&error.outcome()) {
            ended.settle().await;
        }
        error.into()
    }
}

impl MeteredStream {
    /// Settles the call; what is told last waits for that.
    fn end(&mut self, outcome: &Outcome, last: impl FnOnce(Option<Usage>) -> Result<ChatEvent, CallError>) {
        if let Some(masked) = &mut self.masked {
            masked.finish();
        }
        self.phase = match self.call.end(outcome) {
            Some(ended) => {
                let last = last(ended.end().usage);
                Phase::Settling(future::join(ended.settle(), self.call.counted()), last)
            }
            None => Phase::Over,
        };
    }

    fn fail(&mut self, error: CallError) {
        let outcome = error.outcome();
        self.end(&outcome, |_| Err(error));
    }
}

impl Stream for MeteredStream {
    type Item = Result<ChatEvent, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.masked.as_mut().and_then(|masked| masked.ready.pop_front()) {
                return Poll::Ready(Some(Ok(event)));
            }
            match &mut this.phase {
                Phase::Over => return Poll::Ready(None),
                Phase::Settling(settling, _) => {
                    std::task::ready!(settling.poll_unpin(context));
                    return match std::mem::replace(&mut this.phase, Phase::Over) {
                        Phase::Settling(_, last) => Poll::Ready(Some(last)),
                        Phase::Speaking | Phase::Over => Poll::Ready(None),
                    };
                }
                Phase::Speaking => {}
            }
            if let Poll::Ready(error) = this.stop.poll_unpin(context) {
                this.fail(error);
                continue;
            }
            if let Some(masked) = this.masked.as_mut().filter(|masked| !masked.pieces.is_empty()) {
                if !std::mem::replace(&mut masked.yielded, false) {
                    masked.yielded = true;
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                masked.mask_piece();
                continue;
            }
            let event = match this.first.take() {
                // It was noted when it came.
                Some(first) => Ok(first),
                None => {
                    let next = match this.call.stream() {
                        Some(stream) => std::task::ready!(stream.poll_next_unpin(context)),
                        None => None,
                    };
                    let event = next.unwrap_or_else(model_call::ended_early);
                    if let Ok(event) = &event {
                        this.call.note(event);
                    }
                    event
                }
            };
            match event {
                Ok(ChatEvent::Finished { usage, finish_reason }) => {
                    this.end(&Outcome::succeeded(usage), |usage| Ok(ChatEvent::Finished { usage, finish_reason }));
                }
                Ok(event) => match &mut this.masked {
                    None => return Poll::Ready(Some(Ok(event))),
                    Some(masked) => masked.take(event),
                },
                Err(error) => this.fail(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content_filter::Rules;
    use crate::providers::ToolCallDelta;

    fn masked() -> Masked {
        let rules = Rules { card_numbers: true, email_addresses: true, ..Rules::default() };
        Masked::new(ContentFilter::new(rules).unwrap().unwrap())
    }

    /// What is told of these events, each taken when the one before it is masked.
    fn told(events: impl IntoIterator<Item = ChatEvent>) -> Vec<ChatEvent> {
        let mut masked = masked();
        for event in events {
            masked.take(event);
            while !masked.pieces.is_empty() {
                masked.mask_piece();
            }
        }
        masked.finish();
        masked.ready.into()
    }

    #[test]
    fn all_of_one_text_is_told_before_the_next_begins() {
        let (text, thought) =
            (|text: &str| ChatEvent::Delta(text.into()), |text: &str| ChatEvent::Reasoning(text.into()));
        let call = || {
            let (id, name) = (Some("1".to_owned()), Some("look".to_owned()));
            ChatEvent::ToolCall(ToolCallDelta { index: 0, id, name, arguments: "{}".to_owned() })
        };
        let events = [
            thought("I think of 4111 1111 1111 1111 and 2"),
            thought(""),
            text("Let me see whoever"),
            call(),
            text("Write to anna@exam"),
            text("ple.com"),
        ];
        let told = told(events);
        // Put together as a reader sees it.
        let mut seen: Vec<(&str, String)> = Vec::new();
        for event in &told {
            let (kind, said) = match event {
                ChatEvent::Delta(said) => ("text", said.as_str()),
                ChatEvent::Reasoning(said) => ("thought", said.as_str()),
                ChatEvent::ToolCall(call) => ("call", call.arguments.as_str()),
                ChatEvent::Finished { .. } => ("end", ""),
            };
            match seen.last_mut() {
                Some((last, before)) if *last == kind => before.push_str(said),
                _ => seen.push((kind, said.to_owned())),
            }
        }
        let expected = [
            ("thought", "I think of [card number] and 2"),
            ("text", "Let me see whoever"),
            ("call", "{}"),
            ("text", "Write to [e-mail address]"),
        ];
        assert_eq!(seen, expected.map(|(kind, said)| (kind, said.to_owned())));
    }

    #[test]
    fn a_long_event_is_masked_in_pieces() {
        let mut masked = masked();
        let long = "Write to anna@example.com. ".repeat(10_000);
        masked.take(ChatEvent::Delta(long.clone()));
        assert!(masked.pieces.len() > 100);
        let before = masked.pieces.len();
        masked.mask_piece();
        assert_eq!((masked.pieces.len(), masked.ready.len()), (before - 1, 1));
        let told = told([ChatEvent::Delta(long)]).into_iter().map(|event| match event {
            ChatEvent::Delta(text) => text,
            other => panic!("{other:?}"),
        });
        assert_eq!(told.collect::<String>(), "Write to [e-mail address]. ".repeat(10_000));
        // Given up in the middle, nothing more is told than what is masked.
        masked.finish();
        assert!(masked.pieces.is_empty());
    }
}
