//! Millrace's nouns, and the ports between its crates.
//!
//! Every other crate speaks in these types: who ([`id`]), when ([`position`], [`time`]), what changed ([`change`]),
//! the document itself ([`doc`]), what readers see ([`row`], [`table`]), and what a dataflow says of itself ([`inside`]). The sibling crates `ingest`, `dataflow`
//! and `query` never import one another; they meet through the traits in [`port`].
//!
//! Never here: sockets, SQL clients, dataflow, or behaviour beyond parsing and formatting.

pub mod change;
pub mod credentials;
pub mod definition;
pub mod difference;
pub mod doc;
pub mod error;
pub mod id;
pub mod inside;
pub mod kafka;
pub mod port;
pub mod position;
pub mod row;
pub mod sample;
pub mod sql;
pub mod table;
pub mod time;
