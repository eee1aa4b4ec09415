//! What libpq, and so `pg_dump` and `pg_restore`, must be told to connect as this address says.

use secrecy::ExposeSecret as _;
use tokio_postgres::config::ChannelBinding;
use zeroize::Zeroizing;

use super::{DEFAULT_APPLICATION_NAME, DatabaseUrl, Host, SslMode};

impl DatabaseUrl {
    /// The variables of the environment that say all of the address but its password.
    ///
    /// libpq trusts the public authorities only when told so, and those or the file's, never both: with `sslrootcert`
    /// it is stricter here than the two drivers are.
    #[must_use]
    pub fn libpq_environment(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("PGPORT", self.port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.database.clone()),
            ("PGAPPNAME", self.application_name.as_deref().unwrap_or(DEFAULT_APPLICATION_NAME).to_owned()),
            (
                "PGHOST",
                match &self.host {
                    Host::Tcp(name) => name.clone(),
                    Host::Socket(directory) => directory.display().to_string(),
                },
            ),
            (
                "PGSSLMODE",
                match self.ssl_mode {
                    SslMode::Disable => "disable",
                    SslMode::Prefer => "prefer",
                    SslMode::Require | SslMode::VerifyFull => "verify-full",
                }
                .to_owned(),
            ),
        ];
        match (&self.ssl_root_cert, self.ssl_mode) {
            (Some(file), _) => variables.push(("PGSSLROOTCERT", file.display().to_string())),
            (None, SslMode::Require | SslMode::VerifyFull) => variables.push(("PGSSLROOTCERT", "system".to_owned())),
            (None, _) => {}
        }
        if let Some(binding) = self.channel_binding {
            let name = match binding {
                ChannelBinding::Disable => "disable",
                ChannelBinding::Require => "require",
                _ => "prefer",
            };
            variables.push(("PGCHANNELBINDING", name.to_owned()));
        }
        variables
    }

    /// The line of a password file that gives the password for whatever is asked, and nothing else does.
    #[must_use]
    pub fn libpq_password_line(&self) -> Zeroizing<String> {
        let password = self.password.as_ref().map_or("", |password| password.expose_secret());
        let mut line = Zeroizing::new(String::with_capacity(16 + 2 * password.len()));
        line.push_str("*:*:*:*:");
        for character in password.chars() {
            if matches!(character, ':' | '\\') {
                line.push('\\');
            }
            line.push(character);
        }
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> DatabaseUrl {
        text.parse().unwrap()
    }

    #[test]
    fn certificates_are_checked_as_the_address_says_and_the_password_is_not_among_the_variables() {
        let value = |text: &str, name: &str| {
            url(text).libpq_environment().into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let remote = "postgres://a:canary@db.example/c";
        assert_eq!(value(remote, "PGSSLMODE").as_deref(), Some("verify-full"));
        assert_eq!(value(remote, "PGSSLROOTCERT").as_deref(), Some("system"));
        let private = "postgres://a:canary@db.example/c?sslrootcert=/ca.pem&sslmode=require";
        assert_eq!(value(private, "PGSSLMODE").as_deref(), Some("verify-full"));
        assert_eq!(value(private, "PGSSLROOTCERT").as_deref(), Some("/ca.pem"));
        assert_eq!(value("postgres://a:canary@127.0.0.1/c", "PGSSLMODE").as_deref(), Some("disable"));
        assert!(!format!("{:?}", url(remote).libpq_environment()).contains("canary"));
    }

    #[test]
    fn a_password_is_written_as_password_files_want_it() {
        let line = url(r"postgres://a:b%3Ac%5Cd@127.0.0.1/c").libpq_password_line();
        assert_eq!(line.as_str(), "*:*:*:*:b\\:c\\\\d\n");
    }
}
