//! `switch`: one value per text (ucr.md §2.3).

use hashbrown::HashMap;

use super::{Compile, Expr, Expression, compile};
use crate::{
    context::Context,
    error::EvalError,
    spec::{Compiler, Spec, join},
    value::Value,
};

/// The case whose key equals the value. Keys are texts, so only texts match.
#[derive(Debug)]
pub(crate) struct Switch {
    on: Expr,
    cases: HashMap<Box<str>, Expr>,
    default: Expr,
}

impl Compile for Switch {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        let on = spec.expression("switch_on", compiler);
        let mut cases = HashMap::new();
        if let Some(fields) = spec.mapping("cases", compiler) {
            for (key, json) in fields {
                let case = compile(json, &join(&spec.at("cases"), key), compiler);
                cases.insert(Box::from(key.as_str()), case);
            }
        }
        Self { on, cases, default: spec.expression("default", compiler) }
    }
}

impl Expression for Switch {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let value = self.on.eval(item, context)?;
        let case = match &value {
            Value::Text(text) => self.cases.get(&**text),
            _ => None,
        };
        case.unwrap_or(&self.default).eval(item, context)
    }
}
