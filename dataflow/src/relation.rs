//! Relations: how one document reaches others, and who has to be told when those change (architecture D8).
//!
//! A row may read the document of an id, the subcases of a case, the forms of a case. Each such question is a
//! [`RelationKey`]; the worker that owns the key holds the answer and the set of documents (*subjects*) that asked.
//!
//! Only kinds of question that an installed view asks are kept up ([`Relations::want`]): to look into every form for the
//! cases that it touched, and to hold what was found, costs more than most views do.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use hashbrown::HashMap;
use indexmap::IndexSet;
use schemas::{
    change::DocKind,
    doc::{Node, Symbol, View},
    id::{DocId, DomainId},
};
use serde::{Deserialize, Serialize};

use crate::{
    document::{DocKey, Documents, Version, partition},
    meter::{Gauge, Meters, Part},
};

/// Kinds of question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum RelationKind {
    /// The document of that kind and id.
    Document(DocKind),
    /// The cases with an index that points to the case.
    Subcases,
    /// The forms that touched the case.
    FormsOfCase,
    /// The ledger values at the case.
    Ledgers,
    /// The groups of the mobile worker whose members share cases.
    CaseSharingGroups,
    /// The groups of the mobile worker that reports are filtered by.
    ReportingGroups,
}

impl RelationKind {
    /// The relation of an expression, or `None` for kinds of document that the log does not carry.
    pub(crate) fn of(relation: &udf::Relation) -> Option<Self> {
        match relation {
            udf::Relation::Document(kind) => Some(Self::Document(*kind)),
            udf::Relation::Subcases => Some(Self::Subcases),
            udf::Relation::FormsOfCase => Some(Self::FormsOfCase),
            udf::Relation::Ledgers => Some(Self::Ledgers),
            udf::Relation::CaseSharingGroups => Some(Self::CaseSharingGroups),
            udf::Relation::ReportingGroups => Some(Self::ReportingGroups),
            udf::Relation::OtherDocument(doc_type) => match &**doc_type {
                "WebUser" => Some(Self::Document(DocKind::WebUser)),
                "Group" => Some(Self::Document(DocKind::Group)),
                "FixtureDataType" => Some(Self::Document(DocKind::LookupTable)),
                "FixtureDataItem" => Some(Self::Document(DocKind::LookupRow)),
                "Application" => Some(Self::Document(DocKind::Application)),
                _ => None,
            },
        }
    }

    /// What it is called where people see it; a document that is asked for by its id goes by its kind.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Document(kind) => kind.name(),
            Self::Subcases => "subcases",
            Self::FormsOfCase => "forms_of_case",
            Self::Ledgers => "ledgers",
            Self::CaseSharingGroups => "case_sharing_groups",
            Self::ReportingGroups => "reporting_groups",
        }
    }

    /// The kind of document that answers are made of, if they are kept; the document of an id is found by its key.
    pub(crate) const fn contributor(self) -> Option<DocKind> {
        match self {
            Self::Document(_) => None,
            Self::Subcases => Some(DocKind::Case),
            Self::FormsOfCase => Some(DocKind::Form),
            Self::Ledgers => Some(DocKind::Ledger),
            Self::CaseSharingGroups | Self::ReportingGroups => Some(DocKind::Group),
        }
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct RelationKey {
    pub(crate) domain: DomainId,
    pub(crate) kind: RelationKind,
    pub(crate) id: Box<str>,
}

impl RelationKey {
    /// The worker that answers; for a document's own id it is the document's home.
    pub(crate) fn partition(&self) -> u64 {
        match self.kind {
            RelationKind::Document(kind) => partition(&self.domain, kind, &self.id),
            RelationKind::Subcases | RelationKind::FormsOfCase | RelationKind::Ledgers => {
                partition(&self.domain, DocKind::Case, &self.id)
            }
            RelationKind::CaseSharingGroups | RelationKind::ReportingGroups => {
                partition(&self.domain, DocKind::User, &self.id)
            }
        }
    }
}

/// A document enters, changes in or leaves the answer to a question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Related {
    pub(crate) relation: RelationKey,
    pub(crate) document: DocKey,
    pub(crate) version: Option<Version>,
}

/// Most subjects that are told of a change in the tick of the change. More are told over many ticks, while the domain's
/// tables stay where they are and other domains go on (architecture D11). Few in tests, so that they come to it.
const AT_ONCE: usize = if cfg!(test) { 2 } else { 512 };

/// What those who answer are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Telling {
    /// An answer has changed.
    Changed(Related),
    /// Tell so many of the subjects that have not been told yet, on that worker.
    More { worker: u64, most: usize },
}

impl Telling {
    /// The worker that it is for.
    pub(crate) fn partition(&self) -> u64 {
        match self {
            Self::Changed(related) => related.relation.partition(),
            Self::More { worker, .. } => *worker,
        }
    }
}

/// A subject starts or stops asking.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Demand {
    pub(crate) relation: RelationKey,
    pub(crate) subject: DocKey,
    pub(crate) asks: bool,
}

/// Part of an answer, for one subject.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) subject: DocKey,
    pub(crate) related: Related,
}

/// The questions that a document contributes to, of the kinds that are `wanted`: those of the cases it points to, touched, or
/// counts the stock of.
fn contributions(key: &DocKey, version: Option<&Version>, wanted: &impl Fn(RelationKind) -> bool) -> Vec<RelationKey> {
    let question = |kind, id: &str| RelationKey { domain: key.domain.clone(), kind, id: id.into() };
    let mut found = Vec::new();
    let Some(version) = version else { return found };
    match key.kind {
        DocKind::Case if !wanted(RelationKind::Subcases) => {}
        DocKind::Form if !wanted(RelationKind::FormsOfCase) => {}
        DocKind::Ledger if !wanted(RelationKind::Ledgers) => {}
        DocKind::Case => {
            if let Some(View::List(indices)) = version.doc.get(Symbol::intern("indices")).map(Node::view) {
                let referenced = Symbol::intern("referenced_id");
                for id in indices.iter().filter_map(|index| index.get(referenced)?.as_text()) {
                    found.push(question(RelationKind::Subcases, id));
                }
            }
        }
        DocKind::Form => {
            if let Some(form) = version.doc.get(Symbol::intern("form")) {
                touched_cases(form, &mut |id| found.push(question(RelationKind::FormsOfCase, id)));
            }
        }
        DocKind::Ledger => {
            let case_id = version.doc.get(Symbol::intern("case_id")).and_then(Node::as_text);
            found.extend(case_id.map(|id| question(RelationKind::Ledgers, id)));
        }
        DocKind::Group => {
            let is =
                |name: &str| matches!(version.doc.get(Symbol::intern(name)).map(Node::view), Some(View::Bool(true)));
            let kinds = [
                (is("case_sharing"), RelationKind::CaseSharingGroups),
                (is("reporting"), RelationKind::ReportingGroups),
            ];
            let kinds = kinds.map(|(on, kind)| (on && wanted(kind), kind));
            if let Some(View::List(users)) = version.doc.get(Symbol::intern("users")).map(Node::view) {
                for id in users.iter().filter_map(Node::as_text) {
                    found.extend(kinds.iter().filter(|(on, _)| *on).map(|(_, kind)| question(*kind, id)));
                }
            }
        }
        DocKind::User
        | DocKind::WebUser
        | DocKind::Location
        | DocKind::LocationType
        | DocKind::LookupTable
        | DocKind::LookupRow
        | DocKind::Application
        | DocKind::DataSource
        | DocKind::AggregateView
        | DocKind::NamedExpression
        | DocKind::NamedFilter => {}
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Calls `found` with the id of every case block below a form node (forms-and-cases.md §8).
fn touched_cases(node: Node<'_>, found: &mut impl FnMut(&str)) {
    match node.view() {
        View::List(items) => items.iter().for_each(|item| touched_cases(item, found)),
        View::Map(map) => {
            let (case, id, xmlns) = (Symbol::intern("case"), Symbol::intern("@case_id"), Symbol::intern("@xmlns"));
            if map.get(xmlns).and_then(Node::as_text) == Some("http://code.javarosa.org/devicereport") {
                return;
            }
            for (name, value) in map.iter() {
                if name != case {
                    touched_cases(value, found);
                    continue;
                }
                let mut block = |block: Node<'_>| {
                    if let Some(id) = block.get(id).and_then(Node::as_text) {
                        found(id);
                    }
                };
                match value.view() {
                    View::List(blocks) => blocks.iter().for_each(block),
                    _ => block(value),
                }
            }
        }
        _ => {}
    }
}

/// A change of an answer of which the subjects in places below `left` have not been told.
struct Untold {
    related: Related,
    left: usize,
}

/// A kind of question that views of a domain ask.
struct Wanted {
    /// Number of views.
    views: usize,
    /// Who asked which question.
    questions: Arc<Gauge>,
    /// What answers are kept.
    answers: Arc<Gauge>,
}

/// Bytes of a subject that asked, where the question is asked and where it is answered.
const EDGE: isize = (2 * size_of::<DocKey>() + size_of::<RelationKey>()).cast_signed();

/// Bytes of a document in an answer. The document itself is held once.
pub(crate) const ANSWER: isize = size_of::<(DocKey, Version)>().cast_signed();

/// The questions that one worker answers.
pub(crate) struct Relations {
    /// The answers to questions for the document of an id, which has the same home.
    documents: Rc<RefCell<Documents>>,
    subjects: HashMap<RelationKey, IndexSet<DocKey>>,
    /// Changes of which subjects are still to be told.
    untold: VecDeque<Untold>,
    /// The answers to all other questions.
    answers: HashMap<RelationKey, Vec<(DocKey, Version)>>,
    wanted: HashMap<DomainId, BTreeMap<RelationKind, Wanted>>,
    meters: Meters,
}

impl Relations {
    pub(crate) fn new(documents: Rc<RefCell<Documents>>, meters: &Meters) -> Self {
        Self {
            documents,
            subjects: HashMap::new(),
            untold: VecDeque::new(),
            answers: HashMap::new(),
            wanted: HashMap::new(),
            meters: meters.clone(),
        }
    }

    /// A view of the domain asks these kinds of question from now on. Returns those whose answers are still empty: the
    /// documents that they are made of have to contribute before the view is complete.
    pub(crate) fn want(&mut self, domain: &DomainId, kinds: &BTreeSet<RelationKind>) -> Vec<RelationKind> {
        let wanted = self.wanted.entry(domain.clone()).or_default();
        let mut fresh = Vec::new();
        for kind in kinds {
            let held = wanted.entry(*kind).or_insert_with(|| Wanted {
                views: 0,
                questions: self.meters.gauge(domain, Part::Questions(*kind)),
                answers: self.meters.gauge(domain, Part::Answers(*kind)),
            });
            held.views += 1;
            if held.views == 1 && kind.contributor().is_some() {
                fresh.push(*kind);
            }
        }
        fresh
    }

    /// A view that asked these kinds of question is gone. Returns those that nobody asks any longer; their answers, and who
    /// asked, are forgotten.
    pub(crate) fn unwant(&mut self, domain: &DomainId, kinds: &BTreeSet<RelationKind>) -> Vec<RelationKind> {
        let Some(wanted) = self.wanted.get_mut(domain) else { return Vec::new() };
        let mut gone = Vec::new();
        for kind in kinds {
            let Some(held) = wanted.get_mut(kind) else { continue };
            held.views -= 1;
            if held.views == 0 {
                wanted.remove(kind);
                gone.push(*kind);
            }
        }
        if !gone.is_empty() {
            let stays = |question: &RelationKey| question.domain != *domain || !gone.contains(&question.kind);
            self.answers.retain(|question, _| stays(question));
            self.subjects.retain(|question, _| stays(question));
            self.untold.retain(|untold| stays(&untold.related.relation));
        }
        gone
    }

    /// What a document that has changed means for the questions that are asked.
    pub(crate) fn changes(
        &self,
        key: &DocKey,
        before: Option<&Version>,
        now: Option<&Version>,
        say: &mut impl FnMut(Related),
    ) {
        let Some(wanted) = self.wanted.get(&key.domain) else { return };
        let is_wanted = |kind| wanted.contains_key(&kind);
        let old = contributions(key, before, &is_wanted);
        let new = contributions(key, now, &is_wanted);
        for relation in old.into_iter().filter(|relation| !new.contains(relation)) {
            say(Related { relation, document: key.clone(), version: None });
        }
        let own = RelationKind::Document(key.kind);
        let own =
            is_wanted(own).then(|| RelationKey { domain: key.domain.clone(), kind: own, id: key.id.as_str().into() });
        for relation in new.into_iter().chain(own) {
            say(Related { relation, document: key.clone(), version: now.cloned() });
        }
    }

    /// What a document contributes to one kind of question that is asked for the first time.
    pub(crate) fn contribute(key: &DocKey, version: &Version, kind: RelationKind, say: &mut impl FnMut(Related)) {
        for relation in contributions(key, Some(version), &|wanted| wanted == kind) {
            say(Related { relation, document: key.clone(), version: Some(version.clone()) });
        }
    }

    /// Takes in a change of an answer and tells the subjects that asked, unless there are too many.
    pub(crate) fn relate(&mut self, related: Related, tell: &mut impl FnMut(Answer)) {
        // Who has not been told of an earlier change of the document is told of this one instead.
        self.untold.retain(|untold| {
            untold.related.document != related.document || untold.related.relation != related.relation
        });
        if let Some(subjects) = self.subjects.get(&related.relation) {
            if subjects.len() > AT_ONCE {
                self.untold.push_back(Untold { related: related.clone(), left: subjects.len() });
            } else {
                for subject in subjects {
                    tell(Answer { subject: subject.clone(), related: related.clone() });
                }
            }
        }
        if !matches!(related.relation.kind, RelationKind::Document(_)) {
            let wanted = wanted(&self.wanted, &related.relation).map(|wanted| Arc::clone(&wanted.answers));
            let more = upsert(&mut self.answers, related);
            if let (Some(answers), true) = (wanted, more != 0) {
                answers.add(more, more * ANSWER);
            }
        }
    }

    /// Tells at most so many of those who have not been told yet, a part of each change.
    pub(crate) fn tell_more(&mut self, most: usize, tell: &mut impl FnMut(Answer)) {
        let share = most.div_ceil(self.untold.len().max(1));
        let mut left = most;
        for _ in 0..self.untold.len() {
            let Some(mut untold) = self.untold.pop_front() else { break };
            let Some(subjects) = self.subjects.get(&untold.related.relation) else { continue };
            // Subjects come and go meanwhile: a new one is at the end and knows the answer, and the place of one that is
            // gone is taken by the last one. So whoever is below `left` has not been told, and nobody else.
            let end = untold.left.min(subjects.len());
            let start = end.saturating_sub(share.min(left));
            for subject in (start..end).filter_map(|at| subjects.get_index(at)) {
                tell(Answer { subject: subject.clone(), related: untold.related.clone() });
            }
            left -= end - start;
            untold.left = start;
            if start > 0 {
                self.untold.push_back(untold);
            }
        }
    }

    /// Number of subjects that have not been told yet of some change.
    pub(crate) fn untold(&self) -> usize {
        self.untold.iter().map(|untold| untold.left).sum()
    }

    /// Domains with subjects that have not been told yet.
    pub(crate) fn behind(&self) -> BTreeSet<DomainId> {
        self.untold.iter().map(|untold| untold.related.relation.domain.clone()).collect()
    }

    /// Registers or forgets a subject; a new one is told the present answer.
    pub(crate) fn demand(&mut self, demand: Demand, tell: &mut impl FnMut(Answer)) {
        if !demand.asks {
            if let Some(subjects) = self.subjects.get_mut(&demand.relation) {
                if let (true, Some(wanted)) =
                    (subjects.swap_remove(&demand.subject), wanted(&self.wanted, &demand.relation))
                {
                    wanted.questions.add(-1, -EDGE);
                }
                if subjects.is_empty() {
                    self.subjects.remove(&demand.relation);
                }
            }
            return;
        }
        let mut answer = |document: &DocKey, version: &Version| {
            let (relation, document, version) = (demand.relation.clone(), document.clone(), Some(version.clone()));
            tell(Answer { subject: demand.subject.clone(), related: Related { relation, document, version } });
        };
        if let RelationKind::Document(kind) = demand.relation.kind {
            let key =
                DocId::new(&demand.relation.id).map(|id| DocKey { domain: demand.relation.domain.clone(), kind, id });
            if let Ok(key) = key
                && let Some(version) = self.documents.borrow().get(&key)
            {
                answer(&key, version);
            }
        } else {
            let held = self.answers.get(&demand.relation).into_iter().flatten();
            held.for_each(|(document, version)| answer(document, version));
        }
        let wanted = wanted(&self.wanted, &demand.relation);
        if self.subjects.entry(demand.relation).or_default().insert(demand.subject)
            && let Some(wanted) = wanted
        {
            wanted.questions.add(1, EDGE);
        }
    }
}

fn wanted<'a>(
    wanted: &'a HashMap<DomainId, BTreeMap<RelationKind, Wanted>>,
    question: &RelationKey,
) -> Option<&'a Wanted> {
    wanted.get(&question.domain)?.get(&question.kind)
}

/// Puts a document into, or takes it out of, the answer it belongs to; answers are sorted by document. Returns how many more
/// documents there are in it.
pub(crate) fn upsert(answers: &mut HashMap<RelationKey, Vec<(DocKey, Version)>>, related: Related) -> isize {
    let Related { relation, document, version } = related;
    let Some(version) = version else {
        let Some(held) = answers.get_mut(&relation) else { return 0 };
        let before = held.len();
        held.retain(|(key, _)| *key != document);
        let gone = before - held.len();
        if held.is_empty() {
            answers.remove(&relation);
        }
        return -gone.cast_signed();
    };
    let held = answers.entry(relation).or_default();
    match held.binary_search_by(|(key, _)| key.cmp(&document)) {
        Ok(at) => {
            if let Some(slot) = held.get_mut(at) {
                slot.1 = version;
            }
            0
        }
        Err(at) => {
            held.insert(at, (document, version));
            1
        }
    }
}
