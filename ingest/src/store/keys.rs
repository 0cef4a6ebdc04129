//! Ids as statements take them: with the shards that their rows lie in, so that one partition each is asked.

use tokio_postgres::types::ToSql;

use crate::shard::document_shard;

/// Ids of forms or cases and their shards.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys<'a> {
    ids: Vec<&'a str>,
    shards: Vec<i16>,
}

impl<'a> FromIterator<&'a str> for Keys<'a> {
    fn from_iter<I: IntoIterator<Item = &'a str>>(ids: I) -> Self {
        let ids: Vec<&str> = ids.into_iter().collect();
        Self { shards: ids.iter().map(|id| document_shard(id)).collect(), ids }
    }
}

impl Keys<'_> {
    /// True if there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The ids and the shards, the first parameters of a statement with [`wanted!`].
    pub(crate) fn parameters(&self) -> [&(dyn ToSql + Sync); 2] {
        [&self.ids, &self.shards]
    }
}

/// The rows of [`Keys`] in a `FROM` clause, as `w(id, shard)`: parameters `$1` and `$2`.
macro_rules! wanted {
    () => {
        "unnest($1::text[], $2::smallint[]) AS w(id, shard)"
    };
}
pub(crate) use wanted;
