//! What the local stack remembers between starts: `.freehold/dev.json`.
//!
//! Scripts read `server_url`, `super_admin` and `tenants` with their `slug`, `admin` and `user`; the rest is
//! ours. Every password is saved before it is used, so that a start which is cut off can be taken up again.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::files;
use super::project::Project;

/// An e-mail address and a password to sign in with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) email: String,
    pub(crate) password: String,
}

impl Account {
    fn new(email: &str) -> Self {
        Self { email: email.to_owned(), password: files::random_password() }
    }
}

/// A demo client and how far its set-up has come.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DemoTenant {
    pub(crate) slug: String,
    pub(crate) name: String,
    pub(crate) template: String,
    pub(crate) question: String,
    pub(crate) admin: Account,
    pub(crate) user: Account,
    pub(crate) idempotency_key: String,
    /// The provisioning, once it has been accepted.
    pub(crate) operation: Option<String>,
    /// The model the client's key names, once it does.
    pub(crate) model_url: Option<String>,
    /// Whether everything has been done for it.
    pub(crate) ready: bool,
}

impl DemoTenant {
    fn new(slug: &str, name: &str, template: &str, question: &str) -> Self {
        Self {
            slug: slug.to_owned(),
            name: name.to_owned(),
            template: template.to_owned(),
            question: question.to_owned(),
            admin: Account::new(&format!("admin@{slug}.localhost")),
            user: Account::new(&format!("user@{slug}.localhost")),
            idempotency_key: files::random_password(),
            operation: None,
            model_url: None,
            ready: false,
        }
    }

    /// Where its chat page is.
    pub(crate) fn page(&self, server_url: &str) -> String {
        format!("{server_url}/c/{}", self.slug)
    }

    /// Whether anybody may chat with it: a shop's customers have no accounts, a practice's patients do.
    pub(crate) fn welcomes_visitors(&self) -> bool {
        self.template == "retail"
    }
}

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DevState {
    pub(crate) server_url: String,
    pub(crate) super_admin: Account,
    pub(crate) tenants: Vec<DemoTenant>,
    pub(crate) server_port: Option<u16>,
    pub(crate) model_port: Option<u16>,
    pub(crate) model_url: Option<String>,
    pub(crate) platform_database_url: Option<String>,
}

impl DevState {
    /// What an earlier start left, or fresh accounts and passwords.
    pub(crate) fn load_or_new(project: &Project) -> Result<Self> {
        Ok(Self::load(project)?.unwrap_or_else(Self::new))
    }

    pub(crate) fn load(project: &Project) -> Result<Option<Self>> {
        files::read_json(&project.own("dev.json"))
    }

    pub(crate) fn save(&self, project: &Project) -> Result<()> {
        files::write_json(&project.own("dev.json"), self)
    }

    fn new() -> Self {
        Self {
            server_url: String::new(),
            super_admin: Account::new("admin@freehold.localhost"),
            tenants: vec![
                DemoTenant::new(
                    "harbour-dental",
                    "Harbour Dental",
                    "clinic",
                    "What should I bring to my first appointment?",
                ),
                DemoTenant::new(
                    "northwind-outdoor",
                    "Northwind Outdoor",
                    "retail",
                    "Which jacket do you suggest for a rainy hike?",
                ),
            ],
            server_port: None,
            model_port: None,
            model_url: None,
            platform_database_url: None,
        }
    }

    /// Notes which platform database is used. On another one than last time nothing has been set up yet.
    pub(crate) fn use_database(&mut self, url: &str) {
        if self.platform_database_url.as_deref() == Some(url) {
            return;
        }
        self.platform_database_url = Some(url.to_owned());
        for tenant in &mut self.tenants {
            tenant.ready = false;
            tenant.operation = None;
            tenant.model_url = None;
            tenant.idempotency_key = files::random_password();
        }
    }

    /// Whether a start has anything left to set up through the API.
    pub(crate) fn is_complete(&self, model_url: &str) -> bool {
        self.tenants.iter().all(|tenant| tenant.ready && tenant.model_url.as_deref() == Some(model_url))
    }
}
