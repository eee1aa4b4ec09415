//! `freehold cluster`.

use freehold::api::platform::{Cluster, ClusterList};
use secrecy::ExposeSecret;
use serde_json::json;

use super::Context;
use crate::args::ClusterCommand;
use crate::failure::Failure;
use crate::input;
use crate::output::{instant, optional, table};

const CLUSTERS: [&str; 3] = ["platform", "v1", "clusters"];

/// Carries out a command.
pub async fn run(context: &Context<'_>, command: ClusterCommand) -> Result<(), Failure> {
    let client = context.client()?;
    match command {
        ClusterCommand::Add { name, admin_url_file } => {
            let admin_url = input::secret_from_file(&admin_url_file, "admin URL")?;
            let body = json!({ "name": name, "admin_url": admin_url.expose_secret() });
            let cluster: Cluster = client.post(&CLUSTERS, &body).await?;
            context.output.data(&cluster, || listed(std::slice::from_ref(&cluster)))
        }
        ClusterCommand::Set { name, admin_url_file } => {
            let admin_url = input::secret_from_file(&admin_url_file, "admin URL")?;
            let body = json!({ "admin_url": admin_url.expose_secret() });
            let [platform, version, clusters] = CLUSTERS;
            let cluster: Cluster = client.put(&[platform, version, clusters, &name], &body).await?;
            context.output.data(&cluster, || listed(std::slice::from_ref(&cluster)))
        }
        ClusterCommand::List => {
            let list: ClusterList = client.get(&CLUSTERS, &[]).await?;
            context.output.data(&list, || listed(&list.items))
        }
    }
}

fn listed(clusters: &[Cluster]) -> String {
    let rows: Vec<Vec<String>> = clusters
        .iter()
        .map(|cluster| {
            vec![
                cluster.name.clone(),
                format!("{}:{}", cluster.host, cluster.port),
                cluster.tenants.to_string(),
                optional(cluster.template_schema_version),
                instant(cluster.created_at),
            ]
        })
        .collect();
    table(
        &["name", "address", "tenants", "template schema", "created"],
        &rows,
        "No clusters are registered: freehold cluster add NAME --admin-url-file FILE",
    )
}
