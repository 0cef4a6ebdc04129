//! The ingest service against a real Postgres, started for this run and thrown away with it.

mod accounts;
mod bootstrap;
mod flows;
mod lanes;
mod outage;
mod postgres;
mod receiver;
mod service;
