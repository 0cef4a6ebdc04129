//! The vectors' document stores as what `Related` asks.

use std::collections::BTreeMap;

use schemas::{change::DocKind, doc::Doc};
use serde_json::{Value as Json, json};
use udf::{Related, Relation};

/// Documents by id, edges by case, ledgers by case.
#[derive(Default)]
pub(crate) struct Store {
    documents: BTreeMap<String, Json>,
    forms_by_case: BTreeMap<String, Vec<String>>,
    subcases: BTreeMap<String, Vec<String>>,
    ledgers: Json,
    domain: Option<String>,
}

fn edges(json: &Json) -> BTreeMap<String, Vec<String>> {
    serde_json::from_value(json.clone()).unwrap_or_default()
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

    /// A store of documents alone.
    pub(crate) fn of_documents(documents: &BTreeMap<String, Json>) -> Self {
        Self { documents: documents.clone(), domain: Some("demo".to_owned()), ..Self::default() }
    }

    fn document(&self, id: &str, doc_type: &str) -> Option<Doc> {
        let json = self.documents.get(id)?;
        let own = json.get("doc_type").and_then(Json::as_str);
        own.is_none_or(|own| own == doc_type).then(|| Doc::from_value(json).unwrap())
    }

    fn listed(&self, ids: Option<&Vec<String>>) -> Vec<Doc> {
        let of = |id: &String| self.documents.get(id).map(|json| Doc::from_value(json).unwrap());
        ids.into_iter().flatten().filter_map(of).collect()
    }

    fn groups(&self, user: &str) -> Vec<Doc> {
        let member = |json: &&Json| {
            json["doc_type"] == "Group"
                && json["domain"].as_str() == self.domain.as_deref()
                && json["users"].as_array().is_some_and(|users| users.iter().any(|id| id == user))
        };
        self.documents.values().filter(member).map(|json| Doc::from_value(json).unwrap()).collect()
    }

    fn ledgers(&self, case: &str) -> Vec<Doc> {
        let mut found = Vec::new();
        for (section, products) in self.ledgers[case].as_object().into_iter().flatten() {
            for (product, balance) in products.as_object().unwrap() {
                let ledger = json!({"section_id": section, "product_code": product, "balance": balance});
                found.push(Doc::from_value(&ledger).unwrap());
            }
        }
        found
    }
}

impl Related for Store {
    fn get(&mut self, relation: &Relation, key: &str) -> Vec<Doc> {
        let kind = |kind: &DocKind| match kind {
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
            | DocKind::NamedFilter => "none",
        };
        match relation {
            Relation::Document(of) => self.document(key, kind(of)).into_iter().collect(),
            Relation::OtherDocument(doc_type) => self.document(key, doc_type).into_iter().collect(),
            Relation::Subcases => self.listed(self.subcases.get(key)),
            Relation::FormsOfCase => self.listed(self.forms_by_case.get(key)),
            Relation::CaseSharingGroups | Relation::ReportingGroups => self.groups(key),
            Relation::Ledgers => self.ledgers(key),
        }
    }
}
