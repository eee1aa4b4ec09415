//! What clients can be sold, and what that comes to for one tenant.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use super::LimitsError;
use crate::api::platform::{FEATURES, Limit, TenantLimits};

const PLANS: &str = include_str!("../../templates/plans.toml");

/// What a client pays for. What is left out has no limit.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What it is for, in a sentence.
    pub description: String,
    /// Requests in any minute.
    #[serde(default)]
    pub requests_per_minute: Option<u32>,
    /// Requests in any minute of each user.
    #[serde(default)]
    pub requests_per_minute_per_user: Option<u32>,
    /// Requests in any minute of each API key.
    #[serde(default)]
    pub requests_per_minute_per_api_key: Option<u32>,
    /// Requests in a calendar month, in UTC.
    #[serde(default)]
    pub requests_per_month: Option<u32>,
    /// The features it has.
    #[serde(default)]
    pub features: BTreeSet<String>,
}

/// All plans, by name.
#[derive(Debug, Clone)]
pub struct Plans(BTreeMap<String, Plan>);

impl Plans {
    /// Reads the built-in plans, or `plans.toml` of `directory` in their place, and checks them.
    ///
    /// # Errors
    /// If a file cannot be read, or a plan cannot be meant.
    pub fn load(directory: Option<&Path>) -> anyhow::Result<Self> {
        let mut text = PLANS.to_owned();
        if let Some(own) = directory.map(|directory| directory.join("plans.toml"))
            && own.exists()
        {
            text = std::fs::read_to_string(&own).context("read plans.toml")?;
        }
        let plans: BTreeMap<String, Plan> = toml::from_str(&text).context("plans.toml is not well formed")?;
        for (name, plan) in &plans {
            let unknown = plan.features.iter().find(|feature| !FEATURES.contains(&feature.as_str()));
            anyhow::ensure!(unknown.is_none(), "plan `{name}` has a feature that does not exist: {unknown:?}");
            let limits = [
                plan.requests_per_minute,
                plan.requests_per_minute_per_user,
                plan.requests_per_minute_per_api_key,
                plan.requests_per_month,
            ];
            anyhow::ensure!(!limits.contains(&Some(0)), "a limit of plan `{name}` is 0; leave it out for no limit");
        }
        Ok(Self(plans))
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// What a tenant of this plan may do, with what is set for it alone.
    pub fn terms<'a>(&'a self, plan: &'a str, own: &'a TenantLimits) -> Terms<'a> {
        Terms { name: plan, plan: self.0.get(plan), smallest: self.smallest(), own }
    }

    fn smallest(&self) -> Option<&Plan> {
        self.0.values().min_by_key(|plan| plan.requests_per_minute.unwrap_or(u32::MAX))
    }
}

/// What a tenant may do.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    name: &'a str,
    /// None if the owner has removed the plan.
    plan: Option<&'a Plan>,
    /// The plan with the lowest limits: what holds for a tenant whose plan is not there any more.
    smallest: Option<&'a Plan>,
    own: &'a TenantLimits,
}

impl Terms<'_> {
    /// The plan's name.
    pub fn plan(&self) -> &str {
        self.name
    }

    /// Requests in any minute; none if there is no limit.
    pub fn requests_per_minute(&self) -> Option<u32> {
        self.limit(self.own.requests_per_minute, |plan| plan.requests_per_minute)
    }

    /// Requests in any minute of each user; none if there is no limit.
    pub fn requests_per_minute_per_user(&self) -> Option<u32> {
        self.limit(self.own.requests_per_minute_per_user, |plan| plan.requests_per_minute_per_user)
    }

    /// Requests in any minute of each API key; none if there is no limit.
    pub fn requests_per_minute_per_api_key(&self) -> Option<u32> {
        self.limit(self.own.requests_per_minute_per_api_key, |plan| plan.requests_per_minute_per_api_key)
    }

    /// Requests in a month; none if there is no limit.
    pub fn requests_per_month(&self) -> Option<u64> {
        self.limit(self.own.requests_per_month, |plan| plan.requests_per_month).map(u64::from)
    }

    fn limit(&self, own: Option<Limit>, of: impl Fn(&Plan) -> Option<u32>) -> Option<u32> {
        match own {
            Some(own) => own.number(),
            None => self.plan.or(self.smallest).and_then(of),
        }
    }

    /// Whether the tenant has a feature.
    pub fn has(&self, feature: &str) -> bool {
        let of_plan = || self.plan.is_some_and(|plan| plan.features.contains(feature));
        self.own.features.get(feature).copied().unwrap_or_else(of_plan)
    }

    /// The same, or a refusal that names it.
    ///
    /// # Errors
    /// [`LimitsError::FeatureNotInPlan`].
    pub fn require(&self, feature: &'static str) -> Result<(), LimitsError> {
        match self.has(feature) {
            true => Ok(()),
            false => Err(LimitsError::FeatureNotInPlan { feature, plan: self.name.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_for_a_tenant_comes_before_its_plan() {
        let plans = Plans::load(None).unwrap();
        let none = TenantLimits::default();
        let minutes: Vec<_> = ["free", "pro", "premium", "enterprise"]
            .map(|plan| plans.terms(plan, &none).requests_per_minute())
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(minutes, [10, 20, 50, 100]);
        let own = TenantLimits {
            requests_per_minute: Some(Limit::Of(600)),
            requests_per_month: Some(Limit::UNLIMITED),
            features: [("api".to_owned(), true), ("vision".to_owned(), false)].into(),
            ..TenantLimits::default()
        };
        let terms = plans.terms("free", &own);
        assert_eq!((terms.requests_per_minute(), terms.requests_per_month()), (Some(600), None));
        assert!(terms.has("api") && !terms.has("embeddings") && !plans.terms("free", &none).has("api"));
        assert!(plans.terms("pro", &none).has("vision") && !plans.terms("pro", &own).has("vision"));
        let refused = plans.terms("free", &none).require("api");
        assert!(matches!(refused, Err(LimitsError::FeatureNotInPlan { feature: "api", plan }) if plan == "free"));
    }

    #[test]
    fn a_plan_that_is_gone_has_the_lowest_limits_and_no_features() {
        let plans = Plans::load(None).unwrap();
        let none = TenantLimits::default();
        let terms = plans.terms("gone", &none);
        assert_eq!((terms.requests_per_minute(), terms.has("api")), (Some(10), false));
    }

    #[test]
    fn plans_that_cannot_be_meant_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for bad in ["[a]\ndescription = ''\nfeatures = ['telepathy']", "[a]\ndescription = ''\nrequests_per_month = 0"]
        {
            std::fs::write(directory.path().join("plans.toml"), bad).unwrap();
            assert!(Plans::load(Some(directory.path())).is_err(), "{bad}");
        }
    }
}
