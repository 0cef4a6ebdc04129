//! Normalises the datetimes that phones write.
//!
//! Source: forms-and-cases.md §6 rule 10, for domains that process phone time zones (every domain of ours).

use jiff::civil::DateTime;
use schemas::time::format_micros;

/// Length of `YYYY-MM-DDTHH:MM:SS.ffffffZ`.
const NORMAL_LENGTH: usize = 27;

/// The text in UTC with six fraction digits and `Z`, if the whole of it is a datetime and not written so already.
///
/// Accepted is what upstream's pattern matches **and** its parser can read: date and time with or without their
/// separators, optional seconds, three to six fraction digits behind them, `Z` or an offset. Without an offset the
/// time is taken as UTC.
pub(super) fn normalise(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    if bytes.len() < 13 || bytes.len() > 34 || !bytes.iter().take(4).all(u8::is_ascii_digit) {
        return None;
    }
    let micros = Reader { bytes, normal: bytes.len() == NORMAL_LENGTH }.datetime()?;
    micros.map(format_micros)
}

/// What is left to read, and whether everything so far was in normal form.
struct Reader<'a> {
    bytes: &'a [u8],
    normal: bool,
}

impl Reader<'_> {
    /// Microseconds since 1970 UTC; `Some(None)` if the text is in normal form; `None` if it is no datetime.
    fn datetime(mut self) -> Option<Option<i64>> {
        let year = i16::try_from(self.digits(4)?).ok()?;
        self.separator(b'-');
        let month = i8::try_from(self.digits(2)?).ok()?;
        self.separator(b'-');
        let day = i8::try_from(self.digits(2)?).ok()?;
        match self.byte()? {
            b'T' => {}
            b' ' => self.normal = false,
            _ => return None,
        }
        let hour = i8::try_from(self.digits(2)?).ok()?;
        self.separator(b':');
        let minute = i8::try_from(self.digits(2)?).ok()?;
        let (second, nanosecond) = self.seconds()?;
        let offset = self.offset()?;
        if !self.bytes.is_empty() {
            return None;
        }
        let civil = DateTime::new(year, month, day, hour, minute, second, nanosecond).ok()?;
        if self.normal {
            return Some(None);
        }
        let micros = jiff::tz::TimeZone::UTC.to_timestamp(civil).ok()?.as_microsecond();
        Some(Some(micros - i64::from(offset) * 60_000_000))
    }

    /// Seconds and nanoseconds, both 0 where the text goes on with a zone or ends.
    fn seconds(&mut self) -> Option<(i8, i32)> {
        if !matches!(self.bytes.first(), Some(b':' | b'0'..=b'9')) {
            self.normal = false;
            return Some((0, 0));
        }
        self.separator(b':');
        let second = i8::try_from(self.digits(2)?).ok()?;
        let point = *self.bytes.first().unwrap_or(&b'Z');
        if !matches!(point, b'.' | b',') {
            self.normal = false;
            return Some((second, 0));
        }
        self.normal &= point == b'.';
        self.byte()?;
        let count = self.bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(3..=6).contains(&count) {
            return None;
        }
        self.normal &= count == 6;
        let fraction = self.digits(count)?;
        let scale = 10_i32.pow(9 - u32::try_from(count).ok()?);
        Some((second, i32::try_from(fraction).ok()? * scale))
    }

    /// Minutes east of UTC.
    fn offset(&mut self) -> Option<i32> {
        let sign = match self.bytes.first() {
            None => {
                self.normal = false;
                return Some(0);
            }
            Some(b'Z') => {
                self.byte()?;
                return Some(0);
            }
            Some(b'+') => 1,
            Some(b'-') => -1,
            Some(_) => return None,
        };
        self.normal = false;
        self.byte()?;
        let hours = i32::try_from(self.digits(2)?).ok()?;
        let minutes = if self.bytes.is_empty() {
            0
        } else {
            self.separator(b':');
            i32::try_from(self.digits(2)?).ok()?
        };
        (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn separator(&mut self, expected: u8) {
        match self.bytes.split_first() {
            Some((first, rest)) if *first == expected => self.bytes = rest,
            _ => self.normal = false,
        }
    }

    fn digits(&mut self, count: usize) -> Option<u32> {
        let (number, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        number.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u32::from(byte - b'0')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datetimes_are_converted_and_all_else_is_left() {
        for (text, expected) in [
            ("2013-03-09T06:30:09.007", Some("2013-03-09T06:30:09.007000Z")),
            ("2013-03-09T06:30:09.007+03", Some("2013-03-09T03:30:09.007000Z")),
            ("2013-03-09T06:30:09.007-0330", Some("2013-03-09T10:00:09.007000Z")),
            ("2013-03-09T06:30:09.007Z", Some("2013-03-09T06:30:09.007000Z")),
            ("2013-03-09 06:30:09+05:30", Some("2013-03-09T01:00:09.000000Z")),
            ("2013-03-09T00:30+01", Some("2013-03-08T23:30:00.000000Z")),
            ("20130309T063009Z", Some("2013-03-09T06:30:09.000000Z")),
            ("20130309T0630", Some("2013-03-09T06:30:00.000000Z")),
            ("2013-03-09T06:30:09,123456", Some("2013-03-09T06:30:09.123456Z")),
            // already in normal form
            ("2013-03-09T06:30:09.007000Z", None),
            // dates, and matches that do not parse
            ("2013-03-09", None),
            ("2013-03-09T", None),
            ("2013-02-30T06:30:09.007", None),
            ("2013-03-09T25:30:09.007", None),
            ("2013-03-09T06:30:60", None),
            ("2013-03-09T06:30:09.7", None),
            ("2013-03-09T06:30:09.1234567", None),
            ("2015-08-06T14:33:12.077 05:30", None),
            ("2013-03-09T06:30:09.007+3", None),
            ("2013-03-09T06:30:09.007 ", None),
            (" 2013-03-09T06:30:09.007", None),
            ("2013-03-09t06:30:09.007", None),
            ("2013 patients seen at 06:30", None),
            ("9876543210123", None),
            ("", None),
        ] {
            assert_eq!(normalise(text).as_deref(), expected, "{text}");
        }
    }
}
