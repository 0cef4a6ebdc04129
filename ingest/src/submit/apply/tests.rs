//! Rules of columns, properties and indices, one block at a time.

use serde_json::json;

use super::*;
use crate::xform::tests::parse_text;

struct Cases(BTreeMap<CaseId, CaseState>);

impl Cases {
    /// Applies one form made of case elements; `CASE` in the content stands for the namespace.
    fn apply(&mut self, form_id: &str, received_on: i64, content: &str) -> Result<Vec<CaseTouch>, CaseError> {
        let content = content.replace("CASE", "xmlns='http://commcarehq.org/case/transaction/v2'");
        let blocks = parse_text(&format!("<d xmlns='n'>{content}</d>")).unwrap().case_blocks.unwrap();
        let (form_id, domain) = (FormId::new(form_id).unwrap(), DomainId::new("demo").unwrap());
        let form = FormContext { form_id: &form_id, domain: &domain, received_on, server_modified_on: received_on };
        apply_blocks(&mut self.0, blocks.into(), &form)
    }

    fn get(&self, id: &str) -> &CaseState {
        &self.0[&CaseId::new(id).unwrap()]
    }
}

#[test]
fn a_block_without_create_still_makes_the_case() {
    let mut cases = Cases(BTreeMap::new());
    let touches = cases.apply("f1", 70, "<case CASE case_id='c' user_id='u'/>").unwrap();
    assert_eq!((touches.len(), touches[0].kind, touches[0].client_date), (1, TransactionKind::FORM, None));
    let case = cases.get("c");
    assert_eq!((case.case_type.as_str(), case.owner_id.as_str(), case.modified_by.as_str()), ("", "u", "u"));
    assert_eq!((case.opened_on, case.modified_on, case.server_modified_on), (Some(70), Some(70), 70));
    assert_eq!(case.opened_by.as_deref(), Some("u"));
    assert_eq!(case.xform_ids, ["f1"]);
}

#[test]
fn columns_at_the_end_of_a_block() {
    let mut cases = Cases(BTreeMap::new());
    cases
        .apply("f1", 0, "<case CASE case_id='c' user_id='u' date_modified='1970-01-03'><create><case_type>t</case_type><case_name>n</case_name><owner_id>o</owner_id></create></case>")
        .unwrap();
    // earlier date: modified_on stays; an empty owner falls back to the block's user; names are case sensitive
    cases
        .apply("f2", 5, "<case CASE case_id='c' user_id='v' date_modified='1970-01-02'><update><owner_id/><case_type/><Case_name>p</Case_name></update><close/></case>")
        .unwrap();
    let day = 86_400_000_000;
    let case = cases.get("c");
    assert_eq!((case.modified_on, case.opened_on, case.closed_on), (Some(2 * day), Some(2 * day), Some(day)));
    assert_eq!((case.owner_id.as_str(), case.case_type.as_str(), case.name.as_str()), ("v", "", "n"));
    assert_eq!((case.closed, case.closed_by.as_deref(), case.modified_by.as_str()), (true, Some("v"), "v"));
    assert_eq!(Value::Object(case.properties.clone()), json!({"Case_name": "p"}));
    // a closed case is updated and stays closed
    cases.apply("f3", 9, "<case CASE case_id='c' user_id='w'><update><p/></update></case>").unwrap();
    let case = cases.get("c");
    assert_eq!((case.closed, case.closed_by.as_deref(), case.server_modified_on), (true, Some("v"), 9));
    assert_eq!(case.xform_ids, ["f1", "f2", "f3"]);
}

#[test]
fn one_transaction_per_case_and_form_with_all_bits() {
    let mut cases = Cases(BTreeMap::new());
    let touches = cases
        .apply("f", 1, "<case CASE case_id='c' date_modified='1970-01-01'><update><a>2</a></update><close/></case><case CASE case_id='b'><update><x>1</x></update></case><case CASE case_id='c'><create><case_type>t</case_type></create><update><a>1</a></update><index><p case_type='t'>b</p></index></case>")
        .unwrap();
    let bits: Vec<_> =
        touches.iter().map(|t| (t.case_id.as_str(), t.kind.0, t.blocks.len(), t.indices_changed)).collect();
    assert_eq!(bits, [("b", 1, 1, false), ("c", 1 + 128 + 256 + 512, 2, true)]);
    assert_eq!(cases.get("c").properties["a"], "2");
    assert_eq!(cases.get("c").xform_ids, ["f"]);
}

#[test]
fn indices_are_added_replaced_and_leave_a_tombstone() {
    let mut cases = Cases(BTreeMap::new());
    for (xml, expected) in [
        ("<p case_type='t'/>", vec![]),
        ("<p case_type='t'>x</p>", vec![("p", "t", "x", "child")]),
        (
            "<p case_type='t2' relationship='extension'>y</p><q case_type='t'>x</q>",
            vec![("p", "t2", "y", "extension"), ("q", "t", "x", "child")],
        ),
        ("<p case_type='t2'/>", vec![("p", "t2", "", "extension"), ("q", "t", "x", "child")]),
        ("<p case_type='t'>z</p>", vec![("p", "t", "z", "child"), ("q", "t", "x", "child")]),
    ] {
        cases.apply("f", 1, &format!("<case CASE case_id='c'><index>{xml}</index></case>")).unwrap();
        let found: Vec<_> = cases
            .get("c")
            .indices
            .iter()
            .map(|i| {
                (i.identifier.as_str(), i.referenced_type.as_str(), i.referenced_id.as_str(), i.relationship.name())
            })
            .collect();
        assert_eq!(found, expected, "{xml}");
        assert_eq!(cases.get("c").live_indices().count(), expected.iter().filter(|i| !i.2.is_empty()).count());
    }
}

#[test]
fn changed_indices_must_point_into_the_domain() {
    let mut cases = Cases(BTreeMap::new());
    let mut foreign = CaseState::new(CaseId::new("foreign").unwrap(), DomainId::new("other").unwrap());
    foreign.case_type = "t".into();
    cases.0.insert(foreign.case_id.clone(), foreign);
    let in_database = |id: &CaseId| id.as_str() == "stored";
    for (target, known) in
        [("self", true), ("sibling", true), ("stored", true), ("nowhere", false), ("foreign", false), (" ", false)]
    {
        let touches = cases
            .apply("f", 1, &format!("<case CASE case_id='self'><index><p case_type='t'>{target}</p></index></case><case CASE case_id='sibling'/>"))
            .unwrap();
        let checked = check_indices(&cases.0, &touches, &in_database);
        // white space alone is no text at all, hence removes the index
        assert_eq!(checked.is_ok(), known || target == " ", "{target}");
        if target == "nowhere" {
            assert_eq!(
                checked.unwrap_err().to_string(),
                "InvalidCaseIndex: Case 'self' references non-existent case 'nowhere'"
            );
        }
        // a form that changes no index of the case is not held up by an old one
        let touches = cases.apply("g", 2, "<case CASE case_id='self'><update><p/></update></case>").unwrap();
        assert_eq!(check_indices(&cases.0, &touches, &|_| false), Ok(()));
    }
}

#[test]
fn a_foreign_case_is_refused_and_nothing_changes() {
    let mut cases = Cases(BTreeMap::new());
    let foreign = CaseState::new(CaseId::new("z").unwrap(), DomainId::new("other").unwrap());
    cases.0.insert(foreign.case_id.clone(), foreign);
    let before = cases.0.clone();
    let error = cases.apply("f", 1, "<case CASE case_id='a'/><case CASE case_id='z'><close/></case>").unwrap_err();
    assert_eq!(error.to_string(), "IllegalCaseId: Bad case id");
    assert_eq!(cases.0, before);
}
