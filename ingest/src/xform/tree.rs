//! XML to JSON in one pass.
//!
//! In: legal XML text. Out: the root's object. One stack of open elements, no recursion; text is copied once, into the
//! value that keeps it. Bounds: bytes by the caller, depth and nodes here, namespaces by [`MAX_NAMESPACES`].
//!
//! Source: forms-and-cases.md §6 rules 1-10.

use std::borrow::Cow;

use quick_xml::{
    XmlVersion,
    escape::resolve_predefined_entity,
    events::{BytesRef, BytesStart, Event, attributes::AttrError},
    name::{QName, ResolveResult},
    reader::NsReader,
};
use serde_json::{Map, Value, map::Entry};

use super::{ParseError, ParseLimits, datetime, encoding::is_legal};

/// Different namespaces a form may use; real ones use fewer than ten.
const MAX_NAMESPACES: usize = 256;

/// Makes the value of an element's or attribute's text.
pub(super) type Leaf = fn(Cow<'_, str>) -> Value;

/// Reads a form into its JSON, `#type` first; `leaf` decides about datetimes.
///
/// # Errors
/// [`ParseError`] for anything that is not well-formed, crosses a limit, or needs a DTD.
pub(super) fn read(text: &str, limits: &ParseLimits, leaf: Leaf) -> Result<Map<String, Value>, ParseError> {
    let mut reader = NsReader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    reader.resolver_mut().set_max_namespace_bindings(MAX_NAMESPACES);
    let mut tree = Tree { reader, limits, leaf, nodes: 0, namespaces: Vec::new(), open: Vec::new(), root: None };
    let mut first = true;
    loop {
        let event = tree.reader.read_event().map_err(|error| tree.syntax(&error))?;
        match event {
            Event::Start(start) => tree.open(&start)?,
            Event::End(end) => tree.close(end.name())?,
            Event::Text(text) => tree.text(text.into_inner())?,
            Event::CData(text) => {
                if tree.open.is_empty() {
                    return Err(tree.malformed("character data outside the root element"));
                }
                tree.text(text.into_inner())?;
            }
            Event::GeneralRef(reference) => tree.reference(&reference)?,
            Event::DocType(_) => return Err(ParseError::Doctype),
            Event::Decl(_) if !first => return Err(tree.malformed("XML declaration not at the start")),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::Empty(_) => return Err(tree.malformed("unexpected empty element")),
            Event::Eof => break,
        }
        first = false;
    }
    if !tree.open.is_empty() {
        return Err(tree.malformed("the document ends inside an element"));
    }
    match tree.root.take() {
        Some(root) => Ok(root),
        None => Err(tree.malformed("no root element found")),
    }
}

/// An element whose end has not come yet.
struct Open<'t> {
    /// Attributes and children so far.
    members: Map<String, Value>,
    /// Text before the first child.
    text: Cow<'t, str>,
    has_children: bool,
    /// Index in [`Tree::namespaces`], none if the element is in no namespace.
    namespace: Option<usize>,
    /// Greatest height of a child.
    tallest: usize,
    has_list: bool,
}

struct Tree<'t, 'l> {
    reader: NsReader<&'t [u8]>,
    limits: &'l ParseLimits,
    leaf: Leaf,
    nodes: usize,
    namespaces: Vec<String>,
    open: Vec<Open<'t>>,
    root: Option<Map<String, Value>>,
}

impl<'t> Tree<'t, '_> {
    fn open(&mut self, start: &BytesStart<'_>) -> Result<(), ParseError> {
        if self.root.is_some() {
            return Err(self.malformed("content after the root element"));
        }
        if self.open.len() >= self.limits.max_depth {
            return Err(ParseError::TooDeep { limit: self.limits.max_depth });
        }
        self.count_node()?;
        self.check_name(start.name())?;
        let parent = self.open.last().and_then(|parent| parent.namespace);
        let namespace = self.namespace_of(start.name(), parent)?;
        let mut members = Map::new();
        if self.open.is_empty() {
            members.insert("#type".to_owned(), Value::String(start.local_name().into_inner().to_owned()));
        }
        if let Some(index) = namespace
            && namespace != parent
            && let Some(uri) = self.namespaces.get(index)
        {
            members.insert("@xmlns".to_owned(), Value::String(uri.clone()));
        }
        self.attributes(start, &mut members)?;
        if let Some(parent) = self.open.last_mut() {
            parent.has_children = true;
        }
        self.open.push(Open {
            members,
            text: Cow::Borrowed(""),
            has_children: false,
            namespace,
            tallest: 0,
            has_list: false,
        });
        Ok(())
    }

    fn attributes(&mut self, start: &BytesStart<'_>, members: &mut Map<String, Value>) -> Result<(), ParseError> {
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|error| self.syntax(&attribute_error(&error)))?;
            if attribute.key.as_namespace_binding().is_some() {
                continue;
            }
            self.count_node()?;
            self.check_name(attribute.key)?;
            let (namespace, name) = self.reader.resolver().resolve_attribute(attribute.key);
            let key = match namespace {
                ResolveResult::Unbound => format!("@{}", name.into_inner()),
                ResolveResult::Bound(uri) => format!("@{{{}}}{}", uri.into_inner(), name.into_inner()),
                ResolveResult::Unknown(prefix) => return Err(self.unbound(&prefix)),
            };
            let value =
                attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| self.value_error(&error))?;
            if matches!(value, Cow::Owned(_)) && !value.chars().all(is_legal) {
                return Err(self.malformed("reference to a character that is not allowed"));
            }
            if members.insert(key, (self.leaf)(value)).is_some() {
                return Err(self.malformed("an attribute is given twice"));
            }
        }
        Ok(())
    }

    fn close(&mut self, name: QName<'_>) -> Result<(), ParseError> {
        let Some(element) = self.open.pop() else { return Err(self.malformed("unexpected end tag")) };
        let (value, height) = element.finish(self.open.is_empty(), self.leaf);
        let Some(parent) = self.open.last_mut() else {
            if height > self.limits.max_depth {
                return Err(ParseError::TooDeep { limit: self.limits.max_depth });
            }
            self.root = match value {
                Value::Object(members) => Some(members),
                _ => None,
            };
            return Ok(());
        };
        parent.tallest = parent.tallest.max(height);
        match parent.members.entry(name.local_name().into_inner()) {
            Entry::Vacant(slot) => {
                slot.insert(value);
            }
            Entry::Occupied(mut slot) => {
                parent.has_list = true;
                match slot.get_mut() {
                    Value::Array(list) => list.push(value),
                    single => {
                        let before = single.take();
                        *single = Value::Array(vec![before, value]);
                    }
                }
            }
        }
        Ok(())
    }

    fn text(&mut self, text: Cow<'t, str>) -> Result<(), ParseError> {
        match self.open.last_mut() {
            Some(element) => {
                element.append(text);
                Ok(())
            }
            None if text.trim_ascii().is_empty() => Ok(()),
            None => Err(self.malformed("text outside the root element")),
        }
    }

    fn reference(&mut self, reference: &BytesRef<'_>) -> Result<(), ParseError> {
        let character = reference.resolve_char_ref().map_err(|error| self.syntax(&error))?;
        let text = match character {
            Some(character) if is_legal(character) => Cow::Owned(character.to_string()),
            Some(_) => return Err(self.malformed("reference to a character that is not allowed")),
            None => match resolve_predefined_entity(reference) {
                Some(text) => Cow::Borrowed(text),
                None => return Err(ParseError::Entity { name: reference.chars().take(100).collect() }),
            },
        };
        match self.open.last_mut() {
            Some(element) => element.append(text),
            None => return Err(self.malformed("reference outside the root element")),
        }
        Ok(())
    }

    /// The index of an element's namespace, which is the parent's in nearly every case.
    fn namespace_of(&mut self, name: QName<'_>, parent: Option<usize>) -> Result<Option<usize>, ParseError> {
        let uri = match self.reader.resolver().resolve_element(name).0 {
            ResolveResult::Unbound => return Ok(None),
            ResolveResult::Bound(uri) => uri.into_inner(),
            ResolveResult::Unknown(prefix) => return Err(self.unbound(&prefix)),
        };
        if let Some(index) = parent
            && self.namespaces.get(index).is_some_and(|known| known == uri)
        {
            return Ok(parent);
        }
        if let Some(index) = self.namespaces.iter().position(|known| known == uri) {
            return Ok(Some(index));
        }
        let uri = uri.to_owned();
        if self.namespaces.len() == MAX_NAMESPACES {
            return Err(self.malformed("too many different namespaces"));
        }
        self.namespaces.push(uri);
        Ok(Some(self.namespaces.len() - 1))
    }

    fn count_node(&mut self) -> Result<(), ParseError> {
        self.nodes += 1;
        if self.nodes > self.limits.max_nodes {
            return Err(ParseError::TooManyNodes { limit: self.limits.max_nodes });
        }
        Ok(())
    }

    /// Names that no XML parser would accept are refused, because they become keys that others rely on (`@`, `#`).
    fn check_name(&self, name: QName<'_>) -> Result<(), ParseError> {
        let local = name.local_name().into_inner().as_bytes();
        let starts = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_' || !byte.is_ascii();
        let goes_on = |byte: &u8| starts(byte) || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        if local.first().is_some_and(starts) && local.iter().all(goes_on) {
            Ok(())
        } else {
            Err(self.malformed(&format!("'{}' is not a name", clip(name.into_inner()))))
        }
    }

    fn unbound(&self, prefix: &str) -> ParseError {
        self.malformed(&format!("namespace prefix '{}' is not defined", clip(prefix)))
    }

    fn value_error(&self, error: &quick_xml::Error) -> ParseError {
        match error {
            quick_xml::Error::Escape(quick_xml::escape::EscapeError::UnrecognizedEntity(_, name)) => {
                ParseError::Entity { name: clip(name) }
            }
            error => self.syntax(error),
        }
    }

    fn syntax(&self, error: &quick_xml::Error) -> ParseError {
        ParseError::NotXml { message: clip(&error.to_string()), position: self.reader.error_position() }
    }

    fn malformed(&self, message: &str) -> ParseError {
        ParseError::NotXml { message: message.to_owned(), position: self.reader.buffer_position() }
    }
}

impl<'t> Open<'t> {
    /// Text counts only before the first child.
    fn append(&mut self, text: Cow<'t, str>) {
        if self.has_children {
            return;
        }
        if self.text.is_empty() {
            self.text = text;
        } else {
            self.text.to_mut().push_str(&text);
        }
    }

    /// The element's value and its height: 0 for text, else the levels it nests.
    fn finish(mut self, is_root: bool, leaf: Leaf) -> (Value, usize) {
        if self.members.is_empty() && !is_root {
            return (leaf(self.text), 0);
        }
        if !self.text.trim().is_empty() {
            self.members.insert("#text".to_owned(), leaf(self.text));
        }
        (Value::Object(self.members), 1 + self.tallest + usize::from(self.has_list))
    }
}

/// A text value as it was sent.
pub(super) fn as_sent(text: Cow<'_, str>) -> Value {
    Value::String(text.into_owned())
}

/// A text value, normalised if it is a datetime.
pub(super) fn normalised(text: Cow<'_, str>) -> Value {
    Value::String(datetime::normalise(&text).unwrap_or_else(|| text.into_owned()))
}

fn attribute_error(error: &AttrError) -> quick_xml::Error {
    quick_xml::Error::InvalidAttr(error.clone())
}

/// Parser messages may quote the document; they go into a database column and an answer.
fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}
