//! The OpenAPI document: what it says of every route beside what stands at the route.
//!
//! What all routes have in common is added here, once: in which format errors come, that a credential may be refused, that the
//! platform's database may be away, which headers say when to come back. So a new route cannot forget it.

use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, Parameter, ParameterIn, PathItem};
use utoipa::openapi::schema::{Object, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, OpenApi as Described, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::openai;

const JSON: &str = "application/json";
/// What errors come as (RFC 9457), but for OpenAI's API.
const PROBLEM_JSON: &str = "application/problem+json";

/// What the document says beside the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Freehold",
        description = "The platform API is for super admins (bearer token of `POST /platform/v1/sessions`). The tenant \
                       API under `/api/v1` is for a client's users (access token of `POST /api/v1/auth/login`): the \
                       tenant, the user and what it may do come from the token alone. Errors are problem JSON \
                       (RFC 9457) with a stable `code`; `docs/errors.md` lists the codes. Every answer has an \
                       `x-request-id`, by which the server's log names the request.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(
        crate::api::Problem,
        crate::api::tenant::ChatStarted,
        crate::api::tenant::ChatDone,
        crate::api::tenant::ChatError
    )),
    modifiers(&Security)
)]
pub struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut Described) {
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

/// Routes whose requests count against a tenant's limits, and are told how these stand.
const COUNTED: [&str; 4] = ["/api/v1/chat", "/api/ai/query", "/v1/chat/completions", "/v1/embeddings"];

/// Adds what holds for every route. The routes have to be in the document by now.
pub fn complete(document: &mut Described) {
    for (path, item) in &mut document.paths.paths {
        let is_openai = path.starts_with(openai::PREFIX);
        let counted = COUNTED.contains(&path.as_str());
        for operation in operations(item) {
            complete_operation(operation, is_openai, counted);
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    [get, put, post, delete, patch].into_iter().flatten()
}

fn complete_operation(operation: &mut Operation, is_openai: bool, counted: bool) {
    let mut always =
        vec![("500", "something went wrong on our side"), ("503", "something that is needed does not answer")];
    if operation.security.as_ref().is_some_and(|schemes| !schemes.is_empty()) {
        always.push(("401", "no credential, or one that proves nothing"));
    }
    if takes_json(operation) {
        always.push(("400", "the body is not JSON"));
        always.push(("413", "the body is too large"));
        // OpenAI's clients send JSON whatever they call it.
        if !is_openai {
            always.push(("415", "the body is not said to be JSON"));
            always.push(("422", "a field was refused"));
        }
    } else if takes_query(operation) {
        always.push(("400", "the query was refused"));
    }
    let responses = &mut operation.responses.responses;
    for (status, description) in always {
        responses.entry(status.to_owned()).or_insert_with(|| error(description, is_openai).into());
    }
    for (status, response) in responses.iter_mut() {
        let RefOr::T(response) = response else { continue };
        let is_error = status.starts_with(['4', '5']);
        if is_error && !is_openai {
            response.content = std::mem::take(&mut response.content)
                .into_iter()
                .map(|(format, content)| (if format == JSON { PROBLEM_JSON.to_owned() } else { format }, content))
                .collect();
        }
        tell_headers(status, response, counted);
    }
}

fn takes_json(operation: &Operation) -> bool {
    match &operation.request_body {
        Some(RefOr::T(body)) => body.content.contains_key(JSON),
        _ => false,
    }
}

fn takes_query(operation: &Operation) -> bool {
    let is_query = |parameter: &RefOr<Parameter>| {
        matches!(parameter, RefOr::T(Parameter { parameter_in: ParameterIn::Query, .. }))
    };
    operation.parameters.as_ref().is_some_and(|parameters| parameters.iter().any(is_query))
}

fn error(description: &str, is_openai: bool) -> Response {
    let (format, schema) = if is_openai { (JSON, "ErrorBody") } else { (PROBLEM_JSON, "Problem") };
    let content = Content::new(Some(Ref::from_schema_name(schema)));
    ResponseBuilder::new().description(description).content(format, content).build()
}

fn tell_headers(status: &str, response: &mut Response, counted: bool) {
    let mut add = |name: &str, kind: Type, meaning: &str| {
        let header: Header =
            HeaderBuilder::new().schema(Some(Object::with_type(kind))).description(Some(meaning)).build();
        response.headers.entry(name.to_owned()).or_insert_with(|| header.into());
    };
    match status {
        "401" => add("WWW-Authenticate", Type::String, "`Bearer`"),
        "429" | "503" => {
            add("Retry-After", Type::Integer, "seconds after which trying again may help, where that is known");
        }
        _ => {}
    }
    if counted && matches!(status, "200" | "429") {
        add(
            "x-ratelimit-limit-requests",
            Type::Integer,
            "requests a minute, of the limit that is nearest to its end; absent if there is none",
        );
        add("x-ratelimit-remaining-requests", Type::Integer, "how many of them are left");
        add("x-ratelimit-reset-requests", Type::String, "after how long all are left again, for example `7.5s`");
    }
    if counted && status == "429" {
        add("retry-after-ms", Type::Integer, "`Retry-After` in milliseconds");
        add("x-should-retry", Type::String, "`false` where trying again is of no use");
    }
}
