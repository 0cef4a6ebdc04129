//! `nested`: one expression on the value of another (ucr.md §2.3).

use super::{Compile, Expr, Expression};
use crate::{
    context::Context,
    error::EvalError,
    facts::{DemandNo, Item},
    spec::{Compiler, Spec},
    value::Value,
};

/// `value(argument(item))` in the same context.
#[derive(Debug)]
pub(crate) struct Nested {
    argument: Expr,
    value: Expr,
}

impl Compile for Nested {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let argument = spec.expression("argument_expression", compiler);
        let item = Item::found_by(argument.found_by());
        Self { argument, value: compiler.on(item, |compiler| spec.expression("value_expression", compiler)) }
    }
}

impl Expression for Nested {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let argument = self.argument.eval(item, context)?;
        self.value.eval(&argument, context)
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.value.found_by()
    }
}
