//! What workers answer: one function a form, with the questions and distributions of the shared workload.

use std::sync::Arc;

use schemas::time::format_micros;

use super::{
    DAY,
    form::{Answer, CaseBlock, Fields},
};
use crate::load::{random::Stream, words};

/// Answers and case blocks of a form.
pub(crate) type Filled = (Vec<(&'static str, Answer)>, Vec<CaseBlock>);

/// Draws answers.
#[derive(Debug)]
pub(crate) struct Interview<'a> {
    /// Where they are drawn from.
    pub(crate) stream: &'a mut Stream,
}

impl Interview<'_> {
    /// A whole number in `low..=high` as an index.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.stream.index(high.saturating_sub(low) + 1)
    }

    /// A span of so many seconds, in microseconds.
    pub(crate) fn seconds(&mut self, low: i64, high: i64) -> i64 {
        self.stream.between(low, high) * 1_000_000
    }

    /// A person's name.
    pub(crate) fn name(&mut self) -> String {
        format!("{} {}", self.one_of(words::FIRST), self.one_of(words::LAST))
    }

    /// Some words.
    pub(crate) fn notes(&mut self, low: usize, high: usize) -> String {
        let count = self.between(low, high);
        let first = self.stream.index(words::WORDS.len());
        let step = self.between(1, 7);
        let word = |i: usize| words::WORDS.get((first + i * step) % words::WORDS.len()).copied();
        (0..count).filter_map(word).collect::<Vec<_>>().join(" ")
    }

    /// A decimal with one place.
    pub(crate) fn measured(&mut self, low: f64, high: f64) -> String {
        format!("{:.1}", low + self.stream.unit() * (high - low))
    }

    /// The same, but 3 % are blank and 0.5 % are no number.
    fn decimal(&mut self, low: f64, high: f64) -> String {
        let draw = self.stream.unit();
        if draw < 0.03 {
            String::new()
        } else if draw < 0.035 {
            "n/a".to_owned()
        } else {
            self.measured(low, high)
        }
    }

    fn one_of(&mut self, of: &[&'static str]) -> &'static str {
        of.get(self.stream.index(of.len())).copied().unwrap_or_default()
    }

    fn number(&mut self, low: i64, high: i64) -> String {
        self.stream.between(low, high).to_string()
    }

    fn phone(&mut self) -> String {
        format!("+91{}", self.stream.between(6_000_000_000, 9_999_999_999))
    }

    fn signs(&mut self) -> String {
        let draw = self.stream.unit();
        if draw < 0.72 {
            return "none".to_owned();
        }
        let first = self.one_of(words::SIGNS);
        if draw < 0.92 {
            return first.to_owned();
        }
        match self.one_of(words::SIGNS) {
            second if second == first => first.to_owned(),
            second => format!("{first} {second}"),
        }
    }

    fn household(&mut self) -> Answer {
        Answer::Group(words::HOUSEHOLD.iter().map(|question| (*question, self.number(1, 6))).collect())
    }

    fn exam(&mut self) -> Answer {
        Answer::Group(words::EXAM.iter().map(|question| (*question, self.number(40, 139))).collect())
    }

    fn counselling(&mut self, topics: usize) -> Answer {
        let mut answer = || if self.stream.chance(0.7) { "yes" } else { "no" }.to_owned();
        Answer::Group(words::COUNSELLING.iter().take(topics).map(|topic| (*topic, answer())).collect())
    }

    /// Items handed out, and how many in all.
    fn items(&mut self, day: i64) -> (Answer, String) {
        let mut total = 0;
        let entries = (0..self.between(1, 5))
            .map(|_| {
                let quantity = self.stream.between(1, 30);
                total += quantity;
                vec![
                    ("item_code", self.one_of(words::ITEMS).to_owned()),
                    ("qty", quantity.to_string()),
                    ("batch", format!("B{:05}", self.stream.between(0, 99_999))),
                    ("expiry", date(day + self.stream.between(30, 720))),
                ]
            })
            .collect();
        (Answer::Repeat(entries), total.to_string())
    }

    /// Registers a pregnancy.
    pub(crate) fn registration(&mut self, case: &Arc<str>, name: &str, owner: &str, day: i64) -> Filled {
        let asked: Fields = vec![
            ("age", self.number(15, 45)),
            ("phone", self.phone()),
            ("lmp", date(day - self.stream.between(28, 140))),
            ("height", self.number(138, 176)),
            ("hb", self.decimal(7.0, 14.5)),
            ("weight", self.decimal(38.0, 85.0)),
            ("risk_level", self.risk().to_owned()),
            ("danger_signs", self.signs()),
        ];
        let mut answers = vec![("visit_date", text(date(day))), ("mother_name", text(name.to_owned()))];
        answers.extend(asked.iter().map(|(question, answer)| (*question, text(answer.clone()))));
        answers.push(("household", self.household()));
        answers.push(("counselling", self.counselling(8)));
        answers.push(("notes", text(self.notes(10, 90))));
        let mut update = asked;
        update.extend([
            ("anc_count", "0".to_owned()),
            ("last_visit", date(day)),
            ("blood_group", self.one_of(words::BLOOD).to_owned()),
            ("gravida", self.number(1, 6)),
            ("husband_name", self.name()),
            ("status", "pregnant".to_owned()),
        ]);
        let create = Some(["pregnancy".to_owned(), name.to_owned(), owner.to_owned()]);
        (answers, vec![CaseBlock { create, ..block(case, update) }])
    }

    /// Visits a pregnant woman; `visits` counts this visit.
    pub(crate) fn anc_visit(&mut self, case: &Arc<str>, visits: u32, day: i64) -> Filled {
        let (mut answers, mut update) = self.visit(day);
        answers.push(("exam", self.exam()));
        answers.push(("counselling", self.counselling(15)));
        self.hand_out(&mut answers, day, 140);
        update.push(("anc_count", visits.to_string()));
        (answers, vec![block(case, update)])
    }

    /// Visits mother and child.
    pub(crate) fn pnc_visit(&mut self, case: &Arc<str>, child: &Arc<str>, day: i64) -> Filled {
        let (mut answers, update) = self.visit(day);
        let weight = self.decimal(2.0, 9.0);
        let given = self.between(1, words::VACCINES.len());
        let vaccines = words::VACCINES.iter().take(given).copied().collect::<Vec<_>>().join(" ");
        answers.push(("child_weight", text(weight.clone())));
        answers.push(("vaccines", text(vaccines.clone())));
        answers.push(("exam", self.exam()));
        answers.push(("counselling", self.counselling(12)));
        self.hand_out(&mut answers, day, 110);
        let of_child = vec![("weight", weight), ("vaccines", vaccines), ("last_visit", date(day))];
        (answers, vec![block(case, update), block(child, of_child)])
    }

    /// Records a birth.
    pub(crate) fn delivery(
        &mut self,
        case: &Arc<str>,
        children: &[Arc<str>],
        mother: &str,
        owner: &str,
        day: i64,
    ) -> Filled {
        let born = date(day - self.stream.between(0, 5));
        let update =
            vec![("status", "delivered".to_owned()), ("delivery_date", born.clone()), ("last_visit", date(day))];
        let mut blocks = vec![block(case, update)];
        let mut babies = Vec::new();
        for child in children {
            let sex = self.one_of(&["f", "m"]).to_owned();
            let weight = self.decimal(1.6, 4.4);
            let update = vec![
                ("dob", born.clone()),
                ("sex", sex.clone()),
                ("birth_weight", weight.clone()),
                ("weight", String::new()),
                ("vaccines", "bcg".to_owned()),
                ("last_visit", date(day)),
            ];
            let create = Some(["child".to_owned(), format!("Baby of {mother}"), owner.to_owned()]);
            blocks.push(CaseBlock { create, mother: Some(Arc::clone(case)), ..block(child, update) });
            babies.push(vec![
                ("sex", sex),
                ("birth_weight", weight),
                ("cried", "yes".to_owned()),
                ("vaccines", "bcg".to_owned()),
            ]);
        }
        let answers = vec![
            ("visit_date", text(date(day))),
            ("delivery_date", text(born)),
            ("place", text(self.one_of(words::BIRTH_PLACES).to_owned())),
            ("babies", Answer::Repeat(babies)),
            ("exam", self.exam()),
            ("household", self.household()),
            ("counselling", self.counselling(15)),
            ("notes", text(self.notes(10, 90))),
        ];
        (answers, blocks)
    }

    /// Closes mother and children.
    pub(crate) fn closing(&mut self, case: &Arc<str>, children: &[Arc<str>], day: i64) -> Filled {
        let reason = self.one_of(words::CLOSE_REASONS);
        let blocks = std::iter::once(case)
            .chain(children)
            .map(|case| CaseBlock { close: true, ..block(case, vec![("close_reason", reason.to_owned())]) })
            .collect();
        let answers = vec![
            ("visit_date", text(date(day))),
            ("close_reason", text(reason.to_owned())),
            ("household", self.household()),
            ("exam", self.exam()),
            ("counselling", self.counselling(15)),
            ("notes", text(self.notes(30, 120))),
        ];
        (answers, blocks)
    }

    /// The questions both visits begin with, and what they write to the mother.
    fn visit(&mut self, day: i64) -> (Vec<(&'static str, Answer)>, Fields) {
        let mut update: Fields =
            vec![("hb", self.decimal(7.0, 14.5)), ("weight", self.decimal(38.0, 85.0)), ("danger_signs", self.signs())];
        let mut answers = vec![("visit_date", text(date(day)))];
        answers.extend(update.iter().map(|(question, answer)| (*question, text(answer.clone()))));
        update.push(("last_visit", date(day)));
        if self.stream.chance(0.15) {
            update.push(("risk_level", self.one_of(words::RISK).to_owned()));
        }
        if self.stream.chance(0.03) {
            update.push(("phone", self.phone()));
        }
        (answers, update)
    }

    fn hand_out(&mut self, answers: &mut Vec<(&'static str, Answer)>, day: i64, most_words: usize) {
        let (items, total) = self.items(day);
        answers.push(("items", items));
        answers.push(("notes", text(self.notes(10, most_words))));
        answers.push(("total_qty", text(total)));
    }

    fn risk(&mut self) -> &'static str {
        if self.stream.chance(0.6) {
            "low"
        } else if self.stream.chance(0.7) {
            "medium"
        } else {
            "high"
        }
    }
}

const fn text(text: String) -> Answer {
    Answer::Text(text)
}

fn block(case: &Arc<str>, update: Fields) -> CaseBlock {
    CaseBlock { id: Arc::clone(case), create: None, update, close: false, mother: None }
}

/// The calendar day so many days after 1970-01-01, as `YYYY-MM-DD`.
fn date(day: i64) -> String {
    let mut text = format_micros(day.saturating_mul(DAY));
    text.truncate(10);
    text
}
