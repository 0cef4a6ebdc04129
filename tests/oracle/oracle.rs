//! The right answers of the maternal-health workload: a plain batch recomputation of its five tables.
//!
//! Written from the workload's definitions alone (its "Reading rules" and "Views"), with nested loops over JSON
//! documents; it shares no code with the evaluation under test.

use std::collections::BTreeMap;

use bigdecimal::BigDecimal;
use serde_json::Value;

/// One value of a row.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Null,
    Text(String),
    Int(i64),
    Decimal(BigDecimal),
    Real(f64),
    Bool(bool),
    /// `YYYY-MM-DD`.
    Date(String),
}

/// Column name to value.
pub(crate) type Row = BTreeMap<&'static str, Answer>;

/// Key of a row to the row.
pub(crate) type Table = BTreeMap<Vec<String>, Row>;

/// The current documents of one domain, by id.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) forms: BTreeMap<String, Value>,
    pub(crate) cases: BTreeMap<String, Value>,
    pub(crate) users: BTreeMap<String, Value>,
    pub(crate) locations: BTreeMap<String, Value>,
}

fn text<'a>(doc: &'a Value, name: &str) -> Option<&'a str> {
    doc.get(name)?.as_str()
}

/// Text that matches `-?[0-9]+(\.[0-9]+)?`.
fn decimal(text: Option<&str>) -> Option<BigDecimal> {
    let text = text?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    (digits(whole) && digits(fraction)).then(|| text.parse().unwrap())
}

/// Text that matches `[0-9]+`.
fn integer(text: Option<&str>) -> Option<i64> {
    let text = text?;
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap())
}

/// The first ten characters.
fn date(text: Option<&str>) -> Option<String> {
    let day: String = text?.chars().take(10).collect();
    (day.chars().count() == 10).then_some(day)
}

/// Days since an arbitrary day, by the civil-calendar formula.
fn day_number(date: &str) -> Option<i64> {
    let mut parts = date.split('-');
    let mut next = || parts.next()?.parse::<i64>().ok();
    let (year, month, day) = (next()?, next()?, next()?);
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + (153 * month + 2) / 5 + day - 1)
}

fn date_of_day(number: i64) -> String {
    let era = number.div_euclid(146_097);
    let day_of_era = number.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) =
        if month < 10 { (year_of_era + era * 400, month + 3) } else { (year_of_era + era * 400 + 1, month - 9) };
    format!("{year:04}-{month:02}-{day:02}")
}

fn or_null<T>(value: Option<T>, make: impl Fn(T) -> Answer) -> Answer {
    value.map_or(Answer::Null, make)
}

fn text_answer(doc: &Value, name: &str) -> Answer {
    or_null(text(doc, name), |value| Answer::Text(value.to_owned()))
}

fn flag(set: bool) -> Answer {
    Answer::Int(i64::from(set))
}

fn chosen(doc: &Value, name: &str, choice: &str) -> bool {
    text(doc, name).is_some_and(|list| list.split(' ').any(|item| item == choice))
}

fn closed(doc: &Value) -> bool {
    doc.get("closed").and_then(Value::as_bool).unwrap_or_default()
}

fn below_eleven(hb: Option<&BigDecimal>) -> Option<bool> {
    let limit = BigDecimal::from(11);
    hb.map(|hb| *hb < limit)
}

/// A repeat group with one entry is an object, with more an array.
fn entries(value: Option<&Value>) -> Vec<&Value> {
    match value {
        Some(Value::Array(entries)) => entries.iter().collect(),
        Some(entry @ Value::Object(_)) => vec![entry],
        _ => Vec::new(),
    }
}

impl World {
    /// Puts a document in its place, or takes it away.
    pub(crate) fn apply(&mut self, kind: &str, id: &str, body: Option<Value>) {
        let documents = match kind {
            "form" => &mut self.forms,
            "case" => &mut self.cases,
            "user" => &mut self.users,
            "location" => &mut self.locations,
            _ => return,
        };
        match body {
            Some(body) => documents.insert(id.to_owned(), body),
            None => documents.remove(id),
        };
    }

    fn cases_of_type<'a>(&'a self, case_type: &'a str) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.cases.iter().filter(move |(_, case)| {
            text(case, "type") == Some(case_type) && text(case, "doc_type") == Some("CommCareCase")
        })
    }

    /// Visits: forms of the two kinds that carry items, with the form's answers.
    fn visits(&self) -> impl Iterator<Item = (&String, &Value, &Value)> {
        self.forms.iter().filter_map(|(id, form)| {
            let kind = text(form, "xmlns")?.rsplit('/').next()?;
            let counts = text(form, "doc_type") == Some("XFormInstance") && ["anc_visit", "pnc_visit"].contains(&kind);
            counts.then_some((id, form, form.get("form")?))
        })
    }

    /// W1: one row per pregnancy.
    pub(crate) fn pregnancies(&self) -> Table {
        self.cases_of_type("pregnancy").map(|(id, case)| (vec![id.clone()], pregnancy(case))).collect()
    }

    /// W2: one row per item of a visit.
    pub(crate) fn visit_items(&self) -> Table {
        let mut table = Table::new();
        for (id, form, answers) in self.visits() {
            for (place, item) in entries(answers.get("items")).into_iter().enumerate() {
                let row = Row::from([
                    ("owner_id", text_answer(form, "user_id")),
                    ("visit_date", or_null(date(text(answers, "visit_date")), Answer::Date)),
                    ("item_code", text_answer(item, "item_code")),
                    ("qty", or_null(integer(text(item, "qty")), Answer::Int)),
                    ("batch", text_answer(item, "batch")),
                    ("expiry", or_null(date(text(item, "expiry")), Answer::Date)),
                ]);
                table.insert(vec![id.clone(), place.to_string()], row);
            }
        }
        table
    }

    /// W3: visits by worker and month.
    pub(crate) fn visits_by_month(&self) -> Table {
        struct Sums {
            visits: i64,
            danger: i64,
            weight: BigDecimal,
            qty: i64,
        }
        let mut groups: BTreeMap<Vec<String>, Sums> = BTreeMap::new();
        for (_, form, answers) in self.visits() {
            let month: String = text(answers, "visit_date").unwrap_or_default().chars().take(7).collect();
            let key = vec![text(form, "user_id").unwrap_or_default().to_owned(), month];
            let sums =
                groups.entry(key).or_insert_with(|| Sums { visits: 0, danger: 0, weight: BigDecimal::from(0), qty: 0 });
            sums.visits += 1;
            sums.danger += i64::from(!matches!(text(answers, "danger_signs").unwrap_or_default(), "" | "none"));
            sums.weight += decimal(text(answers, "weight")).unwrap_or_default();
            sums.qty += integer(text(answers, "total_qty")).unwrap_or_default();
        }
        let row = |sums: Sums| {
            Row::from([
                ("n_visits", Answer::Int(sums.visits)),
                ("n_danger", Answer::Int(sums.danger)),
                ("sum_weight", Answer::Decimal(sums.weight)),
                ("sum_qty", Answer::Int(sums.qty)),
            ])
        };
        groups.into_iter().map(|(key, sums)| (key, row(sums))).collect()
    }

    /// W4: one row per child, with what its mother's case says.
    pub(crate) fn children(&self) -> Table {
        self.cases_of_type("child")
            .map(|(id, child)| {
                let mother_id = child.get("indices").and_then(|i| i.get(0)).and_then(|i| text(i, "referenced_id"));
                let mother = mother_id.and_then(|mother_id| self.cases.get(mother_id)).unwrap_or(&Value::Null);
                let row = Row::from([
                    ("child_name", text_answer(child, "name")),
                    ("dob", or_null(date(text(child, "dob")), Answer::Date)),
                    ("sex", text_answer(child, "sex")),
                    ("birth_weight", or_null(decimal(text(child, "birth_weight")), Answer::Decimal)),
                    ("closed", Answer::Bool(closed(child))),
                    ("mother_id", or_null(mother_id, |id| Answer::Text(id.to_owned()))),
                    ("mother_name", text_answer(mother, "name")),
                    ("mother_phone", text_answer(mother, "phone")),
                    ("mother_risk", text_answer(mother, "risk_level")),
                    ("mother_last_visit", or_null(date(text(mother, "last_visit")), Answer::Date)),
                    ("mother_hb", or_null(decimal(text(mother, "hb")), Answer::Decimal)),
                    ("mother_closed", or_null(mother.get("closed").and_then(Value::as_bool), Answer::Bool)),
                ]);
                (vec![id.clone()], row)
            })
            .collect()
    }

    /// W5: pregnancies by the district of their owner.
    pub(crate) fn districts(&self) -> Table {
        #[derive(Default)]
        struct Counts {
            name: String,
            cases: i64,
            open: i64,
            high: i64,
            anemic: i64,
            anc: i64,
        }
        let mut groups: BTreeMap<Vec<String>, Counts> = BTreeMap::new();
        for (_, case) in self.cases_of_type("pregnancy") {
            let Some((id, district)) = self.district_of(case) else { continue };
            let counts = groups.entry(vec![id.to_owned()]).or_default();
            counts.name = text(district, "name").unwrap_or_default().to_owned();
            let open = !closed(case);
            counts.cases += 1;
            counts.open += i64::from(open);
            counts.high += i64::from(open && text(case, "risk_level") == Some("high"));
            let anemic = below_eleven(decimal(text(case, "hb")).as_ref()).unwrap_or_default();
            counts.anemic += i64::from(open && anemic);
            counts.anc += integer(text(case, "anc_count")).unwrap_or_default();
        }
        let row = |counts: Counts| {
            Row::from([
                ("district_name", Answer::Text(counts.name)),
                ("n_cases", Answer::Int(counts.cases)),
                ("n_open", Answer::Int(counts.open)),
                ("n_high", Answer::Int(counts.high)),
                ("n_anemic", Answer::Int(counts.anemic)),
                ("sum_anc", Answer::Int(counts.anc)),
            ])
        };
        groups.into_iter().map(|(key, counts)| (key, row(counts))).collect()
    }

    /// Owner, village, block, district: nothing if a step is missing.
    fn district_of(&self, case: &Value) -> Option<(&str, &Value)> {
        let owner = self.users.get(text(case, "owner_id")?)?;
        let village = self.locations.get(text(owner, "location_id")?)?;
        let block = self.locations.get(parent(village)?)?;
        let district = parent(block)?;
        Some((district, self.locations.get(district)?))
    }
}

fn parent(location: &Value) -> Option<&str> {
    text(location, "parent_id")
}

fn pregnancy(case: &Value) -> Row {
    let lmp = date(text(case, "lmp"));
    let lmp_day = lmp.as_deref().and_then(day_number);
    let last_visit = date(text(case, "last_visit")).as_deref().and_then(day_number);
    let hb = decimal(text(case, "hb"));
    let weight = decimal(text(case, "weight"));
    let number = |value: &BigDecimal| value.to_string().parse::<f64>().unwrap();
    let bmi = weight.as_ref().zip(decimal(text(case, "height")).as_ref()).map(|(weight, height)| {
        let metres = number(height) / 100.0;
        number(weight) / (metres * metres)
    });
    let phone: Vec<char> = text(case, "phone").unwrap_or_default().chars().collect();
    let last_four: String = phone.iter().skip(phone.len().saturating_sub(4)).collect();
    let label = format!("{} ({last_four})", text(case, "name").unwrap_or_default().to_uppercase());
    let risk = |level: &str| flag(text(case, "risk_level") == Some(level));
    Row::from([
        ("name", text_answer(case, "name")),
        ("owner_id", text_answer(case, "owner_id")),
        ("opened_date", or_null(date(text(case, "opened_on")), Answer::Date)),
        ("closed", Answer::Bool(closed(case))),
        ("closed_date", or_null(date(text(case, "closed_on")), Answer::Date)),
        ("age_years", or_null(integer(text(case, "age")), Answer::Int)),
        ("lmp", or_null(lmp, Answer::Date)),
        ("edd", or_null(lmp_day, |day| Answer::Date(date_of_day(day + 280)))),
        ("gest_weeks", or_null(last_visit.zip(lmp_day), |(visit, lmp)| Answer::Int((visit - lmp).div_euclid(7)))),
        ("is_anemic", or_null(below_eleven(hb.as_ref()), Answer::Bool)),
        ("hb", or_null(hb, Answer::Decimal)),
        ("weight_kg", or_null(weight, Answer::Decimal)),
        ("bmi", or_null(bmi, Answer::Real)),
        ("risk_low", risk("low")),
        ("risk_medium", risk("medium")),
        ("risk_high", risk("high")),
        ("danger_bleeding", flag(chosen(case, "danger_signs", "bleeding"))),
        ("danger_fever", flag(chosen(case, "danger_signs", "fever"))),
        ("anc_count", or_null(integer(text(case, "anc_count")), Answer::Int)),
        ("label", Answer::Text(label)),
    ])
}

impl Answer {
    /// True if a cell of a JSON result row says the same. Numbers may come as numbers or as text; decimals count as equal
    /// within 1e-6, floats within 1e-9 of their size.
    pub(crate) fn agrees(&self, cell: &Value) -> bool {
        let as_text = match cell {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        match self {
            Self::Null => cell.is_null(),
            _ if cell.is_null() => false,
            Self::Text(text) => *text == as_text,
            Self::Int(number) => {
                as_text.parse::<BigDecimal>().is_ok_and(|got| got == *number)
                    || cell.as_bool().is_some_and(|set| i64::from(set) == *number)
            }
            Self::Decimal(number) => as_text
                .parse::<BigDecimal>()
                .is_ok_and(|got| (got - number).abs() <= "0.000001".parse::<BigDecimal>().unwrap()),
            Self::Real(number) => {
                as_text.parse::<f64>().is_ok_and(|got| (got - number).abs() <= 1e-9 * number.abs().max(1.0))
            }
            Self::Bool(set) => {
                let said = match as_text.as_str() {
                    "true" | "t" | "1" => Some(true),
                    "false" | "f" | "0" => Some(false),
                    _ => None,
                };
                said == Some(*set)
            }
            Self::Date(day) => {
                as_text.get(..10) == Some(day)
                    && as_text.get(10..).is_none_or(|rest| {
                        rest.is_empty() || rest.starts_with("T00:00:00") || rest.starts_with(" 00:00:00")
                    })
            }
        }
    }
}

/// Says how a table read from the server differs from the right one, at most ten differences; empty if they agree. The
/// read table has one JSON object per row; `key` names its key columns.
pub(crate) fn differences(expected: &Table, key: &[&str], rows: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = expected.clone();
    for row in rows {
        let id: Vec<String> = key
            .iter()
            .map(|name| match row.get(name) {
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => format!("<no column {name}>"),
            })
            .collect();
        let Some(right) = left.remove(&id) else {
            found.push(format!("row {id:?} should not be there, or not twice: {row}"));
            continue;
        };
        for (column, answer) in &right {
            let cell = row.get(column).unwrap_or(&Value::Null);
            if row.get(column).is_none() || !answer.agrees(cell) {
                found.push(format!("row {id:?}, column {column}: {cell} instead of {answer:?}"));
            }
        }
    }
    found.extend(left.keys().map(|id| format!("row {id:?} is missing")));
    found.truncate(10);
    found
}

mod tests {
    use super::*;

    #[test]
    fn the_calendar_counts_days() {
        for (from, days, to) in [
            ("2024-01-01", 280, "2024-10-07"),
            ("2023-12-31", 1, "2024-01-01"),
            ("2024-02-28", 1, "2024-02-29"),
            ("2025-02-28", 1, "2025-03-01"),
            ("2000-02-29", 366, "2001-03-01"),
        ] {
            assert_eq!(date_of_day(day_number(from).unwrap() + days), to, "{from}");
        }
    }

    #[test]
    fn readings_follow_the_rules() {
        assert_eq!(decimal(Some("10.5")), Some("10.5".parse().unwrap()));
        for not_a_number in ["", "n/a", "1.", ".5", "1e3", "+1"] {
            assert_eq!(decimal(Some(not_a_number)), None, "{not_a_number}");
        }
        assert_eq!(integer(Some("007")), Some(7));
        assert_eq!(integer(Some("-7")), None);
        assert_eq!(date(Some("2024-05-06T01:02:03Z")).as_deref(), Some("2024-05-06"));
        assert_eq!(date(Some("")), None);
    }

    #[test]
    fn differences_are_seen() {
        let expected = Table::from([
            (vec!["a".to_owned()], Row::from([("n", Answer::Int(1))])),
            (vec!["b".to_owned()], Row::from([("n", Answer::Null)])),
        ]);
        let row = |id: &str, n: Value| serde_json::json!({"id": id, "n": n});
        let right = [row("a", 1.into()), row("b", Value::Null)];
        assert_eq!(differences(&expected, &["id"], &right), Vec::<String>::new());
        for wrong in [
            vec![row("a", 1.into())],
            vec![row("a", 1.into()), row("b", 0.into())],
            vec![row("a", 2.into()), row("b", Value::Null)],
            vec![row("a", 1.into()), row("a", 1.into()), row("b", Value::Null)],
            vec![row("a", 1.into()), row("b", Value::Null), row("c", Value::Null)],
        ] {
            assert_eq!(differences(&expected, &["id"], &wrong).len(), 1, "{wrong:?}");
        }
    }
}
