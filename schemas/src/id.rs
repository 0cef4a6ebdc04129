//! Identities. One newtype each, one parser each; ids that come from phones are text, not always UUIDs.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize};

/// Longest id accepted from a device, in characters (forms-and-cases.md §7.3, §9.1).
pub const MAX_ID_CHARS: usize = 255;

/// Why a text is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing there.
    #[error("{kind} must not be empty")]
    Empty {
        /// Which identity was being parsed.
        kind: &'static str,
    },
    /// More than [`MAX_ID_CHARS`] characters.
    #[error("{kind} is longer than {MAX_ID_CHARS} characters")]
    TooLong {
        /// Which identity was being parsed.
        kind: &'static str,
    },
    /// A character that this identity does not allow.
    #[error("{kind} `{text}` holds a character that is not allowed (expected {allowed})")]
    BadCharacter {
        /// Which identity was being parsed.
        kind: &'static str,
        /// The text given.
        text: String,
        /// What would have been accepted.
        allowed: &'static str,
    },
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:expr, $allowed:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses and checks the text.
            ///
            /// # Errors
            /// [`IdError`] when it is empty, too long or holds a character that is not allowed.
            pub fn new(text: &str) -> Result<Self, IdError> {
                if text.is_empty() {
                    return Err(IdError::Empty { kind: $kind });
                }
                if text.len() > MAX_ID_CHARS && text.chars().count() > MAX_ID_CHARS {
                    return Err(IdError::TooLong { kind: $kind });
                }
                let allowed: fn(char) -> bool = $check;
                if !text.chars().all(allowed) {
                    return Err(IdError::BadCharacter { kind: $kind, text: text.to_owned(), allowed: $allowed });
                }
                Ok(Self(Arc::from(text)))
            }

            /// Borrows the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Borrows the text in a form whose copies share it.
            #[must_use]
            pub fn shared(&self) -> &Arc<str> {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = IdError;
            fn try_from(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

/// Device ids may hold anything but control characters.
fn printable(c: char) -> bool {
    !c.is_control()
}

/// Letters, digits, `-`, `_`, `.`.
const fn slug(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

text_id!(
    /// A project space's name: lower-case letters, digits, `-`, `_` and `.`.
    DomainId, "domain", |c| slug(c) && !c.is_ascii_uppercase(), "lower-case letters, digits, `-`, `_`, `.`"
);
text_id!(
    /// The id of any document: a form, case, user, location or view definition.
    DocId, "document id", printable, "no control characters"
);
text_id!(
    /// A form's instance id.
    FormId, "form id", printable, "no control characters"
);
text_id!(
    /// A case's id, unique over all domains.
    CaseId, "case id", printable, "no control characters"
);
text_id!(
    /// A user's id (mobile worker or web user).
    UserId, "user id", printable, "no control characters"
);
text_id!(
    /// The id of a data source or aggregate view: letters, digits, `-`, `_`, `.`.
    ViewName, "view id", slug, "letters, digits, `-`, `_`, `.`"
);

impl From<&FormId> for DocId {
    fn from(id: &FormId) -> Self {
        Self(Arc::clone(&id.0))
    }
}

impl From<&CaseId> for DocId {
    fn from(id: &CaseId) -> Self {
        Self(Arc::clone(&id.0))
    }
}

impl From<&UserId> for DocId {
    fn from(id: &UserId) -> Self {
        Self(Arc::clone(&id.0))
    }
}

/// CommCare's document hash: the low 32 bits of SipHash-2-4 with a zero key over the id's bytes.
///
/// Text that is a UUID is hashed as text here; a caller that holds a typed UUID passes its 16 bytes.
/// Source: forms-and-cases.md §17.
#[must_use]
pub fn document_hash(id: &[u8]) -> u32 {
    use std::hash::Hasher;
    let mut hasher = siphasher::sip::SipHasher24::new();
    hasher.write(id);
    let bytes = hasher.finish().to_le_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// What a mobile worker's name ends with when it is sent in full.
pub const WORKER_SUFFIX: &str = ".commcarehq.org";

/// A mobile worker's name in full: `name@domain.commcarehq.org`, however it was written.
#[must_use]
pub fn worker_login(name: &str, domain: &DomainId) -> String {
    let short = name.split('@').next().unwrap_or_default();
    format!("{short}@{domain}{WORKER_SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_hash_matches_the_contract_vectors() {
        for (id, hash) in [
            ("0", 882_925_130),
            ("1", 3_146_605_522),
            ("2", 2_896_194_439),
            ("1000", 1_021_997_069),
            ("foo-case-id", 1_454_829_942),
            ("7H46J37FGH3", 4_167_528_782),
            ("ad38211be256653bceac8e2156475666", 1_926_866_963),
            ("", 1_937_178_839),
        ] {
            assert_eq!(document_hash(id.as_bytes()), hash, "{id}");
        }
        let uuid = [0x40, 0x37, 0x24, 0xef, 0x9f, 0xe1, 0x41, 0xf2, 0x90, 0x83, 0x63, 0x91, 0x8c, 0x62, 0xc2, 0xff];
        assert_eq!(document_hash(&uuid), 1_415_444_857);
    }

    #[test]
    fn ids_refuse_what_they_must() {
        assert!(DomainId::new("demo-1").is_ok());
        assert!(matches!(DomainId::new("Demo"), Err(IdError::BadCharacter { .. })));
        assert!(matches!(CaseId::new(""), Err(IdError::Empty { .. })));
        assert!(matches!(CaseId::new(&"é".repeat(256)), Err(IdError::TooLong { .. })));
        assert!(CaseId::new(&"é".repeat(255)).is_ok());
        assert!(CaseId::new("a\u{0}b").is_err());
    }
}
