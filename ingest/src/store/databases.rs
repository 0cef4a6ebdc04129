//! The databases of an installation: one holds accounts and says where each domain lives, every one holds domains.

use std::sync::Arc;

use schemas::position::LaneId;
use tokio::time::Duration;

use super::pool::{Address, Pool};
use crate::{config::IngestConfig, error::DatabaseError, shard::ShardMap};

/// One database.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    /// Its number in the configuration.
    pub number: u16,
    /// Connections for short statements.
    pub pool: Pool,
    /// True of the database of accounts that are in no domain's.
    pub is_control: bool,
}

impl Database {
    /// Its lanes: some for domains, and the one of web users.
    pub(crate) fn lanes(&self, of_domains: u16) -> impl Iterator<Item = LaneId> + use<> {
        let database = self.number;
        let control = self.is_control.then_some(LaneId::control(database));
        (0..of_domains).map(move |writer| LaneId { database, writer }).chain(control)
    }
}

/// All databases that this process is configured with.
#[derive(Clone, Debug)]
pub(crate) struct Databases {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    control: Database,
    further: Vec<Database>,
    map: ShardMap,
}

impl Databases {
    /// The databases of a configuration; nothing is connected yet.
    ///
    /// # Errors
    /// An address is none.
    pub(crate) fn of(config: &IngestConfig) -> Result<Self, tokio_postgres::Error> {
        let lock_wait = Duration::from_millis(config.lock_wait_ms);
        let database = |number, url: &str, is_control| {
            let pool = Pool::new(Address::parse(url)?, config.read_connections, lock_wait);
            Ok(Database { number, pool, is_control })
        };
        let control = database(config.database, &config.database_url, true)?;
        let further = config.databases.iter().map(|other| database(other.number, &other.url, false));
        let further = further.collect::<Result<_, _>>()?;
        Ok(Self { inner: Arc::new(Inner { control, further, map: ShardMap::of(config) }) })
    }

    /// The database of accounts that are in no domain's: web users, their keys, and where domains live.
    pub(crate) fn control(&self) -> &Pool {
        &self.inner.control.pool
    }

    /// The lane of web users.
    pub(crate) fn control_lane(&self) -> LaneId {
        LaneId::control(self.inner.control.number)
    }

    /// All of them, the control database first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Database> {
        std::iter::once(&self.inner.control).chain(&self.inner.further)
    }

    /// The database of a number.
    ///
    /// # Errors
    /// [`DatabaseError::NotConfigured`] if this process does not know it.
    pub(crate) fn get(&self, number: u16) -> Result<&Pool, DatabaseError> {
        let found = self.all().find(|database| database.number == number);
        found.map(|database| &database.pool).ok_or(DatabaseError::NotConfigured(number))
    }

    /// Where new domains go.
    pub(crate) fn map(&self) -> &ShardMap {
        &self.inner.map
    }
}
