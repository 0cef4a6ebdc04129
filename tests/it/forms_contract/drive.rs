//! Does what a scenario says, and keeps what was answered.

use std::{collections::BTreeMap, path::Path};

use ingest::{
    devicelog,
    xform::{self, ParseLimits},
};
use reqwest::{Method, RequestBuilder};
use schemas::{change::ChangeRecord, position::Sequence};
use serde_json::{Map, Value};
use tokio_postgres::Client;

use super::text;
use crate::server::{Server, records};

/// Tables that hold what scenarios leave behind.
const TABLES: &str = "forms, form_operations, cases, case_indices, case_transactions, attachments, xml_pending, xml_packs, \
     ledger_values, ledger_transactions, device_logs, tombstones";

/// An answer to a submission.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
    pub(super) headers: BTreeMap<String, String>,
    /// Id the form is stored under.
    pub(super) form_id: Option<String>,
}

/// A part of a multipart body; a file has a name and a media type.
struct Part<'a> {
    name: &'a str,
    file: Option<(&'a str, &'a str)>,
    bytes: Vec<u8>,
}

fn multipart(request: RequestBuilder, parts: &[Part<'_>]) -> RequestBuilder {
    const EDGE: &str = "edge-of-the-parts-of-a-scenario";
    let mut body = Vec::new();
    for part in parts {
        let file = part.file.map(|(name, kind)| format!("; filename=\"{name}\"\r\nContent-Type: {kind}"));
        let head = format!(
            "--{EDGE}\r\nContent-Disposition: form-data; name=\"{}\"{}\r\n\r\n",
            part.name,
            file.unwrap_or_default()
        );
        body.extend(head.into_bytes());
        body.extend(&part.bytes);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{EDGE}--\r\n").into_bytes());
    request.header("content-type", format!("multipart/form-data; boundary={EDGE}")).body(body)
}

/// A scenario under way.
pub(super) struct Run<'s> {
    pub(super) server: &'s Server,
    pub(super) directory: &'s Path,
    pub(super) store: Client,
    pub(super) domain: String,
    /// User id of the domain's administrator.
    pub(super) user_id: String,
    pub(super) answers: Vec<Answer>,
    /// What steps without a server came to.
    pub(super) value: Option<Value>,
    /// Held form locks: their connections.
    held: Vec<Client>,
    began: Sequence,
    /// Where the newest step's records begin.
    pub(super) step_began: Sequence,
}

impl<'s> Run<'s> {
    /// An empty store and a domain with the scenario's flags.
    pub(super) async fn start(server: &'s Server, directory: &'s Path, scenario: &Value) -> Self {
        let store = server.store().await;
        store.batch_execute(&format!("TRUNCATE {TABLES}")).await.unwrap();
        let domain = text(scenario, "domain").to_owned();
        let mut domains: Vec<&str> = vec![&domain];
        domains.extend(super::steps(scenario).iter().filter_map(|step| step["domain"].as_str()));
        let flags: Vec<&str> = scenario["flags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let (secure, flags): (Vec<_>, Vec<_>) =
            flags.into_iter().partition(|flag| *flag == "domain.secure_submissions");
        for domain in domains {
            server.create_domain(domain);
            let settings = serde_json::json!({"secure_submissions": !secure.is_empty(), "flags": flags});
            let answer = server.request_in(Method::PUT, domain, "settings").json(&settings).send().await.unwrap();
            assert!(answer.status().is_success(), "{domain}: {}", answer.text().await.unwrap());
        }
        let admin = format!("admin@{domain}");
        let row = store.query_one("SELECT id FROM accounts WHERE username = $1", &[&admin]).await.unwrap();
        let user_id = row.get(0);
        let row = store.query_one("SELECT sequence FROM lanes WHERE lane = 0", &[]).await.unwrap();
        let began = Sequence(u64::try_from(row.get::<_, i64>(0)).unwrap());
        Self {
            server,
            directory,
            store,
            domain,
            user_id,
            answers: Vec::new(),
            value: None,
            held: Vec::new(),
            began,
            step_began: began,
        }
    }

    /// Records since the scenario began.
    pub(super) async fn records(&self) -> Vec<ChangeRecord> {
        records(&self.store, self.began).await
    }

    /// Bytes of a file of the contract.
    pub(super) fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// `<0>` is the id given to submission 0.
    pub(super) fn resolved(&self, text: &str) -> String {
        let inner = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
        let answer = inner.and_then(|number| self.answers.get(number.parse::<usize>().ok()?));
        answer.and_then(|answer| answer.form_id.clone()).unwrap_or_else(|| text.to_owned())
    }

    /// Does one step.
    ///
    /// # Errors
    /// Why it could not be done.
    pub(super) async fn step(&mut self, step: &Value) -> Result<(), String> {
        let row = self.store.query_one("SELECT sequence FROM lanes WHERE lane = 0", &[]).await.unwrap();
        self.step_began = Sequence(u64::try_from(row.get::<_, i64>(0)).unwrap());
        match text(step, "op") {
            "submit" => self.submit(step).await,
            "http" => self.plain_field(step).await,
            op @ ("archive" | "unarchive" | "reprocess") => self.form_operation(step, op).await,
            "soft_delete_form" => self.form_operation(step, "delete").await,
            "soft_delete_case" => self.operate(&format!("cases/{}/delete", text(step, "case")), None).await,
            "hard_delete_case_and_forms" => self.operate(&format!("cases/{}/purge", text(step, "case")), None).await,
            "hold_form_lock" => {
                self.hold(text(step, "form")).await;
                Ok(())
            }
            "parse_json" => {
                let bytes = self.file(text(step, "file"));
                let json = xform::read_json(&bytes, &ParseLimits::default()).map_err(|error| error.to_string())?;
                self.value = Some(Value::Object(json));
                Ok(())
            }
            "adjust_datetimes" => {
                self.value = Some(xform::normalised(text(step, "value")).unwrap_or_default().into());
                Ok(())
            }
            "shard_hash_uuid" => {
                let id: uuid::Uuid = text(step, "value").parse().map_err(|error| format!("{error}"))?;
                self.value = Some(schemas::id::document_hash(id.as_bytes()).into());
                Ok(())
            }
            op => Err(format!("operation `{op}` is not known")),
        }
    }

    async fn submit(&mut self, step: &Value) -> Result<(), String> {
        let known = [
            "op",
            "file",
            "substitute",
            "domain",
            "headers",
            "query",
            "path",
            "auth",
            "attachments",
            "sync_token",
            "received_on",
            "transport",
            "may_raise",
        ];
        if let Some(unknown) =
            step.as_object().into_iter().flatten().map(|(key, _)| key).find(|key| !known.contains(&key.as_str()))
        {
            return Err(format!("`{unknown}` of a submission is not known"));
        }
        let mut form = self.file(text(step, "file"));
        if let Some(substitutes) = step["substitute"].as_object() {
            let mut xml = String::from_utf8(form).map_err(|error| error.to_string())?;
            for (from, to) in substitutes {
                xml = xml.replace(from, to.as_str().unwrap_or_default());
            }
            form = xml.into_bytes();
        }
        let domain = step["domain"].as_str().unwrap_or(&self.domain);
        let path = if text(step, "path") == "secure" { "receiver/secure/" } else { "receiver/" };
        let query = step["query"].as_str().map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("{path}{query}");
        let mut request = match step.get("auth") {
            Some(Value::Null) => self.server.anonymous(Method::POST, domain, &path),
            _ => self.server.request_in(Method::POST, domain, &path),
        };
        for (name, value) in step["headers"].as_object().into_iter().flatten() {
            request = request.header(name, value.as_str().unwrap_or_default());
        }
        if let Some(token) = step["sync_token"].as_str() {
            request = request.header("X-CommCareHQ-LastSyncToken", token);
        }
        if let Some(received_on) = step["received_on"].as_str() {
            request = request.header("X-Submit-Time", received_on);
        }
        let files = step["attachments"].as_object();
        request = if files.is_some() || text(step, "transport") == "multipart" {
            let mut parts =
                vec![Part { name: "xml_submission_file", file: Some(("form.xml", "text/xml")), bytes: form }];
            for (name, file) in files.into_iter().flatten() {
                let bytes = self.file(text(file, "file"));
                parts.push(Part { name, file: Some((text(file, "file"), text(file, "content_type"))), bytes });
            }
            multipart(request, &parts)
        } else {
            request.header("content-type", "text/xml").body(form)
        };
        self.send(request).await
    }

    async fn plain_field(&mut self, step: &Value) -> Result<(), String> {
        let fields = step["multipart_field"].as_object().ok_or("`multipart_field` is missing")?;
        let part = |(name, value): (&'_ String, &'_ Value)| {
            (name.clone(), value.as_str().unwrap_or_default().to_owned().into_bytes())
        };
        let fields: Vec<(String, Vec<u8>)> = fields.iter().map(part).collect();
        let parts: Vec<Part<'_>> =
            fields.iter().map(|(name, bytes)| Part { name, file: None, bytes: bytes.clone() }).collect();
        self.send(multipart(self.server.request_in(Method::POST, &self.domain, "receiver/"), &parts)).await
    }

    async fn send(&mut self, request: RequestBuilder) -> Result<(), String> {
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let header = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
            (name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned())
        };
        let headers: BTreeMap<String, String> = answer.headers().iter().map(header).collect();
        let form_id = headers.get("x-commcarehq-formid").cloned();
        let status = answer.status().as_u16();
        let body = answer.text().await.map_err(|error| error.to_string())?;
        self.answers.push(Answer { status, body, headers, form_id });
        Ok(())
    }

    async fn form_operation(&mut self, step: &Value, act: &str) -> Result<(), String> {
        let form = self.resolved(text(step, "form"));
        self.operate(&format!("forms/{form}/{act}"), step["user"].as_str()).await
    }

    /// An operation; one that finds that it cannot be done is no failure of the scenario.
    async fn operate(&mut self, path: &str, user: Option<&str>) -> Result<(), String> {
        let request = self.server.request_in(Method::POST, &self.domain, path);
        let request = match user {
            Some(user) => request.query(&[("user_id", user)]),
            None => request,
        };
        let answer = request.send().await.map_err(|error| error.to_string())?;
        match answer.status().as_u16() {
            200 | 422 => Ok(()),
            status => Err(format!("{path}: {status} {}", answer.text().await.unwrap_or_default())),
        }
    }

    /// Locks a form id as another writer would.
    async fn hold(&mut self, form: &str) {
        let other = self.server.store().await;
        let key = ingest::submit::form_lock(&schemas::id::FormId::new(form).unwrap());
        other.execute("SELECT pg_advisory_lock($1)", &[&key]).await.unwrap();
        self.held.push(other);
    }

    /// The elements of a device report's subreport.
    pub(super) fn subreport(&self, group: &str, element: &str) -> Value {
        let report = self.value.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
        let found: Vec<Map<String, Value>> =
            devicelog::subreport(&report, group, element).into_iter().cloned().collect();
        serde_json::to_value(found).unwrap()
    }
}
