//! The tenant's API: sign-in, the client admin's REST interface and the end user's chat.
//!
//! No request names a tenant but the three by which somebody without a token signs in: everywhere else the tenant
//! comes from the verified token alone.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use garde::Validate;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::images::{ChatImage, ImageUrls};

pub use super::assistants::{AssistantSettings, RoutingBy, RoutingSettings};
pub use super::settings::{
    Branding, Config, Settings, StrictSettings, UpdateConfigRequest, VisitorSettings, WidgetSettings,
};

/// `POST /api/v1/auth/accept-invite`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AcceptInviteRequest {
    /// The tenant's slug.
    #[garde(length(max = 100))]
    pub tenant: String,
    /// The invite's token.
    #[garde(skip)]
    #[schema(value_type = String, format = Password)]
    pub token: SecretString,
    /// The password the new user chooses, 10 to 200 characters.
    #[garde(skip)]
    #[schema(value_type = String, format = Password)]
    pub password: SecretString,
    /// How the user is called; the address is used when left out.
    #[garde(inner(length(chars, min = 1, max = 200)))]
    #[serde(default)]
    pub name: Option<String>,
}

/// `POST /api/v1/auth/login`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The tenant's slug.
    #[garde(length(max = 100))]
    pub tenant: String,
    /// The user's e-mail address.
    #[garde(length(max = 254))]
    pub email: String,
    /// The password.
    #[garde(skip)]
    #[schema(value_type = String, format = Password)]
    pub password: SecretString,
}

/// `POST /api/v1/auth/visitor`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VisitRequest {
    /// The tenant's slug.
    #[garde(length(max = 100))]
    pub tenant: String,
}

/// `POST /api/v1/auth/refresh` and `POST /api/v1/auth/logout`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefreshRequest {
    /// The refresh token. It names its tenant itself.
    #[schema(value_type = String, format = Password)]
    pub refresh_token: SecretString,
}

/// Tokens of a signed-in user.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenResponse {
    /// A JWT for the `Authorization: Bearer` header.
    pub access_token: String,
    /// Exchanged once for new tokens at `POST /api/v1/auth/refresh`.
    pub refresh_token: String,
    /// Always `Bearer`.
    pub token_type: String,
    /// Seconds until the access token expires.
    pub expires_in: i64,
    /// Whose they are.
    pub user_id: Uuid,
    /// What that user is.
    pub role: Role,
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything within the tenant.
    Admin,
    /// Users of role `user`, reading the configuration, and chat.
    Manager,
    /// Chat, and nothing but its own conversations.
    User,
    /// As a user, and nobody in particular: somebody without an account. Nobody is given this role or loses it.
    Visitor,
}

/// `GET /api/v1/me`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Me {
    /// The user's id.
    pub id: Uuid,
    /// The tenant's slug.
    pub tenant: String,
    /// The user's address; empty for a visitor.
    pub email: String,
    /// The user's name; empty for a visitor.
    pub name: String,
    /// The user's role.
    pub role: Role,
    /// What the token allows; `users:*` is all that begins with `users:`, `*` is everything.
    pub permissions: Vec<String>,
}

/// A user of the tenant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// The user's id.
    pub id: Uuid,
    /// The address, unique within the tenant.
    pub email: String,
    /// The name.
    pub name: String,
    /// The role.
    pub role: Role,
    /// Whether the user may not sign in any more.
    pub disabled: bool,
    /// When the user was created.
    pub created_at: DateTime<Utc>,
}

/// A page of users.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UserPage {
    /// Oldest first.
    pub items: Vec<User>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// `POST /api/v1/users`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateUserRequest {
    /// The address, unique within the tenant.
    #[garde(email, length(max = 254))]
    pub email: String,
    /// The name; the address is used when left out.
    #[garde(inner(length(chars, min = 1, max = 200)))]
    #[serde(default)]
    pub name: Option<String>,
    /// The role; `user` when left out.
    #[garde(skip)]
    #[serde(default)]
    pub role: Option<Role>,
    /// The first password, 10 to 200 characters.
    #[garde(skip)]
    #[schema(value_type = String, format = Password)]
    pub password: SecretString,
}

/// `PATCH /api/v1/users/{id}`. What is left out stays as it is.
#[derive(Debug, Default, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateUserRequest {
    /// The name.
    #[garde(inner(length(chars, min = 1, max = 200)))]
    #[serde(default)]
    pub name: Option<String>,
    /// The role.
    #[garde(skip)]
    #[serde(default)]
    pub role: Option<Role>,
    /// A new password; signs the user out everywhere.
    #[garde(skip)]
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Password)]
    pub password: Option<SecretString>,
    /// `true` shuts the user out at once, `false` lets it in again.
    #[garde(skip)]
    #[serde(default)]
    pub disabled: Option<bool>,
}

/// `PUT /api/v1/ai-keys/{name}`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PutAiKeyRequest {
    /// Who serves the models, or whose interface they imitate: `openai_compatible`, `anthropic`, `gemini`, `vertex` or
    /// `azure_openai`.
    #[garde(length(max = 50))]
    pub provider: String,
    /// The server's address. When left out, that of OpenAI, Anthropic or the Gemini API. Of `openai_compatible` it goes
    /// up to and including `/v1`; of `vertex` it names the region (`https://europe-west4-aiplatform.googleapis.com`), of
    /// `azure_openai` the resource (`https://NAME.openai.azure.com`, with `?api-version=…` for another version).
    #[garde(inner(length(max = 2_000)))]
    #[serde(default)]
    pub base_url: Option<String>,
    /// The key itself; of `vertex` the JSON file of a service account. It is stored sealed and never shown again.
    #[garde(skip)]
    #[schema(value_type = String, format = Password)]
    pub api_key: SecretString,
    /// The models this key may be used for; of `azure_openai` the names of deployments.
    #[garde(length(min = 1, max = 50), inner(length(chars, min = 1, max = 200)))]
    pub models: Vec<String>,
    /// The model that answers when none is asked for; one of `models` or of the aliases.
    #[garde(length(chars, min = 1, max = 200))]
    pub default_model: String,
    /// Further names for these models, for example `{"fast": "gpt-4o-mini"}`. Several keys may have the same.
    #[garde(length(max = 50))]
    #[serde(default)]
    pub model_aliases: BTreeMap<String, String>,
    /// Its place in the order: of the keys that offer a model the lowest answers, the next one if that fails, and so on.
    /// Left out: where it is, or last.
    #[garde(inner(range(min = 0, max = 1_000_000)))]
    #[serde(default)]
    pub position: Option<i32>,
    /// `false` keeps it and does not use it. Left out: as it is, or `true`.
    #[garde(skip)]
    #[serde(default)]
    pub enabled: Option<bool>,
}

/// An AI key, without the key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AiKey {
    /// Its name.
    pub name: String,
    /// Who serves the models.
    pub provider: String,
    /// The server's address.
    pub base_url: String,
    /// The key's last four characters, `…abcd`; of a service account those of its key's id.
    pub api_key: String,
    /// The models it may be used for.
    pub models: Vec<String>,
    /// The model that answers when none is asked for.
    pub default_model: String,
    /// Further names for these models.
    pub model_aliases: BTreeMap<String, String>,
    /// Its place in the order.
    pub position: i32,
    /// Whether it is used.
    pub enabled: bool,
    /// When it was last set.
    pub updated_at: DateTime<Utc>,
}

/// All AI keys.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AiKeyList {
    /// In their order: by position, and of one position in the order in which they were first set.
    pub items: Vec<AiKey>,
}

/// The verdict of `POST /api/v1/ai-keys/{name}/test`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AiKeyTest {
    /// Whether a real call succeeded.
    pub ok: bool,
    /// A stable code: `ok`, or the kind of failure such as `invalid_key` or `model_not_found`.
    pub code: String,
    /// The verdict for people.
    pub message: String,
    /// The model that was asked.
    pub model: String,
    /// How long the call took, in milliseconds.
    pub latency_ms: u64,
}

/// `POST /api/v1/chat`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatRequest {
    /// The question; 1 to 2,000 characters unless the tenant's settings say otherwise.
    pub message: String,
    /// The conversation to go on with; a new one when left out.
    #[serde(default)]
    pub session_id: Option<Uuid>,
    /// One of the tenant's models; the default one when left out.
    #[serde(default)]
    pub model: Option<String>,
    /// The name of one of the tenant's assistants; the settings' `routing` says which when left out.
    #[serde(default)]
    pub assistant: Option<String>,
    /// Images that the question is about, four at most, each as a `data:` URL in Base64: `data:image/png;base64,…`. PNG, JPEG, WebP or
    /// GIF, at most 3.75 MiB each and 10 MiB together. The assistant has to accept images, and the plan to have `vision`.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 4)]
    pub images: ImageUrls,
    /// `true` for server-sent events.
    #[serde(default)]
    pub stream: bool,
    /// `false` for a new answer, where the tenant has answers kept and given again; it takes the kept one's place.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub cache: bool,
}

/// What a switch is that is left out.
pub(crate) fn yes() -> bool {
    true
}

/// The answer to a chat request without streaming.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatResponse {
    /// The conversation, for going on with it.
    pub session_id: Uuid,
    /// The answer's id.
    pub message_id: Uuid,
    /// The answer.
    pub content: String,
    /// The model that answered.
    pub model: String,
    /// The assistant that answered; absent if it was none in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assistant: Option<String>,
    /// What the answer cost, in tokens.
    pub usage: Usage,
    /// Whether its user had it stopped: what had arrived is all there is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Whether no model gave it: none could be reached, and it is the client's own message instead.
    #[serde(default)]
    pub degraded: bool,
    /// Whether it was kept from an earlier question, and no model was asked.
    #[serde(default)]
    pub from_cache: bool,
    /// What was left of the month's requests when it was begun; null if there is no limit.
    #[serde(default)]
    pub queries_remaining: Option<u64>,
}

/// The `event: started` of a streamed answer, its first.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatStarted {
    /// The conversation, for going on with it.
    pub session_id: Uuid,
    /// The answer's id, for stopping it, and for listening to it again.
    pub message_id: Uuid,
}

/// The `event: done` of a streamed answer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatDone {
    /// The conversation, for going on with it.
    pub session_id: Uuid,
    /// The answer's id.
    pub message_id: Uuid,
    /// The model that answered.
    pub model: String,
    /// The assistant that answered; absent if it was none in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assistant: Option<String>,
    /// What the answer cost, in tokens.
    pub usage: Usage,
    /// Whether its user had it stopped: what had arrived is all there is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// Whether no model gave it: none could be reached, and it is the client's own message instead.
    #[serde(default)]
    pub degraded: bool,
    /// Whether it was kept from an earlier question, and no model was asked.
    #[serde(default)]
    pub from_cache: bool,
    /// What was left of the month's requests when it was begun; null if there is no limit.
    #[serde(default)]
    pub queries_remaining: Option<u64>,
}

/// The `event: error` of a streamed answer. What had arrived is kept and marked.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatError {
    /// The conversation, for going on with it.
    pub session_id: Uuid,
    /// The id of what was kept of the answer.
    pub message_id: Uuid,
    /// A stable code.
    pub code: String,
    /// The tenant's own error message.
    pub message: String,
}

/// One piece of a streamed answer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatDelta {
    /// The text that arrived.
    pub content: String,
}

/// Tokens of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answer.
    pub output_tokens: u32,
    /// Whether the provider reported these; if not they are estimated from the text.
    pub reported: bool,
}

/// A conversation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatSession {
    /// Its id.
    pub id: Uuid,
    /// The beginning of the first question.
    pub title: String,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When something was last said.
    pub updated_at: DateTime<Utc>,
}

/// A page of conversations.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatSessionPage {
    /// Newest first.
    pub items: Vec<ChatSession>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Who said a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageRole {
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// Whether a message is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// It is whole.
    Complete,
    /// The model is speaking.
    Generating,
    /// It was cut off; what had arrived is kept.
    Interrupted,
    /// Nothing arrived.
    Failed,
    /// Its user had it stopped; what had arrived is kept.
    Stopped,
}

/// One message of a conversation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// Its id.
    pub id: Uuid,
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
    /// The assistant that answered; absent if it was none in particular.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assistant: Option<String>,
    /// What it cost, for answers.
    pub usage: Option<Usage>,
    /// Whether no model gave it: none could be reached, and it is the client's own message instead.
    #[serde(default)]
    pub degraded: bool,
    /// Whether it was kept from an earlier question, and no model was asked.
    #[serde(default)]
    pub from_cache: bool,
    /// When it was said.
    pub created_at: DateTime<Utc>,
    /// What its user thought of it, for answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feedback: Option<MessageFeedback>,
    /// The images that came with it, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ChatImage>,
}

/// Whether an answer helped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rating {
    /// It did.
    Up,
    /// It did not.
    Down,
}

/// What a user thought of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageFeedback {
    /// Whether it helped.
    pub rating: Rating,
    /// In the user's words.
    pub comment: Option<String>,
}

/// `PUT /api/v1/messages/{message_id}/feedback`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FeedbackRequest {
    /// Whether it helped.
    #[garde(skip)]
    pub rating: Rating,
    /// In the user's words, at most 2,000 characters.
    #[garde(inner(length(chars, max = 2_000)), inner(custom(super::without_nul)))]
    #[serde(default)]
    pub comment: Option<String>,
}

/// What a user thought of an answer, for the client's admins. Whose it is stays out of it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RatedAnswer {
    /// The answer's id.
    #[schema(value_type = String, format = Uuid)]
    pub message_id: Uuid,
    /// Whether it helped.
    pub rating: Rating,
    /// In the user's words.
    pub comment: Option<String>,
    /// The beginning of the question, 300 characters at most; absent if it is not there any more.
    pub question: Option<String>,
    /// The beginning of the answer, 300 characters at most.
    pub answer: String,
    /// The model that answered.
    pub model: Option<String>,
    /// When the user last said it.
    pub updated_at: DateTime<Utc>,
}

/// A page of what users think.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RatedAnswerPage {
    /// The newest answer first.
    pub items: Vec<RatedAnswer>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A page of messages.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatMessagePage {
    /// Oldest first.
    pub items: Vec<ChatMessage>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}
