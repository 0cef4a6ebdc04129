//! Python's format mini-language and `%` formatting.

use super::{MAX_TEXT, arithmetic::float_of};
use crate::{
    date,
    error::EvalError,
    value::{Decimal, Value, show},
};

use super::Stop;

/// Widths and precisions beyond this are refused.
const MAX_WIDTH: usize = 10_000;

/// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
#[derive(Clone, Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

fn invalid(spec: &str) -> Stop {
    Stop::Raise(EvalError::raised(format!("`{spec}` is not a format")))
}

impl Spec {
    fn parse(text: &str) -> Result<Self, Stop> {
        let mut spec = Self::default();
        let mut rest = text.chars().peekable();
        let is_align = |c: char| matches!(c, '<' | '>' | '^' | '=');
        let mut ahead = text.chars();
        match (ahead.next(), ahead.next()) {
            (Some(fill), Some(align)) if is_align(align) => {
                spec.fill = Some(fill);
                spec.align = Some(align);
                rest.next();
                rest.next();
            }
            (Some(align), _) if is_align(align) => {
                spec.align = Some(align);
                rest.next();
            }
            _ => {}
        }
        spec.sign = rest.next_if(|c| matches!(c, '+' | '-' | ' '));
        spec.alternate = rest.next_if_eq(&'#').is_some();
        if rest.next_if_eq(&'0').is_some() && spec.align.is_none() {
            spec.fill.get_or_insert('0');
            spec.align = Some('=');
        }
        let number = |rest: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut value = None;
            while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
                let digit = usize::try_from(digit).unwrap_or_default();
                value = Some(value.unwrap_or(0usize).saturating_mul(10).saturating_add(digit));
                rest.next();
            }
            if value.is_some_and(|value| value > MAX_WIDTH) { Err(Stop::Null) } else { Ok(value) }
        };
        spec.width = number(&mut rest)?.unwrap_or(0);
        spec.grouping = rest.next_if(|c| matches!(c, ',' | '_'));
        if rest.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut rest)?.ok_or_else(|| invalid(text))?);
        }
        spec.kind = rest.next();
        if rest.next().is_some() { Err(invalid(text)) } else { Ok(spec) }
    }

    fn pad(&self, sign: &str, body: &str, default: char) -> String {
        let length = sign.chars().count() + body.chars().count();
        let missing = self.width.saturating_sub(length);
        let fill = self.fill.unwrap_or(' ');
        let run = |count: usize| std::iter::repeat_n(fill, count).collect::<String>();
        match self.align.unwrap_or(default) {
            '<' => format!("{sign}{body}{}", run(missing)),
            '^' => format!("{}{sign}{body}{}", run(missing / 2), run(missing - missing / 2)),
            '=' => format!("{sign}{}{body}", run(missing)),
            _ => format!("{}{sign}{body}", run(missing)),
        }
    }

    fn number(&self, negative: bool, prefix: &str, body: &str) -> String {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            (false, _) => "",
        };
        let body = match self.grouping {
            Some(separator) => grouped(body, separator),
            None => body.to_owned(),
        };
        self.pad(&format!("{sign}{prefix}"), &body, '>')
    }
}

fn grouped(body: &str, separator: char) -> String {
    let end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    let (whole, rest) = body.split_at(end);
    let mut out = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(separator);
        }
        out.push(digit);
    }
    out.push_str(rest);
    out
}

/// Python's `format(value, spec)`.
pub(crate) fn format(value: &Value<'_>, spec: &str) -> Result<String, Stop> {
    if spec.is_empty() {
        return Ok(value.clone().into_text().to_string());
    }
    match value {
        Value::Date(day) => return Ok(date::format::strftime(date::midnight(*day), spec)),
        Value::Datetime(at) => return Ok(date::format::strftime(*at, spec)),
        Value::Time(micros) => return Ok(date::format::strftime(*micros, spec)),
        _ => {}
    }
    let parsed = Spec::parse(spec)?;
    let bad = || invalid(spec);
    match value {
        Value::Text(text) => match parsed.kind {
            None | Some('s') => {
                let cut: String = match parsed.precision {
                    Some(precision) => text.chars().take(precision).collect(),
                    None => text.to_string(),
                };
                Ok(parsed.pad("", &cut, '<'))
            }
            Some(_) => Err(bad()),
        },
        Value::Bool(flag) => match parsed.kind {
            None => Ok(parsed.pad("", if *flag { "True" } else { "False" }, '<')),
            Some(_) => integer(i128::from(*flag), &parsed).ok_or_else(bad),
        },
        Value::Integer(number) => integer(*number, &parsed).ok_or_else(bad),
        Value::Float(number) => float(*number, &parsed).ok_or_else(bad),
        Value::Decimal(number) => decimal(number, &parsed)?.ok_or_else(bad),
        _ => Err(Stop::Null),
    }
}

fn integer(number: i128, spec: &Spec) -> Option<String> {
    let magnitude = number.unsigned_abs();
    let (prefix, body) = match spec.kind.unwrap_or('d') {
        'd' | 'n' => ("", magnitude.to_string()),
        'x' => (if spec.alternate { "0x" } else { "" }, format!("{magnitude:x}")),
        'X' => (if spec.alternate { "0X" } else { "" }, format!("{magnitude:X}")),
        'o' => (if spec.alternate { "0o" } else { "" }, format!("{magnitude:o}")),
        'b' => (if spec.alternate { "0b" } else { "" }, format!("{magnitude:b}")),
        'c' => return Some(spec.pad("", &char::from_u32(u32::try_from(number).ok()?)?.to_string(), '<')),
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' => return float(float_of(number), spec),
        _ => return None,
    };
    if spec.precision.is_some() { None } else { Some(spec.number(number < 0, prefix, &body)) }
}

fn float(number: f64, spec: &Spec) -> Option<String> {
    let magnitude = number.abs();
    let negative = number.is_sign_negative() && !number.is_nan();
    if !number.is_finite() {
        let body = if number.is_nan() { "nan" } else { "inf" };
        return Some(spec.number(negative, "", body));
    }
    let body = match spec.kind {
        None => match spec.precision {
            None => show::float(magnitude),
            Some(precision) => {
                let text = general(magnitude, precision, false);
                if text.contains(['.', 'e']) { text } else { format!("{text}.0") }
            }
        },
        Some('f' | 'F') => format!("{magnitude:.*}", spec.precision.unwrap_or(6)),
        Some('%') => format!("{:.*}%", spec.precision.unwrap_or(6), magnitude * 100.0),
        Some('e') => scientific(magnitude, spec.precision.unwrap_or(6)),
        Some('E') => scientific(magnitude, spec.precision.unwrap_or(6)).to_uppercase(),
        Some('g' | 'n') => general(magnitude, spec.precision.unwrap_or(6), spec.alternate),
        Some('G') => general(magnitude, spec.precision.unwrap_or(6), spec.alternate).to_uppercase(),
        Some(_) => return None,
    };
    Some(spec.number(negative, "", &body))
}

fn scientific(magnitude: f64, precision: usize) -> String {
    let text = format!("{magnitude:.precision$e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, digits_of_exponent) = match exponent.strip_prefix('-') {
                Some(rest) => ('-', rest),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{digits_of_exponent:0>2}")
        }
        None => text,
    }
}

fn general(magnitude: f64, precision: usize, keep_zeros: bool) -> String {
    let precision = precision.max(1);
    let text = scientific(magnitude, precision - 1);
    let exponent: i64 = text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or_default();
    let limit = i64::try_from(precision).unwrap_or(i64::MAX);
    if (-4..limit).contains(&exponent) {
        let places = usize::try_from(limit - 1 - exponent).unwrap_or_default();
        let fixed = format!("{magnitude:.places$}");
        return if keep_zeros { fixed } else { trimmed(&fixed).to_owned() };
    }
    match text.split_once('e') {
        Some((digits, exponent)) if !keep_zeros => format!("{}e{exponent}", trimmed(digits)),
        _ => text,
    }
}

fn trimmed(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

fn decimal(number: &Decimal, spec: &Spec) -> Result<Option<String>, Stop> {
    let plain = |number: &Decimal| -> Option<(bool, String)> {
        let (negative, digits, scale) = number.written()?;
        let places = usize::try_from(scale).unwrap_or_default();
        let digits = if scale < 0 {
            format!("{digits}{}", "0".repeat(usize::try_from(-scale).unwrap_or_default()))
        } else {
            format!("{digits:0>width$}", width = places + 1)
        };
        let (whole, fraction) = digits.split_at(digits.len() - places);
        Some((negative, if places == 0 { whole.to_owned() } else { format!("{whole}.{fraction}") }))
    };
    let fixed = |number: &Decimal, precision: Option<usize>| -> Result<Option<(bool, String)>, Stop> {
        Ok(match precision {
            Some(precision) => plain(&number.rounded_to(i64::try_from(precision).unwrap_or(i64::MAX))?),
            None => plain(number),
        })
    };
    let found = match spec.kind {
        Some('f' | 'F') => fixed(number, spec.precision)?,
        Some('%') => {
            let hundred = number.multiply(&Decimal::from_integer(100))?;
            fixed(&hundred, spec.precision)?.map(|(negative, body)| (negative, format!("{body}%")))
        }
        None if spec.precision.is_none() => {
            let text = number.to_string();
            let negative = text.starts_with('-');
            Some((negative, text.trim_start_matches('-').to_owned()))
        }
        None | Some('e' | 'E' | 'g' | 'G' | 'n') => return Ok(float(number.to_f64(), spec)),
        Some(_) => return Ok(None),
    };
    Ok(Some(match found {
        Some((negative, body)) => spec.number(negative, "", &body),
        None => {
            let text = number.to_string();
            spec.number(text.starts_with('-'), "", text.trim_start_matches('-'))
        }
    }))
}

/// Python's `template % value`; `None` where it is a type error.
///
/// # Errors
/// A template that is malformed.
pub(super) fn percent(template: &str, value: &Value<'_>) -> Result<Option<String>, EvalError> {
    let mut arguments: Vec<Value<'_>> = match value {
        Value::Tuple(values) => values.to_vec(),
        other => vec![other.clone()],
    };
    arguments.reverse();
    let mapped = matches!(value, Value::Map(_));
    let mut used_names = false;
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        rest = after;
        let named = match rest.strip_prefix('(') {
            None => None,
            Some(inside) => {
                let Some((name, after)) = inside.split_once(')') else { return Err(malformed(template)) };
                rest = after;
                let Value::Map(map) = value else { return Ok(None) };
                used_names = true;
                match map.get_text(name) {
                    Some(value) => Some(value),
                    None => return Err(EvalError::raised(format!("there is no key `{name}`"))),
                }
            }
        };
        let end = rest.find(|c: char| c.is_ascii_alphabetic() || c == '%').ok_or_else(|| malformed(template))?;
        let Some((flags, directive)) = rest.split_at_checked(end) else { return Err(malformed(template)) };
        let mut directive = directive.chars();
        let kind = directive.next().unwrap_or('%');
        rest = directive.as_str();
        if kind == '%' {
            out.push('%');
            continue;
        }
        let Some(argument) = named.or_else(|| arguments.pop()) else { return Ok(None) };
        match one(flags, kind, &argument) {
            Ok(text) => out.push_str(&text),
            Err(Stop::Null) => return Ok(None),
            Err(Stop::Raise(error)) => return Err(error),
        }
        if out.len() > MAX_TEXT {
            return Ok(None);
        }
    }
    out.push_str(rest);
    // Arguments left over are a type error, except for a mapping.
    Ok((arguments.is_empty() || mapped || used_names).then_some(out))
}

fn malformed(template: &str) -> EvalError {
    EvalError::raised(format!("`{}` is not a format", crate::error::excerpt(template)))
}

fn one(flags: &str, kind: char, argument: &Value<'_>) -> Result<String, Stop> {
    let digits_at = flags.find(|c: char| !matches!(c, '-' | '+' | ' ' | '0' | '#')).unwrap_or(flags.len());
    let (signs, size) = flags.split_at(digits_at);
    let mut spec = Spec::parse(size)?;
    if spec.kind.is_some() || spec.align.is_some() {
        return Err(Stop::Null);
    }
    spec.alternate = signs.contains('#');
    spec.sign = signs.chars().find(|c| *c == '+').or_else(|| signs.chars().find(|c| *c == ' '));
    spec.align = Some('>');
    if signs.contains('-') {
        spec.align = Some('<');
    } else if signs.contains('0') && !matches!(kind, 's' | 'r' | 'a' | 'c') {
        spec.fill = Some('0');
        spec.align = Some('=');
    }
    match kind {
        's' | 'r' | 'a' => {
            let mut text = String::new();
            if kind == 's' {
                text.push_str(&argument.clone().into_text());
            } else {
                argument.write_repr(&mut text);
            }
            if let Some(precision) = spec.precision {
                text = text.chars().take(precision).collect();
            }
            Ok(spec.pad("", &text, '>'))
        }
        'd' | 'i' | 'u' => {
            let number = match argument {
                Value::Integer(number) => *number,
                Value::Bool(flag) => i128::from(*flag),
                Value::Float(number) => crate::coerce::float_to_integer(*number)?.ok_or(Stop::Null)?,
                Value::Decimal(number) => number.truncate()?.ok_or(Stop::Null)?,
                _ => return Err(Stop::Null),
            };
            let width = spec.precision.take().unwrap_or(0);
            Ok(spec.number(number < 0, "", &format!("{:0>width$}", number.unsigned_abs())))
        }
        'x' | 'X' | 'o' => {
            spec.kind = Some(kind);
            match argument {
                Value::Integer(number) => integer(*number, &spec).ok_or(Stop::Null),
                Value::Bool(flag) => integer(i128::from(*flag), &spec).ok_or(Stop::Null),
                _ => Err(Stop::Null),
            }
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            spec.kind = Some(kind);
            let number = match argument {
                Value::Integer(number) => float_of(*number),
                Value::Bool(flag) => f64::from(u8::from(*flag)),
                Value::Float(number) => *number,
                Value::Decimal(number) => number.to_f64(),
                _ => return Err(Stop::Null),
            };
            float(number, &spec).ok_or(Stop::Null)
        }
        'c' => match argument {
            Value::Text(text) if text.chars().count() == 1 => Ok(spec.pad("", text, '>')),
            Value::Integer(_) => {
                spec.kind = Some('c');
                format(argument, "c").map(|text| spec.pad("", &text, '>'))
            }
            _ => Err(Stop::Null),
        },
        _ => Err(Stop::Raise(EvalError::raised(format!("`%{kind}` is not a format")))),
    }
}

/// Python's `template.format(value)` with one argument; `None` where it fails.
pub(crate) fn format_one(template: &str, value: &Value<'_>) -> Option<String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, after) = rest.split_at_checked(at)?;
        out.push_str(before);
        if let Some(after) = after.strip_prefix("{{").or_else(|| after.strip_prefix("}}")) {
            out.push(rest.get(at..)?.chars().next()?);
            rest = after;
            continue;
        }
        let (field, after) = after.strip_prefix('{')?.split_once('}')?;
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = name.split_once('!').map_or((name, None), |(name, kind)| (name, Some(kind)));
        if !matches!(name, "" | "0") {
            return None;
        }
        let text = match conversion {
            None => format(value, spec).ok()?,
            Some("s") => format(&Value::Text(value.clone().into_text()), spec).ok()?,
            Some("r") => {
                let mut text = String::new();
                value.write_repr(&mut text);
                format(&Value::text(text), spec).ok()?
            }
            Some(_) => return None,
        };
        out.push_str(&text);
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Value<'static> {
        Value::Decimal(Decimal::parse(text).unwrap().unwrap())
    }

    #[test]
    fn mini_language() {
        for (value, spec, text) in [
            (Value::Integer(42), "05d", "00042"),
            (Value::Integer(-42), "+,d", "-42"),
            (Value::Integer(1_234_567), ",", "1,234,567"),
            (Value::Integer(255), "#x", "0xff"),
            (Value::Integer(3), ".1f", "3.0"),
            (Value::Float(2.675), ".2f", "2.67"),
            (Value::Float(0.5), ".0f", "0"),
            (Value::Float(1234.5), "_.2f", "1_234.50"),
            (Value::Float(0.256), ".1%", "25.6%"),
            (Value::Float(123_456_789.0), "g", "1.23457e+08"),
            (Value::Float(0.0001), "g", "0.0001"),
            (Value::Float(1.0), ".3", "1.0"),
            (Value::Float(1.5), "e", "1.500000e+00"),
            (decimal("1.005"), ".2f", "1.00"),
            (decimal("11.5"), ".0f", "12"),
            (decimal("1e3"), "f", "1000"),
            (Value::text("ab"), "*^6", "**ab**"),
            (Value::text("abc"), ".2s", "ab"),
            (Value::text("abc"), ">5", "  abc"),
        ] {
            assert_eq!(format(&value, spec).unwrap(), text, "{value:?} {spec}");
        }
        assert!(format(&Value::text("x"), "d").is_err());
        assert!(format(&Value::Null, ">5").is_err());
        assert_eq!(format_one("{0:.1f} {{}}", &Value::Float(2.0)).as_deref(), Some("2.0 {}"));
        assert_eq!(format_one("{1}", &Value::Null), None);
    }
}
