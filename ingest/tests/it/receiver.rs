//! Requests as devices and scripts send them: paths, bodies, limits.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use axum::http::{Request, StatusCode};
use ingest::IngestConfig;
use schemas::id::FormId;

use crate::{
    postgres,
    service::{Service, basic, case, create, demo, form, start, start_with, until},
};

fn post(service: &Service, path: &str) -> axum::http::request::Builder {
    Request::post(path).header("authorization", basic("admin@demo", &service.password))
}

/// A multipart body: (part name, file name, content).
fn multipart(parts: &[(&str, Option<&str>, &str)]) -> String {
    let mut body = String::new();
    for (name, file, content) in parts {
        let file = file.map(|file| format!("; filename=\"{file}\"")).unwrap_or_default();
        body.push_str(&format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{content}\r\n"));
    }
    body.push_str("--edge--\r\n");
    body
}

fn gzip(text: &str) -> Vec<u8> {
    let mut child = Command::new("gzip").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writing = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    output.stdout
}

#[tokio::test]
async fn every_path_takes_a_form_with_and_without_its_slash() {
    let service = start().await;
    let mut number = 0;
    for path in ["", "/submission", "/secure", "/api", "/app1", "/secure/app1"] {
        for slash in ["", "/"] {
            number += 1;
            let request = post(&service, &format!("/a/demo/receiver{path}{slash}"));
            let answer = service.send(request.body(form(&format!("f{number}"), "1", "").into()).unwrap()).await;
            assert_eq!(answer.status, StatusCode::CREATED, "{path}{slash} {answer:?}");
        }
    }
    assert_eq!(service.number("SELECT count(*) FROM forms WHERE app_id = 'app1'").await, 4);
    let get = service.call("GET", "/a/demo/receiver/", "").await;
    assert_eq!(get.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn parts_are_checked_as_the_contract_says() {
    let service = start().await;
    let xml = form("f1", "1", &case("c1", &create("X")));
    let form_part = ("xml_submission_file", Some("form.xml"), xml.as_str());
    for (parts, status, text) in [
        (vec![form_part, ("note", None, "x")], 400, "POST.keys()"),
        (vec![("photo", Some("a.jpg"), "x")], 400, "xml_submission_file"),
        (vec![("xml_submission_file", Some("form.txt"), xml.as_str())], 422, "processing_failure"),
        (vec![("xml_submission_file", Some("form.xml"), "")], 400, "empty"),
        (vec![form_part, ("tool", Some("a.exe"), "x")], 422, "processing_failure"),
        (vec![form_part, ("photo", Some("a.jpg"), "pixels")], 201, "submit_success"),
    ] {
        let request = post(&service, "/a/demo/receiver/").header("content-type", "multipart/form-data; boundary=edge");
        let answer = service.send(request.body(multipart(&parts).into()).unwrap()).await;
        assert_eq!(answer.status.as_u16(), status, "{parts:?} {answer:?}");
        assert!(answer.body.contains(text), "{answer:?}");
    }
    let photo = service.ingest.attachment(&demo(), &FormId::new("f1").unwrap(), "photo").await.unwrap().unwrap();
    assert_eq!(&photo.0[..], b"pixels");
    // An edit without the photo keeps it.
    service.stored(&form("f1", "2", &case("c1", &create("Y")))).await;
    let photo = service.ingest.attachment(&demo(), &FormId::new("f1").unwrap(), "photo").await.unwrap().unwrap();
    assert_eq!(&photo.0[..], b"pixels");
}

#[tokio::test]
async fn bodies_may_be_gzipped_and_limits_count_what_comes_out() {
    let database_url = postgres::database().await;
    let config =
        IngestConfig { database_url, max_form_bytes: 20_000, max_request_bytes: 50_000, ..IngestConfig::default() };
    let service = start_with(config).await;
    let send = async |id: &str, padding: usize, zipped: bool| {
        let xml = form(id, &"a".repeat(padding), "");
        let request = post(&service, "/a/demo/receiver/");
        let request = if zipped {
            request.header("content-encoding", "gzip").body(gzip(&xml).into())
        } else {
            request.body(xml.into())
        };
        service.send(request.unwrap()).await.status.as_u16()
    };
    assert_eq!(send("f1", 10_000, true).await, 201);
    assert_eq!(send("f2", 10_000, false).await, 201);
    assert_eq!(send("f3", 30_000, true).await, 413);
    assert_eq!(send("f4", 30_000, false).await, 413);
    assert_eq!(send("f5", 5_000_000, true).await, 413);
    let empty = service.call("POST", "/a/demo/receiver/", "").await;
    assert_eq!(empty.status, StatusCode::BAD_REQUEST);
    let unknown = service.call("POST", "/a/nowhere/receiver/", "x").await;
    assert_eq!((unknown.status, unknown.body.as_str()), (StatusCode::BAD_REQUEST, "No domain with name nowhere"));
}

#[tokio::test]
async fn raw_xml_is_found_before_and_after_it_moves() {
    let database_url = postgres::database().await;
    let service = start_with(IngestConfig { database_url, mover_delay_ms: 0, ..IngestConfig::default() }).await;
    let xml: Vec<String> = (0..5).map(|n| form(&format!("f{n}"), &"x".repeat(n * 100), "")).collect();
    for xml in &xml {
        service.stored(xml).await;
    }
    let read = async |n: usize| {
        let id = FormId::new(&format!("f{n}")).unwrap();
        service.ingest.form_xml(&demo(), &id).await.unwrap().map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    };
    assert_eq!(read(4).await.as_ref(), Some(&xml[4]));
    until(|| async { service.number("SELECT count(*) FROM xml_pending").await == 0 }).await;
    for (n, xml) in xml.iter().enumerate() {
        assert_eq!(read(n).await.as_ref(), Some(xml));
    }
    assert_eq!(read(9).await, None);
    let other = schemas::id::DomainId::new("other").unwrap();
    assert!(service.ingest.form_xml(&other, &FormId::new("f1").unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_domain_over_its_share_is_told_when_to_come_back() {
    let mut config = IngestConfig { database_url: postgres::database().await, ..IngestConfig::default() };
    config.rate_limits.enforced = true;
    config.rate_limits.longest_wait_ms = 0;
    config.rate_limits.forms.global = [0.0; 5];
    config.rate_limits.forms.per_domain = [1000.0, 1000.0, 2.0, 1000.0, 1000.0];
    let service = start_with(config).await;
    for number in 0..2 {
        service.stored(&form(&format!("f{number}"), "1", "")).await;
    }
    let refused = service.post(&form("f2", "1", "")).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{refused:?}");
    assert_eq!(refused.headers["retry-after"], "60");
    assert_eq!(service.number("SELECT count(*) FROM forms").await, 2);
    let elsewhere = schemas::id::DomainId::new("elsewhere").unwrap();
    service.ingest.accounts().create_domain(&elsewhere).await.unwrap();
    service.ingest.accounts().set_domain(&elsewhere, Some(false), None).await.unwrap();
    let request = Request::post("/a/elsewhere/receiver/").body(form("f3", "1", "").into()).unwrap();
    assert_eq!(service.send(request).await.status, StatusCode::CREATED, "others are not held back");
}

#[tokio::test]
async fn objects_that_nothing_points_to_are_swept() {
    let config = IngestConfig {
        database_url: postgres::database().await,
        inline_attachment_bytes: 4,
        mover_delay_ms: 0,
        ..IngestConfig::default()
    };
    let service = start_with(config).await;
    let blocks = case("c1", &create("A"));
    let first = form("f1", "1", &blocks);
    for (id, xml) in [("f1", &first), ("f2", &form("f2", "1", ""))] {
        let parts =
            [("xml_submission_file", Some("f.xml"), xml.as_str()), ("photo", Some("a.jpg"), "pixels of a photo")];
        let request = post(&service, "/a/demo/receiver/").header("content-type", "multipart/form-data; boundary=edge");
        let answer = service.send(request.body(multipart(&parts).into()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{id} {answer:?}");
    }
    until(async || service.number("SELECT count(*) FROM xml_pending").await == 0).await;
    let now = std::time::Duration::ZERO;
    assert_eq!(service.ingest.sweep_orphans(now).await.unwrap(), 0, "everything is pointed to");
    let client = service.client().await;
    // As if the second form's transaction had never been committed.
    client.batch_execute("DELETE FROM attachments WHERE form_id = 'f2'").await.unwrap();
    assert_eq!(service.ingest.sweep_orphans(std::time::Duration::from_secs(3600)).await.unwrap(), 0, "too young");
    assert_eq!(service.ingest.sweep_orphans(now).await.unwrap(), 1);
    assert!(service.ingest.attachment(&demo(), &FormId::new("f1").unwrap(), "photo").await.unwrap().is_some());
    client.batch_execute("DELETE FROM xml_packs").await.unwrap();
    let packs = service.ingest.sweep_orphans(now).await.unwrap();
    assert!((1..=2).contains(&packs), "{packs}");
}
