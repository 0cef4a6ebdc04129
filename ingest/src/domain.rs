//! Domains as requests see them: found in microseconds, re-read every ten seconds (forms-and-cases.md §1).
//!
//! The control database says in which database a domain lives; that never changes, so it is asked once, and a domain goes on
//! while the control database is away.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use schemas::{id::DomainId, port::Clock, position::LaneId};

use crate::{
    error::{DatabaseError, WriteError},
    shard::shard_of,
    store::{
        databases::Databases,
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
    databases: Databases,
    clock: Arc<dyn Clock>,
    lanes: u16,
    /// Numbers of the databases that domains live in. A lock because requests look; never held over an await.
    homes: Mutex<HashMap<DomainId, u16>>,
    /// Domains with the time they were read. A lock because each request looks once; never held over an await.
    known: Mutex<HashMap<DomainId, (i64, Domain)>>,
}

impl Domains {
    /// Over the domains of all databases, each with so many lanes.
    pub(crate) fn new(databases: Databases, clock: Arc<dyn Clock>, lanes: u16) -> Self {
        Self { databases, clock, lanes, homes: Mutex::default(), known: Mutex::default() }
    }

    /// Connections to the database that a domain lives in, if the domain exists.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn home(&self, name: &DomainId) -> Result<Option<Pool>, DatabaseError> {
        let known = self.homes.lock().get(name).copied();
        let number = match known {
            Some(number) => number,
            None => {
                let control = self.databases.control().get().await?;
                let Some(number) = domains::home(&control, name).await? else { return Ok(None) };
                let mut homes = self.homes.lock();
                if homes.len() >= CAPACITY {
                    homes.clear();
                }
                homes.insert(name.clone(), number);
                number
            }
        };
        self.databases.get(number).cloned().map(Some)
    }

    /// Connections to the database that a domain lives in.
    ///
    /// # Errors
    /// [`WriteError::UnknownDomain`] and whatever the database says.
    pub(crate) async fn pool(&self, name: &DomainId) -> Result<Pool, WriteError> {
        self.home(name).await?.ok_or_else(|| WriteError::UnknownDomain(name.to_string()))
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
        let found = match self.home(name).await? {
            Some(home) => domains::find(&*home.get().await?, name).await?,
            None => None,
        };
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

    /// Makes a domain, in the database and the lane that its shard chooses; true if it is new. Done again, it completes
    /// what was left half done.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn create(&self, name: &DomainId) -> Result<bool, DatabaseError> {
        let control = self.databases.control().get().await?;
        let database = domains::settle(&control, name, self.databases.map().database_of(name)).await?;
        drop(control);
        let lane = LaneId { database, writer: shard_of(name.as_str()) % self.lanes.max(1) };
        domains::create(&*self.databases.get(database)?.get().await?, name, lane).await
    }

    /// Changes a domain's settings, here at once and in other processes within ten seconds; false if there is no such
    /// domain.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub(crate) async fn change(&self, name: &DomainId, settings: &Settings) -> Result<bool, DatabaseError> {
        let Some(home) = self.home(name).await? else { return Ok(false) };
        let changed = domains::change(&*home.get().await?, name, settings).await?;
        self.known.lock().remove(name);
        Ok(changed)
    }
}
