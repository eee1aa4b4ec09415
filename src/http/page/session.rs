//! `/c/{slug}/session`: the page's own sign-in, which keeps the long-lived token out of every script's reach.
//!
//! The refresh token is in a cookie: `HttpOnly`, so that no script reads it, whatever gets into a page; `SameSite=Strict` and
//! limited to this path, so that no other site's request and no other route ever carries it; `Secure` wherever the platform is
//! reached over TLS. Acting on a cookie needs a proof that it was our own page that asked: a header that a browser lets
//! another site's page set only if we answered a preflight, which we never do. The token in the cookie is not replaced with
//! each use, as those are that scripts can read: two tabs, or a page that is reloaded while the answer with the new one is on
//! its way, would look like a thief and be signed out. Nothing but these three routes looks at
//! cookies; the API itself takes bearer tokens and is out of reach of forged requests altogether.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use secrecy::{ExposeSecret as _, SecretString};

use crate::access::{Access, AccessError, SignedIn};
use crate::api::page::{PageSession, PageSessionRequest};
use crate::app::AppState;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::Valid;
use crate::ids::Slug;
use crate::telemetry::causes;

/// What our own page sends along.
const PAGE_HEADER: &str = "x-freehold-page";

/// A request of our own page, and the tenant whose page it is.
#[derive(Debug)]
pub(super) struct OwnPage(Slug);

impl axum::extract::FromRequestParts<AppState> for OwnPage {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let foreign = parts.headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin");
        if foreign || !parts.headers.contains_key(PAGE_HEADER) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "not_the_page",
                "This is for the chat page itself; programs use /api/v1/auth",
            ));
        }
        let slug = Path::<String>::from_request_parts(parts, state).await.map(|Path(slug)| slug.parse::<Slug>());
        // As for a tenant that there is not.
        slug.ok().and_then(Result::ok).map(Self).ok_or_else(ApiError::unauthenticated)
    }
}

/// Signs in with an address and a password, or as a visitor. Whoever this browser had signed in before is signed out: the cookie
/// that could go on with it is replaced.
pub(super) async fn create(
    OwnPage(slug): OwnPage,
    State(state): State<AppState>,
    headers: HeaderMap,
    Valid(request): Valid<PageSessionRequest>,
) -> ApiResult<Response> {
    let signed_in = match (request.visitor, request.email, request.password) {
        (true, None, None) => {
            let limits = state.pages.visitor_limits(slug.as_str()).await?;
            state.tokens.visit(slug.as_str(), limits).await?
        }
        (false, Some(email), Some(password)) => state.tokens.login(slug.as_str(), &email, &password).await?,
        _ => return Err(ApiError::invalid("email", "an address and a password are needed, or `visitor`")),
    };
    if let Some(former) = cookie(&state, &headers)
        && let Err(error) = state.tokens.logout(&former).await
    {
        // It ends by itself; nobody has it any more.
        tracing::debug!(causes = causes(&error), "sign out whoever was signed in before");
    }
    session(&state, &slug, &signed_in)
}

/// A new access token for the cookie's token, which stays as it is. One that is in force no more takes its cookie with it; while
/// the tenant is out of service nobody can say, and the cookie stays.
pub(super) async fn refresh(
    OwnPage(slug): OwnPage,
    State(state): State<AppState>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let token = cookie(&state, &headers).ok_or_else(ApiError::unauthenticated)?;
    match state.tokens.renew(&token).await {
        Ok(access) => Ok(Json(body(&access)).into_response()),
        Err(AccessError::Unauthenticated) => {
            let mut response = ApiError::unauthenticated().into_response();
            set_cookie(&mut response, &state, &slug, "", 0)?;
            Ok(response)
        }
        Err(error) => Err(error.into()),
    }
}

/// Signs out.
pub(super) async fn end(
    OwnPage(slug): OwnPage,
    State(state): State<AppState>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    if let Some(token) = cookie(&state, &headers) {
        state.tokens.logout(&token).await?;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_cookie(&mut response, &state, &slug, "", 0)?;
    Ok(response)
}

fn body(access: &Access) -> PageSession {
    PageSession {
        access_token: access.token.expose_secret().to_owned(),
        expires_in: access.expires_in.num_seconds(),
        user_id: access.user_id.as_uuid(),
        role: access.role,
    }
}

fn session(state: &AppState, slug: &Slug, signed_in: &SignedIn) -> ApiResult<Response> {
    let mut response = Json(body(&signed_in.access)).into_response();
    let lifetime = state.config.refresh_token_lifetime.as_secs();
    set_cookie(&mut response, state, slug, signed_in.refresh_token.expose(), lifetime)?;
    Ok(response)
}

/// With the prefix, a browser takes it over TLS only.
fn name(state: &AppState) -> &'static str {
    if secure(state) { "__Secure-freehold_refresh" } else { "freehold_refresh" }
}

fn secure(state: &AppState) -> bool {
    state.config.public_url.scheme() == "https"
}

fn cookie(state: &AppState, headers: &HeaderMap) -> Option<SecretString> {
    let name = name(state);
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut values = pairs.flat_map(|pairs| pairs.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = values.find(|(known, value)| *known == name && !value.is_empty())?;
    Some(SecretString::from(value.to_owned()))
}

fn set_cookie(response: &mut Response, state: &AppState, slug: &Slug, value: &str, seconds: u64) -> ApiResult<()> {
    let (name, secure) = (name(state), if secure(state) { "; Secure" } else { "" });
    let cookie =
        format!("{name}={value}; Path=/c/{slug}/session; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    let mut cookie = HeaderValue::from_str(&cookie).map_err(|error| ApiError::internal(&error))?;
    cookie.set_sensitive(true);
    response.headers_mut().append(header::SET_COOKIE, cookie);
    Ok(())
}
