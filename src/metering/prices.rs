//! What tokens cost: a dated list, in integers.
//!
//! `templates/prices.toml` is built in; the owner's own file of that name replaces it as a whole. A price is in
//! millionths of the currency's unit for a million tokens. Of the entries that fit a model, an exact name comes before a
//! prefix, a longer prefix before a shorter one, one for the provider before one for any; of those, the one that came
//! into force last before the call began. A model that no entry fits has no price, which is not the same as costing
//! nothing.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use chrono::{DateTime, NaiveDate, Utc};
use serde::Deserialize;

use super::Target;
use crate::providers::Usage;

const BUILT_IN: &str = include_str!("../../templates/prices.toml");
/// Tokens that a price is for.
const PER: u128 = 1_000_000;

/// The price list.
#[derive(Debug, Clone)]
pub struct Prices {
    currency: Arc<str>,
    /// The most specific first, and of those the newest.
    entries: Arc<[Price]>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    currency: String,
    #[serde(default)]
    prices: Vec<Price>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Price {
    /// A provider's kind; any if it is left out.
    provider: Option<String>,
    /// A model's name, or the beginning of one and `*`.
    model: String,
    valid_from: NaiveDate,
    input: u64,
    /// As `input` if it is left out.
    cached_input: Option<u64>,
    output: u64,
}

impl Price {
    fn fits(&self, provider: &str, model: &str, day: NaiveDate) -> bool {
        let named = match self.model.strip_suffix('*') {
            Some(prefix) => model.starts_with(prefix),
            None => self.model == model,
        };
        named && self.valid_from <= day && self.provider.as_deref().is_none_or(|own| own == provider)
    }

    /// Sorts the most specific first, and of those the newest.
    fn rank(&self) -> impl Ord + use<> {
        let prefix = self.model.strip_suffix('*');
        let length = prefix.map_or(usize::MAX, str::len);
        std::cmp::Reverse((length, self.provider.is_some(), self.valid_from))
    }
}

impl Prices {
    /// Reads the built-in list, or `prices.toml` of `directory` if there is one, and checks it: a bad list is found at
    /// start.
    ///
    /// # Errors
    /// If the list is not well formed.
    pub fn load(directory: Option<&Path>) -> anyhow::Result<Self> {
        let own = directory.map(|directory| directory.join("prices.toml")).filter(|path| path.exists());
        match own {
            Some(path) => Self::parse(&std::fs::read_to_string(path).context("read prices.toml")?),
            None => Self::parse(BUILT_IN),
        }
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let List { currency, mut prices } = toml::from_str(text).context("prices.toml is not well formed")?;
        let is_code = currency.len() == 3 && currency.bytes().all(|b| b.is_ascii_uppercase());
        anyhow::ensure!(is_code, "prices.toml: `currency` is not a code of three capital letters");
        for price in &prices {
            let name = price.model.strip_suffix('*').unwrap_or(&price.model);
            anyhow::ensure!(
                !name.is_empty() && !name.contains('*'),
                "prices.toml: `{}` is neither a model's name nor the beginning of one and `*`",
                price.model
            );
        }
        prices.sort_by_key(Price::rank);
        Ok(Self { currency: currency.into(), entries: prices.into() })
    }

    /// The currency of all prices, as a code of three letters.
    #[must_use]
    pub fn currency(&self) -> Arc<str> {
        Arc::clone(&self.currency)
    }

    /// What a call costs that began at a time, in millionths; none if there is no price.
    #[must_use]
    pub fn cost(&self, target: &Target, at: DateTime<Utc>, usage: &Usage) -> Option<i64> {
        self.cost_of(target.provider, &target.upstream_model, at, usage)
    }

    /// The same for a model by its names. The sum is rounded once, to the nearest millionth, and up from the middle.
    #[must_use]
    pub fn cost_of(&self, provider: &str, model: &str, at: DateTime<Utc>, usage: &Usage) -> Option<i64> {
        let day = at.date_naive();
        let price = self.entries.iter().find(|price| price.fits(provider, model, day))?;
        let cached = usage.cached_input_tokens.min(usage.input_tokens);
        let parts = [
            (usage.input_tokens - cached, price.input),
            (cached, price.cached_input.unwrap_or(price.input)),
            (usage.output_tokens, price.output),
        ];
        let sum: u128 = parts.iter().map(|&(tokens, price)| u128::from(tokens) * u128::from(price)).sum();
        i64::try_from((sum + PER / 2) / PER).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"
        currency = "USD"
        [[prices]]
        model = "m*"
        valid_from = "2025-01-01"
        input = 1_000_000
        output = 2_000_000
        [[prices]]
        model = "m-mini*"
        valid_from = "2025-01-01"
        input = 100
        output = 100
        [[prices]]
        model = "m-mini-2"
        valid_from = "2025-01-01"
        input = 150_000
        cached_input = 75_000
        output = 600_000
        [[prices]]
        model = "m-mini-2"
        valid_from = "2026-01-01"
        input = 1
        output = 1
        [[prices]]
        provider = "anthropic"
        model = "m*"
        valid_from = "2025-01-01"
        input = 7_000_000
        output = 7_000_000
    "#;

    fn used(input: u64, cached: u64, output: u64) -> Usage {
        Usage { input_tokens: input, output_tokens: output, cached_input_tokens: cached, reported: true }
    }

    fn cost(provider: &str, model: &str, day: &str, usage: Usage) -> Option<i64> {
        let at = format!("{day}T12:00:00Z").parse().unwrap();
        Prices::parse(LIST).unwrap().cost_of(provider, model, at, &usage)
    }

    #[test]
    fn the_most_specific_price_in_force_counts() {
        let million = used(1_000_000, 0, 0);
        assert_eq!(cost("x", "m-large", "2025-06-01", million), Some(1_000_000));
        assert_eq!(cost("anthropic", "m-large", "2025-06-01", million), Some(7_000_000));
        assert_eq!(cost("x", "m-mini-3", "2025-06-01", million), Some(100));
        assert_eq!(cost("x", "m-mini-2", "2025-12-31", million), Some(150_000));
        assert_eq!(cost("x", "m-mini-2", "2026-01-01", million), Some(1));
        assert_eq!(cost("x", "m-mini-2", "2024-12-31", million), None);
        assert_eq!(cost("x", "other", "2025-06-01", million), None);
    }

    #[test]
    fn cached_tokens_are_part_of_the_input_and_have_a_price_of_their_own() {
        // 600 at 0.15, 400 at 0.075 and 1,000 at 0.60 a million: 90 + 30 + 600 millionths.
        assert_eq!(cost("x", "m-mini-2", "2025-06-01", used(1_000, 400, 1_000)), Some(720));
        // Without one they cost the same, and more cached tokens than there are tokens are all of them.
        assert_eq!(cost("x", "m-large", "2025-06-01", used(10, 4, 0)), Some(10));
        assert_eq!(cost("x", "m-mini-2", "2025-06-01", used(1_000, 4_000, 0)), Some(75));
    }

    #[test]
    fn sums_are_rounded_once_and_up_from_the_middle() {
        // 5 × 100,000 and below are halves of a millionth at most.
        assert_eq!(cost("x", "m-mini-3", "2025-06-01", used(4_999, 0, 0)), Some(0));
        assert_eq!(cost("x", "m-mini-3", "2025-06-01", used(2_500, 0, 2_500)), Some(1));
        assert_eq!(cost("x", "m-large", "2025-06-01", used(u64::MAX, 0, u64::MAX)), None);
        assert_eq!(cost("x", "m-large", "2025-06-01", used(0, 0, 0)), Some(0));
    }

    #[test]
    fn the_built_in_list_is_well_formed_and_an_owners_replaces_it() {
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        let built_in = Prices::load(None).unwrap();
        let million = used(1_000_000, 0, 0);
        assert_eq!(built_in.cost_of("openai_compatible", "gpt-4o-mini-2024-07-18", at, &million), Some(150_000));
        assert_eq!(built_in.cost_of("openai_compatible", "local-model", at, &million), None);
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("prices.toml"), "currency = \"EUR\"").unwrap();
        let own = Prices::load(Some(directory.path())).unwrap();
        assert_eq!((&*own.currency(), own.entries.len()), ("EUR", 0));
        for bad in [
            "currency = \"eur\"",
            "",
            "currency = \"EUR\"\n[[prices]]\nmodel = \"*\"\nvalid_from = \"2025-01-01\"\ninput = 1\noutput = 1",
        ] {
            assert!(Prices::parse(bad).is_err(), "{bad}");
        }
    }
}
