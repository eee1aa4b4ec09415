//! The sessions this user has with platforms: one file in the configuration directory.
//!
//! The file is readable by its owner alone and replaced atomically, under a lock, so that two commands at once
//! lose no session and no reader meets half a file. Tokens leave it only as [`SecretString`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use directories::ProjectDirs;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

use crate::failure::Failure;
use crate::server::Server;

const FILE: &str = "credentials.json";
const LOCK: &str = "credentials.lock";

/// A session with one platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    /// The bearer token.
    #[serde(serialize_with = "expose")]
    pub token: SecretString,
    /// The session's id, by which the platform lists it.
    pub session_id: Uuid,
    /// Who signed in.
    pub email: String,
    /// When the token stops working.
    pub expires_at: DateTime<Utc>,
}

/// The file is the one place where a token is written out.
fn expose<S: Serializer>(token: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(token.expose_secret())
}

/// All sessions, and which platform commands speak to when none is named.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Credentials {
    /// The platform of the last login.
    #[serde(default)]
    pub current: Option<Server>,
    /// A session for each platform.
    #[serde(default)]
    pub servers: BTreeMap<Server, Session>,
}

impl Credentials {
    /// Keeps a session and makes its platform the current one. Returns the session it replaces.
    pub fn sign_in(&mut self, server: &Server, session: Session) -> Option<Session> {
        self.current = Some(server.clone());
        self.servers.insert(server.clone(), session)
    }

    /// Forgets a session. No other platform becomes current by this: a command meant for one must not reach another.
    pub fn sign_out(&mut self, server: &Server) -> Option<Session> {
        if self.current.as_ref() == Some(server) {
            self.current = None;
        }
        self.servers.remove(server)
    }
}

/// Where the sessions are kept.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store in a directory, or in the user's configuration directory.
    pub fn open(directory: Option<PathBuf>) -> Result<Self, Failure> {
        let directory = match directory {
            Some(directory) => directory,
            None => ProjectDirs::from("", "", "freehold").map(|project| project.config_dir().to_owned()).ok_or_else(
                || {
                    Failure::usage("no_config_dir", "this user has no home directory to keep a session in")
                        .hint("name a directory with --config-dir")
                },
            )?,
        };
        Ok(Self { directory })
    }

    /// The file, for messages.
    pub fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Reads all sessions; there are none if there is no file.
    pub fn load(&self) -> Result<Credentials, Failure> {
        let path = self.path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Credentials::default());
            }
            Err(error) => return Err(unusable("read", &path, &error)),
        };
        // The parser's message could quote a token, so it is left out.
        serde_json::from_slice(&text).map_err(|_| {
            Failure::failed("credentials_unreadable", format!("{} is damaged", path.display()))
                .hint(format!("remove it, then sign in again: rm '{}'", path.display()))
        })
    }

    /// Changes the sessions.
    pub fn update<T>(&self, change: impl FnOnce(&mut Credentials) -> T) -> Result<T, Failure> {
        let path = self.path();
        let failed = |error: io::Error| unusable("write", &path, &error);
        create_private_directory(&self.directory).map_err(failed)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(self.directory.join(LOCK)).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let mut credentials = self.load()?;
        let result = change(&mut credentials);
        self.replace(&credentials).map_err(failed)?;
        Ok(result)
    }

    fn replace(&self, credentials: &Credentials) -> io::Result<()> {
        // Temporary files are made with mode 0600, and a rename keeps it.
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        serde_json::to_writer_pretty(&mut file, credentials)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(self.path())?;
        Ok(())
    }
}

fn unusable(verb: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::failed("credentials_unusable", format!("cannot {verb} {}: {error}", path.display()))
}

/// Makes a directory that nobody else may look into. One that exists is narrowed: it is this program's own.
fn create_private_directory(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(token: &str) -> Session {
        Session {
            token: SecretString::from(token),
            session_id: Uuid::from_u128(1),
            email: "owner@example.com".into(),
            expires_at: DateTime::UNIX_EPOCH,
        }
    }

    fn server(text: &str) -> Server {
        text.parse().unwrap()
    }

    #[cfg(unix)]
    #[test]
    fn file_and_directory_are_the_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("deep/freehold");
        let store = Store::open(Some(directory.clone())).unwrap();
        let one = server("https://one.example");
        store.update(|all| all.sign_in(&one, session("t-1"))).unwrap();
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o644)).unwrap();
        store.update(|all| all.sign_in(&one, session("t-2"))).unwrap();

        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.path()), 0o600);
        assert_eq!(mode(&directory), 0o700);
    }

    #[test]
    fn platforms_stand_side_by_side_and_the_last_login_is_current() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(Some(home.path().to_owned())).unwrap();
        let (one, two) = (server("https://one.example"), server("https://two.example"));
        store.update(|all| all.sign_in(&one, session("t-1"))).unwrap();
        store.update(|all| all.sign_in(&two, session("t-2"))).unwrap();

        let all = store.load().unwrap();
        assert_eq!(all.current, Some(two.clone()));
        assert_eq!(all.servers.get(&one).unwrap().token.expose_secret(), "t-1");

        store.update(|all| all.sign_out(&two)).unwrap();
        let all = store.load().unwrap();
        assert_eq!(all.current, None);
        assert_eq!(all.servers.len(), 1);
    }

    #[test]
    fn tokens_are_not_in_debug_output_nor_in_errors() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(Some(home.path().to_owned())).unwrap();
        assert!(!format!("{:?}", session("canary")).contains("canary"));
        fs::write(store.path(), r#"{"servers": "canary"}"#).unwrap();
        let failure = store.load().unwrap_err();
        assert!(!failure.document().to_string().contains("canary"));
    }
}
