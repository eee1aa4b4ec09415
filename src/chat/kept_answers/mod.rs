//! Answers that are given again without asking a model, where a tenant wants that.
//!
//! Two questions are given the same answer if everything that shapes it is the same: the version of the settings, the AI
//! keys and models lent, which of them would answer first, the assistant, and the whole prompt as that would be told it, instructions,
//! history and question. All of it is hashed into the key under which an answer is kept, and so is who asks, unless the
//! tenant's settings say that its answers are everybody's. So nothing has to be emptied when something changes: what was
//! kept before is found no more. Only answers that are whole are kept, as they were told: same words, same pieces.
//!
//! Whoever asks may want a new answer all the same; that takes the place of the one that is kept.
//!
//! An answer that is given again is a message like any other, stored with its question in one statement, with a row in the
//! ledger that says that nobody was asked and nothing was used.

pub mod tenant_store;

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use super::candidates::Candidate;
use super::context::ChatContext;
use super::duplicates::Mark;
use super::fingerprint::Fingerprint;
use super::pipeline::{NotHere, refused};
use super::streams::AnswerEnd;
use super::streams::event_log::{Deltas, EventLog, LastWord};
use super::turn::{Begin, Finished};
use super::under_way::Interruption;
use super::{Chat, ChatError};
use crate::access::TenantCaller;
use crate::answer_cache::{AnswerKey, KeptAnswer};
use crate::api::answer_cache::AnswerScope;
use crate::api::tenant::{MessageState, Usage};
use crate::limits::Permit;
use crate::metering::Target;
use crate::providers::{ChatMessage, ChatRequest, ChatRole, Content, Image, ImageSource, Part};
use crate::tenant_db::{Client, TenantRecord};

/// What an answer costs that nobody was asked for. That is known, not estimated.
pub(super) const NOTHING: Usage = Usage { input_tokens: 0, output_tokens: 0, reported: true };

/// Under which key the answer to a question is kept, and for how long.
pub(super) struct Keeping {
    pub(super) key: AnswerKey,
    lasts: Duration,
    /// Who would be asked first.
    target: Arc<Target>,
}

impl Keeping {
    /// None if the answer is not to be kept.
    pub(super) async fn new(
        context: &ChatContext,
        caller: &TenantCaller,
        assistant: Option<&str>,
        candidates: &[Candidate],
        request: &ChatRequest,
    ) -> Option<Self> {
        let settings = &context.settings.answer_cache;
        let target = Arc::clone(&candidates.first().filter(|_| settings.enabled)?.target);
        let mut key = Fingerprint::new("freehold answer");
        key.add(caller.db.record().id.as_uuid().as_bytes());
        let user = caller.user_id.as_uuid();
        key.add_optional((settings.scope == AnswerScope::User).then(|| user.as_bytes().as_slice()));
        key.add(&context.version);
        key.add_optional(assistant.map(str::as_bytes));
        let Target { provider, configuration, upstream_model, billed_to } = &*target;
        for part in [*provider, &**configuration, &**upstream_model, billed_to.as_str()] {
            key.add(part.as_bytes());
        }
        add_request(&mut key, request, digests(request).await?)?;
        let lasts = Duration::from_secs(60 * u64::from(settings.minutes_of(assistant)));
        Some(Self { key: AnswerKey::new(key.hash()), lasts, target })
    }

    /// Keeps an answer, if it is whole and was given by whom the key names: another one may have stood in.
    pub(super) fn keep(&self, chat: &Chat, record: &TenantRecord, answered_by: Option<&Target>, answer: &Finished) {
        let is_whole = answer.state == MessageState::Complete && answer.error_code.is_none() && !answer.degraded;
        if is_whole && !answer.content.is_empty() && answered_by == Some(&*self.target) {
            let (content, delta_lengths) = (answer.content.clone(), answer.delta_lengths.clone());
            chat.answers.put(record, self.key, KeptAnswer { content, delta_lengths }, self.lasts);
        }
    }
}

/// The hashes of a request's images, in order.
async fn digests(request: &ChatRequest) -> Option<Vec<[u8; 32]>> {
    let parts = request.messages.iter().flat_map(|message| match &message.content {
        Content::Parts(parts) => parts.as_slice(),
        Content::Text(_) => &[],
    });
    let images: Vec<Arc<String>> = parts
        .filter_map(|part| match part {
            Part::Image(Image { source: ImageSource::Data { base64, .. }, .. }) => Some(Arc::clone(base64)),
            _ => None,
        })
        .collect();
    if images.is_empty() {
        return Some(Vec::new());
    }
    // Megabytes take longer than a thread may be kept from everybody else's requests.
    let hash = move || images.iter().map(|base64| Sha256::digest(base64.as_bytes()).into()).collect();
    tokio::task::spawn_blocking(hash).await.ok()
}

/// Everything that a provider would be told. None if the answer would depend on more than that. The fields are named one by
/// one, so that a new one cannot be forgotten.
fn add_request(key: &mut Fingerprint, request: &ChatRequest, digests: Vec<[u8; 32]>) -> Option<()> {
    let ChatRequest {
        // The one that was chosen is the target's.
        model: _,
        messages,
        tools,
        tool_choice,
        parallel_tool_calls: _,
        temperature,
        top_p,
        max_tokens,
        stop,
        // Says how an answer travels, and not what it is.
        whole: _,
        response_format,
        extra,
    } = request;
    let is_plain = tools.is_empty() && tool_choice.is_none() && response_format.is_none() && extra.is_empty();
    is_plain.then_some(())?;
    key.add_optional(temperature.map(f32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
    key.add_optional(top_p.map(f32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
    key.add_optional(max_tokens.map(u32::to_be_bytes).as_ref().map(<[u8; 4]>::as_slice));
    key.add_count(stop.len());
    stop.iter().for_each(|text| key.add(text.as_bytes()));
    key.add_count(messages.len());
    let mut digests = digests.into_iter();
    messages.iter().try_for_each(|message| add_message(key, message, &mut digests))
}

fn add_message(
    key: &mut Fingerprint,
    message: &ChatMessage,
    digests: &mut impl Iterator<Item = [u8; 32]>,
) -> Option<()> {
    let ChatMessage { role, content, name, tool_calls, tool_call_id } = message;
    (tool_calls.is_empty() && tool_call_id.is_none()).then_some(())?;
    key.add(match role {
        ChatRole::System => b"system",
        ChatRole::User => b"user",
        ChatRole::Assistant => b"assistant",
        ChatRole::Tool => b"tool",
    });
    key.add_optional(name.as_deref().map(str::as_bytes));
    match content {
        Content::Text(text) => {
            key.add_number(0);
            key.add(text.as_bytes());
        }
        Content::Parts(parts) => {
            key.add_number(1);
            key.add_count(parts.len());
            for part in parts {
                add_part(key, part, digests)?;
            }
        }
    }
    Some(())
}

fn add_part(key: &mut Fingerprint, part: &Part, digests: &mut impl Iterator<Item = [u8; 32]>) -> Option<()> {
    let (kind, first, digest) = match part {
        Part::Text(text) => (0, text, None),
        Part::Image(image) => {
            key.add_optional(image.detail.as_deref().map(str::as_bytes));
            match &image.source {
                ImageSource::Url(url) => (1, url, None),
                ImageSource::Data { media_type, base64: _ } => (2, media_type, Some(digests.next()?)),
            }
        }
    };
    key.add_number(kind);
    key.add(first.as_bytes());
    key.add_optional(digest.as_ref().map(<[u8; 32]>::as_slice));
    Some(())
}

/// An answer that is kept, for a question that has just been asked.
pub(super) struct Hit {
    pub(super) answer: Arc<KeptAnswer>,
    /// Whom it is from.
    pub(super) target: Arc<Target>,
    /// What the question has reserved of the tenant's quota. It counts: it is answered.
    pub(super) permit: Permit,
}

impl Keeping {
    /// The answer that is kept of the same question, or what the question had reserved.
    pub(super) async fn find(&self, chat: &Chat, record: &TenantRecord, permit: Permit) -> Result<Hit, Permit> {
        match chat.answers.get(record, self.key).await {
            Some(answer) => Ok(Hit { answer, target: Arc::clone(&self.target), permit }),
            None => Err(permit),
        }
    }
}

impl Hit {
    /// Stores the question and the answer together, and tells it. Goes on whether or not anybody listens.
    pub(super) async fn tell(
        self,
        chat: Chat,
        client: Client,
        mut begin: Begin,
        begun: oneshot::Sender<NotHere>,
        log: Arc<EventLog>,
        mark: Mark,
    ) {
        let _last_word = LastWord(Arc::clone(&log));
        let stored = tenant_store::store(&client, &begin, &self, &chat.ledger).await;
        drop(client);
        let stored = match stored {
            Ok(true) => Ok(None),
            Ok(false) => Err(ChatError::NotFound),
            Err(error) => Err(refused(error)),
        };
        let is_stored = stored.is_ok();
        begin.images = Vec::new();
        if is_stored {
            let deltas = Deltas {
                first_event: 1,
                content: self.answer.content.clone(),
                lengths: Some(self.answer.delta_lengths.clone()),
            };
            log.fill(&deltas);
            mark.begun(&log, &Interruption::default());
        }
        let _ = begun.send(stored);
        if !is_stored {
            return;
        }
        // Nothing that was told is missing in the quota.
        self.permit.settle().await;
        log.end(AnswerEnd::Done {
            model: begin.model,
            assistant: begin.assistant,
            usage: NOTHING,
            stopped: false,
            degraded: false,
            from_cache: true,
            queries_remaining: begin.queries_remaining,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::Tool;

    async fn hash(request: &ChatRequest) -> Option<[u8; 32]> {
        let mut key = Fingerprint::new("test");
        add_request(&mut key, request, digests(request).await?)?;
        Some(key.hash())
    }

    fn request(messages: &[(ChatRole, &str)]) -> ChatRequest {
        let messages = messages.iter().map(|(role, text)| ChatMessage::text(*role, *text)).collect();
        ChatRequest { messages, max_tokens: Some(256), ..ChatRequest::default() }
    }

    #[tokio::test]
    async fn whatever_a_provider_is_told_is_in_the_key() {
        let plain = [(ChatRole::System, "You are Nora."), (ChatRole::User, "Hello")];
        let one = request(&plain);
        assert_eq!(hash(&one).await, hash(&request(&plain)).await);
        let mut named = one.clone();
        named.messages[1].name = Some("Ada".to_owned());
        let mut in_parts = one.clone();
        in_parts.messages[1].content = Content::Parts(vec![Part::Text("Hello".to_owned())]);
        let with_image = |media_type: &str, base64: &str| {
            let source = ImageSource::Data { media_type: media_type.to_owned(), base64: Arc::new(base64.to_owned()) };
            let parts = vec![Part::Image(Image { source, detail: None }), Part::Text("Hello".to_owned())];
            let mut request = one.clone();
            request.messages[1].content = Content::Parts(parts);
            request
        };
        let others = [
            with_image("image/png", "QUJD"),
            with_image("image/png", "QUJE"),
            with_image("image/gif", "QUJD"),
            ChatRequest { temperature: Some(0.0), ..one.clone() },
            ChatRequest { temperature: Some(0.5), ..one.clone() },
            ChatRequest { top_p: Some(0.5), ..one.clone() },
            ChatRequest { max_tokens: Some(257), ..one.clone() },
            ChatRequest { stop: vec!["end".to_owned()], ..one.clone() },
            request(&[(ChatRole::System, "You are Nora. "), (ChatRole::User, "Hello")]),
            request(&[(ChatRole::System, "You are Nora."), (ChatRole::User, "hello")]),
            request(&[(ChatRole::User, "You are Nora."), (ChatRole::User, "Hello")]),
            request(&[(ChatRole::System, "You are Nora.Hello"), (ChatRole::User, "")]),
            request(&[plain[0], (ChatRole::User, "Hi"), (ChatRole::Assistant, "Hi!"), plain[1]]),
            named,
            in_parts,
        ];
        let mut hashes = Vec::new();
        for request in others.iter().chain([&one]) {
            hashes.push(hash(request).await.unwrap());
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), others.len() + 1);
    }

    #[tokio::test]
    async fn what_may_be_answered_by_more_than_words_is_not_kept() {
        let tool = Tool { name: "look".to_owned(), description: None, parameters: None, strict: None };
        assert!(hash(&ChatRequest { tools: vec![tool], ..request(&[]) }).await.is_none());
        let extra = serde_json::Map::from_iter([("seed".to_owned(), serde_json::json!(1))]);
        assert!(hash(&ChatRequest { extra, ..request(&[]) }).await.is_none());
    }
}
