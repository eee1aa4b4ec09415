//! Faults of databases that somebody wants to use, each made for real, and what the check says about it.
//!
//! One test, one table: every fault is named by a code that is its own and a remedy. `--nocapture` shows the table.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use freehold::clock::{Clock, SharedClock, SystemClock};
use freehold::database_check::{self, CODES, Finding, OwnersServer, Purpose, Question, Report, Severity, UrlOrigin};
use freehold::ids::TenantId;
use freehold::provisioning::{TenantMigrations, own};
use freehold_cli::dev::account::{create_directory, give, ordinary_account};
use freehold_cli::dev::process::{Supervised, SupervisedCommand};
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{announce, clients_server, execute, manual_clock};
use crate::machine_postgres::{PASSWORD, TlsServer, authority, not_tested, programs, write};

/// The table, in the making.
#[derive(Default)]
struct Table {
    rows: Mutex<Vec<[String; 4]>>,
    /// Faults that were not named, all told at the end: making them takes a while.
    unnamed: Mutex<Vec<String>>,
}

impl Table {
    /// Checks that a fault is named, and that whoever reads it knows what to do.
    fn row(&self, fault: &str, report: &Report, code: &str) {
        let found = report.findings.iter().find(|finding| finding.code == code);
        let Some(found) = found else {
            let unnamed = format!("{fault}: expected {code}, found {:#?}", report.findings);
            return self.unnamed.lock().unwrap().push(unnamed);
        };
        assert!(CODES.contains(&code), "{code} is not in the list of codes");
        assert!(found.remedy.len() > 10 && found.message.len() > 10, "{fault}: {found:?}");
        assert_eq!(report.suitable(), !report.findings.iter().any(|finding| finding.severity == Severity::Problem));
        let text = format!("{:?}", report.findings);
        assert!(!text.contains(PASSWORD) && !text.contains("a-long-random"), "{fault}: {text}");
        let Finding { severity, remedy, .. } = found.clone();
        let severity = format!("{severity:?}").to_lowercase();
        self.rows.lock().unwrap().push([fault.to_owned(), code.to_owned(), severity, remedy]);
    }

    fn show(&self) {
        let rows = self.rows.lock().unwrap();
        let codes: std::collections::BTreeSet<&str> = rows.iter().map(|row| row[1].as_str()).collect();
        announce(&format!("database check: {} faults, {} codes", rows.len(), codes.len()));
        for [fault, code, severity, remedy] in &*rows {
            announce(&format!("| {fault} | `{code}` | {severity} | {remedy} |"));
        }
        let unnamed = self.unnamed.lock().unwrap();
        assert!(unnamed.is_empty(), "{}", unnamed.join("\n"));
        assert!(codes.len() >= 25);
    }
}

/// How a check is asked for.
struct Ask<'a> {
    ca: Option<&'a str>,
    origin: UrlOrigin,
    tenant: Option<TenantId>,
    owners_servers: &'a [OwnersServer],
    clock: SharedClock,
}

impl Default for Ask<'_> {
    fn default() -> Self {
        Self { ca: None, origin: UrlOrigin::Owner, tenant: None, owners_servers: &[], clock: SystemClock::shared() }
    }
}

async fn ask(url: &str, ask: Ask<'_>) -> Report {
    let url = match database_check::parse(&SecretString::from(url), ask.ca, ask.origin) {
        Ok(url) => url,
        Err(finding) => return Report::ended_by(finding),
    };
    let question = Question {
        url: &url,
        purpose: Purpose::Tenant,
        tenant: ask.tenant,
        owners_servers: ask.owners_servers,
        connections_wanted: 8,
    };
    database_check::check(&question, &ask.clock).await
}

async fn check(url: &str) -> Report {
    ask(url, Ask::default()).await
}

/// Something that stands between a client and a server and changes what passes.
struct Between {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl Between {
    /// Delays what the server says, and puts some bytes in the place of others, of the same length.
    async fn start(server: u16, delay: Duration, replace: Option<(&'static str, &'static str)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                        let mut bytes = buffer[..length].to_vec();
                        if let Some((from, to)) = replace {
                            let places: Vec<usize> =
                                (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
                            for at in places {
                                bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
                            }
                        }
                        tokio::time::sleep(delay).await;
                        if to_client.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, stop }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A server that answers every connection with a text and hangs up; without one it says nothing.
async fn answering(text: Option<&'static str>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut silent = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            match text {
                Some(text) => {
                    let mut request = [0; 8];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(text.as_bytes()).await;
                }
                None => silent.push(stream),
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_named_with_a_remedy() {
    let table = Table::default();
    addresses(&table).await;
    networks(&table).await;
    roles_and_limits(&table).await;
    contents(&table).await;
    places(&table).await;
    if let Some(bin) = programs("faults of TLS, access rules and replicas") {
        encryption(&table, &bin).await;
    }
    pooler(&table).await;
    table.show();
}

async fn addresses(table: &Table) {
    for (fault, url, code) in [
        ("another kind of database", "mysql://u:long-and-random@db.example/d", "url_scheme"),
        ("an @ in the password", "postgres://u:a-long-random@@db.example/d", "url_malformed"),
        ("no user", "postgres://:long-and-random@db.example/d", "url_user_missing"),
        ("no password", "postgres://u@db.example/d", "url_password_missing"),
        ("no database", "postgres://u:long-and-random@db.example", "url_database_missing"),
        ("no host", "postgres://u:long-and-random@/d", "url_host"),
        ("a port that is none", "postgres://u:long-and-random@db.example:port/d", "url_port"),
        ("an unknown sslmode", "postgres://u:long-and-random@db.example/d?sslmode=on", "url_sslmode"),
        ("a parameter of another driver", "postgres://u:long-and-random@db.example/d?pgbouncer=true", "url_parameter"),
        ("a socket of the server's machine", "postgres://u:long-and-random@/d?host=/run/postgresql", "url_socket"),
        (
            "a file of the server's machine",
            "postgres://u:long-and-random@db.example/d?sslrootcert=/etc/passwd",
            "url_certificate_file",
        ),
    ] {
        table.row(fault, &check(url).await, code);
    }
    let url = "postgres://u:long-and-random@db.example/d";
    let given = Ask { ca: Some("-----BEGIN NOTHING-----"), ..Ask::default() };
    table.row("an authority that is no certificate", &ask(url, given).await, "ca_unusable");
    let given = Ask { ca: Some("-----BEGIN CERTIFICATE-----"), ..Ask::default() };
    let report = ask(&format!("{url}?sslmode=disable"), given).await;
    table.row("an authority without encryption", &report, "ca_without_encryption");
}

async fn networks(table: &Table) {
    let at = |port: u16| format!("postgres://u:long-and-random@127.0.0.1:{port}/d");
    let report = check("postgres://u:long-and-random@no-such-host.invalid/d").await;
    table.row("a host that does not exist", &report, "host_unresolvable");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    table.row("nothing listens", &check(&at(closed)).await, "connection_refused");
    let started = std::time::Instant::now();
    table.row("a black hole", &check(&at(answering(None).await)).await, "connection_timed_out");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    let web = answering(Some("HTTP/1.1 400 Bad Request\r\n\r\n")).await;
    table.row("a web server", &check(&at(web)).await, "not_postgres");
    let inner = Ask { origin: UrlOrigin::Client, ..Ask::default() };
    let report = ask(&at(web), inner).await;
    table.row("a private address, given by a client", &report, "address_not_public");
}

async fn roles_and_limits(table: &Table) {
    let server = clients_server().await;
    let admin = server.url("postgres");
    let url = server.create_clients_database("faults").await;
    let as_role = |role: &str| server.url_as(role, "faults");

    let clean = check(&url).await;
    assert!(clean.suitable(), "{:#?}", clean.findings);
    table.row("a connection without encryption", &clean, "encryption_not_demanded");
    table.row("pgvector not installed", &clean, "vector_not_installed");
    table.row("a measured round trip", &clean, "latency");
    let report = check(&format!("{url}?sslmode=verify-full")).await;
    table.row("a server without TLS", &report, "tls_refused");
    table.row("a wrong password", &check(&url.replace("random-faults", "random-other")).await, "password_wrong");
    table.row("a database that is not there", &check(&server.url_as("faults", "absent")).await, "database_missing");

    let role = async |name: &str, options: &str| {
        execute(&admin, &format!("CREATE ROLE {name} {options} PASSWORD 'a-long-random-{name}'")).await;
    };
    execute(&admin, "ALTER DATABASE faults CONNECTION LIMIT 50").await;
    role("lacking", "LOGIN").await;
    let report = check(&as_role("lacking")).await;
    table.row("no right to create tables", &report, "no_create_on_schema");
    table.row("no right to create schemas", &report, "no_create_on_database");
    role("unlogged", "NOLOGIN").await;
    table.row("a role that may not sign in", &check(&as_role("unlogged")).await, "role_may_not_log_in");
    role("exhausted", "LOGIN CONNECTION LIMIT 0").await;
    table.row("no connection left", &check(&as_role("exhausted")).await, "connections_exhausted");
    role("single", "LOGIN IN ROLE faults CONNECTION LIMIT 1").await;
    table.row("one connection left", &check(&as_role("single")).await, "connections_too_few");
    role("few", "LOGIN IN ROLE faults CONNECTION LIMIT 4").await;
    table.row("four connections left", &check(&as_role("few")).await, "connections_few");
    role("reader", "LOGIN IN ROLE faults").await;
    execute(&admin, "ALTER ROLE reader SET default_transaction_read_only = on").await;
    table.row("read-only transactions", &check(&as_role("reader")).await, "read_only");
    role("hasty", "LOGIN IN ROLE faults").await;
    execute(&admin, "ALTER ROLE hasty SET statement_timeout = '500ms'").await;
    table.row("statements cut off soon", &check(&as_role("hasty")).await, "statement_timeout_short");
    role("astray", "LOGIN IN ROLE faults").await;
    execute(&server.url("faults"), "CREATE SCHEMA elsewhere AUTHORIZATION faults").await;
    execute(&admin, "ALTER ROLE astray SET search_path = elsewhere, public").await;
    table.row("another schema first", &check(&as_role("astray")).await, "search_path_odd");
    role("mighty", "LOGIN SUPERUSER").await;
    table.row("a superuser", &check(&as_role("mighty")).await, "superuser");
    execute(&admin, "CREATE ROLE obvious LOGIN IN ROLE faults PASSWORD 'Postgres123'").await;
    let obvious = as_role("obvious").replace("a-long-random-obvious", "Postgres123");
    table.row("an obvious password", &check(&obvious).await, "password_obvious");

    server.create_clients_database("guarded").await;
    execute(&admin, "REVOKE CONNECT ON DATABASE guarded FROM PUBLIC").await;
    table.row("no right to connect", &check(&server.url_as("faults", "guarded")).await, "connect_denied");
    server.create_clients_database("closed").await;
    execute(&admin, "ALTER DATABASE closed ALLOW_CONNECTIONS false").await;
    table.row("a closed database", &check(&server.url_as("closed", "closed")).await, "database_closed");
    execute(&admin, "CREATE DATABASE latin OWNER faults TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'").await;
    table.row("another encoding", &check(&server.url_as("faults", "latin")).await, "encoding_not_utf8");
}

async fn contents(table: &Table) {
    let server = clients_server().await;
    let url = server.create_clients_database("contents").await;
    execute(&url, "CREATE TABLE chat_sessions (id int)").await;
    table.row("tables of our names", &check(&url).await, "foreign_tables");
    execute(&url, "ALTER TABLE chat_sessions ENABLE ROW LEVEL SECURITY").await;
    table.row("row security on them", &check(&url).await, "row_security_on");
    let triggers = "CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
                    CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION note()";
    execute(&server.url("contents"), triggers).await;
    table.row("event triggers", &check(&url).await, "event_triggers");

    let url = server.create_clients_database("taken").await;
    let (tenant, operation) = (TenantId::new(), freehold::ids::OperationId::new());
    own::claim(&url.parse().unwrap(), tenant, operation).await.unwrap();
    own::migrate(&url.parse().unwrap(), tenant, &TenantMigrations::embedded()).await.unwrap();
    let other = Ask { tenant: Some(TenantId::new()), ..Ask::default() };
    table.row("another tenant's database", &ask(&url, other).await, "database_of_another_tenant");
    let same = Ask { tenant: Some(tenant), ..Ask::default() };
    assert!(ask(&url, same).await.suitable());
    // A role that was made for a rotation, and does not own what the first one made.
    execute(&server.url("postgres"), "CREATE ROLE newcomer LOGIN PASSWORD 'a-long-random-newcomer'").await;
    let grants = "GRANT SELECT ON ALL TABLES IN SCHEMA public TO newcomer; GRANT CREATE ON SCHEMA public TO newcomer";
    execute(&url, grants).await;
    let same = Ask { tenant: Some(tenant), ..Ask::default() };
    table.row("tables of another role", &ask(&server.url_as("newcomer", "taken"), same).await, "tables_not_owned");
}

async fn places(table: &Table) {
    let server = clients_server().await;
    let url = server.create_clients_database("places").await;
    let client = crate::harness::connect(&url).await.unwrap();
    let identifier = database_check::system_identifier(&client).await.unwrap();
    let known = |platform: bool, host: Option<&str>, identifier: Option<String>| OwnersServer {
        platform,
        host: host.map(str::to_owned),
        port: server.port(),
        addresses: Vec::new(),
        system_identifier: identifier,
    };
    // By its identifier, whatever it is called; and by its name, before a password goes there.
    for (server, code) in [
        (known(true, None, identifier.clone()), "platform_database"),
        (known(false, None, identifier), "managed_cluster"),
        (known(true, Some("127.0.0.1"), None), "platform_database"),
    ] {
        let fault = if code == "platform_database" { "the platform's own server" } else { "a cluster of the owner's" };
        let servers = [server];
        table.row(fault, &ask(&url, Ask { owners_servers: &servers, ..Ask::default() }).await, code);
    }
    execute(&url, "CREATE TABLE chat_instances (); CREATE TABLE wrapped_keys ()").await;
    table.row("another platform's own database", &check(&url).await, "platform_database");

    let url = server.create_clients_database("passing").await;
    let through = |between: &Between| url.replace(&format!(":{}/", server.port()), &format!(":{}/", between.port));
    let version = |from, to| Between::start(server.port(), Duration::ZERO, Some((from, to)));
    let old = version("\"version_number\" : 18", "\"version_number\" : 13").await;
    table.row("PostgreSQL 13", &check(&through(&old)).await, "version_too_old");
    let new = version("\"version_number\" : 18", "\"version_number\" : 21").await;
    table.row("PostgreSQL 21", &check(&through(&new)).await, "version_unknown");
    let far = Between::start(server.port(), Duration::from_millis(80), None).await;
    table.row("80 ms away", &check(&through(&far)).await, "latency_high");
    let clock = manual_clock();
    clock.advance(chrono::TimeDelta::minutes(5));
    assert!(clock.now() > SystemClock.now());
    table.row("clocks apart", &ask(&url, Ask { clock, ..Ask::default() }).await, "clock_skew");
}

async fn encryption(table: &Table, bin: &std::path::Path) {
    let hba = "hostssl all certified 127.0.0.1/32 scram-sha-256 clientcert=verify-ca
hostssl all trusted,absent,unlogged 127.0.0.1/32 trust
hostssl all refused 127.0.0.1/32 reject
hostssl all gss 127.0.0.1/32 md5
hostssl all all 127.0.0.1/32 scram-sha-256
";
    let server = TlsServer::start_with(bin, hba).await;
    let ca = server.ca();
    let superuser = server.url("postgres", "localhost", &server.verified("ca.pem"));
    let (client, _) = freehold::secrets::connect(&superuser).await.unwrap();
    let sql = format!(
        "CREATE ROLE own LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE certified LOGIN PASSWORD '{PASSWORD}';
         CREATE ROLE trusted LOGIN; CREATE ROLE unlogged NOLOGIN;"
    );
    client.batch_execute(&sql).await.unwrap();
    client.batch_execute("CREATE DATABASE own OWNER own").await.unwrap();
    let url = |role: &str, host: &str, mode: &str| {
        format!("postgres://{role}:{PASSWORD}@{host}:{}/own?sslmode={mode}", server.port)
    };
    let trusting = async |url: &str| ask(url, Ask { ca: Some(&ca), ..Ask::default() }).await;

    let right = url("own", "localhost", "verify-full");
    let report = trusting(&right).await;
    assert!(report.suitable(), "{:#?}", report.findings);
    assert!(report.server_version().is_some_and(|version| version.starts_with("15.")), "{report:?}");
    table.row("no pgvector at the server", &report, "vector_missing");
    table.row("an authority that is not public", &check(&right).await, "certificate_unknown_issuer");
    let by_address = url("own", "127.0.0.1", "verify-full");
    table.row("a certificate of another name", &trusting(&by_address).await, "certificate_other_name");
    let plain = check(&url("own", "127.0.0.1", "disable")).await;
    table.row("no encryption, and the server demands it", &plain, "access_rule_rejects");
    table.row("access rules", &trusting(&url("refused", "localhost", "verify-full")).await, "access_rule_rejects");
    let report = trusting(&url("certified", "localhost", "verify-full")).await;
    table.row("a certificate of ours is demanded", &report, "client_certificate_required");
    table.row("a role that is not there", &trusting(&url("absent", "localhost", "verify-full")).await, "role_missing");
    let report = trusting(&url("unlogged", "localhost", "verify-full")).await;
    table.row("a role without LOGIN", &report, "role_may_not_log_in");

    let date = |year: i32| rcgen::date_time_ymd(year, 1, 1);
    let expired = server.certificate("localhost", |params| {
        (params.not_before, params.not_after) = (date(2020), date(2021));
    });
    let early = server.certificate("localhost", |params| {
        (params.not_before, params.not_after) = (date(2100), date(2101));
    });
    let itself = authority("localhost");
    let itself = (itself.pem(), itself.key().serialize_pem());
    for (fault, (certificate, key), code) in [
        ("an expired certificate", expired, "certificate_expired"),
        ("a certificate of the future", early, "certificate_not_yet_valid"),
        ("a certificate that signs itself", itself, "certificate_self_signed"),
    ] {
        server.change_certificate(&certificate, &key);
        // The server reads it when it gets round to it.
        let mut report = trusting(&right).await;
        for _ in 0..50 {
            if report.findings.iter().any(|finding| finding.code == code) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            report = trusting(&right).await;
        }
        table.row(fault, &report, code);
    }

    let (certificate, key) = server.certificate("localhost", |_| {});
    server.change_certificate(&certificate, &key);
    let (port, process) = server.standby(&["hot_standby=on"]).await;
    let replica = server
        .text_url("postgres", "localhost", "sslmode=verify-full")
        .replace(&format!(":{}/", server.port), &format!(":{port}/"));
    table.row("a read replica", &trusting(&replica).await, "read_replica");
    process.stop().await.unwrap();
    let (port, process) = server.standby(&["hot_standby=off", "restart_after_crash=off"]).await;
    let standby = server
        .text_url("postgres", "localhost", "sslmode=verify-full")
        .replace(&format!(":{}/", server.port), &format!(":{port}/"));
    table.row("a standby that answers nobody", &trusting(&standby).await, "server_not_ready");
    process.stop().await.unwrap();
    server.process.stop().await.unwrap();
}

/// PgBouncer in front of the clients' server.
struct Pooler {
    process: Supervised,
    port: u16,
    _directory: tempfile::TempDir,
}

async fn start_pooler(program: &std::path::Path, mode: &str) -> Pooler {
    let server = clients_server().await;
    let account = ordinary_account().unwrap();
    let directory = tempfile::Builder::new().prefix("freehold-pooler-").tempdir_in("/tmp").unwrap();
    create_directory(directory.path(), 0o755).unwrap();
    give(directory.path(), account).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let users = directory.path().join("users.txt");
    write(&users, "\"pooled\" \"a-long-random-pooled\"\n", account);
    let settings = format!(
        "[databases]\npooled = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         auth_type = scram-sha-256\nauth_file = {}\npool_mode = {mode}\nunix_socket_dir =\n",
        server.port(),
        users.display()
    );
    let file = directory.path().join("pgbouncer.ini");
    write(&file, &settings, account);
    let mut process = SupervisedCommand::new(program, directory.path().join("pgbouncer.log"))
        .arg(&file)
        .directory(directory.path())
        .run_as(account)
        .spawn()
        .unwrap();
    for _ in 0..100 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            break;
        }
        assert!(process.exit_code().unwrap().is_none(), "{}", process.log_tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Pooler { process, port, _directory: directory }
}

async fn pooler(table: &Table) {
    let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/opt/homebrew/bin/pgbouncer"];
    let Some(program) = places.into_iter().map(std::path::Path::new).find(|place| place.exists()) else {
        return not_tested("databases behind a pooler", "PgBouncer (apt-get install pgbouncer)");
    };
    clients_server().await.create_clients_database("pooled").await;
    for (mode, shares) in [("transaction", true), ("statement", true), ("session", false)] {
        let pooler = start_pooler(program, mode).await;
        let url = format!("postgres://pooled:a-long-random-pooled@127.0.0.1:{}/pooled", pooler.port);
        let report = check(&url).await;
        if shares {
            table.row(&format!("a pooler in {mode} mode"), &report, "transaction_pooler");
        } else {
            assert!(report.suitable(), "{:#?}", report.findings);
            let unknown = check(&url.replace("/pooled", "/unknown")).await;
            assert!(!unknown.suitable(), "{:#?}", unknown.findings);
        }
        pooler.process.stop().await.unwrap();
    }
}
