//! A tenant's assistants: what each is told, which questions belong to it, and who says so.

use garde::Validate;
use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::images::ImageUrls;
use super::limits::FEATURES;
use super::tenant::Usage;

/// How large one pattern may become, in bytes, once it is compiled.
const PATTERN_SIZE: usize = 96 * 1024;
/// The same of all patterns of a tenant together: servers keep them.
const PATTERNS_SIZE: usize = 512 * 1024;
/// How many patterns a tenant may have.
const MOST_PATTERNS: usize = 50;

/// One of a tenant's assistants. What is left out is as the settings say for all. Reading it ignores what it does not
/// know; a request's is not read so leniently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Validate, ToSchema)]
pub struct AssistantSettings {
    /// What requests call it: `a-z` and `0-9`, with single `-` and `_` in between.
    #[garde(length(max = 50), pattern("^[a-z0-9]+([-_][a-z0-9]+)*$"))]
    pub name: String,
    /// What people call it.
    #[garde(length(chars, min = 1, max = 100), custom(super::without_nul))]
    pub title: String,
    /// What it is for, in a sentence. People read it, and so does a model that routes.
    #[garde(length(chars, max = 500), custom(super::without_nul))]
    #[serde(default)]
    pub description: String,
    /// What the model is told, in the place of `system_prompt`; that if it is empty.
    #[garde(length(chars, max = 20_000), custom(super::without_nul))]
    #[serde(default)]
    pub prompt: String,
    /// The model that answers, in the place of the default one.
    #[garde(inner(length(chars, min = 1, max = 200)), inner(custom(super::without_nul)))]
    #[serde(default)]
    pub model: Option<String>,
    /// Sampling temperature, 0 to 2.
    #[garde(range(min = 0.0, max = 2.0), inner(custom(a_number)))]
    #[serde(default)]
    pub temperature: Option<f32>,
    /// The longest answer, in tokens.
    #[garde(range(min = 1, max = 32_000))]
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Words and phrases of questions that belong to it, in any case; one that ends with `*` stands for every word that
    /// begins so.
    #[garde(length(max = 50), inner(length(chars, min = 1, max = 100)), inner(custom(a_keyword)))]
    #[serde(default)]
    pub keywords: Vec<String>,
    /// Regular expressions that find such questions, in any case.
    #[garde(length(max = 10), inner(length(chars, min = 1, max = 200)), inner(custom(a_pattern)))]
    #[serde(default)]
    pub patterns: Vec<String>,
    /// The feature that the plan must have for it.
    #[garde(inner(custom(a_feature)))]
    #[serde(default)]
    pub feature: Option<String>,
    /// Whether its model looks at images. Questions with images come to such assistants only.
    #[garde(skip)]
    #[serde(default)]
    pub accepts_images: bool,
}

#[cfg(test)]
impl AssistantSettings {
    /// One for tests that need any, with a name for a title.
    pub(crate) fn sample(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            title: name.to_owned(),
            description: String::new(),
            prompt: String::new(),
            model: None,
            temperature: None,
            max_tokens: None,
            keywords: vec![],
            patterns: vec![],
            feature: None,
            accepts_images: false,
        }
    }
}

/// Which assistant a question comes to that names none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Validate, ToSchema)]
#[serde(default)]
pub struct RoutingSettings {
    /// Who says so.
    #[garde(skip)]
    pub by: RoutingBy,
    /// The assistant that answers where nothing says another; none of them if it is left out.
    #[garde(skip)]
    pub default: Option<String>,
    /// The model that routes, with `by: "model"`; the default one if it is left out.
    #[garde(inner(length(chars, min = 1, max = 200)), inner(custom(super::without_nul)))]
    pub model: Option<String>,
}

/// Who says which assistant a question comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoutingBy {
    /// Nobody: it is named, or the default one answers.
    #[default]
    Off,
    /// Keywords and patterns.
    Rule,
    /// A model, asked with the first question of a conversation; where that says nothing, keywords and patterns.
    Model,
}

#[derive(Deserialize)]
#[serde(remote = "AssistantSettings", deny_unknown_fields)]
struct StrictAssistant {
    name: String,
    title: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    keywords: Vec<String>,
    #[serde(default)]
    patterns: Vec<String>,
    #[serde(default)]
    feature: Option<String>,
    #[serde(default)]
    accepts_images: bool,
}

#[derive(Deserialize)]
#[serde(remote = "RoutingSettings", default = "RoutingSettings::default", deny_unknown_fields)]
pub(super) struct StrictRouting {
    by: RoutingBy,
    default: Option<String>,
    model: Option<String>,
}

/// Assistants as people write them: a field that does not belong there is a mistake, and refused.
pub(super) fn strict_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<AssistantSettings>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(with = "StrictAssistant")] AssistantSettings);
    Ok(Vec::<Strict>::deserialize(deserializer)?.into_iter().map(|Strict(assistant)| assistant).collect())
}

/// The same in a change.
pub(super) fn strict_list_given<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<AssistantSettings>>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(deserialize_with = "strict_list")] Vec<AssistantSettings>);
    Ok(Option::<Strict>::deserialize(deserializer)?.map(|Strict(assistants)| assistants))
}

/// Routing in a change.
pub(super) fn strict_routing_given<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<RoutingSettings>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(with = "StrictRouting")] RoutingSettings);
    Ok(Option::<Strict>::deserialize(deserializer)?.map(|Strict(routing)| routing))
}

fn a_number(number: &f32, _: &()) -> garde::Result {
    // What is no number is in no order either, so a range lets it pass.
    if number.is_nan() { Err(garde::Error::new("must be a number")) } else { Ok(()) }
}

fn a_keyword(keyword: &str, _: &()) -> garde::Result {
    match keyword.contains(char::is_alphanumeric) && !keyword.contains('\0') {
        true => Ok(()),
        false => Err(garde::Error::new("must have a letter or a digit in it")),
    }
}

fn a_feature(feature: &str, _: &()) -> garde::Result {
    match FEATURES.contains(&feature) {
        true => Ok(()),
        false => Err(garde::Error::new(format!("the features are: {}", FEATURES.join(", ")))),
    }
}

fn a_pattern(pattern: &str, _: &()) -> garde::Result {
    match compile(pattern) {
        Ok(regex) if !regex.is_match("") => Ok(()),
        Ok(_) => Err(garde::Error::new("must not match the empty text: it would match every question")),
        Err(regex::Error::CompiledTooBig(_)) => Err(garde::Error::new("is too large once it is compiled")),
        Err(_) => Err(garde::Error::new("is no regular expression that can be used: see docs/assistants.md")),
    }
}

fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    if pattern.contains('\0') {
        return Err(regex::Error::Syntax("a NUL character".to_owned()));
    }
    RegexBuilder::new(pattern).case_insensitive(true).size_limit(PATTERN_SIZE).build()
}

/// All patterns as one, which finds in one pass which of them a text matches, in time that grows with its length only.
///
/// # Errors
/// If they are too large together, or one of them does not compile. None of those that [`AssistantSettings`] were checked
/// with.
pub fn compile_patterns<'a>(patterns: impl IntoIterator<Item = &'a String>) -> Result<RegexSet, regex::Error> {
    RegexSetBuilder::new(patterns)
        .case_insensitive(true)
        .size_limit(PATTERNS_SIZE)
        .dfa_size_limit(PATTERNS_SIZE)
        .build()
}

/// What can only be said of all assistants together.
pub(super) fn together(assistants: &[AssistantSettings], _: &()) -> garde::Result {
    for (index, assistant) in assistants.iter().enumerate() {
        if assistants.iter().take(index).any(|other| other.name == assistant.name) {
            return Err(garde::Error::new(format!("two have the name `{}`", assistant.name)));
        }
    }
    let patterns = || assistants.iter().flat_map(|assistant| &assistant.patterns);
    if patterns().count() > MOST_PATTERNS {
        return Err(garde::Error::new(format!("have more than {MOST_PATTERNS} patterns together")));
    }
    match compile_patterns(patterns()) {
        Err(regex::Error::CompiledTooBig(_)) => Err(garde::Error::new("have patterns that are too large together")),
        // One that does not compile is named by itself.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// `GET /api/v1/assistants`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AssistantList {
    /// Those that the plan allows, in the order of the settings.
    pub items: Vec<Assistant>,
}

/// An assistant that may be named in a question.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Assistant {
    /// What requests call it.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// What it is for.
    pub description: String,
    /// Whether images may come with a question to it: it accepts them, and the plan has `vision`.
    #[serde(default)]
    pub accepts_images: bool,
}

/// `POST /api/ai/query`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryRequest {
    /// The question; 1 to 2,000 characters unless the tenant's settings say otherwise.
    pub question: String,
    /// The name of an assistant. `general` is no particular one, unless there is one of this name; so it is when left out.
    #[serde(default)]
    pub query_type: Option<String>,
    /// The conversation to go on with; a new one when left out.
    #[serde(default)]
    pub session_id: Option<Uuid>,
    /// Images that the question is about; see `images` of `POST /api/v1/chat`.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 4)]
    pub images: ImageUrls,
    /// `false` for a new answer; see `cache` of `POST /api/v1/chat`.
    #[serde(default = "crate::api::tenant::yes")]
    #[schema(default = true)]
    pub cache: bool,
}

/// The answer to a query.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QueryResponse {
    /// The answer.
    pub answer: String,
    /// What was left of the month's requests when it was begun; null if there is no limit.
    pub queries_remaining: Option<u64>,
    /// The assistant that answered; null if it was none in particular.
    pub assistant: Option<String>,
    /// The model that answered.
    pub model: String,
    /// The conversation, for going on with it.
    pub session_id: Uuid,
    /// The answer's id.
    pub message_id: Uuid,
    /// What the answer cost, in tokens.
    pub usage: Usage,
    /// Whether its user had it stopped: what had arrived is all there is.
    pub stopped: bool,
    /// Whether no model gave it: none could be reached, and it is the client's own message instead.
    pub degraded: bool,
    /// Whether it was kept from an earlier question, and no model was asked.
    pub from_cache: bool,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patterns_are_regular_expressions_of_a_bounded_size() {
        for good in [r"invoice\s+\d+", "(?:re)?fund", r"\bRMA-\d{4,8}\b", "grüße"] {
            assert!(a_pattern(good, &()).is_ok(), "{good}");
        }
        // Not one, with what would take more than linear time, empty, and two that are small to write only.
        for bad in ["(", r"(a)\1", "(?=a)b", "a*", "", r"\w{100}", "(?:a{100}){100}", "a\0b"] {
            assert!(a_pattern(bad, &()).is_err(), "{bad}");
        }
    }

    #[test]
    fn many_patterns_are_bounded_together() {
        let assistant = |name: usize, patterns: Vec<String>| AssistantSettings {
            patterns,
            ..AssistantSettings::sample(&format!("a{name}"))
        };
        let small: Vec<_> = (0..5).map(|name| assistant(name, vec!["order".to_owned(); 10])).collect();
        assert!(together(&small, &()).is_ok());
        let many: Vec<_> = (0..6).map(|name| assistant(name, vec!["order".to_owned(); 10])).collect();
        assert!(together(&many, &()).is_err());
        let large: Vec<_> = (0..5).map(|name| assistant(name, vec![r"x\w".to_owned(); 10])).collect();
        assert!(a_pattern(r"x\w", &()).is_ok() && together(&large, &()).is_err());
        assert!(together(&[assistant(1, vec![]), assistant(1, vec![])], &()).is_err());
    }

    #[test]
    fn a_request_is_read_strictly_and_what_is_stored_is_not() {
        let newer = json!({ "name": "a", "title": "A", "of_a_newer_server": 1 });
        assert!(serde_json::from_value::<AssistantSettings>(newer.clone()).is_ok());
        assert!(strict_list(json!([newer])).is_err());
        assert!(strict_list(json!([{ "name": "a", "title": "A" }])).is_ok());
        assert!(strict_routing_given(json!({ "by": "rule", "fallback": "a" })).is_err());
        let routing = strict_routing_given(json!({ "by": "model" })).unwrap().unwrap();
        assert_eq!((routing.by, routing.default), (RoutingBy::Model, None));
    }
}
