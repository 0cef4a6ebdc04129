//! `millrace import`: recorded submissions into a running server, from a directory of XML files or a file of JSON lines.
//!
//! What is done is written down beside the source, so that the same command goes on where it broke off. A form that cannot
//! be stored goes into a report file and holds nothing up.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use super::say;

/// Forms and bytes of one request.
const FORMS: usize = 500;
const BYTES: usize = 8 << 20;
/// Longest form that is read, in bytes; the server's own limit is lower.
const MAX_FORM: u64 = 64 << 20;
/// Attempts at a request that the server had no room for or did not answer, and the pause that grows between them.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for the answer to one request.
const ANSWER: Duration = Duration::from_secs(300);

/// Arguments of `import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Directory of `.xml` files, in the order of their paths, or a file of JSON lines with `xml` and, where it is known, `received_on`
    source: PathBuf,
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Domain that the forms belong to
    #[arg(long)]
    domain: String,
    /// A user who may edit data [default: admin@<domain>]
    #[arg(long)]
    user: Option<String>,
    /// The user's password
    #[arg(long, env = "MILLRACE_PASSWORD", hide_env_values = true)]
    password: String,
    /// Where forms that were not stored are listed, as JSON lines [default: the source's name and .rejected]
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where it is written down how many forms are done [default: the source's name and .imported]
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
}

/// A form with where it is from.
struct Form {
    from: String,
    row: Value,
    bytes: usize,
}

/// The forms of a source, in order.
enum Source {
    Files(std::vec::IntoIter<PathBuf>),
    Lines { path: PathBuf, reader: BufReader<File>, number: u64 },
}

impl Source {
    fn open(path: &Path) -> anyhow::Result<(Self, u64)> {
        let context = || format!("could not read {}", path.display());
        if path.is_dir() {
            let mut files = Vec::new();
            collect(path, &mut files).with_context(context)?;
            files.sort();
            let count = files.len() as u64;
            return Ok((Self::Files(files.into_iter()), count));
        }
        let lines = BufReader::new(File::open(path).with_context(context)?).lines();
        let mut count = 0;
        for line in lines {
            count += u64::from(!line.with_context(context)?.trim().is_empty());
        }
        let reader = BufReader::new(File::open(path).with_context(context)?);
        Ok((Self::Lines { path: path.to_owned(), reader, number: 0 }, count))
    }

    /// The next form; a line that is no JSON goes to the server as it is, which says what is wrong with it.
    fn next(&mut self) -> anyhow::Result<Option<Form>> {
        match self {
            Self::Files(files) => {
                let Some(path) = files.next() else { return Ok(None) };
                let context = || format!("could not read {}", path.display());
                let length = std::fs::metadata(&path).with_context(context)?.len();
                anyhow::ensure!(length <= MAX_FORM, "{} is larger than any form", path.display());
                let bytes = std::fs::read(&path).with_context(context)?;
                let from = path.display().to_string();
                let row = match String::from_utf8(bytes) {
                    Ok(xml) => json!({"xml": xml}),
                    Err(_) => json!({"xml": null, "not_utf8": true}),
                };
                Ok(Some(Form { from, row, bytes: usize::try_from(length).unwrap_or(usize::MAX) }))
            }
            Self::Lines { path, reader, number } => loop {
                let mut line = String::new();
                let context = || format!("could not read {}", path.display());
                if reader.read_line(&mut line).with_context(context)? == 0 {
                    return Ok(None);
                }
                *number += 1;
                if line.trim().is_empty() {
                    continue;
                }
                let row = match serde_json::from_str::<Value>(&line) {
                    Ok(Value::Object(fields)) => {
                        json!({"xml": fields.get("xml"), "received_on": fields.get("received_on")})
                    }
                    _ => json!({"not_json": true}),
                };
                return Ok(Some(Form { from: format!("line {number}"), row, bytes: line.len() }));
            },
        }
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("xml")) {
            files.push(path);
        }
    }
    Ok(())
}

/// What came of all of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    stored: u64,
    present: u64,
    failed: u64,
}

/// Imports.
///
/// # Errors
/// The source cannot be read, or the server cannot be reached or refuses the caller.
pub(crate) async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let beside = |ending: &str| {
        let mut name = args.source.clone().into_os_string();
        name.push(ending);
        PathBuf::from(name)
    };
    let state = args.state.clone().unwrap_or_else(|| beside(".imported"));
    let report_path = args.report.clone().unwrap_or_else(|| beside(".rejected"));
    let done = read_state(&state)?;
    let (mut source, total) = Source::open(&args.source)?;
    for _ in 0..done {
        source.next()?;
    }
    if done > 0 {
        say(format_args!("going on behind the first {done} forms, as {} says", state.display()));
    }
    let server = Server::new(&args)?;
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} forms  {per_sec}  {eta} left");
    let progress = ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    progress.set_position(done);
    progress.reset_eta();

    let mut report: Option<File> = None;
    let mut counts = Counts::default();
    let mut at = done;
    loop {
        let batch = batch(&mut source)?;
        if batch.is_empty() {
            break;
        }
        let answer = server.send(&batch).await?;
        let number = |name: &str| answer.get(name).and_then(Value::as_u64).unwrap_or_default();
        counts.stored += number("stored");
        counts.present += number("present");
        counts.failed += number("failed");
        for refused in answer.get("rows").and_then(Value::as_array).into_iter().flatten() {
            let row = refused.get("row").and_then(Value::as_u64).and_then(|row| usize::try_from(row).ok()).unwrap_or(0);
            let from = batch.get(row.wrapping_sub(1)).map(|form| form.from.as_str());
            let line = json!({"from": from, "form_id": refused.get("form_id"), "error": refused.get("error")});
            let context = || format!("could not write {}", report_path.display());
            let file = match &mut report {
                Some(file) => file,
                None => {
                    report.insert(File::options().create(true).append(true).open(&report_path).with_context(context)?)
                }
            };
            writeln!(file, "{line}").with_context(context)?;
        }
        at += batch.len() as u64;
        write_state(&state, at)?;
        progress.set_position(at);
    }
    progress.finish_and_clear();
    let Counts { stored, present, failed } = counts;
    say(format_args!("{stored} forms stored, {present} were stored already, {failed} rejected"));
    if failed > 0 {
        say(format_args!("why they were rejected is in {}", report_path.display()));
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn batch(source: &mut Source) -> anyhow::Result<Vec<Form>> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while batch.len() < FORMS && bytes < BYTES {
        let Some(form) = source.next()? else { break };
        bytes += form.bytes;
        batch.push(form);
    }
    Ok(batch)
}

fn read_state(path: &Path) -> anyhow::Result<u64> {
    match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse().with_context(|| format!("{} does not hold a number", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("could not read {}", path.display())),
    }
}

/// Replaces the file in one step, so that it always holds a number.
fn write_state(path: &Path, done: u64) -> anyhow::Result<()> {
    let context = || format!("could not write {}", path.display());
    let mut next = path.as_os_str().to_owned();
    next.push(".new");
    std::fs::write(&next, format!("{done}\n")).with_context(context)?;
    std::fs::rename(&next, path).with_context(context)
}

struct Server {
    client: Client,
    url: String,
    user: String,
    password: String,
}

impl Server {
    fn new(args: &ImportArgs) -> anyhow::Result<Self> {
        let client = Client::builder().timeout(ANSWER).build().context("could not make an HTTP client")?;
        let base = args.url.trim_end_matches('/');
        reqwest::Url::parse(base).with_context(|| format!("`{base}` is not a URL"))?;
        Ok(Self {
            client,
            url: format!("{base}/a/{}/import/forms/", args.domain),
            user: args.user.clone().unwrap_or_else(|| format!("admin@{}", args.domain)),
            password: args.password.clone(),
        })
    }

    /// Sends forms; what was stored before an answer was lost is found to be stored.
    async fn send(&self, batch: &[Form]) -> anyhow::Result<Value> {
        let lines: Vec<String> = batch.iter().map(|form| form.row.to_string()).collect();
        let body = lines.join("\n");
        let mut pause = PAUSE;
        for attempt in 1.. {
            let request = self.client.post(&self.url).basic_auth(&self.user, Some(&self.password)).body(body.clone());
            let failure = match request.send().await {
                Ok(answer) if answer.status() == StatusCode::OK => {
                    return answer.json().await.context("could not read the server's answer");
                }
                Ok(answer) if answer.status() == StatusCode::TOO_MANY_REQUESTS || answer.status().is_server_error() => {
                    format!("{} {}", answer.status(), answer.text().await.unwrap_or_default())
                }
                Ok(answer) => {
                    let status = answer.status();
                    anyhow::bail!("the server refused: {status} {}", answer.text().await.unwrap_or_default());
                }
                Err(error) => error.to_string(),
            };
            anyhow::ensure!(attempt < ATTEMPTS, "the server did not take the forms: {failure}");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        anyhow::bail!("the server did not take the forms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_in_order_and_lines_keep_their_numbers() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("b")).unwrap();
        for (name, text) in [("b/2.xml", "<two/>"), ("a.XML", "<one/>"), ("notes.txt", "no")] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let (mut source, count) = Source::open(directory.path()).unwrap();
        let forms = batch(&mut source).unwrap();
        assert_eq!((count, forms.len()), (2, 2));
        assert_eq!(forms[0].row["xml"], "<one/>");

        let lines = directory.path().join("s.jsonl");
        std::fs::write(&lines, "{\"xml\":\"<a/>\",\"received_on\":\"2024-01-01\",\"extra\":1}\n\nnonsense\n").unwrap();
        let (mut source, count) = Source::open(&lines).unwrap();
        let forms = batch(&mut source).unwrap();
        assert_eq!((count, forms[0].from.as_str(), forms[1].from.as_str()), (2, "line 1", "line 3"));
        assert_eq!(forms[0].row, json!({"xml": "<a/>", "received_on": "2024-01-01"}));
    }

    #[test]
    fn what_is_done_is_written_down() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.imported");
        assert_eq!(read_state(&path).unwrap(), 0);
        write_state(&path, 1500).unwrap();
        assert_eq!(read_state(&path).unwrap(), 1500);
        std::fs::write(&path, "many").unwrap();
        assert!(read_state(&path).is_err());
    }
}
