//! What answering a question needs, put together before any of it is stored: who asks, what was said before, the assistant,
//! the model and the keys that offer it, the prompt, and the answer that is kept of it, if there is one.

use std::sync::Arc;

use futures::{TryFutureExt as _, future};

use super::assistants::{Asked, Assigned};
use super::candidates::Candidate;
use super::context::ChatContext;
use super::duplicates::QuestionKey;
use super::images::QuestionImage;
use super::kept_answers::{Hit, Keeping};
use super::model_call::{self, ModelCall, Purpose};
use super::pipeline::Turn;
use super::prompt;
use super::tenant_store::{self, History};
use super::turn::Begin;
use super::{Chat, ChatError, Question};
use crate::access::TenantCaller;
use crate::api::tenant::{AssistantSettings, Settings};
use crate::ids::{ChatSessionId, MessageId};
use crate::limits::Permit;
use crate::metering::CallKind;
use crate::providers::{ChatRequest, Image};
use crate::tenant_db::Client;

/// A question before it is stored.
pub(super) enum Prepared {
    /// It can be.
    Ready(Box<Ready>),
    /// Another server is answering it already.
    Elsewhere(MessageId),
}

/// A question that can be stored.
pub(super) struct Ready {
    pub(super) turn: Turn,
    /// The answer that is kept of it, if there is one: then no model is called.
    pub(super) hit: Option<Hit>,
    pub(super) client: Client,
}

/// Whose a question is.
enum Choice<'a> {
    /// This one's; none in particular's if there is none.
    Made(Option<&'a AssistantSettings>, Client),
    /// Another server is answering it already.
    Elsewhere(MessageId),
}

impl Chat {
    /// What a question needs that nobody else is asking here.
    ///
    /// # Errors
    /// See [`ChatError`].
    pub(super) async fn prepare(
        &self,
        caller: &TenantCaller,
        question: Question,
        key: QuestionKey,
    ) -> Result<Prepared, ChatError> {
        let client = caller.db.client().await?;
        let (context, mut history) = self.load(&client, caller, &question).await?;
        let (assistant, mut client) = match self.choose(client, caller, &question, key, (&context, &history)).await? {
            Choice::Made(assistant, client) => (assistant, client),
            Choice::Elsewhere(message_id) => return Ok(Prepared::Elsewhere(message_id)),
        };
        let (model, candidates) = context.choose_for(question.model.as_deref(), assistant)?;
        let settings = Arc::clone(&context.settings);
        let mut recalled = None;
        if question.images.is_empty() && self.shows_images(assistant, caller.db.record()) {
            let window = settings.history_length.into();
            (client, recalled) = self.recall_images(caller, client, &mut history.spoken, window).await?;
        }
        self.settle_abandoned_soon(&caller.db);
        let Question { text, session_id, images, room, permit, queries_remaining, allows_kept, .. } = question;
        let (new_images, shown): (Vec<_>, Vec<_>) = images.into_iter().map(QuestionImage::split).unzip();
        let request = compose(&settings, assistant, history, &text, shown);
        let begin = Begin {
            session_id: session_id.unwrap_or_else(ChatSessionId::new),
            new_title: session_id.is_none().then(|| prompt::title(&text)),
            user_id: caller.user_id,
            question_id: MessageId::new(),
            question: text,
            images: new_images,
            answer_id: MessageId::new(),
            model: model.to_string(),
            assistant: assistant.map(|assistant| assistant.name.clone()),
            queries_remaining,
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
        let kept = Kept { assistant: begin.assistant.as_deref(), candidates: &candidates, allows_kept };
        let (keeping, found, client) = self.find_kept(client, caller, &context, kept, &request, permit).await?;
        let (hit, call) = match found {
            Ok(hit) => (Some(hit), None),
            Err(permit) => {
                let call = ModelCall::new(&self.ledger, &caller.db, purpose, candidates, Some(request)).ok();
                (None, call.map(|call| call.with_permit(permit).with_room(recalled.or(room))))
            }
        };
        let (db, masking) = (caller.db.clone(), context.masking());
        let turn = Turn { chat: self.clone(), db, begin, call, settings, masking, keeping };
        Ok(Prepared::Ready(Box::new(Ready { turn, hit, client })))
    }

    /// The tenant's settings and keys and what was said before, if the caller is in force and may ask this.
    async fn load(
        &self,
        client: &Client,
        caller: &TenantCaller,
        question: &Question,
    ) -> Result<(Arc<ChatContext>, History), ChatError> {
        let history = async {
            match question.session_id {
                Some(session) => tenant_store::history(client, session, caller.user_id).await,
                None => Ok(Some(History::default())),
            }
        };
        // Polled together on one connection, so all are on their way before the first is answered.
        let (active, history, context) = future::try_join3(
            tenant_store::is_active(client, caller).map_err(ChatError::from),
            history.map_err(ChatError::from),
            self.context_on(client, caller.db.record()),
        )
        .await?;
        if !active {
            return Err(ChatError::NotInForce);
        }
        let limit = context.settings.max_message_length;
        if question.text.chars().count() > limit as usize {
            return Err(ChatError::TooLong { limit });
        }
        Ok((context, history.ok_or(ChatError::NotFound)?))
    }

    /// The assistant whose a question is, which the tenant's plan has to have.
    async fn choose<'a>(
        &self,
        client: Client,
        caller: &TenantCaller,
        question: &Question,
        key: QuestionKey,
        (context, history): (&'a ChatContext, &History),
    ) -> Result<Choice<'a>, ChatError> {
        let with_images = !question.images.is_empty();
        let asked = Asked {
            text: &question.text,
            named: question.assistant.as_deref(),
            is_first: question.session_id.is_none(),
            last: history.assistant.as_deref(),
            with_images,
        };
        let (assistant, client) = match context.assistants.assign(asked)? {
            Assigned::To(assistant) => (assistant, client),
            Assigned::AskModel(otherwise) => {
                // That may take seconds. Whoever asks what another server answers already is told so before.
                if let Some(message_id) = self.answered_elsewhere(&client, key, caller.user_id).await? {
                    return Ok(Choice::Elsewhere(message_id));
                }
                // No connection is held while a model speaks.
                drop(client);
                let said = self.ask_router(caller, context, &question.text, with_images).await;
                (said.or(otherwise), caller.db.client().await?)
            }
        };
        self.admit_assistant(assistant, caller.db.record())?;
        Ok(Choice::Made(assistant, client))
    }

    /// How the answer is kept, if it is, and the one that is kept already of the same question, or else what the question had
    /// reserved.
    async fn find_kept(
        &self,
        client: Client,
        caller: &TenantCaller,
        context: &ChatContext,
        kept: Kept<'_>,
        request: &ChatRequest,
        permit: Permit,
    ) -> Result<(Option<Keeping>, Result<Hit, Permit>, Client), ChatError> {
        if !context.settings.answer_cache.enabled {
            return Ok((None, Err(permit), client));
        }
        // No connection is held while megabytes of images are hashed, or Redis is asked.
        drop(client);
        let keeping = Keeping::new(context, caller, kept.assistant, kept.candidates, request).await;
        let found = match keeping.as_ref().filter(|_| kept.allows_kept) {
            Some(keeping) => keeping.find(self, caller.db.record(), permit).await,
            None => Err(permit),
        };
        Ok((keeping, found, caller.db.client().await?))
    }
}

/// What a kept answer is looked for by, beside the prompt.
#[derive(Clone, Copy)]
struct Kept<'a> {
    assistant: Option<&'a str>,
    candidates: &'a [Candidate],
    /// Whether the question may be answered by it.
    allows_kept: bool,
}

/// What a model is told.
fn compose(
    settings: &Settings,
    assistant: Option<&AssistantSettings>,
    history: History,
    text: &str,
    shown: Vec<Image>,
) -> ChatRequest {
    ChatRequest {
        messages: prompt::build(settings, assistant, history.spoken, text, shown),
        temperature: assistant.and_then(|one| one.temperature).or(settings.temperature),
        max_tokens: Some(assistant.and_then(|one| one.max_tokens).unwrap_or(settings.max_tokens)),
        ..ChatRequest::default()
    }
}
