//! Applies a form's case blocks to the cases they touch.
//!
//! In: the present [`CaseState`]s and [`CaseBlock`]s in the order of `casexml::find_case_blocks`.
//! Out: the states afterwards, and one [`CaseTouch`] per case for its transaction row.
//! Never: reads the database, reads a clock, parses XML. The caller loads and locks every case first.
//!
//! Source: forms-and-cases.md §9, §10.1, §15.1.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::BitOr,
};

use schemas::id::{CaseId, DomainId, FormId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::casexml::{
    AttachmentChange, CaseBlock, CaseColumns, CaseError, CaseFile, IndexChange, Relationship, ledger::LedgerChange,
};

/// Bits of a case transaction's type (§15.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransactionKind(pub i32);

impl TransactionKind {
    /// Made by a form.
    pub const FORM: Self = Self(1);
    /// Rebuild with a reason.
    pub const REBUILD_WITH_REASON: Self = Self(2);
    /// Rebuild that a user asked for.
    pub const REBUILD_BY_USER: Self = Self(4);
    /// Rebuild because a user was archived.
    pub const USER_ARCHIVED: Self = Self(8);
    /// Rebuild because a form was archived or unarchived.
    pub const FORM_ARCHIVED: Self = Self(16);
    /// Rebuild because a form was edited.
    pub const FORM_EDITED: Self = Self(32);
    /// The form has ledger blocks for the case.
    pub const LEDGER: Self = Self(64);
    /// The form creates the case.
    pub const CASE_CREATE: Self = Self(128);
    /// The form closes the case.
    pub const CASE_CLOSE: Self = Self(256);
    /// The form changes indices of the case.
    pub const CASE_INDEX: Self = Self(512);
    /// The form changes attachments of the case.
    pub const CASE_ATTACHMENT: Self = Self(1024);
    /// An error form that was processed again.
    pub const FORM_REPROCESSED: Self = Self(2048);

    /// True if every bit of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for TransactionKind {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One index of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseIndexState {
    /// Name, unique per case.
    pub identifier: String,
    /// Type of the referenced case, as the form stated it.
    pub referenced_type: String,
    /// The referenced case; empty marks a removed index, kept so that phones are told (§10.1).
    pub referenced_id: String,
    /// Kind of reference.
    pub relationship: Relationship,
}

impl CaseIndexState {
    /// True unless it was removed.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        !self.referenced_id.is_empty()
    }
}

/// A case: its columns (§9.3), dynamic properties, indices and history. Times are microseconds since 1970 UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseState {
    /// Its id.
    pub case_id: CaseId,
    /// The domain it belongs to.
    pub domain: DomainId,
    /// Its type; empty for a case that no form created.
    pub case_type: String,
    /// Its name.
    pub name: String,
    /// User, group or location that owns it, or one of the special owners of §9.4.
    pub owner_id: String,
    /// When it was opened.
    pub opened_on: Option<i64>,
    /// Who opened it.
    pub opened_by: Option<String>,
    /// Latest time that any block named; never goes back, except by replay.
    pub modified_on: Option<i64>,
    /// Who acted last.
    pub modified_by: String,
    /// When the server last changed it.
    pub server_modified_on: i64,
    /// True once a block closed it; nothing reopens it but replay.
    pub closed: bool,
    /// When it was closed.
    pub closed_on: Option<i64>,
    /// Who closed it: null if it never was, empty after a replay that reopened it.
    pub closed_by: Option<String>,
    /// True if deleted, by a person or because no form is left.
    pub deleted: bool,
    /// When a person deleted it.
    pub deleted_on: Option<i64>,
    /// Which deletion it was part of.
    pub deletion_id: Option<String>,
    /// Id in some other system.
    pub external_id: Option<String>,
    /// Place, where the case stands for one.
    pub location_id: Option<String>,
    /// Dynamic properties.
    pub properties: Map<String, Value>,
    /// Indices in the order they were added, removed ones included.
    pub indices: Vec<CaseIndexState>,
    /// Files by name.
    pub attachments: BTreeMap<String, CaseFile>,
    /// Forms that count in its state, in the order they were applied.
    pub xform_ids: Vec<String>,
}

impl CaseState {
    /// A case that no block has touched yet.
    #[must_use]
    pub fn new(case_id: CaseId, domain: DomainId) -> Self {
        Self {
            case_id,
            domain,
            case_type: String::new(),
            name: String::new(),
            owner_id: String::new(),
            opened_on: None,
            opened_by: None,
            modified_on: None,
            modified_by: String::new(),
            server_modified_on: 0,
            closed: false,
            closed_on: None,
            closed_by: None,
            deleted: false,
            deleted_on: None,
            deletion_id: None,
            external_id: None,
            location_id: None,
            properties: Map::new(),
            indices: Vec::new(),
            attachments: BTreeMap::new(),
            xform_ids: Vec::new(),
        }
    }

    /// Lists a form among those that count.
    pub(super) fn add_form(&mut self, form_id: &FormId) {
        if !self.xform_ids.iter().any(|known| known == form_id.as_str()) {
            self.xform_ids.push(form_id.as_str().to_owned());
        }
    }

    /// The indices that were not removed.
    pub fn live_indices(&self) -> impl Iterator<Item = &CaseIndexState> {
        self.indices.iter().filter(|index| index.is_live())
    }
}

/// What applying needs to know of the form.
#[derive(Clone, Copy, Debug)]
pub struct FormContext<'a> {
    /// Its id.
    pub form_id: &'a FormId,
    /// The domain it was sent to.
    pub domain: &'a DomainId,
    /// When the server received it, microseconds since 1970 UTC; stands in for a block without `date_modified`.
    pub received_on: i64,
    /// What the touched cases' `server_modified_on` becomes: `received_on`, or `edited_on` if that is later.
    pub server_modified_on: i64,
}

/// What one form did to one case: the material of its transaction row.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseTouch {
    /// The case.
    pub case_id: CaseId,
    /// The bits of the transaction.
    pub kind: TransactionKind,
    /// The first block's `date_modified`, microseconds since 1970 UTC.
    pub client_date: Option<i64>,
    /// The blocks that were applied, in order.
    pub blocks: Vec<CaseBlock>,
    /// True if some block changed indices: those of the case are to be checked.
    pub indices_changed: bool,
}

/// What a form does to cases.
#[derive(Clone, Debug, Default)]
pub struct CaseWork {
    /// Its case blocks, in the order in which they take effect.
    pub blocks: Vec<CaseBlock>,
    /// Its ledger changes, in document order.
    pub ledgers: Vec<LedgerChange>,
}

impl From<Vec<CaseBlock>> for CaseWork {
    fn from(blocks: Vec<CaseBlock>) -> Self {
        Self { blocks, ledgers: Vec::new() }
    }
}

impl CaseWork {
    /// The ids of all cases the form is about, sorted, each once: what has to be locked and loaded before applying.
    #[must_use]
    pub fn case_ids(&self) -> BTreeSet<CaseId> {
        let blocks = self.blocks.iter().map(|block| &block.case_id);
        blocks.chain(self.ledgers.iter().map(|change| &change.key.case_id)).cloned().collect()
    }
}

/// Groups what a form does by case, keeping the blocks' order: in case id order. An edit takes the new body's transactions
/// from here and replays.
#[must_use]
pub fn group_by_case(work: CaseWork) -> Vec<CaseTouch> {
    let mut touches: BTreeMap<CaseId, CaseTouch> = BTreeMap::new();
    fn touched<'t>(
        touches: &'t mut BTreeMap<CaseId, CaseTouch>,
        id: &CaseId,
        client_date: Option<i64>,
    ) -> &'t mut CaseTouch {
        touches.entry(id.clone()).or_insert_with(|| CaseTouch {
            case_id: id.clone(),
            kind: TransactionKind::FORM,
            client_date,
            blocks: Vec::with_capacity(1),
            indices_changed: false,
        })
    }
    for block in work.blocks {
        let touch = touched(&mut touches, &block.case_id, block.date_modified);
        touch.kind = touch.kind | kind_of(&block);
        touch.indices_changed |= !block.indices.is_empty();
        touch.blocks.push(block);
    }
    for change in work.ledgers {
        let touch = touched(&mut touches, &change.key.case_id, change.date);
        touch.kind = touch.kind | TransactionKind::LEDGER;
    }
    touches.into_values().collect()
}

/// Applies what a form does to cases, but for the ledgers' values. `existing` must hold every case that the form is about
/// and that exists, in any domain; new cases are added to it. Returns one touch per case, in case id order.
///
/// # Errors
/// [`CaseError::IllegalCaseId`] if a case belongs to another domain, or if stock is at a case that neither exists nor is
/// made by this form; `existing` is then unchanged. Whether indices point
/// somewhere is a question for [`check_indices`] afterwards, so a caller that may have to take a form back keeps copies.
pub fn apply_blocks(
    existing: &mut BTreeMap<CaseId, CaseState>,
    work: CaseWork,
    form: &FormContext<'_>,
) -> Result<Vec<CaseTouch>, CaseError> {
    let touches = group_by_case(work);
    for touch in &touches {
        match existing.get(&touch.case_id) {
            Some(case) if case.domain != *form.domain => {
                return Err(CaseError::IllegalCaseId("Bad case id".to_owned()));
            }
            None if touch.blocks.is_empty() => {
                return Err(CaseError::IllegalCaseId(format!(
                    "a ledger block is about case '{}', which does not exist",
                    touch.case_id
                )));
            }
            _ => {}
        }
    }
    for touch in &touches {
        let case = existing
            .entry(touch.case_id.clone())
            .or_insert_with(|| CaseState::new(touch.case_id.clone(), form.domain.clone()));
        for block in &touch.blocks {
            apply_block(case, block, form.received_on);
        }
        case.server_modified_on = form.server_modified_on;
        case.add_form(form.form_id);
    }
    Ok(touches)
}

/// The bits that a block's actions set.
fn kind_of(block: &CaseBlock) -> TransactionKind {
    let bits = [
        (block.create.is_some(), TransactionKind::CASE_CREATE),
        (block.close, TransactionKind::CASE_CLOSE),
        (!block.indices.is_empty(), TransactionKind::CASE_INDEX),
        (!block.attachments.is_empty(), TransactionKind::CASE_ATTACHMENT),
    ];
    bits.into_iter().filter(|(set, _)| *set).fold(TransactionKind::FORM, |kind, (_, bit)| kind | bit)
}

/// Applies one block: its actions in order, then the columns of §9.3. `received_on` dates a block that has no date.
pub(super) fn apply_block(case: &mut CaseState, block: &CaseBlock, received_on: i64) {
    let at = block.date_modified.unwrap_or(received_on);
    let user = block.user_id.as_deref().unwrap_or_default();
    if let Some(columns) = &block.create {
        set_columns(case, columns);
    }
    if let Some(update) = &block.update {
        set_columns(case, &update.columns);
        for (name, value) in &update.properties {
            case.properties.insert(name.clone(), value.clone());
        }
    }
    for change in &block.indices {
        set_index(&mut case.indices, change);
    }
    for change in &block.attachments {
        set_attachment(&mut case.attachments, change);
    }
    if !user.is_empty() {
        user.clone_into(&mut case.modified_by);
    }
    case.modified_on = case.modified_on.max(Some(at));
    case.opened_on = case.opened_on.or(Some(at));
    if case.opened_by.as_deref().unwrap_or_default().is_empty() {
        case.opened_by.clone_from(&block.user_id);
    }
    if case.owner_id.is_empty() {
        user.clone_into(&mut case.owner_id);
    }
    if block.close {
        case.closed = true;
        case.closed_on = Some(at);
        case.closed_by.clone_from(&block.user_id);
    }
}

fn set_columns(case: &mut CaseState, columns: &CaseColumns) {
    fn set(column: &mut String, value: Option<&String>) {
        if let Some(value) = value {
            column.clone_from(value);
        }
    }
    set(&mut case.case_type, columns.case_type.as_ref());
    set(&mut case.name, columns.name.as_ref());
    set(&mut case.owner_id, columns.owner_id.as_ref());
    set(&mut case.modified_by, columns.user_id.as_ref());
    for (column, value) in
        [(&mut case.external_id, &columns.external_id), (&mut case.location_id, &columns.location_id)]
    {
        if value.is_some() {
            column.clone_from(value);
        }
    }
    case.opened_on = columns.opened_on.or(case.opened_on);
}

/// An element with a file adds or replaces, one without `src` and `from` removes, one with `from` alone says nothing (§10.3).
fn set_attachment(attachments: &mut BTreeMap<String, CaseFile>, change: &AttachmentChange) {
    match (&change.file, &change.src, &change.from) {
        (Some(file), _, _) => drop(attachments.insert(change.name.clone(), file.clone())),
        (None, None, None) => drop(attachments.remove(&change.name)),
        _ => {}
    }
}

fn set_index(indices: &mut Vec<CaseIndexState>, change: &IndexChange) {
    match indices.iter_mut().find(|index| index.identifier == change.identifier) {
        Some(index) if change.referenced_id.is_empty() => index.referenced_id.clear(),
        Some(index) => {
            index.referenced_type.clone_from(&change.case_type);
            index.referenced_id.clone_from(&change.referenced_id);
            index.relationship = change.relationship;
        }
        None if change.referenced_id.is_empty() => {}
        None => indices.push(CaseIndexState {
            identifier: change.identifier.clone(),
            referenced_type: change.case_type.clone(),
            referenced_id: change.referenced_id.clone(),
            relationship: change.relationship,
        }),
    }
}

/// Checks that every live index of every case whose indices the form changed points to a case of the domain, after all
/// blocks were applied. `states` answers for the cases that are loaded, `exists` for all others (deleted ones exist).
///
/// # Errors
/// [`CaseError::InvalidCaseIndex`] for the first index that points nowhere; the whole form fails.
pub fn check_indices(
    states: &BTreeMap<CaseId, CaseState>,
    touches: &[CaseTouch],
    exists: &dyn Fn(&CaseId) -> bool,
) -> Result<(), CaseError> {
    for case in touches.iter().filter(|touch| touch.indices_changed).filter_map(|touch| states.get(&touch.case_id)) {
        for index in case.live_indices() {
            let known = |id: &CaseId| states.get(id).map_or_else(|| exists(id), |target| target.domain == case.domain);
            if !CaseId::new(&index.referenced_id).is_ok_and(|id| known(&id)) {
                return Err(CaseError::InvalidCaseIndex {
                    case_id: case.case_id.clone(),
                    referenced_id: index.referenced_id.clone(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
