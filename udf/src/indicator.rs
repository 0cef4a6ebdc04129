//! Indicators (ucr.md §5): specification to columns and their values.

use schemas::{doc::Doc, row::Cell};
use serde_json::Value as Json;

use crate::{
    coerce::{DataType, constant_json},
    context::{Context, Relation},
    error::{EvalError, SpecErrors},
    expr::Expr,
    filter::{self, Filter, Operator},
    spec::{Compiler, Named, Spec, json_kind},
    transform::{self, Transform},
    value::{Name, Value},
};

/// A column that an indicator makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndicatorColumn {
    /// Id, unique in the data source.
    pub id: String,
    /// What its values are converted to.
    pub datatype: DataType,
    /// `is_nullable` of the specification.
    pub nullable: bool,
    /// Part of the table's key.
    pub primary_key: bool,
}

impl IndicatorColumn {
    /// True if a null fails the document: it is not nullable, or part of the key.
    #[must_use]
    pub fn is_required(&self) -> bool {
        !self.nullable || self.primary_key
    }
}

/// A compiled indicator.
#[derive(Debug)]
pub struct Indicator {
    columns: Vec<IndicatorColumn>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Expression {
        expression: Expr,
        transform: Option<Transform>,
    },
    Boolean(Filter),
    Count,
    ChoiceList {
        property: Expr,
        choices: Vec<Value<'static>>,
        operator: Operator,
    },
    Ledger {
        case_id: Expr,
        reader: LedgerReader,
    },
    InsertedAt,
    RepeatIteration,
    /// Could not be compiled.
    Nothing,
}

const COMMON: [&str; 4] = ["type", "column_id", "display_name", "comment"];

impl Indicator {
    /// Compiles an indicator on its own.
    ///
    /// # Errors
    /// Every problem of the specification.
    pub fn compile(json: &Json, named: Named<'_>) -> Result<Self, SpecErrors> {
        let mut compiler = Compiler::new(named);
        let indicator = compile(json, "", &mut compiler);
        compiler.finish(indicator).map(|(indicator, _)| indicator)
    }

    /// The columns it makes, in order.
    #[must_use]
    pub fn columns(&self) -> &[IndicatorColumn] {
        &self.columns
    }

    /// The columns' values for an item, converted to their datatypes.
    ///
    /// # Errors
    /// Where the original raises.
    pub fn values<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Vec<Value<'a>>, EvalError> {
        let mut values = Vec::with_capacity(self.columns.len());
        self.each(item, context, &mut |column, value| {
            values.push(column.datatype.coerce(value)?);
            Ok(())
        })?;
        Ok(values)
    }

    /// Appends the columns' cells for an item.
    pub(crate) fn cells<'a>(
        &'a self,
        item: &Value<'a>,
        context: &mut Context<'a, '_>,
        cells: &mut Vec<Cell>,
    ) -> Result<(), EvalError> {
        let made = self.each(item, context, &mut |column, value| {
            let cell = column.datatype.cell(value).map_err(|error| error.in_column(&column.id))?;
            if cell == Cell::Null && column.is_required() {
                return Err(EvalError::raised("null is not allowed").in_column(&column.id));
            }
            cells.push(cell);
            Ok(())
        });
        made.map_err(|error| match self.columns.first() {
            Some(column) => error.in_column(&column.id),
            None => error,
        })
    }

    /// Hands every column its value, not yet converted.
    fn each<'a>(
        &'a self,
        item: &Value<'a>,
        context: &mut Context<'a, '_>,
        take: &mut dyn FnMut(&IndicatorColumn, Value<'a>) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        let value = match &self.body {
            Body::Expression { expression, transform } => {
                let value = expression.eval(item, context)?;
                match transform {
                    Some(transform) => transform.apply(value, context)?,
                    None => value,
                }
            }
            Body::Boolean(filter) => Value::Integer(filter.test(item, context)?.into()),
            Body::Count => Value::Integer(1),
            Body::InsertedAt => Value::Datetime(context.stamp.0),
            Body::RepeatIteration => Value::Integer(context.iteration.into()),
            Body::ChoiceList { property, choices, operator } => {
                let value = property.eval(item, context)?;
                for (column, choice) in self.columns.iter().zip(choices) {
                    take(column, Value::Integer(operator.apply(&value, choice)?.into()))?;
                }
                return Ok(());
            }
            Body::Ledger { case_id, reader } => {
                // The original evaluates the case id without a context.
                let case_id = case_id.eval(item, &mut context.inside(None))?;
                let ledgers = match &case_id {
                    Value::Text(id) if !id.is_empty() => context.related.get(&Relation::Ledgers, id),
                    _ => Vec::new(),
                };
                for (column, product) in self.columns.iter().zip(&reader.products) {
                    take(column, reader.value(&ledgers, product))?;
                }
                return Ok(());
            }
            Body::Nothing => return Ok(()),
        };
        match self.columns.first() {
            Some(column) => take(column, value),
            None => Ok(()),
        }
    }
}

/// Finds balances among the ledger values of a case.
#[derive(Debug)]
struct LedgerReader {
    section: Box<str>,
    products: Vec<Box<str>>,
    /// The balance is a day of 1970 and later.
    as_date: bool,
    names: [Name; 3],
}

impl LedgerReader {
    fn value<'a>(&self, ledgers: &[Doc], product: &str) -> Value<'a> {
        let [section_id, product_code, balance] = &self.names;
        let is = |ledger: &Value<'_>, name: &Name, wanted: &str| matches!(ledger.get(name), Some(Value::Text(text)) if *text == *wanted);
        let balance = ledgers
            .iter()
            .map(|ledger| Value::from_doc(ledger.clone()))
            .find(|ledger| is(ledger, section_id, &self.section) && is(ledger, product_code, product))
            .and_then(|ledger| ledger.get(balance))
            .unwrap_or(Value::Integer(0));
        if !self.as_date {
            return balance;
        }
        match balance {
            Value::Integer(days) => i32::try_from(days).map_or(Value::Null, Value::Date),
            _ => Value::Null,
        }
    }
}

/// Compiles an indicator.
pub(crate) fn compile(json: &Json, pointer: &str, compiler: &mut Compiler<'_>) -> Indicator {
    let Some(fields) = json.as_object() else {
        compiler.problem(pointer, format!("an indicator must be a mapping, not {}", json_kind(json)));
        return Indicator { columns: Vec::new(), body: Body::Nothing };
    };
    let spec = Spec::new(fields, pointer);
    let kind = spec.text("type", compiler).unwrap_or_default();
    let known = |more: &[&'static str]| [&COMMON[..], more].concat();
    let flags = ["is_nullable", "is_primary_key", "create_index"];
    match kind {
        "expression" => {
            spec.only(&[&known(&["datatype", "expression", "transform"]), &flags[..]].concat(), compiler);
            let columns = typed_column(&spec, compiler);
            let expression = spec.expression("expression", compiler);
            let transform =
                spec.optional("transform").map(|json| transform::compile(json, &spec.at("transform"), compiler));
            Indicator { columns, body: Body::Expression { expression, transform } }
        }
        "raw" => {
            spec.only(&[&known(&["datatype", "property_name", "property_path"]), &flags[..]].concat(), compiler);
            let columns = typed_column(&spec, compiler);
            let expression = filter::property(&spec, compiler);
            Indicator { columns, body: Body::Expression { expression, transform: None } }
        }
        "boolean" | "small_boolean" => {
            spec.only(&known(&["filter"]), compiler);
            let datatype = if kind == "boolean" { DataType::Integer } else { DataType::SmallInteger };
            let columns = plain_column(&spec, datatype, compiler);
            Indicator { columns, body: Body::Boolean(spec.filter("filter", compiler)) }
        }
        "count" => {
            spec.only(&COMMON, compiler);
            Indicator { columns: plain_column(&spec, DataType::Integer, compiler), body: Body::Count }
        }
        "choice_list" => choice_list(&spec, compiler),
        "ledger_balances" => ledger(&spec, false, compiler),
        "due_list_date" => ledger(&spec, true, compiler),
        "inserted_at" => system("inserted_at", DataType::Datetime, Body::InsertedAt),
        "repeat_iteration" => system("repeat_iteration", DataType::Integer, Body::RepeatIteration),
        "" => Indicator { columns: Vec::new(), body: Body::Nothing },
        other => {
            let types = "boolean, choice_list, count, due_list_date, expression, inserted_at, ledger_balances, raw, \
                         repeat_iteration, small_boolean";
            let message = format!("`{other}` is not an indicator type (known: {types})");
            compiler.unknown_type(&spec.at("type"), other, message);
            Indicator { columns: Vec::new(), body: Body::Nothing }
        }
    }
}

fn system(id: &str, datatype: DataType, body: Body) -> Indicator {
    let column = IndicatorColumn { id: id.to_owned(), datatype, nullable: false, primary_key: false };
    Indicator { columns: vec![column], body }
}

fn plain_column(spec: &Spec<'_>, datatype: DataType, compiler: &mut Compiler<'_>) -> Vec<IndicatorColumn> {
    let id = spec.text("column_id", compiler).map(str::to_owned);
    id.map(|id| IndicatorColumn { id, datatype, nullable: true, primary_key: false }).into_iter().collect()
}

fn typed_column(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Vec<IndicatorColumn> {
    let datatype = spec.datatype(compiler).unwrap_or(DataType::String);
    let primary_key = spec.flag("is_primary_key", false, compiler);
    let nullable = spec.flag("is_nullable", true, compiler);
    let mut columns = plain_column(spec, datatype, compiler);
    for column in &mut columns {
        (column.nullable, column.primary_key) = (nullable, primary_key);
    }
    columns
}

/// One column per part, its id the indicator's and the part's.
fn part_columns(
    spec: &Spec<'_>,
    parts: impl Iterator<Item = String>,
    datatype: DataType,
    compiler: &mut Compiler<'_>,
) -> Vec<IndicatorColumn> {
    let Some(id) = spec.text("column_id", compiler) else { return Vec::new() };
    parts
        .map(|part| IndicatorColumn { id: format!("{id}_{part}"), datatype, nullable: true, primary_key: false })
        .collect()
}

fn choice_list(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Indicator {
    let keys = ["property_name", "property_path", "choices", "select_style"];
    spec.only(&[&COMMON[..], &keys[..]].concat(), compiler);
    let operator = match spec.optional_text("select_style", compiler) {
        None | Some("single") => Operator::Eq,
        Some("multiple") => Operator::InMulti,
        Some(other) => {
            let message = format!("`{other}` is not a select style (single or multiple)");
            compiler.problem(&spec.at("select_style"), message);
            Operator::Eq
        }
    };
    let choices = spec.list("choices", compiler);
    let names = choices.iter().map(|choice| match choice {
        Json::String(text) => text.clone(),
        other => constant_json(other).into_text().to_string(),
    });
    let columns = part_columns(spec, names, DataType::Integer, compiler);
    let property = filter::property(spec, compiler);
    Indicator {
        columns,
        body: Body::ChoiceList { property, choices: choices.iter().map(constant_json).collect(), operator },
    }
}

fn ledger(spec: &Spec<'_>, as_date: bool, compiler: &mut Compiler<'_>) -> Indicator {
    let keys = ["product_codes", "ledger_section", "case_id_expression"];
    spec.only(&[&COMMON[..], &keys[..]].concat(), compiler);
    let section = spec.text("ledger_section", compiler).unwrap_or_default().into();
    let products = spec.texts("product_codes", compiler);
    let datatype = if as_date { DataType::Date } else { DataType::Integer };
    let columns = part_columns(spec, products.iter().map(|product| (*product).to_owned()), datatype, compiler);
    let case_id = spec.expression("case_id_expression", compiler);
    let demand = compiler.demand(Relation::Ledgers, spec.raw("case_id_expression"), spec.pointer());
    compiler.reads_of(demand, &["section_id", "product_code", "balance"]);
    let reader = LedgerReader {
        section,
        products: products.into_iter().map(Box::from).collect(),
        as_date,
        names: [Name::new("section_id"), Name::new("product_code"), Name::new("balance")],
    };
    Indicator { columns, body: Body::Ledger { case_id, reader } }
}
