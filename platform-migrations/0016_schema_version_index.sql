-- Whether any tenant is behind is one look into this index, however many tenants there are.
CREATE INDEX chat_instances_schema_version ON chat_instances (schema_version) WHERE state IN ('active', 'suspended');
