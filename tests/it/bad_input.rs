//! What a stranger gets wrong: each is answered with a status and a message that says what to do, and leaves nothing behind.

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use reqwest::{Client, Method, StatusCode};
use serde_json::json;

use crate::{
    pipeline::form_with_case,
    server::{DEADLINE, DOMAIN, Options, Server, Tmpfs, configure, directory, eventually, millrace, reply},
};

/// What is stored: numbers of forms in their normal state, of cases and of definitions.
async fn stored(server: &Server) -> (i64, i64, i64) {
    let row = server
        .store()
        .await
        .query_one(
            "SELECT (SELECT count(*) FROM forms WHERE state = 1), (SELECT count(*) FROM cases), (SELECT count(*) FROM definitions)",
            &[],
        )
        .await
        .unwrap();
    (row.get(0), row.get(1), row.get(2))
}

fn form(number: usize, note: &str) -> String {
    let block = format!(
        "<create><case_type>thing</case_type><case_name>Thing</case_name><owner_id>nobody</owner_id></create>\
         <update><note>{note}</note></update>"
    );
    form_with_case(&format!("form-{number}"), &format!("case-{number}"), &block)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_and_leave_nothing() {
    let settings = vec!["ingest.max_form_bytes = 50000".to_owned(), "query.default_wait_ms = 300".to_owned()];
    let server = Server::start(&Options { settings, ..Options::default() }).await;
    let first = server.submit(&form(1, "fine")).await.unwrap();
    assert_eq!(first.status, 201);
    server.sql("SELECT 1 AS one", first.position).await;
    let before = stored(&server).await;

    wrong_forms(&server).await;
    wrong_callers(&server).await;
    wrong_definitions(&server).await;
    wrong_statements(&server).await;
    wrong_receipts(&server).await;

    assert_eq!(stored(&server).await, before);
    assert_eq!(server.submit(&form(2, "fine")).await.unwrap().status, 201, "the server goes on");
}

async fn wrong_forms(server: &Server) {
    let whole = form(7, "fine");
    let broken = whole.replace("</data>", "");
    let no_case_id = whole.replace("case_id=\"case-7\"", "case_id=\"\"");
    let oversized = form(7, &"x".repeat(60_000));
    for (what, xml, status, says) in [
        ("broken XML", broken.as_str(), 422, "There was an error processing the form"),
        ("no XML at all", "hello", 422, "There was an error processing the form"),
        ("nothing", "", 400, "empty"),
        ("a case without id", no_case_id.as_str(), 422, "case"),
        ("too much", oversized.as_str(), 413, "size limit"),
    ] {
        let request = server.request(Method::POST, "receiver/").header("x-openrosa-version", "3.0");
        let got = reply(request.header("content-type", "text/xml").body(xml.to_owned())).await.unwrap();
        assert_eq!(got.status, status, "{what}: {}", got.text);
        assert!(got.text.contains(says), "{what}: {}", got.text);
    }
}

async fn wrong_callers(server: &Server) {
    let client = Client::new();
    let address = |domain: &str, path: &str| {
        server
            .request(Method::POST, path)
            .build()
            .unwrap()
            .url()
            .as_str()
            .replace(&format!("/a/{DOMAIN}/"), &format!("/a/{domain}/"))
    };
    let admin = format!("admin@{DOMAIN}");
    for (what, domain, path, user, password, status) in [
        ("a form for an unknown domain", "nowhere", "receiver/", admin.as_str(), server.password.as_str(), 400),
        ("a form with a wrong password", DOMAIN, "receiver/", &admin, "wrong", 401),
        ("a form of an unknown user", DOMAIN, "receiver/", "nobody", "wrong", 401),
        ("SQL in an unknown domain", "nowhere", "sql", &admin, &server.password, 401),
        ("SQL with a wrong password", DOMAIN, "sql", &admin, "wrong", 401),
    ] {
        let request = client.post(address(domain, path)).basic_auth(user, Some(password)).body(form(8, "fine"));
        let got = reply(request).await.unwrap();
        assert_eq!(got.status, status, "{what}: {}", got.text);
        assert!(!got.text.is_empty() && !got.text.contains("wrong\""), "{what}: {}", got.text);
    }
    let anonymous = client.post(address(DOMAIN, "receiver/")).body(form(8, "fine")).send().await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
    assert!(anonymous.headers().contains_key("www-authenticate"));
}

async fn wrong_definitions(server: &Server) {
    let source = |indicator: serde_json::Value| {
        json!({
            "doc_type": "DataSourceConfiguration", "domain": DOMAIN, "table_id": "things", "display_name": "Things",
            "referenced_doc_type": "CommCareCase", "configured_filter": {}, "configured_indicators": [indicator],
        })
    };
    let view = |column: &str| {
        json!({
            "doc_type": "AggregateView", "domain": DOMAIN, "view_id": "sums", "display_name": "Sums",
            "from": {"table": "things"}, "group_by": [{"column": column}], "aggregates": [{"function": "count", "as": "n"}],
        })
    };
    let raw = |column: &str| json!({"type": "raw", "column_id": column, "datatype": "string", "property_name": "name"});
    let unknown =
        json!({"type": "expression", "column_id": "x", "datatype": "string", "expression": {"type": "crystal_ball"}});
    for (what, path, body, says) in [
        ("an unknown expression", "ucr/data-sources/things", source(unknown), "crystal_ball"),
        ("an indicator without column", "ucr/data-sources/things", source(json!({"type": "raw"})), "column_id"),
        ("a view of an unknown table", "views/sums", view("name"), "things"),
        ("a list", "ucr/data-sources/things", json!([]), "object"),
    ] {
        let got = reply(server.request(Method::PUT, path).json(&body)).await.unwrap();
        assert_eq!(got.status, 400, "{what}: {}", got.text);
        assert!(got.text.contains(says), "{what}: {}", got.text);
    }
    server.write(Method::PUT, "ucr/data-sources/things", &source(raw("name"))).await;
    let got = reply(server.request(Method::PUT, "views/sums").json(&view("no_such_column"))).await.unwrap();
    assert_eq!(got.status, 400, "{}", got.text);
    assert!(got.text.contains("no_such_column"), "{}", got.text);
    let gone = server.request(Method::DELETE, "ucr/data-sources/things").send().await.unwrap();
    assert!(gone.status().is_success(), "{}", gone.status());
}

async fn wrong_statements(server: &Server) {
    for (what, sql, says) in [
        ("an unknown table", "SELECT * FROM ucr.pregnancys", "pregnancys"),
        ("an unknown column", "SELECT nonsense FROM system.case_documents", "nonsense"),
        ("no SQL", "SELEKT 1", "SELEKT"),
        ("a write", "DELETE FROM system.case_documents", ""),
        ("two statements", "SELECT 1; SELECT 2", "one statement"),
    ] {
        let error = server.try_sql(sql, None).await.unwrap_err();
        assert!(error.starts_with('4'), "{what}: {error}");
        assert!(error.contains(says), "{what}: {error}");
    }
    let wire = server.wire().await;
    let error = wire.simple_query("SELECT * FROM ucr.pregnancys").await.unwrap_err();
    assert_eq!(error.code(), Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE), "{error:?}");
}

async fn wrong_receipts(server: &Server) {
    let begun = Instant::now();
    let future = server.try_sql("SELECT 1 AS one", Some("m1.0-0.99999999".parse().unwrap())).await.unwrap_err();
    assert!(future.starts_with("504") && future.contains("m1.0-0.99999999"), "{future}");
    assert!(begun.elapsed() < Duration::from_secs(20), "the wait ends at its limit");
    let got = reply(server.request(Method::POST, "sql?wait_for=yesterday").body("SELECT 1")).await.unwrap();
    assert_eq!(got.status, 400, "{}", got.text);
    assert!(got.text.contains("yesterday") && got.text.contains("X-Millrace-Position"), "{}", got.text);
    let wire = server.wire().await;
    wire.simple_query("SET millrace.wait_for = 'm1.0-0.99999999'").await.unwrap();
    let error = wire.simple_query("SELECT 1").await.unwrap_err();
    assert!(error.as_db_error().is_some_and(|error| error.message().contains("m1.0-0.99999999")), "{error:?}");
}

/// Runs a server that cannot start, to its end, and returns what it said.
fn run(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("the server started although it should not have: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn serve(config: &Path) -> Command {
    let mut command = millrace();
    command.args(["serve", "--config"]).arg(config);
    command
}

/// Runs a server that must not start; its message must hold every one of `says`, and no database may be left behind.
fn refuses_to_start(command: Command, home: &Path, says: &[&str]) {
    let output = run(command);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{message}");
    for words in says {
        assert!(message.contains(words), "`{words}` is not in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
    assert!(!home.join("data/postgres/PG_VERSION").exists(), "a database was left behind");
}

fn with(home: &Path, settings: &[String]) -> PathBuf {
    configure(home, &Options { settings: settings.to_vec(), ..Options::default() })
}

#[test]
fn a_taken_port_is_said_before_anything_is_touched() {
    let home = directory();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for setting in ["listen.http", "listen.postgres"] {
        let config = with(home.path(), &[]);
        let text = std::fs::read_to_string(&config).unwrap();
        let line = format!("{setting} = \"127.0.0.1:0\"");
        assert!(text.contains(&line));
        std::fs::write(&config, text.replace(&line, &format!("{setting} = {address:?}"))).unwrap();
        refuses_to_start(serve(&config), home.path(), &[&address, setting]);
    }
}

#[test]
fn missing_postgres_programs_are_named_with_the_way_to_get_them() {
    let home = directory();
    let empty = home.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let config = with(home.path(), &[format!("postgres.binaries = {:?}", empty.display().to_string())]);
    refuses_to_start(
        serve(&config),
        home.path(),
        &[&empty.display().to_string(), "initdb", "apt-get install postgresql"],
    );
}

#[test]
fn every_wrong_setting_is_listed() {
    let home = directory();
    let config = with(
        home.path(),
        &["ingest.lanes = 0".to_owned(), "nonsense = 1".to_owned(), "query.partitions = \"x\"".to_owned()],
    );
    refuses_to_start(serve(&config), home.path(), &["lanes", "nonsense", "query.partitions"]);
}

#[test]
fn a_full_disk_is_said_at_the_start() {
    let home = directory();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    if let Some(_mount) = Tmpfs::mount(&data, 32) {
        let config = with(home.path(), &[]);
        refuses_to_start(serve(&config), home.path(), &["MB", &data.display().to_string()]);
    } else {
        // Without the right to mount: files may not grow, which is how a full disk looks to initdb.
        let config = with(home.path(), &[]);
        let mut limited = millrace();
        let program = limited.get_program().to_owned();
        limited = Command::new("sh");
        limited.args(["-c", "ulimit -f 1000; exec \"$0\" serve --config \"$1\""]).arg(program).arg(&config);
        refuses_to_start(limited, home.path(), &["initdb"]);
    }
}

/// Keeps Postgres from writing further log until it is dropped: the disk is full or, where this process may not mount one of
/// its own, the log's directory is closed.
enum Obstacle {
    Full(PathBuf),
    Closed(PathBuf),
}

impl Obstacle {
    fn new(server: &Server) -> Self {
        if server.disk.is_none() {
            let log = server.data.join("postgres/pg_wal");
            std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o500)).unwrap();
            return Self::Closed(log);
        }
        let path = server.data.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let block = vec![0; 1 << 20];
        while file.write_all(&block).is_ok() {}
        Self::Full(path)
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        match self {
            Self::Full(path) => std::fs::remove_file(path).unwrap(),
            Self::Closed(log) => std::fs::set_permissions(log, std::fs::Permissions::from_mode(0o700)).unwrap(),
        }
    }
}

/// Text that does not compress to nothing.
fn noise(length: usize, seed: usize) -> String {
    let mut random = StdRng::seed_from_u64(u64::try_from(seed).unwrap());
    (0..length).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_up_loses_nothing_and_the_server_recovers() {
    let mut server = Server::start(&Options { disk_mb: Some(400), ..Options::default() }).await;
    let obstacle = Obstacle::new(&server);
    let mut acknowledged = Vec::new();
    let begun = Instant::now();
    let mut number = 100;
    let refused = loop {
        let reply = server.submit(&form(number, &noise(200_000, number))).await.unwrap();
        if reply.status != 201 {
            break reply;
        }
        acknowledged.push(format!("form-{number}"));
        number += 1;
        assert!(begun.elapsed() < DEADLINE, "the disk did not fill up after {} forms", acknowledged.len());
    };
    assert!(refused.status.is_server_error(), "{} {}", refused.status, refused.text);
    drop(obstacle);
    let last = eventually("a form after the disk was freed", async || {
        let reply = server.submit(&form(number, "fine")).await.map_err(|error| error.to_string())?;
        reply.position.filter(|_| reply.status == 201).ok_or(reply.text)
    })
    .await;
    server.useful().await;
    let rows = server.sql("SELECT doc_id FROM system.form_documents", Some(last)).await.rows;
    for id in &acknowledged {
        assert!(rows.iter().any(|row| row["doc_id"] == id.as_str()), "{id} was acknowledged and is gone");
    }
    assert_eq!(rows.len(), acknowledged.len() + 1);
}
