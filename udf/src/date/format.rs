//! strftime and strptime for the directives that formats in the field use.

use super::{DAY, civil, day_of, month_length};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
pub(crate) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

fn short(name: &str) -> &str {
    name.get(..3).unwrap_or(name)
}

fn name<'n>(names: &[&'n str], index: i64) -> &'n str {
    usize::try_from(index).ok().and_then(|index| names.get(index)).copied().unwrap_or_default()
}

/// Formats an instant. Unknown directives stay as they are, as in the C library.
pub(crate) fn strftime(at: i64, format: &str) -> String {
    let day = day_of(at);
    let (year, month, of_month) = civil(day);
    let rest = at.rem_euclid(DAY);
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let weekday = (i64::from(day) + 3).rem_euclid(7);
    let of_year = (1..month).map(|month| month_length(year, month)).sum::<i64>() + of_month;
    let half = if hour < 12 { "AM" } else { "PM" };
    let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };

    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = rest.next();
        }
        let number = |value: i64, width: usize| {
            if unpadded { value.to_string() } else { format!("{value:0width$}") }
        };
        match directive {
            Some('Y') => out.push_str(&number(year, 4)),
            Some('y') => out.push_str(&number(year % 100, 2)),
            Some('m') => out.push_str(&number(month, 2)),
            Some('d') => out.push_str(&number(of_month, 2)),
            Some('e') => out.push_str(&format!("{of_month:2}")),
            Some('H') => out.push_str(&number(hour, 2)),
            Some('I') => out.push_str(&number(twelve, 2)),
            Some('M') => out.push_str(&number(minute, 2)),
            Some('S') => out.push_str(&number(second, 2)),
            Some('f') => out.push_str(&format!("{micros:06}")),
            Some('j') => out.push_str(&number(of_year, 3)),
            Some('p') => out.push_str(half),
            Some('A') => out.push_str(name(&DAYS, weekday)),
            Some('a') => out.push_str(short(name(&DAYS, weekday))),
            Some('w') => out.push_str(&((weekday + 1) % 7).to_string()),
            Some('u') => out.push_str(&(weekday + 1).to_string()),
            Some('U') => out.push_str(&number((of_year + 6 - (weekday + 1) % 7) / 7, 2)),
            Some('W') => out.push_str(&number((of_year + 6 - weekday) / 7, 2)),
            Some('B') => out.push_str(name(&MONTHS, month - 1)),
            Some('b' | 'h') => out.push_str(short(name(&MONTHS, month - 1))),
            Some('F') => out.push_str(&strftime(at, "%Y-%m-%d")),
            Some('T' | 'X') => out.push_str(&strftime(at, "%H:%M:%S")),
            Some('R') => out.push_str(&strftime(at, "%H:%M")),
            Some('D' | 'x') => out.push_str(&strftime(at, "%m/%d/%y")),
            Some('c') => out.push_str(&strftime(at, "%a %b %e %H:%M:%S %Y")),
            Some('z' | 'Z') => {}
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    out
}

/// Parses an instant by a format. `None` if text and format do not match or name no instant.
pub(crate) fn strptime(text: &str, format: &str) -> Option<i64> {
    let (mut year, mut month, mut day) = (1900, 1, 1);
    let (mut hour, mut minute, mut second, mut micros) = (0, 0, 0, 0);
    let mut afternoon = None;
    let mut text = text;
    let mut directives = format.chars();
    while let Some(c) = directives.next() {
        if c.is_whitespace() {
            text = text.trim_start();
            continue;
        }
        if c != '%' {
            text = text.strip_prefix(c)?;
            continue;
        }
        match directives.next()? {
            'Y' => (year, text) = number(text, 4)?,
            'y' => {
                let (short, rest) = number(text, 2)?;
                (year, text) = (if short < 69 { 2000 + short } else { 1900 + short }, rest);
            }
            'm' => (month, text) = number(text, 2)?,
            'd' => (day, text) = number(text, 2)?,
            'H' | 'I' => (hour, text) = number(text, 2)?,
            'M' => (minute, text) = number(text, 2)?,
            'S' => (second, text) = number(text, 2)?,
            'f' => {
                let (value, rest) = number(text, 6)?;
                let width = u32::try_from(text.len() - rest.len()).ok()?;
                (micros, text) = (value * 10i64.pow(6u32.checked_sub(width)?), rest);
            }
            'B' => (month, text) = named(text, &MONTHS, false)?,
            'b' => (month, text) = named(text, &MONTHS, true)?,
            'A' => (_, text) = named(text, &DAYS, false)?,
            'a' => (_, text) = named(text, &DAYS, true)?,
            'p' => {
                let (half, rest) = text.split_at_checked(2)?;
                afternoon = Some(match half.to_ascii_uppercase().as_str() {
                    "AM" => false,
                    "PM" => true,
                    _ => return None,
                });
                text = rest;
            }
            'z' if text.starts_with('Z') => text = text.strip_prefix('Z')?,
            '%' => text = text.strip_prefix('%')?,
            _ => return None,
        }
    }
    if let Some(afternoon) = afternoon {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    if !text.is_empty() || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let day = super::day(year, month, day)?;
    Some(super::midnight(day) + ((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

fn number(text: &str, width: usize) -> Option<(i64, &str)> {
    let length = text.bytes().take(width).take_while(u8::is_ascii_digit).count();
    let (digits, rest) = text.split_at_checked(length)?;
    Some((digits.parse().ok()?, rest))
}

fn named<'t>(text: &'t str, names: &[&str], abbreviated: bool) -> Option<(i64, &'t str)> {
    for (name, position) in names.iter().zip(1..) {
        let name = if abbreviated { short(name) } else { name };
        if let Some((head, rest)) = text.split_at_checked(name.len())
            && head.eq_ignore_ascii_case(name)
        {
            return Some((position, rest));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::date::{parse_instant, show_datetime};

    #[test]
    fn directives() {
        let at = parse_instant("2022-01-02T14:04:23.001567Z").unwrap();
        for (format, text) in [
            ("%Y-%m-%d %H:%M", "2022-01-02 14:04"),
            ("%-d/%-m/%Y", "2/1/2022"),
            ("%d %b %Y, %I:%M %p", "02 Jan 2022, 02:04 PM"),
            ("%A %B %j %U %W", "Sunday January 002 01 00"),
            ("%f%%", "001567%"),
        ] {
            assert_eq!(strftime(at, format), text, "{format}");
        }
    }

    #[test]
    fn parsing_by_format() {
        for (text, format, shown) in [
            ("02/01/2022", "%d/%m/%Y", Some("2022-01-02 00:00:00")),
            ("Jan 2, 22 3:04 pm", "%b %d, %y %I:%M %p", Some("2022-01-02 15:04:00")),
            ("2022-01-02 extra", "%Y-%m-%d", None),
            ("2022-02-30", "%Y-%m-%d", None),
        ] {
            assert_eq!(strptime(text, format).map(|at| show_datetime(at, ' ')).as_deref(), shown, "{text}");
        }
    }
}
