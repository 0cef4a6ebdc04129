//! Decimals as Python has them: exact, with the number of digits they were written with.
//!
//! What forms contain fits 18 digits and is held in a machine word; anything else (binary expansions of floats,
//! results of division) goes to `bigdecimal`. Arithmetic keeps 28 significant digits and rounds half to even, as the
//! original's context does.

use std::{cmp::Ordering, fmt};

use bigdecimal::{
    BigDecimal, ToPrimitive, Zero,
    num_bigint::{BigInt, Sign},
};
use schemas::row::DECIMAL_SCALE;

use crate::error::EvalError;

/// Significant digits of results.
const PRECISION: u64 = 28;
/// Digits and powers of ten beyond these are refused: they cost more than any form is worth.
const MAX_DIGITS: usize = 1100;
const MAX_SCALE: i64 = 1100;

const OUT_OF_RANGE: EvalError = EvalError::OutOfRange { what: "decimal" };

/// An exact decimal number, or one of the two special ones.
#[derive(Clone, Debug)]
pub enum Decimal {
    /// `mantissa` / 10^`scale`.
    Small {
        /// The digits.
        mantissa: i64,
        /// How many of them are behind the point; at most 18.
        scale: u8,
    },
    /// Anything else that is a number.
    Big(Box<BigDecimal>),
    /// Not a number.
    NaN,
    /// Beyond every number.
    Infinity {
        /// Below instead of above.
        negative: bool,
    },
}

/// How to round when digits are dropped.
#[derive(Clone, Copy)]
enum Tie {
    Even,
    AwayFromZero,
}

pub(crate) fn power_of_ten(exponent: u32) -> BigInt {
    BigInt::from(10u8).pow(exponent)
}

/// `digits` / 10^`scale` with `target` digits behind the point.
fn rescale(digits: BigInt, scale: i64, target: i64, tie: Tie) -> BigInt {
    let drop = scale - target;
    let Ok(count) = u32::try_from(drop.unsigned_abs()) else { return BigInt::zero() };
    if drop <= 0 {
        return digits * power_of_ten(count);
    }
    let divisor = power_of_ten(count);
    let quotient = &digits / &divisor;
    let rest = digits.magnitude() - (&quotient * &divisor).magnitude();
    let up = match (rest * 2u8).cmp(divisor.magnitude()) {
        Ordering::Less => false,
        Ordering::Greater => true,
        Ordering::Equal => matches!(tie, Tie::AwayFromZero) || (&quotient % 2u8) != BigInt::zero(),
    };
    if !up {
        quotient
    } else if digits.sign() == Sign::Minus {
        quotient - 1u8
    } else {
        quotient + 1u8
    }
}

impl Decimal {
    /// Parses what Python's `Decimal(text)` accepts; `None` for any other text.
    ///
    /// # Errors
    /// [`EvalError::OutOfRange`] for numbers with more than about a thousand digits.
    pub fn parse(text: &str) -> Result<Option<Self>, EvalError> {
        if let Some(decimal) = parse_plain(text.as_bytes()) {
            return Ok(Some(decimal));
        }
        let text: String = text.trim().chars().filter(|c| *c != '_').collect();
        let (negative, body) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(&text)),
        };
        match body.to_ascii_lowercase().as_str() {
            "inf" | "infinity" => return Ok(Some(Self::Infinity { negative })),
            "nan" | "snan" => return Ok(Some(Self::NaN)),
            _ => {}
        }
        let (number, exponent) = match body.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, Some(exponent)),
            None => (body, None),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
            return Ok(None);
        }
        let exponent = match exponent {
            None => 0,
            Some(exponent) => {
                let unsigned = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
                if unsigned.is_empty() || !digits(unsigned) {
                    return Ok(None);
                }
                exponent.parse::<i64>().map_err(|_| OUT_OF_RANGE)?
            }
        };
        let scale = i64::try_from(fraction.len()).unwrap_or(i64::MAX).saturating_sub(exponent);
        if whole.len() + fraction.len() > MAX_DIGITS || scale.abs() > MAX_SCALE {
            return Err(OUT_OF_RANGE);
        }
        let Some(digits) = BigInt::parse_bytes(format!("{whole}{fraction}").as_bytes(), 10) else { return Ok(None) };
        Ok(Some(Self::make(if negative { -digits } else { digits }, scale)))
    }

    /// The exact value of a float.
    #[must_use]
    pub fn from_f64(value: f64) -> Self {
        if value.is_nan() {
            return Self::NaN;
        }
        if value.is_infinite() {
            return Self::Infinity { negative: value < 0.0 };
        }
        let (mut mantissa, mut exponent) = float_parts(value);
        if mantissa == 0 {
            return Self::Small { mantissa: 0, scale: 0 };
        }
        let zeros = mantissa.trailing_zeros();
        mantissa >>= zeros;
        exponent += i32::try_from(zeros).unwrap_or_default();
        let digits = BigInt::from(mantissa);
        if exponent >= 0 {
            Self::make(digits << exponent.unsigned_abs(), 0)
        } else {
            Self::make(digits * BigInt::from(5u8).pow(exponent.unsigned_abs()), i64::from(-exponent))
        }
    }

    /// A whole number.
    #[must_use]
    pub fn from_integer(value: i128) -> Self {
        match i64::try_from(value) {
            Ok(mantissa) => Self::Small { mantissa, scale: 0 },
            Err(_) => Self::make(BigInt::from(value), 0),
        }
    }

    fn make(digits: BigInt, scale: i64) -> Self {
        match (digits.to_i64(), u8::try_from(scale)) {
            (Some(mantissa), Ok(scale)) if scale <= 18 => Self::Small { mantissa, scale },
            _ => Self::Big(Box::new(BigDecimal::new(digits, scale))),
        }
    }

    /// Digits and scale of a number; `None` for the special ones.
    fn parts(&self) -> Option<(BigInt, i64)> {
        match self {
            Self::Small { mantissa, scale } => Some((BigInt::from(*mantissa), i64::from(*scale))),
            Self::Big(big) => Some(big.as_bigint_and_exponent()),
            Self::NaN | Self::Infinity { .. } => None,
        }
    }

    /// True for zero, however written.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Small { mantissa, .. } => *mantissa == 0,
            Self::Big(big) => big.is_zero(),
            Self::NaN | Self::Infinity { .. } => false,
        }
    }

    /// The nearest float.
    #[must_use]
    pub fn to_f64(&self) -> f64 {
        match self {
            Self::NaN => f64::NAN,
            Self::Infinity { negative: true } => f64::NEG_INFINITY,
            Self::Infinity { negative: false } => f64::INFINITY,
            // Both parts are exact, so the one division rounds correctly.
            #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
            Self::Small { mantissa, scale } if mantissa.unsigned_abs() < 1 << 53 => {
                *mantissa as f64 / 10f64.powi(i32::from(*scale))
            }
            // The text form is exact and the parser rounds correctly.
            number => number.to_string().parse().unwrap_or(f64::NAN),
        }
    }

    /// The whole part. `Ok(None)` for NaN, which is a value error in the original.
    ///
    /// # Errors
    /// [`EvalError::OutOfRange`] for infinity and numbers beyond 127 bits.
    pub fn truncate(&self) -> Result<Option<i128>, EvalError> {
        match self {
            Self::Small { mantissa, scale } => Ok(Some((mantissa / 10i64.pow(u32::from(*scale))).into())),
            Self::NaN => Ok(None),
            Self::Infinity { .. } => Err(EvalError::OutOfRange { what: "integer" }),
            Self::Big(big) => {
                let (digits, scale) = big.as_bigint_and_exponent();
                let whole = match u32::try_from(scale) {
                    Ok(scale) => digits / power_of_ten(scale),
                    Err(_) => rescale(digits, scale, 0, Tie::Even),
                };
                whole.to_i128().map(Some).ok_or(EvalError::OutOfRange { what: "integer" })
            }
        }
    }

    /// The number as decimal columns hold it, times 10^16, rounded half away from zero as Postgres does.
    /// `None` for the special ones and for what needs more than 38 digits.
    #[must_use]
    pub fn to_column(&self) -> Option<i128> {
        const SCALE: u32 = DECIMAL_SCALE.unsigned_abs() as u32;
        let scaled = match self {
            Self::Small { mantissa, scale } if u32::from(*scale) <= SCALE => {
                i128::from(*mantissa) * 10i128.pow(SCALE - u32::from(*scale))
            }
            _ => {
                let (digits, scale) = self.parts()?;
                rescale(digits, scale, i64::from(SCALE), Tie::AwayFromZero).to_i128()?
            }
        };
        (scaled.unsigned_abs() < 10u128.pow(38)).then_some(scaled)
    }

    /// Order of two decimals; `None` if one is NaN.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::NaN, _) | (_, Self::NaN) => None,
            (Self::Small { mantissa: a, scale: s }, Self::Small { mantissa: b, scale: t }) => {
                let lift = |mantissa: i64, by: u8| i128::from(mantissa) * 10i128.pow(u32::from(by));
                Some(lift(*a, t.saturating_sub(*s)).cmp(&lift(*b, s.saturating_sub(*t))))
            }
            (Self::Infinity { negative: a }, Self::Infinity { negative: b }) => Some(b.cmp(a)),
            (Self::Infinity { negative }, _) => Some(if *negative { Ordering::Less } else { Ordering::Greater }),
            (_, Self::Infinity { negative }) => Some(if *negative { Ordering::Greater } else { Ordering::Less }),
            _ => {
                let (a, b, _) = aligned(self, other)?;
                Some(a.cmp(&b))
            }
        }
    }

    /// Keeps 28 significant digits.
    fn rounded(digits: BigInt, scale: i64) -> Result<Self, EvalError> {
        let mut digits = digits;
        let mut scale = scale;
        loop {
            let length = digit_count(&digits);
            if length <= PRECISION {
                break;
            }
            let drop = i64::try_from(length - PRECISION).unwrap_or_default();
            digits = rescale(digits, scale, scale - drop, Tie::Even);
            scale -= drop;
        }
        if scale.abs() > MAX_SCALE { Err(OUT_OF_RANGE) } else { Ok(Self::make(digits, scale)) }
    }

    /// Sum.
    ///
    /// # Errors
    /// [`EvalError::OutOfRange`].
    pub fn add(&self, other: &Self) -> Result<Self, EvalError> {
        match aligned(self, other) {
            Some((a, b, scale)) => Self::rounded(a + b, scale),
            None => Ok(Self::NaN),
        }
    }

    /// The number with the other sign.
    #[must_use]
    pub fn negated(&self) -> Self {
        match self {
            Self::NaN => Self::NaN,
            Self::Infinity { negative } => Self::Infinity { negative: !negative },
            Self::Small { .. } | Self::Big(_) => {
                self.parts().map_or(Self::NaN, |(digits, scale)| Self::make(-digits, scale))
            }
        }
    }

    /// Product.
    ///
    /// # Errors
    /// [`EvalError::OutOfRange`].
    pub fn multiply(&self, other: &Self) -> Result<Self, EvalError> {
        match (self.parts(), other.parts()) {
            (Some((a, s)), Some((b, t))) => Self::rounded(a * b, s + t),
            _ => Ok(Self::NaN),
        }
    }

    /// Quotient to 28 digits; `Ok(None)` when dividing by zero.
    ///
    /// # Errors
    /// [`EvalError::OutOfRange`].
    pub fn divide(&self, other: &Self) -> Result<Option<Self>, EvalError> {
        let (Some((a, s)), Some((b, t))) = (self.parts(), other.parts()) else { return Ok(Some(Self::NaN)) };
        if b.is_zero() {
            return Ok(None);
        }
        let ideal = s - t;
        // One digit more than is kept; a rest that does not fit marks the last digit so that it rounds correctly.
        let shift = i64::try_from(digit_count(&b) + PRECISION + 1).unwrap_or_default()
            - i64::try_from(digit_count(&a)).unwrap_or_default();
        let shift = shift.max(0);
        let dividend = a * power_of_ten(u32::try_from(shift).unwrap_or_default());
        let mut quotient = &dividend / &b;
        let exact = (&quotient * &b) == dividend;
        let mut scale = ideal + shift;
        if exact {
            while scale > ideal && !quotient.is_zero() && (&quotient % 10u8).is_zero() {
                quotient /= 10u8;
                scale -= 1;
            }
            if quotient.is_zero() {
                scale = ideal;
            }
        } else if (&quotient % 5u8).is_zero() {
            quotient += if dividend.sign() == b.sign() { 1 } else { -1 };
        }
        Self::rounded(quotient, scale).map(Some)
    }

    /// Whole quotient and rest, both towards zero as Python's decimals do; `Ok(None)` when dividing by zero.
    ///
    /// # Errors
    /// [`EvalError::OutOfRange`].
    pub fn divide_whole(&self, other: &Self) -> Result<Option<(Self, Self)>, EvalError> {
        let Some((a, b, scale)) = aligned(self, other) else { return Ok(Some((Self::NaN, Self::NaN))) };
        if b.is_zero() {
            return Ok(None);
        }
        Ok(Some((Self::rounded(&a / &b, 0)?, Self::rounded(a % b, scale)?)))
    }

    /// The number with `digits` digits behind the point, rounded half to even.
    ///
    /// # Errors
    /// [`EvalError::OutOfRange`].
    pub fn rounded_to(&self, digits: i64) -> Result<Self, EvalError> {
        if digits.abs() > MAX_SCALE {
            return Err(OUT_OF_RANGE);
        }
        Ok(match self.parts() {
            Some((number, scale)) => Self::make(rescale(number, scale, digits, Tie::Even), digits),
            None => self.clone(),
        })
    }

    /// Sign, digits and scale as text formatting needs them; `None` for the special ones.
    pub(crate) fn written(&self) -> Option<(bool, String, i64)> {
        let (digits, scale) = self.parts()?;
        Some((digits.sign() == Sign::Minus, digits.magnitude().to_string(), scale))
    }
}

/// `[-]digits[.digits]` with at most 18 digits: nearly everything that forms contain.
fn parse_plain(bytes: &[u8]) -> Option<Decimal> {
    let (negative, body) = match bytes.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, bytes),
    };
    if body.len() > 19 {
        return None;
    }
    let mut mantissa: i64 = 0;
    let mut digits = 0u8;
    let mut point = None;
    for byte in body {
        match byte {
            b'0'..=b'9' => {
                mantissa = mantissa * 10 + i64::from(byte - b'0');
                digits += 1;
            }
            b'.' if point.is_none() => point = Some(digits),
            _ => return None,
        }
    }
    if digits == 0 || digits > 18 {
        return None;
    }
    let scale = point.map_or(0, |point| digits - point);
    Some(Decimal::Small { mantissa: if negative { -mantissa } else { mantissa }, scale })
}

fn aligned(a: &Decimal, b: &Decimal) -> Option<(BigInt, BigInt, i64)> {
    let ((a, s), (b, t)) = (a.parts()?, b.parts()?);
    let scale = s.max(t);
    Some((rescale(a, s, scale, Tie::Even), rescale(b, t, scale, Tie::Even), scale))
}

fn digit_count(number: &BigInt) -> u64 {
    if number.is_zero() { 1 } else { u64::try_from(number.magnitude().to_string().len()).unwrap_or(u64::MAX) }
}

/// Mantissa with sign and power of two of a finite float.
pub(crate) fn float_parts(value: f64) -> (i64, i32) {
    let bits = value.to_bits();
    let stored = i32::try_from((bits >> 52) & 0x7ff).unwrap_or_default();
    let fraction = i64::try_from(bits & ((1 << 52) - 1)).unwrap_or_default();
    let (mantissa, exponent) = if stored == 0 { (fraction, -1074) } else { (fraction | (1 << 52), stored - 1075) };
    (if value.is_sign_negative() { -mantissa } else { mantissa }, exponent)
}

/// A float as decimal columns hold it; `None` if it does not fit.
pub(crate) fn float_to_column(value: f64) -> Option<i128> {
    if !value.is_finite() {
        return None;
    }
    let (mantissa, exponent) = float_parts(value);
    let scaled = i128::from(mantissa) * 10i128.pow(16);
    let scaled = match u32::try_from(exponent) {
        Ok(exponent) => scaled.checked_mul(2i128.checked_pow(exponent)?)?,
        Err(_) => {
            let shift = exponent.unsigned_abs();
            if shift > 120 {
                0
            } else {
                // Half away from zero: add half, then drop the bits of the magnitude.
                let magnitude = (scaled.unsigned_abs() + (1 << (shift - 1))) >> shift;
                let magnitude = i128::try_from(magnitude).ok()?;
                if scaled < 0 { -magnitude } else { magnitude }
            }
        }
    };
    (scaled.unsigned_abs() < 10u128.pow(38)).then_some(scaled)
}

impl fmt::Display for Decimal {
    /// Python's `str`: plain unless the exponent is positive or there are more than six leading zeros.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((negative, digits, scale)) = self.written() else {
            return f.write_str(match self {
                Self::Infinity { negative: true } => "-Infinity",
                Self::Infinity { negative: false } => "Infinity",
                _ => "NaN",
            });
        };
        if negative {
            f.write_str("-")?;
        }
        let length = i64::try_from(digits.len()).unwrap_or(i64::MAX);
        let adjusted = length - scale - 1;
        if scale == 0 {
            return f.write_str(&digits);
        }
        if scale > 0 && adjusted >= -6 {
            let point = usize::try_from(length - scale).unwrap_or_default();
            if length > scale {
                let (whole, fraction) = digits.split_at(point);
                return write!(f, "{whole}.{fraction}");
            }
            let zeros = usize::try_from(scale - length).unwrap_or_default();
            return write!(f, "0.{}{digits}", "0".repeat(zeros));
        }
        let (first, rest) = digits.split_at(1);
        write!(f, "{first}{}{rest}E{adjusted:+}", if rest.is_empty() { "" } else { "." })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap().unwrap()
    }

    #[test]
    fn text_is_read_and_written_as_python_does() {
        for (text, shown) in [
            ("5.3", "5.3"),
            ("-0.10", "-0.10"),
            ("1e3", "1E+3"),
            (" 7 ", "7"),
            ("1_000", "1000"),
            ("00123", "123"),
            (".5", "0.5"),
            ("5.", "5"),
            ("+1.25E-8", "1.25E-8"),
            ("nan", "NaN"),
            ("-inf", "-Infinity"),
            ("1.234567890123456789012345", "1.234567890123456789012345"),
        ] {
            assert_eq!(decimal(text).to_string(), shown, "{text}");
        }
        for text in ["", " ", "five", "1.2.3", "2020-01-05", "-", ".", "1e", "0x10"] {
            assert!(Decimal::parse(text).unwrap().is_none(), "{text}");
        }
        assert!(Decimal::parse("1e999999999").is_err());
    }

    #[test]
    fn floats_expand_exactly() {
        assert_eq!(Decimal::from_f64(3.99).to_string(), "3.9900000000000002131628207280300557613372802734375");
        assert_eq!(Decimal::from_f64(-2.5).to_string(), "-2.5");
        assert_eq!(Decimal::from_f64(1e16).to_string(), "10000000000000000");
    }

    #[test]
    fn arithmetic_keeps_28_digits() {
        let a = decimal("10");
        assert_eq!(a.divide(&decimal("4")).unwrap().unwrap().to_string(), "2.5");
        assert_eq!(a.divide(&decimal("3")).unwrap().unwrap().to_string(), "3.333333333333333333333333333");
        assert_eq!(decimal("2").divide(&decimal("3")).unwrap().unwrap().to_string(), "0.6666666666666666666666666667");
        assert_eq!(
            decimal("-2").divide(&decimal("3")).unwrap().unwrap().to_string(),
            "-0.6666666666666666666666666667"
        );
        assert!(a.divide(&decimal("0")).unwrap().is_none());
        assert_eq!(decimal("1.10").add(&decimal("2.205")).unwrap().to_string(), "3.305");
        assert_eq!(decimal("1.5").multiply(&decimal("2")).unwrap().to_string(), "3.0");
        let (whole, rest) = decimal("-7").divide_whole(&decimal("2")).unwrap().unwrap();
        assert_eq!((whole.to_string(), rest.to_string()), ("-3".into(), "-1".into()));
        assert_eq!(decimal("2.5").rounded_to(0).unwrap().to_string(), "2");
    }

    #[test]
    fn columns_hold_sixteen_places() {
        for (text, cell) in [
            ("1.5", Some(15_000_000_000_000_000)),
            ("0.00000000000000005", Some(1)),
            ("-0.00000000000000005", Some(-1)),
            ("0.00000000000000004999", Some(0)),
            ("9999999999999999999999", Some(99_999_999_999_999_999_999_990_000_000_000_000_000)),
            ("10000000000000000000000", None),
            ("1e500", None),
            ("1e-500", Some(0)),
            ("nan", None),
        ] {
            assert_eq!(decimal(text).to_column(), cell, "{text}");
        }
        for value in [0.0, 1.5, -2.3, 23.148_148_148_148_15, 1e-20, 123_456_789.123, 1e20, -1e21] {
            assert_eq!(float_to_column(value), Decimal::from_f64(value).to_column(), "{value}");
        }
        assert_eq!(float_to_column(1e23), None);
        assert_eq!(float_to_column(f64::NAN), None);
    }

    #[test]
    fn order_ignores_how_a_number_is_written() {
        assert_eq!(decimal("1.50").compare(&decimal("1.5")), Some(Ordering::Equal));
        assert_eq!(decimal("1e3").compare(&decimal("999.9")), Some(Ordering::Greater));
        assert_eq!(decimal("nan").compare(&decimal("1")), None);
        assert_eq!(decimal("-inf").compare(&decimal("-1e1000")), Some(Ordering::Less));
    }
}
