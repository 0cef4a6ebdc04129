//! `iterator`: a list made of expressions (ucr.md §2.3).

use super::{Compile, Expr, Expression, compile};
use crate::{
    context::Context,
    error::EvalError,
    facts::Item,
    filter::{self, Filter},
    spec::{Compiler, Spec, join},
    value::Value,
};

/// The values of several expressions, those that pass a test.
#[derive(Debug)]
pub(crate) struct Iterator {
    expressions: Vec<Expr>,
    test: Option<Filter>,
}

impl Compile for Iterator {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let mut expressions = Vec::new();
        for (i, json) in spec.list("expressions", compiler).iter().enumerate() {
            expressions.push(compile(json, &join(&spec.at("expressions"), &i.to_string()), compiler));
        }
        let test = spec
            .optional("test")
            .map(|json| compiler.on(Item::Other, |compiler| filter::compile(json, &spec.at("test"), compiler)));
        Self { expressions, test }
    }
}

impl Expression for Iterator {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let mut values = Vec::with_capacity(self.expressions.len());
        for expression in &self.expressions {
            let value = expression.eval(item, context)?;
            // The original calls the test without a context.
            let keep = match &self.test {
                Some(test) => test.test(&value, &mut context.inside(None))?,
                None => true,
            };
            if keep {
                values.push(value);
            }
        }
        Ok(Value::list(values))
    }
}
