//! Instants as CommCare writes them: UTC, six fraction digits, `Z` (forms-and-cases.md, head).

use jiff::{Timestamp, civil};

/// Microseconds since 1970 UTC as `YYYY-MM-DDTHH:MM:SS.ffffffZ`.
#[must_use]
pub fn format_micros(micros: i64) -> String {
    let Ok(at) = Timestamp::from_microsecond(micros) else { return String::new() };
    format!("{}", at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ"))
}

/// Parses an ISO 8601 instant or date into microseconds since 1970 UTC.
///
/// With an offset it is converted to UTC, without one it is taken as UTC, a date alone is midnight
/// (forms-and-cases.md §9). Returns `None` for anything else.
#[must_use]
pub fn parse_micros(text: &str) -> Option<i64> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at.as_microsecond());
    }
    let civil = match text.parse::<civil::DateTime>() {
        Ok(at) => at,
        Err(_) => text.parse::<civil::Date>().ok()?.to_datetime(civil::Time::midnight()),
    };
    Some(jiff::tz::TimeZone::UTC.to_timestamp(civil).ok()?.as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_round_trip() {
        let at = parse_micros("2013-03-09T06:30:09.007+03").unwrap();
        assert_eq!(format_micros(at), "2013-03-09T03:30:09.007000Z");
        assert_eq!(parse_micros("2013-03-09").map(format_micros).unwrap(), "2013-03-09T00:00:00.000000Z");
        assert_eq!(parse_micros("2013-03-09T01:02:03").map(format_micros).unwrap(), "2013-03-09T01:02:03.000000Z");
        assert_eq!(parse_micros("2011-01-01T00:00:00 01"), None);
    }
}
