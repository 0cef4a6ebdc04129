//! Builds beside what is published: at every point of a walk, published tables are what their definitions say, and a
//! build that is waiting, held, given up or replaced shows nothing of itself.

use schemas::{
    difference::Difference,
    table::{PREVIEW_SCHEMAS, PreviewState, ViewStatus},
};

use super::{driven::*, *};

const SOURCES: [&str; 3] = ["children", "visits", "mothers"];
const VIEWS: [&str; 2] = ["by_risk", "by_place"];

/// A row for each visit of a child, with the risk of the mother.
fn visits(extra: bool) -> Value {
    let mut indicators = vec![
        column("place", "string", &property("place")),
        column(
            "risk",
            "string",
            &json!({"type": "root_doc", "expression": related(&property("mother_ref"), "CommCareCase", "risk")}),
        ),
    ];
    if extra {
        indicators.push(column("kg", "decimal", &property("kg")));
    }
    json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "visits", "referenced_doc_type": "CommCareCase",
        "configured_filter": {"type": "boolean_expression", "operator": "eq", "expression": property("type"), "property_value": "child"},
        "base_item_expression": property("visits"), "configured_indicators": indicators})
}

/// Mothers; those of one risk, or all.
fn some_mothers(high: bool) -> Value {
    let is = |name: &str, value: &str| json!({"type": "boolean_expression", "operator": "eq", "expression": property(name), "property_value": value});
    let mut definition = mothers();
    if high {
        definition["configured_filter"] = json!({"type": "and", "filters": [is("type", "mother"), is("risk", "high")]});
    }
    definition
}

fn by_risk(extra: bool) -> Value {
    let mut aggregates =
        vec![json!({"function": "count", "as": "n"}), json!({"function": "sum", "column": "c.kg", "as": "kg"})];
    if extra {
        aggregates.push(json!({"function": "max", "column": "c.kg", "as": "most"}));
    }
    json!({"from": {"table": "children", "as": "c"}, "joins": [{"table": "mothers", "as": "m", "on": {"c.mother": "m.doc_id"}}],
        "group_by": [{"column": "m.risk"}, {"column": "c.mother_risk"}], "aggregates": aggregates})
}

fn visits_by_place(extra: bool) -> Value {
    let function = if extra { "count_distinct" } else { "count" };
    json!({"from": {"table": "visits"}, "group_by": [{"column": "place"}],
        "aggregates": [{"function": function, "column": "risk", "as": "n"}]})
}

/// Children with what they have of their mother.
fn plain_children(extra: bool) -> Value {
    let mut definition = children(extra);
    let indicators = definition["configured_indicators"].as_array_mut().unwrap();
    indicators.push(column("mother", "string", &property("mother_ref")));
    definition
}

fn definition(id: &str, extra: bool) -> (DocKind, String, Value) {
    let (kind, body) = match id {
        "children" => (DocKind::DataSource, plain_children(extra)),
        "visits" => (DocKind::DataSource, visits(extra)),
        "mothers" => (DocKind::DataSource, some_mothers(extra)),
        "by_risk" => (DocKind::AggregateView, by_risk(extra)),
        _ => (DocKind::AggregateView, visits_by_place(extra)),
    };
    (kind, id.to_owned(), body)
}

fn put(id: &str, extra: bool) -> (DocKind, String, Option<Value>) {
    let (kind, id, body) = definition(id, extra);
    (kind, id, Some(body))
}

fn paused(id: &str, extra: bool) -> (DocKind, String, Option<Value>) {
    let (kind, id, mut body) = definition(id, extra);
    body["paused"] = json!(true);
    (kind, id, Some(body))
}

/// A definition, and another that is to be compared with it.
fn previewed(id: &str, extra: bool, proposed: bool) -> (DocKind, String, Option<Value>) {
    let (kind, id, mut body) = definition(id, extra);
    body["preview"] = definition(&id, proposed).2;
    (kind, id, Some(body))
}

fn everything() -> Vec<(DocKind, String, Option<Value>)> {
    SOURCES.iter().chain(&VIEWS).map(|id| put(id, false)).collect()
}

fn mother(id: usize, high: bool) -> (DocKind, String, Option<Value>) {
    let body = json!({"_id": format!("m{id}"), "domain": DOMAIN, "doc_type": "CommCareCase", "type": "mother",
        "owner_id": format!("w{}", id % 3), "risk": if high { "high" } else { "low" }, "indices": []});
    (DocKind::Case, format!("m{id}"), Some(body))
}

fn child(id: usize, mother: usize, visits: usize) -> (DocKind, String, Option<Value>) {
    let visits: Vec<Value> =
        (0..visits).map(|n| json!({"place": format!("p{}", n % 3), "kg": format!("{n}.5")})).collect();
    let body = json!({"_id": format!("c{id}"), "domain": DOMAIN, "doc_type": "CommCareCase", "type": "child",
        "mother_ref": format!("m{mother}"), "kg": format!("{}.5", id % 9), "visits": visits,
        "indices": [{"identifier": "mother", "referenced_type": "mother", "referenced_id": format!("m{mother}"), "relationship": "child"}]});
    (DocKind::Case, format!("c{id}"), Some(body))
}

fn families(count: usize) -> Vec<(DocKind, String, Option<Value>)> {
    (0..12).map(|id| mother(id, id % 3 == 0)).chain((0..count).map(|id| child(id, id % 14, id % 4))).collect()
}

fn status(snapshot: &Snapshot, id: &str) -> ViewStatus {
    let views = &snapshot.domains[&DomainId::new(DOMAIN).unwrap()].views;
    views.iter().find(|view| view.id == id).unwrap_or_else(|| panic!("no view {id}")).clone()
}

fn state(driven: &Driven<'_>, id: &str) -> ViewState {
    status(&driven.snapshot(), id).state
}

fn rows(driven: &Driven<'_>, id: &str) -> Option<Vec<Row>> {
    let schema = if SOURCES.contains(&id) { "ucr" } else { "views" };
    Some(content(table(&driven.snapshot(), schema, id)?))
}

/// What a published table has to hold, by the definition that it is of.
fn expected(driven: &Driven<'_>, id: &str) -> Option<Vec<Row>> {
    let snapshot = driven.snapshot();
    let published = |id: &str| status(&snapshot, id).published;
    let source = |id: &str| DataSource::compile(&*published(id)?).ok();
    if SOURCES.contains(&id) {
        return Some(rows_of(&source(id)?, &driven.world.documents));
    }
    let schemas = |table: &str| Some(Arc::new(source(table)?.schema().clone()));
    let view = AggregateView::compile(&*published(id)?, &schemas).unwrap();
    let mut groups = groups_of(&view, &|table| rows_of(&source(table).unwrap(), &driven.world.documents));
    groups.sort();
    Some(groups)
}

fn views(driven: &Driven<'_>) -> Arc<[ViewStatus]> {
    Arc::clone(&driven.snapshot().domains[&DomainId::new(DOMAIN).unwrap()].views)
}

/// Compares every table that is maintained with its definition's rows, computed from scratch. Those of `kept` are of
/// views that have been paused and are not live again.
fn compare_published(driven: &Driven<'_>, kept: &BTreeMap<String, Vec<Row>>) {
    for ViewStatus { id, state, .. } in views(driven).iter() {
        if kept.contains_key(id) || matches!(state, ViewState::Paused { .. } | ViewState::Failed { .. }) {
            continue;
        }
        let (Some(found), Some(expected)) = (rows(driven, id), expected(driven, id)) else { continue };
        // The stamp of a group is not told by its rows.
        let stamp = table(&driven.snapshot(), "views", id).map(|table| table.schema.position("updated_at").unwrap());
        let found = stamp.map_or(found.clone(), |column| without(found, column));
        assert_eq!(found, expected, "{id}");
    }
}

#[test]
fn few_builds_go_on_at_once_and_all_tell_how_far_they_are() {
    drive(
        DataflowConfig::default(),
        7_000_000,
        |_| (),
        |driven| {
            driven.commit(families(700));
            let many = (0..6).map(|n| {
                let mut body = plain_children(false);
                body["table_id"] = json!(format!("children{n}"));
                (DocKind::DataSource, format!("children{n}"), Some(body))
            });
            driven.commit(many.collect());
            let states =
                |driven: &Driven<'_>| (0..6).map(|n| state(driven, &format!("children{n}"))).collect::<Vec<_>>();
            driven.idle();
            let begun = states(driven);
            assert!(begun[..4].iter().all(|state| matches!(state, ViewState::Building(_))), "{begun:?}");
            assert_eq!(begun[4..], [ViewState::Waiting, ViewState::Waiting]);
            let ViewState::Building(progress) = &begun[0] else { panic!("{begun:?}") };
            assert!(
                progress.done > 0 && progress.done < progress.total && progress.seconds_left.is_some(),
                "{progress:?}"
            );
            assert_eq!((progress.total, progress.started_at), (712, 7_000_000));
            while states(driven).contains(&ViewState::Waiting) {
                let building = states(driven).iter().filter(|state| matches!(state, ViewState::Building(_))).count();
                assert_eq!(building, 4);
                driven.idle();
            }
            driven.settle();
            assert_eq!(states(driven), vec![ViewState::Live; 6]);
            let sizes: Vec<usize> =
                (0..6).map(|n| table(&driven.snapshot(), "ucr", &format!("children{n}")).unwrap().live_rows).collect();
            assert_eq!(sizes, [700; 6]);
        },
    );
}

#[test]
fn a_small_build_does_not_wait_for_a_large_one() {
    drive(
        DataflowConfig::default(),
        0,
        |_| (),
        |driven| {
            driven.commit(families(700));
            let body = json!({"_id": "w1", "domain": DOMAIN, "doc_type": "CommCareUser", "location_id": "p1"});
            driven.commit(vec![(DocKind::User, "w1".to_owned(), Some(body))]);
            driven.commit(vec![put("children", false)]);
            let small = simple("workers", "CommCareUser", &[("location_id", "location_id")]);
            driven.commit(vec![(DocKind::DataSource, "workers".to_owned(), Some(small))]);
            while state(driven, "workers") != ViewState::Live {
                assert!(driven.walking());
                driven.idle();
            }
            assert!(matches!(state(driven, "children"), ViewState::Building(_)));
            driven.settle();
            assert_eq!(table(&driven.snapshot(), "ucr", "children").unwrap().live_rows, 700);
        },
    );
}

#[test]
fn a_paused_view_keeps_its_last_table_and_catches_up_when_it_is_resumed() {
    drive(
        DataflowConfig::default(),
        0,
        |_| (),
        |driven| {
            driven.commit(families(300));
            driven.commit(everything());
            driven.settle();
            compare_published(driven, &BTreeMap::new());
            let kept: Vec<_> = ["children", "by_risk"].iter().map(|id| rows(driven, id)).collect();
            driven.commit(vec![paused("children", false)]);
            driven.commit(vec![child(5, 1, 3), mother(1, true), (DocKind::Case, "c9".to_owned(), None)]);
            driven.settle();
            let still =
                |driven: &Driven<'_>| ["children", "by_risk"].iter().map(|id| rows(driven, id)).collect::<Vec<_>>();
            assert_eq!(still(driven), kept);
            assert_eq!(state(driven, "children"), ViewState::Paused { source: None });
            assert_eq!(state(driven, "by_risk"), ViewState::Paused { source: Some("children".to_owned()) });
            // The others go on.
            assert_eq!(state(driven, "by_place"), ViewState::Live);
            compare_published(driven, &BTreeMap::new());
            // Another definition of what is paused waits as well, be it of the source or of the view over it.
            driven.commit(vec![paused("children", true), put("by_risk", true)]);
            driven.settle();
            assert_eq!(still(driven), kept);
            // Both catch up beside the old tables, and change in one snapshot.
            driven.commit(vec![put("children", true)]);
            while matches!(state(driven, "children"), ViewState::Building(_) | ViewState::Waiting) {
                assert_eq!(still(driven), kept);
                driven.commit(vec![child(7, 2, 1)]);
            }
            let ids = ["children", "by_risk"];
            assert_eq!(ids.map(|id| state(driven, id)), [ViewState::Live, ViewState::Live]);
            assert_eq!(
                ids.map(|id| (*status(&driven.snapshot(), id).published.unwrap()).clone()),
                ids.map(|id| definition(id, true).2)
            );
            compare_published(driven, &BTreeMap::new());
            // What is paused can go.
            driven.commit(vec![paused("by_risk", true), paused("visits", false)]);
            driven.commit(vec![
                (DocKind::AggregateView, "by_risk".to_owned(), None),
                (DocKind::DataSource, "visits".to_owned(), None),
            ]);
            driven.settle();
            assert_eq!((rows(driven, "by_risk"), rows(driven, "visits"), rows(driven, "by_place")), (None, None, None));
            assert!(matches!(state(driven, "by_place"), ViewState::Failed { .. }));
            compare_published(driven, &BTreeMap::new());
        },
    );
}

#[test]
fn a_build_goes_on_where_it_was_after_a_pause() {
    drive(
        DataflowConfig::default(),
        0,
        |_| (),
        |driven| {
            driven.commit(families(700));
            driven.commit(everything());
            driven.settle();
            driven.commit(vec![put("children", true)]);
            driven.idle();
            driven.idle();
            let done = |driven: &Driven<'_>| match state(driven, "children") {
                ViewState::Building(progress) => progress.done,
                other => panic!("{other:?}"),
            };
            let before = done(driven);
            assert!((1..350).contains(&before), "{before}");
            driven.commit(vec![paused("children", true)]);
            // Nothing is left to walk, and what changes meanwhile is not missed.
            driven.commit(vec![
                child(0, 3, 1),
                child(699, 3, 1),
                child(4000, 2, 2),
                (DocKind::Case, "c1".to_owned(), None),
            ]);
            driven.settle();
            driven.commit(vec![put("children", true)]);
            assert!((before..350).contains(&done(driven)), "{} after {before}", done(driven));
            driven.settle();
            assert_eq!(state(driven, "children"), ViewState::Live);
            compare_published(driven, &BTreeMap::new());
        },
    );
}

#[test]
fn a_build_is_given_up_when_the_definition_before_is_put_again() {
    drive(
        DataflowConfig::default(),
        0,
        |_| (),
        |driven| {
            driven.commit(families(700));
            driven.commit(everything());
            driven.settle();
            let tables = |driven: &Driven<'_>| {
                let snapshot = driven.snapshot();
                [table(&snapshot, "ucr", "children"), table(&snapshot, "views", "by_risk")]
                    .map(|table| Arc::clone(table.unwrap()))
            };
            let before = tables(driven);
            driven.commit(vec![put("children", true)]);
            assert!(matches!(state(driven, "children"), ViewState::Building(_)) && driven.walking());
            driven.commit(vec![put("children", false)]);
            driven.settle();
            for id in ["children", "by_risk"] {
                assert_eq!(state(driven, id), ViewState::Live);
            }
            // Nothing was built: the tables are those that were there.
            for (before, after) in before.iter().zip(tables(driven)) {
                assert!(Arc::ptr_eq(before, &after));
            }
            driven.commit(vec![child(3, 1, 2), mother(2, true)]);
            compare_published(driven, &BTreeMap::new());
        },
    );
}

fn preview_of(driven: &Driven<'_>, id: &str) -> Option<PreviewState> {
    status(&driven.snapshot(), id).preview
}

fn difference(driven: &Driven<'_>, id: &str) -> Difference {
    let snapshot = driven.snapshot();
    let tables = &snapshot.domains[&DomainId::new(DOMAIN).unwrap()];
    let (before, after) = tables.previewed(&status(&snapshot, id)).unwrap();
    Difference::between(before, after)
}

#[test]
fn a_preview_is_built_beside_compared_and_taken_or_discarded() {
    drive(
        DataflowConfig::default(),
        0,
        |_| (),
        |driven| {
            driven.commit(families(300));
            driven.commit(everything());
            driven.settle();
            driven.commit(vec![previewed("mothers", false, true), previewed("children", false, true)]);
            assert!(matches!(preview_of(driven, "children"), Some(PreviewState::Building(_))));
            driven.settle();
            let name = TableName::new("ucr_preview", "mothers");
            assert_eq!(preview_of(driven, "mothers"), Some(PreviewState::Complete { table: name }));
            assert_eq!(state(driven, "mothers"), ViewState::Live);
            compare_published(driven, &BTreeMap::new());
            // Four of twelve mothers are at high risk; the published ones stay as they are.
            let found = difference(driven, "mothers");
            assert_eq!((found.appearing, found.vanishing, found.changing, found.unchanged), (0, 8, 0, 4));
            assert_eq!(found.samples.vanishing.len(), 8);
            assert_eq!(found.samples.vanishing[0]["risk"], "low");
            let found = difference(driven, "children");
            assert_eq!((found.columns_added, found.unchanged), (vec!["owner".to_owned()], 300));
            // Both tables follow what changes.
            driven.commit(vec![mother(1, true), mother(20, true), mother(21, false)]);
            let found = difference(driven, "mothers");
            assert_eq!((found.vanishing, found.unchanged), (8, 6));

            // Taking it over builds nothing but what reads it.
            let built = Arc::clone(table(&driven.snapshot(), "ucr_preview", "mothers").unwrap());
            driven.commit(vec![put("mothers", true)]);
            driven.settle();
            assert!(Arc::ptr_eq(&built, table(&driven.snapshot(), "ucr", "mothers").unwrap()));
            assert_eq!((state(driven, "mothers"), preview_of(driven, "mothers")), (ViewState::Live, None));
            assert!(table(&driven.snapshot(), "ucr_preview", "mothers").is_none());
            driven.commit(vec![mother(2, true), mother(3, false)]);
            compare_published(driven, &BTreeMap::new());

            // Discarding it leaves nothing.
            let published = Arc::clone(table(&driven.snapshot(), "ucr", "children").unwrap());
            driven.commit(vec![put("children", false)]);
            driven.settle();
            assert_eq!(preview_of(driven, "children"), None);
            assert!(table(&driven.snapshot(), "ucr_preview", "children").is_none());
            assert!(Arc::ptr_eq(&published, table(&driven.snapshot(), "ucr", "children").unwrap()));

            // A preview that cannot be says so, and so does one whose source goes away.
            let (kind, id, mut body) = definition("by_risk", false);
            body["preview"] = json!({"from": {"table": "nothing"}, "aggregates": [{"function": "count", "as": "n"}]});
            driven.commit(vec![(kind, id, Some(body)), previewed("by_place", false, true)]);
            driven.settle();
            assert!(
                matches!(preview_of(driven, "by_risk"), Some(PreviewState::Failed { message }) if message.contains("nothing"))
            );
            assert!(matches!(preview_of(driven, "by_place"), Some(PreviewState::Complete { .. })));
            driven.commit(vec![(DocKind::DataSource, "visits".to_owned(), None)]);
            assert!(
                matches!(preview_of(driven, "by_place"), Some(PreviewState::Failed { message }) if message.contains("visits"))
            );
            assert!(table(&driven.snapshot(), "views_preview", "by_place").is_none());
        },
    );
}

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Child(usize, usize, usize),
    Mother(usize, bool),
    Delete(usize),
    Orphan(usize),
    Put(&'static str, bool),
    Pause(&'static str, bool),
    Drop(&'static str),
    /// Another definition is proposed beside the one that is stored.
    Preview(&'static str, bool),
    /// Nothing arrives; what is being built goes on.
    Idle,
    Settle,
}

fn step() -> impl Strategy<Value = Step> {
    let view = || prop::sample::select(SOURCES.iter().chain(&VIEWS).copied().collect::<Vec<_>>());
    prop_oneof![
        6 => (0usize..150, 0usize..14, 0usize..4).prop_map(|(id, mother, visits)| Step::Child(id, mother, visits)),
        4 => (0usize..14, any::<bool>()).prop_map(|(id, high)| Step::Mother(id, high)),
        3 => (0usize..150).prop_map(Step::Delete),
        1 => (0usize..14).prop_map(Step::Orphan),
        5 => (view(), any::<bool>()).prop_map(|(id, extra)| Step::Put(id, extra)),
        2 => (view(), any::<bool>()).prop_map(|(id, extra)| Step::Pause(id, extra)),
        1 => view().prop_map(Step::Drop),
        3 => (view(), any::<bool>()).prop_map(|(id, extra)| Step::Preview(id, extra)),
        4 => Just(Step::Idle),
        1 => Just(Step::Settle),
    ]
}

fn history(driven: &mut Driven<'_>, steps: &[Step]) {
    driven.commit(families(140));
    driven.commit(everything());
    let mut kept: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for step in steps {
        let kind = |id| definition(id, false).0;
        match step {
            Step::Child(id, mother, visits) => driven.commit(vec![child(*id, *mother, *visits)]),
            Step::Mother(id, high) => driven.commit(vec![mother(*id, *high)]),
            Step::Delete(id) => driven.commit(vec![(DocKind::Case, format!("c{id}"), None)]),
            Step::Orphan(id) => driven.commit(vec![(DocKind::Case, format!("m{id}"), None)]),
            Step::Put(id, extra) => driven.commit(vec![put(id, *extra)]),
            Step::Pause(id, extra) => driven.commit(vec![paused(id, *extra)]),
            Step::Drop(id) => driven.commit(vec![(kind(id), (*id).to_owned(), None)]),
            Step::Preview(id, extra) => {
                let stored = driven.world.documents.get(&(kind(id), (*id).to_owned()));
                let Some((_, mut body)) = stored.cloned() else { continue };
                body["preview"] = definition(id, *extra).2;
                driven.commit(vec![(kind(id), (*id).to_owned(), Some(body))]);
            }
            Step::Idle => driven.idle(),
            Step::Settle => driven.settle(),
        }
        // At every point, and not only when builds are complete.
        for ViewStatus { id, state, .. } in views(driven).iter() {
            match (rows(driven, id), state) {
                (Some(rows), ViewState::Paused { .. }) => drop(kept.entry(id.clone()).or_insert(rows)),
                (Some(_), ViewState::Building(_) | ViewState::Waiting) => {}
                _ => drop(kept.remove(id)),
            }
            if let Some(kept) = kept.get(id) {
                assert_eq!(rows(driven, id).as_ref(), Some(kept), "{id} is paused");
            }
        }
        compare_published(driven, &kept);
        for id in SOURCES {
            let Some(found) = table(&driven.snapshot(), PREVIEW_SCHEMAS[0], id).map(|table| content(table)) else {
                continue;
            };
            let (_, stored) = &driven.world.documents[&(DocKind::DataSource, id.to_owned())];
            let proposed = DataSource::compile(&stored["preview"]).unwrap();
            assert_eq!(found, rows_of(&proposed, &driven.world.documents), "the preview of {id}");
        }
    }
    driven.settle();
    compare_published(driven, &BTreeMap::new());
    for view in views(driven).iter() {
        assert!(!matches!(view.state, ViewState::Building(_) | ViewState::Waiting), "{view:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 300, ..ProptestConfig::default() })]
    #[test]
    fn at_every_point_of_a_build_published_tables_are_what_their_definitions_say(steps in prop::collection::vec(step(), 1..40)) {
        drive(DataflowConfig::default(), 0, |_| (), move |driven| history(driven, &steps));
    }
}
