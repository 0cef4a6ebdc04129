//! A real Postgres client against the real server.

use std::sync::Arc;

use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, types::Type};

use super::world::{self, FakeViews, visits};
use crate::QueryConfig;

struct Server {
    port: u16,
    views: Arc<FakeViews>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(config: QueryConfig) -> Self {
        let views = FakeViews::new(world::snapshot(visits(false).0, vec![]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel::<()>();
        let state = world::state(&views, config);
        let task = tokio::spawn(crate::serve_postgres(listener, state, async {
            stopped.await.ok();
        }));
        Self { port, views, stop: Some(stop), task }
    }

    fn config(&self, user: &str, password: &str, database: &str) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port).user(user).password(password).dbname(database);
        config
    }

    async fn connect(&self) -> Client {
        let (client, connection) =
            self.config(world::USER, world::PASSWORD, world::DOMAIN).connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

fn texts(messages: &[SimpleQueryMessage]) -> Vec<String> {
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|at| row.get(at).unwrap_or("∅").to_owned()).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}

async fn simple(client: &Client, sql: &str) -> Vec<String> {
    texts(&client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")))
}

async fn state(client: &Client, sql: &str) -> String {
    let error = client.simple_query(sql).await.unwrap_err();
    error.code().unwrap_or_else(|| panic!("{sql}: {error:?}")).code().to_owned()
}

#[tokio::test]
async fn only_the_domains_users_come_in() {
    let server = Server::start(world::quick()).await;
    for (user, password, database, state) in [
        (world::USER, "wrong", "demo", "28P01"),
        ("nobody", world::PASSWORD, "demo", "28P01"),
        (world::USER, world::PASSWORD, "other", "28P01"),
        (world::USER, world::PASSWORD, "No Domain", "28P01"),
        ("phone@demo", world::PASSWORD, "demo", "42501"),
    ] {
        let refused = server.config(user, password, database).connect(NoTls).await;
        let error = refused.err().unwrap();
        assert_eq!(error.code().unwrap().code(), state, "{user} {database}");
    }
    let (client, connection) = server.config(world::USER, "k1", "demo").connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(simple(&client, "select current_user").await, ["admin@demo"], "an API key is as good as a password");
}

#[tokio::test]
async fn simple_statements_run() {
    let server = Server::start(world::quick()).await;
    let client = server.connect().await;
    assert_eq!(
        simple(&client, "select doc_id, age, weight, seen, tags, closed, inserted_at from visits where doc_id = 'a'")
            .await,
        ["a|20|2.0000000000000000|2022-01-28|{x,Ada}|f|2024-01-01 00:00:00.000000"]
    );
    assert_eq!(simple(&client, "select 1; select 'two'; ").await, ["1", "two"]);
    assert_eq!(simple(&client, "").await, [""; 0]);
    assert_eq!(
        simple(&client, "select count(*) from visits; select weight * weight from visits where doc_id = 'b'").await,
        ["5", "9.61000000000000000000000000000000"]
    );
    for (sql, code) in [
        ("select * from vists", "42P01"),
        ("select nix from visits", "42703"),
        ("selec", "42601"),
        ("delete from visits", "25006"),
        ("select 1/0", "22012"),
        ("show nix", "22023"),
    ] {
        assert_eq!(state(&client, sql).await, code, "{sql}");
    }
    assert_eq!(simple(&client, "select 1").await, ["1"], "the connection outlives errors");
}

#[tokio::test]
async fn prepared_statements_take_parameters() {
    let server = Server::start(world::quick()).await;
    let client = server.connect().await;
    let statement = client.prepare("select name, age, weight::float8 w from visits where doc_id = $1").await.unwrap();
    assert_eq!(statement.params(), [Type::TEXT]);
    assert_eq!(
        statement.columns().iter().map(|column| column.type_().clone()).collect::<Vec<_>>(),
        [Type::TEXT, Type::INT4, Type::FLOAT8]
    );
    for (id, name, age) in [("a", "Ada", 20), ("b", "Bea", 31)] {
        let row = client.query_one(&statement, &[&id]).await.unwrap();
        assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), (name, age));
        assert!((row.get::<_, f64>(2) - f64::from(age) / 10.0).abs() < 1e-9);
    }
    assert!(client.query(&statement, &[&"d"]).await.unwrap().is_empty());

    let older = "select doc_id from visits where age > $1 and inserted_at >= $2::timestamp order by 1 limit $3";
    let rows = client.query_typed(older, &[(&20_i32, Type::INT4), (&"2024-02-01", Type::TEXT), (&2_i64, Type::INT8)]);
    let ids: Vec<String> = rows.await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(ids, ["b", "e"]);

    server.views.publish({
        let more = vec![(vec![world::visit("b", "2024-05-01", "Bea again", 32)], &[][..])];
        let table = world::table(world::visit_columns(), Some(1), more, Some(false)).0;
        world::snapshot(table, vec![])
    });
    let row = client.query_one(&statement, &[&"b"]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "Bea again", "each execution reads the newest snapshot");
    let error = client.prepare("select nix from visits").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42703");
    assert_eq!(client.query("select 1", &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn receipts_are_waited_for() {
    let server = Server::start(QueryConfig { default_wait_ms: 100, ..QueryConfig::default() }).await;
    let client = server.connect().await;
    assert_eq!(state(&client, "set millrace.wait_for = 'nonsense'").await, "22023");
    simple(&client, "set millrace.wait_for = 'm1.0-0.42'").await;
    assert_eq!(simple(&client, "show millrace.wait_for").await, ["m1.0-0.42"]);
    assert_eq!(state(&client, "select 1").await, "57014");
    let mut next = world::snapshot(visits(false).0, vec![]);
    next.moment.tick.0 = 42;
    next.moment.complete_through.advance(world::position(42));
    server.views.publish(next);
    assert_eq!(simple(&client, "select tick from system.snapshot").await, ["42"]);
    let rows = client.query("select tick from system.snapshot", &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, i64>(0), 42);
    simple(&client, "set millrace.wait_for = ''").await;
    assert_eq!(simple(&client, "show millrace.wait_for").await, [""]);
}

#[tokio::test]
async fn sessions_behave_as_clients_expect() {
    let server = Server::start(world::quick()).await;
    let mut client = server.connect().await;
    for sql in [
        "set client_encoding to 'UTF8'",
        "set extra_float_digits = 3",
        "set application_name = 'report builder'",
        "set statement_timeout = '5s'",
        "set session characteristics as transaction read only",
        "set datestyle = iso, mdy",
        "discard all",
    ] {
        simple(&client, sql).await;
        client.execute(sql, &[]).await.unwrap();
    }
    assert_eq!(simple(&client, "show transaction isolation level").await, ["repeatable read"]);
    assert_eq!(simple(&client, "show search_path").await, ["ucr, views, system"]);
    let rows = client.query("show server_version", &[]).await.unwrap();
    assert_eq!(rows[0].get::<_, &str>(0), "16.6");
    assert!(simple(&client, "select version()").await[0].starts_with("PostgreSQL 16"));
    let transaction = client.transaction().await.unwrap();
    assert_eq!(transaction.query("select * from visits", &[]).await.unwrap().len(), 5);
    let portal = transaction.bind("select doc_id from visits order by doc_id", &[]).await.unwrap();
    let page = transaction.query_portal(&portal, 2).await.unwrap();
    let more = transaction.query_portal(&portal, 10).await.unwrap();
    assert_eq!((page.len(), more.len()), (2, 3));
    transaction.commit().await.unwrap();
    simple(&client, "begin; select 1; rollback").await;

    simple(&client, "set statement_timeout = 50").await;
    assert_eq!(state(&client, "select count(*) from generate_series(1, 100000000000) t(n)").await, "57014");
}

#[tokio::test]
async fn catalogue_queries_are_answered() {
    let server = Server::start(world::quick()).await;
    let client = server.connect().await;
    let relations = simple(
        &client,
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c \
         LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r','p','v') AND n.nspname <> 'pg_catalog' ORDER BY 1, 2",
    )
    .await;
    for name in ["ucr|visits", "views|visits_by_month", "system|snapshot"] {
        assert!(relations.iter().any(|row| row == name), "{name} in {relations:?}");
    }
    let columns = simple(
        &client,
        "SELECT a.attname FROM pg_catalog.pg_attribute a JOIN pg_class c ON c.oid = a.attrelid \
         WHERE c.relname = 'visits' AND a.attnum > 0 ORDER BY a.attnum LIMIT 2",
    )
    .await;
    assert_eq!(columns, ["doc_id", "inserted_at"]);
}

#[tokio::test]
async fn the_server_stops_when_told() {
    let mut server = Server::start(world::quick()).await;
    let client = server.connect().await;
    server.stop.take().unwrap().send(()).unwrap();
    (&mut server.task).await.unwrap().unwrap();
    assert!(client.simple_query("select 1").await.is_err());
}
