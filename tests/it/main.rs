//! Integration tests: one binary, one module per subject.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends where its expectation does, also in the functions that tests share"
)]

mod bad_input;
mod bench;
#[allow(dead_code, reason = "shared with the tests of the Kafka source, which use all of it")]
#[path = "../kafka/broker.rs"]
mod broker;
mod builds;
mod crash;
mod directory;
mod feeds;
mod forms_contract;
mod import;
mod manifests;
mod names;
mod objects;
#[path = "../oracle/oracle.rs"]
mod oracle;
mod pipeline;
#[allow(dead_code, reason = "shared with the tests of ingest, which use all of it")]
#[path = "../postgres/postgres.rs"]
mod postgres;
mod relay;
#[path = "../s3/store.rs"]
mod s3;
mod server;
mod shards;
mod transfers;
mod ucr;
mod whole;
mod workload;
