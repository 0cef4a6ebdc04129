//! Rows of users, locations and definitions, and of the accounts that hold names: statements.

use schemas::change::DocKind;

/// A kind that lies in the common table, and the statements for it.
macro_rules! common {
    ($kind:literal) => {
        Statements {
            select: concat!(
                "SELECT id, document FROM documents WHERE domain = $1 AND id = ANY($2) AND kind = '",
                $kind,
                "'"
            ),
            upsert: concat!(
                "INSERT INTO documents (domain, kind, id, document, stamp) SELECT domain, '",
                $kind,
                "', id, document, stamp \
                 FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS u(domain, id, document, stamp) \
                 ON CONFLICT (domain, kind, id) DO UPDATE SET document = excluded.document, stamp = excluded.stamp"
            ),
            delete: concat!(
                "DELETE FROM documents t USING unnest($1::text[], $2::text[]) AS u(domain, id) \
                 WHERE t.domain = u.domain AND t.id = u.id AND t.kind = '",
                $kind,
                "'"
            ),
            scan: concat!("SELECT domain, id, document, stamp FROM documents WHERE kind = '", $kind, "'"),
        }
    };
}

/// The statements of a kind in the common table.
#[derive(Clone, Copy)]
struct Statements {
    select: &'static str,
    upsert: &'static str,
    delete: &'static str,
    scan: &'static str,
}

const fn in_common(kind: DocKind) -> Option<Statements> {
    Some(match kind {
        DocKind::WebUser => common!("web_user"),
        DocKind::LocationType => common!("location_type"),
        DocKind::Group => common!("group"),
        DocKind::LookupTable => common!("lookup_table"),
        DocKind::LookupRow => common!("lookup_row"),
        DocKind::Application => common!("application"),
        DocKind::NamedExpression => common!("named_expression"),
        DocKind::NamedFilter => common!("named_filter"),
        _ => return None,
    })
}

/// All documents of a kind of the common table.
pub(crate) const fn scan(kind: DocKind) -> Option<&'static str> {
    match in_common(kind) {
        Some(statements) => Some(statements.scan),
        None => None,
    }
}

/// Documents of a kind by id, in one domain; the parameters are the domain, the ids and, for definitions, the kind.
pub(crate) const fn select(kind: DocKind) -> Option<&'static str> {
    match kind {
        DocKind::User => Some("SELECT id, document FROM users WHERE domain = $1 AND id = ANY($2)"),
        DocKind::Location => Some("SELECT id, document FROM locations WHERE domain = $1 AND id = ANY($2)"),
        DocKind::DataSource => {
            Some("SELECT id, document FROM definitions WHERE domain = $1 AND id = ANY($2) AND kind = 'data_source'")
        }
        DocKind::AggregateView => {
            Some("SELECT id, document FROM definitions WHERE domain = $1 AND id = ANY($2) AND kind = 'aggregate_view'")
        }
        kind => match in_common(kind) {
            Some(statements) => Some(statements.select),
            None => None,
        },
    }
}

/// Accounts by id or name, with their domains.
pub(crate) const SELECT_ACCOUNTS: &str = "SELECT a.id, a.username, \
     ARRAY(SELECT m.domain FROM memberships m WHERE m.account_id = a.id) \
     FROM accounts a WHERE a.id = ANY($1) OR a.username = ANY($2)";

/// Writes documents; the columns are domains, ids, documents and stamps.
pub(crate) const fn upsert(kind: DocKind) -> Option<&'static str> {
    match kind {
        DocKind::User => Some(
            "INSERT INTO users (domain, id, document, stamp) \
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) \
             ON CONFLICT (domain, id) DO UPDATE SET document = excluded.document, stamp = excluded.stamp",
        ),
        DocKind::Location => Some(
            "INSERT INTO locations (domain, id, document, stamp) \
             SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) \
             ON CONFLICT (domain, id) DO UPDATE SET document = excluded.document, stamp = excluded.stamp",
        ),
        DocKind::DataSource => Some(
            "INSERT INTO definitions (domain, kind, id, document, stamp) \
             SELECT domain, 'data_source', id, document, stamp \
             FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS u(domain, id, document, stamp) \
             ON CONFLICT (domain, kind, id) DO UPDATE SET document = excluded.document, stamp = excluded.stamp",
        ),
        DocKind::AggregateView => Some(
            "INSERT INTO definitions (domain, kind, id, document, stamp) \
             SELECT domain, 'aggregate_view', id, document, stamp \
             FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) AS u(domain, id, document, stamp) \
             ON CONFLICT (domain, kind, id) DO UPDATE SET document = excluded.document, stamp = excluded.stamp",
        ),
        kind => match in_common(kind) {
            Some(statements) => Some(statements.upsert),
            None => None,
        },
    }
}

/// Deletes documents; the columns are domains and ids.
pub(crate) const fn delete(kind: DocKind) -> Option<&'static str> {
    match kind {
        DocKind::User => Some(
            "DELETE FROM users t USING unnest($1::text[], $2::text[]) AS u(domain, id) \
             WHERE t.domain = u.domain AND t.id = u.id",
        ),
        DocKind::Location => Some(
            "DELETE FROM locations t USING unnest($1::text[], $2::text[]) AS u(domain, id) \
             WHERE t.domain = u.domain AND t.id = u.id",
        ),
        DocKind::DataSource => Some(
            "DELETE FROM definitions t USING unnest($1::text[], $2::text[]) AS u(domain, id) \
             WHERE t.domain = u.domain AND t.id = u.id AND t.kind = 'data_source'",
        ),
        DocKind::AggregateView => Some(
            "DELETE FROM definitions t USING unnest($1::text[], $2::text[]) AS u(domain, id) \
             WHERE t.domain = u.domain AND t.id = u.id AND t.kind = 'aggregate_view'",
        ),
        kind => match in_common(kind) {
            Some(statements) => Some(statements.delete),
            None => None,
        },
    }
}

/// Writes accounts of mobile workers; the columns are ids, names, password hashes (null keeps the present one), whether they
/// may sign in, and digest hashes, which hold for one name and one password.
pub(crate) const UPSERT_ACCOUNTS: &str = "INSERT INTO accounts (id, username, password_hash, is_active, digest_hash) \
     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::text[]) \
     ON CONFLICT (id) DO UPDATE SET username = excluded.username, is_active = excluded.is_active, \
     password_hash = coalesce(excluded.password_hash, accounts.password_hash), \
     digest_hash = CASE WHEN excluded.password_hash IS NOT NULL THEN excluded.digest_hash \
     WHEN accounts.username = excluded.username THEN accounts.digest_hash END";

/// Lets accounts into a domain; the columns are ids, domains, and names of permissions with commas between.
pub(crate) const UPSERT_MEMBERSHIPS: &str = "INSERT INTO memberships (account_id, domain, permissions) \
     SELECT account_id, domain, string_to_array(permissions, ',') \
     FROM unnest($1::text[], $2::text[], $3::text[]) AS u(account_id, domain, permissions) \
     ON CONFLICT (account_id, domain) DO UPDATE SET permissions = excluded.permissions";

/// Takes accounts out of a domain; the columns are ids and domains.
pub(crate) const DELETE_MEMBERSHIPS: &str = "DELETE FROM memberships m \
     USING unnest($1::text[], $2::text[]) AS u(account_id, domain) \
     WHERE m.account_id = u.account_id AND m.domain = u.domain";
