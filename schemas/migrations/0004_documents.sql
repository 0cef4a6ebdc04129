-- Further documents of a domain: groups, lookup tables and their rows, location types, applications.
CREATE TABLE documents (
    domain   text NOT NULL,
    -- As change records name it.
    kind     text NOT NULL,
    id       text NOT NULL,
    document text NOT NULL,
    stamp    bigint NOT NULL,
    PRIMARY KEY (domain, kind, id)
);
