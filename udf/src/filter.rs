//! Filters (ucr.md §4.1): specification to a tree that says yes or no to an item.

mod operator;

use std::sync::Arc;

use serde_json::Value as Json;

use crate::{
    context::Context,
    error::EvalError,
    expr::{
        self, Expr,
        getters::{PropertyName, PropertyPath},
    },
    spec::{Compiler, Spec, join, json_kind},
    value::Value,
};
pub use operator::Operator;
pub(crate) use operator::contains;

/// Names of the filter types.
pub(crate) const TYPES: [&str; 6] = ["and", "boolean_expression", "named", "not", "or", "property_match"];

/// A compiled filter.
#[derive(Debug)]
pub(crate) enum Filter {
    /// All, stopping at the first no.
    And(Vec<Filter>),
    /// Any, stopping at the first yes.
    Or(Vec<Filter>),
    /// The contrary.
    Not(Box<Filter>),
    /// An operator between two values.
    Boolean {
        /// Left side.
        expression: Expr,
        /// What must hold.
        operator: Operator,
        /// Right side.
        reference: Expr,
    },
    /// A filter written once and used by name.
    Named(Arc<Filter>),
}

impl Filter {
    /// Takes the place of a filter that could not be compiled.
    pub(crate) const fn stand_in() -> Self {
        Self::And(Vec::new())
    }

    /// Whether the item passes.
    pub(crate) fn test<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<bool, EvalError> {
        match self {
            Self::And(filters) => {
                for filter in filters {
                    if !filter.test(item, context)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Self::Or(filters) => {
                for filter in filters {
                    if filter.test(item, context)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Not(filter) => Ok(!filter.test(item, context)?),
            Self::Boolean { expression, operator, reference } => {
                let input = expression.eval(item, context)?;
                let reference = reference.eval(item, context)?;
                operator.apply(&input, &reference)
            }
            Self::Named(filter) => filter.test(item, context),
        }
    }

    /// A property other than `skip` and the texts that it must be one of for the filter to pass, if they are compared before
    /// anything that could fail: a document without them gets a no, and never an error.
    pub(crate) fn gate(&self, skip: Option<&str>) -> Option<(String, Vec<String>)> {
        match self {
            Self::Boolean { .. } => self.comparison().filter(|(property, _)| Some(property.as_str()) != skip),
            Self::And(filters) => {
                for filter in filters {
                    let (property, texts) = filter.comparison()?;
                    if Some(property.as_str()) != skip {
                        return Some((property, texts));
                    }
                }
                None
            }
            Self::Named(filter) => filter.gate(skip),
            Self::Or(_) | Self::Not(_) => None,
        }
    }

    /// The plain property that this filter compares, and the texts it must be one of.
    fn comparison(&self) -> Option<(String, Vec<String>)> {
        let Self::Boolean { expression, .. } = self else { return None };
        let property = expression.property()?;
        Some((property.to_owned(), self.values_of(property)?))
    }

    /// The texts that `property` must be one of for the filter to pass, as far as the original infers them
    /// (ucr.md §3.3): from `eq` or `in` on the plain property, or the first part of an `and` that yields any.
    pub(crate) fn values_of(&self, property: &str) -> Option<Vec<String>> {
        match self {
            Self::Boolean { expression, operator, reference } if expression.property() == Some(property) => {
                let text = |value: &Value<'_>| match value {
                    Value::Text(text) => Some(text.to_string()),
                    _ => None,
                };
                match (operator, reference.constant()?) {
                    (Operator::Eq, value) => Some(vec![text(value)?]),
                    (Operator::In, Value::List(list)) => list.iter().map(|value| text(&value)).collect(),
                    _ => None,
                }
            }
            Self::And(filters) => filters.iter().find_map(|filter| filter.values_of(property)),
            _ => None,
        }
    }
}

/// Compiles a filter.
pub(crate) fn compile(json: &Json, pointer: &str, compiler: &mut Compiler<'_>) -> Filter {
    compiler.nested(pointer, |compiler| compile_here(json, pointer, compiler), Filter::stand_in)
}

fn compile_here(json: &Json, pointer: &str, compiler: &mut Compiler<'_>) -> Filter {
    let Some(fields) = json.as_object() else {
        compiler.problem(pointer, format!("a filter must be a mapping, not {}", json_kind(json)));
        return Filter::stand_in();
    };
    let spec = Spec::new(fields, pointer);
    match spec.raw("type").and_then(Json::as_str) {
        Some("and") => Filter::And(several(&spec, compiler)),
        Some("or") => Filter::Or(several(&spec, compiler)),
        Some("not") => {
            spec.only(&["type", "filter", "comment"], compiler);
            Filter::Not(Box::new(spec.filter("filter", compiler)))
        }
        Some("boolean_expression") => boolean(&spec, compiler),
        Some("property_match") => property_match(&spec, compiler),
        Some("named") => {
            spec.only(&["type", "name", "comment"], compiler);
            let name = spec.text("name", compiler);
            let found = name.and_then(|name| compiler.named_filter(name, &spec.at("name")));
            found.map_or_else(Filter::stand_in, Filter::Named)
        }
        Some(other) => {
            let message = format!("`{other}` is not a filter type (known: {})", TYPES.join(", "));
            compiler.unknown_type(&spec.at("type"), other, message);
            Filter::stand_in()
        }
        None => {
            compiler.problem(pointer, "a filter needs a `type`");
            Filter::stand_in()
        }
    }
}

fn several(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Vec<Filter> {
    spec.only(&["type", "filters", "comment"], compiler);
    let mut filters = Vec::new();
    for (i, json) in spec.list("filters", compiler).iter().enumerate() {
        filters.push(compile(json, &join(&spec.at("filters"), &i.to_string()), compiler));
    }
    filters
}

fn boolean(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Filter {
    spec.only(&["type", "expression", "operator", "property_value", "comment"], compiler);
    let expression = spec.expression("expression", compiler);
    let operator = spec.text("operator", compiler).and_then(|name| {
        let operator = Operator::from_name(name);
        if operator.is_none() {
            let known: Vec<_> = Operator::ALL.iter().map(|operator| operator.name()).collect();
            let message = format!("`{name}` is not an operator (known: {})", known.join(", "));
            compiler.problem(&spec.at("operator"), message);
        }
        operator
    });
    Filter::Boolean { expression, operator: operator.unwrap_or(Operator::Eq), reference: reference(spec, compiler) }
}

fn reference(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Expr {
    match spec.raw("property_value") {
        Some(json) => expr::compile(json, &spec.at("property_value"), compiler),
        None => {
            compiler.problem(spec.pointer(), "`property_value` is required (it may be null)");
            expr::stand_in()
        }
    }
}

/// The property that exactly one of `property_name` and `property_path` names.
pub(crate) fn property(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Expr {
    let path = spec.optional_texts("property_path", compiler);
    match (spec.optional_text("property_name", compiler), path.is_empty()) {
        (Some(name), true) => {
            compiler.reads(name);
            Box::new(PropertyName::fixed(name, None))
        }
        (None, false) => {
            compiler.reads(path.join("."));
            Box::new(PropertyPath::fixed(&path, None))
        }
        (name, _) => {
            let given = if name.is_some() { "both are given" } else { "neither is given" };
            let message = format!("exactly one of `property_name` and `property_path` is required, {given}");
            compiler.problem(spec.pointer(), message);
            expr::stand_in()
        }
    }
}

fn property_match(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Filter {
    spec.only(&["type", "property_name", "property_path", "property_value", "comment"], compiler);
    Filter::Boolean {
        expression: property(spec, compiler),
        operator: Operator::Eq,
        reference: reference(spec, compiler),
    }
}

#[cfg(test)]
mod tests {
    use schemas::position::Stamp;
    use serde_json::json;

    use super::*;
    use crate::{context::NothingRelated, spec::Named};

    fn problems(json: &Json) -> usize {
        let mut compiler = Compiler::new(Named::default());
        let filter = compile(json, "", &mut compiler);
        compiler.finish(filter).err().map_or(0, |errors| errors.problems.len())
    }

    #[test]
    fn closed_schema() {
        let good = json!({"type": "boolean_expression", "operator": "eq", "expression": 1, "property_value": null});
        assert_eq!(problems(&good), 0);
        for (bad, count) in [
            (json!({"type": "and", "filters": []}), 1),
            (json!({"type": "not", "filter": [good]}), 1),
            (json!({"type": "or", "filters": [{"type": "named", "name": "x"}, 5]}), 2),
            (json!({"type": "boolean_expression", "operator": "is", "expression": {"type": "nope"}, "x": 1}), 4),
            (json!({"type": "property_match", "property_name": "a", "property_path": ["b"], "property_value": 1}), 1),
            (json!({}), 1),
        ] {
            assert_eq!(problems(&bad), count, "{bad}");
        }
    }

    #[test]
    fn subtypes_come_from_the_first_conclusive_part() {
        let on = |property: &str, operator: &str, value: Json| {
            json!({"type": "boolean_expression", "operator": operator, "property_value": value,
                "expression": {"type": "property_name", "property_name": property}})
        };
        for (filter, values) in [
            (on("type", "eq", json!("a")), Some(vec!["a"])),
            (on("type", "in", json!(["a", "b"])), Some(vec!["a", "b"])),
            (on("kind", "eq", json!("a")), None),
            (on("type", "not_eq", json!("a")), None),
            (
                json!({"type": "and", "filters": [on("x", "eq", json!(1)), on("type", "eq", json!("a"))]}),
                Some(vec!["a"]),
            ),
            (json!({"type": "or", "filters": [on("type", "eq", json!("a"))]}), None),
        ] {
            let mut compiler = Compiler::new(Named::default());
            let compiled = compile(&filter, "", &mut compiler);
            let values = values.map(|values| values.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(compiled.values_of("type"), values, "{filter}");
        }
    }

    #[test]
    fn a_gate_comes_before_everything_that_can_fail() {
        let on = |property: &str, operator: &str, value: Json| {
            json!({"type": "boolean_expression", "operator": operator, "property_value": value,
                "expression": {"type": "property_name", "property_name": property}})
        };
        let and = |filters: [Json; 2]| json!({"type": "and", "filters": filters});
        let typed = on("type", "eq", json!("a"));
        for (filter, gate) in [
            (on("group", "eq", json!("g")), Some(("group", vec!["g"]))),
            (and([typed.clone(), on("group", "in", json!(["g", "h"]))]), Some(("group", vec!["g", "h"]))),
            (typed.clone(), None),
            (and([on("x", "in_multi", json!("y")), on("group", "eq", json!("g"))]), None),
            (on("group", "eq", json!(5)), None),
            (on("group", "eq", json!(null)), None),
            (json!({"type": "not", "filter": on("group", "eq", json!("g"))}), None),
        ] {
            let mut compiler = Compiler::new(Named::default());
            let compiled = compile(&filter, "", &mut compiler);
            let gate = gate.map(|(property, texts)| {
                (property.to_owned(), texts.into_iter().map(str::to_owned).collect::<Vec<_>>())
            });
            assert_eq!(compiled.gate(Some("type")), gate, "{filter}");
        }
    }

    #[test]
    fn an_and_stops_at_the_first_no() {
        let raises =
            json!({"type": "boolean_expression", "operator": "in_multi", "expression": 5, "property_value": "a"});
        let no = json!({"type": "boolean_expression", "operator": "eq", "expression": 1, "property_value": 2});
        let test = |json: Json| {
            let mut compiler = Compiler::new(Named::default());
            let filter = compile(&json, "", &mut compiler);
            let mut related = NothingRelated;
            filter.test(&Value::Null, &mut Context::new(None, Stamp(0), 0, &mut related))
        };
        assert_eq!(test(json!({"type": "and", "filters": [no, raises]})), Ok(false));
        assert!(test(json!({"type": "or", "filters": [no, raises]})).is_err());
    }
}
