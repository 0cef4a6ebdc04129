//! A server in memory: just enough of submission, edit, archive and delete to run histories.

use std::{collections::BTreeMap, fmt::Write};

use schemas::id::{CaseId, DomainId, FormId};
use serde_json::Value;

use crate::{
    casexml::CaseError,
    submit::{
        apply::{CaseState, FormContext, apply_blocks, check_indices, group_by_case},
        document::case_document,
        rebuild::{Rebuild, StoredTransaction, replay},
    },
    xform::tests::parse_text,
};

struct Form {
    text: String,
    received_on: i64,
    cases: Vec<CaseId>,
}

#[derive(Default)]
pub(super) struct World {
    pub(super) cases: BTreeMap<CaseId, CaseState>,
    pub(super) last_touched: Vec<CaseId>,
    pub(super) last_error: Option<CaseError>,
    pub(super) submitted: Vec<String>,
    pub(super) edited_on: Option<i64>,
    forms: BTreeMap<FormId, Form>,
    rows: BTreeMap<CaseId, Vec<StoredTransaction>>,
    made_up: usize,
}

impl World {
    /// Takes in a form as new, duplicate or edit.
    pub(super) fn submit(&mut self, domain: &str, text: &str, now: i64) {
        let mut form = parse_text(text).unwrap();
        if form.form_id.as_str() == "made-up" {
            self.made_up += 1;
            form.form_id = FormId::new(&format!("made-up-{}", self.made_up)).unwrap();
        }
        self.submitted.push(form.form_id.to_string());
        self.last_touched.clear();
        let domain = DomainId::new(domain).unwrap();
        let done = match self.forms.get(&form.form_id) {
            Some(old) if old.text == text => Ok(()),
            Some(_) => form.case_blocks.map(|blocks| self.edit(&form.form_id, &domain, text, blocks, now)),
            None => form.case_blocks.and_then(|blocks| self.apply(&form.form_id, &domain, text, blocks, now)),
        };
        self.last_error = done.err();
    }

    fn apply(
        &mut self,
        form_id: &FormId,
        domain: &DomainId,
        text: &str,
        blocks: Vec<crate::casexml::CaseBlock>,
        now: i64,
    ) -> Result<(), CaseError> {
        let form = FormContext { form_id, domain, received_on: now, server_modified_on: now };
        let before = self.cases.clone();
        let touches = apply_blocks(&mut self.cases, blocks.into(), &form)?;
        if let Err(error) = check_indices(&self.cases, &touches, &|_| false) {
            self.cases = before;
            return Err(error);
        }
        self.last_touched = touches.iter().map(|touch| touch.case_id.clone()).collect();
        self.forms.insert(
            form_id.clone(),
            Form { text: text.to_owned(), received_on: now, cases: self.last_touched.clone() },
        );
        for touch in touches {
            self.add_row(form_id, touch, now);
        }
        Ok(())
    }

    fn edit(
        &mut self,
        form_id: &FormId,
        domain: &DomainId,
        text: &str,
        blocks: Vec<crate::casexml::CaseBlock>,
        now: i64,
    ) {
        let old = self.forms.remove(form_id).unwrap();
        for rows in self.rows.values_mut() {
            rows.retain(|row| row.form_id.as_ref() != Some(form_id));
        }
        let touches = group_by_case(blocks.into());
        let new: Vec<CaseId> = touches.iter().map(|touch| touch.case_id.clone()).collect();
        for touch in touches {
            self.add_row(form_id, touch, old.received_on);
        }
        let mut union = [old.cases, new.clone()].concat();
        union.sort_unstable();
        union.dedup();
        for id in &union {
            self.replay(id, domain, now, None);
        }
        self.edited_on = Some(now);
        self.last_touched = union;
        self.forms.insert(form_id.clone(), Form { text: text.to_owned(), received_on: old.received_on, cases: new });
    }

    fn add_row(&mut self, form_id: &FormId, touch: crate::submit::apply::CaseTouch, server_date: i64) {
        self.rows.entry(touch.case_id).or_default().push(StoredTransaction {
            form_id: Some(form_id.clone()),
            user_id: None,
            kind: touch.kind,
            server_date,
            client_date: touch.client_date,
            sync_log_id: None,
            revoked: false,
            form_normal: true,
            blocks: touch.blocks,
        });
    }

    fn replay(&mut self, id: &CaseId, domain: &DomainId, at: i64, unarchiving: Option<&FormId>) {
        let rows = self.rows.get(id).map(Vec::as_slice).unwrap_or_default();
        let case = replay(id, self.cases.get(id), rows, &Rebuild { domain, at, unarchiving });
        self.cases.insert(id.clone(), case);
    }

    pub(super) fn set_archived(&mut self, form_id: &str, archived: bool, now: i64) {
        let form_id = FormId::new(form_id).unwrap();
        self.last_touched = self.forms[&form_id].cases.clone();
        for id in self.last_touched.clone() {
            for row in self.rows.get_mut(&id).unwrap() {
                if row.form_id.as_ref() == Some(&form_id) {
                    row.revoked = archived;
                }
            }
            let domain = self.cases[&id].domain.clone();
            self.replay(&id, &domain, now, (!archived).then_some(&form_id));
        }
    }

    pub(super) fn delete(&mut self, id: &str, now: i64) {
        let case = self.cases.get_mut(&CaseId::new(id).unwrap()).unwrap();
        (case.deleted, case.deleted_on, case.deletion_id) = (true, Some(now), Some("d".to_owned()));
    }

    pub(super) fn case(&self, id: &str) -> &CaseState {
        &self.cases[&CaseId::new(id).unwrap()]
    }

    pub(super) fn transactions(&self, id: &str) -> &[StoredTransaction] {
        &self.rows[&CaseId::new(id).unwrap()]
    }

    pub(super) fn document(&self, id: &str) -> Value {
        serde_json::from_str(case_document(self.case(id), None).unwrap().get()).unwrap()
    }
}

/// A small linear congruential generator: the same histories on every machine.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// A form with one to four blocks about five cases.
    pub(super) fn form(&mut self, number: i64) -> String {
        let mut xml = String::from("<d xmlns='n'>");
        for _ in 0..=self.below(4) {
            let case = self.below(5);
            write!(xml, "<case xmlns='http://commcarehq.org/case/transaction/v2' case_id='c{case}'").unwrap();
            if self.below(4) > 0 {
                write!(xml, " user_id='u{}' date_modified='2021-03-0{}'", self.below(3), 1 + self.below(9)).unwrap();
            }
            xml.push('>');
            if self.below(3) == 0 {
                write!(xml, "<create><case_type>t{}</case_type><case_name/></create>", self.below(2)).unwrap();
            }
            if self.below(2) == 0 {
                let (name, value) = (self.below(3), self.below(9));
                write!(xml, "<update><p{name}>{value}</p{name}><external_id>{}</external_id></update>", 1 + value)
                    .unwrap();
            }
            if self.below(3) == 0 {
                let target = if self.below(2) == 0 { String::new() } else { format!("c{case}") };
                write!(xml, "<index><i{} case_type='t'>{target}</i{}></index>", case % 2, case % 2).unwrap();
            }
            if self.below(8) == 0 {
                xml.push_str("<close/>");
            }
            xml.push_str("</case>");
        }
        write!(xml, "<meta><userID>w</userID><instanceID>f{number}</instanceID></meta></d>").unwrap();
        xml
    }
}
