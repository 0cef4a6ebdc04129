//! What evaluation may know besides the item: the root document, where in its items it stands, the time, and other
//! documents through [`Related`].

use compact_str::CompactString;
use schemas::{change::DocKind, doc::Doc, position::Stamp};

use crate::{error::EvalError, value::Value};

/// A way from one document to others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Relation {
    /// The document of that kind whose id is the key.
    Document(DocKind),
    /// The document of that CommCare type (`Group`, `WebUser`, …) whose id is the key.
    OtherDocument(Box<str>),
    /// Cases with an index that points at the case of the key.
    Subcases,
    /// Forms that touched the case of the key.
    FormsOfCase,
    /// Case-sharing groups of the mobile worker of the key.
    CaseSharingGroups,
    /// Reporting groups of the mobile worker of the key.
    ReportingGroups,
    /// Ledger values of the case of the key: documents with `section_id`, `product_code` and `balance`.
    Ledgers,
}

/// Finds other documents of the evaluated document's domain.
///
/// The implementation scopes to the domain; asking is what makes the row depend on the answer, so it may record the
/// demand even when nothing is found.
pub trait Related {
    /// The documents that `relation` leads to from `key`, in a stable order.
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc>;
}

/// Finds nothing: for documents that are evaluated alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NothingRelated;

impl Related for NothingRelated {
    fn get(&mut self, _: &Relation, _: &str) -> Vec<Doc> {
        Vec::new()
    }
}

/// Steps that one document may take; real definitions stay far below.
const MAX_STEPS: u32 = 1_000_000;

/// Most answers remembered while one document is evaluated.
const REMEMBERED: usize = 32;

/// Remembers answers while one document is evaluated, as the original's per-change cache does.
pub(crate) struct Memory<'r> {
    related: &'r mut dyn Related,
    answers: Vec<(Relation, CompactString, Vec<Doc>)>,
}

impl<'r> Memory<'r> {
    pub(crate) fn new(related: &'r mut dyn Related) -> Self {
        Self { related, answers: Vec::new() }
    }
}

impl Related for Memory<'_> {
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc> {
        if let Some((.., found)) = self.answers.iter().find(|(r, k, _)| k == key && r == relation) {
            return found.clone();
        }
        let found = self.related.get(relation, key);
        if self.answers.len() < REMEMBERED {
            self.answers.push((relation.clone(), key.into(), found.clone()));
        }
        found
    }
}

/// The evaluation context (ucr.md §0). One per document and, for looked-up documents, one more inside.
pub struct Context<'a, 'r> {
    /// The root document; `None` is "no evaluation context".
    pub(crate) root: Option<Value<'a>>,
    /// 0-based number of the current base item.
    pub(crate) iteration: i64,
    /// Creation time of the context, microseconds since 1970 UTC: the value of `inserted_at`.
    pub(crate) stamp: Stamp,
    /// "Now", microseconds since 1970 UTC.
    pub(crate) now: i64,
    pub(crate) related: &'r mut dyn Related,
    /// Steps taken for the document so far.
    pub(crate) steps: u32,
    /// Per named expression the last item it ran on and what came out, for the current iteration.
    pub(crate) named: Vec<Option<(Value<'a>, Value<'a>)>>,
}

impl std::fmt::Debug for Context<'_, '_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("root", &self.root).field("iteration", &self.iteration).finish_non_exhaustive()
    }
}

impl<'a, 'r> Context<'a, 'r> {
    /// A context whose root is `root`, at its first base item. `now_micros` is "now" in microseconds since 1970 UTC.
    #[must_use]
    pub fn new(root: Option<Value<'a>>, stamp: Stamp, now_micros: i64, related: &'r mut dyn Related) -> Self {
        Self { root, iteration: 0, stamp, now: now_micros, related, steps: 0, named: Vec::new() }
    }

    /// Moves to another base item.
    #[must_use]
    pub fn at_iteration(mut self, iteration: i64) -> Self {
        self.start_iteration(iteration);
        self
    }

    pub(crate) fn start_iteration(&mut self, iteration: i64) {
        self.iteration = iteration;
        self.named.clear();
    }

    /// Counts one step of what can multiply: list elements, looked-up documents, named expressions.
    ///
    /// # Errors
    /// [`EvalError::Raised`] when one document takes more than [`MAX_STEPS`].
    pub(crate) fn step(&mut self) -> Result<(), EvalError> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(EvalError::raised("the document takes too many steps to evaluate"));
        }
        Ok(())
    }

    /// A context of its own for another root, or for none.
    pub(crate) fn inside<'s>(&'s mut self, root: Option<Value<'a>>) -> Context<'a, 's> {
        Context {
            root,
            iteration: 0,
            stamp: self.stamp,
            now: self.now,
            related: &mut *self.related,
            steps: self.steps,
            named: Vec::new(),
        }
    }
}
