//! The settings in force, and changing them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use garde::Validate;

use super::{ConfigurationError, assistants, content_filter, tenant_store};
use crate::api::answer_cache::AnswerCacheSettings;
use crate::api::content_filter::ContentFilterSettings;
use crate::api::tenant::{AssistantSettings, Branding, RoutingSettings, Settings, VisitorSettings, WidgetSettings};
use crate::ids::UserId;
use crate::tenant_db::{GenericClient, TenantDb};

/// How often a change that names no version is merged again after another one came first.
const MERGE_ATTEMPTS: usize = 10;

/// One version of the settings.
#[derive(Debug, Clone)]
pub struct SettingsVersion {
    /// Grows by one with every change.
    pub version: i64,
    /// The settings.
    pub settings: Settings,
    /// When this version was made.
    pub updated_at: DateTime<Utc>,
}

/// What to change; what is `None` stays as it is.
#[derive(Debug, Clone, Default)]
pub struct SettingsChange {
    /// See [`Settings::system_prompt`].
    pub system_prompt: Option<String>,
    /// See [`Settings::models`].
    pub models: Option<Vec<String>>,
    /// See [`Settings::temperature`]; `Some(None)` clears it.
    pub temperature: Option<Option<f32>>,
    /// See [`Settings::max_tokens`].
    pub max_tokens: Option<u32>,
    /// See [`Settings::history_length`].
    pub history_length: Option<u16>,
    /// See [`Settings::max_message_length`].
    pub max_message_length: Option<u32>,
    /// See [`Settings::welcome_message`].
    pub welcome_message: Option<String>,
    /// See [`Settings::error_message`].
    pub error_message: Option<String>,
    /// See [`Settings::degraded_message`].
    pub degraded_message: Option<String>,
    /// Replaces the branding as a whole.
    pub branding: Option<Branding>,
    /// Replaces what holds for visitors as a whole.
    pub visitors: Option<VisitorSettings>,
    /// Replaces what holds for the widget as a whole.
    pub widget: Option<WidgetSettings>,
    /// Replaces what holds for answers that are given again as a whole.
    pub answer_cache: Option<AnswerCacheSettings>,
    /// Replaces the assistants as a whole.
    pub assistants: Option<Vec<AssistantSettings>>,
    /// Replaces the routing as a whole.
    pub routing: Option<RoutingSettings>,
    /// Replaces what is masked in answers as a whole.
    pub content_filter: Option<ContentFilterSettings>,
    /// Sets these switches; others stay.
    pub features: Option<BTreeMap<String, bool>>,
}

impl SettingsChange {
    /// The settings with this change made.
    #[must_use]
    pub fn apply(&self, settings: &Settings) -> Settings {
        let mut features = settings.features.clone();
        features.extend(self.features.clone().unwrap_or_default());
        let text = |new: &Option<String>, old: &String| new.as_ref().unwrap_or(old).clone();
        Settings {
            system_prompt: text(&self.system_prompt, &settings.system_prompt),
            models: self.models.as_ref().unwrap_or(&settings.models).clone(),
            temperature: self.temperature.unwrap_or(settings.temperature),
            max_tokens: self.max_tokens.unwrap_or(settings.max_tokens),
            history_length: self.history_length.unwrap_or(settings.history_length),
            max_message_length: self.max_message_length.unwrap_or(settings.max_message_length),
            welcome_message: text(&self.welcome_message, &settings.welcome_message),
            error_message: text(&self.error_message, &settings.error_message),
            degraded_message: text(&self.degraded_message, &settings.degraded_message),
            branding: self.branding.as_ref().unwrap_or(&settings.branding).clone(),
            visitors: self.visitors.as_ref().unwrap_or(&settings.visitors).clone(),
            widget: self.widget.as_ref().unwrap_or(&settings.widget).clone(),
            answer_cache: self.answer_cache.as_ref().unwrap_or(&settings.answer_cache).clone(),
            assistants: self.assistants.as_ref().unwrap_or(&settings.assistants).clone(),
            routing: self.routing.as_ref().unwrap_or(&settings.routing).clone(),
            content_filter: self.content_filter.as_ref().unwrap_or(&settings.content_filter).clone(),
            features,
        }
    }
}

/// Inserts the first version. Does nothing if there is one, so that provisioning may repeat it.
///
/// # Errors
/// If the database refuses.
pub async fn insert_first(
    client: &impl GenericClient,
    settings: &Settings,
    now: DateTime<Utc>,
) -> Result<(), ConfigurationError> {
    tenant_store::insert_settings(client, 1, settings, None, now).await?;
    Ok(())
}

/// The settings in force.
///
/// # Errors
/// [`ConfigurationError::Unreadable`] if there are none this server can read, or a failure.
pub async fn read(db: &TenantDb) -> Result<SettingsVersion, ConfigurationError> {
    let client = db.client().await?;
    let stored = tenant_store::current_settings(&client).await?.ok_or(ConfigurationError::Unreadable)?;
    Ok(SettingsVersion { version: stored.version, settings: stored.parse()?, updated_at: stored.created_at })
}

/// Changes the settings, and returns the version that is in force then. A change that changes nothing makes no new
/// version. If `expected` is given, the change is made to that version or not at all; if not, it is made to whichever
/// is in force, again if another change comes first.
///
/// # Errors
/// [`ConfigurationError::VersionConflict`], [`ConfigurationError::Invalid`], or a failure.
pub async fn update(
    db: &TenantDb,
    expected: Option<i64>,
    change: &SettingsChange,
    by: UserId,
    now: DateTime<Utc>,
) -> Result<SettingsVersion, ConfigurationError> {
    let mut in_force = 0;
    for _ in 0..MERGE_ATTEMPTS {
        let current = read(db).await?;
        in_force = current.version;
        if expected.is_some_and(|expected| expected != current.version) {
            break;
        }
        let settings = change.apply(&current.settings);
        check(&settings)?;
        if settings == current.settings {
            return Ok(current);
        }
        let version = current.version + 1;
        let client = db.client().await?;
        if tenant_store::insert_settings(&client, version, &settings, Some(by), now).await? {
            return Ok(SettingsVersion { version, settings, updated_at: now });
        }
    }
    Err(ConfigurationError::VersionConflict { current: in_force })
}

/// Checks settings as a whole.
///
/// # Errors
/// [`ConfigurationError::Invalid`] or [`ConfigurationError::Refused`], which name fields.
pub fn check(settings: &Settings) -> Result<(), ConfigurationError> {
    settings.validate().map_err(ConfigurationError::Invalid)?;
    assistants::check(settings)?;
    // What is no number is in no order either, so a range lets it pass.
    if settings.temperature.is_some_and(f32::is_nan) {
        return Err(ConfigurationError::Refused { field: "temperature", message: "must be a number".into() });
    }
    content_filter(&settings.content_filter)?;
    // Postgres stores no NUL in a text, and would refuse the whole change without saying where it is.
    let texts = [
        ("system_prompt", &settings.system_prompt),
        ("welcome_message", &settings.welcome_message),
        ("error_message", &settings.error_message),
        ("degraded_message", &settings.degraded_message),
        ("branding.assistant_name", &settings.branding.assistant_name),
        ("branding.voice", &settings.branding.voice),
        ("branding.notice", &settings.branding.notice),
    ];
    let models = settings.models.iter().map(|model| ("models", model));
    let suggestions = settings.branding.suggestions.iter().map(|text| ("branding.suggestions", text));
    match texts.into_iter().chain(models).chain(suggestions).find(|(_, text)| text.contains('\0')) {
        Some((field, _)) => Err(ConfigurationError::Refused { field, message: "must not hold a NUL character".into() }),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::configuration) fn settings() -> Settings {
        Settings { features: BTreeMap::from([("data_questions".to_owned(), false)]), ..Settings::sample() }
    }

    #[test]
    fn a_change_touches_what_it_names_only() {
        let old = settings();
        assert_eq!(SettingsChange::default().apply(&old), old);
        let change = SettingsChange {
            temperature: Some(Some(0.5)),
            models: Some(vec!["m".to_owned()]),
            features: Some(BTreeMap::from([("files".to_owned(), true)])),
            ..SettingsChange::default()
        };
        let new = change.apply(&old);
        assert_eq!((new.temperature, &*new.models), (Some(0.5), &["m".to_owned()][..]));
        assert_eq!(new.features.len(), 2);
        let cleared = SettingsChange { temperature: Some(None), ..SettingsChange::default() };
        assert_eq!(cleared.apply(&new).temperature, None);
        assert_eq!(Settings { temperature: None, models: vec![], features: old.features.clone(), ..new }, old);
    }

    #[test]
    fn the_result_is_checked_and_the_fields_named() {
        assert!(check(&settings()).is_ok());
        let broken = SettingsChange { temperature: Some(Some(2.5)), max_tokens: Some(0), ..SettingsChange::default() };
        let Err(ConfigurationError::Invalid(report)) = check(&broken.apply(&settings())) else { panic!() };
        let mut fields: Vec<_> = report.iter().map(|(path, _)| path.to_string()).collect();
        fields.sort();
        assert_eq!(fields, ["max_tokens", "temperature"]);
        let not_a_number = SettingsChange { temperature: Some(Some(f32::NAN)), ..SettingsChange::default() };
        assert!(check(&not_a_number.apply(&settings())).is_err());
        let nul = SettingsChange { error_message: Some("a\0b".to_owned()), ..SettingsChange::default() };
        let Err(ConfigurationError::Refused { field, .. }) = check(&nul.apply(&settings())) else { panic!() };
        assert_eq!(field, "error_message");
    }
}
