//! The Ethiopian calendar: twelve months of 30 days and one of 5 or 6 (ucr.md §2.5).

/// Julian day number of the day before the first one of the calendar's era.
const EPOCH: i64 = 1_723_856;
/// Julian day number of 1970-01-01.
const UNIX: i64 = 2_440_588;

/// Days since 1970 of an Ethiopian date; `None` if there is no such date.
pub(crate) fn to_day(year: i64, month: i64, day: i64) -> Option<i32> {
    let length = match month {
        1..=12 => 30,
        13 if year.rem_euclid(4) == 3 => 6,
        13 => 5,
        _ => return None,
    };
    if !(1..=9999).contains(&year) || !(1..=length).contains(&day) {
        return None;
    }
    let number = EPOCH + 365 * year + year.div_euclid(4) + 30 * month + day - 31;
    super::add_days(0, i128::from(number - UNIX))
}

/// Ethiopian year, month and day of days since 1970.
pub(crate) fn from_day(day: i32) -> (i64, i64, i64) {
    let number = i64::from(day) + UNIX - EPOCH;
    let (cycle, rest) = (number.div_euclid(1461), number.rem_euclid(1461));
    let of_year = rest % 365 + 365 * (rest / 1460);
    (4 * cycle + rest / 365 - rest / 1460, of_year / 30 + 1, of_year % 30 + 1)
}

/// `YYYY-MM-DD` in the Ethiopian calendar, parts possibly unpadded, to days since 1970.
pub(crate) fn parse(text: &str) -> Option<i32> {
    let mut parts = text.split('-').map(|part| part.trim().parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() { None } else { to_day(year, month, day) }
}

/// `YYYY-MM-DD` in the Ethiopian calendar.
pub(crate) fn show(day: i32) -> String {
    let (year, month, day) = from_day(day);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::date::{parse_date, show_date};

    #[test]
    fn calendars_agree() {
        for (ethiopian, gregorian) in [
            ("2015-01-20", "2022-09-30"),
            ("2014-13-05", "2022-09-10"),
            ("2014-01-29", "2021-10-09"),
            ("2009-13-05", "2017-09-10"),
            ("2011-13-06", "2019-09-11"),
        ] {
            assert_eq!(parse(ethiopian).map(show_date).as_deref(), Some(gregorian));
            assert_eq!(show(parse_date(gregorian).unwrap()), ethiopian);
        }
        for bad in ["abc-13-11", "2014-13-06", "2014-14-01", "2014-01-31", "", "2014-01"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
