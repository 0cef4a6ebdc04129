//! The change log: one counter row per lane, the outbox, and its readers (architecture D4).
//!
//! A record gets its number just before the statements of its transaction and the counter's lock is held until the
//! commit, so sequence order is commit order and `sequence > last` never skips. A committed record reaches readers of this
//! process through memory and everyone else through the table.

pub(crate) mod brokers;
pub(crate) mod handover;
pub(crate) mod lane;
pub mod outbox;
pub mod relay;
pub(crate) mod tail;
pub(crate) mod topics;
