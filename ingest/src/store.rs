//! Postgres: connections, schema version, and the statements of each table.
//!
//! Row mapping and statements only; the rules live in [`crate::submit`]. Every statement that reads a domain's data is
//! scoped to the domain, except look-ups by form or case id, which are unique over all domains.

pub(crate) mod cases;
pub(crate) mod compress;
pub(crate) mod databases;
pub(crate) mod directory;
pub(crate) mod domains;
pub(crate) mod forms;
pub(crate) mod keys;
pub(crate) mod ledgers;
pub(crate) mod migrate;
pub(crate) mod pool;
