-- Whether any tenant is behind is one look into this index, however many tenants there are. A tenant whose version
-- nobody has noted counts as behind.
CREATE INDEX chat_instances_schema_version ON chat_instances ((COALESCE(schema_version, 0)))
    WHERE state IN ('active', 'suspended');
