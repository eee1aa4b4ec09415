//! A tenant is backed up, deleted for good, and comes back from the sealed file and from nothing else.

use std::path::PathBuf;

use freehold::provisioning::checksums;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{self, Options, PASSWORD, Platform, Tenant, announce, connect, fake_model, server};
use crate::kill_matrix::run_here;

const PASSPHRASE: &str = "eleven blue herons by the river";
/// A key that opens nothing but what tests seal.
const KEY: &str = "q83vEjRWeJCrze8SNFZ4kJgfP2uR0dWmAxLpZyTcVbE=";

/// A table, its rows and their checksum.
type Sums = Vec<(String, i64, String)>;

pub async fn sums(database_url: &str) -> Sums {
    let client = connect(database_url).await.unwrap();
    let tables = checksums(&client).await.unwrap();
    tables.into_iter().map(|table| (table.table, table.rows, table.checksum)).collect()
}

/// Asks for a backup and waits for it; returns the backup.
async fn back_up(platform: &Platform, slug: &str, secret: Value) -> Value {
    let path = format!("/platform/v1/tenants/{slug}/backups");
    let answer = platform.post(&path, &platform.token, secret).await.expect(StatusCode::ACCEPTED);
    let operation = platform.settled(&answer["operation"]).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    let id = answer["backup"]["id"].as_str().unwrap();
    let backup = platform.get(&format!("/platform/v1/backups/{id}"), &platform.token).await.expect(StatusCode::OK);
    assert_eq!(backup["state"], "complete", "{backup}");
    backup
}

/// Deletes a tenant for good, as far as anything is left of it: database, roles, keys.
pub async fn purge(platform: &Platform, slug: &str) {
    let registry = platform.platform_client().await;
    let sql = "SELECT d.tenant_id, d.database_name, d.owner_role, d.login_role FROM tenant_databases d
               JOIN chat_instances t ON t.id = d.tenant_id WHERE t.slug = $1";
    let row = registry.query_one(sql, &[&slug]).await.unwrap();
    let (database, owner, login): (String, String, String) = (row.get(1), row.get(2), row.get(3));
    let admin = connect(&server().await.url("postgres")).await.unwrap();
    admin.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).await.unwrap();
    admin.batch_execute(&format!("DROP ROLE {login}; DROP ROLE {owner}")).await.unwrap();
    let id: uuid::Uuid = row.get(0);
    for table in ["signing_keys", "wrapped_keys", "tenant_databases"] {
        registry.execute(&format!("DELETE FROM {table} WHERE tenant_id = $1"), &[&id]).await.unwrap();
    }
    registry.execute("UPDATE chat_instances SET state = 'deleted' WHERE id = $1", &[&id]).await.unwrap();
}

fn file(platform: &Platform, backup: &Value) -> PathBuf {
    harness::backup_dir(&platform.database).join(backup["file_name"].as_str().unwrap())
}

async fn ask_restore(platform: &Platform, backup: &Value, body: Value) -> harness::Answer {
    let path = format!("/platform/v1/backups/{}/restore", backup["id"].as_str().unwrap());
    platform.post(&path, &platform.token, body).await
}

async fn restore(platform: &Platform, backup: &Value, body: Value) -> Value {
    let answer = ask_restore(platform, backup, body).await.expect(StatusCode::ACCEPTED);
    platform.settled(&answer["operation"]).await
}

async fn upload(platform: &Platform, bytes: Vec<u8>) -> harness::Answer {
    let request = platform.client.post(format!("{}/platform/v1/backups", platform.url));
    let request = request.bearer_auth(&platform.token).header("content-type", "application/octet-stream");
    harness::Answer::read("POST /platform/v1/backups", request.body(bytes).send().await.unwrap()).await
}

async fn chat(platform: &Platform, access: &str, question: &str) -> Value {
    platform.post("/api/v1/chat", access, json!({ "message": question })).await.expect(StatusCode::OK)
}

/// Adds messages of so many times 32 characters that do not compress away.
async fn add_rows(platform: &Platform, tenant: &Tenant, rows: i64, length: i32) {
    let client = connect(&platform.tenant_database(&tenant.slug).await).await.unwrap();
    let sql = "WITH session AS (
                   INSERT INTO chat_sessions (id, user_id, title, created_at, updated_at)
                   SELECT gen_random_uuid(), id, 'long', now(), now() FROM client_users LIMIT 1 RETURNING id)
               INSERT INTO chat_messages (id, session_id, role, content, state, created_at)
               SELECT gen_random_uuid(), session.id, 'user',
                      (SELECT string_agg(md5(random()::text || n || m), '') FROM generate_series(1, $2) AS m), 'complete', now()
               FROM session, generate_series(1, $1::bigint) AS n";
    client.execute(sql, &[&rows, &length]).await.unwrap();
}

/// Nothing of an operation that is settled lies anywhere.
pub async fn leftovers(platform: &Platform) -> Vec<String> {
    let registry = platform.platform_client().await;
    let sql = "SELECT 'archive key of backup ' || id FROM backups
               WHERE archive_key_sealed IS NOT NULL AND state <> 'pending'
               UNION ALL SELECT 'secret of restore ' || operation_id FROM restores
               WHERE settled_at IS NOT NULL AND (archive_key_sealed, url_sealed, signing_secret_sealed) IS DISTINCT FROM
                     (NULL::bytea, NULL::bytea, NULL::bytea)
               UNION ALL SELECT 'key of restore ' || operation_id FROM restore_keys JOIN restores r USING (operation_id)
               WHERE r.settled_at IS NOT NULL";
    let mut found: Vec<String> = registry.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let known = registry.query("SELECT file_name FROM backups WHERE state <> 'failed'", &[]).await.unwrap();
    let known: Vec<String> = known.iter().map(|row| row.get(0)).collect();
    for entry in std::fs::read_dir(harness::backup_dir(&platform.database)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !known.contains(&name) {
            found.push(format!("file {name}"));
        }
    }
    found
}

/// An operation of this capability, for the kill matrix. Nothing but what is asked for there is carried out here.
pub async fn start(platform: &Platform, kind: &str, slug: &str) -> Value {
    let run = async |operation: &Value| run_here(platform, operation["id"].as_str().unwrap(), None).await.unwrap();
    run(&platform.request_tenant(slug).await.expect(StatusCode::ACCEPTED)["operation"]).await;
    let path = format!("/platform/v1/tenants/{slug}/backups");
    let asked = platform.post(&path, &platform.token, json!({ "key": KEY })).await.expect(StatusCode::ACCEPTED);
    if kind == "backup_tenant" {
        return asked["operation"].clone();
    }
    run(&asked["operation"]).await;
    if kind == "restore_tenant" {
        purge(platform, slug).await;
        let accepted = ask_restore(platform, &asked["backup"], json!({ "key": KEY })).await;
        return accepted.expect(StatusCode::ACCEPTED)["operation"].clone();
    }
    let accepted = ask_restore(platform, &asked["backup"], json!({ "key": KEY, "replace": slug })).await;
    let restore = accepted.expect(StatusCode::ACCEPTED)["operation"].clone();
    run(&restore).await;
    let path = format!("/platform/v1/operations?group_id={}", restore["id"].as_str().unwrap());
    platform.get(&path, &platform.token).await.expect(StatusCode::OK)["items"][0].clone()
}

/// Whether the tenant is in service after this operation however it ended.
pub fn serves_anyway(kind: &str) -> bool {
    matches!(kind, "backup_tenant" | "drop_replaced_database")
}

/// Asks for an operation again that has failed and forgot its key; nothing for others, which are retried.
pub async fn ask_again(platform: &Platform, kind: &str, slug: &str) -> Option<Value> {
    let accepted = match kind {
        "backup_tenant" => {
            let path = format!("/platform/v1/tenants/{slug}/backups");
            platform.post(&path, &platform.token, json!({ "key": KEY })).await
        }
        "restore_tenant" => {
            let path = format!("/platform/v1/backups?tenant={slug}");
            let backups = platform.get(&path, &platform.token).await.expect(StatusCode::OK);
            ask_restore(platform, &backups["items"][0], json!({ "key": KEY })).await
        }
        _ => return None,
    };
    Some(accepted.expect(StatusCode::ACCEPTED)["operation"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_tenant_comes_back_from_its_backup_and_its_neighbours_are_untouched() {
    let platform = Platform::start().await;
    let (ours, neighbour) = (platform.tenant("back-ours").await, platform.tenant("back-neighbour").await);
    let session = chat(&platform, &ours.user.access, "canary: what is on the menu?").await["session_id"].clone();
    let before = sums(&platform.tenant_database(&ours.slug).await).await;
    let neighbours = sums(&platform.tenant_database(&neighbour.slug).await).await;
    let backup = back_up(&platform, &ours.slug, json!({ "passphrase": PASSPHRASE })).await;
    let bytes = std::fs::read(file(&platform, &backup)).unwrap();
    assert_eq!(bytes.len() as i64, backup["size_bytes"].as_i64().unwrap());
    let readable = |word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
    assert!(readable("FHBACKUP") && !readable("back-ours") && !readable("PGDMP") && !readable("canary"));

    purge(&platform, &ours.slug).await;
    let login = json!({ "tenant": ours.slug, "email": ours.user_email, "password": PASSWORD });
    let answer = platform.post("/api/v1/auth/login", "", login).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text);
    // Its record is all that is left, and the platform cannot open the file by itself.
    let listed = platform.get("/platform/v1/backups?tenant=back-ours", &platform.token).await.expect(StatusCode::OK);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);

    let operation = restore(&platform, &backup, json!({ "passphrase": PASSPHRASE })).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    let tenant = platform.get("/platform/v1/tenants/back-ours", &platform.token).await.expect(StatusCode::OK);
    assert_eq!((&tenant["state"], &tenant["id"]), (&json!("active"), &json!(ours.id)));
    let after = sums(&platform.tenant_database(&ours.slug).await).await;
    // Every table was equal when the operation compared them; then it ended the sessions of back then.
    let mut differing = Vec::new();
    for (old, new) in before.iter().zip(&after) {
        announce(&format!("{:<24} {:>4} rows  before {:<22} after {}", old.0, old.1, old.2, new.2));
        assert_eq!((&old.0, old.1), (&new.0, new.1));
        differing.extend((old.2 != new.2).then_some(old.0.as_str()));
    }
    assert_eq!(differing, ["refresh_families"]);
    assert_eq!(sums(&platform.tenant_database(&neighbour.slug).await).await, neighbours);

    // Tokens of back then are dead; the old password works, and so does the sealed AI key.
    let answer = platform.get("/api/v1/me", &ours.user.access).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text);
    let body = json!({ "refresh_token": ours.user.refresh });
    assert_eq!(platform.post("/api/v1/auth/refresh", "", body).await.status, StatusCode::UNAUTHORIZED);
    let user = platform.login(&ours.slug, &ours.user_email).await;
    let path = format!("/api/v1/sessions/{}/messages", session.as_str().unwrap());
    let messages = platform.get(&path, &user.access).await;
    assert!(messages.text.contains("canary: what is on the menu?"), "{}", messages.text);
    let calls = fake_model().await.calls_with_key(&ours.key).len();
    chat(&platform, &user.access, "And tomorrow?").await;
    assert_eq!(fake_model().await.calls_with_key(&ours.key).len(), calls + 1, "the AI key of back then is used");
    chat(&platform, &neighbour.user.access, "Still there?").await;
    assert_eq!(leftovers(&platform).await, Vec::<String>::new());
    let stored = platform.platform_client().await;
    let inputs = "SELECT count(*) FROM operations WHERE input::text LIKE '%herons%'";
    assert_eq!(stored.query_one(inputs, &[]).await.unwrap().get::<_, i64>(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_another_platform_comes_back_under_other_master_keys_and_another_slug() {
    let platform = Platform::start().await;
    let ours = platform.tenant("moved-ours").await;
    let backup = back_up(&platform, &ours.slug, json!({ "key": KEY })).await;
    assert_eq!(backup["key_kind"], "key_file");
    let path = format!("/platform/v1/backups/{}/content", backup["id"].as_str().unwrap());
    let request = platform.client.get(format!("{}{path}", platform.url)).bearer_auth(&platform.token);
    let content = request.send().await.unwrap();
    assert!(content.headers()["content-disposition"].to_str().unwrap().contains("moved-ours-"));
    let content = content.bytes().await.unwrap().to_vec();
    assert_eq!(content, std::fs::read(file(&platform, &backup)).unwrap());

    // Another platform altogether, which has never heard of the tenant.
    let settings = &[("FREEHOLD_MASTER_KEYS", "7:pvMCYjf24OTWb0CMiinPuCjJfveZspkDcCNPZ0VBFos=")];
    let other = Platform::start_with(Options { settings, ..Options::default() }).await;
    other.request_tenant("moved-ours").await.expect(StatusCode::ACCEPTED);
    let uploaded = upload(&other, content).await.expect(StatusCode::CREATED);
    assert_eq!((&uploaded["origin"], &uploaded["key_kind"]), (&json!("upload"), &json!("key_file")));
    let refused = ask_restore(&other, &uploaded, json!({ "key": KEY })).await;
    assert_eq!(refused.expect_problem(StatusCode::CONFLICT), "slug_taken");
    let operation = restore(&other, &uploaded, json!({ "key": KEY, "slug": "moved-here" })).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    let user = other.login("moved-here", &ours.user_email).await;
    chat(&other, &user.access, "Hello from elsewhere").await;
    // The platform it comes from serves it still: nothing there was touched.
    chat(&platform, &ours.user.access, "Hello from home").await;
    assert_eq!(leftovers(&other).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_open_or_does_not_fit_is_refused_with_a_code() {
    let platform = Platform::start().await;
    let ours = platform.tenant("refuse-ours").await;
    // Several chunks, so that damage to a later one is found only by reading all of it.
    add_rows(&platform, &ours, 200, 64).await;
    let path = "/platform/v1/tenants/refuse-ours/backups";
    for body in [
        json!({}),
        json!({ "passphrase": PASSPHRASE, "key": KEY }),
        json!({ "passphrase": "too short" }),
        json!({ "passphrase": "aaaaaaaaaaaaaaaaaaaa" }),
        json!({ "key": "c2hvcnQ=" }),
    ] {
        let answer = platform.post(path, &platform.token, body.clone()).await;
        assert_eq!(answer.expect_problem(StatusCode::UNPROCESSABLE_ENTITY), "invalid_request", "{body}");
    }
    let answer = platform.post("/platform/v1/tenants/nobody/backups", &platform.token, json!({ "key": KEY })).await;
    assert_eq!(answer.expect_problem(StatusCode::NOT_FOUND), "not_found");
    let backup = back_up(&platform, &ours.slug, json!({ "key": KEY })).await;
    let refused = async |backup: &Value, body: Value, status, code: &str| {
        let answer = ask_restore(&platform, backup, body.clone()).await;
        assert_eq!(answer.expect_problem(status), code, "{body}");
    };
    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    refused(&backup, json!({ "key": KEY }), StatusCode::CONFLICT, "tenant_exists").await;
    refused(&backup, json!({ "key": KEY, "replace": "someone-else" }), unprocessable, "backup_of_another_tenant").await;
    let wrong = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    refused(&backup, json!({ "key": wrong }), unprocessable, "backup_key_wrong").await;
    refused(&backup, json!({ "passphrase": PASSPHRASE }), unprocessable, "backup_key_wrong").await;
    refused(&backup, json!({ "key": KEY, "cluster": "moon" }), StatusCode::CONFLICT, "tenant_exists").await;
    let other = platform.tenant("refuse-other").await;
    refused(&backup, json!({ "key": KEY, "replace": other.slug }), unprocessable, "backup_of_another_tenant").await;

    // A changed file, wherever it was changed: refused at once, or by the operation before anything is touched.
    purge(&platform, &ours.slug).await;
    let good = std::fs::read(file(&platform, &backup)).unwrap();
    let end = good.len();
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for position in [0, 8, 9, 12, 30, 50, 70, 95, 96, 500, 3000, end / 2, end - 5000, end - 40, end - 1] {
        let mut bytes = good.clone();
        bytes[position] ^= 0x10;
        cases.push((format!("bit flipped at {position}"), bytes));
    }
    for length in [0, 40, 96, 5000, end - 16, end - 1] {
        cases.push((format!("cut to {length}"), good[..length].to_vec()));
    }
    cases.push(("a byte appended".to_owned(), [good.as_slice(), b"x"].concat()));
    cases.push(("itself appended".to_owned(), [good.as_slice(), &good].concat()));
    cases.push(("no backup".to_owned(), b"PGDMP".repeat(100)));
    let known = ["backup_not_an_archive", "backup_format_unknown", "backup_key_wrong", "backup_damaged"];
    let count = cases.len();
    for (case, bytes) in cases {
        let answer = upload(&platform, bytes).await;
        let code = if answer.status == StatusCode::CREATED {
            let uploaded = answer.body;
            let answer = ask_restore(&platform, &uploaded, json!({ "key": KEY })).await;
            if answer.status == StatusCode::ACCEPTED {
                let operation = platform.settled(&answer.body["operation"]).await;
                assert_eq!(operation["state"], "failed", "{case}: {operation}");
                assert_eq!(operation["steps"][0]["state"], "undone", "{case}");
                operation["error"]["code"].as_str().unwrap().to_owned()
            } else {
                answer.expect_problem(unprocessable)
            }
        } else {
            answer.expect_problem(unprocessable)
        };
        assert!(known.contains(&code.as_str()), "{case}: {code}");
    }
    announce(&format!("backup: {count} damaged files refused"));
    let registry = platform.platform_client().await;
    let row = registry.query_one("SELECT state FROM chat_instances WHERE id = $1", &[&ours.id]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "deleted");
    let sql = "SELECT count(*) FROM pg_database WHERE datname LIKE '%refuse_ours%'";
    let cluster = connect(&server().await.url("postgres")).await.unwrap();
    assert_eq!(cluster.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    assert_eq!(leftovers(&platform).await, Vec::<String>::new());
    let operation = restore(&platform, &backup, json!({ "key": KEY })).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    // An operation that failed has forgotten its key, and says so when it is tried again.
    let failed = platform.get("/platform/v1/operations?state=failed&limit=1", &platform.token).await;
    let id = failed.body["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/platform/v1/operations/{id}/retry");
    let retry = platform.send(Method::POST, &path, &platform.token, None).await.expect(StatusCode::ACCEPTED);
    let retried = platform.settled(&retry).await;
    assert_eq!(retried["error"]["code"], "archive_key_gone", "{retried}");
    platform.login(&ours.slug, &ours.user_email).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_in_service_is_replaced_under_load_without_mixing() {
    let platform = Platform::start().await;
    let ours = platform.tenant("replace-ours").await;
    add_rows(&platform, &ours, 200, 100).await;
    let backup = back_up(&platform, &ours.slug, json!({ "key": KEY })).await;
    let old_database = platform.tenant_database(&ours.slug).await;
    let then = sums(&old_database).await;
    let lost = chat(&platform, &ours.user.access, "said after the backup").await["session_id"].clone();
    // Reads go on all the while. Each sees the tenant before or after, or is told that its token is dead.
    let reading = async {
        let mut answers = Vec::new();
        loop {
            let answer = platform.get("/api/v1/sessions", &ours.user.access).await;
            let over = answer.status == StatusCode::UNAUTHORIZED;
            answers.push(answer.status);
            if over {
                return answers;
            }
        }
    };
    let body = json!({ "key": KEY, "replace": ours.slug });
    let (operation, answers) = tokio::join!(restore(&platform, &backup, body), reading);
    assert_eq!(operation["state"], "succeeded", "{operation}");
    // One that is under way when the old database shuts is asked to come again.
    let odd: Vec<_> = answers.iter().filter(|status| ![200, 401].contains(&status.as_u16())).collect();
    assert!(odd.len() <= 1 && odd.iter().all(|status| **status == StatusCode::SERVICE_UNAVAILABLE), "{odd:?}");
    let database = platform.tenant_database(&ours.slug).await;
    assert_ne!(database, old_database);
    let now = sums(&database).await;
    let differing: Vec<_> = then.iter().zip(&now).filter(|(old, new)| old != new).map(|(old, _)| &old.0).collect();
    assert_eq!(differing, ["refresh_families"]);
    let user = platform.login(&ours.slug, &ours.user_email).await;
    let path = format!("/api/v1/sessions/{}/messages", lost.as_str().unwrap());
    assert_eq!(platform.get(&path, &user.access).await.status, StatusCode::NOT_FOUND);
    chat(&platform, &user.access, "Hello again").await;
    // What was replaced goes by an operation of its own.
    let path = format!("/platform/v1/operations?group_id={}", operation["id"].as_str().unwrap());
    let listed = platform.get(&path, &platform.token).await.expect(StatusCode::OK);
    let dropped = platform.settled(&listed["items"][0]).await;
    assert_eq!((&dropped["kind"], &dropped["state"]), (&json!("drop_replaced_database"), &json!("succeeded")));
    assert!(connect(&old_database).await.is_err());
    assert_eq!(leftovers(&platform).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_of_one_moment_while_the_tenant_writes() {
    let platform = Platform::start().await;
    let ours = platform.tenant("moment-ours").await;
    // 10 MB, so that the dump takes a while.
    add_rows(&platform, &ours, 5_000, 64).await;
    let writing = async {
        for number in 0..20 {
            chat(&platform, &ours.user.access, &format!("message {number}")).await;
        }
    };
    let (backup, ()) = tokio::join!(back_up(&platform, &ours.slug, json!({ "key": KEY })), writing);
    purge(&platform, &ours.slug).await;
    // The operation compares every table with the manifest: it would fail if manifest and dump differed.
    let operation = restore(&platform, &backup, json!({ "key": KEY })).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    // Whoever is restored from is not removed meanwhile, and is afterwards.
    let path = format!("/platform/v1/backups/{}", backup["id"].as_str().unwrap());
    let deleted = platform.send(Method::DELETE, &path, &platform.token, None).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT, "{}", deleted.text);
    assert!(!file(&platform, &backup).exists());
    assert_eq!(platform.get(&path, &platform.token).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_directory_or_programs_the_answer_says_what_to_do() {
    let settings = &[("FREEHOLD_BACKUP_DIR", "")];
    let platform = Platform::start_with(Options { settings, ..Options::default() }).await;
    platform.tenant("nowhere-ours").await;
    let path = "/platform/v1/tenants/nowhere-ours/backups";
    let answer = platform.post(path, &platform.token, json!({ "key": KEY })).await;
    assert!(answer.text.contains("FREEHOLD_BACKUP_DIR"), "{}", answer.text);
    assert_eq!(answer.expect_problem(StatusCode::CONFLICT), "backup_dir_missing");
    let settings = &[("FREEHOLD_POSTGRES_CLIENT_DIR", env!("CARGO_MANIFEST_DIR"))];
    let database = Some(platform.database.clone());
    let platform = Platform::start_with(Options { settings, database, ..Options::default() }).await;
    let answer = platform.post(path, &platform.token, json!({ "key": KEY })).await;
    assert!(answer.text.contains("FREEHOLD_POSTGRES_CLIENT_DIR"), "{}", answer.text);
    assert_eq!(answer.expect_problem(StatusCode::CONFLICT), "postgres_client_missing");
}

/// A tenant whose logins are shut out is backed up through the login role whose turn it is not, which is shut out again;
/// deleted by the owner's own command for good, the tenant comes back in service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_tenant_is_backed_up_deleted_for_good_and_comes_back() {
    let platform = Platform::start().await;
    let ours = platform.tenant("life-ours").await;
    let before = sums(&platform.tenant_database(&ours.slug).await).await;
    let suspend = platform.post("/platform/v1/tenants/life-ours/suspend", &platform.token, json!({})).await;
    platform.settled(&suspend.expect(StatusCode::ACCEPTED)["operation"]).await;
    let backup = back_up(&platform, &ours.slug, json!({ "key": KEY })).await;
    let admin = connect(&server().await.url("postgres")).await.unwrap();
    let sql = "SELECT count(*) FROM pg_roles WHERE rolcanlogin AND rolname LIKE 'fh\\_life\\_ours\\_%'";
    assert_eq!(admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0);
    let replaced = ask_restore(&platform, &backup, json!({ "key": KEY, "replace": ours.slug })).await;
    assert_eq!(replaced.expect_problem(StatusCode::CONFLICT), "tenant_exists");
    let path = "/platform/v1/tenants/life-ours?confirm=life-ours&grace_days=0";
    let deleted = platform.send(Method::DELETE, path, &platform.token, Some(json!({}))).await;
    let deleted = platform.settled(&deleted.expect(StatusCode::ACCEPTED)["operation"]).await;
    assert_eq!(deleted["state"], "succeeded", "{deleted}");
    let operation = restore(&platform, &backup, json!({ "key": KEY })).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    let after = sums(&platform.tenant_database(&ours.slug).await).await;
    let differing: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).map(|(old, _)| &old.0).collect();
    assert_eq!(differing, ["refresh_families"]);
    let user = platform.login(&ours.slug, &ours.user_email).await;
    chat(&platform, &user.access, "Back again").await;
    // The standing audit finds nothing to say about it. Other tests' databases are strangers to this platform.
    for _ in 0..2 {
        let audit = platform.post("/platform/v1/fleet/audits", &platform.token, json!({})).await;
        platform.settled(&audit.expect(StatusCode::ACCEPTED)).await;
    }
    let findings = platform.get("/platform/v1/fleet/findings?limit=100", &platform.token).await;
    assert_eq!(findings.status, StatusCode::OK, "{}", findings.text);
    assert!(!findings.text.contains("life_ours") && !findings.text.contains("life-ours"), "{}", findings.text);
}

/// A replaced database whose cluster was away when it was to be dropped goes with its tenant at the latest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_drops_the_replaced_database_that_could_not_be_dropped() {
    let platform = Platform::start().await;
    let ours = platform.tenant("left-ours").await;
    let backup = back_up(&platform, &ours.slug, json!({ "key": KEY })).await;
    let operation = restore(&platform, &backup, json!({ "key": KEY, "replace": ours.slug })).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    let path = format!("/platform/v1/operations?group_id={}", operation["id"].as_str().unwrap());
    let listed = platform.get(&path, &platform.token).await.expect(StatusCode::OK);
    platform.settled(&listed["items"][0]).await;
    // As if it had failed: what it names is there, and nothing but its input knows the names.
    let registry = platform.platform_client().await;
    let sql = "UPDATE operations SET state = 'failed', finished_at = now()
               WHERE tenant_id = $1 AND kind = 'drop_replaced_database'
               RETURNING input ->> 'database', input ->> 'owner_role', input -> 'login_roles' ->> 0";
    let row = registry.query_one(sql, &[&ours.id]).await.unwrap();
    let (database, owner, login): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let admin = connect(&server().await.url("postgres")).await.unwrap();
    admin.batch_execute(&format!("CREATE ROLE {owner}; CREATE ROLE {login} LOGIN")).await.unwrap();
    // Nobody may connect: other tests share this Postgres, and a tenant that is provisioned meanwhile is kept from others.
    admin.batch_execute(&format!("CREATE DATABASE {database} OWNER {owner} ALLOW_CONNECTIONS false")).await.unwrap();
    let path = "/platform/v1/tenants/left-ours?confirm=left-ours&grace_days=0";
    let deleted = platform.send(Method::DELETE, path, &platform.token, None).await.expect(StatusCode::ACCEPTED);
    let deleted = platform.settled(&deleted["operation"]).await;
    assert_eq!(deleted["state"], "succeeded", "{deleted}");
    let sql = "SELECT datname::text FROM pg_database WHERE datname = $1
               UNION ALL SELECT rolname::text FROM pg_roles WHERE rolname IN ($2, $3)";
    let left = admin.query(sql, &[&database, &owner, &login]).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

/// What a tenant's own functions say was called, in the database of a URL.
async fn called_by(database_url: &str) -> Vec<String> {
    let client = connect(database_url).await.unwrap();
    let rows = client.query("SELECT who FROM public.trap", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// A client may make functions that are a better match for a call than the built-in ones. Neither a restore nor a backup
/// of a tenant that is shut out calls them as anybody but the tenant's own roles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_functions_never_run_as_the_administrator() {
    let platform = Platform::start().await;
    let ours = platform.tenant("trap-ours").await;
    let before = platform.tenant_database(&ours.slug).await;
    // A restore runs its checks in a session that writes nothing: what must not happen is an error there.
    let traps = "SET ROLE {database}_owner;
        CREATE TABLE public.trap (who text NOT NULL);
        CREATE FUNCTION public.spring(called text) RETURNS void LANGUAGE plpgsql AS $f$ BEGIN
            IF session_user NOT LIKE 'fh\\_trap%' OR current_user NOT LIKE 'fh\\_trap%' THEN
                RAISE EXCEPTION '% ran as % for %', called, current_user, session_user;
            END IF;
            IF pg_catalog.current_setting('transaction_read_only') = 'off' THEN
                INSERT INTO public.trap VALUES (called || ' as ' || session_user);
            END IF;
        END $f$;
        CREATE FUNCTION public.has_database_privilege(text, oid, text) RETURNS boolean LANGUAGE plpgsql AS $f$ BEGIN
            PERFORM public.spring('has_database_privilege'); RETURN false;
        END $f$;
        CREATE FUNCTION public.collect(text, name, text) RETURNS text LANGUAGE plpgsql AS $f$ BEGIN
            PERFORM public.spring('string_agg'); RETURN NULL;
        END $f$;
        CREATE AGGREGATE public.string_agg(name, text) (sfunc = public.collect, stype = text);
        ALTER DATABASE {database} SET search_path = public, pg_catalog";
    let client = connect(&before).await.unwrap();
    let database: String = client.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    client.batch_execute(&traps.replace("{database}", &database)).await.unwrap();
    drop(client);
    let suspend = platform.post("/platform/v1/tenants/trap-ours/suspend", &platform.token, json!({})).await;
    platform.settled(&suspend.expect(StatusCode::ACCEPTED)["operation"]).await;
    let backup = back_up(&platform, &ours.slug, json!({ "key": KEY })).await;
    let path = "/platform/v1/tenants/trap-ours?confirm=trap-ours&grace_days=0";
    let deleted = platform.send(Method::DELETE, path, &platform.token, Some(json!({}))).await;
    platform.settled(&deleted.expect(StatusCode::ACCEPTED)["operation"]).await;
    let operation = restore(&platform, &backup, json!({ "key": KEY })).await;
    assert_eq!(operation["state"], "succeeded", "{operation}");
    let called = called_by(&platform.tenant_database(&ours.slug).await).await;
    assert!(called.iter().all(|call| call.contains(" as fh_trap")), "{called:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_keys_of_a_backup_are_refused_once_it_is_restored() {
    let platform = Platform::start().await;
    let second = Options { database: Some(platform.database.clone()), ..Options::default() };
    let second = Platform::start_with(second).await;
    let tenant = platform.tenant("keys-restored").await;
    let new_key = async |access: &str, name: &str| {
        let made = platform.post("/api/v1/api-keys", access, json!({ "name": name })).await.expect(StatusCode::CREATED);
        made["token"].as_str().unwrap().to_owned()
    };
    let (kept, revoked) = (new_key(&tenant.admin.access, "kept").await, new_key(&tenant.admin.access, "revoked").await);
    // Both servers know both.
    for server in [&platform, &second] {
        for key in [&kept, &revoked] {
            server.get("/v1/models", key).await.expect(StatusCode::OK);
        }
    }
    let backup = back_up(&platform, &tenant.slug, json!({ "key": KEY })).await;
    // Revoked since: in the backup it is in force.
    let keys = platform.get("/api/v1/api-keys", &tenant.admin.access).await.expect(StatusCode::OK);
    let listed = keys["items"].as_array().unwrap().iter().find(|key| key["name"] == "revoked").unwrap().clone();
    let path = format!("/api/v1/api-keys/{}", listed["id"].as_str().unwrap());
    platform.send(Method::DELETE, &path, &tenant.admin.access, None).await.expect_success();
    let refused = async |what: &str| {
        for server in [&platform, &second] {
            for (name, key) in [("kept", &kept), ("revoked", &revoked)] {
                let mut left = 100;
                while server.get("/v1/models", key).await.status != StatusCode::UNAUTHORIZED {
                    left -= 1;
                    assert!(left > 0, "{name} works, {what}");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    };
    for (what, body) in [
        ("in the place of the tenant's database", json!({ "key": KEY, "replace": tenant.slug })),
        ("after it was deleted", json!({ "key": KEY })),
    ] {
        if body.get("replace").is_none() {
            purge(&platform, &tenant.slug).await;
        }
        let operation = restore(&platform, &backup, body).await;
        assert_eq!(operation["state"], "succeeded", "{operation}");
        refused(what).await;
        // They are listed as what they are, and a new one works.
        let admin = platform.login(&tenant.slug, &format!("admin@{}.example", tenant.slug)).await;
        let keys = platform.get("/api/v1/api-keys", &admin.access).await.expect(StatusCode::OK);
        let old = |key: &&Value| key["name"] == "kept" || key["name"] == "revoked";
        let keys: Vec<_> = keys["items"].as_array().unwrap().iter().filter(old).cloned().collect();
        assert!(keys.len() == 2 && keys.iter().all(|key| key["revoked_at"].is_string()), "{keys:?}");
        let new = new_key(&admin.access, "new").await;
        second.get("/v1/models", &new).await.expect(StatusCode::OK);
    }
}
