//! Change records in, live columnar tables out: one timely dataflow for every view of every domain.
//!
//! The way of a change: a source yields records ([`source`], or ingest's memory and outbox) → the `clock` binds them to
//! a tick, `peers` hand it to every worker → `document` holds the post-images → `evaluate` runs every row view that applies, with what `relation`
//! knows of other documents → `rows` and `table` write columns → `aggregate` follows → `snapshot` publishes the tick.
//! Views come and go through `catalog`.
//!
//! Never here: HTTP, Postgres (it comes through the [`schemas::port::Bootstrap`] port), DataFusion.

mod aggregate;
mod catalog;
mod checkpoint;
mod clock;
mod config;
mod document;
mod engine;
mod error;
mod evaluate;
mod meter;
mod metrics;
mod peers;
mod provenance;
mod relation;
mod rows;
mod snapshot;
pub mod source;
mod table;
mod view;
mod worker;

pub use config::{DataflowConfig, Workers, WorkersError};
pub use engine::Dataflow;
pub use error::{DataflowError, TableError};
