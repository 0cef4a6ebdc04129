//! What statements see: projection, dead rows, names, look-ups, limits.

use std::sync::{Arc, atomic::Ordering};

use arrow::util::pretty::pretty_format_batches;
use datafusion::common::ScalarValue;
use schemas::{
    id::DomainId,
    table::{PreviewState, Table, TableName},
};

use super::world::{self, FakeViews, MapIndex, visit, visits};
use crate::{
    QueryConfig, QueryError,
    engine::{Answer, Ask, Engine, Prepared},
};

pub(super) struct Sql {
    engine: Engine,
    pub(super) views: Arc<FakeViews>,
    index: Arc<MapIndex>,
    max_rows: usize,
}

impl Sql {
    pub(super) fn new(moved: bool) -> Self {
        let (table, index) = visits(moved);
        let views = FakeViews::new(world::snapshot(table, vec![]));
        let engine = Engine::new(Arc::clone(&views) as _, QueryConfig::default()).unwrap();
        Self { engine, views, index, max_rows: 1000 }
    }

    fn ask(&self) -> Ask {
        Ask { protocol: "test", timeout: std::time::Duration::from_secs(30), max_rows: self.max_rows }
    }

    async fn scope(&self) -> Arc<crate::catalog::Scope> {
        let domain = DomainId::new(world::DOMAIN).unwrap();
        self.engine.scope(&domain, &world::USER.into(), None, None).await.unwrap()
    }

    async fn answer(&self, sql: &str) -> Result<Answer, QueryError> {
        let scope = self.scope().await;
        let statement = self.engine.parse(sql)?.pop().unwrap();
        let plan = self.engine.plan(&scope, &statement)?;
        self.engine.run(&scope, plan, self.ask()).await
    }

    /// The rows as text, cells joined by `|`.
    pub(super) async fn rows(&self, sql: &str) -> Vec<String> {
        rows(self.answer(sql).await.unwrap()).await
    }

    async fn error(&self, sql: &str) -> QueryError {
        match self.answer(sql).await {
            Err(error) => error,
            Ok(answer) => answer.collect().await.unwrap_err(),
        }
    }
}

async fn rows(answer: Answer) -> Vec<String> {
    let batches = answer.collect().await.unwrap();
    if batches.is_empty() {
        return Vec::new();
    }
    let text = pretty_format_batches(&batches).unwrap().to_string();
    let line = |line: &str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>().join("|");
    text.lines().skip(3).filter(|text| text.starts_with('|')).map(line).collect()
}

#[tokio::test]
async fn replaced_and_deleted_rows_never_show() {
    let sql = Sql::new(false);
    assert_eq!(
        sql.rows("select doc_id, name, age from ucr.visits order by doc_id").await,
        ["a|Ada|20", "b|Bea|31", "c|Cleo|40", "e|Eve|25", "f|Fay|35"]
    );
    assert_eq!(sql.rows("select name from visits where doc_id = 'd'").await, [""; 0]);
    assert_eq!(sql.rows("select sum(age) from ucr_demo_visits_abc").await, ["151"]);
    assert_eq!(sql.rows("select doc_id from visits limit 1").await, ["f"], "newest rows come first");
    assert_eq!(sql.rows("select tags, weight from visits where doc_id = 'a'").await, ["[x, Ada]|2.0000000000000000"]);
}

#[tokio::test]
async fn counts_need_no_scan() {
    let sql = Sql::new(false);
    assert_eq!(sql.rows("select count(*) from visits").await, ["5"]);
    let plan = sql.rows("explain select count(*) from visits").await.join("\n");
    assert!(plan.contains("PlaceholderRowExec") && !plan.contains("SegmentScan"), "{plan}");
    assert_eq!(sql.rows("select count(*) from visits where age > 30").await, ["3"]);
}

#[tokio::test]
async fn key_look_ups_use_the_index() {
    let sql = Sql::new(false);
    let asked = || sql.index.asked.swap(0, Ordering::Relaxed);
    for (filter, found, look_ups) in [
        ("doc_id = 'b'", vec!["b|Bea"], 1),
        ("'b' = doc_id and age > 30", vec!["b|Bea"], 1),
        ("doc_id in ('a', 'b', 'd', 'nobody')", vec!["a|Ada", "b|Bea"], 4),
        ("doc_id in ('a', 'b')", vec!["a|Ada", "b|Bea"], 2),
        ("doc_id = 'a' and doc_id = 'b'", vec![], 0),
        ("doc_id = null", vec![], 0),
        ("doc_id = 'a' or name = 'Bea'", vec!["a|Ada", "b|Bea"], 0),
        ("doc_id <> 'a' and doc_id < 'c'", vec!["b|Bea"], 0),
    ] {
        let statement = format!("select doc_id, name from visits where {filter} order by doc_id");
        assert_eq!(sql.rows(&statement).await, found, "{filter}");
        assert_eq!(asked(), look_ups, "{filter}");
    }
    let plan = sql.rows("explain select name from visits where doc_id = 'b'").await.join("\n");
    assert!(plan.contains("SegmentScan: by_key, rows=1") && !plan.contains("FilterExec"), "{plan}");
}

#[tokio::test]
async fn an_index_that_moved_on_costs_a_scan_and_nothing_else() {
    let sql = Sql::new(true);
    assert_eq!(sql.rows("select name from visits where doc_id = 'b'").await, ["Bea"]);
    assert_eq!(sql.rows("select count(*) from visits where doc_id in ('a', 'b', 'd')").await, ["2"]);
    assert!(sql.index.asked.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn stamps_rule_segments_out() {
    let sql = Sql::new(false);
    let query = "select doc_id from visits where inserted_at >= '2024-02-02' order by doc_id";
    assert_eq!(sql.rows(query).await, ["e", "f"]);
    let plan = sql.rows(&format!("explain {query}")).await.join("\n");
    assert!(plan.contains("SegmentScan: slices=2, live_rows=3") && plan.contains("FilterExec"), "{plan}");
    assert_eq!(sql.rows("select count(*) from visits where inserted_at < timestamp '2024-01-02'").await, ["1"]);
    let between = "select count(*) from visits where inserted_at between '2024-01-03' and '2024-02-01'";
    assert_eq!(sql.rows(between).await, ["2"]);
}

#[tokio::test]
async fn names_are_found_along_the_search_path() {
    let sql = Sql::new(false);
    assert_eq!(sql.rows("select visits from visits_by_month order by month").await, ["2", "2"]);
    assert_eq!(sql.rows("select count(*) from demo.ucr.visits").await, ["5"]);
    assert_eq!(
        sql.rows("select table_schema, table_name, rows, dead_rows from system.tables order by 2").await,
        ["ucr|ucr_demo_visits_abc|5|2", "ucr|visits|5|2", "views|visits_by_month|2|0"]
    );
    assert_eq!(
        sql.rows("select id, state, done, total, message, rows from views order by id").await,
        ["bad|failed|||no such column|", "slow|building|5|10||", "visits|live||||5"]
    );
    assert_eq!(
        sql.rows("select rate, seconds_left, started_at from views where state = 'building'").await,
        ["2|3|1970-01-01T00:00:01"]
    );
    assert_eq!(
        sql.rows("select tick, complete_through, view_errors, stalled from snapshot").await,
        ["41|m1.0-0.41|3|true"]
    );
    let listed = "select table_name from information_schema.tables where table_schema = 'ucr' order by 1";
    assert_eq!(sql.rows(listed).await, ["ucr_demo_visits_abc", "visits"]);
    let columns =
        "select data_type from information_schema.columns where table_name = 'visits' and column_name = 'age'";
    assert_eq!(sql.rows(columns).await, ["Int32"]);
    assert!(sql.rows("show tables").await.iter().any(|row| row.contains("visits_by_month")));
    assert_eq!(sql.rows("select current_database(), current_schema(), current_user").await, ["demo|ucr|admin@demo"]);
}

#[tokio::test]
async fn previews_are_compared_with_what_is_published() {
    let sql = Sql::new(false);
    assert!(sql.rows("select id from view_previews").await.is_empty());
    let mut snapshot = world::snapshot(visits(false).0, vec![]);
    let domain = snapshot.domains.get_mut(&DomainId::new(world::DOMAIN).unwrap()).unwrap();
    let domain = Arc::make_mut(domain);
    // One is older, one is gone, one is new; times of change do not count.
    let rows = vec![
        visit("a", "2024-01-01", "Ada", 21),
        visit("c", "2025-01-01", "Cleo", 40),
        visit("e", "2025-01-01", "Eve", 25),
        visit("f", "2025-01-01", "Fay", 35),
        visit("g", "2025-01-01", "Gil", 50),
    ];
    let mut table = Arc::unwrap_or_clone(world::table(world::visit_columns(), Some(1), vec![(rows, &[])], None).0);
    table.errors = 9;
    let name = TableName::new("ucr_preview", "visits");
    domain.tables.add([name.clone()], Arc::new(table));
    let mut views = domain.views.to_vec();
    views[0].preview = Some(PreviewState::Complete { table: name });
    views[2].preview = Some(PreviewState::Failed { message: "no such table".to_owned() });
    domain.views = views.into();
    sql.views.publish(snapshot);
    let counts = "select id, state, appearing, vanishing, changing, unchanged, message from view_previews order by id";
    assert_eq!(sql.rows(counts).await, ["bad|failed|||||no such table", "visits|complete|1|1|1|3|"]);
    assert_eq!(sql.rows("select state from view_previews where id = 'visits'").await, ["complete"]);
    let samples = sql.rows("select samples from view_previews where id = 'visits'").await.remove(0);
    assert!(samples.contains(r#""vanishing":[{"doc_id":"b""#), "{samples}");
    assert_eq!(sql.rows("select count(*) from ucr_preview.visits").await, ["5"]);
    assert_eq!(sql.rows("select view_errors from snapshot").await, ["3"], "errors of what is published");
}

#[tokio::test]
async fn mistakes_are_named() {
    let sql = Sql::new(false);
    for (statement, state, says) in [
        ("select * from vists", "42P01", "did you mean ucr.visits, system.views?"),
        ("select * from zzz", "42P01", "system.tables"),
        ("select * from other.ucr.secret", "42P01", "does not exist in domain `demo`"),
        ("select * from ucr.secret", "42P01", "does not exist"),
        ("select * from slow", "55000", "it is being built, 5 of 10 documents so far"),
        ("select * from ucr.bad", "55000", "no such column"),
        ("select agee from visits", "42703", "did you mean age?"),
        ("select v.nam from visits v", "42703", "did you mean name"),
        ("selec 1", "42601", "could not parse"),
        ("select nosuch(1)", "42883", "nosuch"),
        ("insert into visits values (1)", "25006", "INSERT"),
        ("create table x (a int)", "25006", "CREATE TABLE"),
        ("drop view visits", "25006", "DROP VIEW"),
        ("update visits set age = 1", "25006", "UPDATE"),
        ("delete from visits", "25006", "DELETE"),
        ("copy visits to '/tmp/x'", "25006", "COPY"),
        ("set x = 1", "25006", "SET"),
        ("select * into x from visits", "25006", "read-only"),
        ("explain insert into visits values (1)", "25006", "INSERT"),
        ("select 1 / 0", "22012", "zero"),
        ("select cast(name as int) from visits", "22P02", ""),
    ] {
        let error = sql.error(statement).await;
        assert_eq!(error.sqlstate(), state, "{statement}: {error}");
        assert!(error.to_string().contains(says), "{statement}: {error}");
    }
}

#[tokio::test]
async fn results_are_bounded() {
    let sql = Sql { max_rows: 4, ..Sql::new(false) };
    assert!(matches!(sql.answer("select * from visits").await, Err(QueryError::TooManyRows { limit: 4 })));
    assert!(matches!(sql.error("select * from visits where age > 0").await, QueryError::TooManyRows { limit: 4 }));
    assert_eq!(sql.rows("select doc_id from visits order by doc_id limit 2").await, ["a", "b"]);
}

#[tokio::test]
async fn statements_stop_at_their_deadline() {
    let sql = Sql::new(false);
    let scope = sql.scope().await;
    let statement = sql.engine.parse("select count(*) from generate_series(1, 100000000000) t(n)").unwrap().remove(0);
    let plan = sql.engine.plan(&scope, &statement).unwrap();
    let ask = Ask { timeout: std::time::Duration::from_millis(50), ..sql.ask() };
    let outcome = match sql.engine.run(&scope, plan, ask).await {
        Ok(answer) => answer.collect().await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(matches!(outcome, Err(QueryError::Timeout { .. })), "{outcome:?}");
}

#[tokio::test]
async fn prepared_statements_follow_the_snapshots() {
    let sql = Sql::new(false);
    let statement = sql.engine.parse("select name from visits where doc_id = $1 and age >= $2").unwrap().remove(0);
    let scope = sql.scope().await;
    let prepared = Prepared::new(&sql.engine, &scope, statement).unwrap();
    let run = async |id: &str, age: i64| {
        let scope = sql.scope().await;
        let values = vec![ScalarValue::Utf8(Some(id.to_owned())), ScalarValue::Int64(Some(age))];
        let (_, reused) = prepared.bind(&sql.engine, &scope, values.clone()).unwrap();
        let answer = sql.engine.run_prepared(&scope, &prepared, values, sql.ask()).await;
        (rows(answer.unwrap()).await, reused)
    };
    assert_eq!(run("b", 0).await, (vec!["Bea".to_owned()], true));
    assert_eq!(run("b", 99).await, (vec![], true));
    assert_eq!(run("g", 0).await, (vec![], true));
    let grow = |table: &Table| {
        let more = vec![(vec![visit("g", "2024-04-01", "Gia", 22)], &[][..])];
        let (extra, _) = world::table(world::visit_columns(), Some(1), more, Some(true));
        let segments: Vec<_> = table.segments.iter().chain(extra.segments.iter()).cloned().collect();
        Arc::new(Table { segments: segments.into(), live_rows: 6, index: extra.index.clone(), ..table.clone() })
    };
    sql.views.publish(world::snapshot(grow(&visits(false).0), vec![]));
    assert_eq!(run("g", 0).await, (vec!["Gia".to_owned()], true));
    let unindexed = Table { index: None, ..Table::clone(&visits(false).0) };
    sql.views.publish(world::snapshot(Arc::new(unindexed), vec![]));
    assert_eq!(run("b", 0).await.0, ["Bea"], "a table that lost its index is planned again");
    let narrow = world::table(vec![world::visit_columns().remove(0)], None, vec![], None).0;
    sql.views.publish(world::snapshot(narrow, vec![]));
    let scope = sql.scope().await;
    let values = vec![ScalarValue::Utf8(Some("b".to_owned())), ScalarValue::Int64(Some(1))];
    let error = prepared.bind(&sql.engine, &scope, values).unwrap_err();
    assert_eq!(error.sqlstate(), "42703", "{error}");
}

#[tokio::test]
async fn a_statement_keeps_its_snapshot() {
    let sql = Sql::new(false);
    let answer = sql.answer("select count(*) from (select doc_id from visits where age > 0)").await.unwrap();
    sql.views.publish(world::snapshot(world::table(world::visit_columns(), Some(1), vec![], None).0, vec![]));
    assert_eq!(rows(answer).await, ["5"]);
    assert_eq!(sql.rows("select count(*) from visits").await, ["0"]);
}
