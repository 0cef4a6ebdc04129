//! Ledger blocks: stock counted at, or moved between, cases.
//!
//! In: a form's JSON. Out: [`LedgerChange`]s, one per entry and side, in document order.
//! Source: forms-and-cases.md §11.

use schemas::{
    id::{CaseId, DocId, IdError},
    time::parse_micros,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{CaseError, value::items, value::text};
use crate::xform::DEVICE_REPORT;

/// Namespace of ledger blocks.
pub const LEDGER_V1: &str = "http://commcarehq.org/ledger/v1";

/// Characters of a transfer's own type that are kept.
const TYPE_CHARS: usize = 20;

/// What an entry says about its ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerKind {
    /// The quantity was counted.
    Balance,
    /// The quantity came, or went if it is negative.
    Transfer,
}

impl LedgerKind {
    /// The stored number.
    #[must_use]
    pub const fn bits(self) -> i16 {
        match self {
            Self::Balance => 1,
            Self::Transfer => 2,
        }
    }

    /// The kind of a stored number.
    #[must_use]
    pub const fn from_bits(bits: i16) -> Option<Self> {
        match bits {
            1 => Some(Self::Balance),
            2 => Some(Self::Transfer),
            _ => None,
        }
    }
}

/// Identity of a ledger value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LedgerKey {
    /// The case that the stock is at.
    pub case_id: CaseId,
    /// Section of the ledger.
    pub section_id: String,
    /// What is counted, mostly a product.
    pub entry_id: String,
}

impl LedgerKey {
    /// The value's document id: `case/section/entry`.
    ///
    /// # Errors
    /// [`IdError`] if the parts are too long together, or hold what an id cannot.
    pub fn doc_id(&self) -> Result<DocId, IdError> {
        DocId::new(&format!("{}/{}/{}", self.case_id, self.section_id, self.entry_id))
    }
}

/// One entry of a ledger block, for one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerChange {
    /// The ledger.
    pub key: LedgerKey,
    /// Counted or moved.
    pub kind: LedgerKind,
    /// Counted quantity, or the signed change. Whole units; what the form says beyond is cut off.
    pub quantity: i64,
    /// When, microseconds since 1970 UTC; absent means when the server received the form.
    pub date: Option<i64>,
    /// The form's own name for the kind of transfer.
    pub user_defined_type: Option<String>,
}

/// Returns the ledger changes of a form in document order, as far as JSON keeps it.
///
/// Recursion is as deep as the JSON, which the parser limits.
///
/// # Errors
/// The first [`CaseError`]: an entry without an id, or a block without a case.
pub fn find_ledger_changes(form: &Map<String, Value>) -> Result<Vec<LedgerChange>, CaseError> {
    let mut changes = Vec::new();
    walk(form, &mut changes)?;
    Ok(changes)
}

fn walk(object: &Map<String, Value>, changes: &mut Vec<LedgerChange>) -> Result<(), CaseError> {
    if object.get("@xmlns").and_then(Value::as_str) == Some(DEVICE_REPORT) {
        return Ok(());
    }
    for (name, value) in object {
        for member in items(value).iter().filter_map(Value::as_object) {
            let is_ledger = member.get("@xmlns").and_then(Value::as_str) == Some(LEDGER_V1);
            match name.as_str() {
                "balance" if is_ledger => balance(member, changes)?,
                "transfer" if is_ledger => transfer(member, changes)?,
                "case" if member.contains_key("@case_id") || member.contains_key("case_id") => {}
                _ => walk(member, changes)?,
            }
        }
    }
    Ok(())
}

fn attribute<'a>(element: &'a Map<String, Value>, name: &str) -> &'a str {
    element.get(name).map(text).unwrap_or_default()
}

fn case_id(text: &str) -> Result<CaseId, CaseError> {
    CaseId::new(text).map_err(|_| CaseError::IllegalCaseId(format!("a ledger block names no usable case: '{text}'")))
}

fn balance(block: &Map<String, Value>, changes: &mut Vec<LedgerChange>) -> Result<(), CaseError> {
    let case = case_id(attribute(block, "@entity-id"))?;
    entries(block, |entry| {
        changes.push(entry.of(case.clone(), LedgerKind::Balance, false)?);
        Ok(())
    })
}

fn transfer(block: &Map<String, Value>, changes: &mut Vec<LedgerChange>) -> Result<(), CaseError> {
    let side = |name| Some(attribute(block, name)).filter(|id| !id.is_empty()).map(case_id).transpose();
    let (source, destination) = (side("@src")?, side("@dest")?);
    if source.is_none() && destination.is_none() {
        return Err(CaseError::IllegalCaseId("a ledger transfer has neither src nor dest".to_owned()));
    }
    entries(block, |entry| {
        for (case, out) in [(&source, true), (&destination, false)] {
            if let Some(case) = case {
                changes.push(entry.of(case.clone(), LedgerKind::Transfer, out)?);
            }
        }
        Ok(())
    })
}

/// What an entry says before it is known for which case.
struct Entry<'a> {
    section_id: &'a str,
    entry_id: &'a str,
    quantity: i64,
    date: Option<i64>,
    user_defined_type: Option<String>,
}

impl Entry<'_> {
    fn of(&self, case_id: CaseId, kind: LedgerKind, out: bool) -> Result<LedgerChange, CaseError> {
        let (section_id, entry_id) = (self.section_id.to_owned(), self.entry_id.to_owned());
        let key = LedgerKey { case_id, section_id, entry_id };
        key.doc_id().map_err(|error| CaseError::CaseValue { field: "ledger id", error: error.to_string() })?;
        Ok(LedgerChange {
            key,
            kind,
            quantity: if out { self.quantity.saturating_neg() } else { self.quantity },
            date: self.date,
            user_defined_type: self.user_defined_type.clone(),
        })
    }
}

/// The entries of a block. The section is the block's, or each value's.
fn entries(
    block: &Map<String, Value>,
    mut take: impl FnMut(&Entry<'_>) -> Result<(), CaseError>,
) -> Result<(), CaseError> {
    let date = attribute(block, "@date");
    let date = match date {
        "" => None,
        date => Some(parse_micros(date).ok_or_else(|| CaseError::PhoneDateValue(date.chars().take(100).collect()))?),
    };
    let kind = attribute(block, "@type");
    let user_defined_type = (!kind.is_empty()).then(|| kind.chars().take(TYPE_CHARS).collect::<String>());
    let block_section = attribute(block, "@section-id");
    let found = block.get("entry").map(items).unwrap_or_default();
    for entry in found.iter().filter_map(Value::as_object) {
        let entry_id = attribute(entry, "@id");
        if entry_id.is_empty() {
            return Err(CaseError::MissingProductId);
        }
        let values = entry.get("value").map(items).unwrap_or_default().iter().filter_map(Value::as_object);
        let sectioned = values.map(|value| (attribute(value, "@section-id"), attribute(value, "@quantity")));
        let whole = (!block_section.is_empty()).then(|| (block_section, attribute(entry, "@quantity")));
        let sides: Vec<(&str, &str)> = if whole.is_some() { whole.into_iter().collect() } else { sectioned.collect() };
        for (section_id, said) in sides {
            let Some(quantity) = quantity(said) else {
                tracing::info!(entry_id, said, "a ledger entry's quantity is not a number; the entry is skipped");
                continue;
            };
            take(&Entry { section_id, entry_id, quantity, date, user_defined_type: user_defined_type.clone() })?;
        }
    }
    Ok(())
}

/// A quantity in whole units.
fn quantity(said: &str) -> Option<i64> {
    let said = said.trim();
    if let Ok(whole) = said.parse::<i64>() {
        return Some(whole);
    }
    let number: f64 = said.parse().ok()?;
    (number.is_finite() && number.abs() < 9e15).then_some(number.trunc() as i64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Case, section, entry, kind and quantity of a change.
    type Said = (String, String, String, LedgerKind, i64);

    fn changes(form: Value) -> Result<Vec<Said>, CaseError> {
        let Value::Object(form) = form else { unreachable!() };
        let changes = find_ledger_changes(&form)?;
        Ok(changes
            .into_iter()
            .map(|c| (c.key.case_id.as_str().to_owned(), c.key.section_id, c.key.entry_id, c.kind, c.quantity))
            .collect())
    }

    fn row(case: &str, section: &str, kind: LedgerKind, quantity: i64) -> Said {
        (case.to_owned(), section.to_owned(), "p".to_owned(), kind, quantity)
    }

    #[test]
    fn the_three_forms_of_section_11() {
        use LedgerKind::{Balance, Transfer};
        let balance = json!({"@xmlns": LEDGER_V1, "@entity-id": "c", "@date": "2021-03-01", "@section-id": "stock",
            "entry": {"@id": "p", "@quantity": "100"}});
        assert_eq!(changes(json!({"group": {"balance": balance}})).unwrap(), [row("c", "stock", Balance, 100)]);
        let transfer = json!({"@xmlns": LEDGER_V1, "@src": "a", "@dest": "b", "@section-id": "stock", "@type": "sold",
            "entry": [{"@id": "p", "@quantity": "5"}, {"@id": "p", "@quantity": "many"}]});
        assert_eq!(
            changes(json!({"transfer": transfer})).unwrap(),
            [row("a", "stock", Transfer, -5), row("b", "stock", Transfer, 5)]
        );
        let by_value = json!({"@xmlns": LEDGER_V1, "@entity-id": "c",
            "entry": {"@id": "p", "value": [{"@section-id": "s1", "@quantity": "7.9"}, {"@section-id": "s2", "@quantity": "-1"}]}});
        assert_eq!(
            changes(json!({"balance": [by_value]})).unwrap(),
            [row("c", "s1", Balance, 7), row("c", "s2", Balance, -1)]
        );
    }

    #[test]
    fn other_namespaces_case_blocks_and_device_reports_hold_none() {
        let block = json!({"@xmlns": LEDGER_V1, "@entity-id": "c", "@section-id": "s", "entry": {"@id": "p", "@quantity": "1"}});
        for form in [
            json!({"balance": {"@entity-id": "c", "@section-id": "s", "entry": {"@id": "p", "@quantity": "1"}}}),
            json!({"case": {"@case_id": "c", "balance": block}}),
            json!({"log": {"@xmlns": DEVICE_REPORT, "balance": block}}),
        ] {
            assert_eq!(changes(form).unwrap(), []);
        }
    }

    #[test]
    fn blocks_without_case_or_product_fail() {
        let no_product = json!({"balance": {"@xmlns": LEDGER_V1, "@entity-id": "c", "@section-id": "s", "entry": {"@quantity": "1"}}});
        assert_eq!(changes(no_product), Err(CaseError::MissingProductId));
        let nobody =
            json!({"transfer": {"@xmlns": LEDGER_V1, "@section-id": "s", "entry": {"@id": "p", "@quantity": "1"}}});
        assert!(matches!(changes(nobody), Err(CaseError::IllegalCaseId(_))));
    }
}
