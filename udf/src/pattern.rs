//! Regular expressions that specifications bring along: compiled once per thread, bounded in number and size.
//!
//! The dialect is Rust's, which lacks look-around and back-references; such patterns count as invalid.

use std::cell::RefCell;

use hashbrown::HashMap;
use regex::{Regex, RegexBuilder};

/// Patterns remembered per thread.
const REMEMBERED: usize = 256;
/// Bytes a compiled pattern may take.
const SIZE_LIMIT: usize = 1 << 20;

thread_local! {
    static COMPILED: RefCell<HashMap<Box<str>, Option<Regex>>> = RefCell::default();
}

/// The compiled pattern; `None` if it is not one.
pub(crate) fn compiled(pattern: &str) -> Option<Regex> {
    COMPILED.with_borrow_mut(|known| {
        if let Some(found) = known.get(pattern) {
            return found.clone();
        }
        let regex = RegexBuilder::new(pattern).size_limit(SIZE_LIMIT).build().ok();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(pattern.into(), regex.clone());
        regex
    })
}
