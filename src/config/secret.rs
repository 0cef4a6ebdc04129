//! Secrets among the settings: read like text, shown by nothing.

use schemas::port::Secret;
use serde::{Deserialize, Deserializer, Serializer, de::Error};
use serde_json::Value;

/// Writes `***` for a secret that is set.
pub(super) fn serialize<S: Serializer>(secret: &Secret, to: S) -> Result<S::Ok, S::Error> {
    let Secret(text) = secret;
    to.serialize_str(if text.is_empty() { "" } else { "***" })
}

/// Reads text, and refuses anything else without quoting it as serde would.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
    match Value::deserialize(from)? {
        Value::String(text) => Ok(Secret(text)),
        _ => Err(D::Error::custom("not text; write it in quotes, in an environment variable too")),
    }
}
