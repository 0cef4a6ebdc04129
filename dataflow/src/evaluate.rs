//! The evaluator: one operator that runs every row view over the documents that changed (architecture D6, D8).
//!
//! In:  documents that changed (for all views, or for one view that is being built), and answers about related
//! documents. Out: the rows that a document has in a view from now on, and which related documents it asks for.
//!
//! A row that reads other documents is evaluated with the answers known so far; what it asked for beyond that goes
//! out as a demand, and the answer brings it back here in the next round of the same tick. A changed mother comes in
//! as an answer for each child that asked, so the child's row follows in the tick of the mother's change. A document is
//! evaluated once per round, whatever reached it.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, sync::Arc};

use hashbrown::{HashMap, HashSet};
use schemas::{
    change::DocKind,
    doc::{Doc, Node, Symbol},
    id::{DocId, DomainId},
    position::Stamp,
    row::{Cell, Row},
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use udf::{Gate, Related as Lookup, Relation};

use crate::{
    document::{DocKey, Documents, Version},
    meter::{Cost, Gauge, Meters, Part},
    relation::{ANSWER, Answer, Demand, RelationKey, RelationKind, upsert},
    rows::Tables,
    view::{Instance, Logic, RowLogic, ViewNo, document_row},
};

/// A document to evaluate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Changed {
    pub(crate) key: DocKey,
    pub(crate) reach: Reach,
}

/// For which views a document is evaluated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Reach {
    /// It changed: for all that apply to it, or applied to the version before.
    Every { before: Option<Version> },
    /// This view is being built.
    Only(ViewNo),
}

/// The rows of a document in a view from now on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct RowChange {
    pub(crate) view: ViewNo,
    pub(crate) document: DocId,
    /// The rows, or why there are none.
    pub(crate) outcome: Result<Vec<Row>, String>,
    /// Stamp of the newest document that was read.
    pub(crate) stamp: Stamp,
}

/// What the evaluator says.
pub(crate) enum Said {
    Rows(RowChange),
    Demand(Demand),
}

/// Row views over one kind of document in one domain.
#[derive(Default)]
struct KindViews {
    by_subtype: HashMap<Box<str>, GatedViews>,
    any: GatedViews,
}

/// Row views by what a document's own properties have to be: of thousands of views over one type, a document meets those
/// that it can pass.
#[derive(Default)]
struct GatedViews {
    open: Vec<ViewNo>,
    gates: HashMap<Symbol, HashMap<Box<str>, Vec<ViewNo>>>,
}

impl GatedViews {
    fn add(&mut self, no: ViewNo, gate: Option<&Gate>) {
        let Some(gate) = gate else {
            self.open.push(no);
            return;
        };
        let by_text = self.gates.entry(gate.property).or_default();
        for text in &gate.texts {
            by_text.entry(text.as_str().into()).or_default().push(no);
        }
    }

    fn remove(&mut self, no: ViewNo) {
        self.open.retain(|view| *view != no);
        self.gates.retain(|_, by_text| {
            by_text.retain(|_, views| {
                views.retain(|view| *view != no);
                !views.is_empty()
            });
            !by_text.is_empty()
        });
    }

    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.gates.is_empty()
    }

    /// Adds the views that a version can pass.
    fn find(&self, version: &Version, found: &mut Vec<ViewNo>) {
        found.extend(&self.open);
        for (property, by_text) in &self.gates {
            let text = version.doc.get(*property).and_then(Node::as_text);
            found.extend(text.and_then(|text| by_text.get(text)).into_iter().flatten());
        }
    }
}

/// A document that asked for others.
#[derive(Default)]
struct Subject {
    asked: SmallVec<[(ViewNo, Vec<RelationKey>); 2]>,
    answers: HashMap<RelationKey, Vec<(DocKey, Version)>>,
}

impl Subject {
    fn questions(&self) -> BTreeSet<RelationKey> {
        self.asked.iter().flat_map(|(_, keys)| keys.iter().cloned()).collect()
    }
}

/// A row view, and what it costs.
struct Installed {
    instance: Arc<Instance>,
    cost: Arc<Cost>,
}

/// The evaluator's state on one worker.
pub(crate) struct Evaluator {
    documents: Rc<RefCell<Documents>>,
    tables: Rc<RefCell<Tables>>,
    instances: HashMap<ViewNo, Installed>,
    kinds: HashMap<(DomainId, DocKind), KindViews>,
    subjects: HashMap<DocKey, Subject>,
    /// Rows said in this tick that the tables do not hold yet.
    said: HashSet<(ViewNo, DocId)>,
    /// Documents in the answers that subjects hold.
    answers: HashMap<(DomainId, RelationKind), Arc<Gauge>>,
    meters: Meters,
    /// "Now" of the tick, microseconds.
    pub(crate) now: i64,
}

impl Evaluator {
    pub(crate) fn new(documents: Rc<RefCell<Documents>>, tables: Rc<RefCell<Tables>>, meters: &Meters) -> Self {
        Self {
            documents,
            tables,
            instances: HashMap::new(),
            kinds: HashMap::new(),
            subjects: HashMap::new(),
            said: HashSet::new(),
            answers: HashMap::new(),
            meters: meters.clone(),
            now: 0,
        }
    }

    /// Adds a row view.
    pub(crate) fn install(&mut self, instance: &Arc<Instance>) {
        let Logic::Rows(logic) = &instance.logic else { return };
        let views = self.kinds.entry((instance.domain.clone(), logic.kind())).or_default();
        match logic.subtypes() {
            Some(subtypes) => {
                for subtype in subtypes {
                    views.by_subtype.entry(subtype.as_str().into()).or_default().add(instance.no, logic.gate());
                }
            }
            None => views.any.add(instance.no, logic.gate()),
        }
        let cost = self.meters.cost(&instance.domain, logic.definition(), &instance.id);
        self.instances.insert(instance.no, Installed { instance: Arc::clone(instance), cost });
    }

    /// Forgets a row view; returns its domain and the kinds of question it asked. What its documents asked for is taken back
    /// when they are evaluated next.
    pub(crate) fn retire(&mut self, no: ViewNo) -> Option<(DomainId, BTreeSet<RelationKind>)> {
        let Installed { instance, .. } = self.instances.remove(&no)?;
        let Logic::Rows(logic) = &instance.logic else { return None };
        if let Some(views) = self.kinds.get_mut(&(instance.domain.clone(), logic.kind())) {
            views.any.remove(no);
            views.by_subtype.retain(|_, views| {
                views.remove(no);
                !views.is_empty()
            });
        }
        Some((instance.domain.clone(), logic.relations()))
    }

    /// Forgets kinds of question that no view of the domain asks any longer, and their answers: nobody tells of their changes.
    pub(crate) fn forget(&mut self, domain: &DomainId, gone: &[RelationKind]) {
        self.subjects.retain(|key, subject| {
            if key.domain != *domain {
                return true;
            }
            subject.answers.retain(|question, _| !gone.contains(&question.kind));
            subject.asked.retain_mut(|(_, questions)| {
                questions.retain(|question| !gone.contains(&question.kind));
                !questions.is_empty()
            });
            !subject.asked.is_empty()
        });
        self.answers.retain(|(of, kind), _| of != domain || !gone.contains(kind));
    }

    /// What a document asked for in a view, with the documents that answered.
    pub(crate) fn asked(&self, no: ViewNo, key: &DocKey) -> Vec<(&RelationKey, &[(DocKey, Version)])> {
        let Some(subject) = self.subjects.get(key) else { return Vec::new() };
        let asked = subject.asked.iter().filter(|(view, _)| *view == no).flat_map(|(_, questions)| questions);
        asked.map(|question| (question, subject.answers.get(question).map_or(&[][..], Vec::as_slice))).collect()
    }

    /// Starts a tick.
    pub(crate) fn begin(&mut self, now: i64) {
        self.now = now;
        // A large set is let go: clearing it costs its capacity, in every tick after one that walked much.
        if self.said.capacity() > 4096 {
            self.said = HashSet::new();
        } else {
            self.said.clear();
        }
    }

    /// Evaluates everything that reached this worker in one round.
    pub(crate) fn round(&mut self, changed: Vec<Changed>, answers: Vec<Answer>, say: &mut impl FnMut(Said)) {
        let mut work: HashMap<DocKey, BTreeSet<ViewNo>> = HashMap::new();
        for Changed { key, reach } in changed {
            let views = match reach {
                Reach::Only(view) => vec![view],
                Reach::Every { before } => self.applicable(&key, before.as_ref()),
            };
            work.entry(key).or_default().extend(views);
        }
        for Answer { subject, related } in answers {
            let Some(held) = self.subjects.get_mut(&subject) else { continue };
            let asking = held.asked.iter().filter(|(_, keys)| keys.contains(&related.relation)).map(|(view, _)| *view);
            let asking: SmallVec<[ViewNo; 4]> = asking.collect();
            if asking.is_empty() {
                // It was under way when the question was taken back. Kept, it would be out of date by the time the question
                // is asked again.
                continue;
            }
            work.entry(subject).or_default().extend(asking);
            let (domain, kind) = (related.relation.domain.clone(), related.relation.kind);
            let more = upsert(&mut held.answers, related);
            if more != 0 {
                let answers = self.answers.entry((domain, kind));
                answers
                    .or_insert_with_key(|(domain, kind)| self.meters.gauge(domain, Part::Answers(*kind)))
                    .add(more, more * ANSWER);
            }
        }
        for (key, views) in work {
            self.document(&key, &views, say);
        }
    }

    /// Views whose filter the document can pass now or could before.
    fn applicable(&self, key: &DocKey, before: Option<&Version>) -> Vec<ViewNo> {
        let Some(views) = self.kinds.get(&(key.domain.clone(), key.kind)) else { return Vec::new() };
        let documents = self.documents.borrow();
        let mut found = Vec::new();
        for version in documents.get(key).into_iter().chain(before) {
            views.any.find(version, &mut found);
            if let Some(of_subtype) = version.subtype.as_deref().and_then(|subtype| views.by_subtype.get(subtype)) {
                of_subtype.find(version, &mut found);
            }
        }
        found
    }

    fn document(&mut self, key: &DocKey, views: &BTreeSet<ViewNo>, say: &mut impl FnMut(Said)) {
        let documents = Rc::clone(&self.documents);
        let documents = documents.borrow();
        let version = documents.get(key);
        let subject = self.subjects.get(key);
        let mut asked_now: SmallVec<[(ViewNo, Vec<RelationKey>); 2]> = SmallVec::new();
        for no in views {
            let Some(Installed { instance, cost }) = self.instances.get(no) else { continue };
            let Instance { logic: Logic::Rows(logic), schema, stamp_column, day, .. } = &**instance else { continue };
            let mut lookup =
                Lookups { subject: key, answers: subject.map(|s| &s.answers), asked: Vec::new(), newest: Stamp(0) };
            let now = day.map_or(self.now, |day| day.nearest(self.now));
            let mut outcome = cost.evaluation(|| match (version, logic) {
                (None, _) => Ok(Vec::new()),
                (Some(version), RowLogic::Source(source)) => {
                    source.evaluate(&version.doc, version.stamp, now, &mut lookup).map_err(|error| error.to_string())
                }
                (Some(version), RowLogic::Documents(_)) => Ok(vec![document_row(schema, key.id.as_str(), version)]),
            });
            let own = version.map_or(Stamp(0), |version| version.stamp);
            let stamp = own.max(lookup.newest);
            if let (true, Ok(rows), Some(column)) = (stamp > own, &mut outcome, *stamp_column) {
                restamp(rows, column, stamp);
            }
            asked_now.push((*no, lookup.asked));
            let empty = outcome.as_ref().is_ok_and(Vec::is_empty);
            let said = (*no, key.id.clone());
            if empty && !self.said.contains(&said) && !self.tables.borrow().holds(*no, key.id.as_str()) {
                continue;
            }
            self.said.insert(said);
            say(Said::Rows(RowChange { view: *no, document: key.id.clone(), outcome, stamp }));
        }
        self.ask(key, asked_now, say);
    }

    /// Remembers what each view asked for and says what is asked for the first or no longer.
    fn ask(&mut self, key: &DocKey, asked_now: SmallVec<[(ViewNo, Vec<RelationKey>); 2]>, say: &mut impl FnMut(Said)) {
        if asked_now.iter().all(|(_, keys)| keys.is_empty()) && !self.subjects.contains_key(key) {
            return;
        }
        let instances = &self.instances;
        let subject = self.subjects.entry(key.clone()).or_default();
        let before = subject.questions();
        subject.asked.retain(|(view, _)| instances.contains_key(view) && !asked_now.iter().any(|(now, _)| now == view));
        subject.asked.extend(asked_now.into_iter().filter(|(_, keys)| !keys.is_empty()));
        let after = subject.questions();
        for relation in before.difference(&after) {
            let gone = subject.answers.remove(relation).map_or(0, |gone| gone.len().cast_signed());
            if gone > 0
                && let Some(answers) = self.answers.get(&(relation.domain.clone(), relation.kind))
            {
                answers.add(-gone, -gone * ANSWER);
            }
            say(Said::Demand(Demand { relation: relation.clone(), subject: key.clone(), asks: false }));
        }
        for relation in after.difference(&before) {
            say(Said::Demand(Demand { relation: relation.clone(), subject: key.clone(), asks: true }));
        }
        if after.is_empty() {
            self.subjects.remove(key);
        }
    }
}

/// Sets the stamp column of freshly made rows.
fn restamp(rows: &mut [Row], column: usize, stamp: Stamp) {
    for row in rows {
        let mut cells: Vec<Cell> = row.to_vec();
        if let Some(cell) = cells.get_mut(column) {
            *cell = Cell::Datetime(stamp.0);
        }
        *row = cells.into();
    }
}

/// Answers an evaluation's questions from what its subject was told, and notes them.
struct Lookups<'a> {
    subject: &'a DocKey,
    answers: Option<&'a HashMap<RelationKey, Vec<(DocKey, Version)>>>,
    asked: Vec<RelationKey>,
    newest: Stamp,
}

impl Lookup for Lookups<'_> {
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc> {
        let Some(kind) = RelationKind::of(relation) else { return Vec::new() };
        let question = RelationKey { domain: self.subject.domain.clone(), kind, id: key.into() };
        let found = self.answers.and_then(|answers| answers.get(&question)).map_or(&[][..], Vec::as_slice);
        self.newest = found.iter().map(|(_, version)| version.stamp).fold(self.newest, Stamp::max);
        let documents = found.iter().map(|(_, version)| version.doc.clone()).collect();
        if !self.asked.contains(&question) {
            self.asked.push(question);
        }
        documents
    }
}
