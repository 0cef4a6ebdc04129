//! Looking inside: where rows come from, what is held, what views cost.

use schemas::inside::{
    Arrival, Asked, Explained, Held, Members, Origin, Outcome, Provenance, ProvenanceError, ProvenanceQuestion,
};

use super::*;
use crate::relation::RelationKind;

const NOW: i64 = 1_000_000;

async fn explain(dataflow: &Dataflow, view: &str, key: Option<&str>) -> Result<Explained, ProvenanceError> {
    let domain = DomainId::new(DOMAIN).unwrap();
    let question = ProvenanceQuestion { domain, view: view.to_owned(), key: key.map(str::to_owned) };
    dataflow.provenance(question, Duration::from_secs(30)).await
}

fn held(dataflow: &Dataflow, part: &str) -> Vec<(String, u64)> {
    let measured = dataflow.measured(&DomainId::new(DOMAIN).unwrap());
    measured.held.into_iter().filter(|held| held.part == part).map(|held| (held.name, held.count)).collect()
}

/// Related documents, and which were asked for.
struct Noting<'a>(All<'a>, Vec<(&'static str, String)>);

impl Related for Noting<'_> {
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc> {
        let question = RelationKind::of(relation).map(|kind| (kind.name(), key.to_owned()));
        self.1.extend(question.filter(|question| !self.1.contains(question)));
        self.0.get(relation, key)
    }
}

/// Compares what is said of every document in every data source, and of documents held, with what is so.
pub(super) async fn compare(documents: &Present, dataflow: &Dataflow) {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, _) in documents.keys().filter(|(kind, _)| !kind.is_definition()) {
        *counts.entry(kind.name()).or_default() += 1;
    }
    let present: BTreeMap<String, u64> = held(dataflow, "documents").into_iter().filter(|(_, n)| *n > 0).collect();
    assert!(present.iter().map(|(kind, n)| (kind.as_str(), *n)).eq(counts), "{present:?}");
    for ((_, view), (_, body)) in
        documents.iter().filter(|((kind, id), _)| *kind == DocKind::DataSource && id != "watch")
    {
        let source = DataSource::compile(body).unwrap();
        for ((kind, id), (stamp, body)) in documents.iter().filter(|((kind, _), _)| *kind == source.kind()) {
            let mut noting = Noting(All(documents, 0), Vec::new());
            let made = source.evaluate(&Doc::from_value(body).unwrap(), Stamp(*stamp), 0, &mut noting);
            let explained = explain(dataflow, view, Some(id)).await.unwrap();
            let Provenance::Rows { document, is_there, outcome, asked } = explained.provenance else {
                panic!("a data source has rows")
            };
            assert_eq!(
                (document.kind, document.id.as_str(), document.stamp.0, is_there),
                (*kind, id.as_str(), *stamp, true)
            );
            assert_eq!(outcome, Outcome::Rows(made.unwrap().len()), "{view} {id}");
            let questions: Vec<_> = asked.iter().map(|asked| (asked.relation, asked.id.clone())).collect();
            assert_eq!(questions, noting.1, "{view} {id}");
            for asked in asked {
                let Some(kind) = DocKind::from_name(asked.relation) else { continue };
                let stamp = documents.get(&(kind, asked.id)).map(|(stamp, _)| *stamp);
                assert!(asked.documents.iter().map(|origin| origin.stamp.0).eq(stamp), "{view} {id}");
            }
        }
    }
}

fn case(id: &str, case_type: &str, forms: &[&str], more: &Value) -> Written {
    let mut body =
        json!({"_id": id, "domain": DOMAIN, "doc_type": "CommCareCase", "type": case_type, "xform_ids": forms});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    (DocKind::Case, id.to_owned(), Some(body))
}

fn other(kind: DocKind, id: &str, doc_type: &str, name: &str, value: &str) -> Written {
    let mut body = json!({"_id": id, "domain": DOMAIN, "doc_type": doc_type});
    body[name] = json!(value);
    (kind, id.to_owned(), Some(body))
}

fn definitions() -> Vec<Written> {
    let source = |id: &str, body| (DocKind::DataSource, id.to_owned(), Some(body));
    let view = |id: &str, body| (DocKind::AggregateView, id.to_owned(), Some(body));
    vec![
        source("children", children(false)),
        source("mothers", mothers()),
        source("workers", simple("workers", "CommCareUser", &[("user_id", "_id"), ("location_id", "location_id")])),
        source(
            "places",
            simple("places", "Location", &[("place_id", "_id"), ("name", "name"), ("parent", "parent_id")]),
        ),
        view("kilos", kilos()),
        view("by_place", by_place(false)),
        source("never", json!({"doc_type": "DataSourceConfiguration"})),
    ]
}

async fn started(workers: i64, documents: Vec<Written>) -> (Store, Arc<Dataflow>) {
    let store = Store::default();
    store.0.lock().commit(definitions());
    let position = store.0.lock().commit(documents);
    let clock = Arc::new(SetClock(AtomicI64::new(NOW)));
    let dataflow = Dataflow::start(config(workers), Arc::new(store.clone()), None, clock);
    visible(&dataflow, position).await;
    (store, dataflow)
}

async fn visible(dataflow: &Dataflow, position: Position) -> Arc<Snapshot> {
    while !dataflow.ready() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    dataflow.wait_for(&DomainId::new(DOMAIN).unwrap(), position, Duration::from_secs(30)).await.unwrap()
}

fn family() -> Vec<Written> {
    vec![
        other(DocKind::Location, "p", "Location", "name", "Oak"),
        other(DocKind::User, "w", "CommCareUser", "location_id", "p"),
        case("m", "mother", &["f1"], &json!({"owner_id": "w", "risk": "low"})),
        case("c1", "child", &["f1"], &json!({"mother_ref": "m", "kg": "2.5"})),
        case("c2", "child", &["f2"], &json!({"mother_ref": "m", "kg": "3.5"})),
        case("orphan", "child", &["f3"], &json!({"mother_ref": "nobody", "kg": "4"})),
    ]
}

#[tokio::test]
async fn a_row_names_the_documents_that_made_it_and_the_records_that_brought_them() {
    for workers in 1..=3 {
        let (store, dataflow) = started(workers, family()).await;
        let mother = case("m", "mother", &["f1", "f7"], &json!({"owner_id": "w", "risk": "high"}));
        let position = store.0.lock().commit(vec![mother]);
        visible(&dataflow, position).await;
        let stamp = |kind, id: &str| Stamp(store.0.lock().documents[&(kind, id.to_owned())].0);
        let origin = |kind, id: &str, form: Option<&str>, arrival| Origin {
            kind,
            id: DocId::new(id).unwrap(),
            stamp: stamp(kind, id),
            form: form.map(str::to_owned),
            arrival,
        };
        let before = || Arrival::Before(NOW);
        let came = Arrival::Record { position, visible_at: Some(NOW) };
        let asked = |relation, id: &str, documents| Asked { relation, id: id.to_owned(), documents };
        let explained = explain(&dataflow, "children", Some("c1")).await.unwrap();
        assert!(explained.snapshot.moment.complete_through.covers(position));
        let expected = Provenance::Rows {
            document: origin(DocKind::Case, "c1", Some("f1"), before()),
            is_there: true,
            outcome: Outcome::Rows(1),
            asked: vec![
                asked("case", "m", vec![origin(DocKind::Case, "m", Some("f7"), came)]),
                asked("user", "w", vec![origin(DocKind::User, "w", None, before())]),
                asked("location", "p", vec![origin(DocKind::Location, "p", None, before())]),
            ],
        };
        assert_eq!(explained.provenance, expected, "{workers} workers");

        let Provenance::Rows { asked, .. } = explain(&dataflow, "children", Some("orphan")).await.unwrap().provenance
        else {
            panic!("a data source has rows")
        };
        assert_eq!((asked[0].id.as_str(), asked[0].documents.len()), ("nobody", 0), "a document that is missing shows");

        let heavy = case("c1", "child", &["f8"], &json!({"mother_ref": "m", "kg": "9".repeat(30)}));
        let position = store.0.lock().commit(vec![heavy, (DocKind::Case, "c2".to_owned(), None)]);
        visible(&dataflow, position).await;
        let of = async |key| match explain(&dataflow, "children", Some(key)).await.unwrap().provenance {
            Provenance::Rows { document, is_there, outcome, .. } => (document.form, is_there, outcome),
            Provenance::Groups { .. } => panic!("a data source has rows"),
        };
        let (form, _, outcome) = of("c1").await;
        assert!(matches!(outcome, Outcome::Failed(why) if !why.is_empty()));
        assert_eq!(form.as_deref(), Some("f8"));
        assert_eq!(of("c2").await, (None, false, Outcome::Rows(0)), "it is gone for good");
        assert_eq!(of("m").await, (Some("f7".to_owned()), true, Outcome::Rows(0)), "it is no child");
        dataflow.shutdown().await;
        assert_eq!(explain(&dataflow, "children", Some("c1")).await.unwrap_err(), ProvenanceError::Unavailable);
    }
}

#[tokio::test]
async fn a_group_names_its_base_rows_unless_they_come_through_joins() {
    let (_, dataflow) = started(2, family()).await;
    let groups = async |view, key| match explain(&dataflow, view, key).await?.provenance {
        Provenance::Groups { sources, members } => {
            Ok((sources.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), members))
        }
        Provenance::Rows { .. } => panic!("an aggregate view has groups"),
    };
    let (sources, members) = groups("kilos", Some(r#"["low"]"#)).await.unwrap();
    let mut members = members.unwrap();
    members.documents.sort();
    assert_eq!(sources, "ucr.children");
    assert_eq!(members, Members { rows: 2, documents: vec!["c1".to_owned(), "c2".to_owned()] });
    let orphans = groups("views.kilos", Some("[null]")).await.unwrap().1.unwrap();
    assert_eq!(orphans, Members { rows: 1, documents: vec!["orphan".to_owned()] });
    assert_eq!(groups("kilos", None).await.unwrap(), ("ucr.children".to_owned(), None));
    let joined = groups("by_place", None).await.unwrap();
    assert_eq!(joined, ("ucr.mothers ucr.workers ucr.places ucr.places".to_owned(), None));
    for (view, key) in
        [("kilos", r#"["high"]"#), ("kilos", "[1]"), ("kilos", "low"), ("kilos", "[]"), ("by_place", r#"["Elm"]"#)]
    {
        let refused = groups(view, Some(key)).await.unwrap_err();
        assert!(matches!(refused, ProvenanceError::UnknownGroup { .. }), "{view} {key}: {refused}");
    }
    dataflow.shutdown().await;
}

#[tokio::test]
async fn questions_that_have_no_answer_are_told_why() {
    let (_, dataflow) = started(2, family()).await;
    let refused = async |view, key| explain(&dataflow, view, key).await.unwrap_err();
    let unknown = |id: &str| ProvenanceError::UnknownDocument { kind: DocKind::Case, id: id.to_owned() };
    assert_eq!(refused("nothing", Some("c1")).await, ProvenanceError::UnknownView { view: "nothing".to_owned() });
    assert_eq!(refused("never", Some("c1")).await, ProvenanceError::NotReady { view: "never".to_owned() });
    assert_eq!(refused("children", Some("c9")).await, unknown("c9"));
    assert_eq!(refused("children", Some("")).await, unknown(""));
    assert_eq!(refused("children", None).await, ProvenanceError::NoKey);
    let question = ProvenanceQuestion {
        domain: DomainId::new("elsewhere").unwrap(),
        view: "children".to_owned(),
        key: Some("c1".to_owned()),
    };
    let elsewhere = dataflow.provenance(question, Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(elsewhere, ProvenanceError::UnknownView { view: "children".to_owned() });
    dataflow.shutdown().await;
}

/// A clock that stands still while the lock is held, and with it the thread that asks it.
#[derive(Debug, Default)]
struct Stopped(PlainMutex<()>);

impl Clock for Stopped {
    fn now_micros(&self) -> i64 {
        let _held = self.0.lock();
        NOW
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_to_workers_that_are_busy_times_out() {
    let store = Store::default();
    store.0.lock().commit(definitions());
    let position = store.0.lock().commit(family());
    let clock = Arc::new(Stopped::default());
    let dataflow = Dataflow::start(config(2), Arc::new(store.clone()), None, Arc::<Stopped>::clone(&clock));
    visible(&dataflow, position).await;
    let question = ProvenanceQuestion {
        domain: DomainId::new(DOMAIN).unwrap(),
        view: "children".to_owned(),
        key: Some("c1".to_owned()),
    };
    let after = Duration::from_millis(20);
    let late = tokio::task::block_in_place(|| {
        let _held = clock.0.lock();
        tokio::runtime::Handle::current().block_on(dataflow.provenance(question, after))
    });
    assert_eq!(late.unwrap_err(), ProvenanceError::Timeout { after });
    assert!(explain(&dataflow, "children", Some("c1")).await.is_ok(), "the next one is answered");
    dataflow.shutdown().await;
}

#[tokio::test]
async fn what_is_held_is_counted_as_it_comes_and_goes() {
    for workers in 1..=3 {
        let mut documents = family();
        documents.push(other(DocKind::Group, "g", "Group", "name", "G"));
        let (store, dataflow) = started(workers, documents).await;
        let counts = |part| {
            held(&dataflow, part).into_iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(counts("documents"), "case 4, user 1, location 1, group 1");
        // Three children ask for their mothers, two of them for her worker and the place; the mother for what is hers.
        assert_eq!(counts("questions"), "case 3, user 2, location 2, subcases 1, case_sharing_groups 1");
        assert_eq!(counts("answers"), "case 2, user 2, location 2");
        // Places are joined twice, by two sets of columns.
        assert_eq!(counts("index"), "places 2, workers 1");
        assert_eq!(counts("joins"), "by_place 2");
        assert_eq!(counts("groups"), "kilos 2");
        let size = |name: &str| {
            let measured = dataflow.measured(&DomainId::new(DOMAIN).unwrap());
            let found = measured.held.into_iter().find(|held| held.part == "documents" && held.name == name);
            found.map(|Held { bytes, .. }| bytes.unwrap()).unwrap()
        };
        let before = size("case");
        let long = json!({"mother_ref": "m", "kg": "1", "note": "x".repeat(5000)});
        let index = json!({"owner_id": "w", "indices": [{"referenced_id": "m"}]});
        let position = store.0.lock().commit(vec![
            case("c1", "child", &["f1"], &long),
            case("second", "mother", &[], &index),
            (DocKind::Case, "orphan".to_owned(), None),
            (DocKind::Location, "p".to_owned(), None),
        ]);
        visible(&dataflow, position).await;
        let grown = size("case") - before;
        assert!((5000..6000).contains(&grown), "{grown}");
        // What is gone keeps its place, which is bytes.
        assert_eq!(counts("documents"), "case 4, user 1, location 0, group 1");
        assert_eq!(counts("questions"), "case 2, user 2, location 2, subcases 2, case_sharing_groups 2");
        // The mother that is a subcase: in the answer, and with who asked for it.
        assert_eq!(counts("answers"), "case 2, user 2, subcases 2");
        assert_eq!(counts("index"), "workers 1");
        assert_eq!(counts("joins"), "by_place 4");
        assert_eq!(counts("groups"), "kilos 1");
        let costs = dataflow.measured(&DomainId::new(DOMAIN).unwrap()).costs;
        let cost = |view: &str| costs.iter().find(|cost| cost.view == view).map(|cost| (cost.kind, cost.changes));
        assert!(costs.iter().all(|cost| cost.changes == 0 || cost.nanos > 0), "{costs:?}");
        assert_eq!(cost("workers"), Some(("data_source", 1)));
        assert_eq!(cost("places"), Some(("data_source", 2)));
        assert!(cost("kilos").is_some_and(|(kind, changes)| kind == "aggregate_view" && changes >= 3));

        let gone = |kind, id: &str| (kind, id.to_owned(), None);
        let position = store.0.lock().commit(vec![
            gone(DocKind::AggregateView, "kilos"),
            gone(DocKind::AggregateView, "by_place"),
            gone(DocKind::DataSource, "children"),
        ]);
        visible(&dataflow, position).await;
        assert_eq!(counts("questions"), "subcases 2, case_sharing_groups 2");
        assert_eq!(counts("answers"), "subcases 2");
        let until = Instant::now() + Duration::from_secs(30);
        while !["index", "joins", "groups"].map(counts).iter().all(String::is_empty) {
            assert!(Instant::now() < until, "aggregate views were not forgotten");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        dataflow.shutdown().await;
    }
}
