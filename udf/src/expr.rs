//! Expressions (ucr.md §2): what they share, and the table of their types.
//!
//! A specification is compiled once into a tree of [`Expression`]s and evaluated for every item. A new type is one file
//! under `expr/` (or, for project-specific ones, under `expr/custom/`) and one line in the table.

pub(crate) mod array;
mod conditional;
mod constant;
pub(crate) mod custom;
mod dates;
mod dict;
pub(crate) mod ethiopian;
mod evaluator;
pub(crate) mod getters;
mod groups;
mod iterator;
pub(crate) mod jsonpath;
mod lists;
mod locations;
pub(crate) mod named;
mod nested;
mod related_cases;
pub(crate) mod related_doc;
mod root;
mod split_string;
mod switch;

use std::fmt;

use serde_json::{Map, Value as Json};

use crate::{
    context::Context,
    error::EvalError,
    facts::DemandNo,
    filter,
    spec::{Compiler, Spec, join, json_kind},
    value::Value,
};

/// A compiled expression.
pub(crate) type Expr = Box<dyn Expression>;

/// What every compiled expression can do.
pub(crate) trait Expression: fmt::Debug + Send + Sync {
    /// The value for `item`.
    ///
    /// # Errors
    /// Where the original raises; the document has no rows then.
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError>;

    /// The value, if it is the same for every item.
    fn constant(&self) -> Option<&Value<'static>> {
        None
    }

    /// The demand whose documents the value is, be it one of them or a list.
    fn found_by(&self) -> Option<DemandNo> {
        None
    }

    /// The property name, if the value is the item's property of that name, unconverted.
    fn property(&self) -> Option<&str> {
        None
    }
}

/// How a type is made from its specification.
pub(crate) trait Compile: Expression + Sized + 'static {
    /// Reads the parameters, noting problems; the result stands in where there were some.
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self;
}

/// Makes an expression of one type.
pub(crate) type Make = fn(&Spec<'_>, &mut Compiler<'_>) -> Expr;

pub(crate) fn make<T: Compile>(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Expr {
    Box::new(T::compile(spec, compiler))
}

macro_rules! expressions {
    ($($name:literal => $type:path),* $(,)?) => {
        /// Every type by name.
        pub(crate) const TABLE: &[(&str, Make)] = &[$(($name, make::<$type>)),*];
    };
}
pub(crate) use expressions;

expressions! {
    "add_days" => dates::AddDays,
    "add_hours" => dates::AddHours,
    "add_months" => dates::AddMonths,
    "ancestor_location" => locations::AncestorLocation,
    "array_index" => array::ArrayIndex,
    "base_iteration_number" => root::BaseIterationNumber,
    "coalesce" => conditional::Coalesce,
    "conditional" => conditional::Conditional,
    "constant" => constant::Constant,
    "dict" => dict::Dict,
    "diff_days" => dates::DiffDays,
    "ethiopian_date_to_gregorian_date" => ethiopian::ToGregorian,
    "evaluator" => evaluator::Evaluator,
    "filter_items" => lists::FilterItems,
    "flatten" => lists::Flatten,
    "get_case_forms" => related_cases::CaseForms,
    "get_case_sharing_groups" => groups::CaseSharingGroups,
    "get_reporting_groups" => groups::ReportingGroups,
    "get_subcases" => related_cases::Subcases,
    "gregorian_date_to_ethiopian_date" => ethiopian::FromGregorian,
    "identity" => getters::Identity,
    "indexed_case" => related_cases::IndexedCase,
    "iterator" => iterator::Iterator,
    "jsonpath" => jsonpath::JsonPath,
    "location_parent_id" => locations::LocationParentId,
    "location_type_name" => locations::LocationTypeName,
    "map_items" => lists::MapItems,
    "month_end_date" => dates::MonthEndDate,
    "month_start_date" => dates::MonthStartDate,
    "named" => named::NamedExpression,
    "nested" => nested::Nested,
    "property_name" => getters::PropertyName,
    "property_path" => getters::PropertyPath,
    "reduce_items" => lists::ReduceItems,
    "related_doc" => related_doc::RelatedDoc,
    "root_doc" => root::RootDoc,
    "sort_items" => lists::SortItems,
    "split_string" => split_string::SplitString,
    "switch" => switch::Switch,
    "utcnow" => dates::UtcNow,
}

/// Compiles an expression or a literal.
pub(crate) fn compile(json: &Json, pointer: &str, compiler: &mut Compiler<'_>) -> Expr {
    match json {
        Json::Object(fields) => compile_fields(fields, pointer, compiler),
        literal => Box::new(constant::Constant::new(literal)),
    }
}

/// Compiles an expression.
pub(crate) fn compile_fields(fields: &Map<String, Json>, pointer: &str, compiler: &mut Compiler<'_>) -> Expr {
    let spec = Spec::new(fields, pointer);
    let Some(json) = spec.raw("type") else {
        compiler.problem(pointer, "an expression needs a `type`");
        return stand_in();
    };
    let Some(name) = json.as_str() else {
        compiler.problem(&spec.at("type"), format!("`type` must be text, not {}", json_kind(json)));
        return stand_in();
    };
    match TABLE.iter().chain(custom::TABLE).find(|(known, _)| *known == name) {
        Some((_, make)) => compiler.nested(pointer, |compiler| make(&spec, compiler), stand_in),
        None => {
            compiler.unknown_type(&spec.at("type"), name, format!("`{name}` is not an expression type"));
            let parts = fields.iter().filter(|(key, _)| *key != "type");
            parts.for_each(|(key, json)| inside_unknown(json, &spec.at(key), compiler));
            stand_in()
        }
    }
}

/// Notes the problems inside a type that is not known. What a name stands for there is not known either.
fn inside_unknown(json: &Json, pointer: &str, compiler: &mut Compiler<'_>) {
    match json {
        Json::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(i, item)| inside_unknown(item, &join(pointer, &i.to_string()), compiler));
        }
        Json::Object(fields) => match fields.get("type").and_then(Json::as_str) {
            Some("named") => {}
            Some(name) if filter::TYPES.contains(&name) => drop(filter::compile(json, pointer, compiler)),
            Some(_) => drop(compile_fields(fields, pointer, compiler)),
            None => fields.iter().for_each(|(key, json)| inside_unknown(json, &join(pointer, key), compiler)),
        },
        _ => {}
    }
}

/// Takes the place of an expression that could not be compiled.
pub(crate) fn stand_in() -> Expr {
    Box::new(constant::Constant::new(&Json::Null))
}

/// Names of every type, for documentation and completeness tests.
pub(crate) fn type_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().chain(custom::TABLE).map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_types_inside_unknown_ones_are_named() {
        let json = serde_json::json!({"type": "own", "of": [{"type": "other", "x": {"type": "named", "name": "n"}}],
            "if": {"type": "not", "filter": {"type": "third"}}, "then": {"type": "property_name"}});
        let mut compiler = Compiler::new(crate::spec::Named::default());
        let compiled = compile(&json, "", &mut compiler);
        let errors = compiler.finish(compiled).unwrap_err();
        assert_eq!(errors.unknown_types.iter().collect::<Vec<_>>(), ["other", "own", "third"]);
        let pointers: Vec<&str> = errors.problems.iter().map(|problem| problem.pointer.as_str()).collect();
        assert_eq!(pointers, ["/type", "/of/0/type", "/if/filter/type", "/then"]);
    }

    #[test]
    fn types_are_registered_once() {
        let mut names: Vec<_> = type_names().collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
