//! What a phone is sent of a case: version 2 case blocks of a restore (forms-and-cases.md §16.2).

use std::fmt::Write;

use quick_xml::escape::escape;
use schemas::time::format_micros;
use serde_json::Value;

use crate::{
    casexml::{CASE_V2, Relationship},
    submit::apply::CaseState,
};

/// Characters of a date without its time.
const DATE_CHARS: usize = 10;

/// The block of a case that the phone does not hold yet.
#[must_use]
pub fn case_block(case: &CaseState) -> String {
    let mut create = String::new();
    element(&mut create, "case_type", &case.case_type);
    element(&mut create, "case_name", &case.name);
    element(&mut create, "owner_id", &case.owner_id);

    let mut update = String::new();
    if let Some(external_id) = case.external_id.as_deref().filter(|id| !id.is_empty()) {
        element(&mut update, "external_id", external_id);
    }
    if let Some(opened_on) = case.opened_on {
        let opened_on = format_micros(opened_on);
        element(&mut update, "date_opened", opened_on.get(..DATE_CHARS).unwrap_or(&opened_on));
    }
    let mut properties: Vec<(&String, &Value)> = case.properties.iter().collect();
    properties.sort_unstable_by_key(|(name, _)| *name);
    properties.into_iter().for_each(|(name, value)| property(&mut update, name, value));

    let mut index = String::new();
    let mut indices: Vec<_> = case.indices.iter().collect();
    indices.sort_unstable_by(|a, b| a.identifier.cmp(&b.identifier));
    for reference in indices {
        let relationship = match reference.relationship {
            Relationship::Child => "",
            Relationship::Extension => " relationship=\"extension\"",
        };
        put(
            &mut index,
            format_args!(
                "<{name} case_type=\"{}\"{relationship}>{}</{name}>",
                escape(&reference.referenced_type),
                escape(&reference.referenced_id),
                name = reference.identifier,
            ),
        );
    }

    let modified_on = case.modified_on.map(format_micros).unwrap_or_default();
    let mut block = String::with_capacity(256 + create.len() + update.len() + index.len());
    put(
        &mut block,
        format_args!(
            "<case case_id=\"{}\" date_modified=\"{modified_on}\" user_id=\"{}\" xmlns=\"{CASE_V2}\">\
             <create>{create}</create><update>{update}</update>",
            escape(case.case_id.as_str()),
            escape(&case.modified_by),
        ),
    );
    if !index.is_empty() {
        put(&mut block, format_args!("<index>{index}</index>"));
    }
    if case.closed {
        block.push_str("<close/>");
    }
    block.push_str("</case>");
    block
}

/// Writing to a String cannot fail.
fn put(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    let written = out.write_fmt(arguments);
    debug_assert!(written.is_ok());
}

fn element(out: &mut String, name: &str, text: &str) {
    put(out, format_args!("<{name}>{}</{name}>", escape(text)));
}

/// A dynamic property; one that came with attributes goes back with them (§9.2).
fn property(out: &mut String, name: &str, value: &Value) {
    match value {
        Value::String(text) => element(out, name, text),
        Value::Object(members) => {
            put(out, format_args!("<{name}"));
            for (key, value) in members {
                if let (Some(attribute), Value::String(text)) = (key.strip_prefix('@'), value) {
                    put(out, format_args!(" {attribute}=\"{}\"", escape(text)));
                }
            }
            out.push('>');
            for (key, value) in members {
                match (key.as_str(), value) {
                    ("#text", Value::String(text)) => out.push_str(&escape(text)),
                    (key, value) if !key.starts_with(['@', '#']) => property(out, key, value),
                    _ => {}
                }
            }
            put(out, format_args!("</{name}>"));
        }
        Value::Array(items) => items.iter().for_each(|item| property(out, name, item)),
        Value::Null => element(out, name, ""),
        other => element(out, name, &other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use schemas::id::{CaseId, DomainId};
    use serde_json::json;

    use super::*;
    use crate::submit::apply::CaseIndexState;

    #[test]
    fn a_block_says_all_and_escapes() {
        let mut case = CaseState::new(CaseId::new("c&1").unwrap(), DomainId::new("demo").unwrap());
        case.case_type = "mother".to_owned();
        case.name = "A < B".to_owned();
        case.modified_by = "u".to_owned();
        case.closed = true;
        case.properties.insert("z".to_owned(), json!("1"));
        case.properties.insert("a".to_owned(), json!({"@unit": "ml", "#text": "5"}));
        case.indices.push(CaseIndexState {
            identifier: "host".to_owned(),
            referenced_type: "h".to_owned(),
            referenced_id: String::new(),
            relationship: Relationship::Extension,
        });
        let block = case_block(&case);
        assert!(block.starts_with("<case case_id=\"c&amp;1\" date_modified=\"\" user_id=\"u\""), "{block}");
        for part in [
            "<case_name>A &lt; B</case_name>",
            "<a unit=\"ml\">5</a><z>1</z>",
            "<index><host case_type=\"h\" relationship=\"extension\"></host></index><close/></case>",
        ] {
            assert!(block.contains(part), "{part} in {block}");
        }
    }
}
