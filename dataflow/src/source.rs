//! Where change records come from when they do not come from the primary store's process.
//!
//! [`kafka::KafkaSource`] reads them from `millrace.changes`; [`KafkaChanges`] joins it with a scan of the primary store
//! to the [`Bootstrap`] port that the dataflow starts from (architecture D5: the primary store only to bootstrap).

pub mod kafka;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use schemas::{
    port::{Bootstrap, BootstrapScan, ChangeSource, SourceError},
    position::Frontier,
};

use kafka::KafkaSource;

/// Scans from the primary store, changes from Kafka.
pub struct KafkaChanges {
    scan: Arc<dyn Bootstrap>,
    brokers: String,
}

impl KafkaChanges {
    /// Joins the scans of `scan` with the changes that `brokers` (`host:port`, separated by commas) hold.
    #[must_use]
    pub fn new(scan: Arc<dyn Bootstrap>, brokers: &str) -> Self {
        Self { scan, brokers: brokers.to_owned() }
    }
}

impl fmt::Debug for KafkaChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaChanges").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

#[async_trait]
impl Bootstrap for KafkaChanges {
    async fn scan(&self) -> Result<Box<dyn BootstrapScan>, SourceError> {
        self.scan.scan().await
    }

    async fn changes(&self, from: Frontier) -> Result<Box<dyn ChangeSource>, SourceError> {
        Ok(Box::new(KafkaSource::open(&self.brokers, from)?))
    }

    async fn identity(&self) -> Result<String, SourceError> {
        self.scan.identity().await
    }

    /// Kafka keeps the log for the time that its topic says.
    async fn kept(&self, _: &str, _: &Frontier) -> Result<(), SourceError> {
        Ok(())
    }
}
