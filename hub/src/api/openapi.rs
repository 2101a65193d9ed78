//! The API's own description: OpenAPI 3.1, generated from the handlers.

use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, ResponseBuilder,
    path::Operation,
    schema::Schema,
    security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    tag::TagBuilder,
};
use utoipa::{PartialSchema as _, ToSchema as _};

use super::problem::{Document, PROBLEM_JSON};

const DESCRIPTION: &str = "\
The hub of Cortex Mesh: people's own machines, reached from a conversation session.

- **Who asks:** `Authorization: Bearer cxt_…` (make one with `POST /api/tokens`), or the session cookie of `POST /api/login`. Changes made with a cookie \
must be JSON and come from a page of this hub.
- **Errors** are problem documents (RFC 9457, `application/problem+json`): `code` is stable, `fix` says what to do next. What belongs to somebody else \
answers 404, as what does not exist.
- **Lists** come in pages: `?limit=&cursor=` → `{items, next_cursor}`.
- **Times** (`*_at_ms`) are milliseconds since the Unix epoch.
- **Streams** are Server-Sent Events; `Last-Event-ID` (or `?last_event_id=`) goes on exactly behind an event.";

const TAGS: [(&str, &str); 11] = [
    ("account", "Set-up, login, and API tokens."),
    ("users", "Accounts; for administrators."),
    ("nodes", "Machines: invites, nodes, and what they allow."),
    ("sessions", "Conversations: who is in them, which nodes are attached, what was said."),
    ("tasks", "Commands on nodes, and what they print."),
    ("approvals", "Commands that wait for a person, and what people said. Only people answer: a token never does."),
    ("secrets", "Values that tasks use and nobody reads again."),
    ("files", "A session's workspace: its files, the same on every attached node; history, conflicts, locks, drift."),
    ("streams", "What happens, as it happens."),
    ("operation", "Relays, the audit log, probes and metrics."),
    ("download", "Programs for new nodes."),
];

/// What the routes add themselves to.
pub fn frame() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Cortex Mesh hub")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let tags = TAGS.map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build());
    let either = ["token", "cookie"].map(|scheme| SecurityRequirement::new(scheme, Vec::<String>::new()));
    OpenApiBuilder::new().info(info).tags(Some(tags)).security(Some(either)).components(Some(components())).build()
}

fn components() -> Components {
    let mut components = Components::new();
    let mut schemas: Vec<(String, RefOr<Schema>)> = vec![(Document::name().into_owned(), Document::schema())];
    Document::schemas(&mut schemas);
    components.schemas.extend(schemas);
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("cxt_…").build();
    components.add_security_scheme("token", SecurityScheme::Http(token));
    let cookie = ApiKeyValue::with_description("__Host-cortex", "of POST /api/login; its name is `cortex` over plain http");
    components.add_security_scheme("cookie", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    components
}

/// The document of all routes: every operation can also answer a problem.
pub fn finish(mut document: OpenApi) -> OpenApi {
    // OpenAPI has no name for a parameter that holds slashes.
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    for item in document.paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch].into_iter().flatten() {
            add_problem(operation);
        }
    }
    document
}

fn add_problem(operation: &mut Operation) {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let response = ResponseBuilder::new().description("an error").content(PROBLEM_JSON, content).build();
    operation.responses.responses.insert("default".into(), RefOr::T(response));
}

/// The committed form of the document.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn to_text(document: &OpenApi) -> serde_json::Result<String> {
    document.to_pretty_json().map(|text| text + "\n")
}
