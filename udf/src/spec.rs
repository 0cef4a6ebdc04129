//! Reading specifications: JSON objects with a place, and a compiler that collects every problem it meets
//! (ucr.md §1.4, §2.1).
//!
//! Compiling never stops at a problem: it notes it and goes on with a stand-in, so that an author sees all of them. A
//! result may only be used if no problem was noted.

use std::{collections::BTreeSet, sync::Arc};

use hashbrown::HashMap;
use serde_json::{Map, Value as Json};

use crate::{
    coerce::DataType,
    error::{MAX_PROBLEMS, SpecErrors, SpecProblem},
    expr::{self, Expr, Expression},
    filter::{self, Filter},
    registry::{DEFINITION, NameKind, Registry},
};

type Fields = Map<String, Json>;

/// Named expressions and filters that specifications may refer to, by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Named<'s> {
    /// `named_expressions`.
    pub expressions: Option<&'s Fields>,
    /// `named_filters`.
    pub filters: Option<&'s Fields>,
    /// What the domain has; the names above win over its.
    pub domain: Option<&'s Registry>,
}

/// A named part, compiled when it is first used.
enum Part<'s, T> {
    Waiting { json: &'s Json, home: Home },
    Compiling,
    Done { compiled: T, height: usize },
}

/// Where a named part is written.
enum Home {
    /// In the document that is being compiled, at this pointer.
    Here(String),
    /// In the domain's registry.
    Domain,
}

type Parts<'s, T> = HashMap<&'s str, Part<'s, T>>;

/// A named expression with its number.
type Numbered = (usize, Arc<dyn Expression>);

/// What was found out beside the result.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Results change as time passes.
    pub(crate) reads_clock: bool,
    /// What the result uses of the domain's registry.
    pub(crate) uses: BTreeSet<(NameKind, String)>,
}

/// Collects problems, named parts and facts about what was compiled.
pub(crate) struct Compiler<'s> {
    problems: Vec<SpecProblem>,
    expressions: Parts<'s, Numbered>,
    filters: Parts<'s, Arc<Filter>>,
    filters_visible: bool,
    slots: usize,
    facts: Facts,
    /// Levels above the part being compiled, and the deepest level below it.
    depth: usize,
    deepest: usize,
}

/// Levels of expressions and filters inside one another, named ones counted where they are used: evaluation recurses
/// that deep.
const MAX_NESTING: usize = 256;

impl<'s> Compiler<'s> {
    /// Compiles the document's named parts; everything compiled later may use them and the domain's.
    pub(crate) fn new(named: Named<'s>) -> Self {
        let mut compiler = Self {
            problems: Vec::new(),
            expressions: parts(named.domain, NameKind::Expression, named.expressions, "/named_expressions"),
            filters: parts(named.domain, NameKind::Filter, named.filters, "/named_filters"),
            filters_visible: false,
            slots: 0,
            facts: Facts::default(),
            depth: 0,
            deepest: 0,
        };
        for (name, _) in named.expressions.into_iter().flatten() {
            compiler.named_expression(name, &join("/named_expressions", name));
        }
        // Named filters see named expressions but not one another.
        for (name, _) in named.filters.into_iter().flatten() {
            compiler.any_filter(name, &join("/named_filters", name));
        }
        compiler.filters_visible = true;
        compiler
    }

    /// Compiles a part of the domain's registry as a document of its own.
    pub(crate) fn part(&mut self, kind: NameKind, name: &str) {
        let here = || Home::Here(join("", DEFINITION));
        match kind {
            NameKind::Expression => {
                if let Some(Part::Waiting { home, .. }) = self.expressions.get_mut(name) {
                    *home = here();
                }
                self.named_expression(name, "");
            }
            NameKind::Filter => {
                if let Some(Part::Waiting { home, .. }) = self.filters.get_mut(name) {
                    *home = here();
                }
                self.any_filter(name, "");
            }
        }
    }

    pub(crate) fn problem(&mut self, pointer: &str, message: impl Into<String>) {
        let problem = SpecProblem { pointer: pointer.to_owned(), message: message.into() };
        if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Compiles a part one level further down; a part that is too deep is a problem and not compiled.
    pub(crate) fn nested<T>(&mut self, pointer: &str, compile: impl FnOnce(&mut Self) -> T, stand_in: fn() -> T) -> T {
        self.depth += 1;
        let part = if self.reach(0, pointer) { compile(self) } else { stand_in() };
        self.depth -= 1;
        part
    }

    /// Notes that something of that height stands here; false, and a problem, if that is too deep.
    fn reach(&mut self, height: usize, pointer: &str) -> bool {
        self.deepest = self.deepest.max(self.depth + height);
        let fits = self.depth + height <= MAX_NESTING;
        if !fits {
            self.problem(pointer, format!("nested deeper than {MAX_NESTING} levels"));
        }
        fits
    }

    /// Notes that results change as time passes.
    pub(crate) fn reads_the_clock(&mut self) {
        self.facts.reads_clock = true;
    }

    /// The named expression and its number; notes a problem if there is none or it needs itself.
    pub(crate) fn named_expression(&mut self, name: &str, pointer: &str) -> Option<Numbered> {
        let compile = |json: &Json, pointer: &str, compiler: &mut Self| {
            let expression: Arc<dyn Expression> = Arc::from(expr::compile(json, pointer, compiler));
            let slot = compiler.slots;
            compiler.slots += 1;
            (slot, expression)
        };
        self.resolve(NameKind::Expression, name, pointer, |compiler| &mut compiler.expressions, compile)
    }

    /// The named filter; notes a problem if there is none or it may not be used here.
    pub(crate) fn named_filter(&mut self, name: &str, pointer: &str) -> Option<Arc<Filter>> {
        if !self.filters_visible {
            self.problem(pointer, format!("named filter `{name}` cannot be used inside named expressions or filters"));
            return None;
        }
        self.any_filter(name, pointer)
    }

    fn any_filter(&mut self, name: &str, pointer: &str) -> Option<Arc<Filter>> {
        let compile =
            |json: &Json, pointer: &str, compiler: &mut Self| Arc::new(filter::compile(json, pointer, compiler));
        self.resolve(NameKind::Filter, name, pointer, |compiler| &mut compiler.filters, compile)
    }

    /// What a name stands for, compiled where it is used first; notes a problem if there is none or it needs itself.
    fn resolve<T: Clone>(
        &mut self,
        kind: NameKind,
        name: &str,
        pointer: &str,
        parts: fn(&mut Self) -> &mut Parts<'s, T>,
        compile: fn(&Json, &str, &mut Self) -> T,
    ) -> Option<T> {
        let Some(part) = parts(self).get_mut(name) else {
            self.problem(pointer, format!("there is no {kind} `{name}`"));
            return None;
        };
        match std::mem::replace(part, Part::Compiling) {
            Part::Compiling => {
                self.problem(pointer, format!("{kind} `{name}` refers to itself"));
                None
            }
            Part::Done { compiled, height } => {
                *part = Part::Done { compiled: compiled.clone(), height };
                self.reach(height, pointer).then_some(compiled)
            }
            Part::Waiting { json, home } => {
                let visible = std::mem::replace(&mut self.filters_visible, false);
                let deepest = std::mem::replace(&mut self.deepest, self.depth);
                let compiled = match home {
                    Home::Here(home) => compile(json, &home, self),
                    Home::Domain => self.of_domain(kind, name, pointer, |compiler, home| compile(json, home, compiler)),
                };
                let height = self.deepest - self.depth;
                self.deepest = self.deepest.max(deepest);
                self.filters_visible = visible;
                if let Some(part) = parts(self).get_mut(name) {
                    *part = Part::Done { compiled: compiled.clone(), height };
                }
                Some(compiled)
            }
        }
    }

    /// Compiles a part of the domain's registry. What is wrong in there is one problem here, where it is used.
    fn of_domain<T>(
        &mut self,
        kind: NameKind,
        name: &str,
        pointer: &str,
        compile: impl FnOnce(&mut Self, &str) -> T,
    ) -> T {
        self.facts.uses.insert((kind, name.to_owned()));
        let here = std::mem::take(&mut self.problems);
        let compiled = compile(self, &join("", DEFINITION));
        let there = std::mem::replace(&mut self.problems, here);
        if let Some(first) = there.first() {
            self.problem(pointer, format!("{kind} `{name}` of the domain is not valid: {first}"));
        }
        compiled
    }

    /// The result, unless there were problems; and what was found out beside it.
    pub(crate) fn finish<T>(self, result: T) -> Result<(T, Facts), SpecErrors> {
        if self.problems.is_empty() { Ok((result, self.facts)) } else { Err(SpecErrors { problems: self.problems }) }
    }
}

/// The parts of a kind by name, the document's own in place of the domain's.
fn parts<'s, T>(domain: Option<&'s Registry>, kind: NameKind, own: Option<&'s Fields>, pointer: &str) -> Parts<'s, T> {
    let of_domain = domain.into_iter().flat_map(|domain| domain.of_kind(kind));
    let of_domain = of_domain.map(|(name, json)| (name, Part::Waiting { json, home: Home::Domain }));
    let own = own.into_iter().flatten().map(|(name, json)| {
        let home = Home::Here(join(pointer, name));
        (name.as_str(), Part::Waiting { json, home })
    });
    of_domain.chain(own).collect()
}

/// Appends a step to a JSON pointer.
pub(crate) fn join(pointer: &str, step: &str) -> String {
    format!("{pointer}/{}", step.replace('~', "~0").replace('/', "~1"))
}

/// What a JSON value is, for messages.
pub(crate) fn json_kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "text",
        Json::Array(_) => "a list",
        Json::Object(_) => "a mapping",
    }
}

fn is_empty(json: &Json) -> bool {
    match json {
        Json::Null => true,
        Json::String(text) => text.is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::Object(fields) => fields.is_empty(),
        Json::Bool(_) | Json::Number(_) => false,
    }
}

/// One JSON object of a specification and where it stands.
#[derive(Clone)]
pub(crate) struct Spec<'p> {
    fields: &'p Fields,
    pointer: String,
}

impl<'p> Spec<'p> {
    pub(crate) fn new(fields: &'p Fields, pointer: &str) -> Self {
        Self { fields, pointer: pointer.to_owned() }
    }

    pub(crate) fn pointer(&self) -> &str {
        &self.pointer
    }

    /// Pointer of one of the object's values.
    pub(crate) fn at(&self, key: &str) -> String {
        join(&self.pointer, key)
    }

    /// The value as written, null included.
    pub(crate) fn raw(&self, key: &str) -> Option<&'p Json> {
        self.fields.get(key)
    }

    /// The value unless it is absent or empty, which the original takes for absent.
    pub(crate) fn optional(&self, key: &str) -> Option<&'p Json> {
        self.fields.get(key).filter(|json| !is_empty(json))
    }

    /// As [`Spec::optional`]; absence is a problem.
    pub(crate) fn required(&self, key: &str, compiler: &mut Compiler<'_>) -> Option<&'p Json> {
        let found = self.optional(key);
        if found.is_none() {
            compiler.problem(&self.pointer, format!("`{key}` is required"));
        }
        found
    }

    /// Keys other than the given ones are problems.
    pub(crate) fn only(&self, keys: &[&str], compiler: &mut Compiler<'_>) {
        for key in self.fields.keys().filter(|key| !keys.contains(&key.as_str())) {
            compiler.problem(&self.at(key), format!("unknown key `{key}` (known here: {})", keys.join(", ")));
        }
    }

    fn expect<T>(
        &self,
        key: &str,
        json: &'p Json,
        wanted: &str,
        as_wanted: Option<T>,
        compiler: &mut Compiler<'_>,
    ) -> Option<T> {
        if as_wanted.is_none() {
            compiler.problem(&self.at(key), format!("`{key}` must be {wanted}, not {}", json_kind(json)));
        }
        as_wanted
    }

    pub(crate) fn optional_text(&self, key: &str, compiler: &mut Compiler<'_>) -> Option<&'p str> {
        let json = self.optional(key)?;
        self.expect(key, json, "text", json.as_str(), compiler)
    }

    pub(crate) fn text(&self, key: &str, compiler: &mut Compiler<'_>) -> Option<&'p str> {
        let json = self.required(key, compiler)?;
        self.expect(key, json, "text", json.as_str(), compiler)
    }

    pub(crate) fn flag(&self, key: &str, default: bool, compiler: &mut Compiler<'_>) -> bool {
        let Some(json) = self.optional(key) else { return default };
        self.expect(key, json, "true or false", json.as_bool(), compiler).unwrap_or(default)
    }

    pub(crate) fn list(&self, key: &str, compiler: &mut Compiler<'_>) -> &'p [Json] {
        let Some(json) = self.required(key, compiler) else { return &[] };
        self.expect(key, json, "a list", json.as_array(), compiler).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn optional_list(&self, key: &str, compiler: &mut Compiler<'_>) -> &'p [Json] {
        let Some(json) = self.optional(key) else { return &[] };
        self.expect(key, json, "a list", json.as_array(), compiler).map_or(&[], Vec::as_slice)
    }

    /// A list of texts that may be empty or absent.
    pub(crate) fn optional_texts(&self, key: &str, compiler: &mut Compiler<'_>) -> Vec<&'p str> {
        let mut texts = Vec::new();
        for (i, json) in self.optional_list(key, compiler).iter().enumerate() {
            match json.as_str() {
                Some(text) => texts.push(text),
                None => compiler
                    .problem(&join(&self.at(key), &i.to_string()), format!("must be text, not {}", json_kind(json))),
            }
        }
        texts
    }

    /// A list of texts that may not be empty.
    pub(crate) fn texts(&self, key: &str, compiler: &mut Compiler<'_>) -> Vec<&'p str> {
        if self.required(key, compiler).is_none() { Vec::new() } else { self.optional_texts(key, compiler) }
    }

    pub(crate) fn optional_mapping(&self, key: &str, compiler: &mut Compiler<'_>) -> Option<&'p Fields> {
        let json = self.optional(key)?;
        self.expect(key, json, "a mapping", json.as_object(), compiler)
    }

    pub(crate) fn mapping(&self, key: &str, compiler: &mut Compiler<'_>) -> Option<&'p Fields> {
        let json = self.required(key, compiler)?;
        self.expect(key, json, "a mapping", json.as_object(), compiler)
    }

    /// An expression or a literal.
    pub(crate) fn expression(&self, key: &str, compiler: &mut Compiler<'_>) -> Expr {
        match self.required(key, compiler) {
            Some(json) => expr::compile(json, &self.at(key), compiler),
            None => expr::stand_in(),
        }
    }

    pub(crate) fn optional_expression(&self, key: &str, compiler: &mut Compiler<'_>) -> Option<Expr> {
        self.optional(key).map(|json| expr::compile(json, &self.at(key), compiler))
    }

    /// An expression, not a literal.
    pub(crate) fn expression_mapping(&self, key: &str, compiler: &mut Compiler<'_>) -> Expr {
        match self.mapping(key, compiler) {
            Some(fields) => expr::compile_fields(fields, &self.at(key), compiler),
            None => expr::stand_in(),
        }
    }

    pub(crate) fn filter(&self, key: &str, compiler: &mut Compiler<'_>) -> Filter {
        match self.required(key, compiler) {
            Some(json) => filter::compile(json, &self.at(key), compiler),
            None => Filter::stand_in(),
        }
    }

    fn datatype_of(&self, json: &Json, compiler: &mut Compiler<'_>) -> Option<DataType> {
        let found = json.as_str().and_then(DataType::from_name);
        if found.is_none() {
            let known: Vec<_> = DataType::ALL.iter().map(|datatype| datatype.name()).collect();
            let given = json.as_str().map_or_else(|| json_kind(json).to_owned(), |text| format!("`{text}`"));
            compiler.problem(&self.at("datatype"), format!("{given} is not a datatype (known: {})", known.join(", ")));
        }
        found
    }

    /// `datatype`, if given.
    pub(crate) fn optional_datatype(&self, compiler: &mut Compiler<'_>) -> Option<DataType> {
        let json = self.raw("datatype").filter(|json| !json.is_null())?;
        self.datatype_of(json, compiler)
    }

    /// `datatype`, which must be given.
    pub(crate) fn datatype(&self, compiler: &mut Compiler<'_>) -> Option<DataType> {
        let json = self.required("datatype", compiler)?;
        self.datatype_of(json, compiler)
    }
}
