//! Finds a form's case blocks and reads each of them.
//!
//! Source: forms-and-cases.md §8 (finding, versions, order), §9.1, §9.2, §10.1, §10.3.

use schemas::{
    id::{CaseId, IdError, MAX_ID_CHARS},
    time::parse_micros,
};
use serde_json::{Map, Value};

use super::{
    AttachmentChange, CASE_V2, CaseBlock, CaseColumns, CaseError, CaseUpdate, IndexChange, Relationship,
    value::{children, items, last, text},
};
use crate::xform::DEVICE_REPORT;

/// Returns the case blocks of a form in the order in which they take effect: by case id, then blocks that create before
/// blocks that only update, then document order. `form_user` stands in for blocks that name no user.
///
/// Recursion is as deep as the JSON, which the parser limits.
///
/// # Errors
/// The first [`CaseError`] in document order.
pub fn find_case_blocks(form: &Map<String, Value>, form_user: Option<&str>) -> Result<Vec<CaseBlock>, CaseError> {
    let mut blocks = Vec::new();
    walk(form, form_user, &mut blocks)?;
    blocks.sort_by(|a: &CaseBlock, b| a.case_id.cmp(&b.case_id).then_with(|| first_action(a).cmp(&first_action(b))));
    Ok(blocks)
}

fn walk(object: &Map<String, Value>, form_user: Option<&str>, blocks: &mut Vec<CaseBlock>) -> Result<(), CaseError> {
    if object.get("@xmlns").and_then(Value::as_str) == Some(DEVICE_REPORT) {
        return Ok(());
    }
    for (name, value) in object {
        for member in items(value).iter().filter_map(Value::as_object) {
            if name != "case" {
                walk(member, form_user, blocks)?;
            } else if member.contains_key("@case_id") || member.contains_key("case_id") {
                blocks.push(read_block(member, form_user)?);
            }
        }
    }
    Ok(())
}

/// Position of a block's first action among create, update, index, close, attachment.
const fn first_action(block: &CaseBlock) -> u8 {
    if block.create.is_some() {
        0
    } else if block.update.is_some() {
        1
    } else if !block.indices.is_empty() {
        2
    } else if block.close {
        3
    } else if !block.attachments.is_empty() {
        4
    } else {
        5
    }
}

fn read_block(block: &Map<String, Value>, form_user: Option<&str>) -> Result<CaseBlock, CaseError> {
    let namespace = block.get("@xmlns").and_then(Value::as_str);
    if namespace != Some(CASE_V2) {
        return Err(CaseError::UnsupportedVersion(namespace.map(|ns| ns.chars().take(MAX_ID_CHARS).collect())));
    }
    let attribute = |name| block.get(name).map(text).filter(|text| !text.is_empty());
    let case_id = case_id(attribute("@case_id").or_else(|| attribute("case_id")).unwrap_or_default())?;
    let date_modified = match attribute("@date_modified") {
        None => None,
        Some(date) => {
            Some(parse_micros(date).ok_or_else(|| CaseError::PhoneDateValue(date.chars().take(100).collect()))?)
        }
    };
    if block.get("referral").is_some_and(|referral| last(referral).is_object() || !text(referral).trim().is_empty()) {
        return Err(CaseError::UsesReferrals(case_id));
    }
    Ok(CaseBlock {
        user_id: attribute("@user_id").or(form_user).map(str::to_owned),
        date_modified,
        create: read_create(block.get("create"))?,
        update: read_update(block.get("update"))?,
        close: block.contains_key("close"),
        indices: children(block.get("index"))
            .flat_map(|(name, value)| items(value).iter().map(move |index| (name, index)))
            .map(|(name, index)| read_index(&case_id, name, index))
            .collect::<Result<_, _>>()?,
        attachments: children(block.get("attachment")).map(|(name, value)| read_attachment(name, value)).collect(),
        case_id,
    })
}

fn case_id(text: &str) -> Result<CaseId, CaseError> {
    CaseId::new(text).map_err(|error| {
        CaseError::IllegalCaseId(match error {
            IdError::Empty { .. } => "case_id must not be empty".to_owned(),
            error => error.to_string(),
        })
    })
}

fn read_create(create: Option<&Value>) -> Result<Option<CaseColumns>, CaseError> {
    let mut columns = None;
    for (name, value) in children(create) {
        set_column(columns.get_or_insert_with(CaseColumns::default), name, value)?;
    }
    Ok(columns)
}

/// Reads `<update>` elements. `name`, `location_id` and `hq_user_id` are dynamic properties that set columns as well, after
/// the known ones (§9.2).
fn read_update(update: Option<&Value>) -> Result<Option<CaseUpdate>, CaseError> {
    let mut found: Option<CaseUpdate> = None;
    let (mut name_set, mut location_set, mut external_set) = (None, None, None);
    for (name, value) in children(update) {
        let update = found.get_or_insert_with(CaseUpdate::default);
        if set_column(&mut update.columns, name, value)? {
            continue;
        }
        match name.as_str() {
            "case_id" | "date_modified" => continue,
            "name" => {
                name_set = Some(short("name", value)?);
                continue;
            }
            "location_id" => {
                location_set = Some(short("location_id", value)?);
                continue;
            }
            "hq_user_id" => external_set = Some(short("external_id", value)?),
            _ => {}
        }
        update.properties.insert(name.clone(), last(value).clone());
    }
    if let Some(update) = &mut found {
        let columns = &mut update.columns;
        columns.name = name_set.or(columns.name.take());
        columns.location_id = location_set;
        columns.external_id = external_set.or(columns.external_id.take());
    }
    Ok(found)
}

/// Sets the column of a known tag; false if the tag is not known.
fn set_column(columns: &mut CaseColumns, name: &str, value: &Value) -> Result<bool, CaseError> {
    match name {
        "case_type" => columns.case_type = Some(short("type", value)?),
        "case_name" => columns.name = Some(short("name", value)?),
        "external_id" => columns.external_id = Some(short("external_id", value)?),
        "owner_id" => columns.owner_id = Some(short("owner_id", value)?),
        "user_id" => columns.user_id = Some(short("modified_by", value)?),
        "date_opened" => {
            let date = text(value);
            columns.opened_on = match parse_micros(date) {
                None if !date.is_empty() => {
                    let error = format!("'{}' is not an ISO 8601 date", date.chars().take(100).collect::<String>());
                    return Err(CaseError::CaseValue { field: "opened_on", error });
                }
                at => at,
            };
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// The text of a column that holds at most [`MAX_ID_CHARS`] characters.
fn short(field: &'static str, value: &Value) -> Result<String, CaseError> {
    let text = text(value);
    if text.len() > MAX_ID_CHARS && text.chars().count() > MAX_ID_CHARS {
        let error = format!("the value is longer than {MAX_ID_CHARS} characters");
        return Err(CaseError::CaseValue { field, error });
    }
    Ok(text.to_owned())
}

fn read_index(case_id: &CaseId, identifier: &str, index: &Value) -> Result<IndexChange, CaseError> {
    let malformed = |problem| CaseError::MalformedIndex {
        case_id: case_id.clone(),
        identifier: identifier.chars().take(MAX_ID_CHARS).collect(),
        problem,
    };
    let attribute = |name| index.get(name).map(text);
    // Phones refuse an empty relationship in a restore, the server accepts it (§19).
    let relationship = match attribute("@relationship") {
        None | Some("") => Relationship::Child,
        Some(name) => {
            Relationship::from_name(name).ok_or_else(|| malformed("relationship is not child or extension"))?
        }
    };
    Ok(IndexChange {
        identifier: identifier.to_owned(),
        case_type: attribute("@case_type").ok_or_else(|| malformed("case_type is missing"))?.to_owned(),
        relationship,
        referenced_id: text(index).to_owned(),
    })
}

fn read_attachment(name: &str, attachment: &Value) -> AttachmentChange {
    let attribute = |key| last(attachment).get(key).map(|value| text(value).to_owned());
    AttachmentChange { name: name.to_owned(), src: attribute("@src"), from: attribute("@from"), file: None }
}

#[cfg(test)]
mod tests;
