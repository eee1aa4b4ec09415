//! A tenant's settings: chat, branding, visitors, widget and feature switches.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use garde::Validate;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::answer_cache::{AnswerCacheSettings, StrictAnswerCache, strict_answer_cache};
use super::assistants::{self, AssistantSettings, RoutingSettings, StrictRouting};
use super::content_filter::{self, ContentFilterSettings, StrictContentFilter};

/// The typefaces there are.
pub const FONTS: [&str; 5] = ["system", "humanist", "serif", "rounded", "slab"];

/// `GET /api/v1/config`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Config {
    /// Grows by one with every change.
    pub version: i64,
    /// The settings in force.
    pub settings: Settings,
    /// When this version was made.
    pub updated_at: DateTime<Utc>,
}

/// Chat settings, branding and feature flags of a tenant. Reading them ignores what it does not know: a server that
/// is about to be replaced reads rows that a newer one has written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Validate, ToSchema)]
pub struct Settings {
    /// What the model is told before every conversation.
    #[garde(length(chars, max = 20_000))]
    pub system_prompt: String,
    /// The models a user may ask for; empty means all that the AI keys offer.
    #[garde(length(max = 50), inner(length(chars, min = 1, max = 200)))]
    pub models: Vec<String>,
    /// Sampling temperature, 0 to 2; the provider's default when absent.
    #[garde(range(min = 0.0, max = 2.0))]
    pub temperature: Option<f32>,
    /// The longest answer, in tokens.
    #[garde(range(min = 1, max = 32_000))]
    pub max_tokens: u32,
    /// How many earlier messages the model is shown, 0 to 100.
    #[garde(range(max = 100))]
    pub history_length: u16,
    /// The longest question, in characters.
    #[garde(range(min = 1, max = 20_000))]
    pub max_message_length: u32,
    /// Shown before the first question.
    #[garde(length(chars, max = 2_000))]
    pub welcome_message: String,
    /// Shown when an answer fails.
    #[garde(length(chars, max = 2_000))]
    pub error_message: String,
    /// Said in the place of an answer while no model can be reached; `error_message` if it is empty.
    #[garde(length(chars, max = 2_000))]
    #[serde(default)]
    pub degraded_message: String,
    /// How the client's pages look.
    #[garde(dive)]
    pub branding: Branding,
    /// Who may chat without an account.
    #[garde(dive)]
    #[serde(default)]
    pub visitors: VisitorSettings,
    /// Where the chat may be embedded.
    #[garde(dive)]
    #[serde(default)]
    pub widget: WidgetSettings,
    /// Giving answers again without asking a model.
    #[garde(dive)]
    #[serde(default)]
    pub answer_cache: AnswerCacheSettings,
    /// The client's assistants, 20 at most. Without any, what stands above answers.
    #[garde(length(max = 20), dive, custom(assistants::together))]
    #[serde(default)]
    pub assistants: Vec<AssistantSettings>,
    /// Which of them a question comes to that names none.
    #[garde(dive)]
    #[serde(default)]
    pub routing: RoutingSettings,
    /// What is masked in answers.
    #[garde(dive)]
    #[serde(default)]
    pub content_filter: ContentFilterSettings,
    /// Switches by name, for example `{"data_questions": false}`.
    #[garde(custom(feature_names))]
    pub features: BTreeMap<String, bool>,
}

/// How the client's pages look. Read as leniently as [`Settings`]; a request's is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Validate, ToSchema)]
pub struct Branding {
    /// How the assistant calls itself.
    #[garde(length(chars, min = 1, max = 100))]
    pub assistant_name: String,
    /// `#rrggbb`.
    #[garde(pattern("^#[0-9a-fA-F]{6}$"))]
    pub primary_color: String,
    /// An `https` address of the logo.
    #[garde(inner(url), inner(length(max = 2_000)), inner(prefix("https://")))]
    pub logo_url: Option<String>,
    /// A BCP 47 language tag, for example `en` or `de-CH`.
    #[garde(pattern("^[a-zA-Z]{2,3}(-[a-zA-Z0-9]{2,8})*$"), length(max = 35))]
    pub language: String,
    /// The tone, in a few words, for example `warm and brief`.
    #[garde(length(chars, max = 500))]
    pub voice: String,
    /// The typeface: one of `system`, `humanist`, `serif`, `rounded` and `slab`. Each is a list of fonts that devices have,
    /// so that none is loaded from anywhere.
    #[garde(length(chars, max = 20), custom(known_font))]
    #[serde(default = "system_font")]
    pub font: String,
    /// Questions that are offered before the first one, six at most.
    #[garde(length(max = 6), inner(length(chars, min = 1, max = 200)))]
    #[serde(default)]
    pub suggestions: Vec<String>,
    /// A line under the field; one that says who writes the answers if it is empty.
    #[garde(length(chars, max = 300))]
    #[serde(default)]
    pub notice: String,
    /// An `https` address of what the client says about privacy.
    #[garde(inner(url), inner(length(max = 2_000)), inner(prefix("https://")))]
    #[serde(default)]
    pub privacy_url: Option<String>,
    /// Where images in answers may be loaded from, as `https://HOST`. An image tells its host who reads the answer, so
    /// others become links.
    #[garde(length(max = 20), inner(custom(image_origin)))]
    #[serde(default)]
    pub image_origins: Vec<String>,
}

#[cfg(test)]
impl Settings {
    /// Some for tests that need any.
    pub(crate) fn sample() -> Self {
        Self {
            system_prompt: "You are the assistant of Northwind.".to_owned(),
            models: vec![],
            temperature: None,
            max_tokens: 256,
            history_length: 20,
            max_message_length: 2000,
            welcome_message: "Hello".to_owned(),
            error_message: "Sorry".to_owned(),
            degraded_message: String::new(),
            branding: Branding::sample(),
            visitors: VisitorSettings::default(),
            widget: WidgetSettings::default(),
            answer_cache: AnswerCacheSettings::default(),
            assistants: vec![],
            routing: RoutingSettings::default(),
            content_filter: ContentFilterSettings::default(),
            features: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
impl Branding {
    /// One for tests that need any.
    pub(crate) fn sample() -> Self {
        Self {
            assistant_name: "Nora".to_owned(),
            primary_color: "#102030".to_owned(),
            logo_url: None,
            language: "en".to_owned(),
            voice: "brief".to_owned(),
            font: "system".to_owned(),
            suggestions: vec![],
            notice: String::new(),
            privacy_url: None,
            image_origins: vec![],
        }
    }
}

/// Chatting without an account. Off unless somebody turns it on: visitors ask at the client's cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Validate, ToSchema)]
#[serde(default)]
pub struct VisitorSettings {
    /// Whether it is allowed.
    #[garde(skip)]
    pub enabled: bool,
    /// How many questions all visitors together may ask a day (UTC). The plan's own limits hold as well.
    #[garde(range(min = 1, max = 1_000_000))]
    pub questions_per_day: u32,
    /// How many of these one visitor may ask.
    #[garde(range(min = 1, max = 10_000))]
    pub questions_per_visitor: u32,
}

impl Default for VisitorSettings {
    fn default() -> Self {
        Self { enabled: false, questions_per_day: 500, questions_per_visitor: 20 }
    }
}

/// The chat in pages of the client's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Validate, ToSchema)]
#[serde(default)]
pub struct WidgetSettings {
    /// The origins of these pages, as `https://HOST`; `http` for `localhost` and `127.0.0.1` only. Nobody else may show
    /// the chat in a frame.
    #[garde(length(max = 50), inner(custom(embedding_origin)))]
    pub allowed_origins: Vec<String>,
}

/// [`Settings`] as people write them: a field that does not belong there is a mistake, and refused.
#[derive(Debug, Clone, Deserialize)]
pub struct StrictSettings(#[serde(with = "StrictFields")] pub Settings);

#[derive(Deserialize)]
#[serde(remote = "Settings", deny_unknown_fields)]
struct StrictFields {
    system_prompt: String,
    models: Vec<String>,
    temperature: Option<f32>,
    max_tokens: u32,
    history_length: u16,
    max_message_length: u32,
    welcome_message: String,
    error_message: String,
    #[serde(default)]
    degraded_message: String,
    #[serde(with = "StrictBranding")]
    branding: Branding,
    #[serde(default, with = "StrictVisitors")]
    visitors: VisitorSettings,
    #[serde(default, with = "StrictWidget")]
    widget: WidgetSettings,
    #[serde(default, with = "StrictAnswerCache")]
    answer_cache: AnswerCacheSettings,
    #[serde(default, deserialize_with = "assistants::strict_list")]
    assistants: Vec<AssistantSettings>,
    #[serde(default, with = "StrictRouting")]
    routing: RoutingSettings,
    #[serde(default, with = "StrictContentFilter")]
    content_filter: ContentFilterSettings,
    features: BTreeMap<String, bool>,
}

#[derive(Deserialize)]
#[serde(remote = "Branding", deny_unknown_fields)]
struct StrictBranding {
    assistant_name: String,
    primary_color: String,
    logo_url: Option<String>,
    language: String,
    voice: String,
    #[serde(default = "system_font")]
    font: String,
    #[serde(default)]
    suggestions: Vec<String>,
    #[serde(default)]
    notice: String,
    #[serde(default)]
    privacy_url: Option<String>,
    #[serde(default)]
    image_origins: Vec<String>,
}

#[derive(Deserialize)]
#[serde(remote = "VisitorSettings", default = "VisitorSettings::default", deny_unknown_fields)]
struct StrictVisitors {
    enabled: bool,
    questions_per_day: u32,
    questions_per_visitor: u32,
}

#[derive(Deserialize)]
#[serde(remote = "WidgetSettings", default = "WidgetSettings::default", deny_unknown_fields)]
struct StrictWidget {
    allowed_origins: Vec<String>,
}

fn strict_branding<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Branding>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(with = "StrictBranding")] Branding);
    Ok(Option::<Strict>::deserialize(deserializer)?.map(|Strict(branding)| branding))
}

fn strict_visitors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<VisitorSettings>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(with = "StrictVisitors")] VisitorSettings);
    Ok(Option::<Strict>::deserialize(deserializer)?.map(|Strict(visitors)| visitors))
}

fn strict_widget<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<WidgetSettings>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(with = "StrictWidget")] WidgetSettings);
    Ok(Option::<Strict>::deserialize(deserializer)?.map(|Strict(widget)| widget))
}

fn system_font() -> String {
    "system".to_owned()
}

fn known_font(font: &str, _: &()) -> garde::Result {
    match FONTS.contains(&font) {
        true => Ok(()),
        false => Err(garde::Error::new(format!("must be one of {}", FONTS.join(", ")))),
    }
}

/// An origin as browsers write it: it is compared with what they send, and stands in a policy where a space or a
/// semicolon would begin something else.
fn origin(text: &str, plain_allowed: bool) -> garde::Result {
    let refused = || Err(garde::Error::new("must be an origin such as https://www.example.com, without a path"));
    let Ok(url) = url::Url::parse(text) else { return refused() };
    let local = matches!(url.host_str(), Some("localhost" | "127.0.0.1"));
    let scheme = url.scheme() == "https" || (url.scheme() == "http" && plain_allowed && local);
    let of_a_host = url.host_str().is_some_and(|host| !host.contains('*'));
    match scheme && of_a_host && text.len() <= 260 && url.origin().ascii_serialization() == text {
        true => Ok(()),
        false => refused(),
    }
}

fn embedding_origin(text: &str, _: &()) -> garde::Result {
    origin(text, true)
}

fn image_origin(text: &str, _: &()) -> garde::Result {
    origin(text, false)
}

/// Names of feature switches are identifiers, and there is a bound on how many.
fn feature_names(features: &BTreeMap<String, bool>, _: &()) -> garde::Result {
    let is_name = |name: &String| {
        (1..=50).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    if features.len() > 100 {
        return Err(garde::Error::new("at most 100 features"));
    }
    match features.keys().find(|name| !is_name(name)) {
        Some(_) => Err(garde::Error::new("a feature's name is 1 to 50 of a-z, 0-9 and _")),
        None => Ok(()),
    }
}

/// `PATCH /api/v1/config`. What is left out stays as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateConfigRequest {
    /// The version this change was made from; 409 if it is no longer in force. Left out: whichever is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// See [`Settings::system_prompt`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// See [`Settings::models`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// See [`Settings::temperature`]; `null` clears it.
    #[serde(default, deserialize_with = "super::given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f32>)]
    pub temperature: Option<Option<f32>>,
    /// See [`Settings::max_tokens`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// See [`Settings::history_length`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history_length: Option<u16>,
    /// See [`Settings::max_message_length`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message_length: Option<u32>,
    /// See [`Settings::welcome_message`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub welcome_message: Option<String>,
    /// See [`Settings::error_message`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// See [`Settings::degraded_message`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded_message: Option<String>,
    /// Replaces the branding as a whole.
    #[serde(default, deserialize_with = "strict_branding", skip_serializing_if = "Option::is_none")]
    pub branding: Option<Branding>,
    /// Replaces what holds for visitors as a whole.
    #[serde(default, deserialize_with = "strict_visitors", skip_serializing_if = "Option::is_none")]
    pub visitors: Option<VisitorSettings>,
    /// Replaces what holds for the widget as a whole.
    #[serde(default, deserialize_with = "strict_widget", skip_serializing_if = "Option::is_none")]
    pub widget: Option<WidgetSettings>,
    /// Replaces what holds for answers that are given again as a whole.
    #[serde(default, deserialize_with = "strict_answer_cache", skip_serializing_if = "Option::is_none")]
    pub answer_cache: Option<AnswerCacheSettings>,
    /// Replaces the assistants as a whole.
    #[serde(default, deserialize_with = "assistants::strict_list_given", skip_serializing_if = "Option::is_none")]
    pub assistants: Option<Vec<AssistantSettings>>,
    /// Replaces the routing as a whole.
    #[serde(default, deserialize_with = "assistants::strict_routing_given", skip_serializing_if = "Option::is_none")]
    pub routing: Option<RoutingSettings>,
    /// Replaces what is masked in answers as a whole.
    #[serde(default, deserialize_with = "content_filter::strict", skip_serializing_if = "Option::is_none")]
    pub content_filter: Option<ContentFilterSettings>,
    /// Sets these switches; others stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<BTreeMap<String, bool>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        for text in ["https://www.example.com", "https://example.com:8443"] {
            assert!(embedding_origin(text, &()).is_ok() && image_origin(text, &()).is_ok(), "{text}");
        }
        assert!(embedding_origin("http://localhost:3000", &()).is_ok());
        assert!(image_origin("http://localhost:3000", &()).is_err());
        for text in [
            "",
            "*",
            "https://*.example.com",
            "http://example.com",
            "https://example.com/",
            "https://example.com/path",
            "https://user@example.com",
            "https://example.com:443",
            "https://EXAMPLE.com",
            "https://example.com; script-src *",
            "https://example.com 'unsafe-inline'",
            "javascript:alert(1)",
            "data:text/html,x",
            "null",
        ] {
            assert!(embedding_origin(text, &()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_server_before_wrote_is_read_and_visitors_are_off() {
        let branding: Branding = serde_json::from_value(serde_json::json!({
            "assistant_name": "Nora", "primary_color": "#102030", "logo_url": null, "language": "en", "voice": ""
        }))
        .unwrap();
        assert_eq!((branding.font.as_str(), branding.suggestions.len()), ("system", 0));
        assert!(!VisitorSettings::default().enabled && WidgetSettings::default().allowed_origins.is_empty());
    }
}
