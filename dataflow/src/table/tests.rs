use std::collections::BTreeMap;

use proptest::prelude::*;
use schemas::row::{Column, ColumnType};

use super::*;

fn schema() -> Arc<TableSchema> {
    Arc::new(TableSchema {
        columns: vec![
            Column::required("doc_id", ColumnType::Text),
            Column::required("inserted_at", ColumnType::Datetime),
            Column::new("n", ColumnType::Integer),
            Column::new("kg", ColumnType::Decimal),
            Column::new("tags", ColumnType::TextList),
        ],
        key: vec![0],
    })
}

fn row(key: &str, stamp: i64, n: i64) -> Row {
    Row::from(vec![
        Cell::Text(key.into()),
        Cell::Datetime(stamp),
        if n % 5 == 0 { Cell::Null } else { Cell::Int(n) },
        Cell::Decimal(i128::from(n) * 7),
        Cell::List([Cell::Text("a".into()), Cell::Null].into()),
    ])
}

fn content(table: &Table) -> Vec<Row> {
    let mut rows = walk(table, 0, usize::MAX);
    rows.sort();
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_table_equals_the_map_it_stands_for(ticks in prop::collection::vec(
        prop::collection::vec((0u8..40, 0usize..3, any::<u16>()), 1..30), 1..120)) {
        let mut writer = TableWriter::new(schema(), Some(1));
        let mut model: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        let mut versions = Vec::new();
        for (tick, changes) in ticks.iter().enumerate() {
            let changes: Vec<(Arc<str>, Vec<Row>)> = changes.iter().map(|(key, copies, n)| {
                let key = format!("doc-{key}-with-a-long-name");
                let rows = (0..*copies).map(|i| row(&key, tick as i64, i64::from(*n) + i as i64)).collect();
                (Arc::from(key), rows)
            }).collect();
            writer.apply(Tick(tick as u64 + 1), &changes).unwrap();
            for (key, rows) in changes {
                model.insert(key.to_string(), rows);
            }
            if tick % 7 == 0 {
                let mut expected: Vec<Row> = model.values().flatten().cloned().collect();
                expected.sort();
                versions.push((writer.publish(), expected, model.clone()));
            }
        }
        for (table, expected, model) in versions {
            prop_assert_eq!(table.live_rows, expected.len());
            prop_assert_eq!(content(&table), expected);
            for (key, rows) in &model {
                // The index answers for the newest state of a key, or says that it cannot.
                if let Some(found) = table.index.as_ref().unwrap().find(&table, key) {
                    let mut found: Vec<Row> = found.into_iter()
                        .filter(|(s, r)| !table.segments[*s].dead.is_dead(*r))
                        .map(|(s, r)| table.segments[s].row(&table.schema, r)).collect();
                    found.sort();
                    let mut rows = rows.clone();
                    rows.sort();
                    prop_assert_eq!(found, rows);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn parts_together_equal_one_table(workers in 1usize..4, ticks in prop::collection::vec(
        prop::collection::vec((0u8..40, 0usize..3, any::<u16>()), 1..12), 1..80)) {
        let mut whole = TableWriter::new(schema(), Some(1));
        let mut writers: Vec<TableWriter> = (0..workers).map(|_| TableWriter::new(schema(), Some(1))).collect();
        let mut versions = Vec::new();
        for (tick, changes) in ticks.iter().enumerate() {
            let at = Tick(tick as u64 + 1);
            for (key, copies, n) in changes {
                let name = format!("doc-{key}");
                let rows = (0..*copies).map(|i| row(&name, tick as i64, i64::from(*n) + i as i64)).collect();
                let change = [(Arc::from(name), rows)];
                whole.apply(at, &change).unwrap();
                writers[usize::from(*key) % workers].apply(at, &change).unwrap();
            }
            if tick % 5 == 0 {
                let parts = writers.iter().map(|writer| Arc::new(writer.publish())).collect();
                versions.push((union(parts).unwrap(), whole.publish()));
            }
        }
        let newest = versions.len() - 1;
        for (version, (parts, whole)) in versions.into_iter().enumerate() {
            prop_assert_eq!((parts.live_rows, parts.changed_at), (whole.live_rows, whole.changed_at));
            prop_assert_eq!(content(&parts), content(&whole));
            let stamps: Vec<_> = parts.segments.iter().map(|segment| segment.stamps.unwrap().1).collect();
            prop_assert!(workers == 1 || stamps.is_sorted(), "{:?}", stamps);
            for key in 0..40 {
                let found = |table: &Table| {
                    let places = table.index.as_ref().unwrap().find(table, &format!("doc-{key}"))?;
                    let mut rows: Vec<Row> = places.into_iter()
                        .map(|(s, r)| table.segments[s].row(&table.schema, r)).collect();
                    rows.sort();
                    Some(rows)
                };
                prop_assert_eq!(found(&parts), found(&whole));
                prop_assert!(version < newest || ticks.len() % 5 != 1 || found(&parts).is_some());
            }
        }
    }
}

#[test]
fn segments_stay_few_and_dead_rows_are_let_go() {
    let mut writer = TableWriter::new(schema(), Some(1));
    for tick in 1..=4000u64 {
        let key: Arc<str> = format!("k{}", tick % 500).into();
        writer.apply(Tick(tick), &[(Arc::clone(&key), vec![row(&key, tick as i64, 1)])]).unwrap();
    }
    let table = writer.publish();
    assert_eq!(table.live_rows, 500);
    assert!(table.segments.len() < 40, "{} segments", table.segments.len());
    assert!(walk_length(&table) < 1500, "{} rows held for 500 live ones", walk_length(&table));
    assert_eq!(table.segments.last().unwrap().stamps.unwrap().1, 4000);
    assert_eq!(writer.rows("k0")[0][1], Cell::Datetime(4000));
    assert!(writer.contains("k1") && !writer.contains("nobody"));
}
