//! The sample program's data sources: they compile, and their rows follow the reading rules of the workload.

#![allow(clippy::unwrap_used, clippy::panic, clippy::string_slice, reason = "tests may stop")]

use std::collections::BTreeMap;

use schemas::{
    change::DocKind,
    doc::Doc,
    position::Stamp,
    row::{Cell, ColumnType, Row},
    sample,
};
use serde_json::{Value as Json, json};
use udf::{DataSource, NothingRelated, Related, Relation};

const STAMP: Stamp = Stamp(7);

fn source(id: &str) -> DataSource {
    let (_, text) = sample::DATA_SOURCES.iter().find(|(known, _)| *known == id).unwrap();
    DataSource::compile(&serde_json::from_str(text).unwrap()).unwrap()
}

fn evaluate(source: &DataSource, json: &Json, related: &mut dyn Related) -> Vec<Row> {
    source.evaluate(&Doc::from_value(json).unwrap(), STAMP, 0, related).unwrap()
}

/// A row as JSON: dates as text, decimals as floats.
fn shown(source: &DataSource, row: &Row) -> BTreeMap<String, Json> {
    let cell = |cell: &Cell| match cell {
        Cell::Null => Json::Null,
        Cell::Bool(value) => json!(value),
        Cell::Int(value) | Cell::Datetime(value) => json!(value),
        Cell::Decimal(value) => json!((*value as f64 / 1e16 * 1e6).round() / 1e6),
        Cell::Float(value) => json!(value.0),
        Cell::Text(text) => json!(text.as_str()),
        Cell::Date(days) => json!(schemas::time::format_micros(i64::from(*days) * 86_400_000_000)[..10]),
        Cell::List(_) | Cell::Document(_) => panic!("no lists and no documents here"),
    };
    source.schema().columns.iter().map(|column| column.name.clone()).zip(row.iter().map(cell)).collect()
}

fn only(source: &DataSource, json: &Json, related: &mut dyn Related) -> BTreeMap<String, Json> {
    let rows = evaluate(source, json, related);
    assert_eq!(rows.len(), 1);
    shown(source, &rows[0])
}

fn assert_cells(row: &BTreeMap<String, Json>, expected: &Json) {
    for (column, value) in expected.as_object().unwrap() {
        assert_eq!(row.get(column), Some(value), "{column}");
    }
}

fn pregnancy() -> Json {
    json!({"_id": "p1", "domain": "demo", "doc_type": "CommCareCase", "type": "pregnancy", "name": "Lucía O'Brien",
        "owner_id": "u1", "opened_on": "2024-02-03T04:05:06.000007Z", "closed": false, "closed_on": null, "indices": [],
        "age": "23", "phone": "+919876543210", "lmp": "2023-12-15", "height": "160", "hb": "10.9", "weight": "51.2",
        "risk_level": "high", "danger_signs": "fever bleeding", "anc_count": "2", "last_visit": "2024-03-01"})
}

#[test]
fn every_document_compiles_and_names_its_table() {
    for (id, _) in sample::DATA_SOURCES {
        let source = source(id);
        assert_eq!(source.readable_name(), *id);
        assert_eq!(source.domain(), sample::DOMAIN);
        assert!(source.table_name().starts_with(&format!("ucr_demo_{id}_")) && !source.reads_clock());
    }
}

#[test]
fn pregnancies_follow_the_rules() {
    let source = source("pregnancies");
    assert_eq!((source.kind(), source.subtypes()), (DocKind::Case, Some(&["pregnancy".to_owned()][..])));
    assert_eq!(source.schema().columns.len(), 22);
    assert_cells(
        &only(&source, &pregnancy(), &mut NothingRelated),
        &json!({"doc_id": "p1", "inserted_at": 7, "name": "Lucía O'Brien", "owner_id": "u1", "opened_date": "2024-02-03",
            "closed": 0, "closed_date": null, "age_years": 23, "lmp": "2023-12-15", "edd": "2024-09-20", "gest_weeks": 11,
            "hb": 10.9, "weight_kg": 51.2, "bmi": 20.0, "is_anemic": 1, "risk_low": 0, "risk_medium": 0, "risk_high": 1,
            "danger_bleeding": 1, "danger_fever": 1, "anc_count": 2, "label": "LUCÍA O'BRIEN (3210)"}),
    );
    let mut other = pregnancy();
    for (name, value) in [("hb", "n/a"), ("weight", ""), ("risk_level", "low"), ("danger_signs", "none")] {
        other[name] = value.into();
    }
    other["closed"] = true.into();
    other["closed_on"] = "2024-05-06T00:00:00.000000Z".into();
    assert_cells(
        &only(&source, &other, &mut NothingRelated),
        &json!({"hb": null, "weight_kg": null, "bmi": null, "is_anemic": null, "risk_low": 1, "risk_high": 0, "closed": 1,
            "closed_date": "2024-05-06", "danger_bleeding": 0, "danger_fever": 0}),
    );
    other["hb"] = "11.0".into();
    assert_cells(&only(&source, &other, &mut NothingRelated), &json!({"is_anemic": 0}));
    other["type"] = "child".into();
    assert!(evaluate(&source, &other, &mut NothingRelated).is_empty());
}

fn visit(items: &Json) -> Json {
    json!({"_id": "f1", "domain": "demo", "doc_type": "XFormInstance", "user_id": "u1",
        "xmlns": "http://openrosa.org/formdesigner/millrace/anc_visit",
        "form": {"visit_date": "2024-03-01", "danger_signs": "fever", "weight": "51.2", "total_qty": "7", "items": items}})
}

#[test]
fn visits_and_their_items_follow_the_rules() {
    let items = source("visit_items");
    let item = json!({"item_code": "IFA", "qty": "3", "batch": "B1", "expiry": "2025-01-31"});
    let second = json!({"item_code": "ORS", "qty": "4", "batch": "B2", "expiry": "2025-02-28"});
    assert_cells(
        &only(&items, &visit(&item), &mut NothingRelated),
        &json!({"doc_id": "f1", "repeat_iteration": 0, "form_id": "f1", "idx": 0, "owner_id": "u1",
            "visit_date": "2024-03-01", "item_code": "IFA", "qty": 3, "batch": "B1", "expiry": "2025-01-31"}),
    );
    let rows = evaluate(&items, &visit(&json!([item, second])), &mut NothingRelated);
    assert_eq!(rows.len(), 2);
    assert_cells(&shown(&items, &rows[1]), &json!({"idx": 1, "repeat_iteration": 1, "item_code": "ORS", "qty": 4}));
    assert!(evaluate(&items, &visit(&Json::Null), &mut NothingRelated).is_empty());

    let visits = source("visits");
    assert!(visits.accepts_subtype("http://openrosa.org/formdesigner/millrace/pnc_visit"));
    assert!(!visits.accepts_subtype("http://openrosa.org/formdesigner/millrace/delivery"));
    assert_cells(
        &only(&visits, &visit(&item), &mut NothingRelated),
        &json!({"owner_id": "u1", "month": "2024-03", "is_danger": 1, "weight": 51.2, "total_qty": 7}),
    );
    for (signs, danger) in [(json!("none"), 0), (json!(""), 0), (Json::Null, 0), (json!("fever bleeding"), 1)] {
        let mut form = visit(&Json::Null);
        form["form"]["danger_signs"] = signs;
        assert_cells(&only(&visits, &form, &mut NothingRelated), &json!({"is_danger": danger}));
    }
}

/// One case, and what was asked for.
struct Mother {
    case: Json,
    asked: Vec<String>,
}

impl Related for Mother {
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc> {
        assert_eq!(*relation, Relation::Document(DocKind::Case));
        self.asked.push(key.to_owned());
        if self.case["_id"] == key { vec![Doc::from_value(&self.case).unwrap()] } else { Vec::new() }
    }
}

#[test]
fn children_read_their_mother() {
    let source = source("children");
    let child = json!({"_id": "c1", "domain": "demo", "doc_type": "CommCareCase", "type": "child", "name": "Baby",
        "dob": "2024-09-01", "sex": "f", "birth_weight": "2.9", "closed": false, "indices": [{"identifier": "mother",
            "referenced_type": "pregnancy", "referenced_id": "p1", "relationship": "child"}]});
    let own = json!({"doc_id": "c1", "child_id": "c1", "child_name": "Baby", "dob": "2024-09-01", "sex": "f",
        "birth_weight": 2.9, "closed": 0, "mother_id": "p1"});
    let mut mother = Mother { case: pregnancy(), asked: Vec::new() };
    let row = only(&source, &child, &mut mother);
    assert_eq!(mother.asked, ["p1"]);
    assert_cells(&row, &own);
    assert_cells(
        &row,
        &json!({"mother_name": "Lucía O'Brien", "mother_phone": "+919876543210", "mother_risk": "high",
            "mother_last_visit": "2024-03-01", "mother_hb": 10.9, "mother_closed": 0}),
    );
    let absent = json!({"mother_name": null, "mother_phone": null, "mother_risk": null, "mother_last_visit": null,
        "mother_hb": null, "mother_closed": null});
    mother.case["_id"] = "p2".into();
    let row = only(&source, &child, &mut mother);
    assert_cells(&row, &own);
    assert_cells(&row, &absent);
    // A case of another domain is not there either.
    mother.case["_id"] = "p1".into();
    mother.case["domain"] = "other".into();
    assert_cells(&only(&source, &child, &mut mother), &absent);
}

#[test]
fn workers_and_places() {
    let worker = json!({"_id": "u1", "domain": "demo", "doc_type": "CommCareUser", "username": "chw1",
        "first_name": "Asha", "last_name": "Devi", "location_id": "l1"});
    assert_cells(
        &only(&source("workers"), &worker, &mut NothingRelated),
        &json!({"user_id": "u1", "username": "chw1", "first_name": "Asha", "last_name": "Devi", "location_id": "l1"}),
    );
    for doc_type in ["Location", "SQLLocation"] {
        let place = json!({"_id": "l1", "domain": "demo", "doc_type": doc_type, "name": "Village 1",
            "site_code": "village_1", "location_type": "village", "parent_id": "l0"});
        assert_cells(
            &only(&source("places"), &place, &mut NothingRelated),
            &json!({"location_id": "l1", "name": "Village 1", "site_code": "village_1", "location_type": "village",
                "parent_id": "l0"}),
        );
    }
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let broken = json!({"domain": "demo", "table_id": "t", "referenced_doc_type": "Elephant",
    "configured_filter": {"type": "boolean_expression", "operator": "equals", "property_value": 1, "expression":
        {"type": "property_nam", "property_name": "type"}},
    "named_expressions": {"a": {"type": "named", "name": "b"}, "b": {"type": "named", "name": "a"}},
    "sql_column_indexes": [{"column_ids": ["x", "nowhere"]}],
    "configured_indicators": [
        {"type": "raw", "column_id": "x", "datatype": "text", "property_name": "x"},
        {"type": "count", "column_id": "x", "colour": "red"},
        {"type": "count", "column_id": "doc_id"}
    ]});
    let errors = DataSource::compile(&broken).unwrap_err();
    let mut places: Vec<&str> = errors.problems.iter().map(|problem| problem.pointer.as_str()).collect();
    places.sort_unstable();
    assert_eq!(
        places,
        [
            "/configured_filter/expression/type",
            "/configured_filter/operator",
            "/configured_indicators/0/datatype",
            "/configured_indicators/1",
            "/configured_indicators/1/colour",
            "/configured_indicators/2",
            "/named_expressions/b/name",
            "/referenced_doc_type",
            "/sql_column_indexes/0/column_ids/1",
        ]
    );
    assert!(errors.to_string().contains("`property_nam` is not an expression type"));
    assert!(DataSource::compile(&json!([])).is_err());
}

/// A data source of one column over cases of the sample domain.
fn over_named(named: &Json, expression: &Json) -> Json {
    json!({"domain": "demo", "table_id": "t", "referenced_doc_type": "CommCareCase", "named_expressions": named,
    "configured_indicators": [
        {"type": "expression", "column_id": "n", "datatype": "integer", "expression": expression}
    ]})
}

#[test]
fn chains_of_names_are_bounded() {
    let chain = |length: usize| {
        let link =
            |i: usize| json!({"type": "root_doc", "expression": {"type": "named", "name": format!("n{}", i + 1)}});
        let mut named: BTreeMap<String, Json> = (0..length).map(|i| (format!("n{i}"), link(i))).collect();
        named.insert(format!("n{length}"), json!(1));
        over_named(&json!(named), &json!({"type": "named", "name": "n0"}))
    };
    assert!(DataSource::compile(&chain(100)).is_ok());
    let errors = DataSource::compile(&chain(20_000)).unwrap_err();
    assert!(errors.to_string().contains("nested deeper"), "{errors}");
}

#[test]
fn a_document_that_takes_too_long_fails() {
    let every = |inner: Json| {
        json!({"type": "reduce_items", "aggregation_fn": "count", "items_expression": {"type": "map_items",
            "items_expression": {"type": "root_doc", "expression": {"type": "property_name", "property_name": "l"}},
            "map_expression": inner}})
    };
    let cubed = every(every(every(json!({"type": "identity"}))));
    let source = DataSource::compile(&over_named(&json!({}), &cubed)).unwrap();
    let with = |length: usize| {
        let json = json!({"_id": "c", "domain": "demo", "doc_type": "CommCareCase", "l": vec![0; length]});
        source.evaluate(&Doc::from_value(&json).unwrap(), STAMP, 0, &mut NothingRelated)
    };
    assert_eq!(with(10).unwrap().len(), 1);
    assert!(with(110).unwrap_err().to_string().contains("too many steps"));
}

#[test]
fn values_that_do_not_fit_fail_the_document() {
    let source = DataSource::compile(&json!({"domain": "demo", "table_id": "t", "referenced_doc_type": "CommCareCase",
    "configured_indicators": [
        {"type": "raw", "column_id": "n", "datatype": "small_integer", "property_name": "n"},
        {"type": "raw", "column_id": "who", "datatype": "string", "property_name": "who", "is_nullable": false},
        {"type": "raw", "column_id": "at", "datatype": "datetime", "property_name": "at"}
    ]}))
    .unwrap();
    assert_eq!(source.schema().columns[2].column_type, ColumnType::SmallInteger);
    let try_with = |n: Json, who: Json, at: Json| {
        let json = json!({"_id": "c", "domain": "demo", "doc_type": "CommCareCase", "n": n, "who": who, "at": at});
        source.evaluate(&Doc::from_value(&json).unwrap(), STAMP, 0, &mut NothingRelated).map(|rows| rows.len())
    };
    assert_eq!(try_with(json!("5"), json!("a"), json!("2024-01-01")), Ok(1));
    for (n, who, at, message) in [
        (json!(40_000), json!("a"), json!(null), "column `n`: integer is out of range"),
        (json!(1), json!(null), json!(null), "column `who`: null is not allowed"),
        (json!(1), json!("a"), json!("soon"), "column `at`: could not read `soon` as a date and time"),
    ] {
        assert_eq!(try_with(n, who, at).unwrap_err().to_string(), message);
    }
}
