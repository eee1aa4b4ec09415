//! Postgres over TLS, with certificates made here.
//!
//! The embedded Postgres is built without TLS, so this takes the machine's own: `postgres` and `initdb` on the PATH or
//! in Debian's place. It runs them on a data directory and a port of their own, never the machine's server. Without
//! such programs there is nothing to test, and a line in the test's output says so.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use freehold::platform_db;
use freehold::secrets::{self, ConnectError, DatabaseUrl};
use freehold_cli::dev::account::{create_directory, give, ordinary_account};
use freehold_cli::dev::process::{RunAs, StopSignal, Supervised, SupervisedCommand};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::StatusCode;
use serde_json::json;
use tempfile::TempDir;

use crate::clusters::provision;
use crate::harness::Platform;

const PASSWORD: &str = "of-the-superuser";

/// Where the programs are. If they are nowhere, says so past the harness, which keeps back what a test prints.
fn programs() -> Option<PathBuf> {
    let found = find();
    if found.is_none() {
        let line =
            b"NOT TESTED: TLS to Postgres. This machine has no PostgreSQL with TLS (apt-get install postgresql)\n";
        std::io::stderr().write_all(line).unwrap();
    }
    found
}

fn find() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let mut places = on_path.unwrap_or_default();
    for parent in ["/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"] {
        let mut below: Vec<PathBuf> =
            fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path().join("bin")).collect();
        below.sort();
        places.extend(below.into_iter().rev());
    }
    places.into_iter().find(|place| place.join("initdb").exists() && has_tls(&place.join("postgres")))
}

/// Whether a server was built with TLS.
fn has_tls(postgres: &Path) -> bool {
    let Ok(output) = Command::new(postgres).args(["-C", "ssl_library"]).output() else { return false };
    // A server refuses to run as root before it says anything else; what it was built with stands beside it.
    if output.status.success() {
        return String::from_utf8_lossy(&output.stdout).contains("OpenSSL");
    }
    let config = postgres.with_file_name("pg_config");
    Command::new(config).arg("--configure").output().is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains("--with-openssl") || text.contains("--with-ssl=openssl")
    })
}

/// An authority.
fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server that is spoken to over TLS or not at all. Its certificate is for `localhost`.
struct TlsServer {
    process: Supervised,
    port: u16,
    directory: TempDir,
}

impl TlsServer {
    async fn start(bin: &Path) -> Self {
        let account = ordinary_account().unwrap();
        // Not the usual temporary directory, which may be closed to the account.
        let directory = tempfile::Builder::new().prefix("freehold-tls-").tempdir_in("/tmp").unwrap();
        let home = directory.path();
        create_directory(home, 0o755).unwrap();

        let authority_ = authority("Freehold test authority");
        fs::write(home.join("ca.pem"), authority_.pem()).unwrap();
        fs::write(home.join("other-ca.pem"), authority("Somebody else's authority").pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &authority_).unwrap();
        write(&home.join("server.pem"), &leaf.pem(), account);
        write(&home.join("server.key"), &key.serialize_pem(), account);
        write(&home.join("password"), PASSWORD, account);
        let hba = "hostssl all all 127.0.0.1/32 scram-sha-256\n";
        write(&home.join("hba.conf"), hba, account);

        let data = home.join("data");
        create_directory(&data, 0o700).unwrap();
        give(&data, account).unwrap();
        SupervisedCommand::new(bin.join("initdb"), home.join("initdb.log"))
            .arg("--pgdata")
            .arg(&data)
            .arg("--pwfile")
            .arg(home.join("password"))
            .args(["--username", "postgres", "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"])
            .arg("--no-sync")
            .directory(home)
            .run_as(account)
            .run_to_end(Duration::from_secs(120))
            .await
            .unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let file = |name: &str| home.join(name).display().to_string();
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            "unix_socket_directories=".to_owned(),
            "fsync=off".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", file("server.pem")),
            format!("ssl_key_file={}", file("server.key")),
            format!("hba_file={}", file("hba.conf")),
        ];
        let process = SupervisedCommand::new(bin.join("postgres"), home.join("postgres.log"))
            .arg("-D")
            .arg(&data)
            .args(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]))
            .directory(home)
            .stop_with(StopSignal::Interrupt, Duration::from_secs(15))
            .run_as(account)
            .spawn()
            .unwrap();
        let mut server = Self { process, port, directory };
        server.wait_until_it_answers().await;
        server
    }

    async fn wait_until_it_answers(&mut self) {
        let url = self.url("postgres", "localhost", &self.verified("ca.pem"));
        let started = Instant::now();
        while let Err(error) = secrets::connect(&url).await {
            assert!(self.process.exit_code().unwrap().is_none(), "{}", self.process.log_tail());
            assert!(started.elapsed() < Duration::from_secs(60), "{error:?} {}", self.process.log_tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The parameters that ask for a certificate of this authority.
    fn verified(&self, authority: &str) -> String {
        format!("sslmode=verify-full&sslrootcert={}", self.directory.path().join(authority).display())
    }

    fn text_url(&self, user: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{user}:{PASSWORD}@{host}:{}/postgres?{parameters}", self.port)
    }

    fn url(&self, user: &str, host: &str, parameters: &str) -> DatabaseUrl {
        self.text_url(user, host, parameters).parse().unwrap()
    }
}

/// A file that only the server may read.
fn write(path: &Path, text: &str, account: Option<RunAs>) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    give(path, account).unwrap();
}

/// What somebody is told who was refused, causes included.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_spoken_to_only_with_a_certificate_that_proves_it() {
    let Some(bin) = programs() else { return };
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let server = TlsServer::start(&bin).await;
    let right = server.verified("ca.pem");

    // Both drivers, and both really encrypted.
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let url = server.url("postgres", "localhost", &right);
    let (client, _) = secrets::connect(&url).await.unwrap();
    assert!(client.query_one(encrypted, &[]).await.unwrap().get::<_, bool>(0));
    let pool = platform_db::pool(&url, 1);
    assert!(sqlx::query_scalar::<_, bool>(encrypted).fetch_one(&pool).await.unwrap());
    pool.close().await;

    let other = server.verified("other-ca.pem");
    let refused = [
        ("an unknown authority", "localhost", other.as_str(), "UnknownIssuer"),
        ("only the public authorities", "localhost", "sslmode=verify-full", "UnknownIssuer"),
        ("`require` checks as much", "localhost", "sslmode=require", "UnknownIssuer"),
        ("another host name", "127.0.0.1", right.as_str(), "certificate not valid for name"),
        ("no encryption", "localhost", "sslmode=disable", "no encryption"),
    ];
    for (what, host, parameters, reason) in refused {
        let url = server.url("postgres", host, parameters);
        let error = secrets::connect(&url).await.err().unwrap_or_else(|| panic!("{what}: connected"));
        assert!(matches!(error, ConnectError::Postgres(_)), "{what}: {error:?}");
        assert!(causes(&error).contains(reason), "{what}: {}", causes(&error));
        let pool = platform_db::pool(&url, 1);
        let error = sqlx::query("SELECT 1").execute(&pool).await.err().unwrap_or_else(|| panic!("{what}: pool"));
        assert!(causes(&error).contains(reason), "{what}: {}", causes(&error));
    }
    server.process.stop().await.unwrap();
}

/// This server is older than the embedded one, has no extension, and its administrator is no superuser.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_over_tls_provisions_a_tenant() {
    let Some(bin) = programs() else { return };
    let platform = Platform::start().await;
    let server = TlsServer::start(&bin).await;
    let right = server.verified("ca.pem");
    let (superuser, _) = secrets::connect(&server.url("postgres", "localhost", &right)).await.unwrap();
    let sql = format!(
        "REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
         CREATE ROLE provisioner LOGIN CREATEDB CREATEROLE PASSWORD '{PASSWORD}';
         GRANT CONNECT ON DATABASE postgres TO provisioner;"
    );
    superuser.batch_execute(&sql).await.unwrap();

    let register = async |host: &str, parameters: &str| {
        let body = json!({ "name": "encrypted", "admin_url": server.text_url("provisioner", host, parameters) });
        platform.post("/platform/v1/clusters", &platform.token, body).await
    };
    for (host, parameters) in
        [("localhost", server.verified("other-ca.pem")), ("127.0.0.1", right.clone()), ("localhost", String::new())]
    {
        let answer = register(host, &parameters).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{host} {parameters}: {}", answer.text);
        assert!(!answer.text.contains(PASSWORD), "{}", answer.text);
    }
    register("localhost", &right).await.expect(StatusCode::CREATED);
    provision(&platform, "encrypted", "behind-tls").await;
    // The tenant's own sessions are encrypted too.
    let sql =
        "SELECT count(*), bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename LIKE 'fh\\_%'";
    let row = superuser.query_one(sql, &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 0);
    assert!(row.get::<_, bool>(1));
    server.process.stop().await.unwrap();
}
