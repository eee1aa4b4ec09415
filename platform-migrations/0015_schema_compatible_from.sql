-- The oldest version of the program's tenant schema that can speak this tenant's database: a server that is older than
-- the database serves it nevertheless, if it is not older than this.
ALTER TABLE chat_instances ADD COLUMN schema_compatible_from bigint;
