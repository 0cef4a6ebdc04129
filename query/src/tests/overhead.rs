//! What a statement costs before and beside the data. Prints measurements; fails only if they are off by far.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use datafusion::common::ScalarValue;
use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;
use schemas::id::DomainId;

use super::world::{self, FakeViews, visits};
use crate::{
    QueryConfig,
    engine::{Ask, Engine, Prepared},
};

const ROUNDS: u32 = 200;

#[tokio::test]
async fn statement_overhead() {
    let views = FakeViews::new(world::snapshot(visits(false).0, vec![]));
    let engine = Engine::new(Arc::clone(&views) as _, QueryConfig::default()).unwrap();
    let domain = DomainId::new(world::DOMAIN).unwrap();
    let user = world::USER.into();
    let ask = Ask { protocol: "test", timeout: Duration::from_secs(60), max_rows: 1000 };
    let text = "select name, age from visits where doc_id = $1";
    let literal = "select name, age from visits where doc_id = 'b'";
    let compatible = PostgresCompatibilityParser::new();

    let mut lines = Vec::new();
    let mut measure = |what: &str, started: Instant| {
        let each = started.elapsed() / ROUNDS;
        lines.push(format!("{what}: {each:?}"));
        each
    };
    let started = Instant::now();
    for _ in 0..ROUNDS {
        engine.parse(literal).unwrap();
    }
    measure("parse", started);
    let started = Instant::now();
    for _ in 0..ROUNDS {
        compatible.parse(literal).unwrap();
    }
    measure("parse with compatibility rules", started);

    let statement = engine.parse(literal).unwrap().remove(0);
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let scope = engine.scope(&domain, &user, None, None).await.unwrap();
        engine.plan(&scope, &statement).unwrap();
    }
    measure("scope and logical plan", started);

    let started = Instant::now();
    for _ in 0..ROUNDS {
        let scope = engine.scope(&domain, &user, None, None).await.unwrap();
        let statement = engine.parse(literal).unwrap().remove(0);
        let plan = engine.plan(&scope, &statement).unwrap();
        let batches = engine.run(&scope, plan, ask).await.unwrap().collect().await.unwrap();
        assert_eq!(batches[0].num_rows(), 1);
    }
    measure("whole look-up from text", started);

    let scope = engine.scope(&domain, &user, None, None).await.unwrap();
    let prepared = Prepared::new(&engine, &scope, engine.parse(text).unwrap().remove(0)).unwrap();
    let values = || vec![ScalarValue::Utf8(Some("b".to_owned()))];
    let started = Instant::now();
    for _ in 0..ROUNDS {
        prepared.bind(&engine, &scope, values()).unwrap();
    }
    measure("bind a prepared look-up", started);
    let started = Instant::now();
    for _ in 0..ROUNDS {
        let scope = engine.scope(&domain, &user, None, None).await.unwrap();
        let answer = engine.run_prepared(&scope, &prepared, values(), ask).await.unwrap();
        assert_eq!(answer.collect().await.unwrap()[0].num_rows(), 1);
    }
    let look_up = measure("whole prepared look-up", started);
    println!("{}", lines.join("\n"));
    assert!(look_up < Duration::from_millis(50), "{look_up:?}");
}
