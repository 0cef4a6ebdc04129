//! `array_index`: one element of a list (ucr.md §2.3).

use super::{Compile, Expr, Expression};
use crate::{
    context::Context,
    error::EvalError,
    facts::DemandNo,
    spec::{Compiler, Spec},
    value::Value,
};

/// The element at an index; null unless there is a list, an integer and such an element.
#[derive(Debug)]
pub(crate) struct ArrayIndex {
    array: Expr,
    index: Expr,
}

impl Compile for ArrayIndex {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        Self {
            array: spec.expression("array_expression", compiler),
            index: spec.expression("index_expression", compiler),
        }
    }
}

impl Expression for ArrayIndex {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let Value::List(list) = self.array.eval(item, context)? else { return Ok(Value::Null) };
        let index = self.index.eval(item, context)?;
        Ok(position(&index, list.len()).and_then(|index| list.get(index)).unwrap_or(Value::Null))
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.array.found_by()
    }
}

/// A Python index into a sequence of that length; `None` if it is no integer or lies outside.
pub(crate) fn position(index: &Value<'_>, length: usize) -> Option<usize> {
    let index = match index {
        Value::Integer(index) => *index,
        Value::Bool(index) => (*index).into(),
        _ => return None,
    };
    let length = i128::try_from(length).ok()?;
    let index = if index < 0 { index.checked_add(length)? } else { index };
    if (0..length).contains(&index) { usize::try_from(index).ok() } else { None }
}
