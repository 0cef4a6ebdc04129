//! Domains: their lane and settings.

use schemas::{id::DomainId, position::LaneId};
use serde::Deserialize;
use tokio_postgres::{Client, Row, types::Type};

use crate::{error::DatabaseError, submit::Rules};

/// What every request to a domain needs to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Domain {
    /// Where its changes go.
    pub lane: LaneId,
    /// True if every submission has to be authenticated.
    pub secure_submissions: bool,
    /// What forms may do there.
    pub rules: Rules,
}

/// CommCare's names of the settings that [`Rules`] holds.
pub(crate) const FLAGS: [&str; 3] = [CLOSE_EXTENSIONS, CASE_ATTACHMENTS, SORT_OUT_OF_ORDER];
const CLOSE_EXTENSIONS: &str = "EXTENSION_CASES_SYNC_ENABLED";
const CASE_ATTACHMENTS: &str = "MM_CASE_PROPERTIES";
const SORT_OUT_OF_ORDER: &str = "SORT_OUT_OF_ORDER_FORM_SUBMISSIONS_SQL";

impl Rules {
    fn of_flags(flags: &[&str]) -> Self {
        Self {
            close_extensions: flags.contains(&CLOSE_EXTENSIONS),
            case_attachments: flags.contains(&CASE_ATTACHMENTS),
            sort_out_of_order: flags.contains(&SORT_OUT_OF_ORDER),
        }
    }

    /// Names of the settings that are on.
    pub(crate) fn flags(self) -> Vec<&'static str> {
        let all = [
            (self.close_extensions, CLOSE_EXTENSIONS),
            (self.case_attachments, CASE_ATTACHMENTS),
            (self.sort_out_of_order, SORT_OUT_OF_ORDER),
        ];
        all.into_iter().filter(|(on, _)| *on).map(|(_, name)| name).collect()
    }
}

/// What a domain's settings become; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// True if every submission has to be authenticated.
    pub secure_submissions: Option<bool>,
    /// Names out of [`FLAGS`], all that are on.
    pub flags: Option<Vec<String>>,
}

impl Settings {
    /// The first flag that is not known, if there is one.
    pub(crate) fn unknown_flag(&self) -> Option<&str> {
        self.flags.iter().flatten().map(String::as_str).find(|flag| !FLAGS.contains(flag))
    }
}

/// Number of the database that a domain lives in; asked of the control database.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn home(control: &Client, name: &DomainId) -> Result<Option<u16>, DatabaseError> {
    let sql = "SELECT database FROM domain_homes WHERE domain = $1";
    let row = control.query_typed_opt(sql, &[(&name.as_str(), Type::TEXT)]).await?;
    row.map(|row| number(&row)).transpose()
}

/// Settles where a domain lives, unless that is settled; returns the number of its database.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn settle(control: &Client, name: &DomainId, database: u16) -> Result<u16, DatabaseError> {
    let row = control
        .query_typed_one(
            "INSERT INTO domain_homes (domain, database) VALUES ($1, $2) \
             ON CONFLICT (domain) DO UPDATE SET database = domain_homes.database RETURNING database",
            &[(&name.as_str(), Type::TEXT), (&i32::from(database), Type::INT4)],
        )
        .await?;
    number(&row)
}

/// Numbers of all databases that domains live in; asked of the control database.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn all_homes(control: &Client) -> Result<Vec<u16>, DatabaseError> {
    let rows = control.query_typed("SELECT DISTINCT database FROM domain_homes ORDER BY database", &[]).await?;
    rows.iter().map(number).collect()
}

fn number(row: &Row) -> Result<u16, DatabaseError> {
    u16::try_from(row.try_get::<_, i32>(0)?).map_err(|error| DatabaseError::damaged("domain_homes", error))
}

/// Reads a domain.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn find(client: &Client, name: &DomainId) -> Result<Option<Domain>, DatabaseError> {
    let row = client
        .query_typed_opt(
            "SELECT lane, secure_submissions, flags FROM domains WHERE name = $1",
            &[(&name.as_str(), Type::TEXT)],
        )
        .await?;
    let domain = row.map(|row| {
        let flags: Vec<&str> = row.try_get(2)?;
        let lane = LaneId::from_i32(row.try_get(0)?);
        Ok(Domain { lane, secure_submissions: row.try_get(1)?, rules: Rules::of_flags(&flags) })
    });
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

/// Changes a domain's settings; false if there is no such domain.
///
/// # Errors
/// [`DatabaseError`].
pub(crate) async fn change(client: &Client, name: &DomainId, settings: &Settings) -> Result<bool, DatabaseError> {
    let changed = client
        .execute_typed(
            "UPDATE domains SET secure_submissions = coalesce($2, secure_submissions), flags = coalesce($3, flags) \
             WHERE name = $1",
            &[
                (&name.as_str(), Type::TEXT),
                (&settings.secure_submissions, Type::BOOL),
                (&settings.flags, Type::TEXT_ARRAY),
            ],
        )
        .await?;
    Ok(changed == 1)
}
