//! Pools of tokio-postgres connections, made one way for clusters and tenants.

use std::time::Duration;

use deadpool_postgres::{Connect, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error};

use crate::secrets::{Connector, DatabaseUrl, connector};

impl Connect for Connector {
    fn connect(&self, config: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        let config = config.clone();
        async move { Connector::connect(self, &config).await }.boxed()
    }
}

/// How long a caller waits for a free connection.
const WAIT: Duration = Duration::from_secs(5);
/// How long opening a connection may take.
const CREATE: Duration = Duration::from_secs(5);

/// A pool that opens connections when they are needed, and no earlier.
pub fn build(url: &DatabaseUrl, max_size: usize) -> anyhow::Result<Pool> {
    // `Fast` trusts a connection that is not known to be closed: a query to test it would cost every request a
    // round trip, and proves nothing about the next moment.
    let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_connect(url.to_tokio_postgres(), connector(url)?, config);
    Ok(Pool::builder(manager)
        .max_size(max_size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(CREATE))
        .build()?)
}
