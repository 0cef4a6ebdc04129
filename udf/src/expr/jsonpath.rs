//! `jsonpath`: values by a JSONPath (ucr.md §2.2).

use super::{Compile, Expression};
use crate::{
    coerce::DataType,
    context::Context,
    error::EvalError,
    jsonpath::Path,
    spec::{Compiler, Spec},
    value::Value,
};

/// What a path matches: nothing is null, one match is its value, several are a list.
#[derive(Debug)]
pub(crate) struct JsonPath {
    path: Option<Path>,
    datatype: Option<DataType>,
}

impl Compile for JsonPath {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let path = spec.text("jsonpath", compiler).and_then(|text| match Path::parse(text) {
            Ok(path) => Some(path),
            Err(problem) => {
                compiler.problem(&spec.at("jsonpath"), format!("`{text}` is not a JSONPath: {problem}"));
                None
            }
        });
        Self { path, datatype: spec.optional_datatype(compiler) }
    }
}

impl Expression for JsonPath {
    fn eval<'a>(&'a self, item: &Value<'a>, _: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let Some(path) = &self.path else { return Ok(Value::Null) };
        matches(path, item, self.datatype, false)
    }
}

/// The matches of a path, each converted.
pub(crate) fn matches<'a>(
    path: &Path,
    item: &Value<'a>,
    datatype: Option<DataType>,
    as_list: bool,
) -> Result<Value<'a>, EvalError> {
    // A list is wrapped once, not per match.
    let each = datatype.filter(|datatype| *datatype != DataType::Array);
    let mut found = Vec::new();
    for value in path.find(item) {
        found.push(match each {
            Some(datatype) => datatype.coerce(value)?,
            None => value,
        });
    }
    if as_list || datatype == Some(DataType::Array) {
        return Ok(Value::list(found));
    }
    Ok(match found.len() {
        0 => Value::Null,
        1 => found.swap_remove(0),
        _ => Value::list(found),
    })
}
