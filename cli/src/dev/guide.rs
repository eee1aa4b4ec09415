//! What to open and type next, once the stack is up.

use super::project::Project;
use super::state::{DemoTenant, DevState};

/// The closing text. The passwords in it are of local demo accounts, generated on this machine.
pub(crate) fn guide(project: &Project, state: &DevState) -> String {
    let url = &state.server_url;
    let admin = &state.super_admin;
    let mut text = format!(
        "\nFreehold is up at {url}\n\n\
         Read the API          {url}/docs\n\
         Sign in as the owner  freehold login {url}\n\
         \x20                     {} / {}\n\
         Everything above, for scripts: {}\n",
        admin.email,
        admin.password,
        project.own("dev.json").display(),
    );
    for tenant in &state.tenants {
        text.push_str(&format!(
            "\n{} (client `{}`, template `{}`)\n\
             Chat in the browser   {}{}\n\
             \x20                     {} / {}\n\
             Its admin             {} / {}\n\
             Chat in the terminal; paste this line:\n{}\n",
            tenant.name,
            tenant.slug,
            tenant.template,
            tenant.page(url),
            if tenant.welcomes_visitors() { "  (no account needed)" } else { "" },
            tenant.user.email,
            tenant.user.password,
            tenant.admin.email,
            tenant.admin.password,
            chat_line(url, tenant),
        ));
    }
    text
}

/// One line which signs in as the client's user and streams an answer.
fn chat_line(url: &str, tenant: &DemoTenant) -> String {
    let login = serde_json::json!({
        "tenant": tenant.slug,
        "email": tenant.user.email,
        "password": tenant.user.password,
    });
    let chat = serde_json::json!({"message": tenant.question, "stream": true});
    format!(
        "TOKEN=$(curl -sS {url}/api/v1/auth/login -H 'Content-Type: application/json' -d '{login}' \
         | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"access_token\"])') \
         && curl -N {url}/api/v1/chat -H \"Authorization: Bearer $TOKEN\" \
         -H 'Content-Type: application/json' -d '{chat}'"
    )
}
