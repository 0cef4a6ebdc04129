//! `evaluator`: a Python expression over named values (ucr.md §2.4).

use smallvec::SmallVec;

use super::{Compile, Expr, Expression, compile, getters::coerced, named::NamedExpression};
use crate::{
    coerce::DataType,
    context::Context,
    error::EvalError,
    python::{Names, Program},
    spec::{Compiler, Spec, join, json_kind},
    value::Value,
};

/// A statement and where its names come from: its context variables or, without any, the item.
#[derive(Debug)]
pub(crate) struct Evaluator {
    /// `None` for the empty statement, which the original compiles but cannot run.
    program: Option<Program>,
    names: Vec<Box<str>>,
    variables: Vec<Expr>,
    datatype: Option<DataType>,
}

impl Compile for Evaluator {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let (mut names, mut variables) = (Vec::new(), Vec::new());
        match spec.raw("context_variables") {
            None | Some(serde_json::Value::Null) => {}
            Some(serde_json::Value::Object(fields)) => {
                for (name, json) in fields {
                    names.push(Box::from(name.as_str()));
                    variables.push(compile(json, &join(&spec.at("context_variables"), name), compiler));
                }
            }
            Some(other) => compiler.problem(
                &spec.at("context_variables"),
                format!("`context_variables` must be a mapping, not {}", json_kind(other)),
            ),
        }
        let statement = match spec.raw("statement") {
            Some(serde_json::Value::String(statement)) => statement.as_str(),
            Some(other) if !other.is_null() => {
                let message = format!("`statement` must be text, not {}", json_kind(other));
                compiler.problem(&spec.at("statement"), message);
                ""
            }
            _ => {
                compiler.problem(spec.pointer(), "`statement` is required");
                ""
            }
        };
        let program = (!statement.trim().is_empty()).then(|| {
            let names: Vec<&str> = names.iter().map(|name| &**name).collect();
            let pointer = spec.at("statement");
            let mut named = |name: &str| NamedExpression::resolve(name, &pointer, compiler);
            let (program, traits) = Program::parse(statement, &names, &mut named);
            if traits.reads_clock {
                compiler.reads_the_clock();
            }
            if traits.random {
                compiler.problem(&pointer, "random numbers are not supported: a row must follow from its documents");
            }
            program
        });
        Self { program, names, variables, datatype: spec.optional_datatype(compiler) }
    }
}

/// Kinds of values that the original hands to a statement.
fn is_allowed(value: &Value<'_>) -> bool {
    !matches!(value, Value::Time(_) | Value::Duration(_) | Value::Set(_))
}

impl Expression for Evaluator {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let names = if self.variables.is_empty() {
            Names::Item(item.clone())
        } else {
            let mut values = SmallVec::new();
            for variable in &self.variables {
                values.push(variable.eval(item, context)?);
            }
            if !values.iter().all(is_allowed) {
                return Ok(Value::Null);
            }
            Names::Variables(&self.names, values)
        };
        let Some(program) = &self.program else { return Err(EvalError::raised("the statement is empty")) };
        coerced(program.run(names, context)?, self.datatype)
    }
}
