//! The sample program: maternal health, the domain of `millrace demo`.
//!
//! Its views are the documents a report builder would write; nothing in the code knows their properties.

/// Domain of the sample program.
pub const DOMAIN: &str = "demo";

/// UCR data sources (id, JSON document).
pub const DATA_SOURCES: &[(&str, &str)] = &[
    ("pregnancies", include_str!("../sample/data-sources/pregnancies.json")),
    ("visit_items", include_str!("../sample/data-sources/visit_items.json")),
    ("visits", include_str!("../sample/data-sources/visits.json")),
    ("children", include_str!("../sample/data-sources/children.json")),
    ("workers", include_str!("../sample/data-sources/workers.json")),
    ("places", include_str!("../sample/data-sources/places.json")),
];

/// Aggregate views (id, JSON document).
pub const AGGREGATE_VIEWS: &[(&str, &str)] = &[
    ("visits_by_month", include_str!("../sample/views/visits_by_month.json")),
    ("districts", include_str!("../sample/views/districts.json")),
];
