//! What is open, for people.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::breaker::Trouble;
use super::server::DatabaseServer;
use super::shares::Share;
use super::{TenantDatabases, TenantDbError};
use crate::api::connections::BreakerReason;
use crate::ids::{Slug, TenantId};

/// What this server has open.
#[derive(Debug)]
pub struct Report {
    /// This server.
    pub server_id: Uuid,
    /// Each database server.
    pub servers: Vec<ServerReport>,
    /// Each open breaker.
    pub breakers: Vec<BreakerReport>,
}

/// What is open to one database server.
#[derive(Debug)]
pub struct ServerReport {
    /// Which one.
    pub name: DatabaseServer,
    /// What all Freehold servers together may have.
    pub budget: usize,
    /// What this one may have.
    pub granted: usize,
    /// What it has.
    pub open: usize,
    /// How many of those are idle.
    pub idle: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Each tenant's part.
    pub tenants: Vec<TenantReport>,
    /// Each Freehold server's part.
    pub shares: Vec<Share>,
}

/// What one tenant has.
#[derive(Debug)]
pub struct TenantReport {
    /// The tenant.
    pub tenant_id: TenantId,
    /// Its slug, if this server knows it.
    pub slug: Option<Slug>,
    /// Its connections.
    pub open: usize,
    /// How many of those are idle.
    pub idle: usize,
    /// Its requests that wait.
    pub waiting: usize,
}

/// An open breaker.
#[derive(Debug)]
pub struct BreakerReport {
    /// The tenant.
    pub tenant_id: TenantId,
    /// Its slug.
    pub slug: Slug,
    /// The database server.
    pub server: DatabaseServer,
    /// What failed.
    pub reason: BreakerReason,
    /// When it is tried again.
    pub retry_after: Duration,
}

impl TenantDatabases {
    /// What is open, and what may be.
    ///
    /// # Errors
    /// If the platform's database does not say how the budgets are divided.
    pub async fn report(&self) -> Result<Report, TenantDbError> {
        let common = self.common();
        let mut shares = common.shares.all().await?;
        let servers: Vec<_> = common.servers.iter().map(|server| Arc::clone(&server)).collect();
        let mut reports = Vec::with_capacity(servers.len());
        for server in servers {
            let count = server.count();
            let name = server.name.to_string();
            let (of_this, others) = shares.into_iter().partition(|share: &Share| share.database_server == name);
            shares = others;
            let tenants = count.tenants.into_iter().map(|usage| TenantReport {
                tenant_id: usage.key,
                slug: common.pools.get(&usage.key).map(|pool| pool.slug()),
                open: usage.open,
                idle: usage.idle,
                waiting: usage.waiting,
            });
            reports.push(ServerReport {
                budget: common.budget_of(&server.name),
                name: server.name.clone(),
                granted: count.capacity,
                open: count.open,
                idle: count.idle,
                waiting: count.waiting,
                tenants: tenants.collect(),
                shares: of_this,
            });
        }
        reports.sort_by_key(|report| report.name.to_string());
        let breakers = common.pools.iter().filter_map(|pool| {
            let (trouble, retry_after) = pool.open_breaker()?;
            let reason = match trouble {
                Trouble::Connect => BreakerReason::Connect,
                Trouble::Authentication => BreakerReason::Authentication,
            };
            let server = pool.server().name.clone();
            Some(BreakerReport { tenant_id: pool.id, slug: pool.slug(), server, reason, retry_after })
        });
        let breakers = breakers.collect();
        Ok(Report { server_id: common.shares.id(), servers: reports, breakers })
    }
}
