//! Calendar arithmetic and date texts: pure functions over days and microseconds since 1970 (UTC, no offsets).
//!
//! The strict and lenient readings of ucr.md §1.2, the arithmetic of §2.5. Years 1 to 9999, as in the original.

pub(crate) mod ethiopian;
pub(crate) mod format;

/// Microseconds of a day.
pub(crate) const DAY: i64 = 86_400_000_000;
/// First and last day that exist, 0001-01-01 and 9999-12-31.
const FIRST: i64 = -719_162;
const LAST: i64 = 2_932_896;

/// Days since 1970 of a proleptic Gregorian date, unchecked.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    // Count years from March, so that the leap day comes last; 400 years repeat exactly.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month, day of days since 1970.
pub(crate) const fn civil(day: i32) -> (i64, i64, i64) {
    let shifted = day as i64 + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + if month <= 2 { 1 } else { 0 }, month, day)
}

/// Length of a month.
pub(crate) const fn month_length(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The day of a date that exists.
pub(crate) fn day(year: i64, month: i64, day: i64) -> Option<i32> {
    let exists =
        (1..=9999).contains(&year) && (1..=12).contains(&month) && (1..=month_length(year, month)).contains(&day);
    if exists { i32::try_from(days_from_civil(year, month, day)).ok() } else { None }
}

/// The day that lies `count` days later, if it exists.
pub(crate) fn add_days(from: i32, count: i128) -> Option<i32> {
    let to = i64::try_from(i128::from(from).checked_add(count)?).ok()?;
    if (FIRST..=LAST).contains(&to) { i32::try_from(to).ok() } else { None }
}

/// The instant `micros` later, if it exists.
pub(crate) fn add_micros(from: i64, micros: i128) -> Option<i64> {
    let to = i64::try_from(i128::from(from).checked_add(micros)?).ok()?;
    if (FIRST..=LAST).contains(&to.div_euclid(DAY)) { Some(to) } else { None }
}

/// The same day `count` months later, or the last day of that month if it is shorter.
pub(crate) fn add_months(from: i32, count: i128) -> Option<i32> {
    let (year, month, of_month) = civil(from);
    let months = i64::try_from(i128::from(year * 12 + month - 1).checked_add(count)?).ok()?;
    let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
    day(year, month, of_month.min(month_length(year, month)))
}

/// First day of the month.
pub(crate) fn month_start(of: i32) -> i32 {
    let (_, _, of_month) = civil(of);
    of - i32::try_from(of_month - 1).unwrap_or_default()
}

/// Last day of the month.
pub(crate) fn month_end(of: i32) -> i32 {
    let (year, month, of_month) = civil(of);
    of + i32::try_from(month_length(year, month) - of_month).unwrap_or_default()
}

/// Day of an instant.
pub(crate) fn day_of(at: i64) -> i32 {
    i32::try_from(at.div_euclid(DAY)).unwrap_or_default()
}

/// Midnight of a day.
pub(crate) fn midnight(day: i32) -> i64 {
    i64::from(day) * DAY
}

fn digits(bytes: &[u8]) -> Option<i64> {
    if bytes.is_empty() || bytes.len() > 9 {
        return None;
    }
    bytes
        .iter()
        .try_fold(0, |sum, byte| if byte.is_ascii_digit() { Some(sum * 10 + i64::from(byte - b'0')) } else { None })
}

/// `YYYY-MM-DD`, also unpadded (`2020-1-5`), and nothing around it.
pub(crate) fn parse_date(text: &str) -> Option<i32> {
    let bytes = text.as_bytes();
    if bytes.len() > 10 || bytes.len() < 8 {
        return None;
    }
    let (year, rest) = bytes.split_at_checked(4)?;
    let rest = rest.strip_prefix(b"-")?;
    let dash = rest.iter().position(|byte| *byte == b'-')?;
    let (month, of_month) = (rest.get(..dash)?, rest.get(dash + 1..)?);
    if month.len() > 2 || of_month.len() > 2 {
        return None;
    }
    // The original's parser takes a space for the first digit of the day.
    let of_month = if of_month.len() == 2 { of_month.strip_prefix(b" ").unwrap_or(of_month) } else { of_month };
    day(digits(year)?, digits(month)?, digits(of_month)?)
}

/// `HH:MM:SS` with an optional fraction of 1 to 6 digits; microseconds since midnight.
fn parse_clock(bytes: &[u8]) -> Option<i64> {
    let (clock, fraction) = match bytes.iter().position(|byte| *byte == b'.') {
        Some(point) => (bytes.get(..point)?, Some(bytes.get(point + 1..)?)),
        None => (bytes, None),
    };
    let [h1, h2, b':', m1, m2, b':', s1, s2] = clock else { return None };
    let (hour, minute, second) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?, digits(&[*s1, *s2])?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let micros = match fraction {
        None => 0,
        Some(fraction) if fraction.len() <= 6 => {
            digits(fraction)? * 10i64.pow(u32::try_from(6 - fraction.len()).unwrap_or_default())
        }
        Some(_) => return None,
    };
    Some(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

/// `HH:MM:SS[.f]`; microseconds since midnight.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    parse_clock(text.as_bytes())
}

/// `YYYY-MM-DDTHH:MM:SS[.f]Z` with 1 to 6 digits of fraction: the form in which instants are stored.
pub(crate) fn parse_instant(text: &str) -> Option<i64> {
    let body = text.strip_suffix('Z')?;
    let (date, clock) = body.split_once('T')?;
    Some(midnight(parse_date(date)?) + parse_clock(clock.as_bytes())?)
}

/// The lenient reading: stored instants, ISO 8601 with an offset (moved to UTC) or without one, dates alone.
///
/// The original's parser accepts far more and fills gaps from today's date; those texts are refused here, so that a row
/// never depends on the day it was computed.
pub(crate) fn parse_lenient(text: &str) -> Option<i64> {
    if let Some(at) = parse_instant(text) {
        return Some(at);
    }
    let text = text.trim();
    if let Some(day) = parse_date(text).or_else(|| parse_compact(text)).or_else(|| parse_american(text)) {
        return Some(midnight(day));
    }
    let (date, rest) = text.split_once(['T', ' '])?;
    let date = parse_date(date).or_else(|| parse_compact(date)).or_else(|| parse_american(date))?;
    let rest = rest.trim_start();
    let (clock, offset) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => (rest.get(..at)?.trim_end(), parse_offset(rest.get(at..)?)?),
        None => (rest, 0),
    };
    let clock = parse_loose_clock(clock)?;
    add_micros(midnight(date), i128::from(clock) - i128::from(offset))
}

/// `YYYYMMDD`.
fn parse_compact(text: &str) -> Option<i32> {
    let [y1, y2, y3, y4, m1, m2, d1, d2] = text.as_bytes() else { return None };
    day(digits(&[*y1, *y2, *y3, *y4])?, digits(&[*m1, *m2])?, digits(&[*d1, *d2])?)
}

/// `MM/DD/YYYY` or `YYYY/MM/DD`.
fn parse_american(text: &str) -> Option<i32> {
    let mut parts = text.split('/');
    let (first, second, third) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let number = |part: &str| digits(part.as_bytes());
    match (first.len(), third.len()) {
        (1 | 2, 4) => day(number(third)?, number(first)?, number(second)?),
        (4, 1 | 2) => day(number(first)?, number(second)?, number(third)?),
        _ => None,
    }
}

/// `HH:MM[:SS[.f…]]`, digits beyond the sixth dropped.
fn parse_loose_clock(text: &str) -> Option<i64> {
    let (clock, fraction) = text.split_once('.').map_or((text, None), |(clock, fraction)| (clock, Some(fraction)));
    let mut parts = clock.split(':');
    let mut next = |limit: i64| {
        let part = parts.next()?;
        let value = if part.len() <= 2 { digits(part.as_bytes())? } else { return None };
        (value <= limit).then_some(value)
    };
    let (hour, minute) = (next(23)?, next(59)?);
    let second = if clock.matches(':').count() == 2 { next(59)? } else { 0 };
    if parts.next().is_some() {
        return None;
    }
    let micros = match fraction {
        None => 0,
        Some(fraction) => {
            let kept = fraction.as_bytes().get(..fraction.len().min(6))?;
            if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            digits(kept)? * 10i64.pow(u32::try_from(6 - kept.len()).unwrap_or_default())
        }
    };
    Some(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

/// `Z`, `+HH`, `+HHMM` or `+HH:MM`; microseconds east of UTC.
fn parse_offset(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (sign, body) = match text.split_at_checked(1)? {
        ("+", body) => (1, body),
        ("-", body) => (-1, body),
        _ => return None,
    };
    let body: Vec<u8> = body.bytes().filter(|byte| *byte != b':').collect();
    let (hours, minutes) = match body.as_slice() {
        [_, _] => (digits(&body)?, 0),
        [h1, h2, m1, m2] => (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?),
        _ => return None,
    };
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 60 + minutes) * 60_000_000)
}

/// `YYYY-MM-DD`.
pub(crate) fn show_date(day: i32) -> String {
    let (year, month, of_month) = civil(day);
    format!("{year:04}-{month:02}-{of_month:02}")
}

/// `HH:MM:SS`, with six digits of fraction unless they are zero.
pub(crate) fn show_time(micros: i64) -> String {
    let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { clock } else { format!("{clock}.{fraction:06}") }
}

/// Date, `between`, time.
pub(crate) fn show_datetime(at: i64, between: char) -> String {
    format!("{}{between}{}", show_date(day_of(at)), show_time(at.rem_euclid(DAY)))
}

/// `[D day[s], ]H:MM:SS[.f]`.
pub(crate) fn show_duration(micros: i64) -> String {
    let (days, rest) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let clock = show_time(rest);
    let clock = clock.strip_prefix('0').unwrap_or(&clock);
    match days {
        0 => clock.to_owned(),
        1 | -1 => format!("{days} day, {clock}"),
        _ => format!("{days} days, {clock}"),
    }
}

/// As it stands in a Python list.
pub(crate) fn repr_date(day: i32) -> String {
    let (year, month, of_month) = civil(day);
    format!("datetime.date({year}, {month}, {of_month})")
}

/// As it stands in a Python list.
pub(crate) fn repr_datetime(at: i64) -> String {
    let (year, month, of_month) = civil(day_of(at));
    let rest = at.rem_euclid(DAY);
    let (seconds, fraction) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut out = format!("datetime.datetime({year}, {month}, {of_month}, {hour}, {minute}");
    if second != 0 || fraction != 0 {
        out.push_str(&format!(", {second}"));
    }
    if fraction != 0 {
        out.push_str(&format!(", {fraction}"));
    }
    out.push(')');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_agree() {
        for day in (-719_162..2_932_896).step_by(97) {
            let (year, month, of_month) = civil(day);
            assert_eq!(super::day(year, month, of_month), Some(day));
        }
        assert_eq!(day(1970, 1, 1), Some(0));
        assert_eq!(day(2020, 2, 29), Some(18_321));
        assert_eq!(day(2019, 2, 29), None);
        assert_eq!(i64::from(day(9999, 12, 31).unwrap()), LAST);
        assert_eq!(i64::from(day(1, 1, 1).unwrap()), FIRST);
    }

    #[test]
    fn strict_dates() {
        for (text, shown) in [
            ("2020-02-29", Some("2020-02-29")),
            ("2020-1-5", Some("2020-01-05")),
            ("2020-02-30", None),
            ("2020-02-29T10:00:00", None),
            ("20200105", None),
            ("202-01-05", None),
            ("2020-001-5", None),
            (" 2020-1-5", None),
            ("", None),
        ] {
            assert_eq!(parse_date(text).map(show_date).as_deref(), shown, "{text}");
        }
    }

    #[test]
    fn lenient_instants() {
        for (text, shown) in [
            ("2020-02-29T23:59:59.123456Z", Some("2020-02-29 23:59:59.123456")),
            ("2020-02-29T23:59:59.5Z", Some("2020-02-29 23:59:59.500000")),
            ("2020-03-12T20:33:49.134+02", Some("2020-03-12 18:33:49.134000")),
            ("2020-02-29T10:00:00.000+05:30", Some("2020-02-29 04:30:00")),
            ("2020-02-29T10:00:00", Some("2020-02-29 10:00:00")),
            ("2020-02-29 10:00", Some("2020-02-29 10:00:00")),
            ("2020-02-29", Some("2020-02-29 00:00:00")),
            ("20200105", Some("2020-01-05 00:00:00")),
            ("09/30/2015", Some("2015-09-30 00:00:00")),
            ("5", None),
            ("five", None),
            ("2020-02-30", None),
            ("2020-02-29T25:00:00Z", None),
            (" ", None),
        ] {
            assert_eq!(parse_lenient(text).map(|at| show_datetime(at, ' ')).as_deref(), shown, "{text}");
        }
    }

    #[test]
    fn months_are_clipped() {
        let on = |text: &str| parse_date(text).unwrap();
        for (from, months, to) in [
            ("2020-01-31", 1, "2020-02-29"),
            ("2019-01-31", 1, "2019-02-28"),
            ("2020-01-31", -2, "2019-11-30"),
            ("2015-12-20", 3, "2016-03-20"),
        ] {
            assert_eq!(add_months(on(from), months), Some(on(to)), "{from} {months}");
        }
        assert_eq!(add_months(on("9999-12-01"), 1), None);
        assert_eq!(add_days(on("2020-02-28"), 2), Some(on("2020-03-01")));
        assert_eq!(add_days(0, i128::MAX), None);
        assert_eq!((month_start(on("2020-02-29")), month_end(on("2020-02-01"))), (on("2020-02-01"), on("2020-02-29")));
    }

    #[test]
    fn durations_read_like_python() {
        for (micros, text) in [
            (0, "0:00:00"),
            (DAY, "1 day, 0:00:00"),
            (-1, "-1 day, 23:59:59.999999"),
            (3 * DAY + 36_000_000_000, "3 days, 10:00:00"),
        ] {
            assert_eq!(show_duration(micros), text);
        }
    }
}
