//! Case blocks: where they are found, in which order, and what is refused.

use serde_json::json;

use super::*;
use crate::xform::tests::{fixture, parse_text};

const CASE: &str = "xmlns='http://commcarehq.org/case/transaction/v2'";

/// The blocks of a form with this content.
fn blocks(content: &str) -> Result<Vec<CaseBlock>, CaseError> {
    let content = content.replace("CASE", CASE);
    let meta = "<meta><userID>form-user</userID></meta>";
    parse_text(&format!("<d xmlns='n'>{content}{meta}</d>")).unwrap().case_blocks
}

/// The one block of a form with this case content.
fn block(content: &str) -> CaseBlock {
    blocks(&format!("<case CASE case_id='c'>{content}</case>")).unwrap().remove(0)
}

#[test]
fn blocks_are_found_at_any_depth_and_only_where_they_are_meant() {
    for (content, ids) in [
        ("<case CASE case_id='a'/>", vec!["a"]),
        ("<g><case CASE case_id='a'/><h><case CASE case_id='b'/></h></g>", vec!["a", "b"]),
        ("<r><case CASE case_id='a'/></r><r><case CASE case_id='b'/></r>", vec!["a", "b"]),
        ("<case><q>a question group</q></case>", vec![]),
        ("<case>text</case>", vec![]),
        // `case` ends the descent
        ("<case><case CASE case_id='a'/></case>", vec![]),
        ("<case CASE case_id='a'><case CASE case_id='b'/></case>", vec!["a"]),
        ("<Case CASE case_id='a'/>", vec![]),
        ("<x xmlns='http://code.javarosa.org/devicereport'><case CASE case_id='a'/></x>", vec![]),
    ] {
        let found = blocks(content).unwrap();
        assert_eq!(found.iter().map(|block| block.case_id.as_str()).collect::<Vec<_>>(), ids, "{content}");
    }
    for (path, count) in [
        ("case/multicase/parallel_cases.xml", 4),
        ("case/multicase/mixed_cases.xml", 4),
        ("case/bugs/lots_of_subcases.xml", 11),
    ] {
        let found = parse_text(&fixture(path)).unwrap().case_blocks.unwrap();
        assert_eq!(crate::casexml::touched_case_ids(&found).len(), count, "{path}");
    }
}

#[test]
fn blocks_are_ordered_by_case_then_by_first_action() {
    let found = blocks(
        "<case CASE case_id='b'><update><x>1</x></update></case><case CASE case_id='b'><update><x>2</x></update></case>
         <case CASE case_id='b'><close/></case><case CASE case_id='b'/><case CASE case_id='b'><index><p case_type='t'>a</p></index></case>
         <case CASE case_id='b'><update><x>3</x></update><create><case_type>t</case_type></create></case>
         <case CASE case_id='a'><update><x>4</x></update></case>",
    )
    .unwrap();
    let summary: Vec<String> = found
        .iter()
        .map(|block| {
            let x = block.update.as_ref().and_then(|update| update.properties.get("x")).map_or("", text);
            format!("{}{x}{}{}", block.case_id, if block.close { "x" } else { "" }, block.indices.len())
        })
        .collect();
    assert_eq!(summary, ["a40", "b30", "b10", "b20", "b1", "bx0", "b0"]);
}

#[test]
fn users_and_dates_fall_back() {
    let found = blocks("<case CASE case_id='a' user_id='' date_modified=''/><case CASE case_id='b' user_id='u' date_modified='2014-01-02'/>").unwrap();
    assert_eq!((found[0].user_id.as_deref(), found[0].date_modified), (Some("form-user"), None));
    assert_eq!((found[1].user_id.as_deref(), found[1].date_modified), (Some("u"), Some(1_388_620_800_000_000)));
}

#[test]
fn known_tags_set_columns_and_the_rest_are_properties() {
    let found = block(
        "<create><case_type>t</case_type><case_name>n</case_name><owner_id/><other>dropped</other></create>
         <update><case_name>x</case_name><case_name>last</case_name><owner_id a='1'>o</owner_id><date_opened>2010-05-12T13:42:50</date_opened>
           <case_id>no</case_id><date_modified>no</date_modified><location_id>l</location_id><hq_user_id>h</hq_user_id>
           <p/><q a='1'>v</q><r>1</r><r>2</r><s><t>u</t></s><P>upper</P></update>",
    );
    let create = found.create.unwrap();
    assert_eq!(
        create,
        CaseColumns {
            case_type: Some("t".into()),
            name: Some("n".into()),
            owner_id: Some(String::new()),
            ..CaseColumns::default()
        }
    );
    let update = found.update.unwrap();
    assert_eq!(
        update.columns,
        CaseColumns {
            name: Some("last".into()),
            owner_id: Some("o".into()),
            opened_on: Some(1_273_671_770_000_000),
            location_id: Some("l".into()),
            external_id: Some("h".into()),
            ..CaseColumns::default()
        }
    );
    assert_eq!(
        Value::Object(update.properties),
        json!({"hq_user_id": "h", "p": "", "q": {"@a": "1", "#text": "v"}, "r": "2", "s": {"t": "u"}, "P": "upper"})
    );
    let legacy = block("<update><name>older</name><case_name>newer</case_name><date_opened/></update>").update.unwrap();
    assert_eq!((legacy.columns.name.as_deref(), legacy.columns.opened_on), (Some("older"), None));
    assert!(legacy.properties.is_empty());
}

#[test]
fn empty_elements_are_no_actions_except_close() {
    let found = block("<create/><update> </update><index>text</index><attachment/><close/><referral/>");
    assert!(
        found.create.is_none() && found.update.is_none() && found.indices.is_empty() && found.attachments.is_empty()
    );
    assert!(found.close);
}

#[test]
fn indices_and_attachments_are_read() {
    let found = block(
        "<index><mom case_type='mother'>m</mom><host case_type='h' relationship='extension'>e</host><gone case_type='x'/><odd case_type='x' relationship=''>o</odd></index>
         <attachment><photo src='p.jpg' from='local'/><old/></attachment>",
    );
    let summary: Vec<_> = found
        .indices
        .iter()
        .map(|index| {
            (
                index.identifier.as_str(),
                index.case_type.as_str(),
                index.relationship.name(),
                index.referenced_id.as_str(),
            )
        })
        .collect();
    assert_eq!(
        summary,
        [
            ("mom", "mother", "child", "m"),
            ("host", "h", "extension", "e"),
            ("gone", "x", "child", ""),
            ("odd", "x", "child", "o")
        ]
    );
    assert_eq!(
        found.attachments,
        [
            AttachmentChange {
                name: "photo".into(),
                src: Some("p.jpg".into()),
                from: Some("local".into()),
                file: None
            },
            AttachmentChange { name: "old".into(), src: None, from: None, file: None }
        ]
    );
}

#[test]
fn bad_blocks_are_told_apart() {
    let long = "x".repeat(256);
    for (content, problem, known) in [
        ("<case CASE case_id=''/>".to_owned(), "IllegalCaseId: case_id must not be empty", true),
        (format!("<case CASE case_id='{long}'/>"), "IllegalCaseId: case id is longer than 255 characters", true),
        ("<case CASE case_id='a'><referral><x/></referral></case>".to_owned(), "UsesReferrals: ", true),
        (
            "<case CASE case_id='a' date_modified='2015-08-06T14:33:12.077 05:30'/>".to_owned(),
            "PhoneDateValueError: '2015-08-06T14:33:12.077 05:30' is not an ISO 8601 date",
            true,
        ),
        (
            format!("<case CASE case_id='a'><create><case_name>{long}</case_name></create></case>"),
            "CaseValueError: Error processing case update: Field: name, Error: the value is longer",
            true,
        ),
        (
            "<case CASE case_id='a'><update><date_opened>soon</date_opened></update></case>".to_owned(),
            "CaseValueError: Error processing case update: Field: opened_on, Error: 'soon' is not",
            true,
        ),
        ("<case case_id='a'/>".to_owned(), "could not read a case block: its namespace is absent", false),
        ("<case xmlns='v3' case_id='a'/>".to_owned(), "could not read a case block: its namespace is 'v3'", false),
        (
            "<case CASE case_id='a'><index><p>x</p></index></case>".to_owned(),
            "could not read index 'p' of case 'a': case_type is missing",
            false,
        ),
        (
            "<case CASE case_id='a'><index><p case_type='t' relationship='sibling'>x</p></index></case>".to_owned(),
            "could not read index 'p' of case 'a': relationship",
            false,
        ),
    ] {
        let error = blocks(&content).unwrap_err();
        assert!(error.to_string().starts_with(problem), "{content}: {error}");
        assert_eq!(error.is_known(), known, "{content}");
    }
    for (path, kind) in [
        ("composed/errors/empty_case_id.xml", "IllegalCaseId: case_id must not be empty"),
        ("composed/errors/bad_date_modified.xml", "PhoneDateValueError: "),
        ("composed/errors/long_name.xml", "CaseValueError: "),
    ] {
        let error = parse_text(&fixture(path)).unwrap().case_blocks.unwrap_err().to_string();
        assert!(error.starts_with(kind), "{path}: {error}");
    }
}

#[test]
fn stored_blocks_are_compact_and_read_back() {
    let found = block(
        "<create><case_type>t</case_type></create><update><p>1</p></update><close/><index><h case_type='t' relationship='extension'>x</h></index>",
    );
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(
        text,
        r#"{"c":"c","u":"form-user","n":{"t":"t"},"p":{"p":{"p":"1"}},"x":true,"i":[{"n":"h","t":"t","r":"extension","c":"x"}]}"#
    );
    assert_eq!(serde_json::from_str::<CaseBlock>(&text).unwrap(), found);
    assert_eq!(
        serde_json::from_str::<CaseBlock>(r#"{"c":"c"}"#).unwrap(),
        blocks("<case CASE case_id='c'/>")
            .map(|mut found| {
                found[0].user_id = None;
                found.remove(0)
            })
            .unwrap()
    );
}
