//! A database of an earlier release becomes one of this release, and nothing in it is lost.

use ingest::IngestConfig;
use schemas::sql::MIGRATIONS;

use crate::{
    postgres,
    service::{case, form, start_with, update},
};

/// Rows of the release before documents had shards.
const ROWS: &str = r#"
    INSERT INTO domains (name, lane) VALUES ('demo', 0);
    INSERT INTO domain_homes (domain, database) VALUES ('demo', 0);
    INSERT INTO forms (id, domain, xmlns, state, received_on, server_modified_on, processed, xml_md5, xml_key, case_ids,
        document_zstd, stamp)
        SELECT 'f' || n, 'demo', 'http://example.org/visit', 1, 1, 1, true, '\x00', gen_random_uuid(), '["c' || n || '"]', '\x00', n
        FROM generate_series(1, 2000) n;
    INSERT INTO form_operations (form_id, domain, operation, at) VALUES ('f1', 'demo', 'archive', 1);
    INSERT INTO attachments (form_id, domain, name, key, content_length) VALUES ('f1', 'demo', 'a.jpg', gen_random_uuid(), 3);
    INSERT INTO cases (id, domain, type, name, owner_id, modified_by, server_modified_on, closed, deleted, properties, xform_ids,
        stamp)
        SELECT 'c' || n, 'demo', 'child', 'A', 'u1', 'u1', 1, false, false, '{"age": "4"}', '["f' || n || '"]', n
        FROM generate_series(1, 2000) n;
    INSERT INTO case_indices (case_id, identifier, domain, place, referenced_id, referenced_type, relationship)
        VALUES ('c1', 'mother', 'demo', 0, 'c2', 'child', 'child');
    INSERT INTO case_transactions (case_id, domain, form_id, type, server_date, revoked, blocks, written)
        SELECT 'c' || n, 'demo', 'f' || n, 129, 1, false, '[]', n FROM generate_series(1, 2000) n;
    INSERT INTO ledger_values (case_id, section_id, entry_id, domain, balance, last_modified, stamp)
        VALUES ('c1', 'stock', 'p1', 'demo', 5, 1, 1);
    INSERT INTO ledger_transactions (case_id, section_id, entry_id, domain, form_id, type, server_date, report_date, quantity,
        delta, updated_balance, written, number) VALUES ('c1', 'stock', 'p1', 'demo', 'f1', 1, 1, 1, 5, 5, 5, 1, 0);
    UPDATE lanes SET sequence = 0, stamp = 2000;
"#;

#[tokio::test]
async fn rows_get_their_shards_and_go_on_living() {
    let address = postgres::database().await;
    let client = postgres::connect(&address).await;
    for migration in MIGRATIONS.iter().take_while(|migration| migration.name != "shards") {
        client.batch_execute(migration.statements).await.unwrap();
        let done = "INSERT INTO schema_migrations (number, name) VALUES ($1, $2)";
        client.execute(done, &[&migration.number, &migration.name]).await.unwrap();
    }
    client.batch_execute("INSERT INTO lanes (lane) VALUES (0)").await.unwrap();
    client.batch_execute(ROWS).await.unwrap();

    let service = start_with(IngestConfig { database_url: address, ..IngestConfig::default() }).await;
    for (table, rows) in [
        ("forms", 2000),
        ("form_operations", 1),
        ("attachments", 1),
        ("cases", 2000),
        ("case_indices", 1),
        ("case_transactions", 2000),
        ("ledger_values", 1),
        ("ledger_transactions", 1),
    ] {
        assert_eq!(service.number(&format!("SELECT count(*) FROM {table}")).await, rows, "{table}");
    }
    let parts = "SELECT count(DISTINCT tableoid) FROM cases";
    assert_eq!(service.number(parts).await, 8, "hashes spread over all partitions");
    assert_eq!(service.number("SELECT shard::bigint FROM cases WHERE id = 'c1'").await, {
        service.number("SELECT shard::bigint FROM case_transactions WHERE case_id = 'c1'").await
    });

    service.stored(&form("f9001", "1", &case("c1", &update("age", "5")))).await;
    assert_eq!(service.number("SELECT count(*) FROM cases").await, 2000, "the case was found");
    assert_eq!(service.number("SELECT (properties::json->>'age')::bigint FROM cases WHERE id = 'c1'").await, 5);
    assert_eq!(service.number("SELECT count(*) FROM case_transactions WHERE case_id = 'c1'").await, 2);
    service.ingest.shutdown().await;
}
