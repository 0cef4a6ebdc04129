//! Where a new domain lives: 1,024 logical shards by the hash of its name, mapped to databases (architecture D3, D13).

pub(crate) mod status;

use std::{collections::BTreeMap, fmt, str::FromStr};

use schemas::id::{DomainId, document_hash};
use serde::{Deserialize, Serialize};

use crate::config::IngestConfig;

/// Logical shards of an installation, for domains and (inside a database) for documents. Fixed for good: rows hold numbers
/// below it (forms-and-cases.md §17).
pub(crate) const SHARDS: u16 = 1024;

/// The shard of a domain or document: the low bits of CommCare's document hash of its id.
#[must_use]
pub(crate) fn shard_of(id: &str) -> u16 {
    u16::try_from(document_hash(id.as_bytes()) % u32::from(SHARDS)).unwrap_or_default()
}

/// The shard of a document, as rows hold it.
#[must_use]
pub(crate) fn document_shard(id: &str) -> i16 {
    i16::try_from(shard_of(id)).unwrap_or_default()
}

/// Neighbouring shards, both ends included; as text `341-682`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ShardRange {
    first: u16,
    last: u16,
}

impl ShardRange {
    /// The last shard.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// True if both have a shard.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    const fn contains(self, shard: u16) -> bool {
        self.first <= shard && shard <= self.last
    }
}

impl fmt::Display for ShardRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The text is not a range of shards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of shards (expected two numbers below 1024, the smaller one first, such as `512-1023`)")]
pub struct ShardRangeError(String);

impl FromStr for ShardRange {
    type Err = ShardRangeError;
    fn from_str(text: &str) -> Result<Self, ShardRangeError> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let range = Self { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? };
            (range.first <= range.last).then_some(range)
        };
        parse().ok_or_else(|| ShardRangeError(text.to_owned()))
    }
}

impl TryFrom<String> for ShardRange {
    type Error = ShardRangeError;
    fn try_from(text: String) -> Result<Self, ShardRangeError> {
        text.parse()
    }
}

impl From<ShardRange> for String {
    fn from(range: ShardRange) -> Self {
        range.to_string()
    }
}

/// Which database new domains go to.
#[derive(Clone, Debug)]
pub(crate) struct ShardMap {
    ranges: Vec<(ShardRange, u16)>,
    /// The database of every other shard.
    rest: u16,
    pins: BTreeMap<DomainId, u16>,
}

impl ShardMap {
    /// The map of a configuration.
    pub(crate) fn of(config: &IngestConfig) -> Self {
        let ranges = config.databases.iter().map(|database| (database.shards, database.number)).collect();
        Self { ranges, rest: config.database, pins: config.pins.clone() }
    }

    /// Number of the database that a new domain of this name goes to.
    pub(crate) fn database_of(&self, domain: &DomainId) -> u16 {
        let by_shard = || {
            let shard = shard_of(domain.as_str());
            self.ranges.iter().find(|(range, _)| range.contains(shard)).map_or(self.rest, |(_, number)| *number)
        };
        self.pins.get(domain).copied().unwrap_or_else(by_shard)
    }

    /// The shards that a database claims, in order; what nobody claims belongs to the first one.
    pub(crate) fn shards_of(&self, number: u16) -> Vec<ShardRange> {
        let mut found = Vec::new();
        for shard in 0..SHARDS {
            let owner =
                self.ranges.iter().find(|(range, _)| range.contains(shard)).map_or(self.rest, |(_, owner)| *owner);
            if owner != number {
                continue;
            }
            match found.last_mut() {
                Some(ShardRange { last, .. }) if *last + 1 == shard => *last = shard,
                _ => found.push(ShardRange { first: shard, last: shard }),
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DatabaseConfig;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        assert_eq!("341-682".parse::<ShardRange>().unwrap().to_string(), "341-682");
        for bad in ["", "5", "7-3", "a-b", "-1-4"] {
            assert!(bad.parse::<ShardRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_domain_goes_where_its_shard_or_its_pin_says() {
        let database =
            |number, shards: &str| DatabaseConfig { number, url: String::new(), shards: shards.parse().unwrap() };
        let pinned = DomainId::new("pinned").unwrap();
        let map = ShardMap::of(&IngestConfig {
            databases: vec![database(1, "100-199"), database(5, "300-1023")],
            pins: BTreeMap::from([(pinned.clone(), 5)]),
            ..IngestConfig::default()
        });
        let shown = |number| map.shards_of(number).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!([shown(0), shown(1), shown(5)], ["0-99 200-299", "100-199", "300-1023"]);
        assert_eq!(map.database_of(&pinned), 5);
        for name in ["a", "b", "c", "demo", "north", "south"] {
            let shard = shard_of(name);
            let expected = if (100..200).contains(&shard) {
                1
            } else if shard >= 300 {
                5
            } else {
                0
            };
            assert_eq!(map.database_of(&DomainId::new(name).unwrap()), expected, "{name} in {shard}");
        }
    }

    #[test]
    fn documents_hash_to_commcares_shards() {
        let vectors =
            [("0", 586), ("1", 978), ("2", 903), ("1000", 13), ("foo-case-id", 374), ("7H46J37FGH3", 334), ("", 215)];
        for (id, shard) in vectors {
            assert_eq!(shard_of(id), shard, "{id}");
        }
    }
}
