//! Compares what a scenario left behind with what it expects.

use ingest::{
    submit::apply::CaseState,
    xform::{self, ParseLimits},
};
use schemas::{
    change::{ChangeRecord, DocKind},
    time::parse_micros,
};
use serde_json::{Map, Value, json};

use super::{drive::Run, text};

/// Names of transaction bits.
const FLAGS: [(&str, i64); 7] = [
    ("form", 1),
    ("ledger", 64),
    ("case_create", 128),
    ("case_close", 256),
    ("case_index", 512),
    ("case_attachment", 1024),
    ("form_reprocessed", 2048),
];
const STATES: [(&str, i64); 6] =
    [("normal", 1), ("archived", 2), ("deprecated", 4), ("duplicate", 8), ("error", 16), ("submission_error_log", 32)];

/// Expectations that only say how to read others.
const MODIFIERS: [&str; 2] = ["ignore_keys", "override"];

/// What is otherwise than expected, one line each; an expectation that is not known is one of them.
pub(super) async fn judge(run: &Run<'_>, expect: &Value) -> Vec<String> {
    let Some(expect) = expect.as_object() else { return Vec::new() };
    let mut failures = Vec::new();
    for (key, wanted) in expect {
        if MODIFIERS.contains(&key.as_str()) {
            continue;
        }
        if let Err(failure) = one(run, key, wanted, expect).await {
            failures.push(format!("{key}: {failure}"));
        }
    }
    failures
}

type Judgement = Result<(), String>;

fn same(found: &Value, wanted: &Value) -> Judgement {
    let equal = match (found, wanted) {
        (_, Value::String(any)) if any == "not null" || any == "set" => !found.is_null() && found != "",
        (_, Value::String(own)) if own == "the authenticated user id" => return Err("not resolved".to_owned()),
        (Value::String(a), Value::String(b)) => a == b || parse_micros(a).is_some_and(|at| parse_micros(b) == Some(at)),
        (Value::Number(micros), Value::String(time)) => {
            micros.as_i64().is_some() && parse_micros(time) == micros.as_i64()
        }
        (Value::Object(found), Value::Object(wanted)) => {
            for (key, wanted) in wanted {
                same(found.get(key).unwrap_or(&Value::Null), wanted).map_err(|failure| format!("{key}: {failure}"))?;
            }
            true
        }
        (Value::Array(found), Value::Array(wanted)) if found.len() == wanted.len() => {
            for (number, (found, wanted)) in found.iter().zip(wanted).enumerate() {
                same(found, wanted).map_err(|failure| format!("{number}: {failure}"))?;
            }
            true
        }
        (found, wanted) => found == wanted,
    };
    if equal { Ok(()) } else { Err(format!("is {found}, expected {wanted}")) }
}

fn contains(found: &str, wanted: &Value) -> Judgement {
    let wanted = wanted.as_str().unwrap_or_default();
    if found.contains(wanted) { Ok(()) } else { Err(format!("is {found:?}, expected to contain {wanted:?}")) }
}

/// Rows of a statement that returns one JSON text a row.
async fn rows(run: &Run<'_>, sql: &str, parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)]) -> Vec<Value> {
    let rows = run.store.query(sql, parameters).await.unwrap();
    rows.iter().map(|row| serde_json::from_str(row.get(0)).unwrap()).collect()
}

async fn case_row(run: &Run<'_>, id: &str) -> Result<Value, String> {
    let found = rows(run, "SELECT row_to_json(c)::text FROM cases c WHERE id = $1", &[&id]).await;
    found.into_iter().next().ok_or_else(|| format!("there is no case {id}"))
}

/// A case as the rules see it.
async fn case_state(run: &Run<'_>, id: &str) -> Result<CaseState, String> {
    let row = case_row(run, id).await?;
    let sql = "SELECT row_to_json(i)::text FROM case_indices i WHERE case_id = $1 ORDER BY place";
    let mut case = row.clone();
    for name in ["properties", "xform_ids", "attachments"] {
        case[name] = serde_json::from_str(text(&row, name)).map_err(|error| error.to_string())?;
    }
    case["case_id"] = row["id"].clone();
    case["case_type"] = row["type"].clone();
    case["indices"] = json!(rows(run, sql, &[&id]).await);
    serde_json::from_value(case).map_err(|error| error.to_string())
}

async fn transactions(run: &Run<'_>, case_id: &str) -> Vec<Value> {
    let sql = "SELECT row_to_json(t)::text FROM case_transactions t WHERE case_id = $1 ORDER BY server_date, written";
    rows(run, sql, &[&case_id]).await
}

fn flags(transaction: &Value) -> Value {
    let bits = transaction["type"].as_i64().unwrap_or_default();
    FLAGS.iter().filter(|(_, bit)| bits & bit != 0).map(|(name, _)| *name).collect()
}

fn is_form(transaction: &&Value) -> bool {
    transaction["type"].as_i64().unwrap_or_default() & 1 != 0
}

/// The newest document of a form.
async fn document(run: &Run<'_>, id: &str) -> Result<Value, String> {
    let records = run.records().await;
    let mut documents = records.iter().flat_map(|record| &record.documents);
    let found = documents.rfind(|document| document.kind == DocKind::Form && document.id.as_str() == id);
    let body = found.and_then(|document| document.body.as_ref()).ok_or_else(|| format!("there is no form {id}"))?;
    serde_json::from_str(body.get()).map_err(|error| error.to_string())
}

async fn form_row(run: &Run<'_>, id: &str) -> Result<Value, String> {
    let sql = "SELECT (row_to_json(f)::jsonb - 'document_zstd')::text FROM forms f WHERE id = $1";
    rows(run, sql, &[&id]).await.into_iter().next().ok_or_else(|| format!("there is no form {id}"))
}

/// The id of a form that is named by id, by the position of its submission, or as the one that an edit pushed aside.
async fn form_id(run: &Run<'_>, name: &str) -> Result<String, String> {
    if name == "<deprecated>" {
        let found = run.store.query_opt("SELECT id FROM forms WHERE state = 4", &[]).await.unwrap();
        return found.map(|row| row.get(0)).ok_or_else(|| "no form is deprecated".to_owned());
    }
    if let Ok(position) = name.parse::<usize>()
        && let Some(answer) = run.answers.get(position)
    {
        return answer.form_id.clone().ok_or_else(|| format!("submission {name} was not stored: {}", answer.body));
    }
    Ok(name.to_owned())
}

async fn raw_xml(run: &Run<'_>, id: &str) -> Result<Vec<u8>, String> {
    let path = format!("api/form_attachment/v1/{id}/form.xml");
    let answer = run.server.request_in(reqwest::Method::GET, &run.domain, &path).send().await;
    let answer = answer.map_err(|error| error.to_string())?;
    if !answer.status().is_success() {
        return Err(format!("{path}: {}", answer.status()));
    }
    Ok(answer.bytes().await.map_err(|error| error.to_string())?.to_vec())
}

async fn raw_xml_is(run: &Run<'_>, id: &str, wanted: &Value) -> Judgement {
    let file = wanted.as_str().filter(|file| run.directory.join(file).is_file());
    let file = file.ok_or_else(|| format!("there is no file {wanted}"))?;
    if raw_xml(run, id).await? == run.file(file) { Ok(()) } else { Err(format!("is not {file}")) }
}

/// The answer to a submission, against `{status, nature, body_contains}`.
fn answer_is(run: &Run<'_>, position: usize, wanted: &Value) -> Judgement {
    let answer = run.answers.get(position).ok_or_else(|| format!("there is no answer {position}"))?;
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        match key.as_str() {
            "status" => same(&json!(answer.status), wanted)?,
            "nature" => contains(&answer.body, &json!(format!("nature=\"{}\"", wanted.as_str().unwrap_or_default())))?,
            "body_contains" => contains(&answer.body, wanted)?,
            key => return Err(format!("`{key}` of an answer is not known")),
        }
    }
    Ok(())
}

/// The messages on CommCare's topics that records become: (topic, id, deletion).
fn published(records: &[ChangeRecord]) -> Vec<(&'static str, Value, bool)> {
    let documents = records.iter().flat_map(|record| record.documents.iter().map(move |document| (record, document)));
    documents
        .filter(|(_, document)| document.document_type != "XFormDeprecated")
        .filter_map(|(record, document)| {
            let deletion = document.body.is_none() || document.document_type.ends_with("-Deleted");
            let said = json!({"document_id": document.id.as_str(), "domain": record.domain.as_str()});
            Some((document.kind.feed()?, said, deletion))
        })
        .collect()
}

async fn one(run: &Run<'_>, key: &str, wanted: &Value, expect: &Map<String, Value>) -> Judgement {
    match key {
        "cases" => {
            for (id, wanted) in wanted.as_object().into_iter().flatten() {
                for (key, wanted) in wanted.as_object().into_iter().flatten() {
                    case(run, id, key, wanted).await.map_err(|failure| format!("{id}: {key}: {failure}"))?;
                }
            }
            Ok(())
        }
        "forms" => {
            for (name, wanted) in wanted.as_object().into_iter().flatten() {
                let id = form_id(run, name).await?;
                for (key, wanted) in wanted.as_object().into_iter().flatten() {
                    form(run, &id, key, wanted).await.map_err(|failure| format!("{name}: {key}: {failure}"))?;
                }
            }
            Ok(())
        }
        "http" => {
            let wanted = wanted.as_array().cloned().unwrap_or_default();
            if wanted.len() != run.answers.len() {
                return Err(format!("{} answers, expected {}", run.answers.len(), wanted.len()));
            }
            wanted.iter().enumerate().try_for_each(|(position, wanted)| answer_is(run, position, wanted))
        }
        "http_last" => answer_is(run, run.answers.len().saturating_sub(1), wanted),
        "nature" => wanted
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .try_for_each(|(position, nature)| answer_is(run, position, &json!({"nature": nature}))),
        "response_contains" => contains(&run.answers.last().ok_or("no answer")?.body, wanted),
        "response_header_present" | "response_header_absent" => {
            let answer = run.answers.last().ok_or("no answer")?;
            for name in wanted.as_array().into_iter().flatten().filter_map(Value::as_str) {
                if answer.headers.contains_key(&name.to_lowercase()) != (key == "response_header_present") {
                    return Err(format!("{name}; the answer was {answer:?}"));
                }
            }
            Ok(())
        }
        "touched_case_count" => {
            let records = schemas::position::Sequence(run.step_began.0);
            let records = crate::server::records(&run.store, records).await;
            let cases = records.iter().flat_map(|record| &record.documents);
            let ids: std::collections::BTreeSet<&str> =
                cases.filter(|document| document.kind == DocKind::Case).map(|document| document.id.as_str()).collect();
            same(&json!(ids.len()), wanted)
        }
        "each_case_form_count" => {
            for case in rows(run, "SELECT row_to_json(c)::text FROM cases c", &[]).await {
                let forms: Value = serde_json::from_str(text(&case, "xform_ids")).unwrap();
                same(&json!(forms.as_array().map(Vec::len)), wanted)?;
            }
            Ok(())
        }
        "case_count_in_domain" => {
            let row = run.store.query_one("SELECT count(*) FROM cases WHERE domain = $1", &[&run.domain]).await;
            same(&json!(row.unwrap().get::<_, i64>(0)), wanted)
        }
        "exactly_one_closed_case_after_first" => {
            let closed = rows(run, "SELECT to_json(id)::text FROM cases WHERE closed", &[]).await;
            same(&json!(closed), &json!([wanted]))
        }
        "transaction_flags_first_form" | "transaction_flags_second_form_include" => {
            let id = rows(run, "SELECT to_json(id)::text FROM cases WHERE closed", &[]).await;
            let all = transactions(run, id.first().and_then(Value::as_str).unwrap_or_default()).await;
            if key == "transaction_flags_first_form" {
                return same(&sorted(&flags(all.first().ok_or("no transaction")?)), &sorted(wanted));
            }
            let second = flags(all.last().ok_or("no transaction")?);
            let has = |flag: &Value| second.as_array().is_some_and(|flags| flags.contains(flag));
            match wanted.as_array().into_iter().flatten().find(|flag| !has(flag)) {
                Some(flag) => Err(format!("is {second}, expected to include {flag}")),
                None => Ok(()),
            }
        }
        "form_added_to_case_history" => {
            let form = run.answers.last().and_then(|answer| answer.form_id.clone()).ok_or("no form")?;
            let case = rows(run, "SELECT to_json(xform_ids)::text FROM cases", &[]).await;
            let listed = case.iter().any(|ids| ids.as_str().is_some_and(|ids| ids.contains(&form)));
            same(&json!(listed), wanted)
        }
        "form_ids_differ" => {
            let names: Vec<&str> = wanted.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            if names.iter().any(|name| name.parse::<usize>().map_or(true, |at| at >= run.answers.len())) {
                return Err(format!("{names:?} are no submissions"));
            }
            let (a, b) = (form_id(run, names[0]).await?, form_id(run, names[1]).await?);
            if names[0] != names[1] && a != b { Ok(()) } else { Err(format!("both are {a}")) }
        }
        "received_on_equal" => {
            let names: Vec<&str> = wanted.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let mut times = Vec::new();
            for name in &names {
                let id = form_id(run, name).await?;
                times.push(form_row(run, &id).await?["received_on"].clone());
            }
            if times.iter().all(|time| *time == times[0]) { Ok(()) } else { Err(format!("{times:?}")) }
        }
        "form_json_file" => {
            let file = wanted.as_str().filter(|file| run.directory.join(file).is_file());
            let bytes = run.file(file.ok_or_else(|| format!("there is no file {wanted}"))?);
            let mut wanted: Map<String, Value> = serde_json::from_slice(&bytes).unwrap();
            for (name, value) in expect.get("override").and_then(Value::as_object).into_iter().flatten() {
                wanted.insert(name.clone(), value.clone());
            }
            for name in expect.get("ignore_keys").and_then(Value::as_array).into_iter().flatten() {
                wanted.remove(name.as_str().unwrap_or_default());
            }
            // The original's tests of some scenarios hand the form over without HTTP: no sender, and a context of its own.
            if wanted.get("auth_context").is_some_and(|context| context["doc_type"] == "DefaultAuthContext") {
                wanted.remove("auth_context");
                wanted.remove("submit_ip");
            }
            let id = form_id(run, "0").await?;
            same(&document(run, &id).await?, &Value::Object(wanted))
        }
        "json_file" => {
            let file = wanted.as_str().filter(|file| run.directory.join(file).is_file());
            let bytes = run.file(file.ok_or_else(|| format!("there is no file {wanted}"))?);
            let wanted: Value = serde_json::from_slice(&bytes).unwrap();
            let found = run.value.clone().unwrap_or_default();
            if found == wanted { Ok(()) } else { Err(format!("is {found}, expected {wanted}")) }
        }
        "hash32" | "value" => same(run.value.as_ref().ok_or("nothing was computed")?, wanted),
        "log_subreport.log" => {
            let found = run.subreport("log_subreport", "log");
            if found == *wanted { Ok(()) } else { Err(format!("is {found}, expected {wanted}")) }
        }
        "ledgers" => {
            for (id, wanted) in wanted.as_object().into_iter().flatten() {
                let sql = "SELECT to_json(balance)::text FROM ledger_values \
                     WHERE case_id || '/' || section_id || '/' || entry_id = $1";
                let found = rows(run, sql, &[id]).await.into_iter().next().unwrap_or_default();
                same(&found, wanted).map_err(|failure| format!("{id}: {failure}"))?;
            }
            Ok(())
        }
        "ledger_transactions" => {
            let sql = "SELECT json_build_object('type', CASE type WHEN 1 THEN 'balance' ELSE 'transfer' END, \
                 'entry_id', entry_id, 'section_id', section_id, 'delta', delta, 'updated_balance', updated_balance)::text \
                 FROM ledger_transactions ORDER BY written, number";
            same(&json!(rows(run, sql, &[]).await), wanted)
        }
        "published" => {
            let said = published(&run.records().await);
            for (topic, wanted) in wanted.as_object().into_iter().flatten() {
                let found: Vec<&Value> =
                    said.iter().filter(|(on, _, _)| on == topic).map(|(_, said, _)| said).collect();
                same(&json!(found), wanted).map_err(|failure| format!("{topic}: {failure}"))?;
            }
            Ok(())
        }
        "published_case_changes" => {
            let said = published(&crate::server::records(&run.store, run.step_began).await);
            let found: Vec<&Value> = said
                .iter()
                .filter(|(topic, _, _)| *topic == "case-sql")
                .map(|(_, said, _)| &said["document_id"])
                .collect();
            same(&json!(found), wanted)
        }
        "published_deletions" => {
            let said = published(&crate::server::records(&run.store, run.step_began).await);
            same(&json!(said.iter().filter(|(_, _, deletion)| *deletion).count()), wanted)
        }
        "all_is_deletion" => {
            let said = published(&crate::server::records(&run.store, run.step_began).await);
            same(&json!(said.iter().all(|(_, _, deletion)| *deletion)), wanted)
        }
        "processing_error" => {
            let problems =
                rows(run, "SELECT to_json(coalesce(problem, ''))::text FROM forms WHERE state = 16", &[]).await;
            contains(problems.first().and_then(Value::as_str).unwrap_or("no error form"), wanted)
        }
        "restore_v2_case_block" => {
            let blocks = rows(run, "SELECT to_json(id)::text FROM cases", &[]).await;
            let mut found = Vec::new();
            for id in blocks.iter().filter_map(Value::as_str) {
                found.push(ingest::restore::case_block(&case_state(run, id).await?));
            }
            // Attributes may come in any order.
            let json = |xml: &str| xform::read_json(xml.as_bytes(), &ParseLimits::default()).ok();
            let wanted = json(wanted.as_str().unwrap_or_default()).ok_or("expected XML")?;
            if found.iter().any(|block| json(block).as_ref() == Some(&wanted)) {
                Ok(())
            } else {
                Err(format!("none of {found:?}"))
            }
        }
        "stored_duplicate" => stored_in_state(run, 8, wanted).await,
        "submission_error_log" => stored_in_state(run, 32, wanted).await,
        "device_log" => device_log(run, wanted).await,
        key => Err(format!("expectation `{key}` is not known")),
    }
}

fn sorted(list: &Value) -> Value {
    let mut texts: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    texts.sort_unstable();
    json!(texts)
}

/// The one form in a state.
async fn stored_in_state(run: &Run<'_>, state: i16, wanted: &Value) -> Judgement {
    let found = run.store.query_opt("SELECT id FROM forms WHERE state = $1 ORDER BY stamp LIMIT 1", &[&state]).await;
    let id: String = found.unwrap().map(|row| row.get(0)).ok_or_else(|| format!("no form in state {state}"))?;
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        form(run, &id, key, wanted).await.map_err(|failure| format!("{key}: {failure}"))?;
    }
    Ok(())
}

async fn form(run: &Run<'_>, id: &str, key: &str, wanted: &Value) -> Judgement {
    let row = form_row(run, id).await?;
    match key {
        "state" => {
            let state = row["state"].as_i64().unwrap_or_default();
            let name = STATES.iter().find(|(_, bit)| *bit == state).map_or("unknown", |(name, _)| *name);
            same(&json!(name), wanted)
        }
        "form_id" if wanted.as_str().is_some_and(|text| text.starts_with("generated")) => Ok(()),
        "form_id" => same(&json!(id), wanted),
        "form_id_not" => match same(&json!(id), wanted) {
            Ok(()) => Err(format!("is {wanted}")),
            Err(_) if wanted.as_str().is_some_and(|other| !other.starts_with("wrong ")) => Ok(()),
            Err(failure) => Err(failure),
        },
        "problem" | "orig_id" | "deprecated_form_id" | "edited_on" => same(&row[key], wanted),
        "problem_contains" => contains(text(&row, "problem"), wanted),
        "initial_processing_complete" => same(&row["processed"], wanted),
        "raw_xml_equals" => raw_xml_is(run, id, wanted).await,
        "history" | "history_users" => {
            let column = if key == "history" { "operation" } else { "user_id" };
            let sql = format!("SELECT to_json({column})::text FROM form_operations WHERE form_id = $1 ORDER BY at");
            let stored = json!(rows(run, &sql, &[&id]).await);
            same(&stored, wanted)?;
            let member = if key == "history" { "operation" } else { "user" };
            let document = document(run, id).await?;
            let shown: Vec<&Value> =
                document["history"].as_array().into_iter().flatten().map(|entry| &entry[member]).collect();
            same(&json!(shown), wanted)
        }
        "attachments_include" => {
            let names = rows(run, "SELECT to_json(name)::text FROM attachments WHERE form_id = $1", &[&id]).await;
            match wanted.as_array().into_iter().flatten().find(|name| !names.contains(name)) {
                Some(name) => Err(format!("is {names:?}, expected to include {name}")),
                None => Ok(()),
            }
        }
        "form_data" => {
            let document = document(run, id).await?;
            let wanted = wanted.as_object().ok_or("expected an object")?;
            if wanted.is_empty() && document["form"] != json!({}) {
                return Err(format!("is {}", document["form"]));
            }
            for (path, wanted) in wanted {
                let found = path.split('.').fold(&document["form"], |value, part| &value[part]);
                same(found, wanted).map_err(|failure| format!("{path}: {failure}"))?;
            }
            Ok(())
        }
        "auth_context" => {
            let document = document(run, id).await?;
            let mut wanted = wanted.clone();
            if wanted["user_id"] == "the authenticated user id" {
                wanted["user_id"] = json!(run.user_id);
            }
            same(&document["auth_context"], &wanted)
        }
        "metadata" => {
            let document = document(run, id).await?;
            let mut found = document["metadata"].clone();
            if let Some(location) = found["location"].as_str().map(str::to_owned) {
                let parts: Vec<&str> = location.split(' ').collect();
                let names = ["latitude", "longitude", "altitude", "accuracy"];
                let parts: Map<String, Value> =
                    names.into_iter().zip(parts).map(|(name, part)| (name.to_owned(), json!(part))).collect();
                found["location_parts"] = Value::Object(parts);
            }
            same(&found, wanted)
        }
        key => Err(format!("`{key}` of a form is not known")),
    }
}

async fn case(run: &Run<'_>, id: &str, key: &str, wanted: &Value) -> Judgement {
    let row = case_row(run, id).await?;
    match key {
        "type" | "name" | "owner_id" | "opened_by" | "opened_on" | "modified_by" | "modified_on" | "closed"
        | "closed_by" | "closed_on" | "deleted" | "external_id" => same(&row[key], wanted),
        "properties" => {
            let properties: Value = serde_json::from_str(text(&row, "properties")).unwrap();
            same(&properties, wanted)
        }
        "properties_absent" => {
            let properties: Value = serde_json::from_str(text(&row, "properties")).unwrap();
            match wanted.as_array().into_iter().flatten().find(|name| properties.get(name.as_str().unwrap()).is_some())
            {
                Some(name) => Err(format!("{name} is there")),
                None => Ok(()),
            }
        }
        "xform_ids" => {
            let wanted: Vec<String> =
                wanted.as_array().into_iter().flatten().filter_map(Value::as_str).map(|id| run.resolved(id)).collect();
            same(&serde_json::from_str(text(&row, "xform_ids")).unwrap(), &json!(wanted))
        }
        "index_count" | "live_index_count" | "indices" => {
            let sql = "SELECT row_to_json(i)::text FROM case_indices i WHERE case_id = $1 ORDER BY place";
            let indices = rows(run, sql, &[&id]).await;
            let live: Vec<&Value> = indices.iter().filter(|index| !text(index, "referenced_id").is_empty()).collect();
            if key != "indices" {
                return same(&json!(live.len()), wanted);
            }
            let by_name: Map<String, Value> =
                live.into_iter().map(|index| (text(index, "identifier").to_owned(), index.clone())).collect();
            same(&Value::Object(by_name), wanted)
        }
        "attachments" => {
            let attachments: Map<String, Value> = serde_json::from_str(text(&row, "attachments")).unwrap();
            same(&json!(attachments.keys().collect::<Vec<_>>()), wanted)
        }
        "attachment_bytes_equal" => {
            for (name, file) in wanted.as_object().into_iter().flatten() {
                let path = format!("api/case/attachment/{id}/{name}");
                let answer = run.server.request_in(reqwest::Method::GET, &run.domain, &path).send().await.unwrap();
                if !answer.status().is_success() {
                    return Err(format!("{path}: {}", answer.status()));
                }
                let file = file.as_str().filter(|file| run.directory.join(file).is_file()).ok_or("no such file")?;
                if answer.bytes().await.unwrap() != run.file(file) {
                    return Err(format!("{name} is not {file}"));
                }
            }
            Ok(())
        }
        "server_modified_on_equals" if wanted == "form.edited_on" => {
            let edited =
                rows(run, "SELECT to_json(edited_on)::text FROM forms WHERE state = 1 AND edited_on IS NOT NULL", &[])
                    .await;
            same(&row["server_modified_on"], edited.first().unwrap_or(&Value::Null))
        }
        _ => case_history(run, id, key, wanted).await,
    }
}

async fn case_history(run: &Run<'_>, id: &str, key: &str, wanted: &Value) -> Judgement {
    let all = transactions(run, id).await;
    let forms: Vec<&Value> = all.iter().filter(is_form).collect();
    match key {
        "transaction_count" => same(&json!(all.len()), wanted),
        "form_transaction_count" => same(&json!(forms.len()), wanted),
        "closing_transactions" => {
            let closing = forms.iter().filter(|row| row["type"].as_i64().unwrap_or_default() & 256 != 0).count();
            same(&json!(closing), wanted)
        }
        "transaction_forms" => same(&json!(forms.iter().map(|row| &row["form_id"]).collect::<Vec<_>>()), wanted),
        "no_transaction_revoked" => same(&json!(all.iter().all(|row| row["revoked"] == false)), wanted),
        "first_transaction_is_create" => {
            let create = all.first().is_some_and(|row| row["type"].as_i64().unwrap_or_default() & 128 != 0);
            same(&json!(create), wanted)
        }
        "first_transaction_flags" => same(&sorted(&flags(all.first().ok_or("none")?)), &sorted(wanted)),
        "second_transaction_flags" => same(&sorted(&flags(all.get(1).ok_or("none")?)), &sorted(wanted)),
        "transaction_kinds" => {
            let kind = |row: &Value| match row["type"].as_i64().unwrap_or_default() {
                bits if bits & 1 == 0 => "rebuild",
                bits if bits & 64 != 0 => "form with ledger flag",
                _ => "form",
            };
            let kinds: Vec<&str> = all.iter().map(kind).collect();
            let wanted: Vec<&str> = wanted
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(|kind| if kind == "form (no ledger flag)" { "form" } else { kind })
                .collect();
            same(&json!(kinds), &json!(wanted))
        }
        key => Err(format!("`{key}` of a case is not known")),
    }
}

async fn device_log(run: &Run<'_>, wanted: &Value) -> Judgement {
    let mut found = Map::new();
    for (kind, count) in [
        ("log", "log_entries"),
        ("user", "user_entries"),
        ("user_error", "user_error_entries"),
        ("force_close", "force_close_entries"),
    ] {
        let entries = rows(run, "SELECT entry FROM device_logs WHERE kind = $1 ORDER BY number", &[&kind]).await;
        found.insert(count.to_owned(), json!(entries.len()));
        let mut entries = entries.into_iter();
        for place in ["first", "second"] {
            if let Some(entry) = entries.next() {
                if place == "first" {
                    found.insert(kind.to_owned(), entry.clone());
                }
                found.insert(format!("{place}_{kind}"), entry);
            }
        }
    }
    same(&Value::Object(found), wanted)
}

/// Every expectation with one of its values made wrong, and where.
pub(super) fn corruptions(expect: &Value) -> Vec<(String, Value)> {
    let mut places = Vec::new();
    leaves(expect, String::new(), &mut places);
    places.retain(|place| !MODIFIERS.iter().any(|name| place.starts_with(&format!("/{name}"))));
    let corrupt = |place: String| {
        let mut wrong = expect.clone();
        let present = present_instead(expect, &place);
        let value = wrong.pointer_mut(&place)?;
        *value = match value.take() {
            Value::Bool(truth) => Value::Bool(!truth),
            Value::Number(number) => json!(number.as_i64()? + 1),
            Value::Null => json!("wrong"),
            Value::String(any) if any == "not null" || any == "set" => Value::Null,
            Value::String(text) => json!(present.unwrap_or_else(|| format!("wrong {text}"))),
            Value::Array(list) if list.is_empty() => json!(["wrong"]),
            _ => return None,
        };
        Some((place, wrong))
    };
    places.into_iter().filter_map(corrupt).collect()
}

/// Something that is there, for the place of something that is expected to be absent.
fn present_instead(expect: &Value, place: &str) -> Option<String> {
    let (of, _) = place.split_once("_absent")?;
    if place.starts_with("/response_header") {
        return Some("content-type".to_owned());
    }
    expect.pointer(of)?.as_object()?.keys().next().cloned()
}

fn leaves(value: &Value, place: String, places: &mut Vec<String>) {
    let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(members) if !members.is_empty() => {
            members.iter().for_each(|(name, value)| leaves(value, format!("{place}/{}", escaped(name)), places));
        }
        Value::Array(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(number, value)| leaves(value, format!("{place}/{number}"), places));
        }
        _ => places.push(place),
    }
}
