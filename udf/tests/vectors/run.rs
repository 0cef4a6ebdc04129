//! One vector: what it asks for, and whether this crate answers as it says.

use schemas::{
    doc::Doc,
    position::Stamp,
    row::{Cell, Row},
    time::parse_micros,
};
use serde_json::Value as Json;
use udf::{
    Context, DataSource, EvalError, Named, SpecErrors, Value,
    filter::Operator,
    indicator::{Indicator, IndicatorColumn},
    names::{Keep, column_name, question_column_id, table_name, truncate},
    plan::{ExpressionPlan, FilterPlan},
    transform::Transform,
};

use crate::{
    config,
    store::Store,
    typed::{same, value},
};

/// The day the set was made, for vectors that depend on it: 2026-11-23.
pub(crate) const NOW: i64 = 1_795_392_000_000_000;

/// What came out.
enum Outcome {
    Value(Value<'static>),
    BadSpec(String),
    Raised(EvalError),
}

impl Outcome {
    /// Compares with the vector's `expected` or `error`.
    fn check(&self, vector: &Json) -> Result<(), String> {
        let error = vector.get("error").and_then(Json::as_str);
        match (self, error) {
            (Self::BadSpec(_), Some("bad_spec")) => Ok(()),
            (Self::Raised(EvalError::Invalid { .. }), Some("validation")) => Ok(()),
            (Self::Raised(_), Some(error)) if error.starts_with("runtime:") => Ok(()),
            (Self::Value(actual), None) => {
                let tolerance = vector.get("approx").and_then(Json::as_f64).unwrap_or(0.0);
                let expected = value(&vector["expected"]);
                if same(actual, &expected, tolerance) {
                    Ok(())
                } else {
                    Err(format!("expected {expected:?}, got {actual:?}"))
                }
            }
            _ => {
                let actual = match self {
                    Self::Value(value) => format!("{value:?}"),
                    Self::BadSpec(problem) => format!("bad spec: {problem}"),
                    Self::Raised(error) => format!("raised: {error}"),
                };
                Err(format!("expected {} {}, got {actual}", vector["expected"], vector["error"]))
            }
        }
    }
}

fn outcome<'a>(result: Result<Value<'a>, EvalError>) -> Outcome {
    match result {
        Ok(value) => Outcome::Value(owned(&value)),
        Err(error) => Outcome::Raised(error),
    }
}

/// A copy that outlives its document.
fn owned(value: &Value<'_>) -> Value<'static> {
    use udf::value::{List, Map, Text};
    let all = |values: &[Value<'_>]| values.iter().map(owned).collect();
    match value {
        Value::Null => Value::Null,
        Value::Bool(value) => Value::Bool(*value),
        Value::Integer(value) => Value::Integer(*value),
        Value::Float(value) => Value::Float(*value),
        Value::Decimal(value) => Value::Decimal(value.clone()),
        Value::Text(text) => Value::Text(Text::Owned((**text).into())),
        Value::Date(day) => Value::Date(*day),
        Value::Datetime(at) => Value::Datetime(*at),
        Value::Time(micros) => Value::Time(*micros),
        Value::Duration(micros) => Value::Duration(*micros),
        Value::List(list) => Value::List(List::Values(list.iter().map(|value| owned(&value)).collect())),
        Value::Tuple(values) => Value::Tuple(all(values)),
        Value::Set(values) => Value::Set(all(values)),
        Value::Map(map) => {
            Value::Map(Map::Values(map.entries().map(|(key, value)| (owned(&key), owned(&value))).collect()))
        }
    }
}

fn bad_spec(errors: &SpecErrors) -> Outcome {
    Outcome::BadSpec(errors.to_string())
}

/// Runs a vector; `None` for kinds that are not implemented.
pub(crate) fn run(vector: &Json) -> Option<Result<(), String>> {
    match vector["kind"].as_str().unwrap() {
        "expression" | "filter" | "transform" => Some(plain(vector).check(vector)),
        "indicator" => Some(indicator(vector)),
        "data_source" => Some(data_source(vector)),
        _ => None,
    }
}

fn named(context: &Json) -> Named<'_> {
    Named {
        expressions: context.get("named_expressions").and_then(Json::as_object),
        filters: context.get("named_filters").and_then(Json::as_object),
        domain: None,
    }
}

fn with_context<T>(vector: &Json, run: impl FnOnce(&mut Context<'static, '_>) -> T) -> T {
    let context = &vector["context"];
    let mut store = Store::of_context(context, context["root_doc"]["domain"].as_str());
    let now = context["now"].as_str().and_then(parse_micros).unwrap_or(NOW);
    let root = context.get("root_doc").map(value);
    let iteration = context["iteration"].as_i64().unwrap_or_default();
    run(&mut Context::new(root, Stamp(now), now, &mut store).at_iteration(iteration))
}

/// Compiled specifications live as long as the test: values may borrow from them.
fn leak<T>(compiled: T) -> &'static T {
    Box::leak(Box::new(compiled))
}

fn plain(vector: &Json) -> Outcome {
    let (spec, item) = (&vector["spec"], value(&vector["doc"]));
    if vector.get("op").and_then(Json::as_str) == Some("operator") {
        let operator = Operator::from_name(spec["operator"].as_str().unwrap()).unwrap();
        let applied = operator.apply(&value(&vector["doc"]["input"]), &value(&vector["doc"]["reference"]));
        return outcome(applied.map(Value::Bool));
    }
    let named = named(&vector["context"]);
    match vector["kind"].as_str().unwrap() {
        "expression" => match ExpressionPlan::compile(spec, named) {
            Ok(plan) => with_context(vector, |context| outcome(leak(plan).evaluate(&item, context))),
            Err(errors) => bad_spec(&errors),
        },
        "filter" => match FilterPlan::compile(spec, named) {
            Ok(plan) => with_context(vector, |context| outcome(leak(plan).test(&item, context).map(Value::Bool))),
            Err(errors) => bad_spec(&errors),
        },
        _ => match Transform::compile(spec) {
            Ok(transform) => with_context(vector, |context| outcome(leak(transform).apply(item, context))),
            Err(errors) => bad_spec(&errors),
        },
    }
}

fn check_columns(columns: &[IndicatorColumn], expected: &Json) -> Result<(), String> {
    let shown: Vec<Json> = columns
        .iter()
        .map(|column| {
            serde_json::json!({"id": column.id, "datatype": column.datatype.name(), "nullable": column.nullable,
                "primary_key": column.primary_key})
        })
        .collect();
    let same = expected.as_array().is_some_and(|expected| *expected == shown);
    if same { Ok(()) } else { Err(format!("expected columns {expected}, got {}", Json::Array(shown))) }
}

fn indicator(vector: &Json) -> Result<(), String> {
    let indicator = match Indicator::compile(&vector["spec"], named(&vector["context"])) {
        Ok(indicator) => leak(indicator),
        Err(errors) => return bad_spec(&errors).check(vector),
    };
    if let Some(expected) = vector.get("columns") {
        check_columns(indicator.columns(), expected)?;
    }
    let item = value(&vector["doc"]);
    let values = match with_context(vector, |context| indicator.values(&item, context)) {
        Ok(values) => values,
        Err(error) => return Outcome::Raised(error).check(vector),
    };
    if vector.get("error").is_some() {
        return Err(format!("expected {}, got {values:?}", vector["error"]));
    }
    let expected = vector["expected"].as_array().unwrap();
    let mut matches = expected.len() == values.len();
    for ((column, actual), expected) in indicator.columns().iter().zip(&values).zip(expected) {
        matches &= expected[0] == column.id.as_str() && same(actual, &value(&expected[1]), 0.0);
    }
    if matches { Ok(()) } else { Err(format!("expected {}, got {values:?}", vector["expected"])) }
}

fn data_source(vector: &Json) -> Result<(), String> {
    let spec = match vector["spec"]["$config"].as_str() {
        Some(file) => config(file),
        None => vector["spec"].clone(),
    };
    let text = |name: String| Outcome::Value(value(&Json::String(name))).check(vector);
    let argument = |at: usize| spec["args"][at].as_str().unwrap();
    match vector["op"].as_str().unwrap() {
        "table_name" => return text(table_name(argument(0), argument(1))),
        "column_name" => return text(question_column_id(argument(0), spec["suffix"].as_str())),
        "truncate_value" => {
            let length = usize::try_from(spec["max_length"].as_u64().unwrap()).unwrap();
            let keep = if spec["from_left"] == false { Keep::Start } else { Keep::End };
            return text(truncate(argument(0), length, keep));
        }
        _ => {}
    }
    let source = match DataSource::compile(&spec) {
        Ok(source) => source,
        Err(errors) => return bad_spec(&errors).check(vector),
    };
    let mut store = Store::of_context(&vector["context"], Some(source.domain()));
    let doc = Doc::from_value(&untagged(&vector["doc"])).unwrap();
    let answer = match vector["op"].as_str().unwrap() {
        "validate" => Outcome::Value(value(&"ok".into())),
        "filter" => outcome(source.filter(&doc, NOW, &mut store).map(Value::Bool)),
        "deleted_filter" => Outcome::Value(Value::Bool(source.deleted_filter(&doc))),
        "validate_document" => outcome(source.validate(&doc, NOW, &mut store).map(|()| value(&"ok".into()))),
        "subtype_filter" => Outcome::Value(value(&match source.subtypes() {
            Some(subtypes) => subtypes.into(),
            None => Json::Array(vec![Json::Null]),
        })),
        "columns" => return check_columns(source.columns(), &vector["expected"]),
        "rows" => {
            return match source.evaluate(&doc, Stamp(NOW), NOW, &mut store) {
                Err(_) if !can_be_saved(&source, &vector["expected"]) => Ok(()),
                Ok(rows) if vector.get("error").is_none() => {
                    compare_rows(&source, &rows, vector["expected"].as_array().unwrap())
                }
                Err(EvalError::Invalid { .. }) if vector.get("invalid").is_some() => Ok(()),
                Ok(rows) => Err(format!("expected {}, got {rows:?}", vector["error"])),
                Err(error) => Outcome::Raised(error).check(vector),
            };
        }
        other => return Err(format!("unknown operation {other}")),
    };
    answer.check(vector)
}

/// A document as it is stored: instants are texts.
fn untagged(json: &Json) -> Json {
    match json {
        Json::Array(items) => items.iter().map(untagged).collect(),
        Json::Object(fields) => match fields.get("$datetime").and_then(Json::as_str) {
            Some(at) => format!("{at}Z").into(),
            None => fields.iter().map(|(name, json)| (name.clone(), untagged(json))).collect(),
        },
        other => other.clone(),
    }
}

/// False if an expected row has a null where the table has none: the original computes the row and fails to save it
/// (ucr.md §3.9), so that the document has no rows.
pub(crate) fn can_be_saved(source: &DataSource, expected: &Json) -> bool {
    let holds = |row: &Json| source.columns().iter().all(|column| !column.is_required() || !row[&column.id].is_null());
    expected.as_array().is_none_or(|rows| rows.iter().all(holds))
}

/// Compares rows with expected ones, column by column.
pub(crate) fn compare_rows(source: &DataSource, rows: &[Row], expected: &[Json]) -> Result<(), String> {
    if rows.len() != expected.len() {
        return Err(format!("expected {} rows, got {}", expected.len(), rows.len()));
    }
    for (row, expected) in rows.iter().zip(expected) {
        let fields = expected.as_object().unwrap();
        if fields.len() != source.columns().len() {
            return Err(format!("expected {} columns, got {}", fields.len(), source.columns().len()));
        }
        for (column, cell) in source.columns().iter().zip(row.iter()) {
            let Some(wanted) = fields.get(&column.id) else { return Err(format!("unexpected column {}", column.id)) };
            let wanted = match wanted.as_str() {
                Some("$now") => Cell::Datetime(NOW),
                _ => column.datatype.cell(value(wanted)).map_err(|error| error.to_string())?,
            };
            if wanted != *cell {
                return Err(format!("{}: expected {wanted:?}, got {cell:?}", column.id));
            }
        }
    }
    let names: Vec<_> = source.columns().iter().map(|column| column_name(&column.id)).collect();
    let schema: Vec<_> = source.schema().columns.iter().map(|column| column.name.clone()).collect();
    if names == schema { Ok(()) } else { Err(format!("columns {schema:?} are not named {names:?}")) }
}
