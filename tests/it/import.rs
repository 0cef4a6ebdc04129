//! `millrace import` against a running server: it goes on where it broke off, and stores nothing twice.

use crate::server::{DOMAIN, Options, Server, millrace};

fn form(number: usize) -> String {
    let case = format!(
        "<case xmlns=\"http://commcarehq.org/case/transaction/v2\" case_id=\"c{}\" user_id=\"u\" \
         date_modified=\"2024-01-01T10:00:00Z\"><create><case_type>t</case_type><case_name>n{number}</case_name></create></case>",
        number % 50
    );
    format!(
        "<data xmlns=\"http://example.org/import\"><n>{number}</n>{case}\
         <meta><instanceID>f{number}</instanceID><userID>u</userID></meta></data>"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_goes_on_where_it_broke_off() {
    let server = Server::start(&Options { roles: Some("ingest"), ..Options::default() }).await;
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("forms.jsonl");
    let mut lines: Vec<String> = (0..1200).map(|number| serde_json::json!({"xml": form(number)}).to_string()).collect();
    lines.insert(700, serde_json::json!({"xml": "<broken"}).to_string());
    std::fs::write(&source, lines.join("\n")).unwrap();
    let import = || {
        let mut command = millrace();
        command.arg("import").arg(&source).args(["--domain", DOMAIN, "--url"]).arg(server.address());
        let output = command.env("MILLRACE_PASSWORD", &server.password).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (clean, said) = import();
    assert!(!clean && said.contains("1200 forms stored, 0 were stored already, 1 rejected"), "{said}");
    let rejected = std::fs::read_to_string(directory.path().join("forms.jsonl.rejected")).unwrap();
    assert!(rejected.contains("\"from\":\"line 701\"") && rejected.contains("Invalid XML"), "{rejected}");

    // As if it had been killed after the second request.
    std::fs::write(directory.path().join("forms.jsonl.imported"), "1000\n").unwrap();
    let (clean, said) = import();
    assert!(clean && said.contains("0 forms stored, 201 were stored already, 0 rejected"), "{said}");
    let (clean, said) = import();
    assert!(clean && said.contains("0 forms stored, 0 were stored already"), "{said}");
    let store = server.store().await;
    let counted = store.query_one("SELECT count(*) FROM forms WHERE state = 1", &[]).await.unwrap();
    assert_eq!(counted.get::<_, i64>(0), 1200);
}
