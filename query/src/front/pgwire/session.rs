//! What one connection remembers: who it is, and its session variables.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use datafusion::{catalog::SchemaProvider, sql::sqlparser::ast::Statement};
use parking_lot::Mutex;
use schemas::{port::Principal, position::Position};

use super::Shared;
use crate::{
    QueryError,
    catalog::{SEARCH_PATH, Scope},
    engine::{Ask, Engine},
    session::SERVER_VERSION,
};

/// Most session variables that are remembered; clients set a handful.
const MAX_VARIABLES: usize = 64;
/// Longest value of a session variable, bytes.
const MAX_VALUE: usize = 1024;

const WAIT_FOR: &str = "millrace.wait_for";
const TIMEOUT: &str = "statement_timeout";

/// One connection.
pub(super) struct Session {
    shared: Arc<Shared>,
    login: OnceLock<Login>,
    /// Locked for the moment of reading or changing a variable only; statements of a connection come one by one.
    variables: Mutex<Variables>,
}

struct Login {
    principal: Principal,
    user: Arc<str>,
    pg_catalog: Arc<dyn SchemaProvider>,
}

#[derive(Default)]
struct Variables {
    wait_for: Option<Position>,
    timeout: Option<Duration>,
    texts: BTreeMap<String, String>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, login: OnceLock::new(), variables: Mutex::default() }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.shared.engine
    }

    /// Starts the session of an authenticated caller; a session has one.
    ///
    /// # Errors
    /// [`QueryError::Internal`] if the catalogue tables cannot be made.
    pub(super) fn begin(&self, principal: Principal) -> Result<(), QueryError> {
        let pg_catalog = self.engine().pg_catalog(&principal.domain)?;
        let user = Arc::from(principal.username.as_str());
        self.login.get_or_init(|| Login { principal, user, pg_catalog });
        Ok(())
    }

    fn login(&self) -> Result<&Login, QueryError> {
        self.login.get().ok_or_else(|| QueryError::NoCredentials { domain: String::new(), digest: None })
    }

    /// What the next statement sees; waits for the session's receipt if there is one.
    ///
    /// # Errors
    /// As [`Engine::scope`].
    pub(super) async fn scope(&self) -> Result<Arc<Scope>, QueryError> {
        let login = self.login()?;
        let receipt = self.variables.lock().wait_for;
        let pg_catalog = Some(Arc::clone(&login.pg_catalog));
        self.engine().scope(&login.principal.domain, &login.user, receipt, pg_catalog).await
    }

    /// The limits of the next statement.
    pub(super) fn ask(&self) -> Ask {
        let config = self.engine().config();
        let limit = config.statement_timeout();
        let timeout = self.variables.lock().timeout.map_or(limit, |timeout| timeout.min(limit));
        Ask { protocol: "postgres", timeout, max_rows: config.max_result_rows }
    }

    /// Parses statements as Postgres tools write them.
    ///
    /// # Errors
    /// [`QueryError::Syntax`], [`QueryError::TooLong`].
    pub(super) fn parse(&self, sql: &str) -> Result<Vec<Statement>, QueryError> {
        self.engine().check_length(sql)?;
        self.shared.parser.parse(sql).map_err(|error| QueryError::Syntax(error.to_string()))
    }

    /// Sets or resets a variable. Names that mean nothing here are remembered, as clients read back what they set.
    ///
    /// # Errors
    /// [`QueryError::Receipt`], [`QueryError::Parameter`].
    pub(super) fn set(&self, name: &str, value: Option<&str>) -> Result<(), QueryError> {
        let mut variables = self.variables.lock();
        match (name, value) {
            (WAIT_FOR, value) => {
                variables.wait_for = match value.map(str::trim) {
                    None | Some("") => None,
                    Some(receipt) => Some(receipt.parse()?),
                };
            }
            (TIMEOUT, value) => variables.timeout = value.map(duration).transpose()?.flatten(),
            (name, None) => {
                variables.texts.remove(name);
            }
            (name, Some(value)) => {
                let full = variables.texts.len() >= MAX_VARIABLES && !variables.texts.contains_key(name);
                if full || value.len() > MAX_VALUE {
                    return Err(QueryError::Parameter(format!("could not set `{name}`: too many or too long values")));
                }
                variables.texts.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(())
    }

    /// Forgets all variables.
    pub(super) fn reset(&self) {
        *self.variables.lock() = Variables::default();
    }

    /// The value of a variable.
    ///
    /// # Errors
    /// [`QueryError::Parameter`] if there is none of that name.
    pub(super) fn show(&self, name: &str) -> Result<String, QueryError> {
        let variables = self.variables.lock();
        if let Some(value) = variables.texts.get(name) {
            return Ok(value.clone());
        }
        Ok(match name {
            WAIT_FOR => variables.wait_for.map(|receipt| receipt.to_string()).unwrap_or_default(),
            TIMEOUT => {
                let limit = self.engine().config().statement_timeout();
                format!("{}ms", variables.timeout.map_or(limit, |timeout| timeout.min(limit)).as_millis())
            }
            "search_path" => SEARCH_PATH.join(", "),
            "server_version" => SERVER_VERSION.to_owned(),
            "server_version_num" => "160006".to_owned(),
            "server_encoding" | "client_encoding" => "UTF8".to_owned(),
            "timezone" => "UTC".to_owned(),
            "datestyle" => "ISO, YMD".to_owned(),
            "intervalstyle" => "postgres".to_owned(),
            "transaction_isolation" | "default_transaction_isolation" => "repeatable read".to_owned(),
            "transaction_read_only"
            | "default_transaction_read_only"
            | "standard_conforming_strings"
            | "integer_datetimes" => "on".to_owned(),
            "is_superuser" | "in_hot_standby" => "off".to_owned(),
            "max_identifier_length" => "63".to_owned(),
            "extra_float_digits" => "1".to_owned(),
            "lc_collate" | "lc_ctype" => "C".to_owned(),
            "application_name" => String::new(),
            "session_authorization" => self.login()?.user.to_string(),
            _ => return Err(QueryError::Parameter(format!("unrecognized configuration parameter `{name}`"))),
        })
    }
}

/// `5000`, `5s`, `500ms`, `1min`; `0` is no limit of one's own.
fn duration(text: &str) -> Result<Option<Duration>, QueryError> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.strip_prefix(digits).unwrap_or_default().trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    match digits.parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(number) if unit > 0 => Ok(Some(Duration::from_millis(number.saturating_mul(unit)))),
        _ => Err(QueryError::Parameter(format!("`{text}` is not a time (expected milliseconds, or such as `5s`)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, millis) in [("0", None), ("250", Some(250)), ("5s", Some(5000)), ("1 min", Some(60_000))] {
            assert_eq!(duration(text).unwrap(), millis.map(Duration::from_millis), "{text}");
        }
        assert!(duration("soon").is_err() && duration("5 weeks").is_err() && duration("-1").is_err());
    }
}
