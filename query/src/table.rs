//! Live tables as DataFusion tables: a snapshot's segments in, record batches out.

mod provider;
mod pushdown;
mod scan;

pub use provider::LiveTable;
pub use scan::SegmentScan;
