//! Settings of the ingest service. Each field says its unit and its default.

use std::{collections::BTreeMap, fmt};

use schemas::id::DomainId;
use serde::{Deserialize, Serialize};

use crate::shard::{SHARDS, ShardRange};

/// Settings of the ingest service.
#[derive(Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IngestConfig {
    /// Postgres to store in, as a URL (`postgres://user@host/name`) or key-value text (`host=/run/pg user=millrace`).
    pub database_url: String,
    /// Number of this database among those of the installation; part of every receipt.
    pub database: u16,
    /// Further databases as `{ number = 1, url = "postgres://…", shards = "512-1023" }`: domains are spread by the hash of
    /// their name over 1,024 shards, and this database keeps every shard that none of them names. Where a domain lives is
    /// decided once, when it is created. Web users and their keys are always in the database of `database_url`. Default none.
    pub databases: Vec<DatabaseConfig>,
    /// Databases of domains that are not to follow the shards, by number, as `{ "some-domain" = 1 }`. Default none.
    pub pins: BTreeMap<DomainId, u16>,
    /// Lanes of the change log in each database. A domain keeps the lane it was created in. Default 1.
    pub lanes: u16,
    /// Postgres connections that write for one lane: one fills its group while the other flushes. Default 2.
    pub connections_per_lane: usize,
    /// Connections for everything that is not the write path: credentials, definitions, the log's readers. Default 6.
    pub read_connections: usize,
    /// Most submissions in one commit. Default 128.
    pub max_group: usize,
    /// Submissions that may wait in a lane; the next one is answered 429. Default 1024.
    pub queue: usize,
    /// Largest form, in bytes, after decompression. Default 10 MB.
    pub max_form_bytes: usize,
    /// Largest attachment, in bytes. Default 15 MB.
    pub max_attachment_bytes: usize,
    /// Largest request with all its parts, in bytes, after decompression. Default 64 MB.
    pub max_request_bytes: usize,
    /// Memory that bodies above a megabyte may take at the same time, in megabytes; more of them wait. Default 128.
    pub body_memory_mb: u32,
    /// Attachments above this many bytes go to the object store before the commit, others ride in it. Default 64 kB.
    pub inline_attachment_bytes: usize,
    /// Longest wait for a form or case that another writer holds, in milliseconds; then 423. Default 5000.
    pub lock_wait_ms: u64,
    /// Believe the header `X-Submit-Time` as the time of receipt. For loading recorded submissions. Default off.
    pub trust_submit_time: bool,
    /// Groups of committed records that wait for an in-process reader; beyond it the reader reads the outbox. Default 64.
    pub handover: usize,
    /// Committed records kept in the outbox even if every reader has them. Default 50,000.
    pub outbox_keep: u64,
    /// Records after which the outbox no longer waits for its slowest reader. Default 5,000,000.
    pub outbox_limit: u64,
    /// Age after which raw XML moves to the object store, in milliseconds. Default 2000.
    pub mover_delay_ms: u64,
    /// Age after which an object that no form or case points to is deleted, in hours. Default 24.
    pub orphan_hours: u64,
    /// Seconds that verified credentials are remembered. Default 300.
    pub credential_seconds: u64,
    /// Keep what HTTP digest authentication needs of each new password: a hash that is as good as the password to whoever
    /// reads the account table. Phones on Java ME and some scripts need it. Default on.
    pub digest: bool,
    /// Rate limits of submissions. They hold a domain back only while the process as a whole is over its limit and the domain
    /// over its own share.
    pub rate_limits: RateLimitConfig,
}

/// A database besides the first.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseConfig {
    /// Its number, which never changes: it is part of every receipt.
    pub number: u16,
    /// Its address, like `database_url`.
    pub url: String,
    /// Shards whose new domains live there.
    pub shards: ShardRange,
}

impl fmt::Debug for DatabaseConfig {
    /// Leaves out the address, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseConfig")
            .field("number", &self.number)
            .field("shards", &self.shards)
            .finish_non_exhaustive()
    }
}

/// Rate limits of submissions (platform.md §11.2).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimitConfig {
    /// Whether the limits are enforced. Default off.
    pub enforced: bool,
    /// Longest wait of a submission for room, in milliseconds; then 429. Default 15,000.
    pub longest_wait_ms: u64,
    /// Limits of forms.
    pub forms: Share,
    /// Limits of changed cases.
    pub case_updates: Share,
}

/// Limits of one kind of work.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// A day's share of each active mobile worker; the other windows follow from it.
    pub per_worker_day: f64,
    /// Share of a domain besides its workers': a second's, a minute's, an hour's, a day's, a week's.
    pub per_domain: [f64; 5],
    /// Limits of the whole process, at which shares begin to count: in the same windows.
    pub global: [f64; 5],
}

/// Stands for no limit in a window; TOML knows no better.
const UNLIMITED: f64 = 1e15;

impl Default for RateLimitConfig {
    fn default() -> Self {
        Self {
            enforced: false,
            longest_wait_ms: 15_000,
            forms: Share {
                per_worker_day: 46.0,
                per_domain: [1.0, 10.0, 30.0, 50.0, 100.0],
                global: [30.0, 400.0, 17_000.0, UNLIMITED, UNLIMITED],
            },
            case_updates: Share {
                per_worker_day: 460.0,
                per_domain: [10.0, 100.0, 300.0, 500.0, 1000.0],
                global: [300.0, 4_000.0, 170_000.0, UNLIMITED, UNLIMITED],
            },
        }
    }
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            database_url: "postgres://localhost/millrace".to_owned(),
            database: 0,
            databases: Vec::new(),
            pins: BTreeMap::new(),
            lanes: 1,
            connections_per_lane: 2,
            read_connections: 6,
            max_group: 128,
            queue: 1024,
            max_form_bytes: 10 * 1024 * 1024,
            max_attachment_bytes: 15 * 1024 * 1024,
            max_request_bytes: 64 * 1024 * 1024,
            body_memory_mb: 128,
            inline_attachment_bytes: 64 * 1024,
            lock_wait_ms: 5000,
            trust_submit_time: false,
            handover: 64,
            outbox_keep: 50_000,
            outbox_limit: 5_000_000,
            mover_delay_ms: 2000,
            orphan_hours: 24,
            credential_seconds: 300,
            digest: true,
            rate_limits: RateLimitConfig::default(),
        }
    }
}

impl IngestConfig {
    /// Every reason why these settings cannot work, empty if they can.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let positive = [
            ("lanes", usize::from(self.lanes)),
            ("connections_per_lane", self.connections_per_lane),
            ("read_connections", self.read_connections),
            ("max_group", self.max_group),
            ("queue", self.queue),
            ("max_form_bytes", self.max_form_bytes),
            ("handover", self.handover),
            // An attachment waits in the object store for its form's commit.
            ("orphan_hours", usize::try_from(self.orphan_hours).unwrap_or(usize::MAX)),
        ];
        for (name, value) in positive {
            if value == 0 {
                problems.push(format!("{name} must be at least 1"));
            }
        }
        if let Err(error) = self.database_url.parse::<tokio_postgres::Config>() {
            problems.push(format!("database_url is not a Postgres address: {error}"));
        }
        self.placement_problems(&mut problems);
        problems
    }

    /// What is wrong with the map of shards to databases.
    fn placement_problems(&self, problems: &mut Vec<String>) {
        let mut numbers = vec![self.database];
        let mut taken: Vec<&DatabaseConfig> = Vec::new();
        for database in &self.databases {
            let number = database.number;
            if let Err(error) = database.url.parse::<tokio_postgres::Config>() {
                problems.push(format!("databases: the url of database {number} is not a Postgres address: {error}"));
            }
            if numbers.contains(&number) {
                problems.push(format!("databases: there are two databases with number {number}"));
            }
            if database.shards.last() >= SHARDS {
                problems.push(format!("databases: shards of database {number} end at {} at most", SHARDS - 1));
            }
            if let Some(other) = taken.iter().find(|other| other.shards.overlaps(database.shards)) {
                let other = other.number;
                problems.push(format!("databases: databases {other} and {number} claim some of the same shards"));
            }
            numbers.push(number);
            taken.push(database);
        }
        for (domain, number) in &self.pins {
            if !numbers.contains(number) {
                problems
                    .push(format!("pins: domain `{domain}` is pinned to database {number}, which is not configured"));
            }
        }
    }
}

impl fmt::Debug for IngestConfig {
    /// Leaves out the database's address, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IngestConfig")
            .field("database", &self.database)
            .field("databases", &self.databases)
            .field("lanes", &self.lanes)
            .field("connections_per_lane", &self.connections_per_lane)
            .field("max_group", &self.max_group)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_work_and_every_problem_is_listed() {
        assert_eq!(IngestConfig::default().problems(), Vec::<String>::new());
        let broken =
            IngestConfig { lanes: 0, queue: 0, database_url: "nonsense=1".to_owned(), ..IngestConfig::default() };
        assert_eq!(broken.problems().len(), 3);
    }

    #[test]
    fn shards_belong_to_one_database_each() {
        let database = |number, shards: &str| DatabaseConfig {
            number,
            url: "postgres://u:hunter2@h/d".to_owned(),
            shards: shards.parse().unwrap(),
        };
        let with = |databases, pins: &[(&str, u16)]| IngestConfig {
            databases,
            pins: pins.iter().map(|(domain, number)| (DomainId::new(domain).unwrap(), *number)).collect(),
            ..IngestConfig::default()
        };
        let good = with(vec![database(1, "341-682"), database(2, "683-1023")], &[("demo", 2)]);
        assert_eq!(good.problems(), Vec::<String>::new());
        assert!(!format!("{good:?}").contains("hunter2"));
        let bad = with(vec![database(0, "0-10"), database(2, "10-1024")], &[("demo", 7)]);
        assert_eq!(bad.problems().len(), 4, "{:?}", bad.problems());
    }

    #[test]
    fn the_password_is_not_printed() {
        let config = IngestConfig { database_url: "postgres://u:hunter2@h/d".to_owned(), ..IngestConfig::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
