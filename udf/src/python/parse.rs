//! Tokens to a tree. Chains of operators are flat, so that only brackets deepen it.

use super::{
    Arithmetic, Traits,
    lex::{SyntaxError, Token, tokens, unescape},
};
use crate::{
    expr::named::NamedExpression,
    jsonpath::Path,
    value::{Name, Value},
};

/// Deepest nesting of a statement.
const MAX_DEPTH: usize = 48;

/// One piece of an f-string.
#[derive(Debug)]
pub(super) enum Piece {
    Text(String),
    Value { value: Ast, conversion: Option<char>, spec: Vec<Piece> },
}

/// What follows a value.
#[derive(Debug)]
pub(super) enum Trailer {
    Index(Ast),
    Slice(Option<Ast>, Option<Ast>, Option<Ast>),
    Attribute(Name),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
    Is,
    IsNot,
}

/// One `for … in … if …` of a comprehension.
#[derive(Debug)]
pub(super) struct Clause {
    pub(super) targets: Vec<Box<str>>,
    pub(super) source: Ast,
    pub(super) conditions: Vec<Ast>,
}

/// The functions a statement may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Context,
    Date,
    Days,
    Dict,
    Float,
    Int,
    List,
    Range,
    RootContext,
    Round,
    Set,
    Str,
    TimedeltaToSeconds,
    Today,
    Tuple,
}

const FUNCTIONS: [(&str, Function); 15] = [
    ("context", Function::Context),
    ("date", Function::Date),
    ("days", Function::Days),
    ("dict", Function::Dict),
    ("float", Function::Float),
    ("int", Function::Int),
    ("list", Function::List),
    ("range", Function::Range),
    ("root_context", Function::RootContext),
    ("round", Function::Round),
    ("set", Function::Set),
    ("str", Function::Str),
    ("timedelta_to_seconds", Function::TimedeltaToSeconds),
    ("today", Function::Today),
    ("tuple", Function::Tuple),
];

/// Arguments of a call: by position, then by name.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Ast>,
    pub(super) named: Vec<(Box<str>, Ast)>,
}

#[derive(Debug)]
pub(super) enum PathArgument {
    Parsed(Path),
    Computed(Box<Ast>),
}

#[derive(Debug)]
pub(super) enum Ast {
    Constant(Value<'static>),
    /// A variable with a fixed place, or a name of the item.
    Name(Name, Option<usize>),
    Not(Box<Ast>),
    Negate(Box<Ast>),
    Plus(Box<Ast>),
    Chain(Box<Ast>, Vec<(Arithmetic, Ast)>),
    Compare(Box<Ast>, Vec<(Comparison, Ast)>),
    And(Vec<Ast>),
    Or(Vec<Ast>),
    Conditional {
        test: Box<Ast>,
        then: Box<Ast>,
        otherwise: Box<Ast>,
    },
    Trailers(Box<Ast>, Vec<Trailer>),
    List(Vec<Ast>),
    Tuple(Vec<Ast>),
    Set(Vec<Ast>),
    Dict(Vec<(Ast, Ast)>),
    Comprehension {
        element: Box<Ast>,
        clauses: Vec<Clause>,
    },
    Template(Vec<Piece>),
    Call(Function, Arguments),
    JsonPath {
        path: PathArgument,
        as_list: Option<Box<Ast>>,
        context: Option<Box<Ast>>,
    },
    Named {
        expression: Box<NamedExpression>,
        context: Option<Box<Ast>>,
    },
    /// Well-formed but not allowed: null when it is reached.
    Refused,
}

/// Parses the first statement of a text; the others must be well-formed too.
pub(super) fn parse(
    text: &str,
    variables: &[&str],
    named: &mut dyn FnMut(&str) -> NamedExpression,
    traits: &mut Traits,
) -> Result<Ast, SyntaxError> {
    let tokens = tokens(text)?;
    let mut parser = Parser { tokens, at: 0, depth: 0, variables, named, traits };
    let first = parser.statement()?;
    while parser.at < parser.tokens.len() {
        if parser.tokens.get(parser.at) == Some(&Token::End) {
            parser.at += 1;
        } else {
            parser.statement()?;
        }
    }
    Ok(first)
}

struct Parser<'p> {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    variables: &'p [&'p str],
    named: &'p mut dyn FnMut(&str) -> NamedExpression,
    traits: &'p mut Traits,
}

type Parsed = Result<Ast, SyntaxError>;

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn is(&self, operator: &str) -> bool {
        matches!(self.peek(), Some(Token::Operator(found)) if *found == operator)
    }

    fn take(&mut self, operator: &str) -> bool {
        let found = self.is(operator);
        self.at += usize::from(found);
        found
    }

    fn must(&mut self, operator: &str) -> Result<(), SyntaxError> {
        if self.take(operator) { Ok(()) } else { Err(SyntaxError) }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(name)) if name == word)
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, SyntaxError>) -> Result<T, SyntaxError> {
        if self.depth >= MAX_DEPTH {
            return Err(SyntaxError);
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// An expression, or an assignment, whose value counts.
    fn statement(&mut self) -> Parsed {
        let mut value = self.tests()?;
        while self.take("=") {
            value = self.tests()?;
        }
        match self.peek() {
            None | Some(Token::End) => Ok(value),
            Some(_) => Err(SyntaxError),
        }
    }

    /// Expressions with commas between them are a tuple.
    fn tests(&mut self) -> Parsed {
        let first = self.test()?;
        if !self.is(",") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.take(",") {
            if matches!(self.peek(), None | Some(Token::End)) || self.is("=") || self.is(")") || self.is("]") {
                break;
            }
            all.push(self.test()?);
        }
        Ok(Ast::Tuple(all))
    }

    fn test(&mut self) -> Parsed {
        self.deeper(|parser| {
            if parser.take_word("lambda") {
                while !parser.take(":") {
                    match parser.peek() {
                        None | Some(Token::End) => return Err(SyntaxError),
                        Some(_) => parser.at += 1,
                    }
                }
                parser.test()?;
                return Ok(Ast::Refused);
            }
            let value = parser.or()?;
            if parser.take(":=") {
                parser.test()?;
                return Ok(Ast::Refused);
            }
            if !parser.take_word("if") {
                return Ok(value);
            }
            let test = Box::new(parser.or()?);
            if !parser.take_word("else") {
                return Err(SyntaxError);
            }
            let otherwise = Box::new(parser.test()?);
            Ok(Ast::Conditional { test, then: Box::new(value), otherwise })
        })
    }

    fn or(&mut self) -> Parsed {
        let mut all = vec![self.and()?];
        while self.take_word("or") {
            all.push(self.and()?);
        }
        Ok(single(all, Ast::Or))
    }

    fn and(&mut self) -> Parsed {
        let mut all = vec![self.not()?];
        while self.take_word("and") {
            all.push(self.not()?);
        }
        Ok(single(all, Ast::And))
    }

    fn not(&mut self) -> Parsed {
        if self.take_word("not") {
            return self.deeper(|parser| Ok(Ast::Not(Box::new(parser.not()?))));
        }
        let first = self.bitwise()?;
        let mut rest = Vec::new();
        while let Some(comparison) = self.comparison() {
            rest.push((comparison, self.bitwise()?));
        }
        Ok(if rest.is_empty() { first } else { Ast::Compare(Box::new(first), rest) })
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let operators = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        if let Some((_, comparison)) = operators.into_iter().find(|(operator, _)| self.is(operator)) {
            self.at += 1;
            return Some(comparison);
        }
        if self.take_word("in") {
            return Some(Comparison::In);
        }
        if self.take_word("is") {
            return Some(if self.take_word("not") { Comparison::IsNot } else { Comparison::Is });
        }
        if self.is_word("not") && matches!(self.tokens.get(self.at + 1), Some(Token::Name(name)) if name == "in") {
            self.at += 2;
            return Some(Comparison::NotIn);
        }
        None
    }

    /// Bitwise operators and shifts are Python, but not allowed.
    fn bitwise(&mut self) -> Parsed {
        let mut value = self.sum()?;
        while ["|", "&", "^", "<<", ">>"].iter().any(|operator| self.is(operator)) {
            self.at += 1;
            self.sum()?;
            value = Ast::Refused;
        }
        Ok(value)
    }

    fn sum(&mut self) -> Parsed {
        let first = self.product()?;
        let mut rest = Vec::new();
        loop {
            let operator = if self.take("+") {
                Arithmetic::Add
            } else if self.take("-") {
                Arithmetic::Subtract
            } else {
                break;
            };
            rest.push((operator, self.product()?));
        }
        Ok(if rest.is_empty() { first } else { Ast::Chain(Box::new(first), rest) })
    }

    fn product(&mut self) -> Parsed {
        let first = self.unary()?;
        let mut rest = Vec::new();
        loop {
            let operator = if self.take("*") {
                Arithmetic::Multiply
            } else if self.take("/") {
                Arithmetic::Divide
            } else if self.take("//") {
                Arithmetic::FloorDivide
            } else if self.take("%") {
                Arithmetic::Modulo
            } else {
                break;
            };
            rest.push((operator, self.unary()?));
        }
        Ok(if rest.is_empty() { first } else { Ast::Chain(Box::new(first), rest) })
    }

    fn unary(&mut self) -> Parsed {
        if self.take("-") {
            return self.deeper(|parser| Ok(Ast::Negate(Box::new(parser.unary()?))));
        }
        if self.take("+") {
            return self.deeper(|parser| Ok(Ast::Plus(Box::new(parser.unary()?))));
        }
        if self.take("~") {
            self.deeper(Self::unary)?;
            return Ok(Ast::Refused);
        }
        let value = self.primary()?;
        if self.take("**") {
            self.deeper(Self::unary)?;
            return Ok(Ast::Refused);
        }
        Ok(value)
    }

    fn primary(&mut self) -> Parsed {
        let mut value = self.atom()?;
        let mut trailers = Vec::new();
        loop {
            if self.take("[") {
                trailers.push(self.subscript()?);
                self.must("]")?;
            } else if self.take(".") {
                let Some(Token::Name(name)) = self.peek() else { return Err(SyntaxError) };
                trailers.push(Trailer::Attribute(Name::new(name)));
                self.at += 1;
            } else if self.take("(") {
                // Calls of anything but a known name: methods, results of calls.
                self.arguments()?;
                value = Ast::Refused;
                trailers.clear();
            } else {
                break;
            }
        }
        Ok(if trailers.is_empty() { value } else { Ast::Trailers(Box::new(value), trailers) })
    }

    fn subscript(&mut self) -> Result<Trailer, SyntaxError> {
        let part = |parser: &mut Self| {
            if parser.is(":") || parser.is("]") { Ok(None) } else { parser.tests().map(Some) }
        };
        let start = part(self)?;
        if !self.take(":") {
            return start.map(Trailer::Index).ok_or(SyntaxError);
        }
        let end = part(self)?;
        let step = if self.take(":") { part(self)? } else { None };
        Ok(Trailer::Slice(start, end, step))
    }

    fn atom(&mut self) -> Parsed {
        let token = self.peek().cloned().ok_or(SyntaxError)?;
        self.at += 1;
        match token {
            Token::Number(number) => Ok(Ast::Constant(number.value())),
            Token::Text(text) => {
                if matches!(self.peek(), Some(Token::Template(..))) {
                    let pieces = vec![Piece::Text(text)];
                    return self.templates(pieces);
                }
                Ok(Ast::Constant(Value::text(text)))
            }
            Token::Template(text, raw) => {
                let pieces = self.template(&text, raw)?;
                self.templates(pieces)
            }
            Token::Name(name) => self.name(&name),
            Token::Operator("(") => self.parenthesis(),
            Token::Operator("[") => {
                let list = self.display("]")?;
                self.must("]")?;
                Ok(list)
            }
            Token::Operator("{") => {
                let braces = self.braces()?;
                self.must("}")?;
                Ok(braces)
            }
            Token::Operator(_) | Token::End => Err(SyntaxError),
        }
    }

    fn name(&mut self, name: &str) -> Parsed {
        match name {
            "True" => return Ok(Ast::Constant(Value::Bool(true))),
            "False" => return Ok(Ast::Constant(Value::Bool(false))),
            "None" => return Ok(Ast::Constant(Value::Null)),
            "and" | "as" | "assert" | "async" | "await" | "break" | "class" | "continue" | "def" | "del" | "elif"
            | "else" | "except" | "finally" | "for" | "from" | "global" | "if" | "import" | "in" | "is" | "lambda"
            | "nonlocal" | "not" | "or" | "pass" | "raise" | "return" | "try" | "while" | "with" | "yield" => {
                return Err(SyntaxError);
            }
            _ => {}
        }
        if self.take("(") {
            let arguments = self.arguments()?;
            return Ok(arguments.map_or(Ast::Refused, |arguments| self.call(name, arguments)));
        }
        let slot = self.variables.iter().position(|variable| *variable == name);
        Ok(Ast::Name(Name::new(name), slot))
    }

    fn call(&mut self, name: &str, arguments: Arguments) -> Ast {
        if let Some((_, function)) = FUNCTIONS.iter().find(|(known, _)| *known == name) {
            self.traits.reads_clock |= *function == Function::Today;
            return Ast::Call(*function, arguments);
        }
        match name {
            "rand" | "randint" => {
                self.traits.random = true;
                Ast::Refused
            }
            "jsonpath" => json_path(arguments),
            "named" => {
                let [name, context] = by_name(arguments, ["name", "context"]);
                let Some(Ast::Constant(Value::Text(name))) = name else { return Ast::Refused };
                Ast::Named { expression: Box::new((self.named)(&name)), context: context.map(Box::new) }
            }
            _ => Ast::Refused,
        }
    }

    /// Arguments up to the closing parenthesis; `None` if unpacking is used, which is not allowed.
    fn arguments(&mut self) -> Result<Option<Arguments>, SyntaxError> {
        let mut arguments = Arguments::default();
        let mut allowed = true;
        while !self.take(")") {
            if self.take("*") || self.take("**") {
                self.test()?;
                allowed = false;
            } else if let (Some(Token::Name(name)), Some(Token::Operator("="))) =
                (self.peek().cloned(), self.tokens.get(self.at + 1))
            {
                self.at += 2;
                let value = self.test()?;
                arguments.named.push((name.into(), value));
            } else {
                let element = self.test()?;
                arguments.positional.push(if self.is_word("for") { self.comprehension(element)? } else { element });
            }
            if !self.take(",") && !self.is(")") {
                return Err(SyntaxError);
            }
        }
        Ok(allowed.then_some(arguments))
    }

    fn parenthesis(&mut self) -> Parsed {
        if self.take(")") {
            return Ok(Ast::Tuple(Vec::new()));
        }
        let first = self.test()?;
        if self.is_word("for") {
            let value = self.comprehension(first)?;
            self.must(")")?;
            return Ok(value);
        }
        if self.take(")") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.take(",") {
            if self.is(")") {
                break;
            }
            all.push(self.test()?);
        }
        self.must(")")?;
        Ok(Ast::Tuple(all))
    }

    fn display(&mut self, close: &str) -> Parsed {
        let mut all = Vec::new();
        while !self.is(close) {
            let element = self.test()?;
            if all.is_empty() && self.is_word("for") {
                return self.comprehension(element);
            }
            all.push(element);
            if !self.take(",") {
                break;
            }
        }
        Ok(Ast::List(all))
    }

    fn braces(&mut self) -> Parsed {
        if self.is("}") {
            return Ok(Ast::Dict(Vec::new()));
        }
        let first = self.test()?;
        if !self.take(":") {
            let mut all = vec![first];
            if self.is_word("for") {
                let element = all.pop().ok_or(SyntaxError)?;
                self.comprehension(element)?;
                return Ok(Ast::Refused);
            }
            while self.take(",") && !self.is("}") {
                all.push(self.test()?);
            }
            return Ok(Ast::Set(all));
        }
        let value = self.test()?;
        if self.is_word("for") {
            self.comprehension(value)?;
            return Ok(Ast::Refused);
        }
        let mut entries = vec![(first, value)];
        while self.take(",") && !self.is("}") {
            let key = self.test()?;
            self.must(":")?;
            entries.push((key, self.test()?));
        }
        Ok(Ast::Dict(entries))
    }

    fn comprehension(&mut self, element: Ast) -> Parsed {
        let mut clauses = Vec::new();
        while self.take_word("for") {
            let bracket = self.take("(");
            let mut targets = Vec::new();
            loop {
                let Some(Token::Name(name)) = self.peek() else { return Err(SyntaxError) };
                targets.push(name.as_str().into());
                self.at += 1;
                if !self.take(",") {
                    break;
                }
            }
            if bracket {
                self.must(")")?;
            }
            if !self.take_word("in") {
                return Err(SyntaxError);
            }
            let source = self.or()?;
            let mut conditions = Vec::new();
            while self.take_word("if") {
                conditions.push(self.or()?);
            }
            clauses.push(Clause { targets, source, conditions });
        }
        Ok(Ast::Comprehension { element: Box::new(element), clauses })
    }

    /// The f-string literals and texts that follow directly.
    fn templates(&mut self, mut pieces: Vec<Piece>) -> Parsed {
        loop {
            match self.peek().cloned() {
                Some(Token::Template(text, raw)) => {
                    self.at += 1;
                    pieces.extend(self.template(&text, raw)?);
                }
                Some(Token::Text(text)) => {
                    self.at += 1;
                    pieces.push(Piece::Text(text));
                }
                _ => return Ok(Ast::Template(pieces)),
            }
        }
    }

    /// The pieces of an f-string's inside.
    fn template(&mut self, text: &str, raw: bool) -> Result<Vec<Piece>, SyntaxError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                literal.push(c);
                rest = after;
            } else if c == '}' {
                return Err(SyntaxError);
            } else if let Some(inside) = rest.strip_prefix('{') {
                if !literal.is_empty() {
                    let plain = std::mem::take(&mut literal);
                    pieces.push(Piece::Text(if raw { plain } else { unescape(&plain)? }));
                }
                let end = closing(inside)?;
                let (field, after) = inside.split_at_checked(end).ok_or(SyntaxError)?;
                pieces.push(self.field(field, raw)?);
                rest = after.strip_prefix('}').ok_or(SyntaxError)?;
            } else {
                literal.push(c);
                rest = rest.get(c.len_utf8()..).ok_or(SyntaxError)?;
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(if raw { literal } else { unescape(&literal)? }));
        }
        Ok(pieces)
    }

    /// `value[!conversion][:spec]` between braces.
    fn field(&mut self, text: &str, raw: bool) -> Result<Piece, SyntaxError> {
        let (head, spec) = match top_level(text, ':') {
            Some(at) => (text.get(..at).ok_or(SyntaxError)?, text.get(at + 1..).ok_or(SyntaxError)?),
            None => (text, ""),
        };
        let (head, conversion) = match head.trim_end().strip_suffix(['r', 's', 'a']).and_then(|h| h.strip_suffix('!')) {
            Some(value) => (value, head.trim_end().chars().last()),
            None => (head, None),
        };
        let spec = self.deeper(|parser| parser.template(spec, raw))?;
        let tokens = tokens(head)?;
        let outer = std::mem::replace(&mut self.tokens, tokens);
        let at = std::mem::replace(&mut self.at, 0);
        let value = self.deeper(Self::tests);
        let whole = self.at == self.tokens.len();
        self.tokens = outer;
        self.at = at;
        if whole { Ok(Piece::Value { value: value?, conversion, spec }) } else { Err(SyntaxError) }
    }
}

fn single(mut all: Vec<Ast>, many: fn(Vec<Ast>) -> Ast) -> Ast {
    match (all.len(), all.pop()) {
        (1, Some(only)) => only,
        (_, Some(last)) => {
            all.push(last);
            many(all)
        }
        (_, None) => Ast::Refused,
    }
}

/// Where the brace that closes a field stands.
fn closing(text: &str) -> Result<usize, SyntaxError> {
    let mut open = 0usize;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '{' | '[' | '(') => open += 1,
            (None, '}') if open == 0 => return Ok(at),
            (None, '}' | ']' | ')') => open = open.saturating_sub(1),
            (None, _) => {}
        }
    }
    Err(SyntaxError)
}

/// Where a character stands outside brackets and quotes.
fn top_level(text: &str, wanted: char) -> Option<usize> {
    let mut open = 0usize;
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some(_), _) => {}
            (None, c) if c == wanted && open == 0 => return Some(at),
            (None, '\'' | '"') => quote = Some(c),
            (None, '{' | '[' | '(') => open += 1,
            (None, '}' | ']' | ')') => open = open.saturating_sub(1),
            (None, _) => {}
        }
    }
    None
}

/// Arguments in the order of a function's parameters; `None` where absent.
pub(super) fn by_name<const N: usize>(arguments: Arguments, parameters: [&str; N]) -> [Option<Ast>; N] {
    let mut out = [const { None }; N];
    for (place, value) in out.iter_mut().zip(arguments.positional) {
        *place = Some(value);
    }
    for (name, value) in arguments.named {
        if let Some(place) = parameters.iter().position(|known| **known == *name).and_then(|at| out.get_mut(at)) {
            *place = Some(value);
        }
    }
    out
}

fn json_path(arguments: Arguments) -> Ast {
    let [path, as_list, context] = by_name(arguments, ["expr", "as_list", "context"]);
    let path = match path {
        Some(Ast::Constant(Value::Text(text))) => match Path::parse(&text) {
            Ok(path) => PathArgument::Parsed(path),
            Err(_) => PathArgument::Computed(Box::new(Ast::Constant(Value::Text(text)))),
        },
        Some(other) => PathArgument::Computed(Box::new(other)),
        None => return Ast::Refused,
    };
    Ast::JsonPath { path, as_list: as_list.map(Box::new), context: context.map(Box::new) }
}
