//! The ingest service against a real Postgres, started for this run and thrown away with it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper of a test may fail like the test itself")]

mod accounts;
mod bootstrap;
mod databases;
mod flows;
mod lanes;
mod migration;
mod operations;
mod outage;
#[path = "../../../tests/postgres/postgres.rs"]
mod postgres;
mod receiver;
mod reorder;
mod schemes;
mod service;
