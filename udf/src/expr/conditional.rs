//! `conditional` and `coalesce`: choosing between two values (ucr.md §2.3).

use super::{Compile, Expr, Expression};
use crate::{
    context::Context,
    error::EvalError,
    facts::DemandNo,
    filter::Filter,
    spec::{Compiler, Spec},
    value::Value,
};

/// One of two values, decided by a filter; the other is not evaluated.
#[derive(Debug)]
pub(crate) struct Conditional {
    test: Filter,
    if_true: Expr,
    if_false: Expr,
}

impl Compile for Conditional {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        Self {
            test: spec.filter("test", compiler),
            if_true: spec.expression("expression_if_true", compiler),
            if_false: spec.expression("expression_if_false", compiler),
        }
    }
}

impl Expression for Conditional {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        if self.test.test(item, context)? {
            self.if_true.eval(item, context)
        } else {
            self.if_false.eval(item, context)
        }
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.if_true.found_by().or_else(|| self.if_false.found_by())
    }
}

/// The first value unless it is null or `""`. Both are always evaluated, as in the original.
#[derive(Debug)]
pub(crate) struct Coalesce {
    expression: Expr,
    default: Expr,
}

impl Compile for Coalesce {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        Self {
            expression: spec.expression_mapping("expression", compiler),
            default: spec.expression_mapping("default_expression", compiler),
        }
    }
}

impl Expression for Coalesce {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let value = self.expression.eval(item, context)?;
        let default = self.default.eval(item, context)?;
        let blank = match &value {
            Value::Null => true,
            Value::Text(text) => text.is_empty(),
            _ => false,
        };
        Ok(if blank { default } else { value })
    }
}
