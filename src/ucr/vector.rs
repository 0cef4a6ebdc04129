//! One vector: what it asks for, and whether the language answers as it says.

use std::path::Path;

use anyhow::Context as _;
use schemas::{doc::Doc, position::Stamp, row::Row, time::parse_micros};
use serde_json::Value as Json;
use udf::{
    Context, DataSource, EvalError, Named, SpecErrors, Value,
    filter::Operator,
    indicator::{Indicator, IndicatorColumn},
    names::{Keep, question_column_id, table_name, truncate},
    plan::{ExpressionPlan, FilterPlan},
    transform::Transform,
};

use super::{
    rows::{can_be_saved, compare},
    store::Store,
    typed::{same, stored, value},
};

/// "Now" of vectors that do not say when they are evaluated: 2026-11-23, the day the set was made.
pub(crate) const NOW: i64 = 1_795_392_000_000_000;

/// What came of a vector.
pub(crate) enum Verdict {
    /// It is of a kind that is not run.
    NotRun,
    /// The answer is right, or what is different.
    Judged(Result<(), String>),
    /// The rows computed from scratch are right; the dataflow has to have the same.
    Rows(Box<Rebuilt>),
}

/// Rows computed from scratch, and what the dataflow needs to compute them.
pub(crate) struct Rebuilt {
    pub(crate) source: DataSource,
    pub(crate) definition: Json,
    pub(crate) store: Store,
    pub(crate) id: String,
    pub(crate) document: Json,
    pub(crate) rows: Vec<Row>,
    pub(crate) now: i64,
}

/// What came out.
enum Outcome {
    Value(Value<'static>),
    BadSpec(String),
    Raised(EvalError),
}

impl Outcome {
    fn of(result: Result<Value<'_>, EvalError>) -> Self {
        match result {
            Ok(value) => Self::Value(owned(&value)),
            Err(error) => Self::Raised(error),
        }
    }

    fn text(text: &str) -> Self {
        Self::Value(Value::Text(udf::value::Text::Owned(text.into())))
    }

    fn bad_spec(errors: &SpecErrors) -> Self {
        Self::BadSpec(errors.to_string())
    }

    /// Compares with the vector's `expected` or `error`.
    fn check(&self, vector: &Json) -> anyhow::Result<Result<(), String>> {
        let error = vector.get("error").and_then(Json::as_str);
        let right = match (self, error) {
            (Self::BadSpec(_), Some("bad_spec")) | (Self::Raised(EvalError::Invalid { .. }), Some("validation")) => {
                true
            }
            (Self::Raised(_), Some(error)) => error.starts_with("runtime:"),
            (Self::Value(actual), None) => {
                let tolerance = vector.get("approx").and_then(Json::as_f64).unwrap_or(0.0);
                let expected = value(&vector["expected"])?;
                if !same(actual, &expected, tolerance) {
                    return Ok(Err(format!("expected {expected:?}, got {actual:?}")));
                }
                true
            }
            _ => false,
        };
        if right {
            return Ok(Ok(()));
        }
        let actual = match self {
            Self::Value(value) => format!("{value:?}"),
            Self::BadSpec(problem) => format!("bad spec: {problem}"),
            Self::Raised(error) => format!("raised: {error}"),
        };
        Ok(Err(format!("expected {}, got {actual}", wanted(vector))))
    }
}

/// What the vector expects, for messages.
fn wanted(vector: &Json) -> String {
    match vector.get("error") {
        Some(error) => format!("error {error}"),
        None => vector["expected"].to_string(),
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

/// Runs a vector. `configs` is where the configurations that it may name lie.
///
/// # Errors
/// The vector is not of the format.
pub(crate) fn run(vector: &Json, configs: &Path) -> anyhow::Result<Verdict> {
    match text(vector, "kind")? {
        "expression" | "filter" | "transform" => Ok(Verdict::Judged(plain(vector)?.check(vector)?)),
        "indicator" => Ok(Verdict::Judged(indicator(vector)?)),
        "data_source" => data_source(vector, configs),
        _ => Ok(Verdict::NotRun),
    }
}

/// A text of a vector.
pub(crate) fn text<'v>(json: &'v Json, key: &str) -> anyhow::Result<&'v str> {
    json[key].as_str().with_context(|| format!("`{key}` must be text"))
}

/// A configuration of a set, with its domain forced to `demo`.
///
/// # Errors
/// It cannot be read.
pub(crate) fn config(configs: &Path, file: &str) -> anyhow::Result<Json> {
    let path = configs.join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let mut json: Json =
        serde_json::from_str(&text).with_context(|| format!("{} is not valid JSON", path.display()))?;
    let mut config = json.get_mut("config").map(Json::take).unwrap_or(json);
    if let Some(fields) = config.as_object_mut() {
        fields.insert("domain".to_owned(), "demo".into());
    }
    Ok(config)
}

fn named(context: &Json) -> Named<'_> {
    Named {
        expressions: context.get("named_expressions").and_then(Json::as_object),
        filters: context.get("named_filters").and_then(Json::as_object),
        domain: None,
    }
}

/// "Now" of a vector.
fn now(vector: &Json) -> i64 {
    vector["context"]["now"].as_str().and_then(parse_micros).unwrap_or(NOW)
}

/// What is around the item of a vector.
struct Surroundings {
    store: Store,
    root: Option<Value<'static>>,
    iteration: i64,
    now: i64,
}

impl Surroundings {
    fn of(vector: &Json) -> anyhow::Result<Self> {
        let context = &vector["context"];
        Ok(Self {
            store: Store::of_context(context, context["root_doc"]["domain"].as_str()),
            root: context.get("root_doc").map(value).transpose()?,
            iteration: context["iteration"].as_i64().unwrap_or_default(),
            now: now(vector),
        })
    }

    fn context(&mut self) -> Context<'_, '_> {
        let context = Context::new(self.root.clone(), Stamp(self.now), self.now, &mut self.store);
        context.at_iteration(self.iteration)
    }
}

fn plain(vector: &Json) -> anyhow::Result<Outcome> {
    let spec = &vector["spec"];
    if vector["op"] == "operator" {
        let name = text(spec, "operator")?;
        let operator = Operator::from_name(name).with_context(|| format!("`{name}` is not an operator"))?;
        let (input, reference) = (value(&vector["doc"]["input"])?, value(&vector["doc"]["reference"])?);
        return Ok(Outcome::of(operator.apply(&input, &reference).map(Value::Bool)));
    }
    let (item, mut around) = (value(&vector["doc"])?, Surroundings::of(vector)?);
    let named = named(&vector["context"]);
    Ok(match text(vector, "kind")? {
        "expression" => match ExpressionPlan::compile(spec, named) {
            Ok(plan) => Outcome::of(plan.evaluate(&item, &mut around.context())),
            Err(errors) => Outcome::bad_spec(&errors),
        },
        "filter" => match FilterPlan::compile(spec, named) {
            Ok(plan) => Outcome::of(plan.test(&item, &mut around.context()).map(Value::Bool)),
            Err(errors) => Outcome::bad_spec(&errors),
        },
        _ => match Transform::compile(spec) {
            Ok(transform) => Outcome::of(transform.apply(item, &mut around.context())),
            Err(errors) => Outcome::bad_spec(&errors),
        },
    })
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

fn indicator(vector: &Json) -> anyhow::Result<Result<(), String>> {
    let indicator = match Indicator::compile(&vector["spec"], named(&vector["context"])) {
        Ok(indicator) => indicator,
        Err(errors) => return Outcome::bad_spec(&errors).check(vector),
    };
    if let Some(expected) = vector.get("columns")
        && let Err(difference) = check_columns(indicator.columns(), expected)
    {
        return Ok(Err(difference));
    }
    let (item, mut around) = (value(&vector["doc"])?, Surroundings::of(vector)?);
    let values = match indicator.values(&item, &mut around.context()) {
        Ok(values) => values,
        Err(error) => return Outcome::Raised(error).check(vector),
    };
    let wrong = || Ok(Err(format!("expected {}, got {values:?}", wanted(vector))));
    if vector.get("error").is_some() {
        return wrong();
    }
    let expected = vector["expected"].as_array().context("`expected` must be a list")?;
    if expected.len() != values.len() {
        return wrong();
    }
    for ((column, actual), expected) in indicator.columns().iter().zip(&values).zip(expected) {
        if expected[0] != column.id.as_str() || !same(actual, &value(&expected[1])?, 0.0) {
            return wrong();
        }
    }
    Ok(Ok(()))
}

fn data_source(vector: &Json, configs: &Path) -> anyhow::Result<Verdict> {
    let spec = match vector["spec"]["$config"].as_str() {
        Some(file) => config(configs, file)?,
        None => vector["spec"].clone(),
    };
    let judged = |outcome: &Outcome| Ok(Verdict::Judged(outcome.check(vector)?));
    let argument = |at: usize| spec["args"][at].as_str().context("`spec.args` must be texts");
    let op = text(vector, "op")?;
    match op {
        "table_name" => return judged(&Outcome::text(&table_name(argument(0)?, argument(1)?))),
        "column_name" => {
            return judged(&Outcome::text(&question_column_id(argument(0)?, spec["suffix"].as_str())));
        }
        "truncate_value" => {
            let length = spec["max_length"].as_u64().context("`spec.max_length` must be a number")?;
            let keep = if spec["from_left"] == false { Keep::Start } else { Keep::End };
            return judged(&Outcome::text(&truncate(argument(0)?, usize::try_from(length)?, keep)));
        }
        _ => {}
    }
    let source = match DataSource::compile(&spec) {
        Ok(source) => source,
        Err(errors) => return judged(&Outcome::bad_spec(&errors)),
    };
    let (mut store, now) = (Store::of_context(&vector["context"], Some(source.domain())), now(vector));
    let document = stored(&vector["doc"]);
    let doc = Doc::from_value(&document).context("`doc` cannot be read")?;
    judged(&match op {
        "validate" => Outcome::text("ok"),
        "filter" => Outcome::of(source.filter(&doc, now, &mut store).map(Value::Bool)),
        "deleted_filter" => Outcome::Value(Value::Bool(source.deleted_filter(&doc))),
        "validate_document" => match source.validate(&doc, now, &mut store) {
            Ok(()) => Outcome::text("ok"),
            Err(error) => Outcome::Raised(error),
        },
        "subtype_filter" => Outcome::Value(value(&match source.subtypes() {
            Some(subtypes) => subtypes.into(),
            None => Json::Array(vec![Json::Null]),
        })?),
        "columns" => return Ok(Verdict::Judged(check_columns(source.columns(), &vector["expected"]))),
        "rows" => {
            let made = source.evaluate(&doc, Stamp(now), now, &mut store);
            if let Err(difference) = check_rows(&source, &made, vector, now)? {
                return Ok(Verdict::Judged(Err(difference)));
            }
            let id = document["_id"].as_str().unwrap_or("document").to_owned();
            // A document that fails has no rows.
            let rows = made.unwrap_or_default();
            return Ok(Verdict::Rows(Box::new(Rebuilt { source, definition: spec, store, id, document, rows, now })));
        }
        other => anyhow::bail!("`{other}` is not an operation of data sources"),
    })
}

fn check_rows(
    source: &DataSource,
    made: &Result<Vec<Row>, EvalError>,
    vector: &Json,
    now: i64,
) -> anyhow::Result<Result<(), String>> {
    match made {
        Err(_) if !can_be_saved(source, &vector["expected"]) => Ok(Ok(())),
        Err(EvalError::Invalid { .. }) if vector.get("invalid").is_some() => Ok(Ok(())),
        Err(error) => Outcome::Raised(error.clone()).check(vector),
        Ok(rows) if vector.get("error").is_some() => Ok(Err(format!("expected {}, got {rows:?}", wanted(vector)))),
        Ok(rows) => compare(source, rows, vector["expected"].as_array().context("`expected` must be a list")?, now),
    }
}
