//! Mobile workers (rest-api.md §9.1).

use axum::Router;
use hashbrown::HashMap;
use jiff::{Timestamp, ToSpan, civil::DateTime, tz::TimeZone};
use schemas::{id::worker_login, time::parse_micros};
use serde_json::{Map, Value, json};

use super::{
    Read,
    page::{Page, last},
    resource::{MAX, Resource, asked_for, list, object, property, resource_uri, text},
    scan::{Condition, Documents, Row, Sort},
};
use crate::{QueryError, front::Doors};

pub(super) fn routes() -> Router<Doors> {
    let paths = &["/a/{domain}/api/v0.5/user", "/a/{domain}/api/user/v1"];
    Resource { paths, list: list_users, detail }.routes()
}

/// The documents of mobile workers.
pub(super) fn documents(read: &Read) -> Documents {
    Documents::of(read, "user_documents")
}

/// True of a worker who may sign in.
pub(super) fn is_active(doc: &Value) -> bool {
    doc.get("is_active").and_then(Value::as_bool).unwrap_or(true)
}

fn list_users(read: &Read) -> Result<Value, QueryError> {
    let page = Page::read(&read.parameters, MAX)?;
    let archived = asked_for(read, "archived");
    let (total, rows) = match last(&read.parameters, "group").filter(|group| !group.is_empty()) {
        Some(group) => {
            let members = members(read, group, !archived)?;
            (members.len(), members.into_iter().skip(page.offset).take(page.limit).collect())
        }
        None => {
            let wanted = [Condition::Flag { column: "is_active", is: !archived }];
            let found = documents(read).page(&wanted, Sort::text("username"), page.offset, page.limit)?;
            (found.total, found.rows)
        }
    };
    Ok(page.envelope(&read.parameters, total, &objects(read, &rows)?))
}

fn detail(read: &Read, id: &str) -> Result<Option<Value>, QueryError> {
    let row = documents(read).get(id)?;
    Ok(objects(read, row.as_slice())?.pop())
}

/// The workers of a group, in the order of their names.
fn members(read: &Read, group: &str, active: bool) -> Result<Vec<Row>, QueryError> {
    let Some(found) = Documents::of(read, "group_documents").get(group)? else {
        let domain = &read.principal.domain;
        return Err(QueryError::Parameter(format!("Project {domain} has no group with id={group}")));
    };
    let users = documents(read);
    let ids = list(&found.doc, "users").iter().filter_map(Value::as_str);
    let rows = ids.filter_map(|id| users.get(id).transpose()).collect::<Result<Vec<_>, _>>()?;
    let mut rows: Vec<Row> = rows.into_iter().filter(|row| is_active(&row.doc) == active).collect();
    rows.sort_by(|a, b| text(&a.doc, "username").cmp(&text(&b.doc, "username")));
    Ok(rows)
}

fn objects(read: &Read, rows: &[Row]) -> Result<Vec<Value>, QueryError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let groups = groups(read)?;
    let mut objects: Vec<Value> = rows.iter().map(|row| user(read, row, &groups)).collect();
    if asked_for(read, "extras") {
        let counts = Counts::of(read, rows)?;
        for (object, row) in objects.iter_mut().zip(rows) {
            if let Some(fields) = object.as_object_mut() {
                fields.insert("extras".to_owned(), counts.extras(&row.id));
            }
        }
    }
    Ok(objects)
}

/// Ids of the groups of every worker.
fn groups(read: &Read) -> Result<HashMap<String, Vec<String>>, QueryError> {
    let mut groups: HashMap<String, Vec<String>> = HashMap::new();
    for group in Documents::of(read, "group_documents").all()? {
        for member in list(&group.doc, "users").iter().filter_map(Value::as_str) {
            groups.entry_ref(member).or_default().push(group.id.clone());
        }
    }
    Ok(groups)
}

fn user(read: &Read, row: &Row, groups: &HashMap<String, Vec<String>>) -> Value {
    let doc = &row.doc;
    let text_or_empty = |name: &str| text(doc, name).unwrap_or_default();
    let place = text(doc, "location_id").filter(|place| !place.is_empty());
    let mut places: Vec<&str> = list(doc, "assigned_location_ids").iter().filter_map(Value::as_str).collect();
    if let Some(place) = place.filter(|place| !places.contains(place)) {
        places.insert(0, place);
    }
    json!({
        "id": row.id,
        "username": worker_login(text_or_empty("username"), &read.principal.domain),
        "first_name": text_or_empty("first_name"),
        "last_name": text_or_empty("last_name"),
        "default_phone_number": property(doc, "default_phone_number"),
        "email": text_or_empty("email"),
        "phone_numbers": list(doc, "phone_numbers"),
        "groups": groups.get(&row.id).map(Vec::as_slice).unwrap_or_default(),
        "primary_location": place,
        "locations": places,
        "user_data": user_data(read, doc, place, &places),
        "eulas": text_or_empty("eulas"),
        "resource_uri": resource_uri(read, "user", &row.id),
    })
}

/// What was stored for a worker, and what CommCare always adds.
fn user_data(read: &Read, doc: &Value, place: Option<&str>, places: &[&str]) -> Map<String, Value> {
    let mut fields = object(doc, "user_data");
    fields.insert("commcare_project".to_owned(), read.principal.domain.as_str().into());
    if let Some(place) = place {
        fields.insert("commcare_location_id".to_owned(), place.into());
        fields.insert("commcare_location_ids".to_owned(), places.join(" ").into());
        fields.insert("commcare_primary_case_sharing_id".to_owned(), place.into());
    }
    if let Some(profile) = text(doc, "user_data_profile_id").or_else(|| text(doc, "profile")) {
        fields.entry("commcare_profile").or_insert_with(|| profile.into());
    }
    fields
}

/// A span of time, both ends inclusive, microseconds.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: i64,
    end: i64,
}

impl Span {
    const fn holds(self, at: i64) -> bool {
        self.start <= at && at <= self.end
    }
}

/// How many forms workers submitted and completed lately.
struct Counts {
    /// By worker and name of the count.
    counts: HashMap<(String, &'static str), u64>,
}

/// Names of the counts for the time that a form was received, and the time that it was completed.
const LAST_30: [&str; 2] = ["submitted_last_30", "completed_last_30"];
const LAST_MONTH: [&str; 2] = ["submitted_last_month", "completed_last_month"];

impl Counts {
    fn of(read: &Read, rows: &[Row]) -> Result<Self, QueryError> {
        let (month, days) = lately(read.snapshot.moment.as_of)?;
        let workers = rows.iter().map(|row| row.id.clone()).collect();
        let wanted = [
            Condition::Text { column: "user_id", any: workers },
            Condition::Text { column: "doc_type", any: vec!["XFormInstance".to_owned()] },
        ];
        let mut counts: HashMap<(String, &'static str), u64> = HashMap::new();
        Documents::of(read, "form_documents").visit(&wanted, &mut |doc| {
            let Some(worker) = text(doc, "user_id") else { return };
            let received = text(doc, "received_on").and_then(parse_micros);
            let completed = doc.pointer("/form/meta/timeEnd").and_then(Value::as_str).and_then(parse_micros);
            for (at, place) in [(received, 0), (completed, 1)] {
                for (span, names) in [(days, LAST_30), (month, LAST_MONTH)] {
                    if let (Some(at), Some(name)) = (at, names.get(place))
                        && span.holds(at)
                    {
                        *counts.entry((worker.to_owned(), name)).or_default() += 1;
                    }
                }
            }
        })?;
        Ok(Self { counts })
    }

    fn extras(&self, worker: &str) -> Value {
        let names = LAST_30.into_iter().chain(LAST_MONTH);
        let count = |name| self.counts.get(&(worker.to_owned(), name)).copied().unwrap_or_default();
        names.map(|name| (name.to_owned(), count(name).into())).collect::<Map<String, Value>>().into()
    }
}

/// The month before the present one, and the thirty days until now.
fn lately(now: i64) -> Result<(Span, Span), QueryError> {
    let span = || -> Result<(Span, Span), jiff::Error> {
        let micros = |at: DateTime| Ok::<_, jiff::Error>(TimeZone::UTC.to_timestamp(at)?.as_microsecond());
        let at = TimeZone::UTC.to_datetime(Timestamp::from_microsecond(now)?);
        let this_month = at.first_of_month().start_of_day();
        let last_month = this_month.checked_sub(1.month())?;
        let month = Span { start: micros(last_month)?, end: micros(this_month)? };
        Ok((month, Span { start: micros(at.checked_sub(30.days())?)?, end: now }))
    };
    span().map_err(|error| QueryError::Internal(format!("the snapshot's time is out of range: {error}")))
}
