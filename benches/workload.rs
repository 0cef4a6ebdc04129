//! What the benches feed to the stages: the sample program's forms, the change log that they make, and its definitions.
//!
//! The forms are those of `millrace load`, in the shares of a real program; parsed and applied by `ingest` they become
//! the documents of its change records. `MILLRACE_BENCH_CHANGES=<changes.jsonl>` takes recorded records instead.
#![allow(dead_code, reason = "each bench uses a part")]

pub(crate) mod live;
#[path = "../src/load"]
#[allow(unused_imports, reason = "the generator's own tests are not run here")]
pub(crate) mod load {
    pub(crate) mod population;
    pub(crate) mod program;
    pub(crate) mod random;
    pub(crate) mod words;
    pub(crate) mod work;
}

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use ingest::{
    submit::{
        apply::{CaseState, FormContext, apply_blocks},
        document::{FormRow, FormState, case_document, form_document},
    },
    xform::{ParseLimits, ParsedForm, parse},
};
use schemas::{
    change::{ChangeRecord, ChangedDocument, DocKind},
    id::{CaseId, DocId, DomainId},
    position::{LaneId, Position, Sequence, Stamp},
    sample,
};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use self::load::{
    population::Population,
    program::Program,
    work::{Ended, Move, Moved, Next, Novelty, Submission},
};

/// That of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seed of everything drawn at random.
const SEED: u64 = 1;
/// 2024-01-01, microseconds since 1970 UTC: the first stamp.
const BEGIN: i64 = 1_704_067_200_000_000;

/// What happens to the program, in order.
pub(crate) enum Event {
    Form(Submission),
    Move(Move),
}

/// The sample program's events, each acknowledged at once.
pub(crate) struct Events {
    pub(crate) population: Population,
    program: Program,
}

impl Events {
    /// A run of `forms` forms by one worker for 200 forms, as in the shared workload.
    pub(crate) fn new(forms: u64) -> Self {
        let workers = usize::try_from(forms / 200).unwrap_or(usize::MAX).max(40);
        let population = Population::generate(SEED, workers, sample::DOMAIN, "");
        let program = Program::new(population.clone(), SEED, 1, Some(forms), Some(forms));
        Self { population, program }
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let (ticket, event) = match self.program.next() {
            Next::Form(form) => (form.ticket, Event::Form(form)),
            Next::Move(next) => (next.ticket, Event::Move(next)),
            Next::Busy | Next::End => return None,
        };
        self.program.ended(ticket, Ended::Acknowledged);
        Some(event)
    }
}

/// The cases of a program, and the change records of what happened to them.
pub(crate) struct Log {
    domain: DomainId,
    pub(crate) cases: BTreeMap<CaseId, CaseState>,
    stamp: i64,
    pub(crate) records: Vec<Arc<ChangeRecord>>,
}

/// Documents of some records.
pub(crate) fn documents(records: &[Arc<ChangeRecord>]) -> usize {
    records.iter().map(|record| record.documents.len()).sum()
}

/// Parses a form of the program.
pub(crate) fn parsed(xml: &str) -> anyhow::Result<ParsedForm> {
    Ok(parse(xml.as_bytes(), &ParseLimits::default(), &String::new)?)
}

impl Log {
    /// An empty log.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self { domain: DomainId::new(sample::DOMAIN)?, cases: BTreeMap::new(), stamp: BEGIN, records: Vec::new() })
    }

    /// The log of a program of `forms` forms, or the recorded one: first its definitions, then its places and workers
    /// (as many records as the second value says), then all that happened.
    pub(crate) fn generate(forms: u64) -> anyhow::Result<(Self, usize)> {
        let mut log = Self::new()?;
        log.define()?;
        if let Some(path) = std::env::var_os("MILLRACE_BENCH_CHANGES") {
            let begun = log.replay(&path).with_context(|| format!("could not read {}", path.display()))?;
            return Ok((log, begun));
        }
        let events = Events::new(forms);
        for place in &events.population.places {
            log.put(DocKind::Location, &place.id, place.document.to_string())?;
        }
        for worker in &events.population.workers {
            log.put(DocKind::User, &worker.id, worker.document.to_string())?;
        }
        let begun = log.records.len();
        for event in events {
            match event {
                // The same bytes again: they change no table.
                Event::Form(form) if form.novelty == Novelty::Duplicate => {}
                Event::Form(form) => log.form(&form.xml)?,
                Event::Move(Move { what: Moved::Worker, id, document, .. }) => {
                    log.put(DocKind::User, &id, document.to_string())?;
                }
                Event::Move(Move { what: Moved::Place, id, document, .. }) => {
                    log.put(DocKind::Location, &id, document.to_string())?;
                }
            }
        }
        Ok((log, begun))
    }

    /// The newest version of every document, in the order in which they first came.
    pub(crate) fn present(&self) -> Vec<ChangedDocument> {
        let mut places: BTreeMap<(DocKind, &str), usize> = BTreeMap::new();
        let mut present: Vec<ChangedDocument> = Vec::new();
        for document in self.records.iter().flat_map(|record| &record.documents) {
            let at = *places.entry((document.kind, document.id.as_str())).or_insert(present.len());
            match present.get_mut(at) {
                Some(slot) => *slot = document.clone(),
                None => present.push(document.clone()),
            }
        }
        present
    }

    /// Puts the sample program's definitions.
    fn define(&mut self) -> anyhow::Result<()> {
        for (id, text) in sample::DATA_SOURCES {
            self.put(DocKind::DataSource, id, (*text).to_owned())?;
        }
        for (id, text) in sample::AGGREGATE_VIEWS {
            self.put(DocKind::AggregateView, id, (*text).to_owned())?;
        }
        Ok(())
    }

    /// A transaction with one document.
    pub(crate) fn put(&mut self, kind: DocKind, id: &str, body: String) -> anyhow::Result<()> {
        let document = self.changed(kind, DocId::new(id)?, None, Arc::from(RawValue::from_string(body)?));
        self.commit(vec![document]);
        Ok(())
    }

    /// A transaction with one case, whose document is given.
    pub(crate) fn case(&mut self, body: &Value) -> anyhow::Result<()> {
        let text =
            |name: &str| body.get(name).and_then(Value::as_str).with_context(|| format!("a case without {name}"));
        let (id, case_type) = (DocId::new(text("_id")?)?, text("type")?);
        let document =
            self.changed(DocKind::Case, id, Some(case_type), Arc::from(RawValue::from_string(body.to_string())?));
        self.commit(vec![document]);
        Ok(())
    }

    /// Applies a form, and commits its document and those of its cases.
    pub(crate) fn form(&mut self, xml: &str) -> anyhow::Result<()> {
        let parsed = parsed(xml)?;
        let received_on = self.stamp;
        let document = form_json(&parsed, &self.domain, received_on)?;
        let mut documents = vec![self.changed(DocKind::Form, (&parsed.form_id).into(), Some(&parsed.xmlns), document)];
        let domain = self.domain.clone();
        let context =
            FormContext { form_id: &parsed.form_id, domain: &domain, received_on, server_modified_on: received_on };
        for touch in apply_blocks(&mut self.cases, parsed.case_blocks?.into(), &context)? {
            let case = self.cases.get(&touch.case_id).context("an applied case is there")?;
            let (case_type, document) = (case.case_type.clone(), case_document(case, None)?);
            documents.push(self.changed(DocKind::Case, (&touch.case_id).into(), Some(&case_type), document));
        }
        self.commit(documents);
        Ok(())
    }

    fn changed(&mut self, kind: DocKind, id: DocId, subtype: Option<&str>, body: Arc<RawValue>) -> ChangedDocument {
        self.stamp += 1;
        let document_type = match kind {
            DocKind::Form => FormState::Normal.doc_type(false).to_owned(),
            DocKind::Case => "CommCareCase".to_owned(),
            _ => String::new(),
        };
        let (stamp, subtype) = (Stamp(self.stamp), subtype.map(str::to_owned));
        ChangedDocument { kind, id, stamp, document_type, subtype, body: Some(body) }
    }

    fn commit(&mut self, documents: Vec<ChangedDocument>) {
        let position = position(self.records.len() + 1);
        self.records.push(Arc::new(ChangeRecord { position, domain: self.domain.clone(), documents }));
    }

    /// Reads recorded change records, one document a line; a form's cases follow it.
    fn replay(&mut self, path: &std::ffi::OsStr) -> anyhow::Result<usize> {
        #[derive(Deserialize)]
        struct Line<'a> {
            #[serde(borrow)]
            topic: &'a str,
            doc_id: &'a str,
            #[serde(borrow)]
            doc: &'a RawValue,
        }
        #[derive(Deserialize)]
        struct About {
            domain: String,
            #[serde(alias = "type")]
            xmlns: Option<String>,
        }
        let mut begun = None;
        let mut transaction = Vec::new();
        for line in BufReader::new(File::open(path)?).lines() {
            let line = line?;
            let Line { topic, doc_id, doc } = serde_json::from_str(&line)?;
            let kind = DocKind::ALL.into_iter().find(|kind| kind.feed() == Some(topic)).context("an unknown topic")?;
            let About { domain, xmlns } = serde_json::from_str(doc.get())?;
            let ours = doc.get().replacen(&format!("\"{domain}\""), &format!("\"{}\"", self.domain), 1);
            if kind != DocKind::Case && !transaction.is_empty() {
                self.commit(std::mem::take(&mut transaction));
            }
            if kind == DocKind::Form {
                begun.get_or_insert(self.records.len());
            }
            let body = Arc::from(RawValue::from_string(ours)?);
            transaction.push(self.changed(kind, DocId::new(doc_id)?, xmlns.as_deref(), body));
        }
        self.commit(transaction);
        begun.context("no forms")
    }
}

/// A form's document as `ingest` makes it.
pub(crate) fn form_json(form: &ParsedForm, domain: &DomainId, received_on: i64) -> anyhow::Result<Arc<RawValue>> {
    Ok(form_document(&FormRow {
        form_id: &form.form_id,
        domain,
        state: FormState::Normal,
        deleted: false,
        xmlns: &form.xmlns,
        app_id: None,
        build_id: None,
        user_id: form.user_id.as_deref(),
        received_on,
        server_modified_on: received_on,
        edited_on: None,
        deprecated_form_id: None,
        orig_id: None,
        problem: None,
        initial_processing_complete: true,
        auth_context: None,
        openrosa_headers: None,
        last_sync_token: None,
        date_header: None,
        submit_ip: None,
        history: &[],
        form: &form.json,
        meta: Some(&form.meta),
    })?)
}

/// The place of a lane's record, counted from 1.
pub(crate) fn position(number: usize) -> Position {
    Position { lane: LaneId::FIRST, sequence: Sequence(u64::try_from(number).unwrap_or(u64::MAX)) }
}

/// Durations, sorted.
pub(crate) struct Sorted(Vec<Duration>);

impl FromIterator<Duration> for Sorted {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut all: Vec<Duration> = durations.into_iter().collect();
        all.sort_unstable();
        Self(all)
    }
}

impl Sorted {
    /// The duration that `percent` of a hundred do not exceed, in milliseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let at = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        self.0.get(at).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1000.0)
    }
}
