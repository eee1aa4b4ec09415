//! `freehold login`, `logout` and `session`.

use freehold::api::platform::{CreateSessionResponse, SessionList};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use uuid::Uuid;

use super::Context;
use crate::args::{LoginArgs, SessionCommand};
use crate::client::Client;
use crate::credentials::Session;
use crate::failure::{Exit, Failure};
use crate::input;
use crate::output::{fields, instant, optional, table};

const SESSIONS: [&str; 3] = ["platform", "v1", "sessions"];
const CURRENT: [&str; 4] = ["platform", "v1", "sessions", "current"];

/// Signs in, and makes the platform the current one.
pub async fn login(context: &Context<'_>, args: LoginArgs) -> Result<(), Failure> {
    let store = context.store()?;
    let server = match args.url.or_else(|| context.global.server.clone()) {
        Some(server) => server,
        None => store
            .load()?
            .current
            .ok_or_else(|| Failure::usage("server_missing", "no platform is named").hint("freehold login URL"))?,
    };
    // Made before anything is asked for: nobody should type a password that will not be sent.
    let client = Client::new(server.clone(), None, context.global.insecure_http)?;
    let email = match args.email {
        Some(email) => email,
        None => input::ask_email(context.output)?,
    };
    let password = match args.password_file {
        Some(file) => input::secret_from_file(&file, "password")?,
        None => input::ask_password(context.output)?,
    };
    let body = json!({ "email": email, "password": password.expose_secret() });
    let answer: CreateSessionResponse = client.post(&SESSIONS, &body).await.map_err(|failure| {
        // Here it means a wrong password, and the usual hint would be the very command that was run.
        match failure.status() {
            Some(401) => failure.exiting(Exit::Failed).without_hint(),
            _ => failure,
        }
    })?;
    let session = Session {
        token: SecretString::from(answer.token),
        session_id: answer.session_id,
        email,
        expires_at: answer.expires_at,
    };
    let replaced = store.update(|all| all.sign_in(&server, session.clone()))?;
    if let Some(replaced) = replaced {
        revoke_replaced(context, &client, &replaced).await;
    }
    let document = json!({
        "server": server,
        "email": session.email,
        "session_id": session.session_id,
        "expires_at": session.expires_at,
    });
    context.output.data(&document, || {
        format!("Signed in to {server} as {} until {}.", session.email, instant(session.expires_at))
    })
}

/// Ends the session that a new one replaces: nobody holds its token any more. It matters little if that fails,
/// because it ends by itself.
async fn revoke_replaced(context: &Context<'_>, client: &Client, replaced: &Session) {
    if let Ok(client) = Client::new(client.server().clone(), Some(&replaced.token), context.global.insecure_http) {
        let _ = client.delete(&CURRENT).await;
    }
}

/// Revokes the session and forgets it. Forgetting never waits for the platform.
pub async fn logout(context: &Context<'_>) -> Result<(), Failure> {
    let (server, session) = context.session()?;
    context.store()?.update(|all| all.sign_out(&server))?;
    let revoked = match Client::new(server.clone(), Some(&session.token), context.global.insecure_http) {
        Ok(client) => client.delete(&CURRENT).await,
        Err(failure) => Err(failure),
    };
    let reason = match revoked {
        Ok(()) => None,
        // The platform does not know the session any more, which is what was wanted.
        Err(failure) if failure.status() == Some(401) => None,
        Err(failure) => Some(failure),
    };
    if let Some(failure) = &reason {
        context.output.warn(format!(
            "warning: the session could not be revoked: it is forgotten here, but stays in force until {}",
            instant(session.expires_at)
        ));
        for line in failure.lines() {
            context.output.warn(format!("  {}", line.trim_start_matches("error: ")));
        }
    }
    let document = json!({ "server": server, "revoked": reason.is_none() });
    context.output.data(&document, || match reason {
        None => format!("Signed out of {server}."),
        Some(_) => format!("Forgot the session with {server}."),
    })
}

/// Carries out a command.
pub async fn run(context: &Context<'_>, command: SessionCommand) -> Result<(), Failure> {
    match command {
        SessionCommand::List => list(context).await,
        SessionCommand::Revoke { id } => revoke(context, id).await,
    }
}

async fn list(context: &Context<'_>) -> Result<(), Failure> {
    let list: SessionList = context.client()?.get(&SESSIONS, &[]).await?;
    let rows: Vec<Vec<String>> = list
        .items
        .iter()
        .map(|session| {
            vec![
                session.id.to_string(),
                session.email.clone(),
                optional(session.user_agent.as_ref()),
                instant(session.created_at),
                instant(session.expires_at),
                if session.current { "this one" } else { "" }.to_owned(),
            ]
        })
        .collect();
    let header = ["id", "email", "program", "created", "expires", "current"];
    context.output.data(&list, || table(&header, &rows, "No sessions."))
}

async fn revoke(context: &Context<'_>, id: Uuid) -> Result<(), Failure> {
    let (server, session) = context.session()?;
    let client = Client::new(server.clone(), Some(&session.token), context.global.insecure_http)?;
    client.delete(&["platform", "v1", "sessions", &id.to_string()]).await?;
    let was_own = session.session_id == id;
    if was_own {
        context.store()?.update(|all| all.sign_out(&server))?;
    }
    let document = json!({ "server": server, "session_id": id, "revoked": true });
    context.output.data(&document, || {
        let mut pairs = vec![("revoked", id.to_string())];
        if was_own {
            pairs.push(("signed out of", server.to_string()));
        }
        fields(&pairs)
    })
}
