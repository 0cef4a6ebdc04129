-- Foundation: one database holds whole domains (docs: architecture D3, D4, D13).
--
-- Instants are bigint, microseconds since 1970 UTC, like the stamps that change records carry.
-- Columns ending in _zstd hold zstd-compressed bytes; they are compressed by the writer, so the server stores them as
-- they come. Every table that holds a domain's data names the domain.

CREATE TABLE schema_migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE domains (
    name               text PRIMARY KEY,
    -- Lane that all changes of the domain go through; never changed by configuration once the domain exists.
    lane               integer NOT NULL,
    secure_submissions boolean NOT NULL DEFAULT true,
    created_at         timestamptz NOT NULL DEFAULT now()
);

-- Change log ------------------------------------------------------------------------------------------------------

-- One counter row per lane. Updating it orders the lane: its lock is held until the transaction ends, so sequence order
-- is commit order.
CREATE TABLE lanes (
    lane     integer PRIMARY KEY,
    sequence bigint NOT NULL DEFAULT 0,
    stamp    bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

CREATE TABLE change_log (
    lane      integer NOT NULL,
    sequence  bigint NOT NULL,
    -- Stamp of the record's first document; the following documents have the following stamps.
    stamp     bigint NOT NULL,
    domain    text NOT NULL,
    -- Of the writer's transaction: tells after a lost connection whether it was committed.
    token     bigint NOT NULL,
    -- Layout of documents_zstd.
    format    smallint NOT NULL,
    documents_zstd bytea NOT NULL,
    PRIMARY KEY (lane, sequence)
);
ALTER TABLE change_log ALTER COLUMN documents_zstd SET STORAGE EXTERNAL;

-- Readers of the log. Records are kept until every reader whose lease has not run out has passed them.
CREATE TABLE consumers (
    name           text NOT NULL,
    lane           integer NOT NULL,
    sequence       bigint NOT NULL,
    lease_until    bigint NOT NULL,
    must_bootstrap boolean NOT NULL DEFAULT false,
    PRIMARY KEY (name, lane)
);

-- Forms and cases -------------------------------------------------------------------------------------------------

CREATE TABLE forms (
    id                 text PRIMARY KEY,
    domain             text NOT NULL,
    xmlns              text NOT NULL,
    app_id             text,
    user_id            text,
    -- 1 normal, 2 archived, 4 deprecated, 8 duplicate, 16 error, 32 submission error log, 64 deleted (added to another)
    state              smallint NOT NULL,
    received_on        bigint NOT NULL,
    server_modified_on bigint NOT NULL,
    edited_on          bigint,
    orig_id            text,
    deprecated_form_id text,
    problem            text,
    -- True once its case changes were applied.
    processed          boolean NOT NULL,
    -- Of exactly the received bytes: equal means duplicate.
    xml_md5            bytea NOT NULL,
    -- Where the bytes are: xml_pending or xml_packs.
    xml_key            uuid NOT NULL,
    -- Cases the form touched, a JSON array; an edit rebuilds them.
    case_ids           text NOT NULL,
    -- The form's document as it stands in the change log.
    document_zstd      bytea NOT NULL,
    stamp              bigint NOT NULL
);
ALTER TABLE forms ALTER COLUMN document_zstd SET STORAGE EXTERNAL;
CREATE INDEX forms_by_domain ON forms (domain, received_on);

CREATE TABLE form_operations (
    form_id   text NOT NULL,
    domain    text NOT NULL,
    operation text NOT NULL,
    user_id   text,
    at        bigint NOT NULL
);
CREATE INDEX form_operations_by_form ON form_operations (form_id);

CREATE TABLE cases (
    id                 text PRIMARY KEY,
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
    closed             boolean NOT NULL,
    closed_on          bigint,
    closed_by          text,
    deleted            boolean NOT NULL,
    deleted_on         bigint,
    deletion_id        text,
    -- Dynamic properties, a JSON object in order of first setting.
    properties         text NOT NULL,
    -- Forms that count in this state in the order they were applied, a JSON array.
    xform_ids          text NOT NULL,
    stamp              bigint NOT NULL
);
CREATE INDEX cases_by_domain ON cases (domain, type);

-- A row with an empty referenced_id is the tombstone of a removed index: phones have to be told.
CREATE TABLE case_indices (
    case_id         text NOT NULL,
    identifier      text NOT NULL,
    domain          text NOT NULL,
    -- Order in which the case got its indices.
    place           integer NOT NULL,
    referenced_id   text NOT NULL,
    referenced_type text NOT NULL,
    relationship    text NOT NULL,
    PRIMARY KEY (case_id, identifier)
);
CREATE INDEX case_indices_by_referenced ON case_indices (referenced_id);

CREATE TABLE case_transactions (
    case_id     text NOT NULL,
    domain      text NOT NULL,
    -- Null for rebuilds.
    form_id     text,
    -- Bits: 1 form, 2 rebuild, 16 form archived, 32 form edited, 128 case create, 256 case close, 512 case index.
    type        integer NOT NULL,
    server_date bigint NOT NULL,
    client_date bigint,
    sync_log_id text,
    revoked     boolean NOT NULL,
    details     text,
    -- The form's blocks for this case, so that a replay reads no XML.
    blocks      text,
    -- Order among equal server dates: the stamp of the form that wrote the row.
    written     bigint NOT NULL,
    UNIQUE (case_id, form_id, type)
);

CREATE TABLE attachments (
    form_id        text NOT NULL,
    domain         text NOT NULL,
    name           text NOT NULL,
    key            uuid NOT NULL,
    content_type   text,
    content_length bigint NOT NULL,
    PRIMARY KEY (form_id, name)
);

-- Bytes that the mover has not shipped to the object store yet: raw XML and small attachments.
CREATE TABLE xml_pending (
    key        uuid PRIMARY KEY,
    domain     text NOT NULL,
    bytes_zstd bytea NOT NULL,
    written    bigint NOT NULL
);
ALTER TABLE xml_pending ALTER COLUMN bytes_zstd SET STORAGE EXTERNAL;
CREATE INDEX xml_pending_by_age ON xml_pending (written);

-- Where shipped bytes lie: `bytes` bytes at `start` of the object named `pack`.
CREATE TABLE xml_packs (
    key    uuid PRIMARY KEY,
    pack   text NOT NULL,
    start  bigint NOT NULL,
    bytes  bigint NOT NULL
);

-- Users, locations, definitions -----------------------------------------------------------------------------------

-- Who may sign in: web users (in any number of domains) and mobile workers (in one).
CREATE TABLE accounts (
    id            text PRIMARY KEY,
    -- A web user's name, or `worker@domain.commcarehq.org`.
    username      text NOT NULL UNIQUE,
    -- argon2, in PHC form; null: cannot sign in with a password.
    password_hash text,
    is_active     boolean NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE memberships (
    account_id  text NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    domain      text NOT NULL REFERENCES domains (name) ON DELETE CASCADE,
    permissions text[] NOT NULL,
    PRIMARY KEY (account_id, domain)
);

CREATE TABLE api_keys (
    -- SHA-256 of the key: keys are random, so a plain hash is enough.
    key_hash   bytea PRIMARY KEY,
    account_id text NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    -- Null: every domain of the account.
    domain     text,
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_keys_by_account ON api_keys (account_id);

-- Mobile workers as documents; the account of the same id holds their password.
CREATE TABLE users (
    domain   text NOT NULL,
    id       text NOT NULL,
    document text NOT NULL,
    stamp    bigint NOT NULL,
    PRIMARY KEY (domain, id)
);

CREATE TABLE locations (
    domain   text NOT NULL,
    id       text NOT NULL,
    document text NOT NULL,
    stamp    bigint NOT NULL,
    PRIMARY KEY (domain, id)
);

CREATE TABLE definitions (
    domain   text NOT NULL,
    -- data_source or aggregate_view
    kind     text NOT NULL,
    id       text NOT NULL,
    document text NOT NULL,
    stamp    bigint NOT NULL,
    PRIMARY KEY (domain, kind, id)
);
