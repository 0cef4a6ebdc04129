//! Builds the parts and joins them through the ports; the only place that knows everyone.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use async_trait::async_trait;
use dataflow::{Dataflow, source::KafkaChanges};
use ingest::{Ingest, changelog::relay::Relay};
use query::QueryState;
use schemas::{
    id::DomainId,
    port::{Bootstrap, CheckpointStore, SystemClock, ViewReader, WaitError},
    position::Position,
    table::Snapshot,
};

use crate::{
    config::{Config, Role, Roles},
    objects,
    postgres::{Postgres, PostgresOptions},
};

/// Everything that runs besides the listeners.
#[derive(Debug)]
pub(crate) struct Parts {
    /// The private Postgres, unless the database is someone else's.
    pub(crate) postgres: Option<Postgres>,
    /// The way in; also holds accounts and the change log.
    pub(crate) ingest: Arc<Ingest>,
    /// Published snapshots; empty and never ready without the `dataflow` role.
    pub(crate) views: Arc<dyn ViewReader>,
    /// What both SQL front doors share.
    pub(crate) query: Arc<QueryState>,
    relay: Option<Relay>,
    dataflow: Option<Arc<Dataflow>>,
}

/// Starts the parts in order: object store, Postgres, ingest, relay, dataflow.
///
/// # Errors
/// What could not be started; whatever had been started is stopped again.
pub(crate) async fn build(config: &Config) -> anyhow::Result<Parts> {
    let blobs = objects::open_tried(config).await?;
    let checkpoints = objects::open_checkpoints(config)?;
    let mut ingest_config = config.ingest.clone();
    let postgres = match config.embedded_postgres() {
        true => {
            let postgres = Postgres::start(&postgres_options(config)).await?;
            ingest_config.database_url = postgres.url();
            Some(postgres)
        }
        false => None,
    };
    let ingest = match open_ingest(ingest_config, blobs).await {
        Ok(ingest) => ingest,
        Err(error) => {
            if let Some(postgres) = postgres {
                postgres.stop().await;
            }
            return Err(error);
        }
    };
    let relay = match config.kafka_brokers() {
        Some(brokers) if config.roles.has(Role::Relay) => Some(ingest.relay(&brokers)),
        _ => None,
    };
    let dataflow = config.roles.has(Role::Dataflow).then(|| start_dataflow(config, &ingest, checkpoints));
    let views: Arc<dyn ViewReader> = match &dataflow {
        Some(dataflow) => Arc::<Dataflow>::clone(dataflow),
        None => Arc::new(NoViews),
    };
    let query =
        Arc::new(QueryState { views: Arc::clone(&views), auth: ingest.authenticator(), config: config.query.clone() });
    Ok(Parts { postgres, ingest, views, query, relay, dataflow })
}

/// Reads the change log from memory where ingest runs in the same process, from Kafka where it does not and there is
/// one, and from the outbox otherwise.
fn start_dataflow(config: &Config, ingest: &Arc<Ingest>, checkpoints: Arc<dyn CheckpointStore>) -> Arc<Dataflow> {
    let store = ingest.bootstrap();
    let source: Arc<dyn Bootstrap> = match config.kafka_brokers() {
        Some(brokers) if !config.roles.has(Role::Ingest) => Arc::new(KafkaChanges::new(store, &brokers)),
        _ => store,
    };
    Dataflow::start(config.dataflow.clone(), source, Some(checkpoints), Arc::new(SystemClock))
}

/// Opens the way in.
///
/// # Errors
/// The database cannot be reached or is not ours to use.
pub(crate) async fn open_ingest(
    config: ingest::IngestConfig,
    blobs: Arc<dyn object_store::ObjectStore>,
) -> anyhow::Result<Arc<Ingest>> {
    Ingest::open(config, blobs, Arc::new(SystemClock)).await.context("could not start ingest")
}

/// How the private Postgres of this configuration is made.
pub(crate) fn postgres_options(config: &Config) -> PostgresOptions {
    let configured = &config.postgres.binaries;
    PostgresOptions {
        data_dir: config.data_dir.clone(),
        binaries: (*configured != PathBuf::new()).then(|| configured.clone()),
        shared_buffers_mb: config.postgres.shared_buffers_mb.0.get(),
        max_wal_mb: config.postgres.max_wal_mb.0.get(),
    }
}

impl Parts {
    /// The HTTP routes of the roles that run.
    pub(crate) fn routes(&self, roles: &Roles) -> axum::Router {
        let mut router = axum::Router::new();
        if roles.has(Role::Ingest) {
            router = router.merge(self.ingest.routes(Arc::clone(&self.views)));
        }
        if roles.has(Role::Query) {
            router = router.merge(query::routes(Arc::clone(&self.query)));
        }
        router
    }

    /// Stops the parts: the lanes drain, the dataflow ends, Postgres flushes and ends.
    pub(crate) async fn stop(self) {
        self.ingest.shutdown().await;
        if let Some(relay) = self.relay {
            relay.shutdown().await;
        }
        if let Some(dataflow) = self.dataflow {
            dataflow.shutdown().await;
        }
        if let Some(postgres) = self.postgres {
            postgres.stop().await;
        }
    }
}

/// Stands in where no dataflow runs: nothing is published, and a wait ends at its deadline.
#[derive(Debug)]
struct NoViews;

#[async_trait]
impl ViewReader for NoViews {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::default()
    }

    fn ready(&self) -> bool {
        false
    }

    async fn wait_for(&self, _: &DomainId, wanted: Position, waited: Duration) -> Result<Arc<Snapshot>, WaitError> {
        tokio::time::sleep(waited).await;
        Err(WaitError::Timeout { wanted, waited, visible: "nothing: this process has no dataflow".to_owned() })
    }
}
