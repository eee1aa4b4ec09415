//! A tenant's own names for the models of an AI key.

use std::collections::BTreeMap;

use super::ConfigurationError;
use super::ai_keys::refused;

/// The most names of a key.
const MOST: usize = 50;
/// The longest name, in characters.
const LONGEST: usize = 200;

/// Checks that every alias is a name of its own for one of the key's models, and that the default is one of its names.
pub(super) fn check(
    models: &[String],
    aliases: &BTreeMap<String, String>,
    default_model: &String,
) -> Result<(), ConfigurationError> {
    if aliases.len() > MOST {
        return Err(refused("model_aliases", format!("at most {MOST} names")));
    }
    for (alias, model) in aliases {
        if alias.is_empty() || alias.trim() != alias || alias.contains(char::is_control) {
            return Err(refused("model_aliases", "a name neither is empty nor starts or ends with a space"));
        }
        if alias.chars().count() > LONGEST {
            return Err(refused("model_aliases", format!("a name has at most {LONGEST} characters")));
        }
        if models.contains(alias) {
            return Err(refused("model_aliases", "a name is that of one of `models` already"));
        }
        if !models.contains(model) {
            return Err(refused("model_aliases", "a name has to be for one of `models`"));
        }
    }
    if !models.contains(default_model) && !aliases.contains_key(default_model) {
        return Err(refused("default_model", "must be one of `models` or of the aliases"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(aliases: &[(&str, &str)], default: &str) -> Result<(), &'static str> {
        let models = ["a", "b"].map(str::to_owned);
        let aliases = aliases.iter().map(|&(alias, model)| (alias.to_owned(), model.to_owned())).collect();
        check(&models, &aliases, &default.to_owned()).map_err(|error| match error {
            ConfigurationError::Refused { field, .. } => field,
            _ => "",
        })
    }

    #[test]
    fn an_alias_is_a_new_name_for_one_of_the_models() {
        assert_eq!(checked(&[("fast", "a"), ("good", "b")], "fast"), Ok(()));
        assert_eq!(checked(&[], "b"), Ok(()));
        assert_eq!(checked(&[], "fast"), Err("default_model"));
        for bad in [("a", "b"), ("fast", "c"), ("", "a"), (" fast", "a"), ("f\0", "a")] {
            assert_eq!(checked(&[bad], "a"), Err("model_aliases"), "{bad:?}");
        }
        assert_eq!(checked(&[(&"x".repeat(201), "a")], "a"), Err("model_aliases"));
    }
}
