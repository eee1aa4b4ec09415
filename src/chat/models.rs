//! Which model answers, and with which key.

use std::sync::Arc;

use super::ChatError;
use crate::providers::ModelProvider;

/// An AI key ready for calls.
pub(super) struct OpenKey {
    pub(super) models: Vec<String>,
    pub(super) default_model: String,
    pub(super) provider: Arc<dyn ModelProvider>,
}

/// The key and model for a question. `allowed` are the models of the settings, of which none means all; keys are in
/// their order, and the first that fits answers.
pub(super) fn choose<'a>(
    allowed: &[String],
    keys: &'a [OpenKey],
    requested: Option<&str>,
) -> Result<(&'a OpenKey, &'a str), ChatError> {
    if keys.is_empty() {
        return Err(ChatError::AiKeyMissing);
    }
    let is_allowed = |model: &str| allowed.is_empty() || allowed.iter().any(|allowed| allowed == model);
    if let Some(requested) = requested {
        return offered(keys, requested).filter(|_| is_allowed(requested)).ok_or(ChatError::ModelNotAllowed);
    }
    let default = keys.iter().find(|key| is_allowed(&key.default_model)).map(|key| (key, key.default_model.as_str()));
    default.or_else(|| allowed.iter().find_map(|model| offered(keys, model))).ok_or(ChatError::NoModel)
}

fn offered<'a>(keys: &'a [OpenKey], model: &str) -> Option<(&'a OpenKey, &'a str)> {
    keys.iter().find_map(|key| key.models.iter().find(|offered| *offered == model).map(|found| (key, found.as_str())))
}

#[cfg(test)]
mod tests {
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

    fn key(models: &[&str], default: &str) -> OpenKey {
        let models = models.iter().map(|&model| model.to_owned()).collect();
        OpenKey { models, default_model: default.to_owned(), provider: Arc::new(Silent) }
    }

    fn chosen(allowed: &[&str], keys: &[OpenKey], requested: Option<&str>) -> Result<(usize, String), String> {
        let allowed: Vec<_> = allowed.iter().map(|&model| model.to_owned()).collect();
        let (found, model) = choose(&allowed, keys, requested).map_err(|error| format!("{error:?}"))?;
        Ok((keys.iter().position(|key| std::ptr::eq(key, found)).unwrap(), model.to_owned()))
    }

    #[test]
    fn without_a_key_nothing_answers() {
        assert_eq!(chosen(&[], &[], None), Err("AiKeyMissing".to_owned()));
        assert_eq!(chosen(&["a"], &[], Some("a")), Err("AiKeyMissing".to_owned()));
    }

    #[test]
    fn a_model_asked_for_must_be_allowed_and_offered() {
        let keys = [key(&["a", "b"], "a"), key(&["b", "c"], "c")];
        assert_eq!(chosen(&[], &keys, Some("c")), Ok((1, "c".to_owned())));
        assert_eq!(chosen(&[], &keys, Some("b")), Ok((0, "b".to_owned())));
        assert_eq!(chosen(&["b"], &keys, Some("b")), Ok((0, "b".to_owned())));
        let refused = Err("ModelNotAllowed".to_owned());
        assert_eq!(chosen(&["b"], &keys, Some("a")), refused);
        assert_eq!(chosen(&["d"], &keys, Some("d")), refused);
        assert_eq!(chosen(&[], &keys, Some("")), refused);
    }

    #[test]
    fn the_default_is_the_first_keys_unless_the_settings_forbid_it() {
        let keys = [key(&["a", "b"], "a"), key(&["b", "c"], "c")];
        assert_eq!(chosen(&[], &keys, None), Ok((0, "a".to_owned())));
        assert_eq!(chosen(&["c"], &keys, None), Ok((1, "c".to_owned())));
        assert_eq!(chosen(&["x", "b"], &keys, None), Ok((0, "b".to_owned())));
        assert_eq!(chosen(&["x"], &keys, None), Err("NoModel".to_owned()));
    }
}
