//! Forms in: authenticate, parse, apply and commit, with the change record in the same transaction.
//!
//! [`Ingest::open`] connects, migrates and starts the lanes' writers; [`Ingest::routes`] is what devices and scripts talk
//! to; [`Ingest::bootstrap`] and [`Ingest::authenticator`] are the ports through which `dataflow` and `query` meet it.
//! Never here: timely, DataFusion, or the state of a view.

mod accounts;
mod auth;
mod blob;
mod bootstrap;
pub mod casexml;
pub mod changelog;
mod config;
mod definition;
pub mod devicelog;
mod domain;
pub mod error;
mod http;
mod metrics;
mod rate;
mod registry;
pub mod restore;
mod shard;
mod store;
pub mod submit;
pub mod xform;

use std::{sync::Arc, time::Duration};

use object_store::ObjectStore;
use schemas::{
    id::{CaseId, DomainId, FormId},
    port::{Authenticator, Bootstrap, Clock, ViewReader},
    position::Position,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use accounts::{AccountError, Accounts};
pub use blob::BlobError;
pub use changelog::relay::Relay;
pub use config::{DatabaseConfig, IngestConfig};
pub use definition::{Definition, DefinitionError};
pub use error::{DatabaseError, StartError, WriteError};
pub use shard::status::{DatabaseState, DatabaseStatus, LaneStatus, ReaderStatus};

use crate::{
    auth::AccountAuthenticator,
    blob::Blobs,
    bootstrap::PrimaryStore,
    changelog::{
        handover::Handover,
        lane,
        outbox::{self, Retention},
        relay::Log,
    },
    domain::Domains,
    metrics::IngestMetrics,
    rate::Limiter,
    store::{
        cases,
        databases::{Database, Databases},
        migrate,
        pool::Use,
    },
    submit::{Act, Operation, lanes::Lanes},
};

/// How often the outbox is trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(5);

/// How every database of a configuration stands: shards, size, lanes and their readers. Nothing is changed.
///
/// # Errors
/// [`StartError::Config`] if the configuration cannot work.
pub async fn databases(config: &IngestConfig) -> Result<Vec<DatabaseStatus>, StartError> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(StartError::Config(problems));
    }
    Ok(shard::status::status(&Databases::of(config)?).await)
}

/// The ingest service.
#[derive(Debug)]
pub struct Ingest {
    config: IngestConfig,
    databases: Databases,
    clock: Arc<dyn Clock>,
    handover: Arc<Handover>,
    lanes: Arc<Lanes>,
    domains: Arc<Domains>,
    auth: Arc<AccountAuthenticator>,
    blobs: Blobs,
    limiter: Limiter,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Ingest {
    /// Connects, brings every database to this release's schema, and starts the lanes' writers and the background tasks.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(
        config: IngestConfig,
        blobs: Arc<dyn ObjectStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, StartError> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(StartError::Config(problems));
        }
        let databases = Databases::of(&config)?;
        for database in databases.all() {
            prepare(database, config.lanes)
                .await
                .map_err(|error| StartError::OneDatabase { number: database.number, error: Box::new(error) })?;
        }

        let metrics = IngestMetrics::new();
        let handover = Arc::new(Handover::new(metrics.handover_missed.clone()));
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let lanes = Arc::new(Lanes::start(&config, &databases, &handover, &clock, &metrics, &tasks));
        let domains = Arc::new(Domains::new(databases.clone(), Arc::clone(&clock), config.lanes));
        let auth =
            AccountAuthenticator::open(databases.clone(), Arc::clone(&domains), Arc::clone(&clock), &config).await?;
        let auth = Arc::new(auth);
        let blobs = Blobs::new(blobs, databases.clone(), Arc::clone(&domains), Arc::clone(&clock), metrics);
        let delay = Duration::from_millis(config.mover_delay_ms);
        for database in databases.all() {
            tasks.spawn(blobs.clone().run_mover(database.pool.clone(), delay, stop.clone()));
            tasks.spawn(trim(database.clone(), config.clone(), Arc::clone(&clock), stop.clone()));
        }
        let orphan_age = Duration::from_secs(config.orphan_hours.saturating_mul(3600));
        tasks.spawn(blobs.clone().run_sweep(orphan_age, stop.clone()));
        let limiter = Limiter::new(config.rate_limits.clone(), Arc::clone(&domains));
        Ok(Arc::new(Self { config, databases, clock, handover, lanes, domains, auth, blobs, limiter, tasks, stop }))
    }

    /// The endpoints that write: receiver, users, locations, definitions. `views` shows how definitions are doing.
    pub fn routes(self: &Arc<Self>, views: Arc<dyn ViewReader>) -> axum::Router {
        http::routes(Arc::clone(self), views)
    }

    /// Checks credentials, for every protocol.
    pub fn authenticator(self: &Arc<Self>) -> Arc<dyn Authenticator> {
        Arc::clone(&self.auth) as Arc<dyn Authenticator>
    }

    /// Present documents and the log behind them: from memory as they are committed, from the outbox otherwise.
    pub fn bootstrap(self: &Arc<Self>) -> Arc<dyn Bootstrap> {
        Arc::new(PrimaryStore {
            databases: self.databases.clone(),
            handover: Arc::clone(&self.handover),
            capacity: self.config.handover,
            clock: Arc::clone(&self.clock),
        })
    }

    /// Carries the change log to the Kafka brokers (`host:port`, separated by commas) until it is shut down.
    #[must_use]
    pub fn relay(&self, brokers: &str) -> Relay {
        let log = |database: &Database| Log {
            database: database.clone(),
            handover: Arc::clone(&self.handover),
            capacity: self.config.handover,
        };
        Relay::start(self.databases.all().map(log), brokers, &self.clock)
    }

    /// Sets up domains and accounts.
    #[must_use]
    pub fn accounts(&self) -> Accounts {
        Accounts {
            databases: self.databases.clone(),
            lanes: Arc::clone(&self.lanes),
            domains: Arc::clone(&self.domains),
            auth: Arc::clone(&self.auth),
        }
    }

    /// The bytes of a form as they were received, from Postgres or the object store; `None` if the domain has no such form.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn form_xml(&self, domain: &DomainId, form_id: &FormId) -> Result<Option<bytes::Bytes>, BlobError> {
        self.blobs.form_xml(domain, form_id).await
    }

    /// The bytes and media type of a form's attachment, from Postgres or the object store; `None` if there is none of that
    /// name.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn attachment(
        &self,
        domain: &DomainId,
        form_id: &FormId,
        name: &str,
    ) -> Result<Option<(bytes::Bytes, Option<String>)>, BlobError> {
        self.blobs.attachment(domain, form_id, name).await
    }

    /// Deletes objects older than `age` that nothing points to; returns how many. It also happens by itself every hour.
    ///
    /// # Errors
    /// [`BlobError`].
    pub async fn sweep_orphans(&self, age: Duration) -> Result<u64, BlobError> {
        self.blobs.sweep(age).await
    }

    /// Ids of a domain's cases behind `after`, in order, at most `limit`.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn case_ids(
        &self,
        domain: &DomainId,
        after: Option<&CaseId>,
        limit: u32,
    ) -> Result<Vec<CaseId>, DatabaseError> {
        match self.domains.home(domain).await? {
            Some(home) => cases::ids(&*home.get().await?, domain, after, limit).await,
            None => Ok(Vec::new()),
        }
    }

    /// Computes a case again from its stored transactions; `by` is the user id of who asked. Returns where the change record is.
    ///
    /// # Errors
    /// [`WriteError`]; nothing changed then.
    pub async fn rebuild_case(&self, domain: &DomainId, case_id: &CaseId, by: &str) -> Result<Position, WriteError> {
        let lane = self.domains.get(domain).await?.lane;
        let operation = Operation { domain: domain.clone(), by: by.to_owned(), act: Act::Rebuild(case_id.clone()) };
        self.lanes.operate(lane, operation).await
    }

    /// Takes no more writes, stores what is queued, and ends all tasks.
    pub async fn shutdown(&self) {
        self.lanes.close();
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Brings a database to this release's schema and makes its lanes.
async fn prepare(database: &Database, lanes: u16) -> Result<(), StartError> {
    let connection = database.pool.address().connect(Use::Long).await?;
    migrate::migrate(&connection).await?;
    for lane in database.lanes(lanes) {
        lane::ensure(&connection, lane).await?;
    }
    Ok(())
}

/// Trims the outbox of a database behind its readers until `stop`.
async fn trim(database: Database, config: IngestConfig, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let retention = Retention { keep: config.outbox_keep, limit: config.outbox_limit };
    while stop.run_until_cancelled(tokio::time::sleep(TRIM_EVERY)).await.is_some() {
        for lane in database.lanes(config.lanes) {
            let trimmed = async {
                let client = database.pool.get().await?;
                outbox::trim(&client, lane, retention, clock.now_micros()).await
            };
            if let Err(error) = trimmed.await {
                tracing::warn!(%error, %lane, "the outbox could not be trimmed");
            }
        }
    }
}
