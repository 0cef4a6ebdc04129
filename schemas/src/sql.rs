//! The Postgres schema: forward-only migrations, in order.

/// A migration: its number, its name, and its statements.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Dense from 1.
    pub number: i32,
    /// File name without number and ending.
    pub name: &'static str,
    /// Statements, run in one transaction.
    pub statements: &'static str,
}

/// Every migration of a database, in order.
pub const MIGRATIONS: &[Migration] = &[
    Migration { number: 1, name: "foundation", statements: include_str!("../migrations/0001_foundation.sql") },
    Migration { number: 2, name: "history", statements: include_str!("../migrations/0002_history.sql") },
    Migration { number: 3, name: "orphans", statements: include_str!("../migrations/0003_orphans.sql") },
    Migration { number: 4, name: "documents", statements: include_str!("../migrations/0004_documents.sql") },
    Migration { number: 5, name: "homes", statements: include_str!("../migrations/0005_homes.sql") },
    Migration { number: 6, name: "shards", statements: include_str!("../migrations/0006_shards.sql") },
    Migration { number: 7, name: "partitions", statements: include_str!("../migrations/0007_partitions.sql") },
    Migration { number: 8, name: "web_users", statements: include_str!("../migrations/0008_web_users.sql") },
    Migration { number: 9, name: "installation", statements: include_str!("../migrations/0009_installation.sql") },
];
