//! Domains as requests see them: found in microseconds, re-read every ten seconds (forms-and-cases.md §1).

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use schemas::{
    id::{DomainId, document_hash},
    port::Clock,
    position::LaneId,
};

use crate::{
    error::{DatabaseError, WriteError},
    store::{
        domains::{self, Domain, Settings},
        pool::Pool,
    },
};

/// How long settings are believed, in microseconds.
const FRESH: i64 = 10_000_000;
/// Most domains remembered.
const CAPACITY: usize = 10_000;

/// Finds domains.
#[derive(Debug)]
pub(crate) struct Domains {
    pool: Pool,
    clock: Arc<dyn Clock>,
    database: u16,
    lanes: u16,
    /// Domains with the time they were read. A lock because each request looks once; never held over an await.
    known: Mutex<HashMap<DomainId, (i64, Domain)>>,
}

impl Domains {
    /// Over the domains of one database.
    pub(crate) fn new(pool: Pool, clock: Arc<dyn Clock>, database: u16, lanes: u16) -> Self {
        Self { pool, clock, database, lanes, known: Mutex::default() }
    }

    /// The domain, if it exists.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn find(&self, name: &DomainId) -> Result<Option<Domain>, DatabaseError> {
        let now = self.clock.now_micros();
        if let Some((read_at, domain)) = self.known.lock().get(name)
            && now.saturating_sub(*read_at) < FRESH
        {
            return Ok(Some(*domain));
        }
        let found = domains::find(&*self.pool.get().await?, name).await?;
        let mut known = self.known.lock();
        match found {
            Some(domain) => {
                if known.len() >= CAPACITY {
                    known.clear();
                }
                known.insert(name.clone(), (now, domain));
            }
            None => {
                known.remove(name);
            }
        }
        Ok(found)
    }

    /// The domain.
    ///
    /// # Errors
    /// [`WriteError::UnknownDomain`] and whatever the database says.
    pub(crate) async fn get(&self, name: &DomainId) -> Result<Domain, WriteError> {
        self.find(name).await?.ok_or_else(|| WriteError::UnknownDomain(name.to_string()))
    }

    /// Makes a domain, in the lane that its name's hash chooses; true if it is new.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn create(&self, name: &DomainId) -> Result<bool, DatabaseError> {
        let writer = document_hash(name.as_str().as_bytes()) % u32::from(self.lanes.max(1));
        let lane = LaneId { database: self.database, writer: u16::try_from(writer).unwrap_or_default() };
        domains::create(&*self.pool.get().await?, name, lane).await
    }

    /// Changes a domain's settings, here at once and in other processes within ten seconds; false if there is no such
    /// domain.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn change(&self, name: &DomainId, settings: &Settings) -> Result<bool, DatabaseError> {
        let changed = domains::change(&*self.pool.get().await?, name, settings).await?;
        self.known.lock().remove(name);
        Ok(changed)
    }
}
