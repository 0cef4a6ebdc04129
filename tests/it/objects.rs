//! Raw forms and attachments in a bucket: shipped there, read back from there, swept there, and no form held up while it is
//! away.

use std::{
    collections::BTreeMap,
    process::Output,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use ingest::{Ingest, IngestConfig};
use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use reqwest::{Method, StatusCode};
use schemas::port::SystemClock;

use crate::{
    pipeline::form_with_case,
    s3::{S3, SECRET},
    server::{DOMAIN, Options, Reply, Server, configure, directory, eventually, millrace, reply, signal},
};

const PREFIX: &str = "objects/of-demo";

/// Longest that a small form may take while the bucket is away; far less than any of the store's own time limits.
const UNAFFECTED: Duration = Duration::from_secs(2);

/// Bytes of stored files by their path below `api/form/attachment/`.
type Files = BTreeMap<String, Vec<u8>>;

#[tokio::test(flavor = "multi_thread")]
async fn objects_live_in_a_bucket_and_forms_do_not_wait_for_it() {
    let Some(s3) = S3::start() else { return };
    let mut settings = s3.settings(PREFIX);
    settings.push("ingest.mover_delay_ms = 200".to_owned());
    let mut server = Server::start(&Options { settings, ..Options::default() }).await;
    let mut files = Files::new();
    let photo = photo(1);
    for number in 0..40 {
        stored(&server, number, &mut files).await;
    }
    let whole = with_photo(&server, 40, &photo).await;
    assert_eq!(whole.status, 201, "{}", whole.text);
    files.insert("form-40/photo.jpg".to_owned(), photo.clone());
    shipped(&server).await;
    assert!(std::fs::read_dir(server.data.join("objects")).is_err(), "nothing is kept beside the bucket");
    assert_eq!(read_back(&server, &files).await, []);

    s3.kill();
    let mut slowest = Duration::ZERO;
    for number in 50..90 {
        slowest = slowest.max(stored(&server, number, &mut files).await);
    }
    assert!(slowest < UNAFFECTED, "a form took {slowest:?} while the bucket was away");
    println!("slowest form while the bucket was away: {slowest:?}");
    let refused = with_photo(&server, 90, &photo).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.text);
    let of = |file: &str| Files::from([(file.to_owned(), files[file].clone())]);
    assert_eq!(read_back(&server, &of("form-89/form.xml")).await, [], "what is still in Postgres can be read");
    assert_eq!(read_back(&server, &of("form-7/form.xml")).await, [("form-7/form.xml".to_owned(), 503)]);
    stored(&server, 91, &mut files).await;

    s3.revive();
    assert_eq!(with_photo(&server, 90, &photo).await.status, 201, "the phone tries again");
    files.insert("form-90/photo.jpg".to_owned(), photo);
    shipped(&server).await;
    assert_eq!(read_back(&server, &files).await, []);

    orphans_are_swept(&s3, &server).await;
    assert_eq!(read_back(&server, &files).await, []);

    let mover = server.store().await;
    // A store that takes connections and does not answer: neither forms nor the end wait for it.
    signal("STOP", s3.pid());
    for number in 100..120 {
        let taken = stored(&server, number, &mut files).await;
        assert!(taken < UNAFFECTED, "a form took {taken:?} while the bucket did not answer");
    }
    eventually("a request of the mover", async || {
        let waiting: i64 = mover.query_one(MOVING, &[]).await.unwrap().get(0);
        if waiting == 1 { Ok(()) } else { Err("it has not begun".to_owned()) }
    })
    .await;
    let begun = Instant::now();
    assert!(server.stop().await.success());
    assert!(begun.elapsed() < Duration::from_secs(10), "the end took {:?}", begun.elapsed());
    signal("CONT", s3.pid());
    server.restart().await;
    shipped(&server).await;
    assert_eq!(read_back(&server, &files).await, []);
    assert!(!server.log().contains(SECRET));
}

/// Movers that have read rows and wait for the bucket.
const MOVING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE '%xml_pending%'";

/// Puts objects that nothing points to beside the others, and has them swept.
async fn orphans_are_swept(s3: &S3, server: &Server) {
    let bucket = s3.bucket(PREFIX);
    let kept = names(&*bucket).await;
    let orphans = [
        format!("attachments/{DOMAIN}/{}", uuid::Uuid::new_v4().simple()),
        format!("xml/2026-01-31/{}.pack", uuid::Uuid::new_v4().simple()),
    ];
    for name in &orphans {
        bucket.put(&Path::from(name.as_str()), b"nobody's".to_vec().into()).await.unwrap();
    }
    let stranger = s3.bucket("elsewhere/attachments/demo");
    stranger.put(&Path::from("other"), b"another program's".to_vec().into()).await.unwrap();
    let config = IngestConfig { database_url: server.database_url(), ..IngestConfig::default() };
    let ingest = Ingest::open(config, Arc::clone(&bucket), Arc::new(SystemClock)).await.unwrap();
    assert_eq!(ingest.sweep_orphans(Duration::from_secs(3600)).await.unwrap(), 0, "they may be on their way");
    // Packs whose rows were not committed when the bucket went away count too.
    assert!(ingest.sweep_orphans(Duration::ZERO).await.unwrap() >= 2);
    ingest.shutdown().await;
    let left = names(&*bucket).await;
    assert!(left.iter().all(|name| kept.contains(name)), "{left:?}");
    let store = server.store().await;
    for row in store.query("SELECT DISTINCT pack FROM xml_packs", &[]).await.unwrap() {
        assert!(left.contains(&row.get(0)));
    }
    assert_eq!(names(&*stranger).await, ["other"]);
}

async fn names(bucket: &dyn ObjectStore) -> Vec<String> {
    let listed: Vec<_> = bucket.list(None).try_collect().await.unwrap();
    listed.into_iter().map(|object| object.location.to_string()).collect()
}

fn form(number: u32) -> String {
    let block = "<create><case_type>thing</case_type><case_name>Thing</case_name><owner_id>nobody</owner_id></create>";
    form_with_case(&format!("form-{number}"), &format!("case-{number}"), block)
}

/// Noise, as long as a small photo.
fn photo(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 300_000];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// Stores a form and returns how long that took.
async fn stored(server: &Server, number: u32, files: &mut Files) -> Duration {
    let xml = form(number);
    let begun = Instant::now();
    let reply = server.submit(&xml).await.unwrap();
    assert_eq!(reply.status, 201, "{}", reply.text);
    files.insert(format!("form-{number}/form.xml"), xml.into_bytes());
    begun.elapsed()
}

/// Posts a form with a photo, as phones do.
async fn with_photo(server: &Server, number: u32, photo: &[u8]) -> Reply {
    let mut body = Vec::new();
    for (name, file, kind, bytes) in [
        ("xml_submission_file", "form.xml", "text/xml", form(number).as_bytes()),
        ("photo.jpg", "photo.jpg", "image/jpeg", photo),
    ] {
        let head = format!(
            "--part\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{file}\"\r\nContent-Type: {kind}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--part--\r\n");
    let request = server.request(Method::POST, "receiver/");
    reply(request.header("content-type", "multipart/form-data; boundary=part").body(body)).await.unwrap()
}

/// Waits until no raw XML is left in Postgres.
async fn shipped(server: &Server) {
    let store = server.store().await;
    eventually("the mover", async || {
        let left: i64 = store.query_one("SELECT count(*) FROM xml_pending", &[]).await.unwrap().get(0);
        if left == 0 { Ok(()) } else { Err(format!("{left} are left")) }
    })
    .await;
}

/// Reads files over HTTP; those that are not as they were sent.
async fn read_back(server: &Server, files: &Files) -> Vec<(String, u16)> {
    let mut wrong = Vec::new();
    for (path, sent) in files {
        let request = server.request(Method::GET, &format!("api/form/attachment/{path}"));
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        if answer.bytes().await.unwrap() != sent.as_slice() {
            wrong.push((path.clone(), status));
        }
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_cannot_be_used_is_said_at_the_start() {
    let Some(s3) = S3::start() else { return };
    let settings = s3.settings(PREFIX);
    let other = settings.iter().map(|line| line.replace("s3://millrace/", "s3://nowhere/")).collect::<Vec<_>>();
    assert!(said(&run("check", &settings)).contains("ok     object store: bucket `millrace`"));
    expect_refusal(&other, &["there is no such bucket", "objects.url"]);
    s3.know_keys(false).await;
    expect_refusal(&settings, &["does not know the access key", "objects.s3.access_key_id", "AWS_ACCESS_KEY_ID"]);
    s3.know_keys(true).await;
    s3.kill();
    expect_refusal(&settings, &["Connection refused", "objects.s3.endpoint"]);
}

fn expect_refusal(settings: &[String], parts: &[&str]) {
    for command in ["serve", "check"] {
        let begun = Instant::now();
        let output = run(command, settings);
        let said = said(&output);
        assert!(!output.status.success(), "{command}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{command}: {said}");
        assert!(!said.contains(SECRET), "{command}: {said}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{command} took {:?}", begun.elapsed());
    }
}

fn run(command: &str, settings: &[String]) -> Output {
    let home = directory();
    let file = configure(home.path(), &Options { settings: settings.to_vec(), ..Options::default() });
    millrace().args([command, "--config"]).arg(file).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
