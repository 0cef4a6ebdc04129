//! The UCR language (User Configurable Reports): data source documents to tables, changed documents to rows.
//!
//! [`DataSource::compile`] reads a definition once and lists everything wrong with it; [`DataSource::evaluate`] is then a
//! pure function of a document, a stamp, the time, and what [`Related`] finds. Inside: values ([`value`]), conversions
//! ([`coerce`]), expressions (`expr`), filters ([`filter`]), indicators ([`indicator`]).
//!
//! Never here: sockets, clocks, randomness, look-ups of its own. The contract is `docs/reference/ucr.md`; module headers
//! name its sections.

pub mod aggregate_view;
pub mod coerce;
pub mod context;
pub mod data_source;
mod date;
pub mod error;
mod expr;
pub mod filter;
pub mod indicator;
mod jsonpath;
pub mod names;
mod pattern;
pub mod plan;
mod python;
mod registry;
mod spec;
pub mod transform;
pub mod value;

pub use context::{Context, NothingRelated, Related, Relation};
pub use data_source::{DataSource, Gate};
pub use error::{EvalError, SpecErrors, SpecProblem};
pub use registry::{NameKind, Registry};
pub use spec::Named;
pub use value::Value;

/// Names of every expression type that definitions may use, project-specific ones included.
pub fn expression_types() -> impl Iterator<Item = &'static str> {
    expr::type_names()
}
