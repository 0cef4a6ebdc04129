//! Connections to Postgres, and the few that everything outside the write path shares.

use std::{collections::HashMap, ops::Deref, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{Client, Config, NoTls, Statement};

use crate::error::DatabaseError;

/// Longest wait for a connection to be made.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest wait for one of the shared connections.
const CHECK_OUT: Duration = Duration::from_secs(5);

/// Where and how to connect.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    config: Config,
}

/// What a connection is for; decides its limits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    /// Short statements: a lock or a statement that takes long is given up.
    Short {
        /// Longest wait for a lock.
        lock_wait: Duration,
    },
    /// Like [`Use::Short`], and every row is found by its key. Plans are made once, often while tables are still small, and
    /// must not be scans for good then.
    ByKey {
        /// Longest wait for a lock.
        lock_wait: Duration,
    },
    /// Migrations and bootstrap scans.
    Long,
}

/// What leaves the planner no way but by keys.
const BY_KEY: &str = " -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off \
     -c plan_cache_mode=force_generic_plan";

impl Address {
    /// Parses a URL or key-value text.
    ///
    /// # Errors
    /// If it is neither.
    pub(crate) fn parse(url: &str) -> Result<Self, tokio_postgres::Error> {
        let mut config: Config = url.parse()?;
        config.connect_timeout(CONNECT).application_name("millrace");
        Ok(Self { config })
    }

    /// Connects and starts the connection's task, which ends with the client.
    ///
    /// # Errors
    /// [`DatabaseError::Unavailable`] when nobody answers.
    pub(crate) async fn connect(&self, purpose: Use) -> Result<Connection, DatabaseError> {
        let mut config = self.config.clone();
        // An acknowledged form is a flushed form, whatever the server's default.
        let mut options = format!("{} -c synchronous_commit=on", config.get_options().unwrap_or_default());
        if let Use::Short { lock_wait } | Use::ByKey { lock_wait } = purpose {
            options.push_str(&format!(" -c lock_timeout={} -c statement_timeout=60000", lock_wait.as_millis()));
        }
        if let Use::ByKey { .. } = purpose {
            options.push_str(BY_KEY);
        }
        config.options(options.trim());
        let connecting = tokio::time::timeout(CONNECT, config.connect(NoTls));
        let (client, connection) =
            connecting.await.map_err(|_| DatabaseError::Unavailable("connecting took too long".to_owned()))??;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a Postgres connection ended");
            }
        });
        Ok(Connection { client, statements: HashMap::new() })
    }
}

/// A connection that remembers what it has prepared.
pub(crate) struct Connection {
    client: Client,
    statements: HashMap<&'static str, Statement>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

impl Connection {
    /// The statement, prepared on first use.
    ///
    /// # Errors
    /// If the server refuses it.
    pub(crate) async fn statement(&mut self, sql: &'static str) -> Result<Statement, tokio_postgres::Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }
}

impl Deref for Connection {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A few connections for short statements, made when first needed and kept while they live. Transactions on them are
/// written as single statements: a loan that is dropped half-way leaves nothing open.
#[derive(Clone)]
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("free", &self.inner.permits.available_permits()).finish_non_exhaustive()
    }
}

struct Inner {
    address: Address,
    lock_wait: Duration,
    permits: Arc<Semaphore>,
    /// Connections at rest. A lock because take and put are a push and a pop; never held over an await.
    idle: Mutex<Vec<Arc<Client>>>,
}

/// A connection on loan; it goes back when dropped.
pub(crate) struct Loan {
    client: Arc<Client>,
    pool: Arc<Inner>,
    _permit: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loan").field("closed", &self.client.is_closed()).finish_non_exhaustive()
    }
}

impl Deref for Loan {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Pool {
    /// A pool of at most `size` connections.
    pub(crate) fn new(address: Address, size: usize, lock_wait: Duration) -> Self {
        let permits = Arc::new(Semaphore::new(size));
        Self { inner: Arc::new(Inner { address, lock_wait, permits, idle: Mutex::default() }) }
    }

    /// True if both are the same connections.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Where the pool connects to, for connections of other use.
    pub(crate) fn address(&self) -> &Address {
        &self.inner.address
    }

    /// Lends a connection.
    ///
    /// # Errors
    /// [`DatabaseError::Unavailable`] if Postgres is away or all connections stay busy.
    pub(crate) async fn get(&self) -> Result<Loan, DatabaseError> {
        let waiting = tokio::time::timeout(CHECK_OUT, Arc::clone(&self.inner.permits).acquire_owned());
        let permit = waiting
            .await
            .map_err(|_| DatabaseError::Unavailable("all connections are busy".to_owned()))?
            .map_err(|_| DatabaseError::Unavailable("the service is stopping".to_owned()))?;
        let rested = self.take();
        let client = match rested {
            Some(client) => client,
            None => Arc::new(self.inner.address.connect(Use::Short { lock_wait: self.inner.lock_wait }).await?.client),
        };
        Ok(Loan { client, pool: Arc::clone(&self.inner), _permit: permit })
    }

    fn take(&self) -> Option<Arc<Client>> {
        let mut idle = self.inner.idle.lock();
        idle.retain(|client| !client.is_closed());
        idle.pop()
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if !self.client.is_closed() {
            self.pool.idle.lock().push(Arc::clone(&self.client));
        }
    }
}
