//! Setting up the platform for the demo: a cluster, and clients that can chat.
//!
//! Every step looks whether it has been done, because the start before this one may have been cut off
//! anywhere. It speaks to the public API only and knows nothing of processes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::api::{Api, text};
use super::hinted;
use super::model_server::MODEL_NAME;
use super::process::POLL;
use super::project::Project;
use super::state::{Account, DemoTenant, DevState};

const CLUSTER: &str = "local";
const KEY_NAME: &str = "local";

/// Provisioning takes well under a second; a first start on a busy machine may take much longer.
const PATIENCE: Duration = Duration::from_secs(180);

/// The model which the clients use.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) url: String,
    pub(crate) name: String,
    pub(crate) api_key: String,
}

impl Model {
    /// The local one.
    pub(crate) fn local(url: String) -> Self {
        Self { url, name: MODEL_NAME.to_owned(), api_key: "local-model-needs-no-key".to_owned() }
    }
}

/// A super admin's session, for the length of the set-up.
pub(crate) struct SetUp<'a> {
    api: &'a Api,
    token: String,
}

impl<'a> SetUp<'a> {
    pub(crate) async fn sign_in(api: &'a Api, admin: &Account) -> Result<Self> {
        let body = json!({"email": admin.email, "password": admin.password});
        let answer = api.post("/platform/v1/sessions", None, &body).await?;
        if answer.status == reqwest::StatusCode::UNAUTHORIZED {
            return Err(hinted(
                format!("the platform does not accept the password kept for {}", admin.email),
                "it was changed, or the database is another start's; `freehold dev --reset` starts over",
            ));
        }
        let token = text(&answer.success()?, "/token")?;
        Ok(Self { api, token })
    }

    pub(crate) async fn sign_out(self) -> Result<()> {
        self.api.delete("/platform/v1/sessions/current", &self.token).await?.success().map(|_| ())
    }

    /// Registers the cluster on which the clients' databases are made.
    pub(crate) async fn cluster(&self, admin_url: &str) -> Result<()> {
        let known = self.api.get("/platform/v1/clusters", &self.token).await?.success()?;
        if mentions(&known, "name", CLUSTER) {
            return Ok(());
        }
        let body = json!({"name": CLUSTER, "admin_url": admin_url});
        self.api.post("/platform/v1/clusters", Some(&self.token), &body).await?.success().map(|_| ())
    }

    /// Makes one demo client ready to chat, saving how far it has come after every step.
    pub(crate) async fn tenant(
        &self,
        project: &Project,
        state: &mut DevState,
        index: usize,
        model: &Model,
    ) -> Result<()> {
        let mut tenant = state.tenants.get(index).context("find the demo client")?.clone();
        let mut save = |tenant: &DemoTenant| {
            if let Some(place) = state.tenants.get_mut(index) {
                *place = tenant.clone();
            }
            state.save(project)
        };

        let mut invite = None;
        if !tenant.ready {
            if tenant.operation.is_none() {
                invite = self.create(&mut tenant).await?;
                save(&tenant)?;
            }
            self.wait_until_provisioned(&tenant).await?;
        }
        let token = self.admin_token(&tenant, invite).await?;
        if tenant.model_url.as_deref() != Some(&model.url) {
            let body = json!({
                "provider": "openai_compatible",
                "base_url": model.url,
                "api_key": model.api_key,
                "models": [model.name],
                "default_model": model.name,
            });
            self.api.put(&format!("/api/v1/ai-keys/{KEY_NAME}"), &token, &body).await?.success()?;
            tenant.model_url = Some(model.url.clone());
            save(&tenant)?;
        }
        if !tenant.ready {
            self.end_user(&tenant, &token).await?;
            if tenant.welcomes_visitors() {
                let body = json!({"visitors": {"enabled": true}});
                self.api.patch("/api/v1/config", &token, &body).await?.success()?;
            }
            tenant.ready = true;
            save(&tenant)?;
        }
        Ok(())
    }

    /// Asks for the client and returns the invite of its admin, if the answer has one. The key makes a second
    /// request after a cut-off answer the same one.
    async fn create(&self, tenant: &mut DemoTenant) -> Result<Option<String>> {
        let body = json!({
            "slug": tenant.slug,
            "name": tenant.name,
            "plan": "premium",
            "template": tenant.template,
            "admin_email": tenant.admin.email,
            "database": {"mode": "managed", "cluster": CLUSTER},
        });
        let answer = self.api.post_once("/platform/v1/tenants", &self.token, &tenant.idempotency_key, &body).await?;
        if answer.status == reqwest::StatusCode::CONFLICT {
            let path = format!("/platform/v1/tenants/{}", tenant.slug);
            if self.api.get(&path, &self.token).await?.is_success() {
                // Made by an earlier start; whether it is finished is seen by waiting.
                return Ok(None);
            }
        }
        let created = answer.success()?;
        tenant.operation = Some(text(&created, "/operation/id")?);
        Ok(text(&created, "/admin_invite/token").ok())
    }

    async fn wait_until_provisioned(&self, tenant: &DemoTenant) -> Result<()> {
        let path = match &tenant.operation {
            Some(id) => format!("/platform/v1/operations/{id}"),
            None => format!("/platform/v1/tenants/{}", tenant.slug),
        };
        let started = Instant::now();
        loop {
            let now = self.api.get(&path, &self.token).await?.success()?;
            let state = text(&now, "/state")?;
            match state.as_str() {
                // An operation that is done, or the states of a client that has its database.
                "succeeded" | "active" | "waiting_for_client" => return Ok(()),
                "failed" | "needs_operator" | "suspended" | "deleting" | "deleted" => {
                    let why = text(&now, "/error/message").unwrap_or_else(|_| format!("it is {state}"));
                    return Err(hinted(
                        format!("{} could not be provisioned: {why}", tenant.slug),
                        "`freehold operation list` shows more, `freehold operation retry ID` tries again",
                    ));
                }
                _ if started.elapsed() > PATIENCE => {
                    bail!("{} is still {state} after {} seconds", tenant.slug, PATIENCE.as_secs());
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// Signs the client's admin in, first making the account with an invite where there is none yet.
    async fn admin_token(&self, tenant: &DemoTenant, invite: Option<String>) -> Result<String> {
        if let Some(token) = self.login(tenant, &tenant.admin).await? {
            return Ok(token);
        }
        let mut accepted = false;
        if let Some(invite) = invite {
            accepted = self.accept(tenant, &invite).await.is_ok();
        }
        if !accepted {
            let path = format!("/platform/v1/tenants/{}/invites", tenant.slug);
            let body = json!({"email": tenant.admin.email});
            let fresh = self.api.post(&path, Some(&self.token), &body).await?.success()?;
            self.accept(tenant, &text(&fresh, "/token")?).await?;
        }
        self.login(tenant, &tenant.admin)
            .await?
            .with_context(|| format!("{} cannot sign in right after joining", tenant.admin.email))
    }

    async fn accept(&self, tenant: &DemoTenant, invite: &str) -> Result<Value> {
        let body = json!({"tenant": tenant.slug, "token": invite, "password": tenant.admin.password});
        self.api.post("/api/v1/auth/accept-invite", None, &body).await?.success()
    }

    /// An access token, or `None` when the server knows no such account and password.
    async fn login(&self, tenant: &DemoTenant, account: &Account) -> Result<Option<String>> {
        let body = json!({"tenant": tenant.slug, "email": account.email, "password": account.password});
        let answer = self.api.post("/api/v1/auth/login", None, &body).await?;
        if answer.status.is_client_error() {
            return Ok(None);
        }
        text(&answer.success()?, "/access_token").map(Some)
    }

    async fn end_user(&self, tenant: &DemoTenant, token: &str) -> Result<()> {
        if self.login(tenant, &tenant.user).await?.is_some() {
            return Ok(());
        }
        let body = json!({
            "email": tenant.user.email,
            "name": "Demo User",
            "role": "user",
            "password": tenant.user.password,
        });
        self.api.post("/api/v1/users", Some(token), &body).await?.success().map(|_| ())
    }
}

/// Whether some object in a document has this field with this value, however the list is wrapped.
fn mentions(document: &Value, field: &str, value: &str) -> bool {
    match document {
        Value::Object(fields) => {
            fields.get(field).and_then(Value::as_str) == Some(value)
                || fields.values().any(|inner| mentions(inner, field, value))
        }
        Value::Array(items) => items.iter().any(|inner| mentions(inner, field, value)),
        _ => false,
    }
}
