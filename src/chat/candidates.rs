//! Which models there are, and which keys answer for each, in order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::ChatError;
use super::breaker::Breaker;
use crate::metering::{BilledTo, Target};
use crate::providers::ModelProvider;

/// An AI key ready for calls.
#[derive(Clone)]
pub(super) struct OpenKey {
    /// Its name.
    pub(super) name: Arc<str>,
    /// Whose it is.
    pub(super) billed_to: BilledTo,
    /// The provider's kind.
    pub(super) kind: &'static str,
    /// The provider's own names of the models it may be used for.
    pub(super) models: Vec<String>,
    /// Further names, each for one of these.
    pub(super) aliases: BTreeMap<String, String>,
    /// The name that is meant when none is asked for.
    pub(super) default_model: String,
    pub(super) provider: Arc<dyn ModelProvider>,
    pub(super) breaker: Arc<Breaker>,
    /// When it was last set.
    pub(super) since: DateTime<Utc>,
}

impl OpenKey {
    /// The names it answers to, each with the provider's own.
    fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        let aliases = self.aliases.iter().map(|(alias, model)| (alias.as_str(), model.as_str()));
        self.models.iter().map(|model| (model.as_str(), model.as_str())).chain(aliases)
    }
}

/// A key that may be called for a model.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) target: Arc<Target>,
    pub(super) provider: Arc<dyn ModelProvider>,
    pub(super) breaker: Arc<Breaker>,
}

/// A name of a model that may be asked for.
#[derive(Debug, Clone)]
pub struct ModelEntry {
    /// The name.
    pub name: Arc<str>,
    /// The AI key that answers first.
    pub configuration: Arc<str>,
    /// When that key was last set.
    pub since: DateTime<Utc>,
}

struct Offer {
    entry: ModelEntry,
    candidates: Arc<[Candidate]>,
}

/// The models of a tenant.
pub(super) struct Models {
    /// Whether there is any key at all.
    has_keys: bool,
    /// In order: by key, and of a key as it lists them.
    order: Vec<Arc<str>>,
    offers: HashMap<Arc<str>, Offer>,
    /// The name that is meant when none is asked for.
    default: Option<Arc<str>>,
}

impl Models {
    /// `allowed` are the models of the settings, of which none means all. Keys are in their order: of those that offer
    /// a model the first answers, and the others in its place while it does not.
    pub(super) fn new(allowed: &[String], keys: &[OpenKey]) -> Self {
        let is_allowed = |model: &str| allowed.is_empty() || allowed.iter().any(|allowed| allowed == model);
        let mut order = Vec::new();
        let mut offers: HashMap<Arc<str>, (ModelEntry, Vec<Candidate>)> = HashMap::new();
        for key in keys {
            for (name, upstream) in key.names().filter(|(name, _)| is_allowed(name)) {
                let candidate = Candidate {
                    target: Arc::new(Target {
                        provider: key.kind,
                        configuration: Arc::clone(&key.name),
                        upstream_model: upstream.into(),
                        billed_to: key.billed_to,
                    }),
                    provider: Arc::clone(&key.provider),
                    breaker: Arc::clone(&key.breaker),
                };
                if let Some((_, candidates)) = offers.get_mut(name) {
                    candidates.push(candidate);
                    continue;
                }
                let name: Arc<str> = name.into();
                let configuration = Arc::clone(&key.name);
                let entry = ModelEntry { name: Arc::clone(&name), configuration, since: key.since };
                order.push(Arc::clone(&name));
                offers.insert(name, (entry, vec![candidate]));
            }
        }
        let known = |name: &String| offers.get_key_value(name.as_str()).map(|(name, _)| Arc::clone(name));
        let default = keys.iter().find_map(|key| known(&key.default_model)).or_else(|| allowed.iter().find_map(known));
        let offer = |(entry, candidates): (ModelEntry, Vec<_>)| Offer { entry, candidates: candidates.into() };
        let offers = offers.into_iter().map(|(name, offered)| (name, offer(offered))).collect();
        Self { has_keys: !keys.is_empty(), order, offers, default }
    }

    /// The name and the keys for a question.
    pub(super) fn choose(&self, requested: Option<&str>) -> Result<(Arc<str>, Arc<[Candidate]>), ChatError> {
        if !self.has_keys {
            return Err(ChatError::AiKeyMissing);
        }
        let offer = match requested {
            Some(name) => self.offers.get(name).ok_or(ChatError::ModelNotAllowed)?,
            None => self.default.as_ref().and_then(|name| self.offers.get(name)).ok_or(ChatError::NoModel)?,
        };
        Ok((Arc::clone(&offer.entry.name), Arc::clone(&offer.candidates)))
    }

    /// All names, in order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &ModelEntry> {
        self.order.iter().filter_map(|name| self.offers.get(name)).map(|offer| &offer.entry)
    }

    /// One of them.
    pub(super) fn entry(&self, name: &str) -> Option<&ModelEntry> {
        self.offers.get(name).map(|offer| &offer.entry)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use futures::FutureExt as _;
    use futures::future::BoxFuture;

    use super::*;
    use crate::providers::{ChatRequest, ChatStream, ProviderError};

    struct Silent;

    impl ModelProvider for Silent {
        fn chat(&self, _: ChatRequest) -> BoxFuture<'_, Result<ChatStream, ProviderError>> {
            futures::future::pending().boxed()
        }
    }

    pub(in crate::chat) fn key(name: &str, models: &[&str], default: &str) -> OpenKey {
        OpenKey {
            name: name.into(),
            billed_to: BilledTo::Own,
            kind: "openai_compatible",
            models: models.iter().map(|&model| model.to_owned()).collect(),
            aliases: BTreeMap::new(),
            default_model: default.to_owned(),
            provider: Arc::new(Silent),
            breaker: Arc::default(),
            since: DateTime::UNIX_EPOCH,
        }
    }

    fn chosen(allowed: &[&str], keys: &[OpenKey], requested: Option<&str>) -> Result<(String, Vec<String>), String> {
        let allowed: Vec<_> = allowed.iter().map(|&model| model.to_owned()).collect();
        let (name, candidates) = Models::new(&allowed, keys).choose(requested).map_err(|error| format!("{error:?}"))?;
        let of =
            |candidate: &Candidate| format!("{}/{}", candidate.target.configuration, candidate.target.upstream_model);
        Ok((name.to_string(), candidates.iter().map(of).collect()))
    }

    fn answer(name: &str, candidates: &[&str]) -> Result<(String, Vec<String>), String> {
        Ok((name.to_owned(), candidates.iter().map(|&candidate| candidate.to_owned()).collect()))
    }

    #[test]
    fn without_a_key_nothing_answers() {
        assert_eq!(chosen(&[], &[], None), Err("AiKeyMissing".to_owned()));
        assert_eq!(chosen(&["a"], &[], Some("a")), Err("AiKeyMissing".to_owned()));
    }

    #[test]
    fn a_model_asked_for_must_be_allowed_and_offered() {
        let keys = [key("1", &["a", "b"], "a"), key("2", &["b", "c"], "c")];
        assert_eq!(chosen(&[], &keys, Some("c")), answer("c", &["2/c"]));
        assert_eq!(chosen(&[], &keys, Some("b")), answer("b", &["1/b", "2/b"]));
        assert_eq!(chosen(&["b"], &keys, Some("b")), answer("b", &["1/b", "2/b"]));
        let refused = Err("ModelNotAllowed".to_owned());
        assert_eq!(chosen(&["b"], &keys, Some("a")), refused);
        assert_eq!(chosen(&["d"], &keys, Some("d")), refused);
        assert_eq!(chosen(&[], &keys, Some("")), refused);
    }

    #[test]
    fn the_default_is_the_first_keys_unless_the_settings_forbid_it() {
        let keys = [key("1", &["a", "b"], "a"), key("2", &["b", "c"], "c")];
        assert_eq!(chosen(&[], &keys, None), answer("a", &["1/a"]));
        assert_eq!(chosen(&["c"], &keys, None), answer("c", &["2/c"]));
        assert_eq!(chosen(&["x", "b"], &keys, None), answer("b", &["1/b", "2/b"]));
        assert_eq!(chosen(&["x"], &keys, None), Err("NoModel".to_owned()));
    }

    #[test]
    fn an_alias_is_a_name_like_any_other_and_keys_may_mean_different_models_by_it() {
        let mut keys = [key("1", &["a-2024"], "fast"), key("2", &["z", "fast"], "z")];
        keys[0].aliases.insert("fast".to_owned(), "a-2024".to_owned());
        assert_eq!(chosen(&[], &keys, None), answer("fast", &["1/a-2024", "2/fast"]));
        // The settings name what may be asked for: with an alias only, the provider's own name is not known.
        assert_eq!(chosen(&["fast"], &keys, Some("a-2024")), Err("ModelNotAllowed".to_owned()));
        let models = Models::new(&[], &keys);
        let names: Vec<_> = models.entries().map(|entry| (&*entry.name, &*entry.configuration)).collect();
        assert_eq!(names, [("a-2024", "1"), ("fast", "1"), ("z", "2")]);
        assert!(models.entry("z").is_some() && models.entry("y").is_none());
    }
}
