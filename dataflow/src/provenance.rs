//! Where a row comes from: which documents its evaluation read, and with which record each came in.
//!
//! A question reaches the clock as an event. What it is about is looked up on the document's home at the end of a tick
//! ([`look`]); the clock adds when each version came in, as far as its [`Window`] of recent records goes. Which base rows make a
//! group is found in the published tables, on a thread of the asker's ([`GroupTrail`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use schemas::{
    change::DocKind,
    doc::{Node, Symbol, View},
    id::DomainId,
    inside::{Arrival, Asked, Explained, Members, Origin, Outcome, Provenance, ProvenanceError, ProvenanceQuestion},
    position::{LaneId, Position, Sequence, Stamp},
    row::{Cell, ColumnType, DECIMAL_SCALE, Real, Row},
    table::{Segment, Snapshot, Table, TableName},
    time::parse_micros,
};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::{
    aggregate::group,
    document::{DocKey, Documents, Record, Version},
    evaluate::Evaluator,
    relation::RelationKey,
    rows::Tables,
    view::{Instance, Logic, ViewNo},
};

/// Most documents of a group that are named.
const NAMED: usize = 100;

/// A question, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) question: ProvenanceQuestion,
    pub(crate) reply: oneshot::Sender<Result<Found, ProvenanceError>>,
}

/// What the clock says.
#[derive(Debug)]
pub(crate) enum Found {
    Explained(Explained),
    Groups(GroupTrail),
}

/// A document in a view, to be looked up on the document's home.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) view: ViewNo,
    pub(crate) key: DocKey,
}

/// A version of a document.
#[derive(Debug)]
pub(crate) struct Read {
    key: DocKey,
    stamp: Stamp,
    form: Option<String>,
}

impl Read {
    fn of(key: &DocKey, version: &Version) -> Self {
        Self { key: key.clone(), stamp: version.stamp, form: last_form(key, version) }
    }
}

/// What was looked up.
#[derive(Debug)]
pub(crate) struct Looked {
    document: Read,
    is_there: bool,
    outcome: Outcome,
    asked: Vec<(RelationKey, Vec<Read>)>,
}

/// Looks a document up in a view; `None` if there never was one of that key.
pub(crate) fn look(look: &Look, documents: &Documents, evaluator: &Evaluator, tables: &Tables) -> Option<Looked> {
    let Look { view, key } = look;
    let (stamp, version) = documents.found(key)?;
    let read = |(question, answers): (&RelationKey, &[(DocKey, Version)])| {
        (question.clone(), answers.iter().map(|(key, version)| Read::of(key, version)).collect())
    };
    Some(Looked {
        document: Read { key: key.clone(), stamp, form: version.and_then(|version| last_form(key, version)) },
        is_there: version.is_some(),
        outcome: tables.outcome(*view, key.id.as_str()),
        asked: evaluator.asked(*view, key).into_iter().map(read).collect(),
    })
}

/// The last form that touched a document, where the document says so.
fn last_form(key: &DocKey, version: &Version) -> Option<String> {
    match key.kind {
        DocKind::Form => Some(key.id.as_str().to_owned()),
        DocKind::Case => match version.doc.get(Symbol::intern("xform_ids")).map(Node::view) {
            Some(View::List(forms)) => forms.iter().last().and_then(Node::as_text).map(str::to_owned),
            _ => None,
        },
        _ => None,
    }
}

impl Looked {
    /// The answer, with what the window knows.
    pub(crate) fn explained(self, window: &Window) -> Provenance {
        let origin = |read: Read| Origin {
            arrival: window.arrival(&read.key.domain, read.stamp),
            kind: read.key.kind,
            id: read.key.id,
            stamp: read.stamp,
            form: read.form,
        };
        let asked = self.asked.into_iter().map(|(question, documents)| Asked {
            relation: question.kind.name(),
            id: question.id.into(),
            documents: documents.into_iter().map(origin).collect(),
        });
        Provenance::Rows {
            asked: asked.collect(),
            document: origin(self.document),
            is_there: self.is_there,
            outcome: self.outcome,
        }
    }
}

/// A record that came in lately.
#[derive(Debug)]
struct Recent {
    sequence: Sequence,
    domain: DomainId,
    /// The stamps of its documents, first and last; no other record of the lane has any in between.
    stamps: (Stamp, Stamp),
    taken_at: i64,
    visible_at: Option<i64>,
}

/// The records that came in last, of all lanes together.
#[derive(Debug)]
pub(crate) struct Window {
    most: usize,
    /// What came in before this time, microseconds since 1970 UTC, is not in it.
    since: i64,
    lanes: BTreeMap<LaneId, VecDeque<Recent>>,
    /// The lanes of all records, oldest first.
    order: VecDeque<LaneId>,
    /// Records that readers cannot see yet, oldest first.
    unseen: VecDeque<Position>,
}

impl Window {
    /// An empty window for so many records.
    pub(crate) const fn new(most: usize, now: i64) -> Self {
        Self { most, since: now, lanes: BTreeMap::new(), order: VecDeque::new(), unseen: VecDeque::new() }
    }

    /// Takes in a record that has just arrived.
    pub(crate) fn take(&mut self, record: &Record, now: i64) {
        let stamps = record.documents.iter().map(|document| document.stamp);
        let (Some(first), Some(last)) = (stamps.clone().min(), stamps.max()) else { return };
        let Position { lane, sequence } = record.position;
        let records = self.lanes.entry(lane).or_default();
        if self.most == 0 || records.back().is_some_and(|newest| newest.sequence >= sequence) {
            return;
        }
        let domain = record.domain.clone();
        records.push_back(Recent { sequence, domain, stamps: (first, last), taken_at: now, visible_at: None });
        self.order.push_back(lane);
        self.unseen.push_back(record.position);
        if self.order.len() > self.most
            && let Some(lane) = self.order.pop_front()
            && let Some(oldest) = self.lanes.get_mut(&lane).and_then(VecDeque::pop_front)
        {
            self.since = self.since.max(oldest.visible_at.unwrap_or(oldest.taken_at));
            if oldest.visible_at.is_none() {
                // Both lists are in the order of arrival, so it is the first here too.
                self.unseen.pop_front();
            }
        }
    }

    /// Everything has been published, but for what concerns these domains.
    pub(crate) fn published(&mut self, as_of: i64, behind: &BTreeSet<DomainId>) {
        let lanes = &mut self.lanes;
        self.unseen.retain(|position| {
            let Some(records) = lanes.get_mut(&position.lane) else { return false };
            let Ok(at) = records.binary_search_by_key(&position.sequence, |record| record.sequence) else {
                return false;
            };
            let Some(record) = records.get_mut(at) else { return false };
            if behind.contains(&record.domain) {
                return true;
            }
            record.visible_at = Some(as_of);
            false
        });
    }

    /// When the version of a document of a domain came in that has this stamp.
    fn arrival(&self, domain: &DomainId, stamp: Stamp) -> Arrival {
        for (lane, records) in &self.lanes {
            let at = records.partition_point(|record| record.stamps.1 < stamp);
            if let Some(record) = records.get(at)
                && record.stamps.0 <= stamp
                && record.domain == *domain
            {
                let position = Position { lane: *lane, sequence: record.sequence };
                return Arrival::Record { position, visible_at: record.visible_at };
            }
        }
        Arrival::Before(self.since)
    }
}

/// An aggregate view, and where its rows and those that it reads are published.
#[derive(Debug)]
pub(crate) struct GroupTrail {
    pub(crate) instance: Arc<Instance>,
    pub(crate) own: Option<TableName>,
    pub(crate) sources: Vec<TableName>,
    pub(crate) snapshot: Arc<Snapshot>,
}

impl GroupTrail {
    /// The sources, and the base rows of a group if one is asked for. Reads every base row.
    ///
    /// # Errors
    /// There is no such group, or the rows could not be read until then.
    pub(crate) fn follow(self, key: Option<&str>, until: Instant) -> Result<Explained, ProvenanceError> {
        let members = key.map(|key| self.members(key, until)).transpose()?.flatten();
        let Self { sources, snapshot, .. } = self;
        Ok(Explained { provenance: Provenance::Groups { sources, members }, snapshot })
    }

    fn members(&self, key: &str, until: Instant) -> Result<Option<Members>, ProvenanceError> {
        let Instance { logic: Logic::Groups { view, inputs }, schema, id, .. } = &*self.instance else {
            return Ok(None);
        };
        let columns: Vec<_> = schema.key.iter().filter_map(|at| schema.columns.get(*at)).collect();
        let unknown = || ProvenanceError::UnknownGroup {
            view: id.clone(),
            key: key.to_owned(),
            columns: columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", "),
        };
        let values = serde_json::from_str::<Vec<Value>>(key).map_err(|_| unknown())?;
        let cells = columns.iter().zip(&values).map(|(column, value)| cell(value, column.column_type));
        let wanted: Vec<Cell> = cells.collect::<Option<_>>().ok_or_else(unknown)?;
        if values.len() != columns.len() {
            return Err(unknown());
        }
        let own = self.table(self.own.as_ref()).ok_or(ProvenanceError::NotReady { view: id.clone() })?;
        let mut is_there = false;
        each_row(own, &schema.key, until, |_, _, row| is_there |= **row == *wanted)?;
        if !is_there {
            return Err(unknown());
        }
        let (Some(base), [(_, read)]) = (self.table(self.sources.first()), inputs.as_slice()) else { return Ok(None) };
        let mut members = Members { rows: 0, documents: Vec::new() };
        each_row(base, read, until, |segment, at, row| {
            if group(view, std::slice::from_ref(row)).as_ref() != Some(&wanted) {
                return;
            }
            members.rows += 1;
            let document = segment.batch.columns().first().map(|ids| ColumnType::Text.cell(ids, at));
            if let Some(Cell::Text(document)) = document
                && members.documents.len() < NAMED
                && !members.documents.iter().any(|named| *named == document)
            {
                members.documents.push(document.into());
            }
        })?;
        Ok(Some(members))
    }

    fn table(&self, name: Option<&TableName>) -> Option<&Arc<Table>> {
        self.snapshot.domains.get(&self.instance.domain)?.tables.get(name?)
    }
}

/// Calls `see` with every live row of a table, narrowed to these columns.
fn each_row(
    table: &Table,
    columns: &[usize],
    until: Instant,
    mut see: impl FnMut(&Segment, usize, &Row),
) -> Result<(), ProvenanceError> {
    let started = Instant::now();
    for segment in table.segments.iter() {
        if Instant::now() > until {
            return Err(ProvenanceError::Timeout { after: started.elapsed() });
        }
        let arrays = columns.iter().map(|at| table.schema.columns.get(*at).zip(segment.batch.columns().get(*at)));
        let arrays: Vec<_> = arrays.collect();
        for row in (0..segment.batch.num_rows()).filter(|row| !segment.dead.is_dead(*row)) {
            let cells = arrays
                .iter()
                .map(|array| array.map_or(Cell::Null, |(column, array)| column.column_type.cell(array, row)));
            see(segment, row, &cells.collect());
        }
    }
    Ok(())
}

/// A value of JSON as a cell of a column; `None` if it cannot be one.
fn cell(value: &Value, column: ColumnType) -> Option<Cell> {
    if value.is_null() {
        return Some(Cell::Null);
    }
    Some(match column {
        ColumnType::Text => Cell::Text(value.as_str()?.into()),
        ColumnType::Integer | ColumnType::SmallInteger | ColumnType::BigInteger => Cell::Int(value.as_i64()?),
        ColumnType::Decimal => Cell::Decimal(match value {
            Value::Number(number) => decimal(&number.to_string())?,
            value => decimal(value.as_str()?)?,
        }),
        ColumnType::Float => Cell::Float(Real(value.as_f64()?)),
        ColumnType::Date => {
            let micros = parse_micros(value.as_str()?)?;
            Cell::Date(i32::try_from(micros.div_euclid(86_400_000_000)).ok()?)
        }
        ColumnType::Datetime => Cell::Datetime(parse_micros(value.as_str()?)?),
        ColumnType::Boolean => Cell::Bool(value.as_bool()?),
        ColumnType::TextList => {
            Cell::List(value.as_array()?.iter().map(|item| cell(item, ColumnType::Text)).collect::<Option<_>>()?)
        }
        ColumnType::Document => return None,
    })
}

/// A number in plain notation, times 10^[`DECIMAL_SCALE`].
fn decimal(text: &str) -> Option<i128> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = usize::try_from(DECIMAL_SCALE).ok()?;
    let fraction = fraction.trim_end_matches('0');
    if whole.is_empty() || fraction.len() > scale || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit())
    {
        return None;
    }
    format!("{whole}{fraction:0<scale$}").parse::<i128>().ok().map(|number| sign * number)
}

#[cfg(test)]
mod tests {
    use schemas::{change::ChangedDocument, id::DocId};

    use super::*;
    use crate::{config::Workers, document::Arriving};

    fn record(writer: u16, sequence: u64, domain: &str, stamps: &[i64]) -> Record {
        let domain = DomainId::new(domain).unwrap();
        let document = |stamp: &i64| {
            let document = ChangedDocument {
                kind: DocKind::User,
                id: DocId::new("u").unwrap(),
                stamp: Stamp(*stamp),
                document_type: String::new(),
                subtype: None,
                body: None,
            };
            Arriving::read(&domain, &document, Workers::ONE)
        };
        let documents = stamps.iter().map(document).collect();
        Record { position: position(writer, sequence), domain: domain.clone(), documents }
    }

    fn position(writer: u16, sequence: u64) -> Position {
        Position { lane: LaneId { database: 0, writer }, sequence: Sequence(sequence) }
    }

    #[test]
    fn a_window_knows_the_last_records_and_since_when() {
        let domain = |name| DomainId::new(name).unwrap();
        let mut window = Window::new(3, 1000);
        let came = |writer, sequence, visible_at| Arrival::Record { position: position(writer, sequence), visible_at };
        window.take(&record(0, 1, "demo", &[10, 12]), 1010);
        window.take(&record(1, 1, "other", &[11]), 1011);
        window.take(&record(1, 1, "other", &[11]), 1012);
        let arrival = |window: &Window, name, stamp| window.arrival(&domain(name), Stamp(stamp));
        assert_eq!(arrival(&window, "demo", 12), came(0, 1, None));
        window.published(1020, &BTreeSet::from([domain("other")]));
        assert_eq!(arrival(&window, "demo", 10), came(0, 1, Some(1020)));
        assert_eq!(arrival(&window, "other", 11), came(1, 1, None), "its domain is behind");
        assert_eq!(arrival(&window, "other", 10), Arrival::Before(1000), "that stamp is another domain's");
        assert_eq!(arrival(&window, "demo", 9), Arrival::Before(1000));

        window.take(&record(0, 2, "demo", &[20]), 1030);
        window.take(&record(0, 3, "demo", &[30]), 1031);
        assert_eq!(arrival(&window, "demo", 12), Arrival::Before(1020), "the oldest record made room");
        window.published(1040, &BTreeSet::new());
        assert_eq!(arrival(&window, "other", 11), came(1, 1, Some(1040)));
        assert_eq!(arrival(&window, "demo", 30), came(0, 3, Some(1040)));
        assert!(window.unseen.is_empty());
        for sequence in 4..=7 {
            window.take(&record(0, sequence, "demo", &[10 * sequence.cast_signed()]), 1050);
        }
        assert_eq!(arrival(&window, "demo", 40), Arrival::Before(1050), "it made room before anybody could see it");
        assert_eq!((arrival(&window, "demo", 50), window.unseen.len()), (came(0, 5, None), 3));
    }

    #[test]
    fn values_of_a_group_are_read_by_their_columns() {
        let read = |text: &str, column| cell(&serde_json::from_str(text).unwrap(), column);
        for (text, column, expected) in [
            ("null", ColumnType::Date, Some(Cell::Null)),
            ("\"x\"", ColumnType::Text, Some(Cell::Text("x".into()))),
            ("7", ColumnType::Integer, Some(Cell::Int(7))),
            ("\"7\"", ColumnType::Integer, None),
            ("2.50", ColumnType::Decimal, Some(Cell::Decimal(25_000_000_000_000_000))),
            ("\"-2.5000000000000000\"", ColumnType::Decimal, Some(Cell::Decimal(-25_000_000_000_000_000))),
            ("\"1e3\"", ColumnType::Decimal, None),
            ("\"1970-01-03\"", ColumnType::Date, Some(Cell::Date(2))),
            ("true", ColumnType::Boolean, Some(Cell::Bool(true))),
        ] {
            assert_eq!(read(text, column), expected, "{text}");
        }
    }
}
