//! Instance templates and plans: `templates/` built into the server, and a directory of the owner's own on top.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use garde::Validate;
use serde::Deserialize;

use crate::api::tenant::{Settings, StrictSettings};
use crate::configuration::check_settings;
use crate::limits::Plans;

const INSTANCES: &[(&str, &str)] = &[
    ("general", include_str!("../../templates/instances/general.toml")),
    ("clinic", include_str!("../../templates/instances/clinic.toml")),
    ("retail", include_str!("../../templates/instances/retail.toml")),
];

/// What a new tenant starts with.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceTemplate {
    /// What it is for, in a sentence.
    pub description: String,
    /// The settings, in which `{{client_name}}` stands for the company's name.
    settings: StrictSettings,
}

/// All templates and plans.
#[derive(Debug, Clone)]
pub struct Templates {
    instances: BTreeMap<String, InstanceTemplate>,
    plans: Plans,
}

impl Templates {
    /// Reads the built-in ones and those of `directory`, and checks every one: a bad template is found at start, not
    /// when a client is waiting.
    pub fn load(directory: Option<&Path>) -> anyhow::Result<Self> {
        let mut sources: BTreeMap<String, String> =
            INSTANCES.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        if let Some(directory) = directory {
            let instances = directory.join("instances");
            if instances.is_dir() {
                for entry in std::fs::read_dir(&instances).context("read templates")? {
                    let path = entry.context("read templates")?.path();
                    let name = path.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
                    if let (Some("toml"), Some(name)) = (path.extension().and_then(|end| end.to_str()), name) {
                        let text = std::fs::read_to_string(&path).with_context(|| format!("read template {name}"))?;
                        sources.insert(name, text);
                    }
                }
            }
        }
        let mut instances = BTreeMap::new();
        for (name, text) in sources {
            let template: InstanceTemplate =
                toml::from_str(&text).with_context(|| format!("template `{name}` is not well formed"))?;
            template.settings.0.validate().with_context(|| format!("template `{name}` breaks a limit"))?;
            check_settings(&template.settings.0).with_context(|| format!("template `{name}` cannot be meant"))?;
            instances.insert(name, template);
        }
        Ok(Self { instances, plans: Plans::load(directory)? })
    }

    /// The names of the instance templates.
    pub fn names(&self) -> Vec<String> {
        self.instances.keys().cloned().collect()
    }

    /// The names of the plans.
    pub fn plans(&self) -> Vec<String> {
        self.plans.names()
    }

    /// A template's settings for a client.
    pub fn settings(&self, template: &str, client_name: &str) -> Option<Settings> {
        let mut settings = self.instances.get(template)?.settings.0.clone();
        let texts = [
            &mut settings.system_prompt,
            &mut settings.welcome_message,
            &mut settings.error_message,
            &mut settings.degraded_message,
            &mut settings.branding.assistant_name,
        ];
        let assistants = settings.assistants.iter_mut();
        let assistants = assistants.flat_map(|one| [&mut one.title, &mut one.description, &mut one.prompt]);
        for text in texts.into_iter().chain(&mut settings.branding.suggestions).chain(assistants) {
            *text = text.replace("{{client_name}}", client_name);
        }
        Some(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_templates_are_valid_and_name_the_client() {
        let templates = Templates::load(None).unwrap();
        assert_eq!(templates.plans(), ["enterprise", "free", "premium", "pro"]);
        for name in templates.names() {
            let settings = templates.settings(&name, "Northwind").unwrap();
            assert!(settings.system_prompt.contains("Northwind"), "{name}");
            assert!(!serde_json::to_string(&settings).unwrap().contains("{{"), "{name}");
        }
    }

    #[test]
    fn a_template_of_the_owner_replaces_a_built_in_one_and_a_bad_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let instances = directory.path().join("instances");
        std::fs::create_dir(&instances).unwrap();
        let own = INSTANCES[0].1.replace("[settings]", "[settings]\n#").replace("You are", "Thou art");
        std::fs::write(instances.join("general.toml"), own).unwrap();
        let templates = Templates::load(Some(directory.path())).unwrap();
        assert!(templates.settings("general", "x").unwrap().system_prompt.contains("Thou art"));
        let misspelt = INSTANCES[0].1.replace("max_tokens", "temprature = 1.0\nmax_tokens");
        for bad in ["description = 1", &misspelt] {
            std::fs::write(instances.join("bad.toml"), bad).unwrap();
            assert!(Templates::load(Some(directory.path())).is_err(), "{bad}");
        }
    }
}
