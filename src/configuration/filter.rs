//! From a tenant's settings to the filter that its answers go through.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::ConfigurationError;
use crate::api::content_filter::ContentFilterSettings;
use crate::content_filter::{ContentFilter, FilterError, Rules};

const FIELD: &str = "content_filter.patterns";

/// The filter that these settings ask for; `None` if they mask nothing.
///
/// # Errors
/// [`ConfigurationError::Refused`] if a pattern is refused: then there is no filter, and no answer may go out.
pub fn content_filter(settings: &ContentFilterSettings) -> Result<Option<Arc<ContentFilter>>, ConfigurationError> {
    let refused = |message: String| ConfigurationError::Refused { field: FIELD, message };
    let mut names = BTreeSet::new();
    for pattern in &settings.patterns {
        if !names.insert(pattern.name.as_str()) {
            return Err(refused(format!("two patterns have the name {:?}", pattern.name)));
        }
        // Postgres stores no NUL in a text.
        if [Some(&pattern.pattern), pattern.replacement.as_ref()].iter().flatten().any(|text| text.contains('\0')) {
            return Err(refused("must not hold a NUL character".to_owned()));
        }
    }
    let patterns = settings.patterns.iter().map(|pattern| {
        let replacement = pattern.replacement.clone().unwrap_or_else(|| format!("[{}]", pattern.name));
        (pattern.pattern.as_str(), replacement)
    });
    let rules = Rules {
        card_numbers: settings.card_numbers,
        email_addresses: settings.email_addresses,
        phone_numbers: settings.phone_numbers,
        patterns: patterns.collect(),
    };
    ContentFilter::new(rules).map_err(|error| {
        refused(match error {
            FilterError::Pattern { at, problem } => {
                let name = settings.patterns.get(at).map_or("", |pattern| pattern.name.as_str());
                format!("the pattern {name:?}: {problem}")
            }
            FilterError::TooLarge => {
                "the patterns are too large together, or take too much work; use smaller counts".to_owned()
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::content_filter::FilterPattern;

    fn settings(patterns: &[(&str, &str, Option<&str>)]) -> ContentFilterSettings {
        let pattern = |(name, pattern, replacement): &(&str, &str, Option<&str>)| FilterPattern {
            name: (*name).to_owned(),
            pattern: (*pattern).to_owned(),
            replacement: replacement.map(str::to_owned),
        };
        ContentFilterSettings { patterns: patterns.iter().map(pattern).collect(), ..ContentFilterSettings::default() }
    }

    #[test]
    fn a_match_becomes_the_replacement_or_the_name() {
        assert!(content_filter(&ContentFilterSettings::default()).unwrap().is_none());
        let filter = content_filter(&settings(&[
            ("employee", r"EMP-\d{6}", None),
            ("code name", "(?i)phoenix", Some("the project")),
        ]));
        assert_eq!(filter.unwrap().unwrap().mask("EMP-123456 is on Phoenix."), "[employee] is on the project.");
    }

    #[test]
    fn what_is_refused_is_named() {
        let message = |patterns: &[(&str, &str, Option<&str>)]| match content_filter(&settings(patterns)) {
            Err(ConfigurationError::Refused { field, message }) => {
                assert_eq!(field, FIELD);
                message
            }
            other => panic!("{other:?}"),
        };
        assert!(
            message(&[("a", "x", None), ("b", "x*", None)]).starts_with("the pattern \"b\": must not match an empty")
        );
        assert!(message(&[("a", "x+", None)]).contains("256 characters"));
        assert!(message(&[("a", "(", None)]).starts_with("the pattern \"a\": unclosed"));
        assert!(message(&[("a", "x", None), ("a", "y", None)]).contains("two patterns"));
        assert!(message(&[("a", "x", Some("\0"))]).contains("NUL"));
    }
}
