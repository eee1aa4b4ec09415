//! The page's own words, in the languages there are.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

const LANGUAGES: &[(&str, &str)] = &[
    ("en", include_str!("../../templates/chat/texts/en.json")),
    ("de", include_str!("../../templates/chat/texts/de.json")),
];

/// The texts of all languages.
#[derive(Debug)]
pub(super) struct Texts {
    default: Language,
    others: BTreeMap<&'static str, Language>,
}

/// The texts of one language.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Language {
    /// Those of the template.
    pub(super) page: PageTexts,
    /// Those of the scripts.
    pub(super) script: BTreeMap<String, String>,
    /// Those of the page in the place of one that cannot be shown.
    pub(super) unavailable: UnavailableTexts,
}

/// What is said where there is no page, or none right now.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnavailableTexts {
    pub(super) later_title: String,
    pub(super) later: String,
    pub(super) nothing_title: String,
    pub(super) nothing: String,
}

/// Texts of the template, which does not compile without one of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PageTexts {
    pub(super) language: String,
    pub(super) skip: String,
    pub(super) history: String,
    pub(super) close_history: String,
    pub(super) new_chat: String,
    pub(super) no_sessions: String,
    pub(super) more_sessions: String,
    pub(super) sign_out: String,
    pub(super) sign_in: String,
    pub(super) dark_mode: String,
    pub(super) close_chat: String,
    pub(super) conversation: String,
    pub(super) suggestions: String,
    pub(super) latest: String,
    pub(super) assistant: String,
    pub(super) attach: String,
    pub(super) attachments: String,
    pub(super) question: String,
    pub(super) placeholder: String,
    pub(super) send: String,
    pub(super) stop: String,
    pub(super) hint: String,
    pub(super) privacy: String,
    pub(super) sign_in_title: String,
    pub(super) sign_in_lead: String,
    pub(super) email: String,
    pub(super) password: String,
    pub(super) stay_visitor: String,
    pub(super) noscript: String,
}

impl Texts {
    pub(super) fn load() -> anyhow::Result<Self> {
        let mut default = None;
        let mut others = BTreeMap::new();
        for (name, text) in LANGUAGES {
            let language: Language = serde_json::from_str(text).with_context(|| format!("read the texts of {name}"))?;
            if default.is_none() { default = Some(language) } else { drop(others.insert(*name, language)) }
        }
        Ok(Self { default: default.context("there are no texts")?, others })
    }

    /// The texts of a BCP 47 tag such as `de-CH`, by its language; English where there are none.
    pub(super) fn of(&self, tag: &str) -> &Language {
        let language = tag.split('-').next().unwrap_or_default().to_ascii_lowercase();
        self.others.get(language.as_str()).unwrap_or(&self.default)
    }

    /// The texts for a reader of these languages, as in `Accept-Language`: the first there is. Browsers name the one that is
    /// liked best first, so weights are not looked at.
    pub(super) fn of_reader(&self, tags: &str) -> &Language {
        let tags = tags.split(',').take(10).map(|tag| tag.split(';').next().unwrap_or_default().trim());
        tags.filter(|tag| !tag.is_empty())
            .find_map(|tag| {
                let language = self.of(tag);
                tag.get(..2).is_some_and(|name| name.eq_ignore_ascii_case(&language.page.language)).then_some(language)
            })
            .unwrap_or(&self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_says_everything() {
        let texts = Texts::load().unwrap();
        let keys = |language: &Language| language.script.keys().cloned().collect::<Vec<_>>();
        for language in texts.others.values() {
            assert_eq!(keys(language), keys(&texts.default));
        }
        for (tag, language) in
            [("de", "de"), ("de-CH", "de"), ("DE-at", "de"), ("en-GB", "en"), ("fr", "en"), ("", "en")]
        {
            assert_eq!(texts.of(tag).page.language, language, "{tag}");
        }
    }

    #[test]
    fn a_reader_is_spoken_to_in_the_first_language_that_there_is() {
        let texts = Texts::load().unwrap();
        for (tags, language) in [
            ("de-DE,de;q=0.9,en;q=0.8", "de"),
            ("en-GB,en;q=0.9,de;q=0.8", "en"),
            ("fr-FR, fr;q=0.9, de;q=0.5", "de"),
            ("fr", "en"),
            ("*", "en"),
            ("", "en"),
            ("ü,,;", "en"),
        ] {
            assert_eq!(texts.of_reader(tags).page.language, language, "{tags}");
        }
    }

    #[test]
    fn the_scripts_say_nothing_that_is_not_there() {
        let texts = Texts::load().unwrap();
        for script in [
            include_str!("../../templates/chat/assets/chat.js"),
            include_str!("../../templates/chat/assets/choice.js"),
            include_str!("../../templates/chat/assets/messages.js"),
            include_str!("../../templates/chat/assets/images.js"),
            include_str!("../../templates/chat/assets/list.js"),
        ] {
            // `t("key"` and `this.#t("key"`, not `get("key"`.
            for (at, mark) in script.match_indices("t(\"") {
                if script[..at].ends_with(|before: char| before.is_ascii_alphanumeric()) {
                    continue;
                }
                let part = &script[at + mark.len()..];
                let key = part.split('"').next().unwrap();
                let a_key = key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !key.is_empty();
                let rest = &part[key.len()..];
                let called = a_key && (rest.starts_with("\")") || rest.starts_with("\", {"));
                if called && !texts.default.script.contains_key(key) {
                    panic!("`{key}` has no text");
                }
            }
        }
    }
}
