use std::collections::{HashMap, HashSet};

use super::*;
use crate::load::program::form::FormKind;

fn program(seed: u64, run: u64, forms: u64) -> Program {
    Program::new(Population::generate(seed, 100, "demo", "secret"), seed, run, Some(forms), Some(forms))
}

/// Takes everything, acknowledging each at once.
fn all(mut program: Program) -> (Vec<Submission>, Vec<Move>) {
    let (mut forms, mut moves) = (Vec::new(), Vec::new());
    loop {
        match program.next() {
            Next::Form(form) => {
                program.ended(form.ticket, Ended::Acknowledged);
                forms.push(form);
            }
            Next::Move(next) => {
                program.ended(next.ticket, Ended::Acknowledged);
                moves.push(next);
            }
            Next::Busy => panic!("nothing is under way"),
            Next::End => return (forms, moves),
        }
    }
}

fn kind_of(form: &Submission) -> FormKind {
    let (_, rest) = form.xml.split_once("<data xmlns=\"").unwrap();
    FormKind::from_xmlns(rest.split_once('"').unwrap().0).unwrap()
}

#[test]
fn forms_are_decided_by_seed_and_run() {
    let xml = |seed, run| all(program(seed, run, 300)).0.iter().map(|form| Arc::clone(&form.xml)).collect::<Vec<_>>();
    let (a, b, second_run) = (xml(7, 1), xml(7, 1), xml(7, 2));
    assert_eq!(a, b);
    let ids = |run| {
        all(program(7, run, 300))
            .0
            .into_iter()
            .flat_map(|form| [form.effects.form, form.effects.mother])
            .collect::<HashSet<_>>()
    };
    assert!(ids(1).is_disjoint(&ids(2)));
    assert_ne!(a, second_run);
}

#[test]
fn shares_and_sizes_are_those_of_the_shared_workload() {
    let (forms, moves) = all(program(1, 1, 30_000));
    assert_eq!(forms.len(), 30_000);
    let mut kinds: HashMap<FormKind, usize> = HashMap::new();
    let mut novelties: HashMap<Novelty, usize> = HashMap::new();
    for form in &forms {
        *kinds.entry(kind_of(form)).or_default() += 1;
        *novelties.entry(form.novelty).or_default() += 1;
    }
    let share = |count: usize| count as f64 / forms.len() as f64;
    for (kind, low, high) in [
        (FormKind::Registration, 0.22, 0.26),
        (FormKind::AncVisit, 0.44, 0.52),
        (FormKind::Delivery, 0.08, 0.12),
        (FormKind::PncVisit, 0.13, 0.19),
        (FormKind::Closing, 0.012, 0.028),
    ] {
        let share = share(kinds[&kind]);
        assert!((low..high).contains(&share), "{kind:?}: {share}");
    }
    assert!((0.025..0.035).contains(&share(novelties[&Novelty::Edit])), "{novelties:?}");
    assert!((0.015..0.025).contains(&share(novelties[&Novelty::Duplicate])), "{novelties:?}");
    let sizes = forms.iter().map(|form| form.xml.len());
    let mean = sizes.clone().sum::<usize>() / forms.len();
    assert!(sizes.clone().min() > Some(1_700) && sizes.max() < Some(5_000), "sizes out of range");
    assert!((2_500..3_300).contains(&mean), "mean size {mean}");
    let count = |what| moves.iter().filter(|next| next.what == what).count();
    assert_eq!((count(Moved::Worker), count(Moved::Place)), (15, 1));
}

#[test]
fn every_form_parses_and_says_what_its_effects_say() {
    for form in all(program(3, 1, 3_000)).0 {
        let mut reader = quick_xml::Reader::from_str(&form.xml);
        reader.config_mut().check_end_names = true;
        let (mut depth, mut items, mut cases) = (0_i32, 0, Vec::new());
        loop {
            use quick_xml::events::Event;
            match reader.read_event().unwrap() {
                Event::Start(tag) => {
                    depth += 1;
                    match tag.local_name().as_ref() {
                        "items" => items += 1,
                        "case" => {
                            let id = tag.try_get_attribute("case_id").unwrap().unwrap();
                            cases.push(id.value.to_string());
                        }
                        _ => {}
                    }
                }
                Event::End(_) => depth -= 1,
                Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!(depth, 0);
        assert_eq!(items, form.effects.items);
        let expected: Vec<&str> =
            std::iter::once(&form.effects.mother).chain(&form.effects.children).map(|id| &**id).collect();
        assert_eq!(cases, expected);
        assert_eq!(form.effects.visit.is_some(), kind_of(&form).is_visit());
    }
}

#[test]
fn a_worker_waits_for_the_answer_to_the_last_form() {
    let mut program = program(1, 1, 1_000);
    let mut under_way = Vec::new();
    while let Next::Form(form) = program.next() {
        under_way.push(form);
    }
    let workers: HashSet<usize> = under_way.iter().map(|form| form.worker).collect();
    assert_eq!((workers.len(), under_way.len()), (100, 100), "each worker once");
    program.ended(under_way[17].ticket, Ended::Acknowledged);
    let Next::Form(next) = program.next() else { panic!("a worker is idle") };
    assert_eq!(next.worker, under_way[17].worker);
}

#[test]
fn nothing_is_sent_before_what_it_builds_on_was_acknowledged() {
    let mut program = program(11, 1, 20_000);
    let mut stream = Stream::new(99);
    let (mut known, mut sent, mut under_way) = (HashSet::new(), HashSet::new(), Vec::new());
    loop {
        match program.next() {
            Next::Form(form) => {
                let created = form.xml.matches("<create>").count();
                let cases: Vec<_> = std::iter::once(&form.effects.mother).chain(&form.effects.children).collect();
                let old = if form.novelty == Novelty::New { cases.len() - created } else { cases.len() };
                for case in &cases[..old] {
                    assert!(known.contains(*case), "case {case} is used before it was acknowledged");
                }
                assert_eq!(sent.insert(Arc::clone(&form.effects.form)), form.novelty == Novelty::New);
                under_way.push(form);
            }
            Next::Move(next) => program.ended(next.ticket, Ended::Acknowledged),
            Next::Busy => {}
            Next::End => break,
        }
        if under_way.len() > 40 {
            let form = under_way.swap_remove(stream.index(under_way.len()));
            program.ended(form.ticket, Ended::Acknowledged);
            known.extend(std::iter::once(form.effects.mother).chain(form.effects.children));
        }
    }
}

#[test]
fn a_worker_whose_form_was_refused_stops() {
    let mut program = program(1, 1, 10_000);
    let Next::Form(refused) = program.next() else { panic!("the first is a form") };
    program.ended(refused.ticket, Ended::Failed);
    for form in all(program).0 {
        assert_ne!(form.worker, refused.worker);
    }
}
