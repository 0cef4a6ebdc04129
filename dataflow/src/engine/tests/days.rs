//! Rows that change with the day: at every snapshot they are of one day, and at midnight they are those of the new one.

use std::collections::BTreeSet;

use super::{driven::*, *};

const MINUTE: i64 = 60_000_000;
const DAY: i64 = 24 * 60 * MINUTE;
/// A day in the future of 2000-01-01, when some of the children are born.
const BORN: i64 = 10_957;

fn age() -> Value {
    json!({"type": "diff_days", "from_date_expression": property("dob"), "to_date_expression": {"type": "utcnow"}})
}

fn today() -> Value {
    column("today", "date", &json!({"type": "utcnow"}))
}

/// Children from the fifth day of their lives on, with their age and their mother's risk; `extra` makes another
/// version.
fn ages(extra: bool) -> Value {
    let is_child = json!({"type": "boolean_expression", "operator": "eq", "expression": property("type"), "property_value": "child"});
    let is_old = json!({"type": "boolean_expression", "operator": "gte", "expression": age(), "property_value": 5});
    let mut indicators = vec![
        today(),
        column("age", "integer", &age()),
        column("mother", "string", &property("mother_ref")),
        column("risk", "string", &related(&property("mother_ref"), "CommCareCase", "risk")),
    ];
    if extra {
        indicators.push(column("born", "date", &property("dob")));
    }
    json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "ages", "referenced_doc_type": "CommCareCase",
        "configured_filter": {"type": "and", "filters": [is_child, is_old]}, "configured_indicators": indicators})
}

/// Workers on the day, two rows each.
fn shifts() -> Value {
    json!({"doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "shifts", "referenced_doc_type": "CommCareUser",
        "configured_filter": {}, "configured_indicators": [today(), column("shift", "string", &json!({"type": "property_name", "property_name": "name"}))],
        "base_item_expression": property("shifts"),
        "validations": [{"name": "known", "error_message": "nobody knows this worker",
            "expression": {"type": "boolean_expression", "operator": "not_eq", "expression": property("_id"), "property_value": "w3"}}]})
}

/// Ages by the mother's owner, over a table that does not read the clock and one that does.
fn by_owner(extra: bool) -> Value {
    let mut aggregates = vec![
        json!({"function": "count", "as": "n"}),
        json!({"function": "sum", "column": "a.age", "as": "days"}),
        json!({"function": "max", "column": "a.age", "as": "oldest"}),
    ];
    if extra {
        aggregates.push(json!({"function": "avg", "column": "a.age", "as": "mean"}));
    }
    json!({"from": {"table": "mothers", "as": "m"}, "joins": [{"table": "ages", "as": "a", "on": {"m.doc_id": "a.mother"}}],
        "group_by": [{"column": "m.owner_id", "as": "owner"}, {"column": "a.today"}], "aggregates": aggregates})
}

/// All ages, and the shifts of the same day.
fn totals() -> Value {
    json!({"from": {"table": "ages", "as": "a"}, "group_by": [{"column": "a.today"}],
        "aggregates": [{"function": "count", "as": "n"}, {"function": "sum", "column": "a.age", "as": "days"}]})
}

fn definitions() -> Vec<(DocKind, String, Option<Value>)> {
    let source = |id: &str, body| (DocKind::DataSource, id.to_owned(), Some(body));
    let view = |id: &str, body| (DocKind::AggregateView, id.to_owned(), Some(body));
    vec![
        source("ages", ages(false)),
        source("shifts", shifts()),
        source("mothers", mothers()),
        view("by_owner", by_owner(false)),
        view("totals", totals()),
    ]
}

fn mother(id: i64, owner: i64) -> (DocKind, String, Option<Value>) {
    let body = json!({"_id": format!("m{id}"), "domain": DOMAIN, "doc_type": "CommCareCase", "type": "mother",
        "owner_id": format!("w{owner}"), "risk": if owner % 2 == 0 { "high" } else { "low" }, "indices": []});
    (DocKind::Case, format!("m{id}"), Some(body))
}

fn child(id: i64, mother: i64, born: i64) -> (DocKind, String, Option<Value>) {
    let born = schemas::time::format_micros(born * DAY);
    let body = json!({"_id": format!("c{id}"), "domain": DOMAIN, "doc_type": "CommCareCase", "type": "child",
        "mother_ref": format!("m{mother}"), "dob": born, "indices": []});
    (DocKind::Case, format!("c{id}"), Some(body))
}

fn worker(id: i64) -> (DocKind, String, Option<Value>) {
    let body = json!({"_id": format!("w{id}"), "domain": DOMAIN, "doc_type": "CommCareUser",
        "shifts": [{"name": "early"}, {"name": "late"}]});
    (DocKind::User, format!("w{id}"), Some(body))
}

const DATED: [(&str, &str); 4] = [("ucr", "ages"), ("ucr", "shifts"), ("views", "by_owner"), ("views", "totals")];

/// The day that the rows of a snapshot are of.
fn day_of(snapshot: &Snapshot) -> Option<i64> {
    let tables = DATED.iter().filter_map(|(schema, name)| table(snapshot, schema, name));
    let days: BTreeSet<Cell> = tables.flat_map(|table| values(table, "today")).collect();
    assert!(days.len() <= 1, "rows of several days in one snapshot: {days:?}");
    days.first().map(|day| match day {
        Cell::Date(day) => i64::from(*day),
        other => panic!("{other:?}"),
    })
}

/// What holds at every snapshot: the rows are of one day, an error is told once and of a table that is there, and
/// aggregate views are about the rows that are there.
fn look(snapshot: &Snapshot) {
    day_of(snapshot);
    if let Some(errors) = table(snapshot, "system", "view_errors") {
        let shifts = table(snapshot, "ucr", "shifts");
        assert_eq!(errors.live_rows, shifts.map_or(0, |table| table.errors), "{:?}", content(errors));
    }
    let integers = |table: &Arc<Table>, name: &str| {
        let number = |cell| if let Cell::Int(n) = cell { n } else { panic!("{cell:?}") };
        values(table, name).into_iter().map(number).sum::<i64>()
    };
    let Some(ages) = table(snapshot, "ucr", "ages") else { return };
    for view in ["by_owner", "totals"] {
        if let Some(view) = table(snapshot, "views", view) {
            // Every child has a mother.
            let counted = (integers(view, "n"), integers(view, "days"));
            assert_eq!(counted, (ages.live_rows as i64, integers(ages, "age")));
        }
    }
}

/// Compares every table with what is computed from scratch, today.
fn compare_today(driven: &Driven<'_>) {
    let (world, snapshot, now) = (&driven.world, driven.snapshot(), driven.now());
    let definition = |kind, id: &str| world.documents.get(&(kind, id.to_owned())).map(|(_, body)| body.clone());
    let sources: BTreeMap<&str, DataSource> = ["ages", "shifts", "mothers"]
        .into_iter()
        .filter_map(|id| Some((id, DataSource::compile(&definition(DocKind::DataSource, id)?).unwrap())))
        .collect();
    for (id, source) in &sources {
        let rows = rows_at(source, &world.documents, now);
        assert_eq!(content(table(&snapshot, "ucr", id).unwrap()), rows, "{id}");
    }
    for id in ["by_owner", "totals"] {
        let found = table(&snapshot, "views", id);
        let Some(document) = definition(DocKind::AggregateView, id).filter(|_| sources.contains_key("ages")) else {
            assert!(found.is_none(), "{id} has nothing to read");
            continue;
        };
        let schemas = |table: &str| sources.get(table).map(|source| Arc::new(TableSchema::clone(source.schema())));
        let view = AggregateView::compile(&document, &schemas).unwrap();
        let mut expected = groups_of(&view, &|table| rows_at(&sources[table], &world.documents, now));
        expected.sort();
        assert_eq!(without(content(found.unwrap()), view.group_by.len()), expected, "{id}");
    }
}

/// Several children of each mother, some of them yet to be born.
fn families(count: i64) -> Vec<(DocKind, String, Option<Value>)> {
    let mothers = (0..count.min(8)).map(|id| mother(id, id % 3));
    let children = (0..count).map(|id| child(id, id % 8, BORN - 20 + id % 40));
    mothers.chain(children).chain((0..4).map(worker)).collect()
}

fn midnight(day: i64) -> i64 {
    (BORN + day) * DAY
}

#[test]
fn through_a_year_every_day_begins_at_midnight() {
    drive(DataflowConfig::default(), midnight(0) + MINUTE, look, |driven| {
        driven.commit(definitions());
        driven.commit(families(12));
        for day in 0..365 {
            driven.set(midnight(day) + 7 * 60 * MINUTE);
            driven.commit(vec![child(day % 15, day % 8, BORN + day - day % 9), mother(day % 8, day % 5)]);
            // Some changes fall into the time in which the next day is prepared.
            driven.set(midnight(day + 1) - 29 * MINUTE);
            driven.settle();
            compare_today(driven);
            driven.commit(vec![child(day % 11, day % 7, BORN + day - day % 6), worker(day % 6)]);
            driven.set(midnight(day + 1) - 1);
            driven.idle();
            assert_eq!(day_of(&driven.snapshot()), Some(BORN + day));
            driven.set(midnight(day + 1));
            // What arrives in the first tick of the day is taken in with the rest.
            if day % 2 == 0 {
                driven.idle()
            } else {
                driven.commit(vec![child(day % 13, 1, BORN)])
            }
            compare_today(driven);
            assert_eq!(day_of(&driven.snapshot()), Some(BORN + day + 1));
        }
    });
}

#[test]
fn a_walk_that_goes_on_over_midnight_shows_yesterday_until_it_is_complete() {
    drive(DataflowConfig::default(), midnight(0), look, |driven| {
        driven.commit(definitions());
        driven.commit(families(700));
        driven.settle();
        driven.set(midnight(1) - MINUTE);
        driven.idle();
        assert!(driven.walking(), "the next day is prepared in slices");
        driven.set(midnight(1));
        let mut late = 0;
        while day_of(&driven.snapshot()) == Some(BORN) {
            driven.commit(vec![child(late % 700, 2, BORN - 9), child(700 + late, 3, BORN - 9), worker(late)]);
            late += 1;
        }
        assert!(late > 2, "it took {late} steps");
        compare_today(driven);
    });
}

#[test]
fn views_put_shortly_before_midnight_turn_with_the_rest() {
    drive(DataflowConfig::default(), midnight(1) - MINUTE, look, |driven| {
        driven.commit(families(700));
        driven.commit(definitions());
        assert!(driven.walking());
        driven.settle();
        driven.set(midnight(1));
        driven.idle();
        compare_today(driven);
        // What is begun before midnight and not complete then is begun again, and never shows yesterday.
        driven.set(midnight(2) - 1);
        driven.settle();
        driven.commit(vec![(DocKind::DataSource, "ages".to_owned(), Some(ages(true)))]);
        assert!(driven.walking());
        driven.set(midnight(2));
        driven.idle();
        assert_eq!(day_of(&driven.snapshot()), Some(BORN + 2));
        driven.settle();
        compare_today(driven);
    });
}

#[test]
fn an_aggregate_view_that_lost_its_source_keeps_its_rows_and_the_day_changes_without_it() {
    drive(
        DataflowConfig::default(),
        midnight(1) - MINUTE,
        |_| (),
        |driven| {
            driven.commit(families(30));
            driven.commit(definitions());
            driven.settle();
            let kept = content(table(&driven.snapshot(), "views", "by_owner").unwrap());
            // It joins by a column that is no longer there.
            let mut changed = ages(false);
            changed["configured_indicators"].as_array_mut().unwrap().remove(2);
            driven.commit(vec![(DocKind::DataSource, "ages".to_owned(), Some(changed))]);
            driven.settle();
            driven.set(midnight(1));
            driven.idle();
            let snapshot = driven.snapshot();
            assert_eq!(content(table(&snapshot, "views", "by_owner").unwrap()), kept);
            for (schema, name) in [("ucr", "ages"), ("views", "totals")] {
                let days = values(table(&snapshot, schema, name).unwrap(), "today");
                assert!(!days.is_empty() && days.iter().all(|day| *day == Cell::Date((BORN + 1) as i32)), "{name}");
            }
            driven.commit(vec![(DocKind::DataSource, "ages".to_owned(), Some(ages(false)))]);
            driven.settle();
            look(&driven.snapshot());
            compare_today(driven);
        },
    );
}

#[test]
fn what_is_paused_over_midnight_keeps_its_rows_and_is_begun_again_when_it_is_resumed() {
    drive(
        DataflowConfig::default(),
        midnight(1) - MINUTE,
        |_| (),
        |driven| {
            driven.commit(families(700));
            driven.commit(definitions());
            driven.idle();
            let mut paused = ages(false);
            paused["paused"] = json!(true);
            let put = |body: &Value| vec![(DocKind::DataSource, "ages".to_owned(), Some(body.clone()))];
            driven.commit(put(&paused));
            driven.settle();
            driven.set(midnight(1));
            driven.settle();
            driven.commit(put(&ages(false)));
            driven.settle();
            look(&driven.snapshot());
            compare_today(driven);
            driven.commit(put(&paused));
            let kept = DATED.map(|(schema, name)| content(table(&driven.snapshot(), schema, name).unwrap()));
            driven.set(midnight(2) - MINUTE);
            driven.settle();
            driven.set(midnight(2));
            driven.settle();
            for ((schema, name), kept) in DATED.iter().zip(kept) {
                let is_kept = content(table(&driven.snapshot(), schema, name).unwrap()) == kept;
                assert_eq!(is_kept, *name != "shifts", "{name}");
            }
        },
    );
}

#[test]
fn days_that_were_missed_are_made_good_at_once() {
    drive(DataflowConfig::default(), midnight(0), look, |driven| {
        driven.commit(definitions());
        driven.commit(families(20));
        // Into the middle of a day, into the lead of another, over several with successors of a wrong day, and back.
        for now in
            [midnight(3) + 77, midnight(5) - MINUTE, midnight(5) - 1, midnight(9) + 1, midnight(7), midnight(8) - 5]
        {
            driven.set(now);
            driven.settle();
            compare_today(driven);
        }
        // A clock that is set back over midnight by a little does not take the day back.
        driven.set(midnight(8));
        driven.settle();
        driven.set(midnight(8) - MINUTE);
        driven.settle();
        assert_eq!(day_of(&driven.snapshot()), Some(BORN + 8));
    });
}

#[test]
fn without_lead_the_day_changes_as_soon_as_it_is_computed() {
    drive(DataflowConfig { next_day_lead_s: 0, ..DataflowConfig::default() }, midnight(0), look, |driven| {
        driven.commit(definitions());
        driven.commit(families(20));
        for day in 1..5 {
            driven.set(midnight(day) - 1);
            driven.settle();
            compare_today(driven);
            driven.set(midnight(day));
            driven.settle();
            compare_today(driven);
        }
    });
}

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    /// So many minutes pass.
    Pass(i64),
    /// The clock comes to the next midnight, or stops this many microseconds short of it.
    Midnight(i64),
    Child(i64, i64, i64),
    Delete(i64),
    Mother(i64, i64),
    Worker(i64),
    Ages(Option<bool>),
    ByOwner(Option<bool>),
    Totals(bool),
    /// Compare with the oracle here.
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop_oneof![Just(1i64), Just(29), Just(31), Just(500), Just(1500), Just(9000)].prop_map(Step::Pass),
        3 => prop_oneof![Just(0i64), Just(1), Just(MINUTE)].prop_map(Step::Midnight),
        4 => (0i64..30, 0i64..8, -9i64..20).prop_map(|(id, mother, born)| Step::Child(id, mother, born)),
        1 => (0i64..30).prop_map(Step::Delete),
        2 => (0i64..8, 0i64..4).prop_map(|(id, owner)| Step::Mother(id, owner)),
        1 => (0i64..5).prop_map(Step::Worker),
        1 => prop::option::weighted(0.8, any::<bool>()).prop_map(Step::Ages),
        1 => prop::option::weighted(0.8, any::<bool>()).prop_map(Step::ByOwner),
        1 => any::<bool>().prop_map(Step::Totals),
        2 => Just(Step::Cut),
    ]
}

fn history(driven: &mut Driven<'_>, steps: &[Step]) {
    driven.commit(definitions());
    // More than a slice, so that walks take several steps.
    driven.commit(families(80));
    for step in steps {
        let changes = match step {
            Step::Pass(minutes) => {
                driven.set(driven.now() + minutes * MINUTE);
                vec![]
            }
            Step::Midnight(short) => {
                driven.set((driven.now() + short).div_euclid(DAY) * DAY + DAY - short);
                vec![]
            }
            Step::Child(id, mother, born) => vec![child(*id, *mother, BORN + born)],
            Step::Delete(id) => vec![(DocKind::Case, format!("c{id}"), None)],
            Step::Mother(id, owner) => vec![mother(*id, *owner)],
            Step::Worker(id) => vec![worker(*id)],
            Step::Ages(extra) => vec![(DocKind::DataSource, "ages".to_owned(), extra.map(ages))],
            Step::ByOwner(extra) => vec![(DocKind::AggregateView, "by_owner".to_owned(), extra.map(by_owner))],
            Step::Totals(there) => vec![(DocKind::AggregateView, "totals".to_owned(), there.then(totals))],
            Step::Cut => {
                driven.settle();
                compare_today(driven);
                continue;
            }
        };
        if changes.is_empty() { driven.idle() } else { driven.commit(changes) }
    }
    driven.settle();
    compare_today(driven);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_a_snapshot_is_of_one_day(steps in prop::collection::vec(step(), 1..50)) {
        drive(DataflowConfig::default(), midnight(0), look, move |driven| history(driven, &steps));
    }
}
