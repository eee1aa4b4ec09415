//! The errors that requests of a tenant's people and programs meet.

use axum::http::StatusCode;

use super::{ApiError, log};
use crate::access::AccessError;
use crate::chat::{CallError, ChatError, ImageError};
use crate::configuration::ConfigurationError;
use crate::metering::MeteringError;
use crate::secrets::PasswordError;
use crate::tenant_db::TenantDbError;

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
            AccessError::LastSuperAdmin => Self::conflict("last_super_admin", "The last super admin stays"),
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
            ChatError::Full(full) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Too much is being sent at once")
                    .detail("ask again in a moment")
                    .retry_after(full.retry_after)
            }
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
