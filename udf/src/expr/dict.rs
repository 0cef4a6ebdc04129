//! `dict`: a mapping made of expressions (ucr.md §2.3).

use super::{Compile, Expr, Expression, compile};
use crate::{
    context::Context,
    error::EvalError,
    spec::{Compiler, Spec, join},
    value::{Text, Value},
};

/// One value per fixed name.
#[derive(Debug)]
pub(crate) struct Dict {
    properties: Vec<(Box<str>, Expr)>,
}

impl Compile for Dict {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let mut properties = Vec::new();
        for (name, json) in spec.mapping("properties", compiler).into_iter().flatten() {
            let value = compile(json, &join(&spec.at("properties"), name), compiler);
            properties.push((Box::from(name.as_str()), value));
        }
        Self { properties }
    }
}

impl Expression for Dict {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let mut entries = Vec::with_capacity(self.properties.len());
        for (name, value) in &self.properties {
            entries.push((Value::Text(Text::Borrowed(name)), value.eval(item, context)?));
        }
        Ok(Value::map(entries))
    }
}
