//! Documents that fit a data source, drawn from its definition: where it reads a property they have it, where it compares
//! one with a constant they often have that constant, and what it takes for an id is one.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use schemas::change::DocKind;
use serde_json::{Map, Value as Json, json};

/// What is known of the values at a place of documents of a kind.
#[derive(Debug, Default)]
struct Place {
    children: BTreeMap<String, Place>,
    /// What the elements of a list there are like.
    element: Option<Box<Place>>,
    /// Constants that it is compared with.
    constants: Vec<Json>,
    /// Datatypes that it is converted to.
    datatypes: BTreeSet<String>,
    /// It is the id of such a document.
    id_of: Option<DocKind>,
}

/// A step from a place to one inside.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Property(String),
    Element,
}

/// Where an expression's item is: in a document of a kind, if that is known.
#[derive(Clone, Debug)]
struct At {
    kind: DocKind,
    path: Vec<Step>,
}

/// The item and the root document of an expression.
#[derive(Clone, Debug)]
struct Scope {
    item: Option<At>,
    root: Option<At>,
}

/// A filter somewhere in the definition.
struct Test {
    filter: Json,
    scope: Scope,
}

/// What a definition says of documents.
pub(super) struct Shape<'d> {
    definition: &'d Json,
    own: DocKind,
    kinds: BTreeMap<DocKind, Place>,
    tests: Vec<Test>,
    /// Levels above the part that is being read; named parts may refer to one another.
    depth: usize,
}

const DATES: [&str; 8] =
    ["2019-01-05", "2019-02-28", "2020-02-29", "2020-06-01", "2021-12-31", "2023-07-15", "2025-03-09", "2026-10-20"];
const WORDS: [&str; 6] = ["alpha", "Ünïcode", "yes", "no", "x y", "Beta-1"];

/// The kind of documents of a type.
fn kind_of(doc_type: &str) -> Option<DocKind> {
    super::super::store::kinds(&json!({ "doc_type": doc_type })).first().copied()
}

impl At {
    fn whole(kind: DocKind) -> Self {
        Self { kind, path: Vec::new() }
    }

    fn then(&self, steps: impl IntoIterator<Item = Step>) -> Self {
        Self { kind: self.kind, path: self.path.iter().cloned().chain(steps).collect() }
    }
}

impl Scope {
    fn document(kind: DocKind) -> Self {
        Self { item: Some(At::whole(kind)), root: Some(At::whole(kind)) }
    }

    fn on(&self, item: Option<At>) -> Self {
        Self { item, root: self.root.clone() }
    }
}

fn location_type() -> At {
    At::whole(DocKind::Location).then([Step::Property("location_type".to_owned())])
}

fn element(at: Option<At>) -> Option<At> {
    let at = at?;
    // A document that was found is an element already.
    Some(if at.path.is_empty() { at } else { at.then([Step::Element]) })
}

fn text<'j>(json: &'j Json, key: &str) -> &'j str {
    json[key].as_str().unwrap_or_default()
}

impl<'d> Shape<'d> {
    pub(super) fn read(definition: &'d Json) -> Self {
        let own = kind_of(text(definition, "referenced_doc_type")).unwrap();
        let mut shape = Self { definition, own, kinds: BTreeMap::new(), tests: Vec::new(), depth: 0 };
        let document = Scope::document(own);
        shape.walk(&definition["configured_filter"], &document);
        let base = &definition["base_item_expression"];
        shape.walk(base, &document);
        let item = match base.is_object() && base.as_object().is_some_and(|fields| !fields.is_empty()) {
            true => document.on(element(shape.source(base, &document))),
            false => document.clone(),
        };
        for indicator in definition["configured_indicators"].as_array().into_iter().flatten() {
            shape.indicator(indicator, &item);
        }
        for validation in definition["validations"].as_array().into_iter().flatten() {
            shape.walk(&validation["expression"], &document);
        }
        shape
    }

    fn indicator(&mut self, indicator: &Json, scope: &Scope) {
        match text(indicator, "type") {
            "raw" | "choice_list" => {
                let at = self.source(&getter(indicator), scope);
                let multiple = text(indicator, "select_style") == "multiple";
                for choice in indicator["choices"].as_array().into_iter().flatten() {
                    self.compared(&at, choice);
                    if multiple {
                        let first = indicator["choices"][0].as_str().unwrap_or_default();
                        self.compared(&at, &json!(format!("{first} {}", choice.as_str().unwrap_or_default())));
                    }
                }
                self.typed(&at, text(indicator, "datatype"));
            }
            _ => {
                self.walk(indicator, scope);
                self.hint(&indicator["expression"], scope, text(indicator, "datatype"));
            }
        }
    }

    fn place(&mut self, at: &At) -> &mut Place {
        let mut place = self.kinds.entry(at.kind).or_default();
        for step in &at.path {
            place = match step {
                Step::Property(name) => place.children.entry(name.clone()).or_default(),
                Step::Element => place.element.get_or_insert_default(),
            };
        }
        place
    }

    fn compared(&mut self, at: &Option<At>, constant: &Json) {
        if let Some(at) = at
            && !constant.is_object()
        {
            let constants = &mut self.place(at).constants;
            if !constants.contains(constant) {
                constants.push(constant.clone());
            }
        }
    }

    fn typed(&mut self, at: &Option<At>, datatype: &str) {
        if let Some(at) = at
            && !datatype.is_empty()
        {
            self.place(at).datatypes.insert(datatype.to_owned());
        }
    }

    fn named(&self, group: &str, expression: &Json) -> Json {
        self.definition[group][text(expression, "name")].clone()
    }

    /// Where the value of an expression is, if it is in a document.
    fn source(&mut self, expression: &Json, scope: &Scope) -> Option<At> {
        let steps = |names: &[Json]| -> Vec<Step> {
            names.iter().filter_map(Json::as_str).map(|name| Step::Property(name.to_owned())).collect()
        };
        match text(expression, "type") {
            "identity" => scope.item.clone(),
            "property_name" => {
                let at = scope.item.as_ref()?.then(steps(&[expression["property_name"].clone()]));
                self.place(&at);
                Some(at)
            }
            "property_path" => {
                let at = scope.item.as_ref()?.then(steps(expression["property_path"].as_array()?));
                self.place(&at);
                Some(at)
            }
            "root_doc" => self.source(&expression["expression"], &scope.on(scope.root.clone())),
            "nested" => {
                let argument = self.source(&expression["argument_expression"], scope);
                self.source(&expression["value_expression"], &scope.on(argument))
            }
            "array_index" => element(self.source(&expression["array_expression"], scope)),
            "reduce_items" => element(self.source(&expression["items_expression"], scope)),
            "filter_items" | "sort_items" => self.source(&expression["items_expression"], scope),
            "related_doc" => {
                let found = Scope::document(kind_of(text(expression, "related_doc_type"))?);
                self.source(&expression["value_expression"], &found)
            }
            "indexed_case" | "get_subcases" => Some(At::whole(DocKind::Case)),
            "get_case_forms" => Some(At::whole(DocKind::Form)),
            "ancestor_location" => {
                let whole = At::whole(DocKind::Location);
                let property = expression["location_property"].as_str();
                Some(whole.then(property.map(|property| Step::Property(property.to_owned()))))
            }
            "location_type_name" => Some(location_type()),
            "named" => {
                let named = self.named("named_expressions", expression);
                self.source(&named, scope)
            }
            "conditional" => self
                .source(&expression["expression_if_true"], scope)
                .or_else(|| self.source(&expression["expression_if_false"], scope)),
            "coalesce" => self.source(&expression["expression"], scope),
            _ => None,
        }
    }

    /// Says of every place that an expression's value may come from that it is converted.
    fn hint(&mut self, expression: &Json, scope: &Scope, datatype: &str) {
        match text(expression, "type") {
            "conditional" => {
                self.hint(&expression["expression_if_true"], scope, datatype);
                self.hint(&expression["expression_if_false"], scope, datatype);
            }
            "coalesce" => {
                self.hint(&expression["expression"], scope, datatype);
                self.hint(&expression["default_expression"], scope, datatype);
            }
            _ => {
                let at = self.source(expression, scope);
                self.typed(&at, datatype);
            }
        }
    }

    /// Says that an expression's value is the id of a document.
    fn id(&mut self, expression: &Json, scope: &Scope, kind: DocKind) {
        match text(expression, "type") {
            "conditional" => {
                self.id(&expression["expression_if_true"], scope, kind);
                self.id(&expression["expression_if_false"], scope, kind);
            }
            "coalesce" => {
                self.id(&expression["expression"], scope, kind);
                self.id(&expression["default_expression"], scope, kind);
            }
            "named" => {
                let named = self.named("named_expressions", expression);
                self.id(&named, scope, kind);
            }
            _ => {
                if let Some(at) = self.source(expression, scope).filter(|at| !at.path.is_empty()) {
                    self.place(&at).id_of = Some(kind);
                }
            }
        }
    }

    /// Reads everything inside an expression, a filter or an indicator.
    fn walk(&mut self, json: &Json, scope: &Scope) {
        if self.depth > 60 {
            return;
        }
        self.depth += 1;
        self.walk_here(json, scope);
        self.depth -= 1;
    }

    fn walk_here(&mut self, json: &Json, scope: &Scope) {
        let fields = match json {
            Json::Array(items) => return items.iter().for_each(|item| self.walk(item, scope)),
            Json::Object(fields) => fields,
            _ => return,
        };
        match text(json, "type") {
            "property_name" | "property_path" => {
                let at = self.source(json, scope);
                self.typed(&at, text(json, "datatype"));
            }
            "root_doc" => self.walk(&json["expression"], &scope.on(scope.root.clone())),
            "named" => {
                for group in ["named_expressions", "named_filters"] {
                    let named = self.named(group, json);
                    self.walk(&named, scope);
                }
            }
            "nested" => {
                self.walk(&json["argument_expression"], scope);
                let argument = self.source(&json["argument_expression"], scope);
                self.walk(&json["value_expression"], &scope.on(argument));
            }
            "filter_items" | "map_items" | "sort_items" => {
                self.walk(&json["items_expression"], scope);
                let inner = scope.on(element(self.source(&json["items_expression"], scope)));
                for key in ["filter_expression", "map_expression", "sort_expression"] {
                    self.walk(&json[key], &inner);
                }
            }
            "related_doc" => {
                self.walk(&json["doc_id_expression"], scope);
                if let Some(kind) = kind_of(text(json, "related_doc_type")) {
                    self.id(&json["doc_id_expression"], scope, kind);
                    self.walk(&json["value_expression"], &Scope::document(kind));
                }
            }
            "indexed_case" => {
                self.walk(&json["case_expression"], scope);
                let index = json["index"].as_str().unwrap_or("parent");
                let indices = At::whole(DocKind::Case).then([Step::Property("indices".to_owned()), Step::Element]);
                let of = |name: &str| indices.then([Step::Property(name.to_owned())]);
                self.compared(&Some(of("identifier")), &json!(index));
                self.place(&of("referenced_id")).id_of = Some(DocKind::Case);
            }
            "ancestor_location" => {
                self.id(&json["location_id"], scope, DocKind::Location);
                let constant = match json["location_type"].is_object() {
                    true => json["location_type"]["constant"].clone(),
                    false => json["location_type"].clone(),
                };
                self.compared(&Some(location_type()), &constant);
                self.source(json, scope);
            }
            "location_type_name" | "location_parent_id" => {
                self.id(&json["location_id_expression"], scope, DocKind::Location);
            }
            "boolean_expression" | "property_match" => {
                let subject = if json.get("expression").is_some() { json["expression"].clone() } else { getter(json) };
                self.walk(&subject, scope);
                let at = self.source(&subject, scope);
                for constant in candidates(json) {
                    self.compared(&at, &constant);
                }
                self.tests.push(Test { filter: json.clone(), scope: scope.clone() });
            }
            "switch" => {
                let at = self.source(&json["switch_on"], scope);
                for case in json["cases"].as_object().into_iter().flatten() {
                    self.compared(&at, &json!(case.0));
                }
                fields.values().for_each(|value| self.walk(value, scope));
            }
            of_dates @ ("diff_days" | "add_days" | "add_months" | "month_start_date" | "month_end_date") => {
                for (name, value) in fields {
                    self.walk(value, scope);
                    if name.contains("date") || of_dates == "diff_days" {
                        self.hint(value, scope, "date");
                    }
                }
            }
            "evaluator" => {
                for variable in json["context_variables"].as_object().into_iter().flatten() {
                    self.walk(variable.1, scope);
                    self.hint(variable.1, scope, "number");
                }
            }
            "dict" => {
                json["properties"].as_object().into_iter().flatten().for_each(|(_, value)| self.walk(value, scope))
            }
            kind => {
                // A mapping of conditions inside one another is also a test as a whole.
                if matches!(kind, "and" | "or" | "not") {
                    self.tests.push(Test { filter: json.clone(), scope: scope.clone() });
                }
                fields.values().for_each(|value| self.walk(value, scope));
            }
        }
    }

    /// A document of the kind that the data source reads, bent towards passing its filter and towards some of its tests.
    pub(super) fn own(&mut self, id: &str, ids: &Ids, rng: &mut StdRng) -> Json {
        let mut document = self.document(self.own, id, ids, rng);
        let filter = self.definition["configured_filter"].clone();
        self.satisfy(&filter, &Scope::document(self.own), self.own, &mut document, rng);
        document
    }

    /// A document of a kind.
    pub(super) fn document(&mut self, kind: DocKind, id: &str, ids: &Ids, rng: &mut StdRng) -> Json {
        let place = self.kinds.entry(kind).or_default();
        let mut document = match fill(place, ids, rng) {
            Json::Object(fields) => Json::Object(fields),
            _ => json!({}),
        };
        for _ in 0..rng.random_range(0..5) {
            let of_kind =
                |test: &&Test| test.scope.item.as_ref().or(test.scope.root.as_ref()).is_some_and(|at| at.kind == kind);
            let tests: Vec<&Test> = self.tests.iter().filter(of_kind).collect();
            let Some(test) = tests.choose(rng) else { break };
            let (filter, scope) = (test.filter.clone(), test.scope.clone());
            self.satisfy(&filter, &scope, kind, &mut document, rng);
        }
        let fields = document.as_object_mut().unwrap();
        fields.insert("_id".to_owned(), id.into());
        fields.insert("doc_type".to_owned(), doc_type(kind).into());
        fields.insert("domain".to_owned(), "demo".into());
        match kind {
            DocKind::Location => {
                // Chains with a place of each type that is known, and one more below.
                let types = self.place(&location_type()).constants.clone();
                let number: usize = id.rsplit('-').next().unwrap().parse().unwrap();
                let level = number % (types.len() + 1);
                let parent = if level == 0 { Json::Null } else { format!("location-{}", number - 1).into() };
                fields.insert("parent_location_id".to_owned(), parent);
                fields.insert("location_id".to_owned(), id.into());
                if let Some(of_level) = types.get(level) {
                    fields.insert("location_type".to_owned(), of_level.clone());
                }
            }
            DocKind::Form => touch(fields, ids, rng),
            _ => {}
        }
        document
    }

    /// Changes a document so that a filter passes, where that is a matter of setting properties.
    fn satisfy(&mut self, filter: &Json, scope: &Scope, kind: DocKind, document: &mut Json, rng: &mut StdRng) {
        match text(filter, "type") {
            "and" => {
                for part in filter["filters"].as_array().into_iter().flatten() {
                    self.satisfy(part, scope, kind, document, rng);
                }
            }
            "or" => {
                if let Some(part) = filter["filters"].as_array().and_then(|parts| parts.choose(rng)) {
                    self.satisfy(part, scope, kind, document, rng);
                }
            }
            "named" => {
                let named = self.named("named_filters", filter);
                self.satisfy(&named, scope, kind, document, rng);
            }
            "boolean_expression" | "property_match" => {
                let subject = match filter.get("expression") {
                    Some(expression) => expression.clone(),
                    None => getter(filter),
                };
                let Some(at) = self.source(&subject, scope).filter(|at| at.kind == kind) else { return };
                let wanted = &filter["property_value"];
                let value = match text(filter, "operator") {
                    "eq" | "" => wanted.clone(),
                    "not_eq" | "not_in" => {
                        let place = self.place(&at);
                        let other: Vec<&Json> = place.constants.iter().filter(|constant| *constant != wanted).collect();
                        other.choose(rng).map_or_else(|| json!("other"), |constant| (*constant).clone())
                    }
                    _ => candidates(filter).choose(rng).cloned().unwrap_or(Json::Null),
                };
                set(document, &at.path, value, rng);
            }
            _ => {}
        }
    }

    /// Kinds of documents that are read, its own among them.
    pub(super) fn kinds(&self) -> Vec<DocKind> {
        let mut found: BTreeSet<DocKind> = self.kinds.keys().copied().collect();
        found.insert(self.own);
        found.into_iter().collect()
    }

    pub(super) const fn own_kind(&self) -> DocKind {
        self.own
    }
}

/// Ids that documents of each kind have.
pub(super) type Ids = BTreeMap<DocKind, Vec<String>>;

fn doc_type(kind: DocKind) -> &'static str {
    match kind {
        DocKind::Case => "CommCareCase",
        DocKind::Form => "XFormInstance",
        DocKind::User => "CommCareUser",
        DocKind::Location => "Location",
        other => panic!("no documents of kind {}", other.name()),
    }
}

/// The getter that `property_name` or `property_path` of a filter or indicator stand for.
fn getter(json: &Json) -> Json {
    match json["property_name"].as_str() {
        Some(name) => json!({"type": "property_name", "property_name": name}),
        None => json!({"type": "property_path", "property_path": json["property_path"]}),
    }
}

/// Values that a comparison may be about, those that pass it among them.
fn candidates(filter: &Json) -> Vec<Json> {
    let wanted = &filter["property_value"];
    let each = || wanted.as_array().cloned().unwrap_or_else(|| vec![wanted.clone()]);
    let number = wanted.as_f64().or_else(|| wanted.as_str().and_then(|text| text.parse().ok()));
    match (text(filter, "operator"), number) {
        ("gt" | "gte" | "lt" | "lte", Some(number)) => [-1.0, 0.0, 1.0].map(|more| json!(number + more)).to_vec(),
        ("in_multi" | "any_in_multi", _) => {
            let mut found = each();
            let joined: Vec<&str> = found.iter().filter_map(Json::as_str).collect();
            let joined = joined.join(" ");
            found.push(joined.into());
            found
        }
        _ => each(),
    }
}

/// A value as a place suggests it.
fn fill(place: &Place, ids: &Ids, rng: &mut StdRng) -> Json {
    if let Some(element) = &place.element {
        return (0..rng.random_range(0..4)).map(|_| fill(element, ids, rng)).collect();
    }
    if !place.children.is_empty() {
        let mut fields = Map::new();
        for (name, child) in &place.children {
            if rng.random_bool(0.95) {
                fields.insert(name.clone(), fill(child, ids, rng));
            }
        }
        return Json::Object(fields);
    }
    if let Some(ids) = place.id_of.and_then(|kind| ids.get(&kind))
        && rng.random_bool(0.9)
    {
        return ids.choose(rng).map_or(Json::Null, |id| id.as_str().into());
    }
    if !place.constants.is_empty() && rng.random_bool(0.7) {
        return place.constants.choose(rng).cloned().unwrap_or(Json::Null);
    }
    let date = *DATES.choose(rng).unwrap();
    let datatypes: Vec<&String> = place.datatypes.iter().collect();
    match datatypes.choose(rng).map(|datatype| datatype.as_str()) {
        Some("date") => rng.random_bool(0.9).then_some(date).into(),
        Some("datetime") => format!("{date}T10:{:02}:00Z", rng.random_range(0..60)).into(),
        Some("integer" | "small_integer" | "number") => match rng.random_bool(0.5) {
            true => rng.random_range(-3..40).into(),
            false => rng.random_range(0..40).to_string().into(),
        },
        Some("decimal") => format!("{}.{}", rng.random_range(0..90), rng.random_range(0..100)).into(),
        _ => match rng.random_range(0..10) {
            0 => Json::Null,
            1 => "".into(),
            2 => rng.random_range(0..30).to_string().into(),
            3 => (*DATES.choose(rng).unwrap()).into(),
            _ => (*WORDS.choose(rng).unwrap()).into(),
        },
    }
}

/// Sets a property, making the mappings above it; in a list, in one of its elements.
fn set(json: &mut Json, path: &[Step], value: Json, rng: &mut StdRng) {
    match path {
        [] => *json = value,
        [Step::Property(name), rest @ ..] => {
            if !json.is_object() {
                *json = json!({});
            }
            let fields = json.as_object_mut().unwrap();
            set(fields.entry(name.clone()).or_insert(Json::Null), rest, value, rng);
        }
        [Step::Element, rest @ ..] => {
            if json.as_array().is_none_or(Vec::is_empty) {
                *json = json!([{}]);
            }
            let items = json.as_array_mut().unwrap();
            let at = rng.random_range(0..items.len());
            set(&mut items[at], rest, value, rng);
        }
    }
}

/// Gives a form the block of a case.
fn touch(fields: &mut Map<String, Json>, ids: &Ids, rng: &mut StdRng) {
    let Some(case) = ids.get(&DocKind::Case).and_then(|ids| ids.choose(rng)) else { return };
    let form = fields.entry("form").or_insert_with(|| json!({}));
    if !form.is_object() {
        *form = json!({});
    }
    form["case"] = json!({"@case_id": case});
}
