//! Project-specific expression types (ucr.md §10): one file here and one line in the table.

mod upper_case;

use super::{Make, expressions, make};

expressions! {
    "upper_case" => upper_case::UpperCase,
}
