//! `millrace ucr explain`: what a data source makes of documents, or everything that is wrong with it.

use std::{collections::BTreeSet, fmt, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde_json::Value as Json;
use udf::{DataSource, Demand, Relation, SpecErrors};

use crate::cli::say;

/// Arguments of `ucr explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A data source document, or a static one with its `domains` and `config`
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is said of a definition.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Explanation {
    /// It can be maintained.
    Valid(Box<Plan>),
    /// It cannot.
    Invalid(Problems),
}

/// What a data source makes of documents.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    domain: String,
    /// Its names in the schema `ucr`.
    tables: Vec<String>,
    /// Kind of the documents it reads.
    documents: &'static str,
    /// Case types or xmlns that can have rows; `null` for any.
    subtypes: Option<Vec<String>>,
    gate: Option<Gate>,
    rows: &'static str,
    reads_clock: bool,
    columns: Vec<Column>,
    related: Vec<Related>,
    indexes: Vec<Vec<String>>,
    cost: Cost,
}

/// The property that tells documents apart before anything is evaluated.
#[derive(Debug, Serialize)]
struct Gate {
    property: String,
    texts: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Column {
    name: String,
    datatype: &'static str,
    required: bool,
    key: bool,
}

/// Other documents that a row may be made of.
#[derive(Debug, Serialize)]
struct Related {
    documents: String,
    /// The expression for the key.
    key: Json,
    /// The entry that the key is computed on, from 1; `null` for the document itself.
    through: Option<usize>,
    reads: BTreeSet<String>,
    pointers: Vec<String>,
}

/// What one change of a document costs at most.
#[derive(Debug, Serialize)]
struct Cost {
    /// Expressions and filters evaluated for a row; named ones count once.
    expressions: usize,
    /// Questions for other documents, where a list of documents is one.
    lookups: usize,
}

/// Everything that is wrong.
#[derive(Debug, Serialize)]
pub(crate) struct Problems {
    pub(crate) problems: Vec<Problem>,
    /// Types that this release does not have.
    pub(crate) unknown_types: BTreeSet<String>,
}

/// One thing that is wrong.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    /// Where, as a JSON pointer into the file.
    pub(crate) pointer: String,
    pub(crate) message: String,
}

/// Explains the file; fails if there are problems.
///
/// # Errors
/// The file cannot be read or is not JSON.
pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let place = || format!("could not read {}", args.file.display());
    let document: Json =
        serde_json::from_str(&std::fs::read_to_string(&args.file).with_context(place)?).with_context(place)?;
    let explanation = Explanation::of(&document);
    if args.json {
        say(serde_json::to_string_pretty(&explanation)?);
    } else {
        say(&explanation);
    }
    Ok(match explanation {
        Explanation::Valid(_) => ExitCode::SUCCESS,
        Explanation::Invalid(_) => ExitCode::FAILURE,
    })
}

/// The data source of a document and where it stands in it: a static one is inside, and belongs to several domains.
fn definition(document: &Json) -> (Json, &'static str) {
    let Some(config) = document.get("config").filter(|config| config.is_object()) else {
        return (document.clone(), "");
    };
    let mut config = config.clone();
    if let (Some(fields), Some(domain)) = (config.as_object_mut(), document["domains"].get(0)) {
        fields.entry("domain").or_insert_with(|| domain.clone());
    }
    (config, "/config")
}

impl Explanation {
    /// Explains a document.
    pub(crate) fn of(document: &Json) -> Self {
        let (definition, pointer) = definition(document);
        match DataSource::compile(&definition) {
            Ok(source) => Self::Valid(Box::new(Plan::of(&source))),
            Err(errors) => Self::Invalid(Problems::of(errors, pointer)),
        }
    }
}

impl Problems {
    fn of(errors: SpecErrors, above: &str) -> Self {
        let problem = |problem: udf::SpecProblem| Problem {
            pointer: format!("{above}{}", problem.pointer),
            message: problem.message,
        };
        Self { problems: errors.problems.into_iter().map(problem).collect(), unknown_types: errors.unknown_types }
    }
}

impl Plan {
    fn of(source: &DataSource) -> Self {
        let mut tables = vec![source.readable_name().to_owned()];
        if source.table_name() != source.readable_name() {
            tables.push(source.table_name().to_owned());
        }
        let key = &source.schema().key;
        let columns = source.columns().iter().zip(&source.schema().columns).enumerate();
        Self {
            domain: source.domain().to_owned(),
            tables,
            documents: source.kind().name(),
            subtypes: source.subtypes().map(<[String]>::to_vec),
            gate: source
                .gate()
                .map(|gate| Gate { property: gate.property.name().to_owned(), texts: gate.texts.clone() }),
            rows: if source.has_base_items() { "one per base item" } else { "one per document" },
            reads_clock: source.reads_clock(),
            columns: columns
                .map(|(at, (column, sql))| Column {
                    name: sql.name.clone(),
                    datatype: column.datatype.name(),
                    required: column.is_required(),
                    key: key.contains(&at),
                })
                .collect(),
            related: source.demands().iter().map(Related::of).collect(),
            indexes: source.indexes().to_vec(),
            cost: Cost { expressions: source.parts(), lookups: source.demands().len() },
        }
    }
}

impl Related {
    fn of(demand: &Demand) -> Self {
        Self {
            documents: match &demand.relation {
                Relation::Document(kind) => kind.name().to_owned(),
                Relation::OtherDocument(doc_type) => doc_type.to_string(),
                Relation::Subcases => "cases that point at the case".to_owned(),
                Relation::FormsOfCase => "forms that touched the case".to_owned(),
                Relation::CaseSharingGroups => "case-sharing groups of the user".to_owned(),
                Relation::ReportingGroups => "reporting groups of the user".to_owned(),
                Relation::Ledgers => "ledger values of the case".to_owned(),
            },
            key: demand.key.clone(),
            through: demand.through.map(|through| through + 1),
            reads: demand.reads.clone(),
            pointers: demand.pointers.clone(),
        }
    }
}

/// A key's expression in a few words.
fn words(key: &Json) -> String {
    let text = |name: &str| key[name].as_str().unwrap_or_default().to_owned();
    match key["type"].as_str() {
        None if key.is_null() => "the value".to_owned(),
        None => {
            key.get("index").and_then(Json::as_str).map_or_else(|| key.to_string(), |index| format!("index {index}"))
        }
        Some("property_name") => text("property_name"),
        Some("property_path") => {
            let path = key["property_path"].as_array().into_iter().flatten();
            path.filter_map(Json::as_str).collect::<Vec<_>>().join(".")
        }
        Some("root_doc") => words(&key["expression"]),
        Some("named") => format!("named {}", text("name")),
        Some(other) => format!("{other} (…)"),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid(plan) => plan.fmt(f),
            Self::Invalid(problems) => problems.fmt(f),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables: Vec<String> = self.tables.iter().map(|table| format!("ucr.{table}")).collect();
        writeln!(f, "table      {} of domain {}", tables.join(" and "), self.domain)?;
        let subtypes = self.subtypes.as_ref().map_or_else(|| "any".to_owned(), |subtypes| subtypes.join(", "));
        writeln!(f, "documents  {}, type or xmlns: {subtypes}", self.documents)?;
        match &self.gate {
            Some(gate) => writeln!(f, "gate       {} is one of: {}", gate.property, gate.texts.join(", "))?,
            None => writeln!(f, "gate       none: every document of that type is evaluated")?,
        }
        writeln!(f, "rows       {}", self.rows)?;
        let clock = if self.reads_clock { "read: rows change every day" } else { "not read" };
        writeln!(f, "clock      {clock}")?;
        let Cost { expressions, lookups } = &self.cost;
        writeln!(f, "cost       at most {expressions} expressions a row and {lookups} look-ups a document")?;
        writeln!(f, "\ncolumns ({})", self.columns.len())?;
        let width = self.columns.iter().map(|column| column.name.len()).max().unwrap_or_default();
        for Column { name, datatype, required, key } in &self.columns {
            let note = match (key, required) {
                (true, _) => "  key",
                (false, true) => "  never null",
                (false, false) => "",
            };
            writeln!(f, "  {name:width$}  {datatype}{note}")?;
        }
        writeln!(f, "\nrelated documents ({})", self.related.len())?;
        for (number, Related { documents, key, through, reads, pointers }) in self.related.iter().enumerate() {
            let of = through.map(|through| format!(" of {through}")).unwrap_or_default();
            let read = match reads.is_empty() {
                true => "the whole".to_owned(),
                false => reads.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
            };
            writeln!(f, "  {}. {documents} by {}{of}; reads {read}", number + 1, words(key))?;
            let more = pointers.len().saturating_sub(1);
            if let Some(first) = pointers.first() {
                let more = if more > 0 { format!(" and at {more} more places") } else { String::new() };
                writeln!(f, "     at {first}{more}")?;
            }
        }
        write!(f, "\nindexes asked for ({}); every table is indexed by doc_id", self.indexes.len())?;
        for columns in &self.indexes {
            write!(f, "\n  {}", columns.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} problems", self.problems.len())?;
        for Problem { pointer, message } in &self.problems {
            write!(f, "\n  {}: {message}", if pointer.is_empty() { "/" } else { pointer })?;
        }
        if !self.unknown_types.is_empty() {
            let names: Vec<&str> = self.unknown_types.iter().map(String::as_str).collect();
            write!(f, "\nunknown types: {}", names.join(", "))?;
        }
        Ok(())
    }
}
