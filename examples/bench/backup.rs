//! A tenant's backup and restore through the API, next to bare `pg_dump` and `pg_restore` of the same database.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::process::Command;

use crate::{Bench, backup_dir, connect, text};

/// Runs it with so much text in the tenant's messages.
pub(crate) async fn run(bench: &Bench, mebibytes: u32) -> Result<()> {
    bench.provision("backup").await?;
    let tenant = bench.client.get(format!("{}/platform/v1/tenants/backup", bench.url)).bearer_auth(&bench.token);
    let tenant: serde_json::Value = tenant.send().await?.json().await?;
    let database = text(&tenant["database"], "name")?;
    let mut url = url::Url::parse(&bench.postgres)?;
    url.set_path(&database);
    let client = connect(url.as_str()).await?;
    // A mebibyte is 256 messages of 4 KiB, of hexadecimal digits: they compress to a half, as text does.
    let fill = "WITH member AS (
            INSERT INTO client_users (id, email, name, role, password_hash, created_at, updated_at)
            VALUES (gen_random_uuid(), 'member@bench.example', 'Member', 'user', 'x', now(), now()) RETURNING id),
        session AS (
            INSERT INTO chat_sessions (id, user_id, title, created_at, updated_at)
            SELECT gen_random_uuid(), id, 'long', now(), now() FROM member RETURNING id)
        INSERT INTO chat_messages (id, session_id, role, content, state, created_at)
        SELECT gen_random_uuid(), session.id, 'user',
               (SELECT string_agg(md5(n || ' ' || m), '') FROM generate_series(1, 128) AS m), 'complete', now()
        FROM session, generate_series(1, $1::int * 256) AS n";
    client.execute(fill, &[&i32::try_from(mebibytes)?]).await?;

    let programs = std::env::var("FREEHOLD_POSTGRES_CLIENT_DIR").map(PathBuf::from).unwrap_or_default();
    let dump = backup_dir().join("bare.dump");
    let mut command = Command::new(programs.join("pg_dump"));
    let bare_dump = timed(command.args(["-Fc", "-d", url.as_str(), "-f"]).arg(&dump)).await?;
    let admin = connect(&bench.postgres).await?;
    admin.batch_execute("CREATE DATABASE bare_restore TEMPLATE template0").await?;
    let mut target = url.clone();
    target.set_path("bare_restore");
    let mut restore = Command::new(programs.join("pg_restore"));
    restore.args(["--single-transaction", "--no-owner", "--no-acl", "-d", target.as_str()]).arg(&dump);
    let bare_restore = timed(&mut restore).await?;

    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, rand::random::<[u8; 32]>());
    let started = Instant::now();
    let asked = bench.post("/platform/v1/tenants/backup/backups", &bench.token, json!({ "key": key })).await?;
    bench.succeeded(&text(&asked["operation"], "id")?).await?;
    let backup = started.elapsed();
    let path = format!("/platform/v1/backups/{}/restore", text(&asked["backup"], "id")?);
    let started = Instant::now();
    let asked = bench.post(&path, &bench.token, json!({ "key": key, "replace": "backup" })).await?;
    bench.succeeded(&text(&asked["operation"], "id")?).await?;
    let restore = started.elapsed();
    let size = std::fs::metadata(&dump)?.len();
    println!("a tenant with {mebibytes} MiB of messages; its dump has {:.1} MiB", size as f64 / 1_048_576.0);
    for (what, time) in [
        ("bare pg_dump", bare_dump),
        ("tenant backup: checksums, sealed, read back", backup),
        ("bare pg_restore", bare_restore),
        ("tenant restore: verified, restored, checked", restore),
    ] {
        println!("{what:<44} {:>8.2} s", time.as_secs_f64());
    }
    println!("memory of the server afterwards: {:.0} MiB", bench.memory_mib().context("read the server's memory")?);
    Ok(())
}

async fn timed(command: &mut Command) -> Result<Duration> {
    let started = Instant::now();
    ensure!(command.status().await.context("run a PostgreSQL client program")?.success(), "it failed");
    Ok(started.elapsed())
}
