//! `upper_case`: `{"type": "upper_case", "expression": …}`, the text in capitals.

use crate::{
    context::Context,
    error::EvalError,
    expr::{Compile, Expr, Expression},
    spec::{Compiler, Spec},
    value::Value,
};

/// Capitals of a text; other values pass unchanged.
#[derive(Debug)]
pub(crate) struct UpperCase {
    expression: Expr,
}

impl Compile for UpperCase {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        Self { expression: spec.expression("expression", compiler) }
    }
}

impl Expression for UpperCase {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        Ok(match self.expression.eval(item, context)? {
            Value::Text(text) if text.is_ascii() => {
                let mut text = text.into_compact();
                text.make_ascii_uppercase();
                Value::text(text)
            }
            Value::Text(text) => Value::text(text.to_uppercase()),
            other => other,
        })
    }
}
