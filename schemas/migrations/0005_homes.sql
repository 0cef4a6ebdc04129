-- Several databases: the control database says which one a domain lives in, and its web users enter domains of all of them.
CREATE TABLE domain_homes (
    domain   text PRIMARY KEY,
    -- Number of the database in the configuration.
    database integer NOT NULL
);
INSERT INTO domain_homes (domain, database) SELECT name, lane >> 16 FROM domains;

ALTER TABLE memberships DROP CONSTRAINT memberships_domain_fkey;
