//! One form as a phone fills it: answers and case blocks in, XForm XML out.

use std::{fmt::Write, sync::Arc};

use schemas::time::format_micros;

/// The app that the phones run.
pub(crate) const APP_ID: &str = "a4c1f0e2b3d94c5fa1b2c3d4e5f60718";
const CASE_XMLNS: &str = "http://commcarehq.org/case/transaction/v2";
const FORM_XMLNS: &str = "http://openrosa.org/formdesigner/millrace/";

/// The five forms of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FormKind {
    /// Creates a pregnancy.
    Registration,
    /// Updates it.
    AncVisit,
    /// Updates it and creates one or two children.
    Delivery,
    /// Updates mother and child.
    PncVisit,
    /// Closes mother and children.
    Closing,
}

impl FormKind {
    /// Every kind.
    pub(crate) const ALL: [Self; 5] =
        [Self::Registration, Self::AncVisit, Self::Delivery, Self::PncVisit, Self::Closing];

    /// Last part of the form's xmlns.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Registration => "registration",
            Self::AncVisit => "anc_visit",
            Self::Delivery => "delivery",
            Self::PncVisit => "pnc_visit",
            Self::Closing => "closing",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Registration => "Register pregnancy",
            Self::AncVisit => "Antenatal visit",
            Self::Delivery => "Delivery",
            Self::PncVisit => "Postnatal visit",
            Self::Closing => "Close case",
        }
    }

    /// The kind of an xmlns.
    pub(crate) fn from_xmlns(xmlns: &str) -> Option<Self> {
        let name = xmlns.strip_prefix(FORM_XMLNS)?;
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// True for the forms that change what a district counts: cases, visits of pregnancies, open cases.
    pub(crate) const fn changes_district(self) -> bool {
        matches!(self, Self::Registration | Self::AncVisit | Self::Closing)
    }

    /// True for the visits that hand out items and count by month.
    pub(crate) const fn is_visit(self) -> bool {
        matches!(self, Self::AncVisit | Self::PncVisit)
    }
}

/// Named answers, in order.
pub(crate) type Fields = Vec<(&'static str, String)>;

/// The answer to a question.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Text.
    Text(String),
    /// A group of questions.
    Group(Fields),
    /// A repeat group, one entry each.
    Repeat(Vec<Fields>),
}

/// What a form does to one case.
#[derive(Clone, Debug)]
pub(crate) struct CaseBlock {
    /// The case.
    pub(crate) id: Arc<str>,
    /// Type, name and owner, when the form creates the case.
    pub(crate) create: Option<[String; 3]>,
    /// Properties set.
    pub(crate) update: Fields,
    /// True if the form closes the case.
    pub(crate) close: bool,
    /// The mother, when the form links a child to her.
    pub(crate) mother: Option<Arc<str>>,
}

/// A filled form.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    /// Its id.
    pub(crate) id: Arc<str>,
    /// Which form.
    pub(crate) kind: FormKind,
    /// Number of the worker.
    pub(crate) worker: usize,
    /// When the worker began and ended, microseconds since 1970 UTC.
    pub(crate) start: i64,
    /// See `start`.
    pub(crate) end: i64,
    /// Answers in order.
    pub(crate) answers: Vec<(&'static str, Answer)>,
    /// The mother's block first, then children's.
    pub(crate) blocks: Vec<CaseBlock>,
}

/// Who fills a form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Author<'a> {
    /// User id.
    pub(crate) id: &'a str,
    /// User name.
    pub(crate) username: &'a str,
    /// Phone.
    pub(crate) device: &'a str,
}

impl Form {
    /// The answer of a text question.
    pub(crate) fn text(&self, question: &str) -> Option<&str> {
        self.answers.iter().find_map(|(name, answer)| match answer {
            Answer::Text(text) if *name == question => Some(text.as_str()),
            _ => None,
        })
    }

    /// Replaces the answer of a text question, if the form has it.
    pub(crate) fn set_text(&mut self, question: &str, value: &str) {
        for (name, answer) in &mut self.answers {
            if let Answer::Text(text) = answer
                && *name == question
            {
                value.clone_into(text);
            }
        }
    }

    /// Entries of the repeat group `items`.
    pub(crate) fn items(&self) -> usize {
        self.answers
            .iter()
            .map(|(name, answer)| match answer {
                Answer::Repeat(entries) if *name == "items" => entries.len(),
                _ => 0,
            })
            .sum()
    }

    /// The form as it is posted.
    pub(crate) fn xml(&self, author: Author<'_>) -> String {
        let mut out = Xml(String::with_capacity(4096));
        out.raw(&format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><data xmlns=\"{FORM_XMLNS}{}\" \
             xmlns:jrm=\"http://dev.commcarehq.org/jr/xforms\" uiVersion=\"1\" version=\"17\" name=\"{}\">",
            self.kind.name(),
            self.kind.title()
        ));
        for (name, answer) in &self.answers {
            match answer {
                Answer::Text(text) => out.element(name, text),
                Answer::Group(fields) => out.group(name, fields),
                Answer::Repeat(entries) => entries.iter().for_each(|fields| out.group(name, fields)),
            }
        }
        let end = format_micros(self.end);
        for block in &self.blocks {
            out.case(block, &end, author.id);
        }
        out.raw("<n0:meta xmlns:n0=\"http://openrosa.org/jsr-261\">");
        for (name, value) in [
            ("n0:deviceID", author.device),
            ("n0:timeStart", &format_micros(self.start)),
            ("n0:timeEnd", &end),
            ("n0:username", author.username),
            ("n0:userID", author.id),
            ("n0:instanceID", &self.id),
        ] {
            out.element(name, value);
        }
        out.raw(
            "<n1:appVersion xmlns:n1=\"http://commcarehq.org/xforms\">CommCare Android 2.54, App v17</n1:appVersion></n0:meta></data>",
        );
        out.0
    }
}

struct Xml(String);

impl Xml {
    fn raw(&mut self, text: &str) {
        self.0.push_str(text);
    }

    fn open(&mut self, name: &str) {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
    }

    fn shut(&mut self, name: &str) {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    fn element(&mut self, name: &str, text: &str) {
        self.open(name);
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                c => self.0.push(c),
            }
        }
        self.shut(name);
    }

    fn group(&mut self, name: &str, fields: &Fields) {
        self.open(name);
        for (name, text) in fields {
            self.element(name, text);
        }
        self.shut(name);
    }

    fn case(&mut self, block: &CaseBlock, modified: &str, user: &str) {
        // Writing to a String cannot fail.
        let written = write!(
            self.0,
            "<case xmlns=\"{CASE_XMLNS}\" case_id=\"{}\" date_modified=\"{modified}\" user_id=\"{user}\">",
            block.id
        );
        debug_assert!(written.is_ok());
        if let Some([kind, name, owner]) = &block.create {
            self.open("create");
            self.element("case_type", kind);
            self.element("case_name", name);
            self.element("owner_id", owner);
            self.shut("create");
        }
        if !block.update.is_empty() {
            self.group("update", &block.update);
        }
        if block.close {
            self.raw("<close/>");
        }
        if let Some(mother) = &block.mother {
            self.raw("<index><mother case_type=\"pregnancy\" relationship=\"child\">");
            self.raw(mother);
            self.raw("</mother></index>");
        }
        self.raw("</case>");
    }
}
