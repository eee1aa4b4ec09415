//! Settings of the answer cache.

use std::collections::BTreeMap;

use garde::Validate;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Giving an answer again without asking a model. Off unless somebody turns it on: an answer that is given again may be one
/// that the model would not give again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Validate, ToSchema)]
#[serde(default)]
pub struct AnswerCacheSettings {
    /// Whether it is done.
    #[garde(skip)]
    pub enabled: bool,
    /// Whom an answer is given again.
    #[garde(skip)]
    pub scope: AnswerScope,
    /// How long, 5 to 60 minutes.
    #[garde(range(min = 5, max = 60))]
    pub minutes: u32,
    /// The same for answers of single assistants, by their names.
    #[garde(length(max = 20), custom(each_five_to_sixty))]
    pub minutes_by_assistant: BTreeMap<String, u32>,
}

fn each_five_to_sixty(minutes: &BTreeMap<String, u32>, (): &()) -> garde::Result {
    match minutes.iter().find(|(_, minutes)| !(5..=60).contains(*minutes)) {
        Some((assistant, _)) => Err(garde::Error::new(format!("the minutes of `{assistant}` are not 5 to 60"))),
        None => Ok(()),
    }
}

impl AnswerCacheSettings {
    /// How long an answer of an assistant is given again, or one of none in particular.
    #[must_use]
    pub fn minutes_of(&self, assistant: Option<&str>) -> u32 {
        let own = assistant.and_then(|name| self.minutes_by_assistant.get(name));
        own.copied().unwrap_or(self.minutes)
    }
}

impl Default for AnswerCacheSettings {
    fn default() -> Self {
        Self { enabled: false, scope: AnswerScope::User, minutes: 15, minutes_by_assistant: BTreeMap::new() }
    }
}

/// Whom an answer is given again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerScope {
    /// The user whose question it answered, and nobody else.
    #[default]
    User,
    /// Every user of the tenant, visitors included, who asks the same.
    Public,
}

/// As people write them: a field that does not belong there is refused.
#[derive(Deserialize)]
#[serde(remote = "AnswerCacheSettings", default = "AnswerCacheSettings::default", deny_unknown_fields)]
pub(super) struct StrictAnswerCache {
    enabled: bool,
    scope: AnswerScope,
    minutes: u32,
    minutes_by_assistant: BTreeMap<String, u32>,
}

pub(super) fn strict_answer_cache<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<AnswerCacheSettings>, D::Error> {
    #[derive(Deserialize)]
    struct Strict(#[serde(with = "StrictAnswerCache")] AnswerCacheSettings);
    Ok(Option::<Strict>::deserialize(deserializer)?.map(|Strict(settings)| settings))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_off_and_a_users_own_unless_somebody_says_otherwise() {
        let settings: AnswerCacheSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings, AnswerCacheSettings::default());
        assert!(!settings.enabled && settings.scope == AnswerScope::User);
        for (minutes, fits) in [(4, false), (5, true), (60, true), (61, false)] {
            let settings = AnswerCacheSettings { minutes, ..AnswerCacheSettings::default() };
            assert_eq!(settings.validate().is_ok(), fits, "{minutes}");
            let minutes_by_assistant = BTreeMap::from([("orders".to_owned(), minutes)]);
            let settings = AnswerCacheSettings { minutes_by_assistant, ..AnswerCacheSettings::default() };
            assert_eq!(settings.validate().is_ok(), fits, "{minutes}");
            assert_eq!([settings.minutes_of(Some("orders")), settings.minutes_of(Some("b"))], [minutes, 15]);
            assert_eq!(settings.minutes_of(None), 15);
        }
    }
}
