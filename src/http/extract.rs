//! Handler arguments that prove something: that a caller is a super admin, or a tenant's user with a permission, or
//! that a body is well formed. Arguments are extracted in order, so authority comes before the body is even read.

use std::marker::PhantomData;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use garde::Validate;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::access::{DatabaseManage, Permission, SuperAdminSession, TenantCaller};
use crate::app::AppState;
use crate::audit::Actor;
use crate::ids::TenantId;
use crate::secrets::TokenPrefix;
use crate::tenant_db::TenantDb;

/// The bearer token of a request.
pub(super) fn bearer(parts: &Parts) -> Result<&str, ApiError> {
    let value = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, token) = value.and_then(|value| value.split_once(' ')).ok_or_else(ApiError::unauthenticated)?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(ApiError::unauthenticated());
    }
    Ok(token.trim())
}

/// The tenant whose token or key a request came with: for those of a handler's arguments that come behind the proof of it.
#[derive(Debug, Clone)]
pub(super) struct Sender(pub(super) TenantDb);

impl Sender {
    /// Who sent it; none before that is proved.
    pub(super) fn of(request: &Request) -> Option<Self> {
        request.extensions().get().cloned()
    }
}

/// A super admin, proved by a session token that is in force.
#[derive(Debug)]
pub struct SuperAdmin(pub SuperAdminSession);

impl FromRequestParts<AppState> for SuperAdmin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let token = bearer(parts)?;
        Ok(Self(state.super_admins.authenticate(token).await?))
    }
}

/// A tenant's user whose token carries the permission `P`. Says nothing of whether the user was disabled since: the
/// token lives for minutes, and a handler that must know asks for [`Active`].
#[derive(Debug)]
pub struct Caller<P> {
    /// Who it is, and the tenant's database.
    pub caller: TenantCaller,
    permission: PhantomData<P>,
}

impl<P: Permission> FromRequestParts<AppState> for Caller<P> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let token = bearer(parts)?;
        let caller = state.tokens.verify(token).await?;
        tracing::Span::current().record("tenant", caller.db.record().slug.as_str());
        if !caller.permissions.allow(P::NAME) {
            return Err(ApiError::forbidden(P::NAME));
        }
        parts.extensions.insert(Sender(caller.db.clone()));
        Ok(Self { caller, permission: PhantomData })
    }
}

/// A [`Caller`] who was also found in force in the tenant's database just now: not disabled, not signed out.
#[derive(Debug)]
pub struct Active<P> {
    /// Who it is, and the tenant's database.
    pub caller: TenantCaller,
    permission: PhantomData<P>,
}

impl<P: Permission> FromRequestParts<AppState> for Active<P> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let Caller { caller, .. } = Caller::<P>::from_request_parts(parts, state).await?;
        state.tokens.confirm_active(&caller).await?;
        Ok(Self { caller, permission: PhantomData })
    }
}

/// Somebody who may give a tenant its own database: its admin, found in force just now, or whoever holds the token that
/// the owner made for that. The token proves nothing anywhere else.
#[derive(Debug)]
pub struct DatabaseGiver {
    /// The tenant whose database it is.
    pub tenant_id: TenantId,
    /// Who gives it, for the record.
    pub actor: Actor,
}

impl FromRequestParts<AppState> for DatabaseGiver {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let token = bearer(parts)?;
        if token.starts_with(TokenPrefix::Database.as_str()) {
            let found = state.own_databases.authenticate(token).await?;
            let (tenant_id, slug) = found.ok_or_else(ApiError::unauthenticated)?;
            tracing::Span::current().record("tenant", slug.as_str());
            return Ok(Self { tenant_id, actor: Actor::DatabaseToken });
        }
        let Active { caller, .. } = Active::<DatabaseManage>::from_request_parts(parts, state).await?;
        Ok(Self { tenant_id: caller.db.record().id, actor: Actor::TenantUser(caller.user_id) })
    }
}

/// A JSON body.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(refuse(&rejection)),
        }
    }
}

/// What was wrong with a body, without quoting it: the parser's own message may hold a value, and so a secret.
fn refuse(rejection: &JsonRejection) -> ApiError {
    match rejection {
        JsonRejection::MissingJsonContentType(_) => {
            ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "The body must be JSON")
                .detail("send `content-type: application/json`")
        }
        JsonRejection::JsonDataError(error) => {
            let text = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", "The request was refused")
                .detail(shape_of(&text))
        }
        JsonRejection::BytesRejection(_) => ApiError::body_too_large(),
        _ => ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", "The body is not JSON"),
    }
}

/// Keeps of serde's message what names fields, and drops what quotes values.
fn shape_of(message: &str) -> String {
    let known = ["missing field", "unknown field", "unknown variant", "duplicate field"];
    let start = known.iter().filter_map(|words| message.find(words)).min();
    match start.and_then(|start| message.get(start..)) {
        Some(text) if !text.starts_with("unknown variant") => {
            text.split(" at line ").next().unwrap_or_default().to_owned()
        }
        _ => {
            let path = message.split(':').next().filter(|path| path.len() < 60 && !path.contains(' '));
            match path {
                Some(path) => format!("`{path}` has the wrong type or value"),
                None => "a field has the wrong type or value".to_owned(),
            }
        }
    }
}

/// A JSON body whose fields were checked against their limits.
#[derive(Debug)]
pub struct Valid<T>(pub T);

impl<T: DeserializeOwned + Validate<Context = ()>, S: Send + Sync> FromRequest<S> for Valid<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Body(body) = Body::<T>::from_request(request, state).await?;
        check(&body)?;
        Ok(Self(body))
    }
}

/// Checks limits; every field that is refused is named.
pub fn check<T: Validate<Context = ()>>(value: &T) -> Result<(), ApiError> {
    value.validate().map_err(|report| ApiError::from_report(&report))
}

/// A part of the path. One that cannot be read names nothing that exists.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path: Result<axum::extract::Path<T>, PathRejection> =
            axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Self(value)).map_err(|_| ApiError::not_found("resource"))
    }
}

/// The query.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query: Result<axum::extract::Query<T>, QueryRejection> =
            axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|axum::extract::Query(value)| Self(value)).map_err(|_| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", "The query was refused")
                .detail("a parameter has the wrong type or value")
        })
    }
}

/// `limit` and `cursor` of a listing.
#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// How many at most, 1 to 100; 50 when left out.
    pub limit: Option<u16>,
    /// Where to go on: the `next_cursor` of the page before.
    pub cursor: Option<uuid::Uuid>,
}

impl Page {
    /// The limit within its bounds.
    pub fn limit(&self) -> usize {
        usize::from(self.limit.unwrap_or(50).clamp(1, 100))
    }
}

/// Cuts the one item more that was asked for off a page; returns the cursor of the next page if there is one.
pub fn next_cursor<T>(items: &mut Vec<T>, limit: usize, id: impl Fn(&T) -> uuid::Uuid) -> Option<String> {
    if items.len() <= limit {
        return None;
    }
    items.truncate(limit);
    items.last().map(|last| id(last).to_string())
}
