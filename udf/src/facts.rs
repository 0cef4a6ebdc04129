//! What compiling finds out beside the result: which other documents are asked for and what is read of them, what of the
//! domain's registry is used, how much there is to evaluate.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use crate::{context::Relation, registry::NameKind};

/// What was found out beside the result.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Results change as time passes.
    pub(crate) reads_clock: bool,
    /// What the result uses of the domain's registry.
    pub(crate) uses: BTreeSet<(NameKind, String)>,
    /// Other documents that are asked for.
    pub(crate) demands: Vec<Demand>,
    /// Expressions and filters; named ones count once.
    pub(crate) parts: usize,
}

/// A way to other documents that evaluation may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Which documents.
    pub relation: Relation,
    /// The expression for the key, as it is written.
    pub key: Json,
    /// The demand whose document the key is computed on, by its place in the list; `None` for the evaluated document.
    pub through: Option<usize>,
    /// Where it is written, as JSON pointers.
    pub pointers: Vec<String>,
    /// Properties that are read of what is found, parts of a path joined by dots, as far as the definition shows it.
    pub reads: BTreeSet<String>,
}

/// Number of a demand.
pub(crate) type DemandNo = usize;

/// What the expression that is being compiled is evaluated on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Item {
    /// The evaluated document.
    #[default]
    Own,
    /// A document that was asked for.
    Found(DemandNo),
    /// Something else: a part of a document, or a computed value.
    Other,
}

impl Item {
    /// The item that stands for the documents of a demand, if there is one.
    pub(crate) fn found_by(demand: Option<DemandNo>) -> Self {
        demand.map_or(Self::Other, Self::Found)
    }

    /// The demand whose document this is.
    pub(crate) fn demand(self) -> Option<DemandNo> {
        match self {
            Self::Found(demand) => Some(demand),
            Self::Own | Self::Other => None,
        }
    }
}

impl Facts {
    /// Notes that documents are asked for. The same question at another place is the same demand.
    pub(crate) fn demand(&mut self, relation: Relation, key: &Json, item: Item, pointer: &str) -> DemandNo {
        let through = item.demand();
        let same = |held: &Demand| held.relation == relation && held.through == through && held.key == *key;
        let no = self.demands.iter().position(same).unwrap_or_else(|| {
            let key = key.clone();
            self.demands.push(Demand { relation, key, through, pointers: Vec::new(), reads: BTreeSet::new() });
            self.demands.len() - 1
        });
        if let Some(held) = self.demands.get_mut(no)
            && !held.pointers.iter().any(|known| known == pointer)
        {
            held.pointers.push(pointer.to_owned());
        }
        no
    }

    /// Notes that a property of an item is read.
    pub(crate) fn reads(&mut self, item: Item, property: String) {
        if let Some(demand) = item.demand()
            && let Some(held) = self.demands.get_mut(demand)
        {
            held.reads.insert(property);
        }
    }
}
