-- One form as one statement in a transaction of its own, for pgbench: the rows that Millrace writes for a form that
-- changes a case, in the sizes that were measured (-D form, xml, properties, blocks, record: bytes). No counter row is
-- taken, which Millrace's lanes have to: it is what plain Postgres can do with these rows.
\set id random(1, 1000000000000000)
\set case random(1, :cases)
\set shard random(0, 1023)
\set case_shard :case % 1024
\set at random(1700000000000000, 1800000000000000)
WITH written_form AS (
    INSERT INTO forms (id, domain, xmlns, app_id, user_id, state, received_on, server_modified_on, processed, xml_md5,
        xml_key, case_ids, document_zstd, stamp, shard)
    SELECT 'pgbench-' || :id, 'demo', 'http://openrosa.org/formdesigner/millrace/visit', 'app', 'user', 1, :at, :at, true,
        decode(md5(:id::text), 'hex'), md5(:id::text)::uuid, '["pgbench-' || :case || '"]',
        convert_to(repeat('d', :form), 'UTF8'), :at, :shard
), bytes AS (
    INSERT INTO xml_pending (key, domain, bytes_zstd, written)
    SELECT md5(:id::text)::uuid, 'demo', convert_to(repeat('x', :xml), 'UTF8'), :at
), changed_case AS (
    INSERT INTO cases (id, domain, type, name, owner_id, opened_on, opened_by, modified_on, modified_by,
        server_modified_on, closed, deleted, properties, xform_ids, stamp, shard)
    SELECT 'pgbench-' || :case, 'demo', 'pregnancy', 'name', 'owner', :at, 'user', :at, 'user', :at, false, false,
        repeat('p', :properties), '["pgbench-' || :id || '"]', :at, :case_shard
    ON CONFLICT (shard, id) DO UPDATE SET modified_on = excluded.modified_on, server_modified_on = excluded.server_modified_on,
        properties = excluded.properties, xform_ids = excluded.xform_ids, stamp = excluded.stamp
), history AS (
    INSERT INTO case_transactions (case_id, domain, form_id, type, server_date, client_date, revoked, blocks, written, shard,
        form_shard)
    SELECT 'pgbench-' || :case, 'demo', 'pgbench-' || :id, 1, :at, :at, false, repeat('b', :blocks), :at, :case_shard, :shard
)
INSERT INTO change_log (lane, sequence, stamp, domain, token, format, documents_zstd)
SELECT 99, :id, :at, 'demo', :id, 1, convert_to(repeat('r', :record), 'UTF8');
