//! Calendar expressions (ucr.md §2.5). Null in, null out; results beyond year 9999 raise, as in the original.

use super::{Compile, Expr, Expression};
use crate::{
    coerce::{to_date, to_datetime, to_integer},
    context::Context,
    date,
    error::EvalError,
    spec::{Compiler, Spec},
    value::Value,
};

const DATE: EvalError = EvalError::OutOfRange { what: "date" };

macro_rules! shifts {
    ($($(#[$doc:meta])* $type:ident($count:literal, $shift:ident);)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $type {
            date: Expr,
            count: Expr,
        }

        impl Compile for $type {
            fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
                Self { date: spec.expression("date_expression", compiler), count: spec.expression($count, compiler) }
            }
        }

        impl Expression for $type {
            fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
                let date = self.date.eval(item, context)?;
                let count = self.count.eval(item, context)?;
                $shift(&date, &count)
            }
        }
    )*};
}

shifts! {
    /// A date some days later.
    AddDays("count_expression", add_days);
    /// An instant some hours later.
    AddHours("count_expression", add_hours);
    /// A date some calendar months later.
    AddMonths("months_expression", add_months);
}

fn add_days<'a>(day: &Value<'_>, count: &Value<'_>) -> Result<Value<'a>, EvalError> {
    let (Some(day), Some(count)) = (to_date(day), to_integer(count)?) else { return Ok(Value::Null) };
    date::add_days(day, count).map(Value::Date).ok_or(DATE)
}

fn add_hours<'a>(at: &Value<'_>, count: &Value<'_>) -> Result<Value<'a>, EvalError> {
    let (Some(at), Some(count)) = (to_datetime(at)?, to_integer(count)?) else { return Ok(Value::Null) };
    let micros = count.checked_mul(3_600_000_000).ok_or(DATE)?;
    date::add_micros(at, micros).map(Value::Datetime).ok_or(DATE)
}

fn add_months<'a>(day: &Value<'_>, count: &Value<'_>) -> Result<Value<'a>, EvalError> {
    let (Some(day), Some(count)) = (to_date(day), to_integer(count)?) else { return Ok(Value::Null) };
    date::add_months(day, count).map(Value::Date).ok_or(DATE)
}

macro_rules! months {
    ($($(#[$doc:meta])* $type:ident($of:path);)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $type {
            date: Expr,
        }

        impl Compile for $type {
            fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
                Self { date: spec.expression("date_expression", compiler) }
            }
        }

        impl Expression for $type {
            fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
                let date = self.date.eval(item, context)?;
                Ok(to_date(&date).map_or(Value::Null, |day| Value::Date($of(day))))
            }
        }
    )*};
}

months! {
    /// First day of the month.
    MonthStartDate(date::month_start);
    /// Last day of the month.
    MonthEndDate(date::month_end);
}

/// Days from one date to another, negative if the second is earlier.
#[derive(Debug)]
pub(crate) struct DiffDays {
    from: Expr,
    to: Expr,
}

impl Compile for DiffDays {
    fn compile(spec: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        Self {
            from: spec.expression("from_date_expression", compiler),
            to: spec.expression("to_date_expression", compiler),
        }
    }
}

impl Expression for DiffDays {
    fn eval<'a>(&'a self, item: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        let from = self.from.eval(item, context)?;
        let to = self.to.eval(item, context)?;
        Ok(match (to_date(&from), to_date(&to)) {
            (Some(from), Some(to)) => Value::Integer(i128::from(to) - i128::from(from)),
            _ => Value::Null,
        })
    }
}

/// The time of evaluation.
#[derive(Debug)]
pub(crate) struct UtcNow;

impl Compile for UtcNow {
    fn compile(_: &Spec<'_>, compiler: &mut Compiler<'_>) -> Self {
        compiler.reads_the_clock();
        Self
    }
}

impl Expression for UtcNow {
    fn eval<'a>(&'a self, _: &Value<'a>, context: &mut Context<'a, '_>) -> Result<Value<'a>, EvalError> {
        Ok(Value::Datetime(context.now))
    }
}
