//! The OpenAPI document.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// What the document says beside the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Freehold",
        description = "The platform API is for super admins (bearer token of `POST /platform/v1/sessions`). The tenant \
                       API under `/api/v1` is for a client's users (access token of `POST /api/v1/auth/login`): the \
                       tenant, the user and what it may do come from the token alone. Errors are problem JSON \
                       (RFC 9457) with a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(crate::api::Problem)),
    modifiers(&Security)
)]
pub struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer = |description: &str| {
            SecurityScheme::Http(
                HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build(),
            )
        };
        components.add_security_scheme("super_admin", bearer("a super admin's session token"));
        components.add_security_scheme("tenant_user", bearer("the access token of a tenant's user"));
        components.add_security_scheme("api_key", bearer("a tenant's API key, `fh_…`"));
        components.add_security_scheme("database_token", bearer("the token with which a client gives its database"));
    }
}
