//! `constant`, and literals in place of expressions (ucr.md §1.3, §2.2).

use serde_json::Value as Json;

use super::{Compile, Expression};
use crate::{
    coerce,
    context::Context,
    error::EvalError,
    spec::{Compiler, Spec},
    value::{Text, Value},
};

/// Always the same value. Text that looks typed was converted; a `datatype` is ignored, as in the original.
#[derive(Debug)]
pub(crate) struct Constant {
    value: Value<'static>,
}

impl Constant {
    pub(crate) fn new(literal: &Json) -> Self {
        Self { value: coerce::constant_json(literal) }
    }
}

impl Compile for Constant {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        match spec.raw("constant") {
            Some(json) => Self::new(json),
            None => {
                compiler.problem(spec.pointer(), "`constant` is required (it may be null)");
                Self::new(&Json::Null)
            }
        }
    }
}

impl Expression for Constant {
    fn eval<'a>(&'a self, _: &Value<'a>, _: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        Ok(match &self.value {
            Value::Text(text) => Value::Text(Text::Borrowed(text)),
            other => other.clone(),
        })
    }

    fn constant(&self) -> Option<&Value<'static>> {
        Some(&self.value)
    }
}
