//! Conversations of a tenant's users, and the pipeline that answers a question.
//!
//! A question and the row of its answer are stored before the model is called, and the answer is stored when the
//! model has spoken, whether or not somebody still listens. Programs ask for completions and embeddings, of which
//! nothing is kept but the call in the ledger. No connection is held while the model speaks. All of it is
//! in the tenant's own database: nothing here takes a tenant's id, a [`crate::access::TenantCaller`] carries the
//! database that its token proved.

mod assistants;
mod breaker;
mod cache;
mod candidates;
mod context;
mod conversations;
mod duplicates;
pub mod feedback;
mod fingerprint;
pub mod images;
pub mod kept_answers;
mod metered;
mod model_call;
mod pipeline;
mod prepare;
mod prompt;
mod recovery;
mod room;
mod routing;
pub mod streams;
pub mod tenant_store;
mod turn;
mod under_way;

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::answer_cache::AnswerCache;
use crate::api::platform::TenantState;
use crate::clock::SharedClock;
use crate::configuration::ConfigurationError;
use crate::ids::{ChatSessionId, TenantId};
use crate::limits::{Permit, Plans};
use crate::metering::Ledger;
use crate::providers::ProviderClient;
use crate::shared_models::SharedModels;
use crate::tenant_db::{TenantDatabases, TenantDbError, TenantRecord};

pub use candidates::ModelEntry;
pub use context::ChatContext;
pub use conversations::{Conversation, Message};
pub use images::{ImageError, QuestionImage};
pub use metered::{CallContext, MeteredEmbeddings, MeteredStream};
pub use model_call::CallError;
pub use room::{Full, Held, Room, SMALL as ROOM_SMALL};
pub use streams::{AnswerEnd, AnswerEvent, Listener};

/// Answers questions and keeps conversations. Cheap to clone.
#[derive(Clone)]
pub struct Chat {
    clock: SharedClock,
    tasks: TaskTracker,
    give_up: CancellationToken,
    ledger: Ledger,
    /// What tenants' plans have.
    plans: Arc<Plans>,
    /// Knows which servers run.
    databases: Arc<TenantDatabases>,
    cache: Arc<cache::Cache>,
    looks: Arc<recovery::Looks>,
    /// The questions that are being answered here, for those who ask the same meanwhile.
    duplicates: Arc<duplicates::Duplicates>,
    /// Answers that are given again, where a tenant wants that.
    answers: Arc<AnswerCache>,
    /// The answers that this process is working on.
    under_way: Arc<under_way::AnswersUnderWay>,
    /// Writes them down meanwhile.
    parts: Arc<streams::parts::Parts>,
    /// Those who listen to answers again.
    listeners: Arc<streams::listeners::Listeners>,
    /// For what is large.
    room: Room,
}

/// What conversations are made with.
#[expect(missing_debug_implementations, reason = "it is taken apart at once, and holds what must not be printed")]
pub struct ChatServices {
    /// Calls models with the tenants' keys.
    pub providers: ProviderClient,
    /// The models that are lent to tenants.
    pub shared: SharedModels,
    /// Where every call is noted.
    pub ledger: Ledger,
    /// What tenants' plans have.
    pub plans: Arc<Plans>,
    /// Know which servers run.
    pub databases: Arc<TenantDatabases>,
    /// Answers that are given again, where a tenant wants that.
    pub answers: AnswerCache,
}

/// The codes of answers whose tenant went out of service meanwhile, the same as for requests.
pub const CLOSED: [&str; 3] = ["tenant_suspended", "tenant_deleting", "tenant_not_active"];

impl fmt::Debug for Chat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chat").field("under_way", &self.under_way.len()).finish_non_exhaustive()
    }
}

impl Chat {
    /// Answers under way are among `tasks`, which a server that stops waits for; when `give_up` is cancelled they end with
    /// what has arrived.
    pub fn new(services: ChatServices, clock: SharedClock, tasks: TaskTracker, give_up: CancellationToken) -> Self {
        let ChatServices { providers, shared, ledger, plans, databases, answers } = services;
        Self {
            clock,
            tasks,
            give_up,
            ledger,
            plans,
            databases,
            cache: Arc::new(cache::Cache::new(providers, shared)),
            looks: Arc::default(),
            duplicates: Arc::default(),
            answers: Arc::new(answers),
            under_way: Arc::default(),
            parts: Arc::default(),
            listeners: Arc::default(),
            room: Room::default(),
        }
    }

    /// Waits until no answer of a tenant's is under way here, as is soon after it went out of service.
    pub async fn idle(&self, tenant: TenantId) {
        self.under_way.idle(tenant).await;
    }

    /// Room for what is large.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// The registry's news of a tenant, `None` if it is gone. Out of service, its answers under way end at once, for
    /// nobody may be billed for more of them, and what is known of its settings, keys and answers is forgotten.
    pub fn follow(&self, tenant: TenantId, record: Option<&TenantRecord>) {
        let [suspended, deleting, other] = CLOSED;
        match record {
            Some(record) if record.is_active() => return self.under_way.reopen(tenant, record.revision()),
            Some(record) => {
                let code = match record.state {
                    TenantState::Suspended => suspended,
                    TenantState::Deleting => deleting,
                    _ => other,
                };
                self.under_way.close(tenant, record.revision(), code);
            }
            None => {
                self.under_way.forget(tenant, other);
                self.looks.forget(tenant);
                self.databases.forget_use(tenant);
                self.ledger.forget(tenant);
                self.room.forget(tenant);
            }
        }
        self.cache.forget(tenant);
        self.answers.forget(tenant);
    }
}

/// A question to answer.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub text: String,
    /// The conversation to go on with; a new one if `None`.
    pub session_id: Option<ChatSessionId>,
    /// The model to ask; the tenant's default if `None`.
    pub model: Option<String>,
    /// The assistant to ask; the one that it comes to if `None`.
    pub assistant: Option<String>,
    /// The images that come with it.
    pub images: Vec<QuestionImage>,
    /// What it holds of the room for what is large, until the model speaks.
    pub room: Option<Arc<Held>>,
    /// What it has reserved of the tenant's quota: used if there is an answer, else given back.
    pub permit: Permit,
    /// What is left of that then; none if there is no limit.
    pub queries_remaining: Option<u64>,
    /// Whether an answer may be given that is kept from an earlier question.
    pub allows_kept: bool,
}

/// Why a question was not answered, or a conversation not shown.
#[derive(Debug, Error)]
pub enum ChatError {
    /// The question has no text.
    #[error("the message is empty")]
    Empty,
    /// The question is too long.
    #[error("the message is longer than {limit} characters")]
    TooLong {
        /// The longest allowed, in characters.
        limit: u32,
    },
    /// There is no such conversation that the caller may know of.
    #[error("no such conversation")]
    NotFound,
    /// There is no such answer that the caller may know of.
    #[error("no such answer")]
    AnswerNotFound,
    /// The model asked for is not one that the tenant's users may use, or that an AI key offers.
    #[error("this model may not be used")]
    ModelNotAllowed,
    /// There is no assistant of the name that is asked for.
    #[error("no such assistant")]
    AssistantUnknown,
    /// The question is one for an assistant that needs what the tenant's plan has not got.
    #[error("the plan does not have the feature that the assistant needs")]
    AssistantNotInPlan {
        /// The assistant.
        assistant: String,
        /// What it needs.
        feature: &'static str,
        /// The tenant's plan.
        plan: String,
    },
    /// Images came with the question, and whoever is asked does not accept any.
    #[error("the assistant does not accept images")]
    ImagesNotAccepted {
        /// The assistant that the question names, if it names one.
        assistant: Option<String>,
        /// Those that do accept images.
        accepting: Vec<String>,
    },
    /// The images of the question are refused.
    #[error("the images are refused")]
    Images(#[from] ImageError),
    /// There is no room for something so large just now.
    #[error("there is no room for something so large just now")]
    Full(#[from] Full),
    /// There is no such image that the caller may know of.
    #[error("no such image")]
    ImageNotFound,
    /// No AI key offers any of the models that users may use.
    #[error("no AI key offers a model that may be used")]
    NoModel,
    /// The tenant has no AI key.
    #[error("no AI key is set")]
    AiKeyMissing,
    /// The caller was disabled or signed out after the token was signed.
    #[error("the caller is no longer signed in")]
    NotInForce,
    /// No model could be asked, or none answered.
    #[error("the model could not be called")]
    Call(#[from] CallError),
    /// Settings or AI keys could not be read.
    #[error("the tenant's configuration cannot be used")]
    Configuration(#[from] ConfigurationError),
    /// No connection to the tenant's database could be had.
    #[error("the tenant's database could not be had")]
    TenantDb(#[from] TenantDbError),
    /// The tenant's database refused a statement.
    #[error("the tenant's database refused a statement")]
    Database(#[from] tokio_postgres::Error),
    /// The task that was to answer ended early, which only a defect can make it do.
    #[error("the answer's task ended early")]
    TaskLost,
}
