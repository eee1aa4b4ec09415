//! The machine's own Postgres, for what the embedded one cannot: it is built with TLS, and it is older.
//!
//! `postgres` and `initdb` on the PATH or in Debian's place, on a data directory and a port of their own, never the
//! machine's server. Certificates are made here.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use freehold::secrets::{self, DatabaseUrl};
use freehold_cli::dev::account::{create_directory, give, ordinary_account};
use freehold_cli::dev::process::{RunAs, StopSignal, Supervised, SupervisedCommand};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

pub const PASSWORD: &str = "of-the-superuser";

/// Where the programs are. If they are nowhere, says so past the harness, which keeps back what a test prints.
pub fn programs(tested: &str) -> Option<PathBuf> {
    let found = find();
    if found.is_none() {
        not_tested(tested, "PostgreSQL with TLS (apt-get install postgresql)");
    }
    found
}

/// Says past the harness that something was not tested, and what was missing.
pub fn not_tested(what: &str, missing: &str) {
    let line = format!("NOT TESTED: {what}. This machine has no {missing}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
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
pub fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server that is spoken to over TLS or not at all. Its certificate is for `localhost`.
pub struct TlsServer {
    pub process: Supervised,
    pub port: u16,
    pub directory: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
    account: Option<RunAs>,
    bin: PathBuf,
}

impl TlsServer {
    pub async fn start(bin: &Path) -> Self {
        Self::start_with(bin, "hostssl all all 127.0.0.1/32 scram-sha-256\n").await
    }

    /// With rules of access of its own; the superuser has to be let in with a password over TLS.
    pub async fn start_with(bin: &Path, hba: &str) -> Self {
        let account = ordinary_account().unwrap();
        // Not the usual temporary directory, which may be closed to the account.
        let directory = tempfile::Builder::new().prefix("freehold-tls-").tempdir_in("/tmp").unwrap();
        let home = directory.path();
        create_directory(home, 0o755).unwrap();

        let authority_ = authority("Freehold test authority");
        fs::write(home.join("ca.pem"), authority_.pem()).unwrap();
        fs::write(home.join("other-ca.pem"), authority("Somebody else's authority").pem()).unwrap();
        let (certificate, key) = certificate(&authority_, "localhost", |_| {});
        write(&home.join("server.pem"), &certificate, account);
        write(&home.join("server.key"), &key, account);
        write(&home.join("password"), PASSWORD, account);
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
        // What `initdb` leaves is a server that was shut down in good order: a standby can be made of it.
        copy(&data, &home.join("standby"), account);
        let (port, process) = serve(bin, home, &data, account, &[]);
        let mut server = Self { process, port, directory, authority: authority_, account, bin: bin.to_owned() };
        server.wait_until_it_answers().await;
        server
    }

    /// A standby of this server: in recovery for good, for it is told of no primary.
    pub async fn standby(&self, settings: &[&str]) -> (u16, Supervised) {
        let home = self.directory.path();
        let data = home.join(format!("standby-{}", settings.len()));
        copy(&home.join("standby"), &data, self.account);
        write(&data.join("standby.signal"), "", self.account);
        let (port, mut process) = serve(&self.bin, home, &data, self.account, settings);
        let started = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(process.exit_code().unwrap().is_none(), "{}", process.log_tail());
            assert!(started.elapsed() < Duration::from_secs(60), "{}", process.log_tail());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // It listens before it is consistent.
        tokio::time::sleep(Duration::from_secs(1)).await;
        (port, process)
    }

    /// Exchanges the server's certificate; connections from now on see the new one.
    pub fn change_certificate(&self, certificate: &str, key: &str) {
        let home = self.directory.path();
        write(&home.join("server.pem"), certificate, self.account);
        write(&home.join("server.key"), key, self.account);
        let pid = fs::read_to_string(home.join("data/postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().to_owned();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    }

    /// A certificate that this server's authority signs, and its key.
    pub fn certificate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        certificate(&self.authority, name, change)
    }

    /// The authority, in PEM format.
    pub fn ca(&self) -> String {
        fs::read_to_string(self.directory.path().join("ca.pem")).unwrap()
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
    pub fn verified(&self, authority: &str) -> String {
        format!("sslmode=verify-full&sslrootcert={}", self.directory.path().join(authority).display())
    }

    pub fn text_url(&self, user: &str, host: &str, parameters: &str) -> String {
        format!("postgres://{user}:{PASSWORD}@{host}:{}/postgres?{parameters}", self.port)
    }

    pub fn url(&self, user: &str, host: &str, parameters: &str) -> DatabaseUrl {
        self.text_url(user, host, parameters).parse().unwrap()
    }
}

/// A file that only the server may read.
pub fn write(path: &Path, text: &str, account: Option<RunAs>) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    give(path, account).unwrap();
}

fn certificate(
    authority: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    change(&mut params);
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

fn copy(from: &Path, to: &Path, account: Option<RunAs>) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    give(to, account).unwrap();
}

fn serve(bin: &Path, home: &Path, data: &Path, account: Option<RunAs>, more: &[&str]) -> (u16, Supervised) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = |name: &str| home.join(name).display().to_string();
    let mut settings = vec![
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        "unix_socket_directories=".to_owned(),
        "fsync=off".to_owned(),
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", file("server.pem")),
        format!("ssl_key_file={}", file("server.key")),
        format!("ssl_ca_file={}", file("ca.pem")),
        format!("hba_file={}", file("hba.conf")),
    ];
    settings.extend(more.iter().map(|setting| (*setting).to_owned()));
    let log = format!("{}.log", data.file_name().unwrap().to_string_lossy());
    let process = SupervisedCommand::new(bin.join("postgres"), home.join(log))
        .arg("-D")
        .arg(data)
        .args(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]))
        .directory(home)
        .stop_with(StopSignal::Interrupt, Duration::from_secs(15))
        .run_as(account)
        .spawn()
        .unwrap();
    (port, process)
}
