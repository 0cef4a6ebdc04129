//! Bench of a submission's pure part: XML to a parsed form, case blocks applied, documents written.
//!
//! Each sample goes over the same thousand forms of the sample program, so divide by 1,000 or read items a second.
#![allow(clippy::unwrap_used, reason = "a bench that cannot be set up ends")]

mod workload;

use std::{collections::BTreeMap, sync::LazyLock};

use divan::{
    Bencher,
    counter::{BytesCount, ItemsCount},
};
use ingest::{
    submit::{
        apply::{CaseState, FormContext, apply_blocks},
        document::case_document,
    },
    xform::ParsedForm,
};
use schemas::{
    id::{CaseId, DomainId},
    sample,
};

pub(crate) use self::workload::load;
use self::workload::{Event, Events, Log, form_json, parsed};

const FORMS: usize = 1_000;
/// Forms before them, so that visits find what they visit.
const BEFORE: usize = 4_000;

struct Sample {
    xml: Vec<String>,
    parsed: Vec<ParsedForm>,
    /// The cases each of them finds.
    found: Vec<BTreeMap<CaseId, CaseState>>,
    domain: DomainId,
}

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let mut log = Log::new().unwrap();
    let mut sample =
        Sample { xml: vec![], parsed: vec![], found: vec![], domain: DomainId::new(sample::DOMAIN).unwrap() };
    let forms = Events::new(100_000).filter_map(|event| match event {
        Event::Form(form) => Some(form.xml.to_string()),
        Event::Move(_) => None,
    });
    for (number, xml) in forms.take(BEFORE + FORMS).enumerate() {
        if number >= BEFORE {
            let form = parsed(&xml).unwrap();
            let ids = form.case_blocks.iter().flatten().map(|block| &block.case_id);
            sample.found.push(ids.filter_map(|id| Some((id.clone(), log.cases.get(id)?.clone()))).collect());
            sample.parsed.push(form);
            sample.xml.push(xml.clone());
        }
        log.form(&xml).unwrap();
    }
    sample
});

fn main() {
    divan::main();
}

#[divan::bench]
fn parse_forms(bencher: Bencher<'_, '_>) {
    let sample = &*SAMPLE;
    bencher
        .counter(ItemsCount::new(FORMS))
        .counter(BytesCount::new(sample.xml.iter().map(String::len).sum::<usize>()))
        .bench(|| sample.xml.iter().map(|xml| parsed(xml).unwrap()).filter(|form| form.case_blocks.is_ok()).count());
}

#[divan::bench]
fn apply_forms(bencher: Bencher<'_, '_>) {
    let sample = &*SAMPLE;
    let blocks: Vec<_> = sample.parsed.iter().map(|form| form.case_blocks.clone().unwrap()).collect();
    bencher.counter(ItemsCount::new(FORMS)).with_inputs(|| (sample.found.clone(), blocks.clone())).bench_values(
        |(mut found, blocks)| {
            for ((cases, blocks), form) in found.iter_mut().zip(blocks).zip(&sample.parsed) {
                let context = FormContext {
                    form_id: &form.form_id,
                    domain: &sample.domain,
                    received_on: 0,
                    server_modified_on: 0,
                };
                divan::black_box(apply_blocks(cases, blocks.into(), &context).unwrap());
            }
            found
        },
    );
}

#[divan::bench]
fn write_documents(bencher: Bencher<'_, '_>) {
    let sample = &*SAMPLE;
    bencher.counter(ItemsCount::new(FORMS)).bench(|| {
        for (form, cases) in sample.parsed.iter().zip(&sample.found) {
            divan::black_box(form_json(form, &sample.domain, 0).unwrap());
            for case in cases.values() {
                divan::black_box(case_document(case, None).unwrap());
            }
        }
    });
}
