//! Names of tables and columns (ucr.md §3.8). Users know them; they must be the original's to the letter.

use sha1::{Digest, Sha1};

/// Longest table name, in characters.
const TABLE_LENGTH: usize = 50;
/// Longest column name, in characters.
const COLUMN_LENGTH: usize = 63;
const HASH_LENGTH: usize = 8;

fn sha1_hex(text: &str) -> String {
    Sha1::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn short_hash(text: &str) -> String {
    sha1_hex(text).chars().take(HASH_LENGTH).collect()
}

/// Rewrites to ASCII the way Python's `unicode_escape` does.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match (c, u32::from(c)) {
            ('\\', _) => out.push_str("\\\\"),
            ('\n', _) => out.push_str("\\n"),
            ('\r', _) => out.push_str("\\r"),
            ('\t', _) => out.push_str("\\t"),
            (_, 0x20..=0x7e) => out.push(c),
            (_, code @ 0..=0xff) => out.push_str(&format!("\\x{code:02x}")),
            (_, code @ 0x100..=0xffff) => out.push_str(&format!("\\u{code:04x}")),
            (_, code) => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out
}

/// Which end of a name survives when it is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The beginning.
    Start,
    /// The end.
    End,
}

/// Escapes a name and, if it is longer than `length`, cuts it and adds a hash of the whole.
#[must_use]
pub fn truncate(name: &str, length: usize, keep: Keep) -> String {
    let name = escape(name);
    if name.len() <= length {
        return name;
    }
    let kept = length.saturating_sub(HASH_LENGTH + 1);
    // Escaped names are ASCII: bytes are characters.
    let part: String = match keep {
        Keep::Start => name.chars().take(kept).collect(),
        Keep::End => name.chars().skip(name.len() - kept).collect(),
    };
    format!("{part}_{}", short_hash(&name))
}

/// The table of a data source.
#[must_use]
pub fn table_name(domain: &str, table_id: &str) -> String {
    let (domain, table_id) = (escape(domain), escape(table_id));
    let hash = short_hash(&format!("{}_{table_id}", sha1_hex(&domain)));
    truncate(&format!("ucr_{domain}_{table_id}_{hash}"), TABLE_LENGTH, Keep::Start)
}

/// The column of a column id.
#[must_use]
pub fn column_name(column_id: &str) -> String {
    truncate(column_id, COLUMN_LENGTH, Keep::End)
}

/// The column id that the report builder gives to a question path.
#[must_use]
pub fn question_column_id(path: &str, suffix: Option<&str>) -> String {
    let (front, last) = path.rsplit_once('/').unwrap_or(("", path));
    let hash = short_hash(&format!("{}_{last}", sha1_hex(front)));
    let mut name = format!("{}_{hash}", path.replace('/', "_"));
    if let Some(suffix) = suffix {
        name.push('_');
        name.push_str(suffix);
    }
    let extra = name.chars().count().saturating_sub(COLUMN_LENGTH);
    name.chars().skip(extra).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_original() {
        assert_eq!(table_name("domain", "table"), "ucr_domain_table_7a7a33ec");
        assert_eq!(table_name("domain", "unicodeè"), "ucr_domain_unicode\\\\xe8_8aece1af");
        assert_eq!(
            table_name("this_is_a_long_domain", "and_a_long_table_name"),
            "ucr_this_is_a_long_domain_and_a_long_tabl_3509038f"
        );
        assert_eq!(column_name("short"), "short");
        assert_eq!(column_name(&"x".repeat(64)).len(), 63);
        assert_eq!(question_column_id("its/a_trap", None), "its_a_trap_4ece46cb");
        assert_eq!(question_column_id("its/a/path", Some("string")), "its_a_path_dab095d5_string");
    }
}
