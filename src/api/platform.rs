//! The platform API, used by super admins and the `freehold` CLI.

use chrono::{DateTime, Utc};
use garde::Validate;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub use super::limits::{FEATURES, Limit, TenantLimits, TenantLimitsChange, TenantMonth, Unlimited};
use super::rotation::TenantRotation;

/// `POST /platform/v1/sessions`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSessionRequest {
    /// The super admin's e-mail address.
    pub email: String,
    /// The password.
    #[schema(value_type = String, format = Password)]
    pub password: SecretString,
}

/// The answer to a sign-in. The token is shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreateSessionResponse {
    /// The bearer token of all further requests.
    pub token: String,
    /// The session's id, for revoking it.
    pub session_id: Uuid,
    /// When the token stops working.
    pub expires_at: DateTime<Utc>,
}

/// One super-admin session.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// The session's id.
    pub id: Uuid,
    /// Whose session it is.
    pub email: String,
    /// The program that signed in, as it named itself.
    pub user_agent: Option<String>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When it ends.
    pub expires_at: DateTime<Utc>,
    /// Whether it is the session of this very request.
    pub current: bool,
}

/// All sessions that are in force.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SessionList {
    /// Newest first.
    pub items: Vec<Session>,
}

/// `POST /platform/v1/tenants`.
#[derive(Debug, Clone, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateTenantRequest {
    /// The tenant's name in addresses: 3 to 40 of `a-z`, `0-9` and `-`, beginning with a letter.
    #[garde(skip)]
    pub slug: String,
    /// The company's name.
    #[garde(length(chars, min = 1, max = 200))]
    pub name: String,
    /// A plan of `templates/plans.toml`: `free`, `pro`, `premium` or `enterprise`.
    #[garde(length(chars, min = 1, max = 50))]
    pub plan: String,
    /// A template of `templates/instances`, by its file's name.
    #[garde(length(chars, min = 1, max = 50))]
    pub template: String,
    /// Who becomes the first client admin.
    #[garde(email, length(max = 254))]
    pub admin_email: String,
    /// Where the database is to be.
    #[garde(skip)]
    #[serde(default)]
    pub database: DatabaseRequest,
}

/// Where a tenant's database is to be.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum DatabaseRequest {
    /// On a cluster that the owner runs.
    Managed {
        /// The cluster's name; may be left out when there is exactly one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cluster: Option<String>,
    },
    /// The client's own, at any Postgres from 14 to 18.
    Own {
        /// `postgres://user:password@host:port/database`. Left out, the tenant waits until its client gives it. It is
        /// stored sealed and never shown again.
        #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "exposed")]
        #[schema(value_type = Option<String>, format = Password)]
        url: Option<SecretString>,
        /// Certificates of authorities that are trusted besides the public ones, in PEM format.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca: Option<String>,
    },
}

/// Only the command writes such a request, to send it.
fn exposed<S: serde::Serializer>(secret: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(secret) => serializer.serialize_some(secret.expose_secret()),
        None => serializer.serialize_none(),
    }
}

impl Default for DatabaseRequest {
    fn default() -> Self {
        Self::Managed { cluster: None }
    }
}

/// The answer to `POST /platform/v1/tenants`.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreateTenantResponse {
    /// The tenant as it is registered.
    pub tenant: Tenant,
    /// The operation that provisions it. None while the tenant waits for the client's database.
    pub operation: Option<Operation>,
    /// The first client admin's invite. It works once the operation has succeeded.
    pub admin_invite: AdminInvite,
    /// What the client gives its database with, if the tenant waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_token: Option<DatabaseToken>,
    /// What the check of the given database found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_check: Option<super::database::DatabaseCheck>,
}

/// A token with which a client gives its own database, by `PUT /api/v1/database`, and which serves for nothing else. It
/// works until the database is in service. Shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct DatabaseToken {
    /// The secret.
    pub token: String,
    /// When it stops working in any case.
    pub expires_at: DateTime<Utc>,
    /// Where clients reach the server.
    pub server_url: String,
}

/// A one-time invite for a client admin. The token is shown this once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct AdminInvite {
    /// Who is invited.
    pub email: String,
    /// The secret that `POST /api/v1/auth/accept-invite` takes.
    pub token: String,
    /// When it stops working.
    pub expires_at: DateTime<Utc>,
    /// Where clients reach the server. It may differ from the address at which the owner does.
    pub server_url: String,
}

/// `POST /platform/v1/tenants/{slug}/invites`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInviteRequest {
    /// Who is invited; the tenant's registered admin address when left out.
    #[garde(inner(email), inner(length(max = 254)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
}

/// The state of a tenant's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TenantState {
    /// Asked for; nothing is done yet.
    Requested,
    /// Being set up.
    Provisioning,
    /// The client has to give something first: a database or an AI key.
    WaitingForClient,
    /// In service.
    Active,
    /// Out of service for a while.
    Suspended,
    /// Being deleted.
    Deleting,
    /// Gone.
    Deleted,
    /// Setting up failed and was undone; it can be retried.
    Failed,
}

impl TenantState {
    /// The name in the database, the same as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Provisioning => "provisioning",
            Self::WaitingForClient => "waiting_for_client",
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Deleting => "deleting",
            Self::Deleted => "deleted",
            Self::Failed => "failed",
        }
    }

    /// Reads the name in the database; the column's CHECK knows the same names.
    pub fn parse(text: &str) -> Self {
        match text {
            "requested" => Self::Requested,
            "provisioning" => Self::Provisioning,
            "waiting_for_client" => Self::WaitingForClient,
            "active" => Self::Active,
            "suspended" => Self::Suspended,
            "deleting" => Self::Deleting,
            "deleted" => Self::Deleted,
            _ => Self::Failed,
        }
    }
}

/// `POST /platform/v1/tenants/{slug}/suspend`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SuspendTenantRequest {
    /// Why, for the owner's own people; the client is not told.
    #[garde(inner(length(chars, min = 1, max = 500)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The answer to what changes a tenant's life. 202 if an operation does it, 200 if it is so already.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantOperation {
    /// The tenant as it is now.
    pub tenant: Tenant,
    /// The operation, unless there is nothing to do.
    pub operation: Option<Operation>,
}

/// A tenant as the registry knows it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Tenant {
    /// The tenant's id, `CLIENT_ID` in the client's configuration file.
    pub id: Uuid,
    /// Its name in addresses.
    pub slug: String,
    /// The company's name.
    pub name: String,
    /// Its plan.
    pub plan: String,
    /// The template it was made from.
    pub template: String,
    /// The registered client admin's address.
    pub admin_email: String,
    /// The state of its life.
    pub state: TenantState,
    /// Where its database is.
    pub database: TenantDatabase,
    /// The version of its database's schema, once there is one.
    pub schema_version: Option<i64>,
    /// What it may use, where that differs from the platform's settings.
    #[serde(default)]
    pub limits: TenantLimits,
    /// Whose models answer its questions.
    #[serde(default)]
    pub ai_mode: AiMode,
    /// When its credentials and keys were replaced last, and will be next; where one tenant is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rotations: Vec<TenantRotation>,
    /// How its month stands; where one tenant is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_this_month: Option<TenantMonth>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When the registry's row last changed.
    pub updated_at: DateTime<Utc>,
    /// When it went into service.
    pub activated_at: Option<DateTime<Utc>>,
    /// Since when it is suspended.
    #[serde(default)]
    pub suspended_at: Option<DateTime<Utc>>,
    /// Why it is suspended, as whoever did it wrote.
    #[serde(default)]
    pub suspend_reason: Option<String>,
    /// When it is removed for good, while it is being deleted. Until then it can be taken back.
    #[serde(default)]
    pub delete_after: Option<DateTime<Utc>>,
    /// When it was removed for good.
    #[serde(default)]
    pub deleted_at: Option<DateTime<Utc>>,
}

/// Where a tenant's database is. Never holds a credential.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantDatabase {
    /// Whose server it is on.
    pub mode: DatabaseMode,
    /// The cluster's name, if it is on a cluster of the owner's.
    pub cluster: Option<String>,
    /// The database's name, once it is decided.
    pub name: Option<String>,
}

/// Whose models answer a tenant's questions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AiMode {
    /// Those of its own AI keys.
    #[default]
    Own,
    /// Those that the owner lends.
    Shared,
    /// Those of its own AI keys, and behind them those that the owner lends.
    OwnThenShared,
}

impl AiMode {
    /// The name in the database, the same as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Shared => "shared",
            Self::OwnThenShared => "own_then_shared",
        }
    }

    /// Reads the name in the database; the column's CHECK knows the same names.
    pub fn parse(text: &str) -> Self {
        match text {
            "shared" => Self::Shared,
            "own_then_shared" => Self::OwnThenShared,
            _ => Self::Own,
        }
    }
}

/// Whose server a tenant's database is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatabaseMode {
    /// A cluster that the owner runs.
    Managed,
    /// The client's own.
    Own,
}

impl DatabaseMode {
    /// Reads the name in the database; the column's CHECK knows the same names.
    pub fn parse(text: &str) -> Self {
        if text == "own" { Self::Own } else { Self::Managed }
    }
}

/// A page of tenants.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantPage {
    /// Oldest first.
    pub items: Vec<Tenant>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// `PATCH /platform/v1/tenants/{slug}`. What is left out stays as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateTenantRequest {
    /// The company's name.
    #[garde(inner(length(chars, min = 1, max = 200)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The plan.
    #[garde(inner(length(chars, min = 1, max = 50)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    /// Where to reach the client's admin.
    #[garde(inner(email), inner(length(max = 254)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_email: Option<String>,
    /// What it may use.
    #[garde(dive)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<TenantLimitsChange>,
    /// Whose models answer its questions.
    #[garde(skip)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ai_mode: Option<AiMode>,
}

/// The state of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Waiting for a worker.
    Queued,
    /// Being carried out.
    Running,
    /// A step failed for good; what was done is being undone.
    Undoing,
    /// All steps are done.
    Succeeded,
    /// It failed, and all it had done is undone.
    Failed,
    /// Undoing failed too: somebody has to look, and `retry` when the cause is gone.
    NeedsOperator,
}

impl OperationState {
    /// Whether nothing more will happen by itself.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::NeedsOperator)
    }
}

/// The state of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Being carried out.
    Running,
    /// Done.
    Done,
    /// Being undone.
    Undoing,
    /// Undone.
    Undone,
    /// It could not be carried out, or not be undone.
    Failed,
}

/// A durable operation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// The operation's id.
    pub id: Uuid,
    /// What it does, for example `provision_tenant`.
    pub kind: String,
    /// The tenant it works on.
    pub tenant: Option<String>,
    /// How far it is.
    pub state: OperationState,
    /// Its steps, in order.
    pub steps: Vec<OperationStep>,
    /// How far the present step is, if it works on many things.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<OperationProgress>,
    /// The group of operations that were asked for together, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_id: Option<Uuid>,
    /// Why it failed, and what to do.
    pub error: Option<OperationError>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When a worker first took it.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was settled.
    pub finished_at: Option<DateTime<Utc>>,
}

/// How far a step is that works on many things, such as all tenants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationProgress {
    /// How many are done, those that failed included.
    pub done: u64,
    /// How many of them failed.
    pub failed: u64,
    /// How many there are.
    pub total: u64,
}

/// Operations that were asked for together, counted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OperationGroup {
    /// The group's id.
    pub id: Uuid,
    /// How many operations it has.
    pub total: u64,
    /// Not begun.
    pub queued: u64,
    /// Being carried out or undone.
    pub running: u64,
    /// Done.
    pub succeeded: u64,
    /// Failed and undone.
    pub failed: u64,
    /// Failed, and undoing failed too.
    pub needs_operator: u64,
}

impl OperationGroup {
    /// Whether nothing more will happen by itself.
    pub fn is_settled(&self) -> bool {
        self.queued == 0 && self.running == 0
    }
}

/// One step of an operation.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OperationStep {
    /// The step's name.
    pub name: String,
    /// How far it is.
    pub state: StepState,
    /// How often it was tried.
    pub tries: i32,
    /// When it was last begun.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was done or undone.
    pub finished_at: Option<DateTime<Utc>>,
}

/// Why an operation failed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OperationError {
    /// A stable code.
    pub code: String,
    /// What happened, at which step, and what to do.
    pub message: String,
}

/// A page of operations.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OperationPage {
    /// Newest first.
    pub items: Vec<Operation>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// `POST /platform/v1/clusters`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateClusterRequest {
    /// The cluster's name: 1 to 40 of `a-z`, `0-9` and `-`.
    #[garde(length(chars, min = 1, max = 40), pattern("^[a-z0-9-]+$"))]
    pub name: String,
    /// A Postgres URL of a role that may create databases and roles. It is stored sealed and never shown again.
    #[garde(skip)]
    #[schema(value_type = String, format = Password)]
    pub admin_url: SecretString,
}

/// `PUT /platform/v1/clusters/{name}`.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateClusterRequest {
    /// A Postgres URL that leads to the same server. It is stored sealed and never shown again.
    #[garde(skip)]
    #[schema(value_type = String, format = Password)]
    pub admin_url: SecretString,
}

/// A Postgres server on which managed tenants get their databases.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    /// The cluster's id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How many tenants' databases are registered there.
    pub tenants: i64,
    /// The schema version of its template database.
    pub template_schema_version: Option<i64>,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
}

/// All clusters.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ClusterList {
    /// By name.
    pub items: Vec<Cluster>,
}
