//! Dates between the Ethiopian and the Gregorian calendar (ucr.md §2.5). Blank or impossible gives `""`.

use super::{Compile, Expr, Expression};
use crate::{
    coerce::to_date,
    context::Context,
    date::{civil, day_of, ethiopian},
    error::EvalError,
    spec::{Compiler, Spec},
    value::{Text, Value},
};

const NOTHING: Value<'static> = Value::Text(Text::Borrowed(""));

/// An Ethiopian date, as text or as a date object's digits, in the Gregorian calendar.
pub(crate) fn to_gregorian<'a>(value: &Value<'_>) -> Value<'a> {
    let read = |day: i32| {
        let (year, month, day) = civil(day);
        ethiopian::to_day(year, month, day)
    };
    let day = match value {
        Value::Text(text) => ethiopian::parse(text),
        Value::Date(day) => read(*day),
        Value::Datetime(at) => read(day_of(*at)),
        _ => None,
    };
    day.map_or(NOTHING, Value::Date)
}

/// A Gregorian date as text in the Ethiopian calendar.
pub(crate) fn from_gregorian<'a>(value: &Value<'_>) -> Value<'a> {
    to_date(value).map_or(NOTHING, |day| Value::text(ethiopian::show(day)))
}

macro_rules! conversions {
    ($($(#[$doc:meta])* $type:ident($convert:ident);)*) => {$(
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
                Ok($convert(&date))
            }
        }
    )*};
}

conversions! {
    /// `ethiopian_date_to_gregorian_date`.
    ToGregorian(to_gregorian);
    /// `gregorian_date_to_ethiopian_date`.
    FromGregorian(from_gregorian);
}
