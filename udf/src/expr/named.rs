//! `named`: an expression written once and used by name (ucr.md §2.3, §3.4).

use std::sync::Arc;

use super::{Compile, Expression, stand_in};
use crate::{
    context::Context,
    error::EvalError,
    facts::DemandNo,
    spec::{Compiler, Spec},
    value::Value,
};

/// A named expression, its value remembered per item while one base item is evaluated.
#[derive(Debug)]
pub(crate) struct NamedExpression {
    slot: usize,
    expression: Arc<dyn Expression>,
}

impl NamedExpression {
    /// Resolves a name; notes a problem if there is none.
    pub(crate) fn resolve(name: &str, pointer: &str, compiler: &mut Compiler<'_>) -> Self {
        match compiler.named_expression(name, pointer) {
            Some((slot, expression)) => Self { slot, expression },
            None => Self { slot: 0, expression: Arc::from(stand_in()) },
        }
    }
}

impl Compile for NamedExpression {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        match spec.text("name", compiler) {
            Some(name) => Self::resolve(name, &spec.at("name"), compiler),
            None => Self { slot: 0, expression: Arc::from(stand_in()) },
        }
    }
}

impl Expression for NamedExpression {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        if let Some(Some((known, value))) = context.named.get(self.slot)
            && known.is_same(item)
        {
            return Ok(value.clone());
        }
        context.step()?;
        let value = self.expression.eval(item, context)?;
        if context.root.is_some() {
            if context.named.len() <= self.slot {
                context.named.resize(self.slot + 1, None);
            }
            if let Some(place) = context.named.get_mut(self.slot) {
                *place = Some((item.clone(), value.clone()));
            }
        }
        Ok(value)
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.expression.found_by()
    }

    fn constant(&self) -> Option<&Value<'static>> {
        self.expression.constant()
    }
}
