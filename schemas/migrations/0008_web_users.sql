-- Web users as documents of each domain they may enter, in the control database.
INSERT INTO documents (domain, kind, id, document, stamp)
SELECT m.domain, 'web_user', a.id,
    json_build_object('_id', a.id, 'domain', m.domain, 'doc_type', 'WebUser', 'username', a.username, 'first_name', '',
        'last_name', '', 'permissions', m.permissions)::text,
    (extract(epoch FROM a.created_at) * 1000000)::bigint
FROM accounts a JOIN memberships m ON m.account_id = a.id
WHERE a.username NOT LIKE '%.commcarehq.org';
