//! `root_doc` and `base_iteration_number`: what only the evaluation context knows (ucr.md §2.2).

use super::{Compile, Expr, Expression};
use crate::{
    context::Context,
    error::EvalError,
    facts::DemandNo,
    spec::{Compiler, Spec},
    value::Value,
};

/// An expression on the root document; null without a context.
#[derive(Debug)]
pub(crate) struct RootDoc {
    expression: Expr,
}

impl Compile for RootDoc {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        Self { expression: compiler.on_root(|compiler| spec.expression("expression", compiler)) }
    }
}

impl Expression for RootDoc {
    fn eval<'a>(&'a self, _: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        match context.root.clone() {
            Some(root) => self.expression.eval(&root, context),
            None => Ok(Value::Null),
        }
    }

    fn found_by(&self) -> Option<DemandNo> {
        self.expression.found_by()
    }
}

/// The number of the current base item, from 0.
#[derive(Debug)]
pub(crate) struct BaseIterationNumber;

impl Compile for BaseIterationNumber {
    fn compile(_: &Spec<'_>, _: &mut Compiler<'_>) -> Self {
        Self
    }
}

impl Expression for BaseIterationNumber {
    fn eval<'a>(&'a self, _: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        if context.root.is_none() {
            return Err(EvalError::raised("`base_iteration_number` needs an evaluation context"));
        }
        Ok(Value::Integer(context.iteration.into()))
    }
}
