//! A scan and the log behind it are the same documents as the whole log.

use std::collections::BTreeMap;

use schemas::{change::DocKind, position::Frontier};
use serde_json::Value;

use crate::service::{Service, body, case, create, form, start, update};

/// Documents by kind and id: stamp, document type, body.
type Documents = BTreeMap<(DocKind, String), (i64, String, Option<Value>)>;

async fn write(service: &Service, round: u32) {
    let blocks = format!(
        "{}{}",
        case("mum", &format!("{}{}", create("M"), update("round", &round.to_string()))),
        case(&format!("kid{round}"), &format!("{}<index><m case_type=\"x\">mum</m></index>", create("K")))
    );
    service.stored(&form(&format!("f{round}"), "1", &blocks)).await;
    service.stored(&form(&format!("f{round}"), "1", &blocks)).await;
    service.stored(&form(&format!("f{round}"), "2", &case("mum", &update("bp", "120")))).await;
    service.stored(&form(&format!("e{round}"), "1", &case("", &create("X")))).await;
    service.post("<broken").await;
    let user = format!("{{\"username\": \"w{round}\", \"id\": \"u{round}\", \"password\": \"pw\"}}");
    assert_eq!(service.call("POST", "/a/demo/api/v0.5/user/", user).await.status.as_u16(), 201);
    let place = format!("{{\"name\": \"L\", \"location_id\": \"l{round}\"}}");
    assert_eq!(service.call("POST", "/a/demo/api/v0.5/location/", place).await.status.as_u16(), 201);
}

#[tokio::test]
async fn a_scan_and_what_follows_equal_the_whole_log() {
    let service = start().await;
    for round in 0..3 {
        write(&service, round).await;
    }
    let bootstrap = service.ingest.bootstrap();
    let mut scan = bootstrap.scan().await.unwrap();
    // Written after the scan opened: not in its documents, but behind its frontier.
    for round in 3..5 {
        write(&service, round).await;
    }
    let mut scanned = Documents::new();
    let mut count = 0;
    while let Some(documents) = scan.next().await.unwrap() {
        for found in documents {
            assert_eq!(found.domain.as_str(), "demo");
            count += 1;
            let document = found.document;
            if document.kind == DocKind::WebUser {
                continue;
            }
            let value = (document.stamp.0, document.document_type.clone(), Some(body(&document)));
            assert!(scanned.insert((document.kind, document.id.to_string()), value).is_none(), "each document once");
        }
    }
    assert_eq!(scan.expected(), count);
    let at = scan.frontier().positions().next().unwrap();
    let head = service.number("SELECT sequence FROM lanes WHERE lane = 0").await as usize;
    let after = service.records(scan.frontier(), head - at.sequence.0 as usize).await;
    let apply = |documents: &mut Documents, records: &[std::sync::Arc<schemas::change::ChangeRecord>]| {
        for document in records.iter().flat_map(|record| &record.documents) {
            let value = (document.stamp.0, document.document_type.clone(), Some(body(document)));
            documents.insert((document.kind, document.id.to_string()), value);
        }
    };
    assert!(at.sequence.0 > 0 && !after.is_empty());
    let mut half = Documents::new();
    let whole = service.records(Frontier::default(), head).await;
    apply(&mut half, &whole[..at.sequence.0 as usize]);
    assert_eq!(scanned, half, "a scan is the log up to its frontier, stamps included");
    apply(&mut scanned, &after);
    let mut all = Documents::new();
    apply(&mut all, &whole);
    assert_eq!(scanned, all);
    assert_eq!(all.iter().filter(|((kind, _), _)| *kind == DocKind::User).count(), 5);
}
