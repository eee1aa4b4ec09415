//! Credentials of a whole fleet replaced under load, and everything wrapped again under a new master key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use freehold::ids::TenantId;
use freehold::secrets::{DataKey, MasterKeyring, Sealed};
use freehold::tenant_db::database_url_location;
use futures::{StreamExt, TryStreamExt};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use uuid::Uuid;

use crate::{Bench, PASSWORD, connect, random_key, report, start_model, text};

/// A tenant that answers, and the token of its admin.
async fn tenant(bench: &Bench, slug: &str, model: &str) -> Result<String> {
    let (invite, _) = bench.provision(slug).await?;
    let body = json!({ "tenant": slug, "token": invite["token"], "password": PASSWORD });
    let token = text(&bench.post("/api/v1/auth/accept-invite", "", body).await?, "access_token")?;
    bench.use_model(&token, model, "instant").await?;
    Ok(token)
}

/// The database URLs of all tenants, opened as only the holder of the master key can.
async fn database_urls(bench: &Bench) -> Result<Vec<String>> {
    let keyring = keyring(&bench.settings.master_keys)?;
    let platform = connect(&bench.settings.platform).await?;
    let sql = "SELECT d.tenant_id, w.version, w.wrapped_key, d.url_sealed
               FROM tenant_databases d JOIN wrapped_keys w ON w.tenant_id = d.tenant_id";
    let rows = platform.query(sql, &[]).await?;
    rows.iter()
        .map(|row| {
            let id = TenantId::from_uuid(row.get(0));
            let wrapped = Sealed::from_bytes(row.get::<_, Vec<u8>>(2))?;
            let key = keyring.unwrap(id, row.get::<_, i32>(1).cast_unsigned(), &wrapped)?;
            let url = Sealed::from_bytes(row.get::<_, Vec<u8>>(3))?;
            Ok(key.open_str(&database_url_location(id), &url)?.expose_secret().to_owned())
        })
        .collect()
}

fn keyring(text: &str) -> Result<MasterKeyring> {
    Ok(MasterKeyring::parse(&SecretString::from(text))?)
}

/// Refused and ended sign-ins in the Postgres server's log so far.
async fn log_lines(admin: &tokio_postgres::Client, wanted: &str) -> Result<usize> {
    let sql = "SELECT count(*) FROM regexp_split_to_table(
                   pg_read_file(regexp_replace(current_setting('data_directory'), '[^/]*$', 'log')), '\\n') AS line
               WHERE line ~ $1";
    Ok(usize::try_from(admin.query_one(sql, &[&wanted]).await?.get::<_, i64>(0))?)
}

const REFUSED: &str = "FATAL: +(password authentication failed|role .* is not permitted|permission denied for database|no pg_hba|sorry, too many)";

/// Replaces the password of every tenant's database while clients ask questions.
pub(crate) async fn credentials(bench: &Bench, tenants: usize, clients: usize) -> Result<()> {
    let model = start_model(0)?;
    let began = Instant::now();
    let tokens: Vec<String> = futures::stream::iter(0..tenants)
        .map(|number| {
            let model = model.clone();
            async move { tenant(bench, &format!("rotated-{number}"), &model).await }
        })
        .buffered(8)
        .try_collect()
        .await?;
    println!("{tenants} tenants made in {:.0} s", began.elapsed().as_secs_f64());
    let admin = connect(&bench.postgres).await?;
    let old = database_urls(bench).await?;
    let refused_before = log_lines(&admin, REFUSED).await?;

    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let tokens = Arc::new(tokens);
    let url = format!("{}/api/v1/chat", bench.url);
    let load_began = Instant::now();
    let workers: Vec<_> = (0..clients)
        .map(|worker| {
            let (stop, failed, tokens) = (Arc::clone(&stop), Arc::clone(&failed), Arc::clone(&tokens));
            let (client, url) = (bench.client.clone(), url.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                // Another one's words would be the same question.
                let question = json!({ "message": format!("hello {worker}") });
                while !stop.load(Ordering::Relaxed) {
                    let token = &tokens[rand::random_range(0..tokens.len())];
                    let began = Instant::now();
                    let whole = async {
                        let answer = client.post(&url).bearer_auth(token).json(&question).send().await?;
                        let status = answer.status();
                        let body = answer.text().await?;
                        ensure!(status.is_success(), "{status}: {body}");
                        Ok(())
                    };
                    match whole.await {
                        Ok(()) => times.push(began.elapsed()),
                        Err(error) => {
                            if failed.fetch_add(1, Ordering::Relaxed) < 5 {
                                println!("a request failed: {error:#}");
                            }
                        }
                    }
                }
                times
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = Instant::now();
    let answer = bench.post("/platform/v1/rotations", &bench.token, json!({ "kind": "database", "all": true })).await?;
    let asked = began.elapsed();
    let group = text(&answer, "group_id")?;
    let counted = loop {
        let counted = bench.get(&format!("/platform/v1/operation-groups/{group}")).await?;
        if counted["queued"] == 0 && counted["running"] == 0 {
            break counted;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let rotated = began.elapsed();
    tokio::time::sleep(Duration::from_secs(3)).await;
    stop.store(true, Ordering::Relaxed);
    let times = futures::future::try_join_all(workers).await?.concat();
    let failed = failed.load(Ordering::Relaxed);
    let refused = log_lines(&admin, REFUSED).await? - refused_before;
    report("chat turns while passwords were replaced", times, load_began.elapsed());
    println!("asked for in one request: {:.2} s, skipped {}", asked.as_secs_f64(), answer["skipped"]);
    println!(
        "rotated: {} of {}, in {:.1} s, the grace included",
        counted["succeeded"],
        counted["total"],
        rotated.as_secs_f64()
    );
    println!("failed requests: {failed}");
    println!("refused sign-ins in the Postgres server's log: {refused}");

    let tried: Vec<bool> = futures::stream::iter(&old)
        .map(|url| async move { connect(url).await.is_err() })
        .buffer_unordered(8)
        .collect()
        .await;
    let dead = tried.iter().filter(|refused| **refused).count();
    println!("retired passwords tried: {}, refused: {dead}", tried.len());
    let new = database_urls(bench).await?;
    let alive: Vec<bool> = futures::stream::iter(&new)
        .map(|url| async move { connect(url).await.is_ok() })
        .buffer_unordered(8)
        .collect()
        .await;
    println!("new passwords tried: {}, good: {}", alive.len(), alive.iter().filter(|good| **good).count());
    ensure!(counted["succeeded"] == tenants && failed == 0 && refused == 0 && dead == tenants, "not as it should be");
    Ok(())
}

/// Wraps everything again under a new master key, with the server killed midway.
pub(crate) async fn master_key(bench: &mut Bench, values: usize) -> Result<()> {
    let model = start_model(0)?;
    let token = tenant(bench, "wrapped", &model).await?;
    let old = bench.settings.master_keys.clone();
    let new = format!("2:{}", random_key());
    let both = format!("{old},{new}");
    let platform = connect(&bench.settings.platform).await?;
    // Keys of a tenant that is gone, so that no server opens a hundred thousand at once.
    let filler = TenantId::new();
    platform
        .execute(
            "INSERT INTO chat_instances (id, slug, name, plan, template, admin_email, database_mode, cluster_id, state,
                                         created_at, updated_at)
             SELECT $1, 'filler', 'filler', 'pro', 'general', 'a@b.example', 'managed', id, 'deleted', now(), now()
             FROM clusters",
            &[&filler.as_uuid()],
        )
        .await?;
    let ring = keyring(&old)?;
    for batch in (1..=values).collect::<Vec<_>>().chunks(5000) {
        let versions: Vec<i32> = batch.iter().map(|version| i32::try_from(*version)).collect::<Result<_, _>>()?;
        let wrapped: Vec<Vec<u8>> = versions
            .iter()
            .map(|version| ring.wrap(filler, &DataKey::generate(version.cast_unsigned())).into_bytes())
            .collect();
        platform
            .execute(
                "INSERT INTO wrapped_keys (tenant_id, version, wrapped_key, master_key_version, created_at)
                 SELECT $1, version, wrapped, 1, now() FROM unnest($2::int4[], $3::bytea[]) AS new (version, wrapped)",
                &[&filler.as_uuid(), &versions, &wrapped],
            )
            .await?;
    }
    platform.batch_execute("ANALYZE wrapped_keys").await?;
    bench.restart(both.clone()).await?;

    // Opens values at random, as servers do, all the while.
    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (stop, ring, client) = (Arc::clone(&stop), keyring(&both)?, connect(&bench.settings.platform).await?);
        async move {
            let (mut opened, mut failed) = (0_usize, 0_usize);
            while !stop.load(Ordering::Relaxed) {
                let versions: Vec<i32> =
                    (0..20).map(|_| i32::try_from(rand::random_range(1..=values)).unwrap_or(1)).collect();
                let sql = "SELECT version, wrapped_key FROM wrapped_keys WHERE tenant_id = $1 AND version = ANY ($2)";
                for row in client.query(sql, &[&filler.as_uuid(), &versions]).await? {
                    let opens = Sealed::from_bytes(row.get::<_, Vec<u8>>(1)).is_ok_and(|wrapped| {
                        ring.unwrap(filler, row.get::<_, i32>(0).cast_unsigned(), &wrapped).is_ok()
                    });
                    opened += usize::from(opens);
                    failed += usize::from(!opens);
                }
            }
            anyhow::Ok((opened, failed))
        }
    });
    let under_new = async || -> Result<i64> {
        let sql = "SELECT count(*) FROM wrapped_keys WHERE get_byte(wrapped_key, 4) = 2";
        Ok(platform.query_one(sql, &[]).await?.get(0))
    };
    let began = Instant::now();
    let answer = bench.post("/platform/v1/rotations", &bench.token, json!({ "kind": "master_key" })).await?;
    let operation: Uuid = answer["operations"][0].as_str().context("no operation")?.parse()?;
    while under_new().await? < i64::try_from(values / 3)? {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.server.kill().await?;
    let (killed_after, done) = (began.elapsed(), under_new().await?);
    ensure!(usize::try_from(done)? < values, "the server was killed too late: raise --values");
    println!("killed after {:.2} s, with {done} of {values} wrapped again", killed_after.as_secs_f64());
    let resumed = Instant::now();
    bench.restart(both).await?;
    let settled = loop {
        let operation = bench.get(&format!("/platform/v1/operations/{operation}")).await?;
        if ["succeeded", "failed", "needs_operator"].contains(&operation["state"].as_str().unwrap_or_default()) {
            break operation;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let rest = resumed.elapsed();
    stop.store(true, Ordering::Relaxed);
    let (opened, failed) = reader.await??;
    println!("resumed: {} in another {:.2} s, the server's start included", settled["state"], rest.as_secs_f64());
    println!("opened by a reader meanwhile: {opened}, failed: {failed}");
    println!("master keys: {}", bench.get("/platform/v1/master-keys").await?["items"]);

    // The old key dropped: everything opens with the new one alone, and with the old one alone nothing.
    bench.restart(new.clone()).await?;
    let body = json!({ "message": "hello" });
    bench.post("/api/v1/chat", &token, body).await.context("chat with the new key alone")?;
    let (new, old) = (keyring(&new)?, keyring(&old)?);
    let rows = platform.query("SELECT tenant_id, version, wrapped_key FROM wrapped_keys", &[]).await?;
    let opens = |ring: &MasterKeyring| {
        rows.iter()
            .filter(|row| {
                let wrapped = Sealed::from_bytes(row.get::<_, Vec<u8>>(2));
                let (tenant, version) = (TenantId::from_uuid(row.get(0)), row.get::<_, i32>(1).cast_unsigned());
                wrapped.is_ok_and(|wrapped| ring.unwrap(tenant, version, &wrapped).is_ok())
            })
            .count()
    };
    let (with_new, with_old) = (opens(&new), opens(&old));
    println!("of {} wrapped keys open with the new key {with_new}, with the old key {with_old}", rows.len());
    ensure!(
        settled["state"] == "succeeded" && failed == 0 && with_new == rows.len() && with_old == 0,
        "not as it should be"
    );
    Ok(())
}
