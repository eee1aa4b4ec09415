//! What single models refuse although their interface has it, learned from their refusals.
//!
//! Models that think first take no temperature, some want the limit of tokens under its other name, and which ones do
//! is in no list that stays true. A tenant's settings are the same for all its models, so a preference that a model does
//! not have must not make it useless: such a call is made once more without, and later ones at once.
//!
//! A provider may be lent to many tenants, so what one of them is refused is no news to the others. Only what a call
//! proved is kept: it was refused with a preference and answered without, and had nothing else in it that the refusal
//! may have been about.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use super::ChatRequest;
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

    /// A call was answered in the way of `tried`, after it was refused in the way of `known`. That is kept, unless the
    /// refusal may have been about what else was in the request.
    pub(super) fn prove(&self, request: &ChatRequest, known: Quirk, tried: Quirk) {
        // Some parameters exclude others, and a model that refuses two together takes each of them alone.
        let combined = !request.extra.is_empty() || (request.temperature.is_some() && request.top_p.is_some());
        if tried == known || combined {
            return;
        }
        let mut quirks = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if quirks.len() < CAPACITY || quirks.contains_key(&request.model) {
            let kept = quirks.entry(request.model.clone()).or_default();
            kept.no_temperature |= tried.no_temperature;
            kept.no_top_p |= tried.no_top_p;
            kept.other_limit |= tried.other_limit;
        }
    }
}

impl Quirk {
    /// What to try after a refusal: `None` if it is not about this, or was tried already.
    pub(super) fn after(self, error: &ProviderError) -> Option<Self> {
        let ProviderError::BadRequest(cause) = error else { return None };
        let mut next = self;
        match cause.downcast_ref::<UpstreamRefusal>()?.unfit? {
            Unfit::Temperature => next.no_temperature = true,
            Unfit::TopP => next.no_top_p = true,
            Unfit::Limit => next.other_limit = true,
        }
        (next != self).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(body: &str) -> ProviderError {
        UpstreamRefusal::parse(Some(400), body.as_bytes()).into_error(None)
    }

    fn refused(parameter: &str) -> ProviderError {
        refusal(&format!(r#"{{"error":{{"code":"unsupported_value","param":"{parameter}"}}}}"#))
    }

    fn request(model: &str) -> ChatRequest {
        ChatRequest { model: model.to_owned(), temperature: Some(0.5), ..ChatRequest::default() }
    }

    #[test]
    fn each_model_is_learned_once() {
        let quirks = Quirks::default();
        let error = refused("temperature");
        let known = quirks.of("o3");
        let learned = known.after(&error).unwrap();
        assert_eq!(learned, Quirk { no_temperature: true, ..Quirk::default() });
        assert_eq!(learned.after(&error), None, "and not tried for ever");
        quirks.prove(&request("o3"), known, learned);
        assert_eq!((quirks.of("o3"), quirks.of("gpt-4o")), (learned, Quirk::default()));
        let both = Quirk { other_limit: true, ..learned };
        assert_eq!(learned.after(&refused("max_tokens")), Some(both));
        let other = refusal(r#"{"error":{"code":"invalid_value","param":"temperature"}}"#);
        assert_eq!(both.after(&other), None);
        // Two who learned different things at once.
        quirks.prove(&request("o3"), known, Quirk { other_limit: true, ..known });
        assert_eq!(quirks.of("o3"), both);
    }

    #[test]
    fn what_may_be_about_something_else_is_learned_by_nobody() {
        let quirks = Quirks::default();
        let (known, learned) = (Quirk::default(), Quirk { no_temperature: true, ..Quirk::default() });
        let mut with_effort = request("o3");
        with_effort.extra.insert("reasoning_effort".to_owned(), "high".into());
        quirks.prove(&with_effort, known, learned);
        quirks.prove(&ChatRequest { top_p: Some(0.5), ..request("o3") }, known, learned);
        assert_eq!(quirks.of("o3"), Quirk::default());
    }
}
