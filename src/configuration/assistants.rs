//! What assistants and routing have to agree on with the rest of the settings.

use super::ConfigurationError;
use super::ai_keys::refused;
use crate::api::tenant::Settings;

/// Checks that the default assistant is there and open to every plan, and that models are such as may be used.
pub(super) fn check(settings: &Settings) -> Result<(), ConfigurationError> {
    let may_be_used = |model: &String| settings.models.is_empty() || settings.models.contains(model);
    if let Some(assistant) = settings.assistants.iter().find(|one| !one.model.iter().all(may_be_used)) {
        return Err(refused("assistants", format!("the model of `{}` is not one of `models`", assistant.name)));
    }
    if !settings.routing.model.iter().all(may_be_used) {
        return Err(refused("routing.model", "is not one of `models`"));
    }
    let is_assistant = |name: &String| settings.assistants.iter().any(|one| one.name == *name);
    if let Some(name) = settings.answer_cache.minutes_by_assistant.keys().find(|name| !is_assistant(name)) {
        return Err(refused("answer_cache.minutes_by_assistant", format!("`{name}` is not the name of an assistant")));
    }
    let Some(default) = &settings.routing.default else { return Ok(()) };
    match settings.assistants.iter().find(|assistant| assistant.name == *default) {
        None => Err(refused("routing.default", "is not the name of an assistant")),
        // Else a plan without it would leave nobody to answer what belongs to no assistant.
        Some(assistant) if assistant.feature.is_some() => {
            Err(refused("routing.default", "must be an assistant that needs no feature"))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::api::tenant::{AssistantSettings, RoutingSettings};
    use crate::configuration::settings::tests::settings;
    use crate::configuration::{ConfigurationError, check_settings};

    fn assistant(name: &str, model: Option<&str>, feature: Option<&str>) -> AssistantSettings {
        AssistantSettings {
            model: model.map(str::to_owned),
            feature: feature.map(str::to_owned),
            ..AssistantSettings::sample(name)
        }
    }

    #[test]
    fn the_default_is_there_for_every_plan_and_models_may_be_used() {
        let mut settings = settings();
        settings.assistants = vec![assistant("sales", Some("large"), None), assistant("images", None, Some("vision"))];
        let mut refused = |models: &[&str], model: Option<&str>, default: Option<&str>| {
            settings.models = models.iter().map(|&model| model.to_owned()).collect();
            settings.routing = RoutingSettings {
                model: model.map(str::to_owned),
                default: default.map(str::to_owned),
                ..RoutingSettings::default()
            };
            match check_settings(&settings) {
                Ok(()) => None,
                Err(ConfigurationError::Refused { field, .. }) => Some(field),
                Err(error) => panic!("{error:?}"),
            }
        };
        assert_eq!(refused(&[], Some("any"), Some("sales")), None);
        assert_eq!(refused(&["large", "small"], Some("small"), None), None);
        assert_eq!(refused(&["small"], None, None), Some("assistants"));
        assert_eq!(refused(&["large"], Some("small"), None), Some("routing.model"));
        assert_eq!(refused(&[], None, Some("support")), Some("routing.default"));
        assert_eq!(refused(&[], None, Some("images")), Some("routing.default"));
    }
}
