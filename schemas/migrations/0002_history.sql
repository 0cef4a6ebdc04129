-- What people do to stored forms and cases, ledgers, attachments of cases, device logs, and settings of domains.

-- Settings that are on, under CommCare's names for them.
ALTER TABLE domains ADD COLUMN flags text[] NOT NULL DEFAULT '{}';

ALTER TABLE forms ADD COLUMN deleted_on bigint, ADD COLUMN deletion_id text;

-- Attachments, a JSON object by name: the files they are and where those lie.
ALTER TABLE cases ADD COLUMN attachments text NOT NULL DEFAULT '{}';

-- What was deleted for good.
CREATE TABLE tombstones (
    id         text NOT NULL,
    domain     text NOT NULL,
    -- form or case
    kind       text NOT NULL,
    deleted_on bigint NOT NULL,
    PRIMARY KEY (kind, id)
);

-- Ledgers ---------------------------------------------------------------------------------------------------------

CREATE TABLE ledger_values (
    case_id       text NOT NULL,
    section_id    text NOT NULL,
    entry_id      text NOT NULL,
    domain        text NOT NULL,
    balance       bigint NOT NULL,
    last_modified bigint NOT NULL,
    last_form_id  text,
    stamp         bigint NOT NULL,
    PRIMARY KEY (case_id, section_id, entry_id)
);
CREATE INDEX ledger_values_by_domain ON ledger_values (domain);

CREATE TABLE ledger_transactions (
    case_id           text NOT NULL,
    section_id        text NOT NULL,
    entry_id          text NOT NULL,
    domain            text NOT NULL,
    form_id           text NOT NULL,
    -- 1 balance, 2 transfer
    type              smallint NOT NULL,
    server_date       bigint NOT NULL,
    report_date       bigint NOT NULL,
    -- Of a balance the counted quantity, of a transfer the signed change: what a replay starts from.
    quantity          bigint NOT NULL,
    delta             bigint NOT NULL,
    updated_balance   bigint NOT NULL,
    user_defined_type text,
    -- Order among equal dates: the stamp of the form's document, then the entry's number in the form.
    written           bigint NOT NULL,
    number            integer NOT NULL,
    PRIMARY KEY (case_id, form_id, number)
);

-- Device logs -----------------------------------------------------------------------------------------------------

-- Entries of device reports, numbered from 0 by kind in document order.
CREATE TABLE device_logs (
    domain      text NOT NULL,
    form_id     text NOT NULL,
    -- log, user, user_error or force_close
    kind        text NOT NULL,
    number      integer NOT NULL,
    received_on bigint NOT NULL,
    -- The entry's fields, a JSON object.
    entry       text NOT NULL,
    PRIMARY KEY (domain, form_id, kind, number)
);
CREATE INDEX device_logs_by_time ON device_logs (domain, received_on);

-- Permissions -----------------------------------------------------------------------------------------------------

-- Administrators made before these permissions were there.
UPDATE memberships SET permissions = permissions || ARRAY['edit_data', 'edit_domain']
    WHERE permissions @> ARRAY['edit_reports', 'edit_users'];

-- Sign-in ---------------------------------------------------------------------------------------------------------

-- MD5 of name, realm and password, which is what HTTP digest compares; null: no digest for this account.
ALTER TABLE accounts ADD COLUMN digest_hash text;

-- Random for each installation; its processes sign with them.
CREATE TABLE secrets (
    name  text PRIMARY KEY,
    value text NOT NULL
);
INSERT INTO secrets (name, value) VALUES ('digest', gen_random_uuid()::text || gen_random_uuid()::text);

CREATE TABLE access_tokens (
    -- SHA-256 of the token: tokens are random, so a plain hash is enough.
    token_hash bytea PRIMARY KEY,
    account_id text NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    scopes     text[] NOT NULL,
    -- Microseconds since 1970 UTC; null: does not expire.
    expires_at bigint,
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX access_tokens_by_account ON access_tokens (account_id);
