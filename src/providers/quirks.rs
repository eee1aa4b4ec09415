//! What single models refuse although their interface has it, learned from their refusals.
//!
//! Models that think first take no temperature, some want the limit of tokens under its other name, and which ones do
//! is in no list that stays true. A tenant's settings are the same for all its models, so a preference that a model does
//! not have must not make it useless: such a call is made once more without, and later ones at once.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use super::error::{ProviderError, Unfit, UpstreamRefusal};

/// The most models remembered. A client names far fewer.
const CAPACITY: usize = 200;

/// What one model refuses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Quirk {
    pub(super) no_temperature: bool,
    pub(super) no_top_p: bool,
    /// `max_tokens` and `max_completion_tokens` change places.
    pub(super) other_limit: bool,
}

/// What the models of one provider refuse.
#[derive(Debug, Default)]
pub(super) struct Quirks(RwLock<HashMap<String, Quirk>>);

impl Quirks {
    /// What is known of a model.
    pub(super) fn of(&self, model: &str) -> Quirk {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(model).copied().unwrap_or_default()
    }

    /// What a refusal teaches: `None` if it is not about this, or was known already.
    pub(super) fn learn(&self, model: &str, known: Quirk, error: &ProviderError) -> Option<Quirk> {
        let ProviderError::BadRequest(cause) = error else { return None };
        let mut learned = known;
        match cause.downcast_ref::<UpstreamRefusal>()?.unfit? {
            Unfit::Temperature => learned.no_temperature = true,
            Unfit::TopP => learned.no_top_p = true,
            Unfit::Limit => learned.other_limit = true,
        }
        if learned == known {
            return None;
        }
        let mut quirks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if quirks.len() < CAPACITY || quirks.contains_key(model) {
            quirks.insert(model.to_owned(), learned);
        }
        Some(learned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> ProviderError {
        UpstreamRefusal::parse(Some(400), body.as_bytes()).into_error(None)
    }

    #[test]
    fn each_model_is_learned_once() {
        let quirks = Quirks::default();
        let error = refusal(r#"{"error":{"code":"unsupported_value","param":"temperature"}}"#);
        let learned = quirks.learn("o3", quirks.of("o3"), &error).unwrap();
        assert_eq!(learned, Quirk { no_temperature: true, ..Quirk::default() });
        assert_eq!(quirks.of("o3"), learned);
        assert_eq!(quirks.learn("o3", learned, &error), None, "and not tried for ever");
        assert_eq!(quirks.of("gpt-4o"), Quirk::default());
        let limit = refusal(r#"{"error":{"code":"unsupported_parameter","param":"max_tokens"}}"#);
        let both = Quirk { other_limit: true, ..learned };
        assert_eq!(quirks.learn("o3", learned, &limit), Some(both));
        let other = refusal(r#"{"error":{"code":"invalid_value","param":"temperature"}}"#);
        assert_eq!(quirks.learn("o3", both, &other), None);
    }
}
