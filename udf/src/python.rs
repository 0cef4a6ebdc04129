//! The Python subset of `evaluator` statements (ucr.md §2.4): one expression, no methods, no side effects.
//!
//! Parsed once, evaluated per item. What the original refuses or cannot compute is null ([`Stop::Null`]); value, key and
//! index errors go through and fail the document ([`Stop::Raise`]).

mod arithmetic;
mod call;
pub(crate) mod format;
mod lex;
mod parse;
mod run;

use crate::{error::EvalError, expr::named::NamedExpression, value::Value};

pub(crate) use arithmetic::Arithmetic;
pub(crate) use run::{Names, slice_positions};

/// Longest text a statement may make, in characters.
const MAX_TEXT: usize = 100_000;
/// Most elements a comprehension may make.
const MAX_ITEMS: usize = 10_000;
/// A range of this length or more is null.
const MAX_RANGE: usize = 100;

/// Why evaluation ends without a value.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The statement's value is null.
    Null,
    /// The document fails.
    Raise(EvalError),
}

impl From<EvalError> for Stop {
    fn from(error: EvalError) -> Self {
        Self::Raise(error)
    }
}

/// A parsed statement.
#[derive(Debug)]
pub(crate) struct Program(parse::Ast);

impl Program {
    /// Parses a statement. Text that is not Python, or not in the subset, is a program whose value is null.
    ///
    /// `variables` are the names with a fixed place; `named` resolves calls of `named()`.
    pub(crate) fn parse(
        text: &str,
        variables: &[&str],
        named: &mut dyn FnMut(&str) -> NamedExpression,
    ) -> (Self, Traits) {
        let mut traits = Traits::default();
        let ast = parse::parse(text, variables, named, &mut traits).unwrap_or(parse::Ast::Refused);
        (Self(ast), traits)
    }

    /// The statement's value.
    pub(crate) fn run<'a>(
        &'a self,
        names: Names<'a>,
        context: &mut crate::context::Context<'a, '_>,
    ) -> Result<Value<'a>, EvalError> {
        match run::Run::new(names, context).eval(&self.0) {
            Ok(value) => Ok(value),
            Err(Stop::Null) => Ok(Value::Null),
            Err(Stop::Raise(error)) => Err(error),
        }
    }
}

/// What a statement does besides reading its names.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traits {
    /// It calls `today()`.
    pub(crate) reads_clock: bool,
    /// It calls `rand()` or `randint()`, which a maintained row cannot have.
    pub(crate) random: bool,
}
