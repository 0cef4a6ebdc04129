//! Forms as upstream's tests and the contract's example have them.

use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// A file of the shared form fixtures, which lie beside the repository.
pub(crate) fn fixture(path: &str) -> String {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/forms"));
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("could not read fixture {path}: {error}"))
}

pub(crate) fn parse_text(text: &str) -> Result<ParsedForm, ParseError> {
    parse(text.as_bytes(), &ParseLimits::default(), &|| "made-up".to_owned())
}

fn form_json(text: &str) -> Value {
    Value::Object(parse_text(text).unwrap().json)
}

#[test]
fn the_contracts_example_gives_its_json_in_order() {
    let text = r#"<visit xmlns="http://x/1" version="3"><who>Ada</who><dose unit="ml">5</dose><kid><n>1</n></kid><kid/>
  <m:meta xmlns:m="http://openrosa.org/jr/xforms"><m:userID>u1</m:userID></m:meta></visit>"#;
    let expected = concat!(
        r##"{"#type":"visit","@xmlns":"http://x/1","@version":"3","who":"Ada","dose":{"@unit":"ml","#text":"5"},"##,
        r##""kid":[{"n":"1"},""],"meta":{"@xmlns":"http://openrosa.org/jr/xforms","userID":"u1"}}"##
    );
    assert_eq!(form_json(text).to_string(), expected);
}

#[test]
fn upstreams_expected_json_is_reproduced() {
    for name in ["decimalmeta", "duplicate", "meta", "meta_dict_appversion", "unicode"] {
        let form = parse_text(&fixture(&format!("form/posts/{name}.xml"))).unwrap();
        let expected: Value = serde_json::from_str(&fixture(&format!("form/posts/{name}-sql.json"))).unwrap();
        assert_eq!(Value::Object(form.json), expected["form"], "{name}");
        assert_eq!(form.xmlns, expected["xmlns"], "{name}");
        assert_eq!(form.user_id.as_deref(), expected["user_id"].as_str(), "{name}");
        let own_id = form.form_id.as_str() != "made-up";
        assert!(!own_id || form.form_id.as_str() == expected["_id"], "{name}: {}", form.form_id);
    }
}

#[test]
fn comments_and_repeated_empty_tags() {
    let expected: Value = serde_json::from_str(&fixture("form/xml2json/comments.json")).unwrap();
    assert_eq!(form_json(&fixture("form/xml2json/comments.xml")), expected);
}

#[test]
fn text_rules() {
    for (inner, expected) in [
        ("<a/>", json!({"a": ""})),
        ("<a>  </a>", json!({"a": "  "})),
        ("<a> x </a>", json!({"a": " x "})),
        ("<a b='1'> </a>", json!({"a": {"@b": "1"}})),
        ("<a b='1'> x </a>", json!({"a": {"@b": "1", "#text": " x "}})),
        ("<a>x<b/>y</a>", json!({"a": {"b": "", "#text": "x"}})),
        ("<a>x<!-- c -->y<?pi z?>z</a>", json!({"a": "xyz"})),
        ("<a>&lt;&#x26;&gt;&#233;<![CDATA[<&>]]>&quot;&apos;</a>", json!({"a": "<&>é<&>\"'"})),
        ("<a b='&lt;&amp; &#10;x\ny'/>", json!({"a": {"@b": "<& \nx y"}})),
        ("<a>1</a><b/><a>2</a><a/>", json!({"a": ["1", "2", ""], "b": ""})),
        (
            "<a at='2013-03-09T06:30:09.007+03'>2013-03-09T06:30:09Z</a>",
            json!({"a": {"@at": "2013-03-09T03:30:09.007000Z", "#text": "2013-03-09T06:30:09.000000Z"}}),
        ),
        ("<a>2013-03-09</a>", json!({"a": "2013-03-09"})),
    ] {
        let mut form = form_json(&format!("<d xmlns='n'>{inner}</d>"));
        let members = form.as_object_mut().unwrap();
        members.shift_remove("#type");
        members.shift_remove("@xmlns");
        assert_eq!(form, expected, "{inner}");
    }
}

#[test]
fn namespaces_appear_where_they_change() {
    let text = r#"<d xmlns="n" xmlns:p="q" p:x="1" xml:lang="en"><a/><p:b><p:c/><d/></p:b><e xmlns=""><f/><g xmlns="n"/></e></d>"#;
    assert_eq!(
        form_json(text),
        json!({"#type": "d", "@xmlns": "n", "@{q}x": "1", "@{http://www.w3.org/XML/1998/namespace}lang": "en", "a": "",
            "b": {"@xmlns": "q", "c": "", "d": {"@xmlns": "n"}}, "e": {"f": "", "g": {"@xmlns": "n"}}})
    );
}

#[test]
fn what_is_no_form_says_why() {
    for (text, expected) in [
        ("this is not xml", "Invalid XML: text outside the root element"),
        ("", "Invalid XML: no root element found"),
        ("<a xmlns='n'>", "Invalid XML: the document ends inside an element"),
        ("<a xmlns='n'></b>", "Invalid XML: ill-formed document: expected `</a>`, but `</b>` was found"),
        ("<a xmlns='n'/><b/>", "Invalid XML: content after the root element"),
        ("<a xmlns='n'/>tail", "Invalid XML: text outside the root element"),
        (" <?xml version='1.0'?><a xmlns='n'/>", "Invalid XML: XML declaration not at the start"),
        ("<a xmlns='n' b='1' b='2'/>", "Invalid XML: error while parsing attribute"),
        ("<a xmlns='n' xmlns:p='q' xmlns:r='q' p:b='1' r:b='2'/>", "Invalid XML: an attribute is given twice"),
        ("<p:a/>", "Invalid XML: namespace prefix 'p' is not defined"),
        ("<a xmlns='n' p:b='1'/>", "Invalid XML: namespace prefix 'p' is not defined"),
        ("<a xmlns='n'><#type/></a>", "Invalid XML: '#type' is not a name"),
        ("<a xmlns='n' @b='1'/>", "Invalid XML: '@b' is not a name"),
        ("<a xmlns='n'>&#0;</a>", "Invalid XML: "),
        ("<a xmlns='n'>&#1;</a>", "Invalid XML: reference to a character that is not allowed"),
        ("<a xmlns='n' b='&#1;'/>", "Invalid XML: reference to a character that is not allowed"),
        ("<a xmlns='n'>&nbsp;</a>", "Invalid XML: entity '&nbsp;' is not defined"),
        ("<a xmlns='n' b='&nbsp;'/>", "Invalid XML: entity '&nbsp;' is not defined"),
        ("<!DOCTYPE a [<!ENTITY x 'y'>]><a xmlns='n'>&x;</a>", "Invalid XML: document type declarations"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a xmlns='n'/>", "Invalid XML: document type declarations"),
        ("<a/>", "Form is missing a required field: XMLNS"),
        ("<a xmlns=''/>", "Form is missing a required field: XMLNS"),
        ("<a xmlns='n'><meta><instanceID>\u{85}</instanceID></meta></a>", "Form has an unusable instance id"),
    ] {
        let error = parse_text(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
    let error = parse_text(&fixture("receiver/missing_xmlns.xml")).unwrap_err();
    assert_eq!(error, ParseError::MissingXmlns);
    let bytes =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/forms/composed/bad/not_xml_bytes.xml"))
            .unwrap();
    let error = parse(&bytes, &ParseLimits::default(), &String::new).unwrap_err().to_string();
    assert!(error.starts_with("Invalid XML: "), "{error}");
}

#[test]
fn limits_stop_bombs() {
    let limits = ParseLimits { max_bytes: 100_000, max_depth: 10, max_nodes: 50 };
    let parse = |text: &str| parse(text.as_bytes(), &limits, &|| "x".to_owned());
    let nested = |levels: usize| format!("<d xmlns='n'>{}{}</d>", "<a>".repeat(levels), "</a>".repeat(levels));
    assert!(parse(&nested(9)).is_ok());
    assert_eq!(parse(&nested(10)).unwrap_err(), ParseError::TooDeep { limit: 10 });
    assert_eq!(parse(&nested(20_000)).unwrap_err().class(), ErrorClass::TooLarge);
    // each repeat nests a list as well
    let repeats = |levels: usize| (0..levels).fold("<b/>".to_owned(), |inner, _| format!("<a>{inner}</a><a/>"));
    assert!(parse(&format!("<d xmlns='n'>{}</d>", repeats(4))).is_ok());
    assert_eq!(parse(&format!("<d xmlns='n'>{}</d>", repeats(6))).unwrap_err(), ParseError::TooDeep { limit: 10 });
    assert!(parse(&format!("<d xmlns='n'>{}</d>", "<a/>".repeat(49))).is_ok());
    let too_many = ParseError::TooManyNodes { limit: 50 };
    assert_eq!(parse(&format!("<d xmlns='n'>{}</d>", "<a/>".repeat(50))).unwrap_err(), too_many);
    let attributes: String = (0..50).map(|i| format!(" a{i}='1'")).collect();
    assert_eq!(parse(&format!("<d xmlns='n'{attributes}/>")).unwrap_err(), too_many);

    let deep = nested(ParseLimits::default().max_depth - 1);
    let form = parse_text(&deep).unwrap();
    let text = serde_json::to_string(&json!({"form": form.json})).unwrap();
    assert!(schemas::doc::Doc::from_json(&text).is_ok() && serde_json::from_str::<Value>(&text).is_ok());
    assert!(parse_text(&nested(1_000_000)).is_err());
    let namespaces: String = (0..300).map(|i| format!("<a xmlns='n{i}'/>")).collect();
    assert!(parse_text(&format!("<d xmlns='n'>{namespaces}</d>")).is_err());
}

#[test]
fn encodings_of_the_form_fixture() {
    for (encoding, sample) in [("utf-8", "हिन्दी चट्टानों"), ("ASCII", "hello")] {
        let text = fixture("form/meta/encoding.xml")
            .replace("{encoding}", encoding)
            .replace("{form_id}", "enc-1")
            .replace("{sample_value}", sample);
        let form = parse_text(&text).unwrap();
        assert_eq!((form.form_id.as_str(), form.json["test"].as_str()), ("enc-1", Some(sample)));
    }
}

#[test]
fn metadata_of_the_fixtures() {
    let meta = parse_text(&fixture("form/meta/date_in_meta.xml")).unwrap().meta;
    assert_eq!(meta.time_start.map(schemas::time::format_micros).unwrap(), "2014-07-10T00:00:00.000000Z");
    assert_eq!(meta.time_end.map(schemas::time::format_micros).unwrap(), "2014-07-11T00:00:00.000000Z");
    let meta = parse_text(&fixture("form/meta/gps_location.xml")).unwrap().meta;
    assert_eq!(meta.location.as_deref(), Some("42.3739063 -71.1109113 0.0 886.0"));
    assert_eq!((meta.app_version.as_deref(), meta.device_id.as_deref()), (Some("2.0"), Some("commconnect")));
    assert_eq!(meta.app_build_version, Some(200));
}

#[test]
fn device_reports_are_recognised() {
    for path in ["form/devicelogs/devicelog.xml", "receiver/device_log.xml", "case/exclusion/device_report.xml"] {
        let form = parse_text(&fixture(path)).unwrap();
        assert!(form.is_device_log && form.case_blocks.unwrap().is_empty(), "{path}");
    }
    assert!(!parse_text(&fixture("receiver/simple_form.xml")).unwrap().is_device_log);
}
