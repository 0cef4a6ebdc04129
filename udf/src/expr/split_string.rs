//! `split_string`: parts of a text (ucr.md §2.3).

use super::{Compile, Expr, Expression, array::position};
use crate::{
    context::Context,
    error::EvalError,
    spec::{Compiler, Spec},
    value::{Text, Value},
};

/// All parts of a text, or one of them; null unless there is a text.
#[derive(Debug)]
pub(crate) struct SplitString {
    string: Expr,
    index: Option<Expr>,
    /// `None` splits on runs of whitespace.
    delimiter: Option<Box<str>>,
}

impl Compile for SplitString {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        Self {
            string: spec.expression("string_expression", compiler),
            index: spec.optional_expression("index_expression", compiler),
            delimiter: spec.optional_text("delimiter", compiler).map(Box::from),
        }
    }
}

fn parts<'t>(text: &'t str, delimiter: Option<&str>) -> Vec<&'t str> {
    match delimiter {
        Some(delimiter) => text.split(delimiter).collect(),
        None => text.split_whitespace().collect(),
    }
}

impl Expression for SplitString {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let Value::Text(text) = self.string.eval(item, context)? else { return Ok(Value::Null) };
        let delimiter = self.delimiter.as_deref();
        let mut found: Vec<Value<'a>> = match &text {
            Text::Borrowed(text) => {
                parts(text, delimiter).into_iter().map(|part| Value::Text(Text::Borrowed(part))).collect()
            }
            Text::Owned(text) => parts(text, delimiter).into_iter().map(Value::text).collect(),
        };
        let Some(index) = &self.index else { return Ok(Value::list(found)) };
        let index = index.eval(item, context)?;
        Ok(position(&index, found.len()).map_or(Value::Null, |index| found.swap_remove(index)))
    }
}
