//! Whether a database holds forms wholly or not at all.

use std::collections::BTreeMap;

use schemas::position::{LaneId, Sequence};
use tokio_postgres::{Client, SimpleQueryMessage};

/// One moment of a database.
const LOOK: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SELECT 'lane' AS what, lane || ' ' || sequence AS id FROM lanes;
    SELECT 'form' AS what, id FROM forms;
    SELECT 'case' AS what, id FROM cases;
    SELECT 'the log has holes', l.lane || ' ' || sequence FROM lanes l
        WHERE l.sequence <> (SELECT count(*) FROM change_log c WHERE c.lane = l.lane)
           OR l.sequence <> (SELECT coalesce(max(sequence), 0) FROM change_log c WHERE c.lane = l.lane);
    SELECT 'form without bytes', id FROM forms f
        WHERE NOT EXISTS (SELECT 1 FROM xml_pending p WHERE p.key = f.xml_key)
          AND NOT EXISTS (SELECT 1 FROM xml_packs p WHERE p.key = f.xml_key);
    SELECT 'form without one of its cases', f.id FROM forms f, json_array_elements_text(f.case_ids::json) touched(id)
        WHERE f.state = 1 AND NOT EXISTS (SELECT 1 FROM cases c WHERE c.id = touched.id);
    SELECT 'form without transaction', f.id FROM forms f, json_array_elements_text(f.case_ids::json) touched(id)
        WHERE f.state = 1 AND NOT EXISTS
            (SELECT 1 FROM case_transactions t WHERE t.case_id = touched.id AND t.form_id = f.id);
    SELECT 'transaction without form', t.form_id FROM case_transactions t
        WHERE t.form_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM forms f WHERE f.id = t.form_id);
    SELECT 'half-processed form', id FROM forms WHERE state = 1 AND NOT processed;
    COMMIT";

/// What a database holds.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// The last record of each lane.
    pub(crate) heads: BTreeMap<LaneId, Sequence>,
    /// Ids of forms, in order.
    pub(crate) forms: Vec<String>,
    /// Ids of cases, in order.
    pub(crate) cases: Vec<String>,
}

impl Stored {
    /// Looks at a database in which every stored form has its bytes, its cases and their transactions, and the other way
    /// round, and whose record numbers are dense; panics if that is not so.
    pub(crate) async fn look(store: &Client) -> Self {
        let (mut found, mut wrong) = (Self::default(), Vec::new());
        for message in store.simple_query(LOOK).await.unwrap() {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let id = row.get(1).unwrap().to_owned();
            match row.get(0).unwrap() {
                "lane" => {
                    let (lane, last) = id.split_once(' ').unwrap();
                    found.heads.insert(LaneId::from_i32(lane.parse().unwrap()), Sequence(last.parse().unwrap()));
                }
                "form" => found.forms.push(id),
                "case" => found.cases.push(id),
                what => wrong.push(format!("{what}: {id}")),
            }
        }
        assert_eq!(wrong, Vec::<String>::new());
        found.forms.sort_unstable();
        found.cases.sort_unstable();
        found
    }
}
