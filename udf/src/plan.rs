//! Expressions and filters outside a data source: report columns, ad-hoc checks, conformance tests.

use serde_json::Value as Json;

use crate::{
    context::Context,
    error::{EvalError, SpecErrors},
    expr::{self, Expr},
    filter::{self, Filter},
    spec::{Compiler, Named},
    value::Value,
};

/// A compiled expression.
#[derive(Debug)]
pub struct ExpressionPlan {
    expression: Expr,
    reads_clock: bool,
}

impl ExpressionPlan {
    /// Compiles an expression or literal.
    ///
    /// # Errors
    /// Every problem of the specification.
    pub fn compile(json: &Json, named: Named<'_>) -> Result<Self, SpecErrors> {
        let mut compiler = Compiler::new(named);
        let expression = expr::compile(json, "", &mut compiler);
        let (expression, facts) = compiler.finish(expression)?;
        Ok(Self { expression, reads_clock: facts.reads_clock })
    }

    /// The value for an item.
    ///
    /// # Errors
    /// Where the original raises.
    pub fn evaluate<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        self.expression.eval(item, context)
    }

    /// True if the value changes as time passes.
    #[must_use]
    pub fn reads_clock(&self) -> bool {
        self.reads_clock
    }
}

/// A compiled filter.
#[derive(Debug)]
pub struct FilterPlan {
    filter: Filter,
}

impl FilterPlan {
    /// Compiles a filter.
    ///
    /// # Errors
    /// Every problem of the specification.
    pub fn compile(json: &Json, named: Named<'_>) -> Result<Self, SpecErrors> {
        let mut compiler = Compiler::new(named);
        let filter = filter::compile(json, "", &mut compiler);
        let (filter, _) = compiler.finish(filter)?;
        Ok(Self { filter })
    }

    /// Whether an item passes.
    ///
    /// # Errors
    /// Where the original raises.
    pub fn test<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<bool, EvalError> {
        self.filter.test(item, context)
    }
}
