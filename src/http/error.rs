//! The only table from errors to answers: status, stable code and a text that is safe to show.
//!
//! Causes are logged here, once, with the request's id; they never reach the client.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio_postgres::error::SqlState;

use super::context::request_id;
use crate::access::AccessError;
use crate::api::database::DatabaseFinding;
use crate::api::{FieldProblem, Problem};
use crate::backup_archive::ArchiveError;
use crate::backups::BackupError;
use crate::chat::{CallError, ChatError, ImageError};
use crate::configuration::ConfigurationError;
use crate::fleet::FleetError;
use crate::fleet_audit::FleetAuditError;
use crate::idempotency::IdempotencyError;
use crate::ids::OperationId;
use crate::metering::MeteringError;
use crate::operations::OperationError;
use crate::postgres_programs::ProgramError;
use crate::rotation::RotationError;
use crate::secrets::PasswordError;
use crate::shared_models::SharedModelError;
use crate::telemetry::causes;
use crate::tenant_db::TenantDbError;
use crate::tenants::TenantError;

/// An error on its way to the client.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    /// Boxed, because an error travels by value, mostly in the `Err` that is not taken.
    more: Box<More>,
}

/// What is said beyond the code.
#[derive(Debug, Default)]
struct More {
    stored_code: Option<Cow<'static, str>>,
    detail: Option<String>,
    errors: Vec<FieldProblem>,
    findings: Vec<DatabaseFinding>,
    operation_id: Option<OperationId>,
    retry_after: Option<Duration>,
    headers: HeaderMap,
}

/// What handlers return.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error with a status, a stable code and a title that does not vary.
    pub fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self { status, code, title, more: Box::default() }
    }

    /// A code that is known from what was stored, told in the place of the one it was made with.
    #[must_use]
    pub fn stored_code(mut self, code: Cow<'static, str>) -> Self {
        self.more.stored_code = Some(code);
        self
    }

    /// Says what happened this time and what to do about it.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.more.detail = Some(detail.into());
        self
    }

    /// Names a field that was refused.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>, message: impl Into<String>) -> Self {
        self.more.errors.push(FieldProblem { field: field.into(), message: message.into() });
        self
    }

    /// Names a field that was refused as the route's own body does.
    #[must_use]
    pub fn rename_field(mut self, from: &str, to: &str) -> Self {
        for problem in self.more.errors.iter_mut().filter(|problem| problem.field == from) {
            to.clone_into(&mut problem.field);
        }
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.more.retry_after = Some(wait);
        self
    }

    /// Headers beside the usual ones.
    #[must_use]
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        self.more.headers = headers;
        self
    }

    /// 401: no credential, or one that proves nothing. It never says which.
    pub fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "A valid credential is needed")
    }

    /// 403: the credential is good, but does not allow this.
    pub fn forbidden(permission: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "This is not allowed to you")
            .detail(format!("the permission `{permission}` is needed"))
    }

    /// 404: there is nothing here that the caller may know of.
    pub fn not_found(what: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "There is no such thing").detail(format!("no such {what}"))
    }

    /// 422: a field was refused.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "The request was refused").field(field, message)
    }

    /// 413: the body is larger than this route takes.
    pub fn body_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large")
    }

    /// 409: it does not fit what is there.
    pub fn conflict(code: &'static str, title: &'static str) -> Self {
        Self::new(StatusCode::CONFLICT, code, title)
    }

    /// 503: something we need does not answer; the cause is logged.
    pub fn unavailable(code: &'static str, title: &'static str, cause: &(dyn std::error::Error + 'static)) -> Self {
        log(code, cause);
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, title).retry_after(Duration::from_secs(2))
    }

    /// 500: our fault; the cause is logged.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        log("internal", cause);
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Something went wrong on our side")
    }

    /// A tenant's database refused a statement, or went away while it was at it.
    fn tenant_database(error: &tokio_postgres::Error) -> Self {
        // It also says goodbye: somebody ended the session, or the server stops or starts.
        let leaving = [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW];
        if error.code().is_none_or(|code| leaving.contains(&code)) {
            return Self::unavailable("tenant_database_unavailable", "The database does not answer", error);
        }
        Self::internal(error)
    }

    /// 422: the fields that a report names were refused.
    pub fn from_report(report: &garde::Report) -> Self {
        let refused = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "The request was refused");
        report.iter().fold(refused, |error, (path, message)| error.field(path.to_string(), message.to_string()))
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What happened, in words that do not vary.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// What happened this time.
    pub fn detail_text(&self) -> Option<&str> {
        self.more.detail.as_deref()
    }

    /// Headers beyond those that every error has.
    pub fn more_headers(&self) -> &HeaderMap {
        &self.more.headers
    }

    /// When to try again.
    pub fn wait(&self) -> Option<Duration> {
        self.more.retry_after
    }
}

fn log(code: &'static str, error: &(dyn std::error::Error + 'static)) {
    tracing::error!(code, causes = causes(error), "request failed");
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: self.title.to_owned(),
            status: self.status.as_u16(),
            code: self.more.stored_code.map_or_else(|| self.code.to_owned(), Cow::into_owned),
            detail: self.more.detail,
            errors: self.more.errors,
            findings: self.more.findings,
            operation_id: self.more.operation_id.map(|id| id.as_uuid()),
            request_id: request_id(),
        };
        let mut response = (self.status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.extend(self.more.headers);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(wait) = self.more.retry_after {
            // Rounded up: whoever comes back after so many seconds must not be a moment early.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::unavailable("platform_unavailable", "The platform's database does not answer", &error)
    }
}

impl From<TenantDbError> for ApiError {
    fn from(error: TenantDbError) -> Self {
        match error {
            TenantDbError::NotActive => {
                Self::new(StatusCode::FORBIDDEN, "tenant_not_active", "This service is not active")
            }
            TenantDbError::Suspended => {
                Self::new(StatusCode::FORBIDDEN, "tenant_suspended", "This service is suspended")
            }
            TenantDbError::Deleting => {
                Self::new(StatusCode::FORBIDDEN, "tenant_deleting", "This service is being removed")
            }
            TenantDbError::SchemaTooOld => {
                Self::unavailable("tenant_schema_too_old", "The database has to be migrated first", &error)
                    .detail("the owner runs `freehold migrate`")
            }
            TenantDbError::SchemaTooNew => {
                Self::unavailable("tenant_schema_too_new", "The database is newer than this server", &error)
                    .detail("the owner updates this server")
            }
            TenantDbError::NoConnectionFree { retry_after } => {
                Self::unavailable("tenant_database_busy", "Too many requests at once", &error).retry_after(retry_after)
            }
            // Not logged: whoever opened the circuit has said why, once for all that are refused by it.
            TenantDbError::CircuitOpen { retry_after } => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "tenant_database_unavailable",
                "The database does not answer",
            )
            .retry_after(retry_after),
            TenantDbError::Unreachable(_) => {
                Self::unavailable("tenant_database_unavailable", "The database does not answer", &error)
            }
            TenantDbError::Platform(error) => error.into(),
            TenantDbError::Sealed => Self::internal(&error),
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Unauthenticated => Self::unauthenticated(),
            AccessError::InvalidInvite => {
                Self::new(StatusCode::UNAUTHORIZED, "invalid_invite", "The invite is not valid")
                    .detail("it was used, replaced or has expired, or never was; ask for a new one")
            }
            AccessError::TenantNotActive => TenantDbError::NotActive.into(),
            AccessError::Forbidden { permission } => Self::forbidden(permission),
            AccessError::RoleNotGoverned => {
                Self::new(StatusCode::FORBIDDEN, "role_not_governed", "This role is not yours to govern")
                    .detail("you may give roles, and change users of roles, that may do less than your own")
            }
            AccessError::OwnAccount => Self::conflict("own_account", "Nobody disables or deletes their own account"),
            AccessError::LastAdmin => Self::conflict("last_admin", "The last admin stays an admin")
                .detail("make somebody else an admin first"),
            AccessError::TooManyAttempts { retry_after } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_attempts",
                "Too many attempts to sign in to this account",
            )
            .retry_after(retry_after),
            AccessError::VisitorsNotAllowed => {
                Self::new(StatusCode::FORBIDDEN, "visitors_not_allowed", "An account is needed to chat here")
            }
            AccessError::VisitorLimit { retry_after } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "visitor_limit_reached",
                "No more can be asked without an account for now",
            )
            .retry_after(retry_after),
            AccessError::EmailTaken => Self::conflict("email_taken", "Another user has this e-mail address"),
            AccessError::InvalidEmail => Self::invalid("email", error.to_string()),
            AccessError::WeakPassword(reason) => Self::invalid("password", reason.to_string()),
            AccessError::TooManyApiKeys { limit } => Self::conflict("too_many_api_keys", "There are too many API keys")
                .detail(format!("at most {limit} may be in force; revoke one that nobody uses")),
            AccessError::ExpiryPast => Self::invalid("expires_at", "must be in the future"),
            AccessError::NotFound(what) => Self::not_found(what),
            AccessError::TenantDb(error) => error.into(),
            AccessError::TenantDatabase(error) => Self::tenant_database(&error),
            AccessError::PlatformDatabase(error) => error.into(),
            AccessError::Password(PasswordError::Busy) => {
                Self::unavailable("busy", "Too many people are signing in at once", &error)
            }
            AccessError::Password(_) | AccessError::Random(_) | AccessError::NoSigningKey | AccessError::Signing(_) => {
                Self::internal(&error)
            }
        }
    }
}

impl From<ConfigurationError> for ApiError {
    fn from(error: ConfigurationError) -> Self {
        match error {
            ConfigurationError::VersionConflict { current } => {
                Self::conflict("version_conflict", "The settings have changed meanwhile")
                    .detail(format!("version {current} is in force; read it, and make the change again"))
            }
            ConfigurationError::Invalid(report) => Self::from_report(&report),
            ConfigurationError::Refused { field, message } => Self::invalid(field, message),
            ConfigurationError::NotFound => Self::not_found("AI key"),
            ConfigurationError::Contended => {
                Self::conflict("ai_key_contended", "Somebody else is changing this AI key").detail("try again")
            }
            ConfigurationError::Unreadable => Self::internal(&error),
            ConfigurationError::UnusableKey => {
                log("ai_key_unusable", &error);
                Self::conflict("ai_key_unusable", "A stored AI key cannot be used").detail("set the AI key again")
            }
            ConfigurationError::TenantDb(error) => error.into(),
            ConfigurationError::Database(error) => Self::tenant_database(&error),
        }
    }
}

impl From<SharedModelError> for ApiError {
    fn from(error: SharedModelError) -> Self {
        match error {
            SharedModelError::Configuration(error) => error.into(),
            SharedModelError::NotFound => Self::not_found("shared model"),
            SharedModelError::Unusable => {
                log("shared_model_unusable", &error);
                Self::conflict("shared_model_unusable", "The stored key cannot be used").detail("set it again")
            }
            SharedModelError::Database(error) => error.into(),
        }
    }
}

impl From<ChatError> for ApiError {
    fn from(error: ChatError) -> Self {
        match error {
            ChatError::Empty => Self::invalid("message", "must not be empty"),
            ChatError::TooLong { limit } => Self::invalid("message", format!("must be at most {limit} characters")),
            ChatError::NotFound => Self::not_found("conversation"),
            ChatError::AnswerNotFound => Self::not_found("answer"),
            ChatError::ModelNotAllowed => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "model_not_allowed", "This model may not be used")
                    .field("model", "is not one of the models of this service")
            }
            ChatError::AssistantUnknown => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "assistant_unknown", "There is no such assistant")
                    .field("assistant", "is not one of the assistants of this service")
            }
            ChatError::AssistantNotInPlan { assistant, feature, plan } => {
                Self::new(StatusCode::FORBIDDEN, "feature_not_in_plan", "The plan does not have this").detail(format!(
                    "the assistant `{assistant}` needs the feature `{feature}`, which the plan `{plan}` does not have"
                ))
            }
            ChatError::ImagesNotAccepted { assistant, accepting } => {
                let who = assistant.map_or_else(String::new, |name| format!("the assistant `{name}` accepts none; "));
                let others = match accepting.is_empty() {
                    true => "no assistant of this service accepts images".to_owned(),
                    false => format!("assistants that accept images: `{}`", accepting.join("`, `")),
                };
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "images_not_accepted", "Images are not accepted")
                    .field("images", who + &others)
            }
            ChatError::Images(error) => match error {
                ImageError::Refused { index, problem } => {
                    Self::invalid(format!("images[{index}]"), problem.to_string())
                }
                ImageError::TooMany | ImageError::TooLargeTogether => Self::invalid("images", error.to_string()),
            },
            ChatError::ImageNotFound => Self::not_found("image"),
            ChatError::NoModel => Self::conflict("model_missing", "No AI key offers a model that may be used")
                .detail("an admin has to set `models` in the settings to models that an AI key offers"),
            ChatError::AiKeyMissing => Self::conflict("ai_key_missing", "No AI key is set")
                .detail("an admin has to set one first: PUT /api/v1/ai-keys/{name}"),
            ChatError::NotInForce => Self::unauthenticated(),
            ChatError::Call(error) => error.into(),
            ChatError::Configuration(error) => error.into(),
            ChatError::TenantDb(error) => error.into(),
            ChatError::Database(error) => Self::tenant_database(&error),
            ChatError::TaskLost => Self::internal(&error),
        }
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::AllDown { retry_after } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "models_unavailable", "No model answers just now")
                    .retry_after(retry_after)
            }
            CallError::Stopping => Self::unavailable("server_stopped", "The server is stopping", &error),
            // As for any other request of the tenant's users from now on.
            CallError::Closed(code) => Self::new(StatusCode::FORBIDDEN, code, "This service is not active"),
            CallError::Provider(_) | CallError::Deadline => {
                Self::new(StatusCode::BAD_GATEWAY, error.code(), "The answer failed").detail(error.to_string())
            }
        }
    }
}

impl From<MeteringError> for ApiError {
    fn from(error: MeteringError) -> Self {
        match error {
            MeteringError::TenantDb(error) => error.into(),
            MeteringError::Database(error) => Self::tenant_database(&error),
        }
    }
}

impl From<BackupError> for ApiError {
    fn from(error: BackupError) -> Self {
        let text = error.to_string();
        let refused = |code| Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, "The backup cannot be used");
        match error {
            BackupError::NoDirectory => Self::conflict("backup_dir_missing", "Backups are not set up").detail(text),
            BackupError::OneSecret => Self::invalid("passphrase", text),
            BackupError::Passphrase(_) => Self::invalid("passphrase", text),
            BackupError::KeyFile(_) => Self::invalid("key", text),
            BackupError::NotFound => Self::not_found("backup"),
            BackupError::NotComplete => Self::conflict("backup_not_complete", "The backup is not complete"),
            BackupError::FileMissing => Self::conflict("backup_file_missing", "The backup's file is not here").detail(
                "it was removed, or the backup directory is not shared by all servers: ask the one that has the file",
            ),
            BackupError::InUse(operation) => {
                let mut conflict = Self::conflict("backup_in_use", "An operation works on the backup").detail(text);
                conflict.more.operation_id = Some(operation);
                conflict
            }
            BackupError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "The file is too large")
                    .detail(format!("{text}; the setting is FREEHOLD_BACKUP_UPLOAD_GIB"))
            }
            BackupError::BrokenOff => Self::new(StatusCode::BAD_REQUEST, "upload_broken_off", "The upload broke off"),
            BackupError::Archive(ArchiveError::Io(_)) | BackupError::Io(_) => {
                Self::unavailable("backup_dir_unusable", "The backup directory cannot be used", &error)
            }
            BackupError::Archive(archive) => refused(archive.code()).detail(text),
            BackupError::SchemaNewer { .. } => {
                refused("backup_schema_newer").detail(format!("{text}; restore it with a newer version of Freehold"))
            }
            BackupError::NoDatabase { .. } => {
                Self::conflict("tenant_without_database", "There is nothing to back up").detail(text)
            }
            BackupError::TenantExists { .. } => Self::conflict("tenant_exists", "The tenant is there").detail(format!(
                "{text}; one in service is replaced if `replace` names it, one that is suspended has to be resumed first, one \
                 being deleted to be undeleted"
            )),
            BackupError::OtherTenant(_) => refused("backup_of_another_tenant").detail(text),
            BackupError::OwnDatabase => refused("backup_of_own_database").detail(text),
            BackupError::Busy => Self::unavailable("busy", "Too many backups are asked for at once", &error),
            BackupError::Program(ProgramError::Missing { .. } | ProgramError::Unsuitable { .. }) => {
                log("postgres_client_missing", &error);
                Self::conflict("postgres_client_missing", "The PostgreSQL client programs are missing").detail(text)
            }
            BackupError::Provisioning(error) => TenantError::from(error).into(),
            BackupError::Tenant(error) => error.into(),
            BackupError::Operation(error) => error.into(),
            BackupError::Database(error) => error.into(),
            BackupError::KeyGone
            | BackupError::Unreadable
            | BackupError::Program(_)
            | BackupError::Differs(_)
            | BackupError::Migration(_)
            | BackupError::Task(_) => Self::internal(&error),
        }
    }
}

impl From<OperationError> for ApiError {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::Conflict { holder, kind } => {
                let mut conflict = Self::conflict("operation_in_progress", "Another operation holds the tenant")
                    .detail(format!("operation {holder} ({kind}) has to be settled first"));
                conflict.more.operation_id = Some(holder);
                conflict
            }
            OperationError::NotFound => Self::not_found("operation"),
            OperationError::TenantGone => Self::conflict("tenant_gone", "The tenant was deleted for good")
                .detail("nothing is done to it any more"),
            OperationError::NotRetryable => {
                Self::conflict("operation_not_failed", "Only an operation that failed can be retried")
            }
            OperationError::Database(error) => error.into(),
            OperationError::Queue(error) => Self::internal(error.as_ref()),
        }
    }
}

impl From<FleetError> for ApiError {
    fn from(error: FleetError) -> Self {
        match error {
            FleetError::UnknownTenants { slugs } => {
                Self::invalid("tenants", format!("there is no tenant {}", slugs.join(", ")))
            }
            FleetError::UnknownVersion { .. } => Self::invalid("target_version", error.to_string()),
            FleetError::Operation(error) => error.into(),
            FleetError::Database(error) => error.into(),
        }
    }
}

impl From<FleetAuditError> for ApiError {
    fn from(error: FleetAuditError) -> Self {
        match error {
            FleetAuditError::Operation(error) => error.into(),
            FleetAuditError::Database(error) => error.into(),
        }
    }
}

impl From<IdempotencyError> for ApiError {
    fn from(error: IdempotencyError) -> Self {
        match error {
            IdempotencyError::Reused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency_key_reused",
                "The Idempotency-Key was used for another request",
            ),
            IdempotencyError::Unreadable => Self::internal(&error),
            IdempotencyError::Database(error) => error.into(),
        }
    }
}

impl From<TenantError> for ApiError {
    fn from(error: TenantError) -> Self {
        let one_of = |known: &[String]| format!("must be one of: {}", known.join(", "));
        match error {
            TenantError::Slug(error) => Self::invalid("slug", error.to_string()),
            TenantError::SlugTaken => Self::conflict("slug_taken", "Another tenant has this slug"),
            TenantError::UnknownPlan { known } => Self::invalid("plan", one_of(&known)),
            TenantError::UnknownTemplate { known } => Self::invalid("template", one_of(&known)),
            TenantError::UnknownCluster => Self::invalid("database.cluster", "no cluster of this name is registered"),
            TenantError::ClusterNeeded { known } if known.is_empty() => {
                Self::conflict("no_cluster", "No cluster is registered")
                    .detail("register one with `freehold cluster add` first")
            }
            TenantError::ClusterNeeded { known } => Self::invalid("database.cluster", one_of(&known)),
            TenantError::ClusterNameTaken => {
                Self::conflict("cluster_name_taken", "A cluster of this name is registered")
            }
            TenantError::UnsuitableCluster(reason) => Self::invalid("admin_url", reason),
            TenantError::UnsuitableDatabase(report) => {
                let mut refused = Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "database_unsuitable",
                    "The database cannot be used like this",
                );
                refused.more.findings = report.findings;
                refused
            }
            TenantError::NotOwnDatabase => {
                Self::conflict("database_managed", "The platform manages this tenant's database")
            }
            TenantError::NotWaiting => Self::conflict("tenant_not_active", "The tenant takes no database now")
                .detail("it is being set up, suspended for good, or removed"),
            TenantError::NotFound => Self::not_found("tenant"),
            TenantError::WrongState { .. } => {
                Self::conflict("wrong_tenant_state", "The tenant is not in a state for this").detail(error.to_string())
            }
            TenantError::PurgeBegun => Self::conflict("purge_begun", "The tenant is being removed for good")
                .detail("its database may be gone already: only a backup of its own brings it back"),
            TenantError::Contended => {
                Self::conflict("tenant_contended", "The tenant kept changing meanwhile").detail("try again")
            }
            TenantError::Operation(error) => error.into(),
            TenantError::Idempotency(error) => error.into(),
            TenantError::Provisioning(error) => {
                Self::unavailable("cluster_unavailable", "The cluster did not do what was asked", &error)
            }
            TenantError::Sealed | TenantError::Random => Self::internal(&error),
            TenantError::Database(error) => error.into(),
        }
    }
}

impl From<RotationError> for ApiError {
    fn from(error: RotationError) -> Self {
        match error {
            RotationError::UnknownTenant(_) => Self::invalid("tenants", error.to_string()),
            RotationError::Targets(reason) => Self::invalid("tenants", reason),
            RotationError::Period => Self::invalid("schedule", error.to_string()),
            RotationError::NotActive => Self::conflict("tenant_not_active", "The tenant is not in service"),
            RotationError::NotManaged => {
                Self::conflict("database_not_managed", "The client keeps this database itself")
                    .detail("the client's admin gives new credentials: PUT /api/v1/database")
            }
            RotationError::MasterKeyMissing(version) => {
                Self::conflict("master_key_missing", "This server does not hold a master key that is in use")
                    .detail(format!("give every server version {version} in FREEHOLD_MASTER_KEYS, and restart them"))
            }
            RotationError::NothingToRotate(version) => {
                Self::conflict("nothing_to_rotate", "Everything is under the newest master key that this server holds")
                    .detail(format!(
                        "it is version {version}; add one with a higher version to FREEHOLD_MASTER_KEYS on every \
                         server, and restart them first"
                    ))
            }
            RotationError::Operation(error) => error.into(),
            RotationError::Database(error) => error.into(),
        }
    }
}
