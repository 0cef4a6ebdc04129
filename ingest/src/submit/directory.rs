//! Changes of users, locations and definitions, in memory, by the same path as forms.
//!
//! Each change is accepted or refused by itself; the accepted ones of a request are one change record.
//! Source: rest-api.md §9.1, §9.4; common document shapes of the change feeds.

use std::collections::HashMap;

use schemas::{
    change::DocKind,
    id::{DocId, DomainId},
};
use serde_json::{Map, Value, value::to_raw_value};

pub(crate) use schemas::id::{WORKER_SUFFIX, worker_login};

use super::{
    Action, DirectoryChange, DirectoryWrite, Presence, Written,
    world::{AccountWrite, DirectoryRow, Login, RecordDraft, World},
};
use crate::{
    auth::{PERMISSIONS, digest::stored_hash},
    error::WriteError,
};

/// Longest user name, in characters.
const NAME_CHARS: usize = 128;
/// Fields of request bodies that are no part of a document: what the server derives, and the secret.
const NOT_STORED: [&str; 5] = ["id", "password", "resource_uri", "domain", "doc_type"];

/// Applies the changes of one request. Returns what became of each, and the index of its record if any was accepted.
pub(crate) fn apply(world: &mut World, write: &DirectoryWrite) -> (Vec<Result<Written, WriteError>>, Option<usize>) {
    let mut draft = world.record(&write.domain);
    let results = write.changes.iter().map(|change| apply_one(world, &mut draft, &write.domain, change)).collect();
    let record = (draft.len() > 0).then(|| world.close_record(draft));
    (results, record)
}

fn apply_one(
    world: &mut World,
    draft: &mut RecordDraft,
    domain: &DomainId,
    change: &DirectoryChange,
) -> Result<Written, WriteError> {
    let key = (domain.clone(), change.kind, change.id.clone());
    let before = world.directory.get(&key);
    let written = if before.is_some() { Written::Updated } else { Written::Created };
    let document = match &change.action {
        Action::Delete if before.is_none() => return Err(not_found(change)),
        Action::Delete => None,
        Action::Put(document) => Some(document.clone()),
        Action::Merge { fields, presence } => {
            match (presence, before) {
                (Presence::New, Some(_)) => {
                    return Err(WriteError::Conflict(format!("{} `{}` exists already", noun(change.kind), change.id)));
                }
                (Presence::Existing, None) => return Err(not_found(change)),
                _ => {}
            }
            Some(match change.kind {
                DocKind::User => user(domain, &change.id, before, fields)?,
                DocKind::WebUser => web_user(domain, &change.id, before, fields)?,
                DocKind::Location => location(world, domain, &change.id, before, fields)?,
                DocKind::LookupRow => lookup_row(world, domain, &change.id, before, fields)?,
                DocKind::LocationType | DocKind::Group | DocKind::LookupTable | DocKind::Application => {
                    checked(domain, change.kind, &change.id, before, fields)?
                }
                DocKind::Form
                | DocKind::Case
                | DocKind::Ledger
                | DocKind::DataSource
                | DocKind::AggregateView
                | DocKind::NamedExpression
                | DocKind::NamedFilter => fields.clone(),
            })
        }
    };
    match (change.kind, &document) {
        (DocKind::User | DocKind::WebUser, Some(document)) => account(world, domain, change, document)?,
        (DocKind::WebUser, None) => {
            world.changes.memberships.insert((change.id.clone(), domain.clone()), None);
        }
        // Who is gone can no longer sign in, and is told so.
        (DocKind::User, None) => {
            let mut gone = world.directory.get(&key).cloned().unwrap_or_default();
            gone.insert("is_active".to_owned(), false.into());
            account(world, domain, change, &gone)?;
        }
        _ => {}
    }
    let body = match &document {
        Some(document) => {
            let raw = to_raw_value(document).map_err(|error| WriteError::Invalid(error.to_string()))?;
            Some(std::sync::Arc::from(raw))
        }
        None => None,
    };
    let place = draft.push(change.kind, change.id.clone(), doc_type(change.kind), None, body.clone());
    world.changes.directory.insert(key.clone(), DirectoryRow { document: body, place });
    match document {
        Some(document) => world.directory.insert(key, document),
        None => world.directory.remove(&key),
    };
    Ok(written)
}

/// CommCare's `document_type` of a kind.
pub(crate) const fn doc_type(kind: DocKind) -> &'static str {
    match kind {
        DocKind::User => "CommCareUser",
        DocKind::WebUser => "WebUser",
        DocKind::Location => "SQLLocation",
        DocKind::LocationType => "LocationType",
        DocKind::Group => "Group",
        DocKind::LookupTable => "FixtureDataType",
        DocKind::LookupRow => "FixtureDataItem",
        DocKind::Application => "Application",
        DocKind::DataSource => "DataSourceConfiguration",
        DocKind::AggregateView => "AggregateView",
        DocKind::NamedExpression | DocKind::NamedFilter => "UCRExpression",
        DocKind::Form => "XFormInstance",
        DocKind::Case => "CommCareCase",
        DocKind::Ledger => super::ledger::DOC_TYPE,
    }
}

const fn noun(kind: DocKind) -> &'static str {
    match kind {
        DocKind::User => "user",
        DocKind::WebUser => "web user",
        DocKind::Location => "location",
        DocKind::LocationType => "location type",
        DocKind::Group => "group",
        DocKind::LookupTable => "lookup table",
        DocKind::LookupRow => "lookup table row",
        DocKind::Application => "application",
        DocKind::DataSource => "data source",
        DocKind::AggregateView => "view",
        DocKind::NamedExpression => "named expression",
        DocKind::NamedFilter => "named filter",
        DocKind::Form => "form",
        DocKind::Case => "case",
        DocKind::Ledger => "ledger",
    }
}

fn not_found(change: &DirectoryChange) -> WriteError {
    WriteError::NotFound(format!("no {} with id `{}`", noun(change.kind), change.id))
}

fn invalid(field: &str, expected: &str) -> WriteError {
    WriteError::Invalid(format!("field `{field}` must be {expected}"))
}

/// The text of a field, if it is there and not null.
fn text<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, WriteError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(invalid(name, "text or null")),
    }
}

/// A mobile worker's document: the named fields first, in the order of the change feed, then whatever else was sent.
fn user(
    domain: &DomainId,
    id: &DocId,
    before: Option<&Map<String, Value>>,
    fields: &Map<String, Value>,
) -> Result<Map<String, Value>, WriteError> {
    let mut sent = fields.clone();
    if let Some(place) = sent.shift_remove("primary_location") {
        sent.entry("location_id").or_insert(place);
    }
    for name in ["username", "first_name", "last_name", "location_id", "email"] {
        text(&sent, name)?;
    }
    if sent.get("is_active").is_some_and(|value| !value.is_boolean()) {
        return Err(invalid("is_active", "true or false"));
    }
    if sent.get("user_data").is_some_and(|value| !value.is_object()) {
        return Err(invalid("user_data", "an object"));
    }
    let defaults = [
        ("username", Value::Null),
        ("first_name", "".into()),
        ("last_name", "".into()),
        ("location_id", Value::Null),
        ("is_active", true.into()),
        ("user_data", Map::new().into()),
    ];
    let document = merge(domain, id, "CommCareUser", &defaults, before, sent);
    let name = document.get("username").and_then(Value::as_str).unwrap_or_default();
    let fine = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '\'' | '@');
    let short = name.split('@').next().unwrap_or_default();
    if short.is_empty() || name.chars().count() > NAME_CHARS || !name.chars().all(fine) {
        return Err(invalid("username", "a name of letters, digits and `._-+'@`, at most 128 characters"));
    }
    Ok(document)
}

/// A web user's document in one of their domains (rest-api.md §9.2).
fn web_user(
    domain: &DomainId,
    id: &DocId,
    before: Option<&Map<String, Value>>,
    fields: &Map<String, Value>,
) -> Result<Map<String, Value>, WriteError> {
    for name in ["username", "first_name", "last_name", "email", "role", "primary_location_id"] {
        text(fields, name)?;
    }
    let defaults = [
        ("username", Value::Null),
        ("first_name", "".into()),
        ("last_name", "".into()),
        ("permissions", Value::Array(Vec::new())),
    ];
    let document = merge(domain, id, doc_type(DocKind::WebUser), &defaults, before, fields.clone());
    let name = document.get("username").and_then(Value::as_str).unwrap_or_default();
    let renamed = before.is_some_and(|before| before.get("username").and_then(Value::as_str) != Some(name));
    if name.is_empty() || name.chars().count() > NAME_CHARS || name.ends_with(WORKER_SUFFIX) || renamed {
        return Err(invalid("username", "the name of a web user, at most 128 characters, which does not change"));
    }
    if granted(&document).is_none() {
        let known: Vec<&str> = PERMISSIONS.iter().map(|(_, name)| *name).collect();
        return Err(invalid("permissions", &format!("a list of {}", known.join(", "))));
    }
    Ok(document)
}

/// The permissions that a web user's document names, if all of them are known.
pub(crate) fn granted(document: &Map<String, Value>) -> Option<Vec<&'static str>> {
    let known = |name: &Value| PERMISSIONS.iter().map(|(_, known)| *known).find(|known| name.as_str() == Some(*known));
    document.get("permissions")?.as_array()?.iter().map(known).collect()
}

/// A location's document.
fn location(
    world: &World,
    domain: &DomainId,
    id: &DocId,
    before: Option<&Map<String, Value>>,
    fields: &Map<String, Value>,
) -> Result<Map<String, Value>, WriteError> {
    let mut sent = fields.clone();
    for (other, name) in [
        ("parent", "parent_id"),
        ("parent_location_id", "parent_id"),
        ("location_type_code", "location_type"),
        ("location_data", "metadata"),
    ] {
        if let Some(value) = sent.shift_remove(other) {
            sent.entry(name).or_insert(value);
        }
    }
    for name in ["parent_id", "location_type"] {
        // References may be URIs, as they are listed; their last part is the id.
        if let Some(uri) = text(&sent, name)?.filter(|value| value.starts_with("/a/")) {
            let last = uri.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
            sent.insert(name.to_owned(), last.into());
        }
    }
    if text(&sent, "parent_id")?.is_some_and(str::is_empty) {
        sent.insert("parent_id".to_owned(), Value::Null);
    }
    for name in ["name", "site_code", "external_id"] {
        text(&sent, name)?;
    }
    if sent.get("metadata").is_some_and(|value| !value.is_object()) {
        return Err(invalid("location_data", "an object"));
    }
    if sent.get("is_archived").is_some_and(|value| !value.is_boolean()) {
        return Err(invalid("is_archived", "true or false"));
    }
    let defaults = [
        ("location_id", Value::Null),
        ("name", Value::Null),
        ("site_code", Value::Null),
        ("location_type", Value::Null),
        ("parent_id", Value::Null),
        ("parent_location_id", Value::Null),
        ("is_archived", false.into()),
    ];
    let mut document = merge(domain, id, "SQLLocation", &defaults, before, sent);
    let parent = document.get("parent_id").cloned().unwrap_or(Value::Null);
    let changed = before.is_none_or(|before| before.get("parent_id") != Some(&parent));
    if let (true, Some(parent)) = (changed, parent.as_str()) {
        let known = DocId::new(parent)
            .is_ok_and(|parent| world.directory.contains_key(&(domain.clone(), DocKind::Location, parent)));
        if parent == id.as_str() || !known {
            return Err(WriteError::Invalid(format!("parent `{parent}` of location `{id}` is no other location")));
        }
    }
    document.insert("location_id".to_owned(), id.as_str().into());
    document.insert("parent_location_id".to_owned(), parent);
    if document.get("name").and_then(Value::as_str).unwrap_or_default().is_empty() {
        return Err(invalid("name", "a name"));
    }
    if document.get("site_code").is_none_or(Value::is_null) {
        document.insert("site_code".to_owned(), id.as_str().into());
    }
    Ok(document)
}

/// What a field of a document must be.
#[derive(Clone, Copy)]
enum Shape {
    /// A text that is not empty.
    Name,
    Truth(bool),
    List,
    Object,
}

/// Fields that documents of a kind always have (rest-api.md §9.3-§9.6).
const fn shapes(kind: DocKind) -> &'static [(&'static str, Shape)] {
    match kind {
        DocKind::LocationType => &[("name", Shape::Name), ("code", Shape::Name), ("shares_cases", Shape::Truth(false))],
        DocKind::Group => &[
            ("name", Shape::Name),
            ("case_sharing", Shape::Truth(false)),
            ("reporting", Shape::Truth(false)),
            ("users", Shape::List),
            ("metadata", Shape::Object),
        ],
        DocKind::LookupTable => &[
            ("tag", Shape::Name),
            ("is_global", Shape::Truth(false)),
            ("fields", Shape::List),
            ("item_attributes", Shape::List),
        ],
        DocKind::LookupRow => {
            &[("data_type_id", Shape::Name), ("fields", Shape::Object), ("item_attributes", Shape::Object)]
        }
        DocKind::Application => &[("name", Shape::Name), ("modules", Shape::List)],
        _ => &[],
    }
}

/// A document whose fields are checked by their shape alone.
fn checked(
    domain: &DomainId,
    kind: DocKind,
    id: &DocId,
    before: Option<&Map<String, Value>>,
    fields: &Map<String, Value>,
) -> Result<Map<String, Value>, WriteError> {
    let default = |(name, shape): &(&'static str, Shape)| {
        let value = match shape {
            Shape::Name => Value::Null,
            Shape::Truth(truth) => Value::Bool(*truth),
            Shape::List => Value::Array(Vec::new()),
            Shape::Object => Value::Object(Map::new()),
        };
        (*name, value)
    };
    let defaults: Vec<(&str, Value)> = shapes(kind).iter().map(default).collect();
    let document = merge(domain, id, doc_type(kind), &defaults, before, fields.clone());
    for (name, shape) in shapes(kind) {
        let value = document.get(*name).unwrap_or(&Value::Null);
        let (fits, expected) = match shape {
            Shape::Name => (value.as_str().is_some_and(|text| !text.is_empty()), "a text that is not empty"),
            Shape::Truth(_) => (value.is_boolean(), "true or false"),
            Shape::List => (value.is_array(), "a list"),
            Shape::Object => (value.is_object(), "an object"),
        };
        if !fits {
            return Err(invalid(name, expected));
        }
    }
    Ok(document)
}

/// A row of a lookup table, which has to be there.
fn lookup_row(
    world: &World,
    domain: &DomainId,
    id: &DocId,
    before: Option<&Map<String, Value>>,
    fields: &Map<String, Value>,
) -> Result<Map<String, Value>, WriteError> {
    let document = checked(domain, DocKind::LookupRow, id, before, fields)?;
    // The table was checked when it was set.
    if !fields.contains_key("data_type_id") {
        return Ok(document);
    }
    let table = document.get("data_type_id").and_then(Value::as_str).unwrap_or_default();
    let known = DocId::new(table)
        .is_ok_and(|table| world.directory.contains_key(&(domain.clone(), DocKind::LookupTable, table)));
    if known { Ok(document) } else { Err(WriteError::Invalid(format!("there is no lookup table `{table}`"))) }
}

fn merge(
    domain: &DomainId,
    id: &DocId,
    doc_type: &str,
    defaults: &[(&str, Value)],
    before: Option<&Map<String, Value>>,
    sent: Map<String, Value>,
) -> Map<String, Value> {
    let mut document = match before {
        Some(before) => before.clone(),
        None => {
            let head = [("_id", id.as_str().into()), ("domain", domain.as_str().into()), ("doc_type", doc_type.into())];
            let all = head.into_iter().chain(defaults.iter().cloned());
            all.map(|(name, value)| (name.to_owned(), value)).collect()
        }
    };
    for (name, value) in sent {
        if !NOT_STORED.contains(&name.as_str()) && name != "_id" {
            document.insert(name, value);
        }
    }
    document
}

/// The sign-in of a mobile worker or web user, unless the name or the id belongs to somebody else.
fn account(
    world: &mut World,
    domain: &DomainId,
    change: &DirectoryChange,
    document: &Map<String, Value>,
) -> Result<(), WriteError> {
    let name = document.get("username").and_then(Value::as_str).unwrap_or_default();
    let is_web_user = change.kind == DocKind::WebUser;
    let username = if is_web_user { name.to_owned() } else { worker_login(name, domain) };
    let id = change.id.as_str();
    if world.names.get(&username).is_some_and(|login| login.account_id != id) {
        return Err(WriteError::Conflict(format!("user name `{username}` is taken")));
    }
    let present = world.accounts.get(id);
    if is_web_user && present.is_some() && change.password_hash.is_some() {
        // They may enter other domains, whose administrators did not ask for this.
        return Err(WriteError::Invalid(format!("`{username}` has an account; its password is not set here")));
    }
    // A mobile worker may be renamed; nobody's account becomes that of a person of the other kind.
    let foreign = |login: &Login| match is_web_user {
        true => login.username != username,
        false => {
            !login.username.ends_with(WORKER_SUFFIX) || !login.domains.iter().any(|other| other == domain.as_str())
        }
    };
    if present.is_some_and(foreign) {
        return Err(WriteError::Conflict(format!("user id `{id}` is taken")));
    }
    let (account_id, domains) = (id.to_owned(), vec![domain.as_str().to_owned()]);
    let login = Login { account_id, username: username.clone(), domains };
    world.names.insert(username.clone(), login.clone());
    world.accounts.insert(id.to_owned(), login);
    let is_active = document.get("is_active").and_then(Value::as_bool).unwrap_or(true) || is_web_user;
    let permissions = match is_web_user {
        true => granted(document).unwrap_or_default(),
        false => vec!["submit"],
    };
    world.changes.memberships.insert((change.id.clone(), domain.clone()), Some(permissions));
    let before = world.changes.accounts.remove(&change.id);
    let sent = match &change.action {
        Action::Merge { fields, .. } if change.keeps_digest => fields.get("password").and_then(Value::as_str),
        _ => None,
    };
    let digest_hash = sent.map(|password| stored_hash(&username, password));
    let (password_hash, digest_hash) = match (&change.password_hash, before) {
        (None, Some(before)) => (before.password_hash, before.digest_hash),
        (hash, _) => (hash.clone(), digest_hash),
    };
    let row = AccountWrite { username, password_hash, digest_hash, is_active };
    world.changes.accounts.insert(change.id.clone(), row);
    Ok(())
}

/// Ids of documents that a write needs to see: those it changes, and the parents of its locations.
pub(crate) fn needed(write: &DirectoryWrite) -> HashMap<DocKind, Vec<DocId>> {
    let mut needed: HashMap<DocKind, Vec<DocId>> = HashMap::new();
    for change in &write.changes {
        let ids = needed.entry(change.kind).or_default();
        ids.push(change.id.clone());
        if let (DocKind::LookupRow, Action::Merge { fields, .. }) = (change.kind, &change.action) {
            let table = fields.get("data_type_id").and_then(Value::as_str);
            needed.entry(DocKind::LookupTable).or_default().extend(table.and_then(|id| DocId::new(id).ok()));
            continue;
        }
        if let (DocKind::Location, Action::Merge { fields, .. }) = (change.kind, &change.action) {
            let parents =
                ["parent_id", "parent_location_id", "parent"].iter().filter_map(|name| fields.get(*name)?.as_str());
            let last = |uri: &str| uri.trim_end_matches('/').rsplit('/').next().map(str::to_owned);
            for parent in parents {
                ids.extend(DocId::new(parent).ok());
                ids.extend(last(parent).and_then(|id| DocId::new(&id).ok()));
            }
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn change(kind: DocKind, id: &str, fields: Value, presence: Presence) -> DirectoryChange {
        let Value::Object(fields) = fields else { panic!("fields are an object") };
        let id = DocId::new(id).unwrap();
        let action = Action::Merge { fields, presence };
        DirectoryChange { kind, id, action, password_hash: None, keeps_digest: false }
    }

    fn run(world: &mut World, changes: Vec<DirectoryChange>) -> Vec<Result<Written, WriteError>> {
        apply(world, &DirectoryWrite { domain: DomainId::new("demo").unwrap(), changes }).0
    }

    #[test]
    fn users_and_locations_have_the_documents_of_the_change_feed() {
        let mut world = World::default();
        let results = run(
            &mut world,
            vec![
                change(DocKind::Location, "s", json!({"name": "State", "location_type": "state"}), Presence::Any),
                change(
                    DocKind::Location,
                    "d",
                    json!({"name": "District", "location_type": "/a/demo/api/v0.5/location_type/district/", "parent": "/a/demo/api/v0.5/location/s/"}),
                    Presence::New,
                ),
                change(
                    DocKind::User,
                    "u",
                    json!({"username": "asha", "primary_location": "d", "password": "x"}),
                    Presence::New,
                ),
                change(DocKind::User, "u", json!({"last_name": "Devi"}), Presence::Existing),
            ],
        );
        assert_eq!(results, [Ok(Written::Created), Ok(Written::Created), Ok(Written::Created), Ok(Written::Updated)]);
        let domain = DomainId::new("demo").unwrap();
        let get = |kind, id| Value::from(world.directory[&(domain.clone(), kind, DocId::new(id).unwrap())].clone());
        assert_eq!(
            get(DocKind::Location, "d"),
            json!({"_id": "d", "domain": "demo", "doc_type": "SQLLocation", "location_id": "d", "name": "District",
                "site_code": "d", "location_type": "district", "parent_id": "s", "parent_location_id": "s",
                "is_archived": false})
        );
        assert_eq!(
            get(DocKind::User, "u"),
            json!({"_id": "u", "domain": "demo", "doc_type": "CommCareUser", "username": "asha", "first_name": "",
                "last_name": "Devi", "location_id": "d", "is_active": true, "user_data": {}})
        );
        assert_eq!(world.changes.records.len(), 1);
        assert_eq!(world.changes.documents, 3, "each document once in a record");
        assert_eq!(world.changes.accounts[&DocId::new("u").unwrap()].username, "asha@demo.commcarehq.org");
    }

    #[test]
    fn a_web_user_may_enter_and_leave_several_domains_in_one_group() {
        let mut world = World::default();
        let id = DocId::new("chief").unwrap();
        let join = || {
            let fields = json!({"username": "chief@example.org", "permissions": ["submit"]});
            change(DocKind::WebUser, "chief", fields, Presence::Any)
        };
        let leave = || DirectoryChange { action: Action::Delete, ..join() };
        let domain = |name: &str| DomainId::new(name).unwrap();
        for (name, change) in
            [("a", join()), ("b", join()), ("a", leave()), ("a", join()), ("c", join()), ("c", leave())]
        {
            let (results, _) = apply(&mut world, &DirectoryWrite { domain: domain(name), changes: vec![change] });
            assert!(results[0].is_ok(), "{name} {results:?}");
        }
        let of = |name: &str| world.changes.memberships[&(id.clone(), domain(name))].clone();
        assert_eq!([of("a"), of("b"), of("c")], [Some(vec!["submit"]), Some(vec!["submit"]), None]);
        assert_eq!(world.changes.accounts.len(), 1);
    }

    #[test]
    fn bad_rows_are_refused_one_by_one() {
        let mut world = World::default();
        world.names.insert(
            "taken@demo.commcarehq.org".to_owned(),
            Login {
                account_id: "other".to_owned(),
                username: "taken@demo.commcarehq.org".to_owned(),
                domains: vec!["demo".to_owned()],
            },
        );
        for (id, username, domain) in
            [("foreign", "f@else.commcarehq.org", "else"), ("chief", "chief@example.org", "demo")]
        {
            let login =
                Login { account_id: id.to_owned(), username: username.to_owned(), domains: vec![domain.to_owned()] };
            world.accounts.insert(id.to_owned(), login);
        }
        let results = run(
            &mut world,
            vec![
                change(DocKind::User, "a", json!({"username": "taken"}), Presence::Any),
                change(DocKind::User, "foreign", json!({"username": "b"}), Presence::Any),
                change(DocKind::User, "chief", json!({"username": "b"}), Presence::Any),
                change(DocKind::User, "c", json!({"username": "a b"}), Presence::Any),
                change(DocKind::User, "d", json!({"username": "d", "is_active": "yes"}), Presence::Any),
                change(DocKind::User, "e", json!({}), Presence::Existing),
                change(DocKind::Location, "l", json!({"name": "L", "parent_id": "nowhere"}), Presence::Any),
                change(DocKind::Location, "m", json!({"name": "M", "parent_id": "m"}), Presence::Any),
                change(DocKind::User, "ok", json!({"username": "ok"}), Presence::Any),
            ],
        );
        let kinds: Vec<_> = results.iter().map(|result| result.as_ref().err().map(std::mem::discriminant)).collect();
        let invalid = Some(std::mem::discriminant(&WriteError::Invalid(String::new())));
        let conflict = Some(std::mem::discriminant(&WriteError::Conflict(String::new())));
        let missing = Some(std::mem::discriminant(&WriteError::NotFound(String::new())));
        assert_eq!(kinds, [conflict, conflict, conflict, invalid, invalid, missing, invalid, invalid, None]);
        assert_eq!(world.changes.documents, 1);
    }

    #[test]
    fn worker_names_are_completed() {
        let domain = DomainId::new("demo").unwrap();
        for name in ["asha", "asha@demo", "asha@demo.commcarehq.org"] {
            assert_eq!(worker_login(name, &domain), "asha@demo.commcarehq.org");
        }
    }
}
