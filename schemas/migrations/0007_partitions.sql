-- Forms, cases and all that belongs to them, in partitions by the shard of the form or case: smaller indexes, vacuum and
-- backups in parallel, and a layout that a distributed Postgres can spread. Every key begins with the shard, which whoever
-- has the id can compute; only "who refers to this case" asks every partition.
ALTER TABLE forms RENAME TO old_forms;
ALTER TABLE form_operations RENAME TO old_form_operations;
ALTER TABLE attachments RENAME TO old_attachments;
ALTER TABLE cases RENAME TO old_cases;
ALTER TABLE case_indices RENAME TO old_case_indices;
ALTER TABLE case_transactions RENAME TO old_case_transactions;
ALTER TABLE ledger_values RENAME TO old_ledger_values;
ALTER TABLE ledger_transactions RENAME TO old_ledger_transactions;

CREATE TABLE forms (
    shard              smallint NOT NULL,
    -- 1 normal, 2 archived, 4 deprecated, 8 duplicate, 16 error, 32 submission error log, 64 deleted (added to another)
    state              smallint NOT NULL,
    -- True once its case changes were applied.
    processed          boolean NOT NULL,
    id                 text NOT NULL,
    domain             text NOT NULL,
    xmlns              text NOT NULL,
    app_id             text,
    user_id            text,
    received_on        bigint NOT NULL,
    server_modified_on bigint NOT NULL,
    edited_on          bigint,
    orig_id            text,
    deprecated_form_id text,
    problem            text,
    -- Of exactly the received bytes: equal means duplicate.
    xml_md5            bytea NOT NULL,
    -- Where the bytes are: xml_pending or xml_packs.
    xml_key            uuid NOT NULL,
    -- Cases the form touched, a JSON array; an edit rebuilds them.
    case_ids           text NOT NULL,
    -- The form's document as it stands in the change log.
    document_zstd      bytea NOT NULL,
    stamp              bigint NOT NULL,
    deleted_on         bigint,
    deletion_id        text
) PARTITION BY RANGE (shard);
ALTER TABLE forms ALTER COLUMN document_zstd SET STORAGE EXTERNAL;

CREATE TABLE form_operations (
    shard     smallint NOT NULL,
    form_id   text NOT NULL,
    domain    text NOT NULL,
    operation text NOT NULL,
    user_id   text,
    at        bigint NOT NULL
) PARTITION BY RANGE (shard);

CREATE TABLE attachments (
    shard          smallint NOT NULL,
    form_id        text NOT NULL,
    domain         text NOT NULL,
    name           text NOT NULL,
    key            uuid NOT NULL,
    content_type   text,
    content_length bigint NOT NULL
) PARTITION BY RANGE (shard);

CREATE TABLE cases (
    shard              smallint NOT NULL,
    closed             boolean NOT NULL,
    deleted            boolean NOT NULL,
    id                 text NOT NULL,
    domain             text NOT NULL,
    type               text NOT NULL,
    name               text NOT NULL,
    owner_id           text NOT NULL,
    external_id        text,
    location_id        text,
    opened_on          bigint,
    opened_by          text,
    modified_on        bigint,
    modified_by        text,
    server_modified_on bigint NOT NULL,
    closed_on          bigint,
    closed_by          text,
    deleted_on         bigint,
    deletion_id        text,
    -- Dynamic properties, a JSON object in order of first setting.
    properties         text NOT NULL,
    -- Forms that count in this state in the order they were applied, a JSON array.
    xform_ids          text NOT NULL,
    -- Attachments, a JSON object by name: the files they are and where those lie.
    attachments        text NOT NULL DEFAULT '{}',
    stamp              bigint NOT NULL
) PARTITION BY RANGE (shard);

-- A row lies with the case that has the index. One with an empty referenced_id is the tombstone of a removed index: phones
-- have to be told.
CREATE TABLE case_indices (
    shard            smallint NOT NULL,
    -- The shard of the case referred to.
    referenced_shard smallint NOT NULL,
    -- Order in which the case got its indices.
    place            integer NOT NULL,
    case_id          text NOT NULL,
    identifier       text NOT NULL,
    domain           text NOT NULL,
    referenced_id    text NOT NULL,
    referenced_type  text NOT NULL,
    relationship     text NOT NULL
) PARTITION BY RANGE (shard);

CREATE TABLE case_transactions (
    shard       smallint NOT NULL,
    -- The shard of the form; null for rebuilds.
    form_shard  smallint,
    -- Bits: 1 form, 2 rebuild, 16 form archived, 32 form edited, 128 case create, 256 case close, 512 case index.
    type        integer NOT NULL,
    case_id     text NOT NULL,
    domain      text NOT NULL,
    -- Null for rebuilds.
    form_id     text,
    server_date bigint NOT NULL,
    client_date bigint,
    sync_log_id text,
    revoked     boolean NOT NULL,
    details     text,
    -- The form's blocks for this case, so that a replay reads no XML.
    blocks      text,
    -- Order among equal server dates: the stamp of the form that wrote the row.
    written     bigint NOT NULL
) PARTITION BY RANGE (shard);

CREATE TABLE ledger_values (
    shard         smallint NOT NULL,
    case_id       text NOT NULL,
    section_id    text NOT NULL,
    entry_id      text NOT NULL,
    domain        text NOT NULL,
    balance       bigint NOT NULL,
    last_modified bigint NOT NULL,
    last_form_id  text,
    stamp         bigint NOT NULL
) PARTITION BY RANGE (shard);

CREATE TABLE ledger_transactions (
    shard             smallint NOT NULL,
    -- 1 balance, 2 transfer
    type              smallint NOT NULL,
    number            integer NOT NULL,
    case_id           text NOT NULL,
    section_id        text NOT NULL,
    entry_id          text NOT NULL,
    domain            text NOT NULL,
    form_id           text NOT NULL,
    server_date       bigint NOT NULL,
    report_date       bigint NOT NULL,
    -- Of a balance the counted quantity, of a transfer the signed change: what a replay starts from.
    quantity          bigint NOT NULL,
    delta             bigint NOT NULL,
    updated_balance   bigint NOT NULL,
    user_defined_type text,
    -- Order among equal dates: the stamp of the form's document, then the entry's number in the form.
    written           bigint NOT NULL
) PARTITION BY RANGE (shard);

DO $$
DECLARE
    parts constant integer := 8;
    part  text;
BEGIN
    FOREACH part IN ARRAY ARRAY['forms', 'form_operations', 'attachments', 'cases', 'case_indices', 'case_transactions',
                                'ledger_values', 'ledger_transactions'] LOOP
        FOR n IN 0 .. parts - 1 LOOP
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%s) TO (%s)',
                part || '_' || n, part, n * 1024 / parts, (n + 1) * 1024 / parts);
        END LOOP;
    END LOOP;
END $$;

INSERT INTO forms (shard, state, processed, id, domain, xmlns, app_id, user_id, received_on, server_modified_on, edited_on,
        orig_id, deprecated_form_id, problem, xml_md5, xml_key, case_ids, document_zstd, stamp, deleted_on, deletion_id)
    SELECT shard, state, processed, id, domain, xmlns, app_id, user_id, received_on, server_modified_on, edited_on,
        orig_id, deprecated_form_id, problem, xml_md5, xml_key, case_ids, document_zstd, stamp, deleted_on, deletion_id
    FROM old_forms;
INSERT INTO form_operations (shard, form_id, domain, operation, user_id, at)
    SELECT shard, form_id, domain, operation, user_id, at FROM old_form_operations;
INSERT INTO attachments (shard, form_id, domain, name, key, content_type, content_length)
    SELECT shard, form_id, domain, name, key, content_type, content_length FROM old_attachments;
INSERT INTO cases (shard, closed, deleted, id, domain, type, name, owner_id, external_id, location_id, opened_on, opened_by,
        modified_on, modified_by, server_modified_on, closed_on, closed_by, deleted_on, deletion_id, properties, xform_ids,
        attachments, stamp)
    SELECT shard, closed, deleted, id, domain, type, name, owner_id, external_id, location_id, opened_on, opened_by,
        modified_on, modified_by, server_modified_on, closed_on, closed_by, deleted_on, deletion_id, properties, xform_ids,
        attachments, stamp
    FROM old_cases;
INSERT INTO case_indices (shard, referenced_shard, place, case_id, identifier, domain, referenced_id, referenced_type,
        relationship)
    SELECT shard, referenced_shard, place, case_id, identifier, domain, referenced_id, referenced_type, relationship
    FROM old_case_indices;
INSERT INTO case_transactions (shard, form_shard, type, case_id, domain, form_id, server_date, client_date, sync_log_id,
        revoked, details, blocks, written)
    SELECT shard, form_shard, type, case_id, domain, form_id, server_date, client_date, sync_log_id, revoked, details, blocks,
        written
    FROM old_case_transactions;
INSERT INTO ledger_values (shard, case_id, section_id, entry_id, domain, balance, last_modified, last_form_id, stamp)
    SELECT shard, case_id, section_id, entry_id, domain, balance, last_modified, last_form_id, stamp FROM old_ledger_values;
INSERT INTO ledger_transactions (shard, type, number, case_id, section_id, entry_id, domain, form_id, server_date,
        report_date, quantity, delta, updated_balance, user_defined_type, written)
    SELECT shard, type, number, case_id, section_id, entry_id, domain, form_id, server_date, report_date, quantity, delta,
        updated_balance, user_defined_type, written
    FROM old_ledger_transactions;

DROP TABLE old_forms, old_form_operations, old_attachments, old_cases, old_case_indices, old_case_transactions,
    old_ledger_values, old_ledger_transactions;

ALTER TABLE forms ADD PRIMARY KEY (shard, id);
ALTER TABLE attachments ADD PRIMARY KEY (shard, form_id, name);
ALTER TABLE cases ADD PRIMARY KEY (shard, id);
ALTER TABLE case_indices ADD PRIMARY KEY (shard, case_id, identifier);
ALTER TABLE case_transactions ADD UNIQUE (shard, case_id, form_id, type);
ALTER TABLE ledger_values ADD PRIMARY KEY (shard, case_id, section_id, entry_id);
ALTER TABLE ledger_transactions ADD PRIMARY KEY (shard, case_id, form_id, number);

CREATE INDEX forms_by_domain ON forms (domain, received_on);
CREATE INDEX form_operations_by_form ON form_operations (shard, form_id);
CREATE INDEX attachments_by_key ON attachments (key);
CREATE INDEX cases_by_domain ON cases (domain, type);
CREATE INDEX case_indices_by_referenced ON case_indices (referenced_id);
CREATE INDEX ledger_values_by_domain ON ledger_values (domain);
