//! Statements that concern the connection instead of the data: settings, transactions, clean-up.

use datafusion::sql::sqlparser::ast::{Expr, ObjectName, Reset, Set, Statement, Value};

/// A statement that the session answers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `begin`: accepted; every statement reads its own snapshot all the same.
    Begin,
    /// `commit`.
    Commit,
    /// `rollback`.
    Rollback,
    /// Sets a session variable; `None` resets it.
    Set { name: String, value: Option<String> },
    /// Resets all session variables.
    ResetAll,
    /// Reads a session variable.
    Show(String),
    /// Accepted without effect, answered with this tag.
    Nothing(&'static str),
}

impl Command {
    /// Recognises a command; everything else is for the engine.
    pub(super) fn of(statement: &Statement) -> Option<Self> {
        Some(match statement {
            Statement::StartTransaction { .. } => Self::Begin,
            Statement::Commit { .. } => Self::Commit,
            Statement::Rollback { savepoint: None, .. } => Self::Rollback,
            Statement::Rollback { .. } => Self::Nothing("ROLLBACK"),
            Statement::Savepoint { .. } => Self::Nothing("SAVEPOINT"),
            Statement::ReleaseSavepoint { .. } => Self::Nothing("RELEASE"),
            Statement::Deallocate { .. } => Self::Nothing("DEALLOCATE"),
            Statement::Discard { .. } => Self::ResetAll,
            Statement::Reset(reset) => match &reset.reset {
                Reset::ALL => Self::ResetAll,
                Reset::ConfigurationParameter(name) => Self::Set { name: variable(name), value: None },
            },
            Statement::Set(set) => match set {
                Set::SingleAssignment { variable: name, values, .. } => {
                    Self::Set { name: variable(name), value: values_text(values) }
                }
                Set::SetTimeZone { value, .. } => {
                    Self::Set { name: "timezone".to_owned(), value: values_text(std::slice::from_ref(value)) }
                }
                Set::SetNames { charset_name, .. } => {
                    Self::Set { name: "client_encoding".to_owned(), value: Some(charset_name.value.clone()) }
                }
                _ => Self::Nothing("SET"),
            },
            Statement::ShowVariable { variable } => {
                let words: Vec<String> = variable.iter().map(|word| word.value.to_lowercase()).collect();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                Self::Show(match words.as_slice() {
                    ["time", "zone"] => "timezone".to_owned(),
                    ["transaction", "isolation", "level"] => "transaction_isolation".to_owned(),
                    ["session", "authorization"] => "session_authorization".to_owned(),
                    words => words.join("."),
                })
            }
            _ => return None,
        })
    }
}

fn variable(name: &ObjectName) -> String {
    let parts = name.0.iter().filter_map(|part| part.as_ident());
    parts.map(|part| part.value.to_lowercase()).collect::<Vec<_>>().join(".")
}

/// `None` for `default`.
fn values_text(values: &[Expr]) -> Option<String> {
    let text = |value: &Expr| match value {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::DoubleQuotedString(text) => text.clone(),
            other => other.to_string(),
        },
        Expr::Identifier(name) => name.value.clone(),
        other => other.to_string(),
    };
    let texts: Vec<String> = values.iter().map(text).collect();
    let joined = texts.join(", ");
    (!joined.eq_ignore_ascii_case("default")).then_some(joined)
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::{dialect::PostgreSqlDialect, parser::Parser};

    use super::*;

    #[test]
    fn session_statements_are_recognised() {
        let set = |name: &str, value: Option<&str>| {
            Some(Command::Set { name: name.to_owned(), value: value.map(ToOwned::to_owned) })
        };
        for (sql, command) in [
            ("set millrace.wait_for = 'm1.0-0.7'", set("millrace.wait_for", Some("m1.0-0.7"))),
            ("SET millrace.wait_for TO ''", set("millrace.wait_for", Some(""))),
            ("set extra_float_digits = 3", set("extra_float_digits", Some("3"))),
            ("set client_encoding to utf8", set("client_encoding", Some("utf8"))),
            ("set datestyle to iso, mdy", set("datestyle", Some("iso, mdy"))),
            ("set session statement_timeout = default", set("statement_timeout", None)),
            ("set time zone 'UTC'", set("timezone", Some("UTC"))),
            ("set session characteristics as transaction read only", Some(Command::Nothing("SET"))),
            ("reset millrace.wait_for", set("millrace.wait_for", None)),
            ("reset all", Some(Command::ResetAll)),
            ("discard all", Some(Command::ResetAll)),
            ("show millrace.wait_for", Some(Command::Show("millrace.wait_for".to_owned()))),
            ("show transaction isolation level", Some(Command::Show("transaction_isolation".to_owned()))),
            ("begin", Some(Command::Begin)),
            ("start transaction read only", Some(Command::Begin)),
            ("commit", Some(Command::Commit)),
            ("rollback", Some(Command::Rollback)),
            ("select 1", None),
        ] {
            let statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap();
            assert_eq!(Command::of(&statements[0]), command, "{sql}");
        }
    }
}
