//! The client's configuration file: what the owner hands over to a client, with its one-time invite.
//!
//! The file's place is taken before anything is created, because the invite is shown once: it would be bad to learn
//! afterwards that it cannot be written down.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use freehold::api::platform::{AdminInvite, DatabaseMode, DatabaseToken, Tenant};
use serde_json::json;
use tempfile::NamedTempFile;

use crate::failure::Failure;
use crate::server::Server;

const TEMPLATE: &str = include_str!("../../templates/client.env");

/// The text of a client's configuration. Its addresses are the platform's public ones: the owner may have signed in at
/// one that nobody else reaches, such as `localhost`.
pub fn render(tenant: &Tenant, invite: &AdminInvite, token: Option<&DatabaseToken>) -> Result<String, Failure> {
    let server: Server = invite.server_url.parse().map_err(|error| {
        Failure::failed("invalid_answer", format!("the platform's public address cannot be used: {error}"))
            .hint("set FREEHOLD_PUBLIC_URL on the server")
    })?;
    // A mode in which the client owns the database gives its URL here.
    let database = match (tenant.database.mode, token) {
        (DatabaseMode::Managed, _) => {
            "# CLIENT_DATABASE_URL is not set: the platform keeps this client's database, and connects to it."
                .to_owned()
        }
        (DatabaseMode::Own, None) => {
            "# CLIENT_DATABASE_URL is not written here: the platform holds it sealed, and shows it to nobody."
                .to_owned()
        }
        (DatabaseMode::Own, Some(token)) => database_lines(&server, token),
    };
    let admin_api = server.endpoint(&["api", "v1"], &[]);
    let accept = server.endpoint(&["api", "v1", "auth", "accept-invite"], &[]);
    // The stand-in is too short to be accepted, so that nobody ends up with it for a password.
    let body = json!({ "tenant": tenant.slug, "token": invite.token, "password": "CHANGE-ME" });
    let command = format!(
        "curl -sS {} -H 'content-type: application/json' -d {}",
        quote(accept.as_str()),
        quote(&body.to_string())
    );
    fill(
        TEMPLATE,
        &[
            ("client_name", one_line(&tenant.name)),
            ("client_id", quote(&tenant.id.to_string())),
            ("client_slug", quote(&tenant.slug)),
            ("client_database", database),
            ("client_chat_url", quote(server.endpoint(&["api", "v1", "chat"], &[]).as_str())),
            ("client_admin_api_url", quote(admin_api.as_str())),
            ("admin_email", quote(&invite.email)),
            ("admin_invite_token", quote(&invite.token)),
            ("admin_invite_expires_at", quote(&invite.expires_at.to_rfc3339())),
            ("accept_invite_command", one_line(&command)),
        ],
    )
}

/// The lines by which a client gives its own database.
fn database_lines(server: &Server, token: &DatabaseToken) -> String {
    let endpoint = |path: &[&str]| quote(server.endpoint(path, &[]).as_str());
    // From a file: what stands on a command line can be read by every program of the machine.
    let send =
        "-H \"authorization: Bearer $CLIENT_DATABASE_TOKEN\" -H 'content-type: application/json' -d @database.json";
    format!(
        "# The client's own database: write {{\"url\": \"postgres://USER:PASSWORD@HOST:5432/DATABASE\"}} into database.json
# (and \"ca\" with the authority's certificate, if it is not a public one), check it, and give it. The token is for
# this alone, and works until the database is in service.
CLIENT_DATABASE_TOKEN={}
CLIENT_DATABASE_TOKEN_EXPIRES_AT={}
# curl -sS {} {send}
# curl -sS -X PUT {} {send}",
        quote(&token.token),
        quote(&token.expires_at.to_rfc3339()),
        endpoint(&["api", "v1", "database", "check"]),
        endpoint(&["api", "v1", "database"]),
    )
}

/// A file that holds nothing but a new database token.
pub fn render_token(tenant: &str, token: &DatabaseToken) -> Result<String, Failure> {
    let server: Server = token.server_url.parse().map_err(|error| {
        Failure::failed("invalid_answer", format!("the platform's public address cannot be used: {error}"))
            .hint("set FREEHOLD_PUBLIC_URL on the server")
    })?;
    Ok(format!("CLIENT_SLUG={}\n\n{}\n", quote(tenant), database_lines(&server, token)))
}

/// Puts values in the place of `{{name}}`, in one pass: a value that looks like a placeholder stays what it is.
fn fill(template: &str, values: &[(&str, String)]) -> Result<String, Failure> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let filled = after.split_once("}}").and_then(|(name, after)| {
            let (_, value) = values.iter().find(|(known, _)| *known == name)?;
            Some((value, after))
        });
        let Some((value, after)) = filled else {
            return Err(Failure::failed(
                "template_damaged",
                "templates/client.env has a placeholder that nothing fills",
            ));
        };
        text.push_str(before);
        text.push_str(value);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

/// A value as a shell, Compose and the dotenv libraries all read it.
fn quote(value: &str) -> String {
    let value = one_line(value);
    let is_bare = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/@%+,=".contains(c));
    if is_bare {
        value
    } else if !value.contains('\'') {
        format!("'{value}'")
    } else if !value.contains(['"', '$', '`', '\\']) {
        format!("\"{value}\"")
    } else {
        // Only a shell reads this one, but nothing better is left.
        format!("'{}'", value.replace('\'', r"'\''"))
    }
}

/// A line break in a value would begin a line of its own, with whatever it says.
fn one_line(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).collect()
}

/// A file whose place is taken, but that is not there yet.
#[derive(Debug)]
pub struct Reserved {
    file: NamedTempFile,
    target: PathBuf,
    force: bool,
}

impl Reserved {
    /// Makes sure that the file can be written and replaces nothing unasked. Nothing is left if it is dropped.
    pub fn new(target: PathBuf, force: bool) -> Result<Self, Failure> {
        let existing = fs::symlink_metadata(&target);
        if existing.as_ref().is_ok_and(fs::Metadata::is_dir) {
            return Err(Failure::usage("file_unusable", format!("{} is a directory", target.display())));
        }
        if existing.is_ok() && !force {
            return Err(exists(&target));
        }
        let directory = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Temporary files are made with mode 0600, and a rename keeps it.
        let file = NamedTempFile::new_in(directory).map_err(|error| {
            Failure::usage("file_unusable", format!("cannot write into {}: {error}", directory.display()))
                .hint("name another file with --config-file, or use --print-config")
        })?;
        Ok(Self { file, target, force })
    }

    /// Where the file will be.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Writes the file and puts it in its place.
    pub fn write(mut self, text: &str) -> Result<PathBuf, Failure> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.as_file().sync_all());
        written.map_err(|error| unwritten(&self.target, &error))?;
        let placed =
            if self.force { self.file.persist(&self.target) } else { self.file.persist_noclobber(&self.target) };
        match placed {
            Ok(_) => Ok(self.target),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Err(exists(&self.target)),
            Err(error) => Err(unwritten(&self.target, &error.error)),
        }
    }
}

fn exists(target: &Path) -> Failure {
    Failure::usage("file_exists", format!("{} exists already", target.display()))
        .hint("--force replaces it, --config-file names another")
}

fn unwritten(target: &Path, error: &io::Error) -> Failure {
    Failure::failed("file_unusable", format!("cannot write {}: {error}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use freehold::api::platform::{AiMode, TenantDatabase, TenantLimits, TenantState};
    use uuid::Uuid;

    fn tenant(name: &str) -> Tenant {
        Tenant {
            id: Uuid::from_u128(5),
            slug: "acme".into(),
            name: name.into(),
            plan: "free".into(),
            template: "general".into(),
            admin_email: "a@acme.example".into(),
            state: TenantState::Requested,
            database: TenantDatabase { mode: DatabaseMode::Managed, cluster: Some("local".into()), name: None },
            schema_version: None,
            limits: TenantLimits::default(),
            ai_mode: AiMode::Own,
            rotations: vec![],
            requests_this_month: None,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
            activated_at: None,
            suspended_at: None,
            suspend_reason: None,
            delete_after: None,
            deleted_at: None,
        }
    }

    fn invite(email: &str) -> AdminInvite {
        AdminInvite {
            email: email.into(),
            token: "inv_abc".into(),
            expires_at: DateTime::UNIX_EPOCH,
            server_url: "https://freehold.example".into(),
        }
    }

    fn rendered(name: &str, email: &str) -> String {
        render(&tenant(name), &invite(email), None).unwrap()
    }

    /// The variables a file sets: all lines that are neither empty nor comments.
    fn settings(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
    }

    #[test]
    fn all_that_a_client_needs_is_in_it() {
        let text = rendered("Acme", "a@acme.example");
        assert_eq!(
            settings(&text),
            [
                "CLIENT_ID=00000000-0000-0000-0000-000000000005",
                "CLIENT_SLUG=acme",
                "CLIENT_CHAT_URL=https://freehold.example/api/v1/chat",
                "CLIENT_ADMIN_API_URL=https://freehold.example/api/v1",
                "ADMIN_EMAIL=a@acme.example",
                "ADMIN_INVITE_TOKEN=inv_abc",
                "ADMIN_INVITE_EXPIRES_AT=1970-01-01T00:00:00+00:00",
            ]
        );
        assert!(text.contains("# CLIENT_DATABASE_URL is not set"));
        assert!(text.contains(r#"-d '{"password":"CHANGE-ME","tenant":"acme","token":"inv_abc"}'"#));
    }

    #[test]
    fn a_client_that_brings_its_database_is_told_how() {
        let mut own = tenant("Acme");
        own.database.mode = DatabaseMode::Own;
        let token = DatabaseToken {
            token: "fhd_abc".into(),
            expires_at: chrono::DateTime::UNIX_EPOCH,
            server_url: "https://freehold.example".into(),
        };
        let text = render(&own, &invite("a@acme.example"), Some(&token)).unwrap();
        assert!(settings(&text).contains(&"CLIENT_DATABASE_TOKEN=fhd_abc"), "{text}");
        assert!(text.contains("-X PUT https://freehold.example/api/v1/database "), "{text}");
        // The token is written once, as a setting, and never on a command line.
        assert_eq!(text.matches("fhd_abc").count(), 1);
        assert!(render_token("acme", &token).unwrap().contains("CLIENT_DATABASE_TOKEN=fhd_abc"));
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        for address in ["", "ftp://freehold.example", "https://user:secret@freehold.example"] {
            let invite = AdminInvite { server_url: address.into(), ..invite("a@acme.example") };
            assert_eq!(render(&tenant("Acme"), &invite, None).unwrap_err().code(), "invalid_answer", "{address}");
        }
    }

    #[test]
    fn a_name_adds_no_line_and_fills_no_placeholder() {
        let text = rendered("Acme\nCLIENT_ID=evil {{admin_invite_token}}", "o'brien@acme.example");
        assert_eq!(settings(&text).len(), 7);
        assert!(text.contains("{{admin_invite_token}}"));
        assert!(settings(&text).contains(&"ADMIN_EMAIL=\"o'brien@acme.example\""));
    }

    #[test]
    fn a_file_is_replaced_only_by_force_and_is_private() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("acme.env");
        Reserved::new(target.clone(), false).unwrap().write("one\n").unwrap();
        assert_eq!(Reserved::new(target.clone(), false).unwrap_err().code(), "file_exists");
        Reserved::new(target.clone(), true).unwrap().write("two\n").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "two\n");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn a_reservation_leaves_nothing_and_does_not_overwrite_a_latecomer() {
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("acme.env");
        drop(Reserved::new(target.clone(), false).unwrap());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);

        let reserved = Reserved::new(target.clone(), false).unwrap();
        fs::write(&target, "theirs").unwrap();
        assert!(reserved.write("mine").is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
        assert!(Reserved::new(home.path().join("no/such/acme.env"), false).is_err());
    }
}
