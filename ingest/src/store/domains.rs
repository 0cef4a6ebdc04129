//! Domains: their lane and settings.

use schemas::{id::DomainId, position::LaneId};
use tokio_postgres::{Client, types::Type};

use crate::error::DatabaseError;

/// What every request to a domain needs to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Domain {
    /// Where its changes go.
    pub lane: LaneId,
    /// True if every submission has to be authenticated.
    pub secure_submissions: bool,
}

/// Reads a domain.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn find(client: &Client, name: &DomainId) -> Result<Option<Domain>, DatabaseError> {
    let row = client
        .query_typed_opt(
            "SELECT lane, secure_submissions FROM domains WHERE name = $1",
            &[(&name.as_str(), Type::TEXT)],
        )
        .await?;
    let domain =
        row.map(|row| Ok(Domain { lane: LaneId::from_i32(row.try_get(0)?), secure_submissions: row.try_get(1)? }));
    domain.transpose()
}

/// Makes a domain unless it is there; true if it is new.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn create(client: &Client, name: &DomainId, lane: LaneId) -> Result<bool, DatabaseError> {
    let made = client
        .execute_typed(
            "INSERT INTO domains (name, lane) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            &[(&name.as_str(), Type::TEXT), (&lane.to_i32(), Type::INT4)],
        )
        .await?;
    Ok(made == 1)
}

/// Sets whether every submission has to be authenticated; false if there is no such domain.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn set_secure_submissions(
    client: &Client,
    name: &DomainId,
    secure: bool,
) -> Result<bool, DatabaseError> {
    let changed = client
        .execute_typed(
            "UPDATE domains SET secure_submissions = $2 WHERE name = $1",
            &[(&name.as_str(), Type::TEXT), (&secure, Type::BOOL)],
        )
        .await?;
    Ok(changed == 1)
}
