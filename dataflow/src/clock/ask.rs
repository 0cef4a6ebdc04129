//! Questions about rows, on their way through a tick.

use std::{collections::VecDeque, sync::Arc};

use schemas::{
    id::DocId,
    inside::{Explained, ProvenanceError, ProvenanceQuestion},
};

use super::TickClock;
use crate::{
    catalog::table_of,
    document::{DocKey, Share},
    provenance::{Ask, Found, GroupTrail, Look, Looked},
    view::Logic,
};

/// What each worker has looked up, in the order in which it was asked for.
pub(super) type LookedUp = Vec<VecDeque<Option<Looked>>>;

/// Questions that are answered when the tick is published.
#[derive(Default)]
pub(super) struct Asked {
    /// Each with the worker that looks the document up.
    looks: Vec<(usize, Look, Ask)>,
    /// Questions about aggregate views.
    groups: Vec<Ask>,
}

impl Asked {
    /// True if workers have to look something up.
    pub(super) fn looks_up(&self) -> bool {
        !self.looks.is_empty()
    }
}

impl<R> TickClock<R> {
    /// Sends questions about documents to the documents' homes. Those that have no answer are told so at once.
    pub(super) fn route(&self, asks: Vec<Ask>, shares: &mut [Share]) -> Asked {
        let mut asked = Asked::default();
        for ask in asks {
            match self.way(&ask.question) {
                Ok(Some(look)) => {
                    let home = self.workers.home(&look.key);
                    if let Some(share) = shares.get_mut(home) {
                        share.looks.push(look.clone());
                    }
                    asked.looks.push((home, look, ask));
                }
                Ok(None) => asked.groups.push(ask),
                Err(error) => reply(ask, Err(error)),
            }
        }
        asked
    }

    /// What has to be looked up to answer a question; nothing if it is about an aggregate view.
    fn way(&self, question: &ProvenanceQuestion) -> Result<Option<Look>, ProvenanceError> {
        let instance = self.catalog.published(&question.domain, &question.view)?;
        let Logic::Rows(rows) = &instance.logic else { return Ok(None) };
        let (domain, kind) = (question.domain.clone(), rows.kind());
        let id = question.key.as_deref().ok_or(ProvenanceError::NoKey)?;
        let id = DocId::new(id).map_err(|_| ProvenanceError::UnknownDocument { kind, id: id.to_owned() })?;
        Ok(Some(Look { view: instance.no, key: DocKey { domain, kind, id } }))
    }

    /// Answers questions with what the workers have looked up and what has just been published.
    pub(super) fn answer(&self, asked: Asked, mut looked: LookedUp) {
        for (home, look, ask) in asked.looks {
            let found = match looked.get_mut(home).and_then(VecDeque::pop_front) {
                Some(Some(looked)) => {
                    let (provenance, snapshot) = (looked.explained(&self.window), self.publisher.snapshot());
                    Ok(Found::Explained(Explained { provenance, snapshot }))
                }
                Some(None) => {
                    let DocKey { kind, id, .. } = look.key;
                    Err(ProvenanceError::UnknownDocument { kind, id: id.to_string() })
                }
                None => Err(ProvenanceError::Unavailable),
            };
            reply(ask, found);
        }
        for ask in asked.groups {
            let trail = self.trail(&ask.question).map(Found::Groups);
            reply(ask, trail);
        }
    }

    /// Where the rows of an aggregate view and those that it reads have just been published.
    fn trail(&self, question: &ProvenanceQuestion) -> Result<GroupTrail, ProvenanceError> {
        let instance = Arc::clone(self.catalog.published(&question.domain, &question.view)?);
        let (own, sources) = (table_of(&instance), self.catalog.sources_of(&instance));
        Ok(GroupTrail { instance, own, sources, snapshot: self.publisher.snapshot() })
    }
}

/// Answers a question. Who no longer waits for the answer does not miss it.
fn reply(ask: Ask, found: Result<Found, ProvenanceError>) {
    drop(ask.reply.send(found));
}
