//! Reads over the Postgres protocol, on connections of their own: row counts, and what moved where.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use schemas::{port::Secret, sample};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, error::SqlState};

/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Where and as whom to read.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Host name or address.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// The domain, which is the database's name.
    pub(crate) domain: String,
    /// User name.
    pub(crate) username: String,
    /// Password.
    pub(crate) password: Secret,
}

impl Target {
    /// Opens a connection.
    ///
    /// # Errors
    /// The server cannot be reached or refuses the credentials.
    pub(crate) async fn connect(&self) -> anyhow::Result<Client> {
        let mut config = Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .dbname(&self.domain)
            .user(&self.username)
            .password(&self.password.0)
            .application_name("millrace load")
            .connect_timeout(CONNECT);
        let (client, connection) = config
            .connect(NoTls)
            .await
            .with_context(|| format!("could not connect to the Postgres protocol at {}:{}", self.host, self.port))?;
        // Ends by itself when the client is dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a Postgres connection ended");
            }
        });
        Ok(client)
    }
}

/// Names of the sample program's tables in SQL.
pub(crate) fn tables() -> Vec<String> {
    let ucr = sample::DATA_SOURCES.iter().map(|(id, _)| format!("ucr.{id}"));
    ucr.chain(sample::AGGREGATE_VIEWS.iter().map(|(id, _)| format!("views.{id}"))).collect()
}

/// Rows of each table, all in one snapshot.
///
/// # Errors
/// The statement fails, for example because a table is still being built.
pub(crate) async fn count_rows(client: &Client) -> anyhow::Result<BTreeMap<String, u64>> {
    let counts: Vec<String> =
        tables().iter().map(|table| format!("SELECT '{table}' AS name, count(*) AS rows FROM {table}")).collect();
    let mut rows = BTreeMap::new();
    for [name, count] in pairs(client, &counts.join(" UNION ALL ")).await? {
        rows.insert(name, count.parse().with_context(|| format!("`{count}` is not a number of rows"))?);
    }
    Ok(rows)
}

/// Documents that some view could not evaluate.
///
/// # Errors
/// The statement fails.
pub(crate) async fn count_view_errors(client: &Client) -> anyhow::Result<u64> {
    let rows = match pairs(client, "SELECT 'errors' AS name, count(*) AS rows FROM system.view_errors").await {
        Ok(rows) => rows,
        // The table comes with the first error.
        Err(error) if undefined_table(&error) => return Ok(0),
        Err(error) => return Err(error),
    };
    let [_, count] = rows.into_iter().next().context("no answer to a count")?;
    count.parse().with_context(|| format!("`{count}` is not a number of rows"))
}

fn undefined_table(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<tokio_postgres::Error>();
    cause.and_then(tokio_postgres::Error::code) == Some(&SqlState::UNDEFINED_TABLE)
}

/// Where every worker and place is: (id, id of the place it is in).
///
/// # Errors
/// The statement fails.
pub(crate) async fn whereabouts(client: &Client) -> anyhow::Result<BTreeMap<String, String>> {
    let sql = "SELECT doc_id, location_id FROM ucr.workers UNION ALL SELECT doc_id, parent_id FROM ucr.places";
    Ok(pairs(client, sql).await?.into_iter().map(|[id, inside]| (id, inside)).collect())
}

async fn pairs(client: &Client, sql: &str) -> anyhow::Result<Vec<[String; 2]>> {
    let messages = client.simple_query(sql).await.with_context(|| format!("could not run `{sql}`"))?;
    let pair = |message| match message {
        SimpleQueryMessage::Row(row) => Some([0, 1].map(|at| row.get(at).unwrap_or_default().to_owned())),
        _ => None,
    };
    Ok(messages.into_iter().filter_map(pair).collect())
}
