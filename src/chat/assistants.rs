//! Which of a tenant's assistants answers a question: the one that is named, or the one that it comes to.
//!
//! | question | answered by |
//! |---|---|
//! | names an assistant | that one |
//! | names none, and rules say where it belongs | the one they say |
//! | a follow-up of which they say nothing | the one that gave the conversation's last answer |
//! | the first one, with routing by model | the one that the model says |
//! | any other | the default one, or none in particular |
//!
//! Where images come with a question, only those that accept images are looked at; of them the first if nothing says which.
//!
//! Whichever it is, it answers only if the plan has the feature that it needs: a question that belongs to one that the
//! plan does not have is refused, not answered by somebody who cannot.

use std::sync::Arc;

use super::routing::Rules;
use super::{Chat, ChatError};
use crate::api::limits::{FEATURES, VISION};
use crate::api::tenant::{AssistantSettings, RoutingBy, Settings};
use crate::limits::Terms;
use crate::tenant_db::TenantRecord;

/// A tenant's assistants, with their rules ready to be used. Made once for each version of the settings.
pub(super) struct Assistants {
    settings: Arc<Settings>,
    rules: Rules,
}

/// What is known of a question before it has an assistant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) text: &'a str,
    /// The assistant it names.
    pub(super) named: Option<&'a str>,
    /// Whether it begins a conversation.
    pub(super) is_first: bool,
    /// The one that gave the last answer of its conversation, if it was one in particular.
    pub(super) last: Option<&'a str>,
    /// Whether images come with it.
    pub(super) with_images: bool,
}

/// What is said of it.
#[derive(Debug, PartialEq)]
pub(super) enum Assigned<'a> {
    /// It is this one's; none in particular's if there is none.
    To(Option<&'a AssistantSettings>),
    /// The model that routes is to be asked. If that says nothing, it is this one's.
    AskModel(Option<&'a AssistantSettings>),
}

impl Assistants {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let rules = match settings.routing.by {
            RoutingBy::Off => Rules::default(),
            RoutingBy::Rule | RoutingBy::Model => Rules::new(&settings.assistants),
        };
        Self { settings, rules }
    }

    /// All of them, in the order of the settings.
    pub(super) fn all(&self) -> &[AssistantSettings] {
        &self.settings.assistants
    }

    /// Those that a tenant with these terms may ask.
    pub(super) fn allowed<'a>(&'a self, terms: &'a Terms<'_>) -> impl Iterator<Item = &'a AssistantSettings> {
        self.all().iter().filter(|assistant| assistant.feature.as_ref().is_none_or(|feature| terms.has(feature)))
    }

    /// The assistant of this name.
    pub(super) fn find(&self, name: &str) -> Option<&AssistantSettings> {
        self.all().iter().find(|assistant| assistant.name == name)
    }

    /// Says whose a question is.
    pub(super) fn assign(&self, asked: Asked<'_>) -> Result<Assigned<'_>, ChatError> {
        let may = |one: &&AssistantSettings| !asked.with_images || one.accepts_images;
        if let Some(named) = asked.named {
            let found = self.find(named).ok_or(ChatError::AssistantUnknown)?;
            return if may(&found) {
                Ok(Assigned::To(Some(found)))
            } else {
                Err(self.images_not_accepted(Some(named)))
            };
        }
        let index_may = |index: usize| self.all().get(index).is_some_and(|one| may(&one));
        let ruled = || self.rules.say(asked.text, index_may).and_then(|index| self.all().get(index));
        // One that is not among them any more says nothing.
        let last = asked.last.and_then(|name| self.find(name)).filter(may);
        let default = || self.settings.routing.default.as_deref().and_then(|name| self.find(name)).filter(may);
        let mut fallback = ruled().or(last).or_else(default);
        if asked.with_images && fallback.is_none() {
            let first = self.all().iter().find(may);
            fallback = Some(first.ok_or_else(|| self.images_not_accepted(None))?);
        }
        match self.settings.routing.by {
            RoutingBy::Model if asked.is_first && self.all().iter().filter(may).count() > 1 => {
                Ok(Assigned::AskModel(fallback))
            }
            _ => Ok(Assigned::To(fallback)),
        }
    }

    fn images_not_accepted(&self, named: Option<&str>) -> ChatError {
        let accepting = self.all().iter().filter(|one| one.accepts_images).map(|one| one.name.clone());
        ChatError::ImagesNotAccepted { assistant: named.map(str::to_owned), accepting: accepting.collect() }
    }
}

impl Chat {
    /// Whether a tenant's questions may show images to an assistant.
    pub(super) fn shows_images(&self, assistant: Option<&AssistantSettings>, record: &TenantRecord) -> bool {
        let accepts = assistant.is_some_and(|assistant| assistant.accepts_images);
        accepts && self.plans.terms(&record.plan, &record.limits).has(VISION)
    }

    /// Refuses an assistant that the tenant's plan does not have.
    pub(super) fn admit_assistant(
        &self,
        assistant: Option<&AssistantSettings>,
        record: &TenantRecord,
    ) -> Result<(), ChatError> {
        let Some((assistant, feature)) = assistant.and_then(|one| Some((one, one.feature.as_deref()?))) else {
            return Ok(());
        };
        let terms = self.plans.terms(&record.plan, &record.limits);
        if terms.has(feature) {
            return Ok(());
        }
        // A feature of a newer server's is refused likewise.
        let feature = FEATURES.into_iter().find(|known| *known == feature).unwrap_or("unknown");
        let (assistant, plan) = (assistant.name.clone(), record.plan.clone());
        Err(ChatError::AssistantNotInPlan { assistant, feature, plan })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tenant::RoutingSettings;
    use crate::chat::prompt::tests::settings;

    fn assistant(name: &str, keywords: &[&str]) -> AssistantSettings {
        let keywords = keywords.iter().map(|&keyword| keyword.to_owned()).collect();
        AssistantSettings { keywords, ..AssistantSettings::sample(name) }
    }

    fn assistants(by: RoutingBy, default: Option<&str>) -> Assistants {
        let mut settings = settings();
        settings.assistants = vec![assistant("billing", &["invoice"]), assistant("orders", &["parcel", "delivery"])];
        settings.routing = RoutingSettings { by, default: default.map(str::to_owned), model: None };
        Assistants::new(Arc::new(settings))
    }

    /// Whose it is, with a question mark if the model is to be asked first.
    fn whose(by: RoutingBy, default: Option<&str>, text: &str, named: Option<&str>, last: Option<&str>) -> String {
        let assistants = assistants(by, default);
        told(assistants.assign(Asked { text, named, is_first: last.is_none(), last, with_images: false }))
    }

    fn told(assigned: Result<Assigned<'_>, ChatError>) -> String {
        let name = |found: Option<&AssistantSettings>| found.map_or("-", |found| &found.name).to_owned();
        match assigned {
            Ok(Assigned::To(found)) => name(found),
            Ok(Assigned::AskModel(found)) => name(found) + "?",
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn the_one_that_is_named_answers_and_there_has_to_be_one() {
        for by in [RoutingBy::Off, RoutingBy::Rule, RoutingBy::Model] {
            assert_eq!(whose(by, None, "my invoice", Some("orders"), Some("billing")), "orders");
            assert_eq!(whose(by, None, "my invoice", Some("sales"), None), "AssistantUnknown");
        }
    }

    #[test]
    fn without_routing_the_default_one_answers_and_a_conversation_stays() {
        assert_eq!(whose(RoutingBy::Off, None, "my invoice", None, None), "-");
        assert_eq!(whose(RoutingBy::Off, Some("orders"), "my invoice", None, None), "orders");
        assert_eq!(whose(RoutingBy::Off, Some("orders"), "my invoice", None, Some("billing")), "billing");
        assert_eq!(whose(RoutingBy::Off, Some("orders"), "hello", None, Some("gone")), "orders");
    }

    #[test]
    fn rules_move_a_conversation_and_silence_does_not() {
        assert_eq!(whose(RoutingBy::Rule, None, "Where is my parcel?", None, None), "orders");
        assert_eq!(whose(RoutingBy::Rule, None, "And the invoice?", None, Some("orders")), "billing");
        assert_eq!(whose(RoutingBy::Rule, Some("billing"), "Thanks!", None, Some("orders")), "orders");
        assert_eq!(whose(RoutingBy::Rule, Some("billing"), "Hello", None, None), "billing");
        assert_eq!(whose(RoutingBy::Rule, None, "Hello", None, None), "-");
    }

    #[test]
    fn the_model_is_asked_of_first_questions_only() {
        assert_eq!(whose(RoutingBy::Model, None, "my invoice", None, None), "billing?");
        assert_eq!(whose(RoutingBy::Model, Some("orders"), "hello", None, Some("gone")), "orders");
        assert_eq!(whose(RoutingBy::Model, Some("orders"), "thanks", None, Some("billing")), "billing");
        assert_eq!(whose(RoutingBy::Model, None, "my parcel", None, Some("billing")), "orders");
        // A conversation whose answers were nobody's in particular is not routed later.
        let asked = Asked { text: "thanks", named: None, is_first: false, last: None, with_images: false };
        assert_eq!(told(assistants(RoutingBy::Model, None).assign(asked)), "-");
    }

    /// The same with images, where these accept them.
    fn with_images(
        by: RoutingBy,
        accepting: &[usize],
        default: Option<&str>,
        text: &str,
        last: Option<&str>,
    ) -> String {
        let mut settings = Settings::clone(&assistants(by, default).settings);
        for index in accepting {
            settings.assistants[*index].accepts_images = true;
        }
        let assistants = Assistants::new(Arc::new(settings));
        told(assistants.assign(Asked { text, named: None, is_first: last.is_none(), last, with_images: true }))
    }

    #[test]
    fn images_come_to_those_that_accept_them() {
        for by in [RoutingBy::Off, RoutingBy::Rule, RoutingBy::Model] {
            // Whatever else says otherwise.
            for (text, last) in [("my parcel", Some("orders")), ("hello", None)] {
                assert_eq!(with_images(by, &[0], Some("orders"), text, last), "billing", "{by:?}");
            }
            let refused = with_images(by, &[], Some("orders"), "my parcel", None);
            assert_eq!(refused, "ImagesNotAccepted { assistant: None, accepting: [] }");
        }
        let both = &[0, 1];
        assert_eq!(with_images(RoutingBy::Off, both, None, "my parcel", None), "billing", "the first of them");
        assert_eq!(with_images(RoutingBy::Off, both, Some("orders"), "hello", None), "orders");
        assert_eq!(with_images(RoutingBy::Off, both, None, "hello", Some("orders")), "orders");
        assert_eq!(with_images(RoutingBy::Rule, both, None, "my parcel", Some("billing")), "orders");
        assert_eq!(with_images(RoutingBy::Model, both, None, "my parcel", None), "orders?");
        // Both rules and images: the rule of one that does not accept them does not hide the other's.
        let text = "invoice, parcel and delivery";
        assert_eq!(with_images(RoutingBy::Rule, &[0], None, text, None), "billing");
    }

    #[test]
    fn one_that_is_named_and_accepts_no_images_names_those_that_do() {
        let mut settings = Settings::clone(&assistants(RoutingBy::Rule, None).settings);
        settings.assistants[0].accepts_images = true;
        let assistants = Assistants::new(Arc::new(settings));
        let named = |name| {
            let (named, last) = (Some(name), None);
            told(assistants.assign(Asked { text: "", named, is_first: true, last, with_images: true }))
        };
        assert_eq!(named("billing"), "billing");
        assert_eq!(named("orders"), "ImagesNotAccepted { assistant: Some(\"orders\"), accepting: [\"billing\"] }");
        assert_eq!(named("sales"), "AssistantUnknown");
    }
}
