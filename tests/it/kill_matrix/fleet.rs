//! Operations over the fleet: how they are begun, and what they leave.

use reqwest::StatusCode;
use serde_json::Value;

use super::{End, run_here};
use crate::fleet_migration;
use crate::harness::Platform;

/// The tenants of every case about the fleet: these come one at a time.
const FLEET: [&str; 2] = ["fleet-a", "fleet-b"];

/// Two tenants that are behind, and a run over them.
pub(super) async fn start(platform: &Platform, kind: &str) -> Value {
    for slug in FLEET {
        let asked = platform.request_tenant(slug).await;
        if asked.status == StatusCode::ACCEPTED {
            run_here(platform, asked.body["operation"]["id"].as_str().unwrap(), None).await.unwrap();
        }
        fleet_migration::take_back(platform, slug).await;
    }
    let tenants = serde_json::json!({ "tenants": FLEET });
    let begun = match kind {
        "migrate_fleet" => platform.post("/platform/v1/fleet/migrations", &platform.token, tenants).await,
        _ => platform.post("/platform/v1/fleet/verifications", &platform.token, tenants).await,
    };
    let begun = begun.expect(StatusCode::ACCEPTED);
    if kind == "migrate_fleet" { begun["operation"].clone() } else { begun }
}

/// A run over the fleet leaves each tenant as it was or as it has to be, never in between, and the registry never ahead
/// of a database. Only a verification that is done has looked at all.
pub(super) async fn compare(platform: &Platform, kind: &str, id: &str, succeeded: bool) -> Result<(), String> {
    for slug in FLEET {
        super::compare(platform, slug, End::Done).await?;
        let (registered, noted, there) = fleet_migration::versions(platform, slug).await;
        let newest = fleet_migration::NEWEST;
        let whole = there == (noted == newest) && registered <= noted;
        if !whole || (kind == "migrate_fleet" && succeeded && registered != newest) {
            return Err(format!("{slug}: registry {registered}, database {noted}, its table is there: {there}"));
        }
        if kind == "verify_fleet" && there {
            return Err(format!("{slug}: a verification changed it"));
        }
    }
    let registry = platform.platform_client().await;
    let sql = "SELECT count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'pending'), count(*)
               FROM fleet_migration_tenants WHERE operation_id = $1";
    let row = registry.query_one(sql, &[&id.parse::<uuid::Uuid>().unwrap()]).await.unwrap();
    let counts: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if succeeded && counts != (0, 0, 2) {
        return Err(format!("running, pending, all: {counts:?}"));
    }
    Ok(())
}
