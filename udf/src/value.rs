//! The dynamic value that expressions pass around (ucr.md §1.1).
//!
//! Values borrow from the document they were read from: text is a slice, lists and mappings stay unread inside the
//! document. What comes out of a *looked-up* document is copied, because that document may go before the value does.
//! Equality, order and truth are Python's; they live in [`compare`].

pub(crate) mod compare;
pub(crate) mod decimal;
pub(crate) mod show;
pub(crate) mod sort;

use std::{fmt, ops::Deref, sync::Arc};

use compact_str::CompactString;
use schemas::doc::{self, Doc, Node, Symbol, View};

pub use decimal::Decimal;

/// Text, borrowed from a document where possible.
#[derive(Clone)]
pub enum Text<'a> {
    /// Inside the document.
    Borrowed(&'a str),
    /// Computed, or from a looked-up document.
    Owned(CompactString),
}

impl Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Owned(text) => text,
        }
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Text<'_> {
    /// The text as a row holds it.
    #[must_use]
    pub fn into_compact(self) -> CompactString {
        match self {
            Self::Borrowed(text) => CompactString::from(text),
            Self::Owned(text) => text,
        }
    }
}

/// A property name, resolved once when a specification is compiled.
#[derive(Clone, Debug)]
pub struct Name {
    symbol: Symbol,
    text: Box<str>,
}

impl Name {
    /// Resolves a name.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { symbol: Symbol::intern(text), text: text.into() }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A list.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// Inside the document.
    Node(doc::List<'a>),
    /// Copied out of a looked-up document.
    Doc(Doc),
    /// Computed.
    Values(Arc<[Value<'a>]>),
}

impl<'a> List<'a> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Node(list) => list.len(),
            Self::Doc(doc) => doc_list(doc).map_or(0, doc::List::len),
            Self::Values(values) => values.len(),
        }
    }

    /// True without elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at `index`, from 0.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Value<'a>> {
        match self {
            Self::Node(list) => list.get(index).map(Value::from_node),
            Self::Doc(doc) => doc_list(doc)?.get(index).map(Value::copied),
            Self::Values(values) => values.get(index).cloned(),
        }
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

fn doc_list(doc: &Doc) -> Option<doc::List<'_>> {
    match doc.root().view() {
        View::List(list) => Some(list),
        _ => None,
    }
}

fn doc_map(doc: &Doc) -> Option<doc::Map<'_>> {
    match doc.root().view() {
        View::Map(map) => Some(map),
        _ => None,
    }
}

/// A mapping.
#[derive(Clone, Debug)]
pub enum Map<'a> {
    /// Inside the document.
    Node(doc::Map<'a>),
    /// Copied out of a looked-up document, or that document itself.
    Doc(Doc),
    /// Computed. Keys are usually text.
    Values(Arc<[(Value<'a>, Value<'a>)]>),
}

impl<'a> Map<'a> {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Node(map) => map.len(),
            Self::Doc(doc) => doc_map(doc).map_or(0, doc::Map::len),
            Self::Values(entries) => entries.len(),
        }
    }

    /// True without entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value under `name`.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<Value<'a>> {
        match self {
            Self::Node(map) => map.get(name.symbol).map(Value::from_node),
            Self::Doc(doc) => doc.get(name.symbol).map(Value::copied),
            Self::Values(entries) => find(entries, &name.text).cloned(),
        }
    }

    /// The value under a key that is only known while evaluating.
    #[must_use]
    pub fn get_text(&self, key: &str) -> Option<Value<'a>> {
        match self {
            Self::Node(map) => map.iter().find(|(name, _)| name.name() == key).map(|(_, node)| Value::from_node(node)),
            Self::Doc(doc) => {
                doc_map(doc)?.iter().find(|(name, _)| name.name() == key).map(|(_, node)| Value::copied(node))
            }
            Self::Values(entries) => find(entries, key).cloned(),
        }
    }

    /// The value at the end of a path of names; `None` if a name is missing or something between is not a mapping.
    #[must_use]
    pub fn path(&self, names: &[Name]) -> Option<Value<'a>> {
        match self {
            Self::Node(map) => {
                let (first, rest) = names.split_first()?;
                rest.iter().try_fold(map.get(first.symbol)?, |node, name| node.get(name.symbol)).map(Value::from_node)
            }
            Self::Doc(doc) => names.iter().try_fold(doc.root(), |node, name| node.get(name.symbol)).map(Value::copied),
            Self::Values(_) => {
                let (first, rest) = names.split_first()?;
                rest.iter().try_fold(self.get(first)?, |value, name| match value {
                    Value::Map(map) => map.get(name),
                    _ => None,
                })
            }
        }
    }

    /// The entries in order.
    pub fn entries(&self) -> impl Iterator<Item = (Value<'a>, Value<'a>)> {
        let all: Vec<(Value<'a>, Value<'a>)> = match self {
            Self::Node(map) => map.iter().map(|(name, node)| (key(name), Value::from_node(node))).collect(),
            Self::Doc(doc) => doc_map(doc)
                .map(|map| map.iter().map(|(name, node)| (key(name), Value::copied(node))).collect())
                .unwrap_or_default(),
            Self::Values(entries) => entries.to_vec(),
        };
        all.into_iter()
    }

    /// True if both are the same mapping, not merely equal ones.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Node(a), Self::Node(b)) => a.is_same(*b),
            (Self::Doc(a), Self::Doc(b)) => a.is_same(b),
            (Self::Values(a), Self::Values(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

fn key<'a>(name: Symbol) -> Value<'a> {
    Value::Text(Text::Borrowed(name.name()))
}

fn find<'e, 'a>(entries: &'e [(Value<'a>, Value<'a>)], wanted: &str) -> Option<&'e Value<'a>> {
    entries.iter().find(|(key, _)| matches!(key, Value::Text(text) if **text == *wanted)).map(|(_, value)| value)
}

/// Any value an expression can have.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// Nothing.
    Null,
    /// True or false; also the integers 1 and 0, as in Python.
    Bool(bool),
    /// A whole number. Wider ones are an error.
    Integer(i128),
    /// A 64-bit float.
    Float(f64),
    /// An exact decimal.
    Decimal(Decimal),
    /// Text.
    Text(Text<'a>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since 1970, UTC.
    Datetime(i64),
    /// Microseconds since midnight.
    Time(i64),
    /// Microseconds; exists only inside the evaluator.
    Duration(i64),
    /// A list.
    List(List<'a>),
    /// A Python tuple; exists only inside the evaluator.
    Tuple(Arc<[Value<'a>]>),
    /// A Python set; exists only inside the evaluator.
    Set(Arc<[Value<'a>]>),
    /// A mapping.
    Map(Map<'a>),
}

impl<'a> Value<'a> {
    /// Borrows a place of a document.
    #[must_use]
    pub fn from_node(node: Node<'a>) -> Self {
        match node.view() {
            View::Null => Self::Null,
            View::Bool(value) => Self::Bool(value),
            View::Integer(value) => Self::Integer(value.into()),
            View::Float(value) => Self::Float(value),
            View::Text(text) => Self::Text(Text::Borrowed(text)),
            View::List(list) => Self::List(List::Node(list)),
            View::Map(map) => Self::Map(Map::Node(map)),
        }
    }

    /// Copies a place of a document.
    #[must_use]
    pub fn copied(node: Node<'_>) -> Self {
        match node.view() {
            View::Text(text) => Self::Text(Text::Owned(text.into())),
            View::List(_) => Self::List(List::Doc(node.to_doc())),
            View::Map(_) => Self::Map(Map::Doc(node.to_doc())),
            View::Null => Self::Null,
            View::Bool(value) => Self::Bool(value),
            View::Integer(value) => Self::Integer(value.into()),
            View::Float(value) => Self::Float(value),
        }
    }

    /// Holds a whole document.
    #[must_use]
    pub fn from_doc(doc: Doc) -> Self {
        match doc.root().view() {
            View::List(_) => Self::List(List::Doc(doc)),
            View::Map(_) => Self::Map(Map::Doc(doc)),
            _ => Self::copied(doc.root()),
        }
    }

    /// Text made here.
    pub(crate) fn text(text: impl Into<CompactString>) -> Self {
        Self::Text(Text::Owned(text.into()))
    }

    /// A list made here.
    pub(crate) fn list(values: Vec<Value<'a>>) -> Self {
        Self::List(List::Values(values.into()))
    }

    /// A mapping made here.
    pub(crate) fn map(entries: Vec<(Value<'a>, Value<'a>)>) -> Self {
        Self::Map(Map::Values(entries.into()))
    }

    /// True for null.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The value under `name` if this is a mapping that has it.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<Value<'a>> {
        match self {
            Self::Map(map) => map.get(name),
            _ => None,
        }
    }

    /// Python's truth (ucr.md §1.1).
    #[must_use]
    pub fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Integer(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Decimal(value) => !value.is_zero(),
            Self::Text(text) => !text.is_empty(),
            Self::Date(_) | Self::Datetime(_) | Self::Time(_) => true,
            Self::Duration(micros) => *micros != 0,
            Self::List(list) => !list.is_empty(),
            Self::Tuple(values) | Self::Set(values) => !values.is_empty(),
            Self::Map(map) => !map.is_empty(),
        }
    }

    /// What kind of value this is, for messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Decimal(_) => "a decimal",
            Self::Text(_) => "text",
            Self::Date(_) => "a date",
            Self::Datetime(_) => "a date and time",
            Self::Time(_) => "a time of day",
            Self::Duration(_) => "a duration",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Set(_) => "a set",
            Self::Map(_) => "a mapping",
        }
    }

    /// True if both are one value in the sense of Python's `is`, as far as memoising needs it: a false answer costs
    /// time, a true one is certain.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Map(a), Self::Map(b)) => a.is_same(b),
            (Self::Null, Self::Null) => true,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_small() {
        assert!(size_of::<Value<'_>>() <= 32, "{}", size_of::<Value<'_>>());
    }

    #[test]
    fn paths_stop_at_lists_and_missing_names() {
        let doc = Doc::from_json(r#"{"a":{"b":{"c":"x"},"l":[{"c":1}]}}"#).unwrap();
        let names = |path: &[&str]| path.iter().map(|name| Name::new(name)).collect::<Vec<_>>();
        for root in [Value::from_node(doc.root()), Value::from_doc(doc.clone())] {
            let Value::Map(map) = root else { panic!("not a mapping") };
            assert!(matches!(map.path(&names(&["a", "b", "c"])), Some(Value::Text(text)) if &*text == "x"));
            for path in [&["a", "l", "c"][..], &["a", "z"], &["a", "b", "c", "d"]] {
                assert!(map.path(&names(path)).is_none(), "{path:?}");
            }
        }
    }
}
