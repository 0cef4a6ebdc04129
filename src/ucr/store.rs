//! Documents as plain data: what [`Related`] asks when rows are computed from scratch, and the same as the change log
//! carries it.

use std::collections::BTreeMap;

use schemas::{change::DocKind, doc::Doc};
use serde_json::{Value as Json, json};
use udf::{Related, Relation};

use super::typed::stored;

/// Documents by id, and the edges that lead to them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    documents: BTreeMap<String, Json>,
    forms_by_case: BTreeMap<String, Vec<String>>,
    subcases: BTreeMap<String, Vec<String>>,
    ledgers: Json,
    domain: Option<String>,
}

/// A document as the change log carries it.
#[derive(Clone, Debug)]
pub(crate) struct Carried {
    pub(crate) kind: DocKind,
    pub(crate) id: String,
    pub(crate) body: Json,
}

/// `doc_type` of documents that are found under a kind; nothing for kinds that have none.
const fn doc_type(kind: DocKind) -> &'static str {
    match kind {
        DocKind::Case => "CommCareCase",
        DocKind::Form => "XFormInstance",
        DocKind::User => "CommCareUser",
        DocKind::WebUser => "WebUser",
        DocKind::Location => "Location",
        DocKind::Group => "Group",
        DocKind::LookupTable => "FixtureDataType",
        DocKind::LookupRow => "FixtureDataItem",
        DocKind::Application => "Application",
        DocKind::LocationType
        | DocKind::Ledger
        | DocKind::DataSource
        | DocKind::AggregateView
        | DocKind::NamedExpression
        | DocKind::NamedFilter => "",
    }
}

/// The kinds under which a document can be found. One that does not say what it is can be found under all that data
/// sources read.
pub(crate) fn kinds(body: &Json) -> Vec<DocKind> {
    match body["doc_type"].as_str() {
        Some(own) => {
            let current = own.trim_end_matches("-Deleted");
            let is = |kind: &DocKind| !doc_type(*kind).is_empty() && doc_type(*kind) == current;
            DocKind::ALL.into_iter().filter(is).collect()
        }
        None => vec![DocKind::Case, DocKind::Form, DocKind::User, DocKind::Location],
    }
}

fn edges(json: &Json) -> BTreeMap<String, Vec<String>> {
    serde_json::from_value(json.clone()).unwrap_or_default()
}

fn items(json: &Json) -> &[Json] {
    json.as_array().map_or(std::slice::from_ref(json), Vec::as_slice)
}

/// Ids of the cases that a form's blocks are about.
fn touched(node: &Json, found: &mut Vec<String>) {
    match node {
        Json::Array(items) => items.iter().for_each(|item| touched(item, found)),
        Json::Object(fields) => {
            for (name, value) in fields {
                if name == "case" {
                    found.extend(items(value).iter().filter_map(|block| block["@case_id"].as_str()).map(str::to_owned));
                } else {
                    touched(value, found);
                }
            }
        }
        _ => {}
    }
}

impl Store {
    /// The stores of a vector's context, for a root document of that domain.
    pub(crate) fn of_context(context: &Json, domain: Option<&str>) -> Self {
        Self {
            documents: serde_json::from_value(context["documents"].clone()).unwrap_or_default(),
            forms_by_case: edges(&context["forms_by_case"]),
            subcases: edges(&context["subcases"]),
            ledgers: context["ledgers"].clone(),
            domain: domain.map(str::to_owned),
        }
    }

    /// Documents of a domain, whose edges are in themselves.
    pub(crate) fn of_documents(documents: BTreeMap<String, Json>, domain: &str) -> Self {
        let mut store = Self { domain: Some(domain.to_owned()), ..Self::default() };
        for (id, body) in &documents {
            let (mut parents, mut cases) = (Vec::new(), Vec::new());
            for kind in kinds(body) {
                match kind {
                    DocKind::Case => {
                        let indices = body["indices"].as_array().into_iter().flatten();
                        parents.extend(indices.filter_map(|index| index["referenced_id"].as_str()));
                    }
                    DocKind::Form => touched(&body["form"], &mut cases),
                    _ => {}
                }
            }
            parents.sort_unstable();
            parents.dedup();
            cases.sort_unstable();
            cases.dedup();
            for parent in parents {
                store.subcases.entry(parent.to_owned()).or_default().push(id.clone());
            }
            for case in cases {
                store.forms_by_case.entry(case).or_default().push(id.clone());
            }
        }
        store.documents = documents;
        store
    }

    /// The documents by id.
    pub(crate) const fn documents(&self) -> &BTreeMap<String, Json> {
        &self.documents
    }

    /// Everything as the change log carries it: edges are in the documents, ledgers are documents.
    pub(crate) fn carried(&self) -> Vec<Carried> {
        let mut documents = self.documents.clone();
        for (case, forms) in &self.forms_by_case {
            for form in forms {
                if let Some(body) = documents.get_mut(form) {
                    touch(body, case);
                }
            }
        }
        for (parent, children) in &self.subcases {
            for child in children {
                if let Some(body) = documents.get_mut(child) {
                    index(body, parent);
                }
            }
        }
        let mut carried: Vec<Carried> = documents.iter().flat_map(|(id, body)| carried(id, body)).collect();
        for (case, section, product, balance) in self.balances() {
            carried.push(Carried {
                kind: DocKind::Ledger,
                id: format!("{case}/{section}/{product}"),
                body: json!({"case_id": case, "section_id": section, "product_code": product, "balance": balance}),
            });
        }
        carried
    }

    /// Case, section, product and balance of every ledger value.
    fn balances(&self) -> impl Iterator<Item = (&String, &String, &String, &Json)> {
        let cases = self.ledgers.as_object().into_iter().flatten();
        let sections = cases.flat_map(|(case, sections)| {
            sections.as_object().into_iter().flatten().map(move |(section, products)| (case, section, products))
        });
        sections.flat_map(|(case, section, products)| {
            let products = products.as_object().into_iter().flatten();
            products.map(move |(product, balance)| (case, section, product, balance))
        })
    }

    fn document(&self, id: &str, doc_type: &str) -> Option<Doc> {
        let json = self.documents.get(id)?;
        let own = json.get("doc_type").and_then(Json::as_str);
        own.is_none_or(|own| own == doc_type).then(|| read(json)).flatten()
    }

    fn listed(&self, ids: Option<&Vec<String>>) -> Vec<Doc> {
        ids.into_iter().flatten().filter_map(|id| self.documents.get(id).and_then(read)).collect()
    }

    fn groups(&self, user: &str) -> Vec<Doc> {
        let member = |json: &&Json| {
            json["doc_type"] == "Group"
                && json["domain"].as_str() == self.domain.as_deref()
                && json["users"].as_array().is_some_and(|users| users.iter().any(|id| id == user))
        };
        self.documents.values().filter(member).filter_map(read).collect()
    }

    fn ledgers(&self, of: &str) -> Vec<Doc> {
        let of_case = self.balances().filter(|(case, ..)| *case == of);
        let ledger = |(_, section, product, balance): (&String, &String, &String, &Json)| {
            read(&json!({"section_id": section, "product_code": product, "balance": balance}))
        };
        of_case.filter_map(ledger).collect()
    }
}

/// A document as it is evaluated; what cannot be read is not there.
fn read(json: &Json) -> Option<Doc> {
    Doc::from_value(&stored(json)).ok()
}

/// A document under every kind that it can be found by.
pub(crate) fn carried(id: &str, body: &Json) -> Vec<Carried> {
    let mut body = stored(body);
    // The files' groups are for every purpose.
    if body["doc_type"] == "Group" {
        for purpose in ["case_sharing", "reporting"] {
            if body[purpose].is_null() {
                body[purpose] = true.into();
            }
        }
    }
    kinds(&body).into_iter().map(|kind| Carried { kind, id: id.to_owned(), body: body.clone() }).collect()
}

/// Makes a form touch a case.
fn touch(form: &mut Json, case: &str) {
    let mut cases = Vec::new();
    touched(&form["form"], &mut cases);
    if cases.iter().any(|known| known == case) || !form.is_object() {
        return;
    }
    if !form["form"].is_object() {
        form["form"] = json!({});
    }
    let blocks = form["form"]["case"].take();
    let mut blocks = if blocks.is_null() { Vec::new() } else { items(&blocks).to_vec() };
    blocks.push(json!({"@case_id": case}));
    form["form"]["case"] = blocks.into();
}

/// Makes a case point at another.
fn index(child: &mut Json, parent: &str) {
    if !child.is_object() {
        return;
    }
    let mut indices = child["indices"].as_array().cloned().unwrap_or_default();
    if indices.iter().all(|index| index["referenced_id"] != parent) {
        indices.push(json!({"identifier": "parent", "referenced_id": parent, "relationship": "child"}));
    }
    child["indices"] = indices.into();
}

impl Related for Store {
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc> {
        match relation {
            Relation::Document(kind) => self.document(key, doc_type(*kind)).into_iter().collect(),
            Relation::OtherDocument(doc_type) => self.document(key, doc_type).into_iter().collect(),
            Relation::Subcases => self.listed(self.subcases.get(key)),
            Relation::FormsOfCase => self.listed(self.forms_by_case.get(key)),
            Relation::CaseSharingGroups | Relation::ReportingGroups => self.groups(key),
            Relation::Ledgers => self.ledgers(key),
        }
    }
}
