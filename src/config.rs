//! Configuration: every setting the server knows, in one documented table.
//!
//! A setting comes from its environment variable, else from the file that the variable with `_FILE` behind its name
//! points at, else from `freehold.toml`, else from its default. All are checked at start, and what is wrong refuses
//! to start and says how to put it right. Nothing else in the server reads the environment.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use thiserror::Error;
use url::Url;

use crate::redis_client;
use crate::secrets::{DatabaseUrl, MasterKeyring};

mod spelling;

pub use spelling::misspelt;

/// One setting: where it is read from and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its key in `freehold.toml`.
    pub key: &'static str,
    /// Its environment variable; with `_FILE` behind it, a file that holds the value.
    pub env: &'static str,
    /// The value when nobody gives one; without a default it must be given.
    pub default: Option<&'static str>,
    /// What it means, with its unit.
    pub meaning: &'static str,
    /// The least and the most it may be, if it is a number.
    pub range: Option<(u64, u64)>,
}

impl Setting {
    const fn between(self, least: u64, most: u64) -> Self {
        Self { range: Some((least, most)), ..self }
    }
}

const fn setting(
    key: &'static str,
    env: &'static str,
    default: Option<&'static str>,
    meaning: &'static str,
) -> Setting {
    Setting { key, env, default, meaning, range: None }
}

/// Every setting. `freehold-server help-config` prints this table.
pub const SETTINGS: &[Setting] = &[
    setting("platform_database_url", "PLATFORM_DATABASE_URL", None, "Postgres URL of the platform's own database"),
    setting(
        "redis_url",
        "REDIS_URL",
        Some(""),
        "URL of a Redis or Valkey that keeps rate limits for all servers, and answers unless those have one of their own, `rediss://…` with TLS; without it the platform's database keeps limits, and each server its answers",
    ),
    setting(
        "master_keys",
        "FREEHOLD_MASTER_KEYS",
        None,
        "master keys, `version:base64` of 32 bytes each, comma or line separated; the highest version seals",
    ),
    setting("listen", "FREEHOLD_LISTEN", Some("127.0.0.1:8080"), "address and port to serve on"),
    setting(
        "public_url",
        "FREEHOLD_PUBLIC_URL",
        Some(""),
        "the address clients reach the server by; `http://<listen>` when empty, so needed where that is all interfaces",
    ),
    setting("log_format", "FREEHOLD_LOG_FORMAT", Some("text"), "`text` or `json`"),
    setting(
        "templates_dir",
        "FREEHOLD_TEMPLATES_DIR",
        Some(""),
        "a directory laid out as `templates/`, whose files replace or add to the built-in ones",
    ),
    setting(
        "allow_private_model_hosts",
        "FREEHOLD_ALLOW_PRIVATE_MODEL_HOSTS",
        Some("false"),
        "`true` lets AI keys point at loopback and private addresses",
    ),
    setting(
        "allow_private_database_hosts",
        "FREEHOLD_ALLOW_PRIVATE_DATABASE_HOSTS",
        Some("false"),
        "`true` lets clients give databases of their own at loopback and private addresses; the owner always may",
    ),
    setting(
        "platform_pool_size",
        "FREEHOLD_PLATFORM_POOL_SIZE",
        Some("16"),
        "connections of one server to the platform's database for requests, at most; a server that carries operations out has \
         a second pool of twice FREEHOLD_WORKER_CONCURRENCY and 4, so 16 + 2 × 4 + 4 = 28 with the defaults",
    ).between(2, 1000),
    setting(
        "tenant_pool_size",
        "FREEHOLD_TENANT_POOL_SIZE",
        Some("8"),
        "connections to one tenant's database from one server, at most; a tenant's limits may say otherwise",
    ).between(1, 1000),
    setting(
        "tenant_connections",
        "FREEHOLD_TENANT_CONNECTIONS",
        Some("80"),
        "connections to one cluster for tenants' requests, from all servers together, at most",
    ).between(1, 10_000),
    setting(
        "own_database_connections",
        "FREEHOLD_OWN_DATABASE_CONNECTIONS",
        Some("8"),
        "connections to one database server of a client's own, from all servers together, at most",
    ).between(1, 1000),
    setting(
        "tenant_connection_wait_ms",
        "FREEHOLD_TENANT_CONNECTION_WAIT_MS",
        Some("5000"),
        "milliseconds a request waits for a connection before it is answered 503",
    ).between(10, 60_000),
    setting(
        "worker_concurrency",
        "FREEHOLD_WORKER_CONCURRENCY",
        Some("4"),
        "operations this server carries out at once; 0 for none",
    ).between(0, 100),
    setting("session_hours", "FREEHOLD_SESSION_HOURS", Some("12"), "hours a super-admin session lasts").between(1, 24 * 30),
    setting(
        "access_token_minutes",
        "FREEHOLD_ACCESS_TOKEN_MINUTES",
        Some("15"),
        "minutes a tenant user's access token lasts",
    ).between(1, 24 * 60),
    setting(
        "refresh_token_days",
        "FREEHOLD_REFRESH_TOKEN_DAYS",
        Some("30"),
        "days a tenant user's refresh token lasts",
    ).between(1, 365),
    setting("invite_days", "FREEHOLD_INVITE_DAYS", Some("7"), "days an invite can be accepted").between(1, 90),
    setting(
        "rotation_grace_seconds",
        "FREEHOLD_ROTATION_GRACE_SECONDS",
        Some("30"),
        "seconds that a replaced credential or key stays good, so that every server hears of the new one",
    ).between(0, 86_400),
    setting(
        "shutdown_seconds",
        "FREEHOLD_SHUTDOWN_SECONDS",
        Some("30"),
        "seconds that answers under way have to end when the server stops",
    ).between(0, 3600),
    setting(
        "client_stall_seconds",
        "FREEHOLD_CLIENT_STALL_SECONDS",
        Some("20"),
        "seconds that a client may take nothing of what is there for it, before its connection and what it asked for end",
    ).between(1, 3600),
    setting(
        "answer_cache_bytes",
        "FREEHOLD_ANSWER_CACHE_BYTES",
        Some("33554432"),
        "bytes of this server's memory for answers that are given again to tenants that want that, an eighth of it for one at most; 0 keeps none anywhere",
    ).between(0, 1 << 40),
    setting(
        "answer_cache_redis_url",
        "FREEHOLD_ANSWER_CACHE_REDIS_URL",
        Some(""),
        "URL of a Redis or Valkey for those answers alone, which may be small and lose anything; that of `REDIS_URL` when empty, `off` for none",
    ),
    setting(
        "backup_dir",
        "FREEHOLD_BACKUP_DIR",
        Some(""),
        "the directory for tenants' sealed backups, shared by all servers of the platform; no backups when empty",
    ),
    setting(
        "backup_upload_gib",
        "FREEHOLD_BACKUP_UPLOAD_GIB",
        Some("64"),
        "gibibytes that a backup may have that is uploaded to be restored",
    ).between(1, 16_384),
    setting(
        "postgres_client_dir",
        "FREEHOLD_POSTGRES_CLIENT_DIR",
        Some(""),
        "the directory of `pg_dump` and `pg_restore`, as new as the newest database server; in the PATH when empty",
    ),
];

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("must be `text` or `json`"),
        }
    }
}

/// The checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The platform's own database.
    pub platform_database_url: DatabaseUrl,
    /// Where rate limits are kept, if not in the platform's database.
    pub redis_url: Option<SecretString>,
    /// Keys that wrap the tenants' data keys.
    pub master_keys: Arc<MasterKeyring>,
    /// Where to serve.
    pub listen: SocketAddr,
    /// How clients reach the server.
    pub public_url: Url,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// Templates of the owner's own.
    pub templates_dir: Option<PathBuf>,
    /// Whether AI keys may point at private addresses.
    pub allow_private_model_hosts: bool,
    /// Whether clients may give databases at private addresses.
    pub allow_private_database_hosts: bool,
    /// Connections to the platform's database, at most.
    pub platform_pool_size: u32,
    /// Connections to one tenant's database, at most.
    pub tenant_pool_size: usize,
    /// Connections to one cluster, from all servers together.
    pub tenant_connections: usize,
    /// Connections to one database server of a client's own, from all servers together.
    pub own_database_connections: usize,
    /// How long a request waits for a connection.
    pub tenant_connection_wait: Duration,
    /// Operations carried out at once.
    pub worker_concurrency: usize,
    /// How long a super-admin session lasts.
    pub session_lifetime: Duration,
    /// How long an access token lasts.
    pub access_token_lifetime: Duration,
    /// How long a refresh token lasts.
    pub refresh_token_lifetime: Duration,
    /// How long an invite can be accepted.
    pub invite_lifetime: Duration,
    /// How long a replaced credential or key stays good.
    pub rotation_grace: Duration,
    /// How long answers under way have to end.
    pub shutdown_grace: Duration,
    /// How long a client may take nothing of what is there for it. Long enough for a phone that changes networks, and the
    /// buffers on the way hold what a model says in that time; short enough that nobody keeps a model's call with it.
    pub client_stall: Duration,
    /// How many bytes of memory answers may take that are given again.
    pub answer_cache_bytes: usize,
    /// Where servers share them, if anywhere.
    pub answer_cache_redis_url: Option<SecretString>,
    /// Where tenants' backups lie.
    pub backup_dir: Option<PathBuf>,
    /// How long a backup may be that is uploaded, in gibibytes.
    pub backup_upload_gib: u64,
    /// Where the PostgreSQL client programs are.
    pub postgres_client_dir: Option<PathBuf>,
}

/// Why the configuration was refused. Never holds a value, for it may be a secret.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A setting without a default was not given.
    #[error("{env} is not set: {meaning}\n  hint: set {env}, {env}_FILE, or `{key}` in freehold.toml{}", how_to_make(.key))]
    Missing {
        /// The environment variable.
        env: &'static str,
        /// The key in the file.
        key: &'static str,
        /// What it means.
        meaning: &'static str,
    },
    /// A setting's value cannot be used.
    #[error("{env} cannot be used: {reason}{}", how_to_make(.key))]
    Invalid {
        /// The environment variable.
        env: &'static str,
        /// The key in the file.
        key: &'static str,
        /// Why, without the value.
        reason: String,
    },
    /// The file that a variable names could not be read.
    #[error("{env}_FILE names {path}, which cannot be read: {reason}")]
    SecretFile {
        /// The environment variable, without the ending.
        env: &'static str,
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A file could not be read.
    #[error("{path} cannot be read: {reason}")]
    File {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// `freehold.toml` has a key that is no setting.
    #[error("freehold.toml: `{key}` is not a setting\n  hint: `freehold-server help-config` lists them")]
    Unknown {
        /// The key.
        key: String,
    },
}

fn how_to_make(key: &str) -> &'static str {
    match key {
        "master_keys" => {
            "\n  hint: make one with `echo \"1:$(openssl rand -base64 32)\"`, and keep a copy apart from the databases"
        }
        "public_url" => {
            "\n  hint: set it to the address that clients reach the server by, for example https://chat.example.com"
        }
        _ => "",
    }
}

/// Looks a variable of the environment up. Passed in, so that tests need not change the process.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Config {
    /// Reads and checks every setting. `file` is the `freehold.toml` to use; without one, `./freehold.toml` is used if
    /// there is one.
    pub fn load(file: Option<&Path>, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let source = Source { file: read_file(file)?, environment };
        let listen: SocketAddr = source.parse("listen")?;
        let public_url = match source.text("public_url")? {
            // Links, and whether the page's cookie is for TLS only, follow from it: a guess that leads nobody here is none.
            text if text.is_empty() && listen.ip().is_unspecified() => {
                let reason = format!("it is empty, and http://{listen}, where the server listens, is nobody's address");
                return Err(source.invalid("public_url", reason));
            }
            text if text.is_empty() => format!("http://{listen}"),
            text => text,
        };
        let public_url = Url::parse(&public_url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some())
            .ok_or_else(|| source.invalid("public_url", "must be an http or https address".to_owned()))?;
        let templates_dir = source.directory("templates_dir")?;
        let redis_url = source.redis_url("redis_url")?;
        let answer_cache_redis_url = match source.text("answer_cache_redis_url")?.as_str() {
            "" => redis_url.clone(),
            "off" => None,
            _ => source.redis_url("answer_cache_redis_url")?,
        };
        Ok(Self {
            platform_database_url: source.parse("platform_database_url")?,
            redis_url,
            master_keys: Arc::new(
                MasterKeyring::parse(&SecretString::from(source.text("master_keys")?))
                    .map_err(|error| source.invalid("master_keys", error.to_string()))?,
            ),
            listen,
            public_url,
            log_format: source.parse("log_format")?,
            templates_dir,
            allow_private_model_hosts: source.parse("allow_private_model_hosts")?,
            allow_private_database_hosts: source.parse("allow_private_database_hosts")?,
            platform_pool_size: source.number("platform_pool_size")? as u32,
            tenant_pool_size: source.number("tenant_pool_size")? as usize,
            tenant_connections: source.number("tenant_connections")? as usize,
            own_database_connections: source.number("own_database_connections")? as usize,
            tenant_connection_wait: Duration::from_millis(source.number("tenant_connection_wait_ms")?),
            worker_concurrency: source.number("worker_concurrency")? as usize,
            session_lifetime: Duration::from_secs(3600 * source.number("session_hours")?),
            access_token_lifetime: Duration::from_secs(60 * source.number("access_token_minutes")?),
            refresh_token_lifetime: Duration::from_secs(86_400 * source.number("refresh_token_days")?),
            invite_lifetime: Duration::from_secs(86_400 * source.number("invite_days")?),
            rotation_grace: Duration::from_secs(source.number("rotation_grace_seconds")?),
            shutdown_grace: Duration::from_secs(source.number("shutdown_seconds")?),
            client_stall: Duration::from_secs(source.number("client_stall_seconds")?),
            answer_cache_bytes: source.number("answer_cache_bytes")? as usize,
            answer_cache_redis_url,
            backup_dir: source.directory("backup_dir")?,
            backup_upload_gib: source.number("backup_upload_gib")?,
            postgres_client_dir: source.directory("postgres_client_dir")?,
        })
    }
}

fn read_file(file: Option<&Path>) -> Result<BTreeMap<String, String>, ConfigError> {
    let default = Path::new("freehold.toml");
    let path = match file {
        Some(path) => path,
        None if default.exists() => default,
        None => return Ok(BTreeMap::new()),
    };
    let unreadable = |reason: String| ConfigError::File { path: path.display().to_string(), reason };
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    // The parser's message quotes the line, which may hold a secret: only its place is told.
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(0, |span| text.get(..span.start).unwrap_or("").lines().count());
        unreadable(format!("it is not TOML (line {line})"))
    })?;
    let mut values = BTreeMap::new();
    for (key, value) in table {
        if !SETTINGS.iter().any(|setting| setting.key == key) {
            return Err(ConfigError::Unknown { key });
        }
        values.insert(
            key,
            match value {
                toml::Value::String(text) => text,
                other => other.to_string(),
            },
        );
    }
    Ok(values)
}

struct Source<'a> {
    file: BTreeMap<String, String>,
    environment: Environment<'a>,
}

impl Source<'_> {
    fn setting(&self, key: &'static str) -> Setting {
        match SETTINGS.iter().find(|setting| setting.key == key) {
            Some(setting) => *setting,
            None => setting(key, key, None, ""),
        }
    }

    fn text(&self, key: &'static str) -> Result<String, ConfigError> {
        let Setting { env, default, meaning, .. } = self.setting(key);
        if let Some(value) = (self.environment)(env).filter(|value| !value.is_empty()) {
            return Ok(value);
        }
        if let Some(path) = (self.environment)(&format!("{env}_FILE")).filter(|path| !path.is_empty()) {
            return std::fs::read_to_string(&path)
                .map(|text| text.trim_end().to_owned())
                .map_err(|error| ConfigError::SecretFile { env, path, reason: error.to_string() });
        }
        if let Some(value) = self.file.get(key) {
            return Ok(value.clone());
        }
        default.map(str::to_owned).ok_or(ConfigError::Missing { env, key, meaning })
    }

    fn parse<T: FromStr<Err: std::fmt::Display>>(&self, key: &'static str) -> Result<T, ConfigError> {
        self.text(key)?.parse().map_err(|error: T::Err| self.invalid(key, error.to_string()))
    }

    /// A directory that has to be there, or none when the setting is empty.
    fn directory(&self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        match self.text(key)? {
            text if text.is_empty() => Ok(None),
            text if Path::new(&text).is_dir() => Ok(Some(PathBuf::from(text))),
            _ => Err(self.invalid(key, "is not a directory".to_owned())),
        }
    }

    /// A Redis URL; none if it is empty.
    fn redis_url(&self, key: &'static str) -> Result<Option<SecretString>, ConfigError> {
        let url = self.text(key)?;
        if url.is_empty() {
            return Ok(None);
        }
        let url = SecretString::from(url);
        redis_client::check(&url).map_err(|reason| self.invalid(key, reason.to_owned()))?;
        Ok(Some(url))
    }

    fn number(&self, key: &'static str) -> Result<u64, ConfigError> {
        let (least, most) = self.setting(key).range.unwrap_or((0, u64::MAX));
        self.text(key)?
            .parse()
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| self.invalid(key, format!("must be a whole number from {least} to {most}")))
    }

    fn invalid(&self, key: &'static str, reason: String) -> ConfigError {
        ConfigError::Invalid { env: self.setting(key).env, key, reason }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    const KEY: &str = "1:q83vEjRWeJCrze8SNFZ4kJgfP2uR0dWmAxLpZyTcVbE=";

    fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let environment = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::load(None, &environment)
    }

    #[test]
    fn a_missing_master_key_says_how_to_make_one() {
        let error = load(&[("PLATFORM_DATABASE_URL", "postgres://a:b@localhost/c")]).unwrap_err().to_string();
        assert!(error.contains("FREEHOLD_MASTER_KEYS") && error.contains("openssl rand -base64 32"), "{error}");
    }

    #[test]
    fn a_weak_master_key_refuses_to_start_and_is_not_echoed() {
        let weak = "1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let error = load(&[("PLATFORM_DATABASE_URL", "postgres://a:b@localhost/c"), ("FREEHOLD_MASTER_KEYS", weak)])
            .unwrap_err()
            .to_string();
        assert!(error.contains("openssl") && !error.contains("AAAA"), "{error}");
    }

    #[test]
    fn numbers_are_bounded() {
        let error = load(&[
            ("PLATFORM_DATABASE_URL", "postgres://a:b@localhost/c"),
            ("FREEHOLD_MASTER_KEYS", KEY),
            ("FREEHOLD_SESSION_HOURS", "0"),
        ])
        .unwrap_err()
        .to_string();
        assert!(error.contains("FREEHOLD_SESSION_HOURS") && error.contains("from 1 to 720"), "{error}");
    }

    #[test]
    fn where_it_listens_everywhere_the_public_url_has_to_be_given() {
        let with = |listen: &str, url: &str| {
            load(&[
                ("PLATFORM_DATABASE_URL", "postgres://a:b@localhost/c"),
                ("FREEHOLD_MASTER_KEYS", KEY),
                ("FREEHOLD_LISTEN", listen),
                ("FREEHOLD_PUBLIC_URL", url),
            ])
        };
        for listen in ["0.0.0.0:8080", "[::]:8080"] {
            let error = with(listen, "").unwrap_err().to_string();
            assert!(error.starts_with("FREEHOLD_PUBLIC_URL cannot be used") && error.contains("hint:"), "{error}");
            with(listen, "https://chat.example").unwrap();
        }
        assert_eq!(with("127.0.0.1:8080", "").unwrap().public_url.as_str(), "http://127.0.0.1:8080/");
    }

    #[test]
    fn a_secret_file_that_cannot_be_read_and_a_redis_url_that_is_none_name_their_variable() {
        let file = ("PLATFORM_DATABASE_URL_FILE", "/nowhere/url");
        let error = load(&[("FREEHOLD_MASTER_KEYS", KEY), file]).unwrap_err().to_string();
        assert!(error.contains("PLATFORM_DATABASE_URL_FILE names /nowhere/url"), "{error}");
        let error = load(&[
            ("PLATFORM_DATABASE_URL", "postgres://a:b@localhost/c"),
            ("FREEHOLD_MASTER_KEYS", KEY),
            ("REDIS_URL", "http://user:canary@localhost"),
        ])
        .unwrap_err()
        .to_string();
        assert!(error.starts_with("REDIS_URL cannot be used") && !error.contains("canary"), "{error}");
    }

    #[test]
    fn answers_are_shared_where_limits_are_unless_it_is_said_otherwise() {
        let url = |own: &str| {
            let config = load(&[
                ("PLATFORM_DATABASE_URL", "postgres://a:b@localhost/c"),
                ("FREEHOLD_MASTER_KEYS", KEY),
                ("REDIS_URL", "redis://limits"),
                ("FREEHOLD_ANSWER_CACHE_REDIS_URL", own),
            ]);
            let config = config.unwrap();
            assert_eq!(config.redis_url.unwrap().expose_secret(), "redis://limits");
            config.answer_cache_redis_url.map(|url| url.expose_secret().to_owned())
        };
        assert_eq!(url("").as_deref(), Some("redis://limits"));
        assert_eq!(url("redis://answers").as_deref(), Some("redis://answers"));
        assert_eq!(url("off"), None);
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let config =
            load(&[("PLATFORM_DATABASE_URL", "postgres://a:canary@localhost/c"), ("FREEHOLD_MASTER_KEYS", KEY)])
                .unwrap();
        let text = format!("{config:?}");
        assert!(!text.contains("canary") && !text.contains("q83v"), "{text}");
    }
}
