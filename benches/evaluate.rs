//! Bench of the evaluator's pure part: documents read from JSON, and rows of the sample data sources from documents.
//!
//! Each sample goes over a thousand documents.
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up ends")]

mod workload;

use std::{collections::HashMap, sync::LazyLock};

use divan::{Bencher, counter::ItemsCount};
use schemas::{
    change::{ChangedDocument, DocKind},
    doc::Doc,
    sample,
};
use udf::{DataSource, Related, Relation};

use self::workload::Log;
pub(crate) use self::workload::load;

const DOCUMENTS: usize = 1_000;
/// Forms behind them.
const FORMS: u64 = 8_000;

/// What the sample program has come to.
static PRESENT: LazyLock<Vec<ChangedDocument>> = LazyLock::new(|| Log::generate(FORMS).unwrap().0.present());

fn main() {
    divan::main();
}

fn documents(kind: DocKind, accepts: impl Fn(&str) -> bool) -> Vec<&'static ChangedDocument> {
    let of_kind = PRESENT.iter().filter(|document| document.kind == kind);
    let found = of_kind.filter(|document| document.subtype.as_deref().is_some_and(&accepts));
    found.take(DOCUMENTS).collect()
}

fn read(document: &ChangedDocument) -> Doc {
    Doc::from_json(document.body.as_ref().unwrap().get()).unwrap()
}

/// Finds the mothers of children.
struct Cases(HashMap<String, Doc>);

impl Related for Cases {
    fn get(&mut self, _: &Relation, key: &str) -> Vec<Doc> {
        self.0.get(key).cloned().into_iter().collect()
    }
}

#[divan::bench(args = [DocKind::Case, DocKind::Form])]
fn read_documents(bencher: Bencher<'_, '_>, kind: &DocKind) {
    let documents = documents(*kind, |_| true);
    bencher
        .counter(ItemsCount::new(documents.len()))
        .bench(|| documents.iter().map(|document| read(document).size()).sum::<usize>());
}

/// W1 is `pregnancies`, W2 `visit_items`, the rows below W3 `visits`, W4 `children`.
#[divan::bench(args = ["pregnancies", "visit_items", "visits", "children"])]
fn evaluate(bencher: Bencher<'_, '_>, id: &str) {
    let (_, definition) = sample::DATA_SOURCES.iter().find(|(known, _)| *known == id).unwrap();
    let source = DataSource::compile(&serde_json::from_str(definition).unwrap()).unwrap();
    let documents: Vec<_> = documents(source.kind(), |subtype| source.accepts_subtype(subtype))
        .into_iter()
        .map(|document| (read(document), document.stamp))
        .collect();
    let cases = PRESENT.iter().filter(|document| document.kind == DocKind::Case);
    let mut cases = Cases(cases.map(|document| (document.id.as_str().to_owned(), read(document))).collect());
    bencher.counter(ItemsCount::new(documents.len())).bench_local(|| {
        documents.iter().map(|(doc, stamp)| source.evaluate(doc, *stamp, 0, &mut cases).unwrap().len()).sum::<usize>()
    });
}
